//! Slices just written and not yet watched: a plan from a stale watch would write them again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use orlop_kube::Key;

/// Slices with the Service they belong to and the ticket of the write. Bounded by the slices written within the echo time.
#[derive(Clone, Debug, Default)]
pub(super) struct Unseen {
    slices: Arc<Mutex<HashMap<Key, (Key, u64)>>>,
}

impl Unseen {
    fn slices(&self) -> MutexGuard<'_, HashMap<Key, (Key, u64)>> {
        self.slices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slice was written.
    pub(super) fn add(&self, slice: &Key, service: Key, ticket: u64) {
        self.slices().insert(slice.clone(), (service, ticket));
    }

    /// The watch has shown the slice.
    pub(super) fn seen(&self, slice: &Key) {
        self.slices().remove(slice);
    }

    /// The echo is overdue: gone unless the slice was written again meanwhile.
    pub(super) fn expire(&self, slice: &Key, ticket: u64) {
        let mut slices = self.slices();
        if slices.get(slice).is_some_and(|(_, latest)| *latest == ticket) {
            slices.remove(slice);
        }
    }

    /// Whether a slice of the Service is still to be seen.
    pub(super) fn holds_any_of(&self, service: &Key) -> bool {
        self.slices().values().any(|(owner, _)| owner == service)
    }
}
