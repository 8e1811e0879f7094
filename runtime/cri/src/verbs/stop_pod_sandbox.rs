//! StopPodSandbox: its containers are killed, its network is removed, its shim ends.

use std::sync::Arc;
use std::time::Duration;

use orlop_cri::v1;
use orlop_shim::protocol::{ExitStatus, Phase};
use orlop_types::ProcessIdentity;

use crate::error::CriError;
use crate::files;
use crate::model::{Container, Sandbox, Stage};
use crate::runtime::Runtime;
use crate::{groups, machine, process, shim};

const CGROUP_PATIENCE: Duration = Duration::from_secs(5);
/// What a container is said to have ended with when its shim took the true code along: killed.
const LOST_EXIT_CODE: i32 = 137;

impl Runtime {
    /// The verb; an unknown sandbox is stopped already.
    pub(crate) async fn stop_pod_sandbox(self: &Arc<Self>, id: &str) -> Result<(), CriError> {
        let Ok(sandbox) = self.sandbox(id) else {
            return Ok(());
        };
        let runtime = self.clone();
        let key = sandbox.id.clone();
        self.sandbox_stops.join(key, || async move { runtime.stop_known_sandbox(sandbox).await }).await
    }

    async fn stop_known_sandbox(self: Arc<Self>, sandbox: Sandbox) -> Result<(), CriError> {
        let id = sandbox.id.clone();
        let was_ready = sandbox.is_ready();
        let containers: Vec<String> =
            self.model().containers_of(&id).map(|container| container.id.clone()).collect();
        let stops = containers.iter().map(|container| self.stop_container(container, 0));
        for stopped in futures::future::join_all(stops).await {
            stopped?;
        }
        let lives = sandbox.shim.is_some_and(process::is_alive);
        self.cni.detach(&self.directory(&id).network(), lives).await.map_err(|error| {
            CriError::failed(format!("failed to remove the network of sandbox {id}"), error)
        })?;
        // Before the shim ends: its watcher must not take this end for an accident.
        self.change_sandbox(&id, |sandbox| sandbox.stage = Stage::Stopped);
        if !self.end_shim(&sandbox, sandbox.shim).await {
            return Err(CriError::Timeout(format!("the shim of sandbox {id} did not end")));
        }
        self.settle_containers(&id);
        self.change_sandbox(&id, Sandbox::forget_shim);
        if was_ready {
            self.announce(&id, &id, v1::ContainerEventType::ContainerStoppedEvent);
        }
        Ok(())
    }

    /// Ends the shim and whatever is left in the cgroups of its pod. True when all of it is gone.
    pub(crate) async fn end_shim(&self, sandbox: &Sandbox, shim: Option<ProcessIdentity>) -> bool {
        if let Some(identity) = shim
            && !shim::end(&self.shim(&sandbox.id), identity).await
        {
            tracing::error!(sandbox = %sandbox.id, pid = identity.pid, "the shim survives SIGKILL");
            return false;
        }
        let mut cgroups: Vec<String> =
            self.model().containers_of(&sandbox.id).map(|container| container.cgroup.clone()).collect();
        cgroups.push(sandbox.shim_group().path);
        let (hierarchies, parents) = (self.hierarchies.clone(), self.cgroup_parents.clone());
        let (id, systemd) = (sandbox.id.clone(), sandbox.systemd);
        let removed = tokio::task::spawn_blocking(move || {
            let removed = cgroups.iter().all(|cgroup| match hierarchies.destroy(cgroup, CGROUP_PATIENCE) {
                Ok(()) => true,
                Err(error) => {
                    tracing::error!(sandbox = %id, cgroup, %error, "could not remove the cgroup");
                    false
                }
            });
            if removed {
                parents.release(&id);
            }
            // systemd sees for itself that they are empty; this is for when it is slow, or was told of none.
            if systemd
                && let Err(error) = orlop_oci::systemd::stop(cgroups.iter().map(|path| groups::unit(path)))
            {
                tracing::warn!(sandbox = %id, %error, "systemd did not end the units of the pod");
            }
            removed
        });
        removed.await.unwrap_or(false)
    }

    /// After the shim is gone: every container of the pod has ended, as its exit file says or by SIGKILL.
    pub(crate) fn settle_containers(&self, sandbox_id: &str) {
        let open: Vec<Container> = {
            let model = self.model();
            model
                .containers_of(sandbox_id)
                .filter(|container| container.phase != Phase::Exited)
                .cloned()
                .collect()
        };
        for container in open {
            let told: Option<ExitStatus> =
                files::read_json(&self.directory(sandbox_id).exit_file(&container.id)).ok();
            let exit = told.unwrap_or_else(|| ExitStatus {
                code: LOST_EXIT_CODE,
                finished_at: machine::now(),
                oom_killed: false,
            });
            self.observe(&orlop_shim::protocol::ContainerState {
                id: container.id.clone(),
                phase: Phase::Exited,
                pid: None,
                created_at: container.created_at,
                started_at: container.started_at,
                exit: Some(exit),
            });
        }
    }
}
