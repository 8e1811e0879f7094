//! RemoveContainer: killed if need be, then its mounts, its writable layer and its record.

use std::sync::Arc;
use std::time::Duration;

use orlop_cri::v1;
use orlop_shim::protocol::Request;

use crate::error::CriError;
use crate::model::Container;
use crate::runtime::Runtime;
use crate::{convert, files, process};

const REMOVE_DEADLINE: Duration = Duration::from_secs(30);

impl Runtime {
    /// The verb; an unknown container is removed already.
    pub(crate) async fn remove_container(self: &Arc<Self>, id: &str) -> Result<(), CriError> {
        let Ok(container) = self.container(id) else {
            return Ok(());
        };
        let runtime = self.clone();
        let key = container.id.clone();
        self.removals.join(key, || async move { runtime.remove_known_container(container).await }).await
    }

    async fn remove_known_container(self: Arc<Self>, container: Container) -> Result<(), CriError> {
        let id = container.id.clone();
        self.stop_container(&id, 0).await?;
        let shim = self.sandbox(&container.sandbox_id).ok().and_then(|sandbox| sandbox.shim);
        if shim.is_some_and(process::is_alive) {
            let request = Request::Remove { id: id.clone() };
            match self.shim(&container.sandbox_id).call(&request, REMOVE_DEADLINE).await {
                Ok(_) => {}
                // It ended meanwhile, and its mounts with it.
                Err(error) if error.is_broken() && !shim.is_some_and(process::is_alive) => {}
                Err(error) => return Err(error.to_cri("failed to remove the container", &id)),
            }
        }
        let (images, bundle, key) =
            (self.images.clone(), self.directory(&container.sandbox_id).bundle(&id), id.clone());
        let removed = tokio::task::spawn_blocking(move || {
            images.remove_rootfs(&key).map_err(|error| convert::image_error(&key, &error))?;
            files::remove_tree(&bundle)
                .map_err(|error| CriError::failed("failed to remove the bundle", error))
        });
        removed
            .await
            .unwrap_or_else(|error| Err(CriError::failed("failed to remove the container", error)))?;
        self.disk.forget(&id);
        self.rates.forget(&id);
        self.model().containers.remove(&id);
        self.announce(&id, &container.sandbox_id, v1::ContainerEventType::ContainerDeletedEvent);
        Ok(())
    }
}
