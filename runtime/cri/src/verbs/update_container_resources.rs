//! UpdateContainerResources: limits of a container changed in its cgroup; all of them, or none.

use std::sync::{Arc, PoisonError};

use orlop_cri::v1;
use orlop_oci::systemd;
use orlop_shim::protocol::Phase;

use crate::cgroup::Hierarchies;
use crate::error::CriError;
use crate::model::Container;
use crate::runtime::Runtime;
use crate::spec::update::{self, Write};
use crate::spec::{plan, resources};
use crate::{groups, usage};

impl Runtime {
    /// The verb.
    pub(crate) async fn update_container_resources(
        self: &Arc<Self>,
        id: &str,
        change: Option<v1::LinuxContainerResources>,
    ) -> Result<(), CriError> {
        let container = self.container(id)?;
        let Some(change) = change else { return Ok(()) };
        let runtime = self.clone();
        let updated =
            tokio::task::spawn_blocking(move || runtime.update_known_container(&container.id, &change));
        updated.await.unwrap_or_else(|error| Err(CriError::failed("failed to change the limits", error)))
    }

    fn update_known_container(&self, id: &str, change: &v1::LinuxContainerResources) -> Result<(), CriError> {
        // One after the other: two changes at once would undo each other's writes.
        let _turn = self.updates.lock().unwrap_or_else(PoisonError::into_inner);
        let container = self.container(id)?;
        if container.phase == Phase::Exited {
            return Err(CriError::WrongState(format!("container {id} has ended")));
        }
        let mut wanted = container.resources.clone();
        update::merge(&mut wanted, change);
        let writes = update::plan_update(change, &container.resources, &wanted, &self.features);
        if self.model().sandboxes.get(&container.sandbox_id).is_some_and(|sandbox| sandbox.systemd) {
            self.tell_systemd(&container, &wanted)?;
        }
        apply(&self.hierarchies, &container.cgroup, &writes).map_err(|error| {
            CriError::failed(format!("failed to change the limits of container {id}"), error)
        })?;
        if change.oom_score_adj != 0 {
            let adjust = plan::oom_score_adj(change.oom_score_adj, self.config.oom_score_adj_floor);
            adjust_oom_score(&self.hierarchies, &container, adjust);
        }
        self.change_container(id, |container| container.resources = wanted);
        Ok(())
    }

    /// Or it would set the old limits again when it next looks at the unit.
    fn tell_systemd(
        &self,
        container: &Container,
        wanted: &v1::LinuxContainerResources,
    ) -> Result<(), CriError> {
        const ACT: &str = "failed to tell systemd the limits";
        let resources = resources::plan_resources(wanted, &self.features, false, &[])
            .map_err(|error| CriError::failed(ACT, error))?;
        systemd::change(groups::unit(&container.cgroup), &resources, self.features.unified)
            .map_err(|error| CriError::failed(ACT, error))
    }
}

/// Writes in order; when the kernel refuses one, those before it are put back, last first.
fn apply(hierarchies: &Hierarchies, cgroup: &str, writes: &[Write]) -> std::io::Result<()> {
    let mut done: Vec<(&Write, String)> = Vec::new();
    for write in writes {
        let before = hierarchies.read(cgroup, write.controller, &write.file);
        let written = before.and_then(|before| {
            hierarchies.write(cgroup, write.controller, &write.file, &write.value).map(|()| before)
        });
        match written {
            Ok(before) => done.push((write, before)),
            Err(error) => {
                for (write, before) in done.into_iter().rev() {
                    if let Err(error) =
                        hierarchies.write(cgroup, write.controller, &write.file, before.trim())
                    {
                        tracing::error!(cgroup, file = write.file, %error, "could not put a limit back");
                    }
                }
                return Err(error);
            }
        }
    }
    Ok(())
}

/// Below its own value only CAP_SYS_RESOURCE goes (proc(5)); limits that hold are worth more than this preference.
fn adjust_oom_score(hierarchies: &Hierarchies, container: &Container, adjust: i32) {
    for pid in usage::processes(hierarchies, &container.cgroup) {
        match std::fs::write(format!("/proc/{pid}/oom_score_adj"), adjust.to_string()) {
            Ok(()) => {}
            // It has ended meanwhile.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(container = %container.id, adjust, %error, "oom_score_adj is kept");
                return;
            }
        }
    }
}
