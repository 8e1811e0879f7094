//! UpdateContainerResources: limits of a container changed in its cgroup.

use std::sync::Arc;

use orlop_cri::v1;
use orlop_shim::protocol::Phase;

use crate::error::CriError;
use crate::runtime::Runtime;
use crate::spec::resources;

impl Runtime {
    /// The verb.
    pub(crate) async fn update_container_resources(
        self: &Arc<Self>,
        id: &str,
        change: Option<v1::LinuxContainerResources>,
    ) -> Result<(), CriError> {
        let container = self.container(id)?;
        let Some(change) = change else { return Ok(()) };
        if container.phase == Phase::Exited {
            return Err(CriError::WrongState(format!("container {id} has ended")));
        }
        let mut wanted = container.resources.clone();
        resources::merge(&mut wanted, &change);
        let writes = resources::plan_update(&change, &wanted, self.features.unified);
        let (hierarchies, cgroup) = (self.hierarchies.clone(), container.cgroup.clone());
        let written = tokio::task::spawn_blocking(move || {
            writes
                .iter()
                .try_for_each(|write| hierarchies.write(&cgroup, write.controller, &write.file, &write.value))
        });
        written.await.map_err(|error| CriError::failed("failed to change the limits", error))?.map_err(
            |error| CriError::failed(format!("failed to change the limits of container {id}"), error),
        )?;
        self.change_container(&container.id, |container| container.resources = wanted);
        Ok(())
    }
}
