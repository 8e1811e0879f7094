//! RemovePodSandbox: stopped if need be, with everything in it.

use std::sync::Arc;

use orlop_cri::v1;

use crate::error::CriError;
use crate::files;
use crate::model::Sandbox;
use crate::runtime::Runtime;

impl Runtime {
    /// The verb; an unknown sandbox is removed already.
    pub(crate) async fn remove_pod_sandbox(self: &Arc<Self>, id: &str) -> Result<(), CriError> {
        let Ok(sandbox) = self.sandbox(id) else {
            return Ok(());
        };
        let runtime = self.clone();
        let key = sandbox.id.clone();
        self.removals.join(key, || async move { runtime.remove_known_sandbox(sandbox).await }).await
    }

    async fn remove_known_sandbox(self: Arc<Self>, sandbox: Sandbox) -> Result<(), CriError> {
        let id = sandbox.id.clone();
        self.stop_pod_sandbox(&id).await?;
        let containers: Vec<String> =
            self.model().containers_of(&id).map(|container| container.id.clone()).collect();
        for container in containers {
            self.remove_container(&container).await?;
        }
        files::remove_tree(self.directory(&id).path()).map_err(|error| {
            CriError::failed(format!("failed to remove the state of sandbox {id}"), error)
        })?;
        self.announce(&id, &id, v1::ContainerEventType::ContainerDeletedEvent);
        self.model().sandboxes.remove(&id);
        self.rates.forget(&id);
        Ok(())
    }
}
