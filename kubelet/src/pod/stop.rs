//! The end of a pod: containers, sandbox, volumes, cgroup, final status, object.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;
use kube::Api;
use kube::api::{DeleteParams, Preconditions};

use super::model;
use super::plan::{self, Action};
use super::worker::{Stage, Turn, Worker};
use crate::volume::blocking;

const CLEANUP_RETRY: SignedDuration = SignedDuration::from_millis(500);

impl Worker {
    fn grace_seconds(&self) -> i64 {
        match &self.pod {
            Some(pod) => model::grace_seconds(pod),
            None => self
                .observed
                .containers
                .iter()
                .filter_map(|container| container.grace_seconds)
                .max()
                .unwrap_or(30),
        }
    }

    /// Stops what lives.
    pub(crate) async fn turn_stopping(&mut self, now: Timestamp) -> Turn {
        let since = *self.stopping_since.get_or_insert(now);
        self.waiting.clear();
        self.memory.pulling.clear();
        if self.is_alive() {
            self.keep_probes();
        } else {
            self.end_probes();
        }
        if self.retry.is_waiting(now) {
            // A stop failed: not again at once.
            return Turn::Sleep(self.retry.at);
        }
        let deadline = since.as_second().saturating_add(self.grace_seconds());
        let actions =
            plan::plan_stop(self.pod.as_deref(), &self.observed, &self.memory, now.as_second(), deadline);
        let mut sandbox_stopped = false;
        let idle = actions.is_empty();
        for action in actions {
            match action {
                Action::Stop { id, grace_seconds, message, .. } => {
                    self.stop_container(&id, grace_seconds, message)
                }
                Action::StopSandbox { id } => {
                    if self.stop_sandbox(&id).await.is_err() {
                        return Turn::Sleep(Some(now + CLEANUP_RETRY));
                    }
                    sandbox_stopped = true;
                }
                Action::CreateSandbox { .. }
                | Action::Start { .. }
                | Action::Remove { .. }
                | Action::RemoveSandbox { .. } => {}
            }
        }
        if sandbox_stopped {
            return Turn::Again;
        }
        if idle && !self.is_alive() {
            self.stage = Stage::Stopped;
            return Turn::Again;
        }
        self.publish(false, now);
        Turn::Sleep(None)
    }

    /// Nothing lives: release everything, report, and delete the object when that is wanted. `None` ends the worker.
    pub(crate) async fn turn_stopped(&mut self, now: Timestamp) -> Option<Turn> {
        self.end_probes();
        let later = Some(Turn::Sleep(Some(now + CLEANUP_RETRY)));
        let status = self.publish(true, now);
        if let Err(error) = self.release().await {
            tracing::warn!(uid = self.uid, error, "could not release a pod's resources");
            return later;
        }
        let deleting = self.pod.as_ref().is_none_or(|pod| pod.metadata.deletion_timestamp.is_some());
        if self.gone || self.pod.is_none() {
            if let Err(error) = self.forget().await {
                tracing::warn!(uid = self.uid, error, "could not remove what is left of a pod");
                return later;
            }
            tracing::info!(uid = self.uid, pod = self.pod.as_deref().map(model::name), "pod is gone");
            return None;
        }
        if !self.is_published(&status) && !self.gone {
            // Woken by the end of the write.
            return Some(Turn::Sleep(None));
        }
        if deleting && !self.deleted {
            return match self.delete_object().await {
                Ok(()) => {
                    self.deleted = true;
                    Some(Turn::Sleep(None))
                }
                Err(error) => {
                    tracing::warn!(uid = self.uid, %error, "could not delete a pod object");
                    later
                }
            };
        }
        Some(Turn::Sleep(None))
    }

    /// Volumes and cgroup; a deleted pod also leaves the runtime, so that its names and addresses are free.
    async fn release(&mut self) -> Result<(), String> {
        let deleting =
            self.gone || self.pod.as_ref().is_none_or(|pod| pod.metadata.deletion_timestamp.is_some());
        if self.cgroup_ready || !self.released {
            self.kubelet.volumes.tear_down(&self.uid).await?;
            let cgroups = self.kubelet.cgroups.clone();
            let uid = self.uid.clone();
            blocking(move || {
                cgroups.remove_pod(&uid).map_err(|error| format!("cgroup of pod {uid}: {error}"))
            })
            .await?;
            self.cgroup_ready = false;
            self.released = true;
        }
        if deleting {
            self.remove_from_runtime().await?;
        }
        Ok(())
    }

    async fn remove_from_runtime(&mut self) -> Result<(), String> {
        let sandboxes: Vec<String> =
            self.observed.sandboxes.iter().map(|sandbox| sandbox.id.clone()).collect();
        let containers: Vec<String> =
            self.observed.containers.iter().map(|container| container.id.clone()).collect();
        if !containers.is_empty() || !sandboxes.is_empty() {
            // The status that is being written needs what is removed now.
            let pending = self.final_status.is_none() && self.pod.is_some();
            if pending {
                let status = self.publish(true, Timestamp::now());
                self.final_status = Some(Box::new(status));
            }
        }
        for id in containers {
            self.kubelet.runtime.delete_container(&id).await.map_err(|error| error.to_string())?;
        }
        for id in sandboxes {
            self.kubelet.runtime.remove_sandbox(&id).await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Logs, after the object is gone.
    async fn forget(&mut self) -> Result<(), String> {
        let logs = self.kubelet.config.pod_logs_dir.clone();
        let uid = self.uid.clone();
        blocking(move || remove_logs(&logs, &uid).map_err(|error| error.to_string())).await
    }

    async fn delete_object(&self) -> Result<(), kube::Error> {
        let Some(pod) = &self.pod else { return Ok(()) };
        let pods = Api::<core::Pod>::namespaced(self.kubelet.client.clone(), model::namespace(pod));
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: Some(self.uid.clone()), resource_version: None }),
            ..Default::default()
        };
        match pods.delete(model::name(pod), &params).await {
            Ok(_) => Ok(()),
            // Gone, or replaced by a pod of the same name.
            Err(kube::Error::Api(answer)) if answer.code == 404 || answer.code == 409 => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Removes `NAMESPACE_NAME_UID` of a pod.
pub(crate) fn remove_logs(logs: &std::path::Path, uid: &str) -> std::io::Result<()> {
    let suffix = format!("_{uid}");
    for entry in std::fs::read_dir(logs).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().ends_with(&suffix) {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}
