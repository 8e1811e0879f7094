//! One task per live shim: its events become the model's changes within milliseconds, its death the pod's end.
//!
//! Not `Frame::spawn`: a watcher lives as long as its pod. Bounded by the number of sandboxes; all end with the drain.

use std::sync::Arc;
use std::time::Duration;

use orlop_cri::v1;
use orlop_daemon::backoff::Backoff;
use orlop_shim::protocol::Request;
use orlop_types::ProcessIdentity;

use crate::error::chain;
use crate::model::Stage;
use crate::process;
use crate::runtime::{QUESTION_DEADLINE, Runtime};
use crate::shim;

const KILL_DEADLINE: Duration = Duration::from_secs(5);
/// A shim that said nothing for this long is asked.
const CHECK_PERIOD: Duration = Duration::from_secs(60);
/// Attempts to hear a shim that lives; after them it counts as hung and is killed.
const ATTEMPT_LIMIT: u32 = 10;

impl Runtime {
    /// Starts the watcher of a ready sandbox.
    pub(crate) fn watch_shim(self: &Arc<Self>, sandbox_id: &str) {
        let (runtime, id) = (self.clone(), sandbox_id.to_owned());
        tokio::spawn(async move { runtime.watch(&id).await });
    }

    async fn watch(self: Arc<Self>, id: &str) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        let mut attempts = 0;
        while let Some(shim) = self.watched_shim(id) {
            let heard = tokio::select! {
                heard = self.listen(id) => heard,
                () = self.drain.wait() => return,
            };
            if heard {
                attempts = 0;
                backoff.reset();
            }
            if self.watched_shim(id).is_none() {
                return;
            }
            attempts += 1;
            if !process::is_alive(shim) || attempts > ATTEMPT_LIMIT {
                return self.lose_shim(id).await;
            }
            if !self.drain.sleep(backoff.pause()).await {
                return;
            }
        }
    }

    fn watched_shim(&self, id: &str) -> Option<ProcessIdentity> {
        self.model().sandboxes.get(id).filter(|sandbox| sandbox.is_ready()).and_then(|sandbox| sandbox.shim)
    }

    /// Takes events until the connection ends. True when the shim could be heard at all.
    async fn listen(&self, id: &str) -> bool {
        let mut events = match self.shim(id).open(&Request::Events, QUESTION_DEADLINE).await {
            Ok(events) => events,
            Err(error) => {
                tracing::debug!(sandbox = id, error = chain(&error), "could not listen to the shim");
                return false;
            }
        };
        // Starts before this connection are not replayed; the state has them.
        if let Err(error) = self.refresh(id).await {
            tracing::debug!(sandbox = id, error = chain(&error), "could not ask the shim");
        }
        loop {
            let mut next = std::pin::pin!(shim::read_event(&mut events));
            let event = loop {
                match tokio::time::timeout(CHECK_PERIOD, &mut next).await {
                    Ok(event) => break event,
                    // A shim that hangs is silent too, and what ends below it would never be heard of.
                    Err(_) => match self.refresh(id).await {
                        Ok(()) => {}
                        Err(error) => {
                            tracing::warn!(sandbox = id, error = chain(&error), "the shim does not answer");
                            return false;
                        }
                    },
                }
            };
            match event {
                Ok(event) => self.observe(&event.container),
                Err(error) => {
                    tracing::debug!(sandbox = id, error = chain(&error), "the shim stopped talking");
                    return true;
                }
            }
        }
    }

    /// The shim died or hangs: its pod is over. What is left of it is killed, its containers have ended, and the kubelet makes
    /// a new sandbox.
    pub(crate) async fn lose_shim(self: &Arc<Self>, id: &str) {
        let Ok(sandbox) = self.sandbox(id) else { return };
        if !sandbox.is_ready() {
            return;
        }
        tracing::error!(sandbox = id, shim = ?sandbox.shim, "the pod's shim is lost");
        self.metrics.shim_lost();
        if let Some(shim) = sandbox.shim {
            process::kill(shim, KILL_DEADLINE).await;
        }
        let ended = self.end_shim(&sandbox, None).await;
        self.change_sandbox(id, |sandbox| {
            sandbox.stage = Stage::Stopped;
            sandbox.shim = None;
            // What could not be removed is tried again by the stop, or at the next start.
            if ended {
                sandbox.forget_shim();
            }
        });
        self.settle_containers(id);
        self.announce(id, id, v1::ContainerEventType::ContainerStoppedEvent);
    }
}
