//! StartContainer.

use std::sync::Arc;
use std::time::Duration;

use orlop_cri::v1;
use orlop_shim::protocol::{ErrorKind, ExitStatus, Phase, Request, Response};

use crate::error::CriError;
use crate::machine;
use crate::model::Container;
use crate::runtime::Runtime;
use crate::shim::ShimError;

const START_DEADLINE: Duration = Duration::from_secs(30);
/// What docker and containerd report for a container that could not be started.
const START_FAILURE_EXIT_CODE: i32 = 128;

impl Runtime {
    /// The verb.
    pub(crate) async fn start_container(self: &Arc<Self>, id: &str) -> Result<(), CriError> {
        let container = self.container(id)?;
        let runtime = self.clone();
        self.starts.join(container.id.clone(), || async move { runtime.start_known(container).await }).await
    }

    async fn start_known(self: Arc<Self>, container: Container) -> Result<(), CriError> {
        let id = container.id;
        // Read again: the flight may have waited for another one.
        match self.container(&id)?.phase {
            Phase::Created => {}
            Phase::Running => return Err(CriError::WrongState(format!("container {id} runs already"))),
            Phase::Exited => return Err(CriError::WrongState(format!("container {id} has ended"))),
        }
        match self.shim(&container.sandbox_id).call(&Request::Start { id: id.clone() }, START_DEADLINE).await
        {
            Ok(Response::Container(state)) => {
                self.observe(&state);
                Ok(())
            }
            Ok(_) => self
                .refresh(&container.sandbox_id)
                .await
                .map_err(|error| error.to_cri("failed to start", &id)),
            Err(error) => {
                let failure = error.to_cri("failed to start the container", &id);
                if matches!(error, ShimError::Refused { kind: ErrorKind::Failed, .. }) {
                    self.mark_failed(&id, &failure);
                }
                Err(failure)
            }
        }
    }

    fn mark_failed(&self, id: &str, failure: &CriError) {
        let now = machine::now();
        let mut ended = false;
        self.change_container(id, |container| {
            // The shim may have told of the set-up child's end meanwhile, whose code says nothing of the program.
            if container.phase != Phase::Running && container.failure.is_none() {
                ended = container.phase == Phase::Created;
                container.phase = Phase::Exited;
                container.started_at = now;
                container.exit =
                    Some(ExitStatus { code: START_FAILURE_EXIT_CODE, finished_at: now, oom_killed: false });
                container.failure = Some(failure.to_string());
            }
        });
        if ended {
            self.announce_container(id, v1::ContainerEventType::ContainerStoppedEvent);
        }
    }
}
