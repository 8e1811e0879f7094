//! StopContainer: the shim's ladder (stop signal, grace, SIGKILL), and a ladder above it for a shim that hangs.

use std::sync::Arc;
use std::time::Duration;

use orlop_shim::protocol::{Phase, Request};

use crate::error::{CriError, chain};
use crate::model::Container;
use crate::runtime::Runtime;
use crate::shim::ShimError;

/// Longer graces are cut: a year.
const GRACE_LIMIT_SECONDS: i64 = 365 * 24 * 3600;
/// What a shim may need beyond the grace time: SIGKILL, the kernel's teardown, its own bookkeeping.
const KILL_PATIENCE: Duration = Duration::from_secs(15);
const CGROUP_PATIENCE: Duration = Duration::from_secs(5);

impl Runtime {
    /// The verb. Unknown or not running is stopped already. Calls are not joined: a shorter grace overtakes a longer one.
    pub(crate) async fn stop_container(
        self: &Arc<Self>,
        id: &str,
        grace_seconds: i64,
    ) -> Result<(), CriError> {
        let Ok(container) = self.container(id) else {
            return Ok(());
        };
        if container.phase != Phase::Running {
            return Ok(());
        }
        let grace = Duration::from_secs(grace_seconds.clamp(0, GRACE_LIMIT_SECONDS).unsigned_abs());
        let grace_millis = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let request = Request::Stop { id: container.id.clone(), grace_millis };
        match self.shim(&container.sandbox_id).call(&request, grace + KILL_PATIENCE).await {
            Ok(_) => {}
            Err(ShimError::Refused { kind: orlop_shim::protocol::ErrorKind::NotFound, .. }) => {}
            Err(error) => {
                tracing::warn!(container = %container.id, error = chain(&error), "the shim did not stop the container");
                return self.escalate(&container).await;
            }
        }
        match self.refresh(&container.sandbox_id).await {
            Ok(()) => Ok(()),
            Err(_) => self.escalate(&container).await,
        }
    }

    /// Kills the container's cgroup behind the shim's back; if the shim does not even notice that, the shim.
    async fn escalate(self: &Arc<Self>, container: &Container) -> Result<(), CriError> {
        let (hierarchies, cgroup) = (self.hierarchies.clone(), container.cgroup.clone());
        let killed = tokio::task::spawn_blocking(move || hierarchies.kill(&cgroup, CGROUP_PATIENCE)).await;
        if let Ok(Err(error)) = killed {
            tracing::error!(container = %container.id, %error, "could not kill the container's cgroup");
        }
        let _ = self.refresh(&container.sandbox_id).await;
        if self.container(&container.id).is_ok_and(|container| container.phase != Phase::Running) {
            return Ok(());
        }
        self.lose_shim(&container.sandbox_id).await;
        if self.container(&container.id).is_ok_and(|container| container.phase == Phase::Running) {
            return Err(CriError::Timeout(format!("container {} could not be stopped", container.id)));
        }
        Ok(())
    }
}
