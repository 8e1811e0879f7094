//! What a worker tells the API, and the volumes that it keeps true.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;

use super::status::{self, Facts};
use super::worker::{Stage, Worker};
use super::{model, operations, patch};
use crate::events::Kind;

impl Worker {
    /// Sets volumes up once; false when they cannot be yet.
    pub(crate) async fn ensure_volumes(&mut self, pod: &core::Pod) -> Result<(), ()> {
        if self.volumes_ready {
            return Ok(());
        }
        match self.set_up_volumes(pod).await {
            Ok(()) => {
                self.volumes_ready = true;
                Ok(())
            }
            Err(error) => {
                self.kubelet.events.pod(pod, None, Kind::Warning, "FailedMount", error);
                Err(())
            }
        }
    }

    async fn set_up_volumes(&mut self, pod: &core::Pod) -> Result<(), String> {
        let pod_ips = self.pod_ips();
        let downward = crate::container::env::Downward {
            pod,
            pod_ips: &pod_ips,
            host_ips: &self.kubelet.host_ips,
            allocatable: &self.kubelet.allocatable,
        };
        let result = self.kubelet.volumes.set_up(&downward).await.map_err(|error| error.to_string());
        if crate::volume::Volumes::has_live_content(pod) {
            let period = self.kubelet.config.sync_frequency.0.mul_f64(0.75 + rand::random::<f64>() / 4.0);
            self.refresh_at =
                Some(Timestamp::now() + SignedDuration::try_from(period).unwrap_or(SignedDuration::MAX));
        }
        result
    }

    /// Brings live volumes up to date; also the first time after a restart of the kubelet.
    pub(super) async fn refresh_volumes(&mut self, pod: &core::Pod, now: Timestamp) {
        let running = self.observed.alive().next().is_some();
        let due = self.refresh_at.is_some_and(|at| at <= now) || (!self.volumes_ready && running);
        if due && running {
            self.renew_volumes(pod).await;
        }
    }

    /// What a restarted container finds is new. A failure is shown, and what is mounted stays: neither a restart of the kubelet nor an
    /// object that was deleted is a reason to touch a pod that runs.
    pub(super) async fn renew_volumes(&mut self, pod: &core::Pod) {
        let renewed = self.set_up_volumes(pod).await;
        self.volumes_ready = true;
        if let Err(error) = renewed {
            self.kubelet.events.pod(pod, None, Kind::Warning, "FailedMount", error);
        }
    }

    /// Computes the status and writes it beside the worker when it changed.
    pub(crate) fn publish(&mut self, ended: bool, now: Timestamp) -> core::PodStatus {
        let Some(pod) = self.pod.clone() else {
            return core::PodStatus::default();
        };
        if self.frozen {
            return self.sent.clone();
        }
        let status = match &self.final_status {
            Some(status) => (**status).clone(),
            None => self.compute_status(&pod, ended, now),
        };
        if self.writing || self.gone || self.status_retry.is_some_and(|at| at > now) {
            return status;
        }
        if let Some(patch) = patch::status_patch(&self.uid, &self.sent, &status) {
            self.writing = true;
            let (namespace, name) = (model::namespace(&pod).to_owned(), model::name(&pod).to_owned());
            let write = operations::write_status(
                self.kubelet.clone(),
                namespace,
                name,
                patch,
                Box::new(status.clone()),
            );
            self.operations.spawn(write);
        }
        status
    }

    fn compute_status(&self, pod: &core::Pod, ended: bool, now: Timestamp) -> core::PodStatus {
        status::status(&Facts {
            pod,
            before: &self.sent,
            observed: &self.observed,
            memory: &self.memory,
            waiting: &self.waiting,
            host_ips: &self.kubelet.host_ips,
            runtime: &self.kubelet.health.borrow().runtime_name,
            ending: self.stage != Stage::Running,
            ended,
            verdict: self.verdict.as_ref(),
            now,
        })
    }

    /// Whether the API knows the status that was computed last.
    pub(crate) fn is_published(&self, status: &core::PodStatus) -> bool {
        !self.writing && patch::status_patch(&self.uid, &self.sent, status).is_none()
    }
}
