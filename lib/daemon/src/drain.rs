use std::time::Duration;

use tokio::sync::watch;

/// Tells tasks to finish: cheap to clone, level-triggered, never missed.
///
/// A task selects on [`Drain::wait`] beside its work and returns soon after it resolves.
#[derive(Clone, Debug)]
pub struct Drain {
    state: watch::Receiver<bool>,
}

/// The side that starts the drain.
#[derive(Debug)]
pub(crate) struct DrainTrigger {
    state: watch::Sender<bool>,
}

pub(crate) fn channel() -> (DrainTrigger, Drain) {
    let (sender, receiver) = watch::channel(false);
    (DrainTrigger { state: sender }, Drain { state: receiver })
}

impl DrainTrigger {
    pub(crate) fn start(&self) {
        self.state.send_replace(true);
    }
}

impl Drain {
    /// A drain that never starts, with the function that starts it: for tests and for embedding a component.
    pub fn manual() -> (impl Fn() + Send + Sync + 'static, Drain) {
        let (trigger, drain) = channel();
        (move || trigger.start(), drain)
    }

    /// Resolves once draining has started; at once when it already has. Cancel safe.
    pub async fn wait(&self) {
        let mut state = self.state.clone();
        // An error means that the trigger is gone, which only happens when the process ends.
        let _ = state.wait_for(|draining| *draining).await;
    }

    /// Whether draining has started.
    pub fn is_draining(&self) -> bool {
        *self.state.borrow()
    }

    /// Sleeps for `pause` or until the drain starts; false when it was the drain.
    pub async fn sleep(&self, pause: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(pause) => true,
            () = self.wait() => false,
        }
    }
}
