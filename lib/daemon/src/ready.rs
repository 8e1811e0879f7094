use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// The set of conditions that must hold before the daemon reports itself ready.
#[derive(Clone, Debug)]
pub struct Ready {
    guards: Arc<Mutex<BTreeMap<String, bool>>>,
    changed: Arc<watch::Sender<bool>>,
}

/// One dependency of readiness. Until [`ReadyGuard::set`] the daemon is not ready and `/readyz` names the guard.
#[derive(Debug)]
pub struct ReadyGuard {
    name: String,
    ready: Ready,
}

impl Ready {
    pub(crate) fn new() -> Self {
        let (changed, _) = watch::channel(false);
        Self { guards: Arc::default(), changed: Arc::new(changed) }
    }

    /// Registers a dependency. `name` shows in `/readyz`: use words like `api-synced`.
    pub fn guard(&self, name: impl Into<String>) -> ReadyGuard {
        let name = name.into();
        self.write(&name, false);
        ReadyGuard { name, ready: self.clone() }
    }

    /// The names of the guards that are not set yet.
    pub fn missing(&self) -> Vec<String> {
        let guards = self.guards.lock().unwrap_or_else(PoisonError::into_inner);
        guards.iter().filter(|(_, set)| !**set).map(|(name, _)| name.clone()).collect()
    }

    /// Resolves once every registered guard is set. Cancel safe.
    pub async fn wait(&self) {
        let mut changed = self.changed.subscribe();
        let _ = changed.wait_for(|ready| *ready).await;
    }

    /// Publishes readiness for a daemon that registered no guard at all.
    pub(crate) fn publish(&self) {
        self.changed.send_replace(self.missing().is_empty());
    }

    fn write(&self, name: &str, set: bool) {
        let mut guards = self.guards.lock().unwrap_or_else(PoisonError::into_inner);
        guards.insert(name.to_owned(), set);
        let all = guards.values().all(|set| *set);
        drop(guards);
        if set || !all {
            self.changed.send_replace(all);
        }
    }
}

impl ReadyGuard {
    /// The dependency holds.
    pub fn set(&self) {
        self.ready.write(&self.name, true);
    }

    /// The dependency was lost again.
    pub fn unset(&self) {
        self.ready.write(&self.name, false);
    }
}
