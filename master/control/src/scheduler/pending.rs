//! Pods that wait for a node.
//!
//! ```text
//!   new --> active --no node fits--> parked --something changed, or after a while--> active
//!              \--held--binding failed--> backoff ------------------- due ---------------/
//! ```

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use jiff::Timestamp;
use orlop_kube::Key;
use tokio::time::Instant;

const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// A parked pod is looked at again after this time even if nothing changed.
const PARKED_AT_MOST: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    Active,
    /// No node fits; a change may wake it, but not before its backoff is over.
    Parked {
        since: Instant,
    },
    Until(Instant),
    /// Its binding is under way.
    Held,
}

#[derive(Clone, Debug)]
struct Entry {
    uid: String,
    created: Option<Timestamp>,
    attempts: u32,
    tried: Option<Instant>,
    wait: Wait,
}

/// Bounded by the number of pods without a node.
#[derive(Debug)]
pub(super) struct Pending {
    entries: HashMap<Key, Entry>,
    last_backoff: Duration,
}

impl Pending {
    pub(super) fn new(last_backoff: Duration) -> Self {
        Self { entries: HashMap::new(), last_backoff }
    }

    /// A pod without a node was seen; one that changed is tried again at once.
    pub(super) fn add(&mut self, key: Key, uid: &str, created: Option<Timestamp>, has_changed: bool) {
        let fresh = Entry { uid: uid.to_owned(), created, attempts: 0, tried: None, wait: Wait::Active };
        let entry = self.entries.entry(key).or_insert_with(|| fresh.clone());
        if entry.uid != uid {
            *entry = fresh;
        } else if has_changed {
            entry.wait = Wait::Active;
        }
    }

    pub(super) fn remove(&mut self, key: &Key) {
        self.entries.remove(key);
    }

    /// Something changed that may make room.
    pub(super) fn wake(&mut self) {
        let last = self.last_backoff;
        for entry in self.entries.values_mut() {
            if let Wait::Parked { .. } = entry.wait {
                entry.wait = match entry.tried {
                    Some(tried) => Wait::Until(tried + backoff(entry.attempts, last)),
                    None => Wait::Active,
                };
            }
        }
    }

    /// Its binding starts.
    pub(super) fn hold(&mut self, key: &Key) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.wait = Wait::Held;
        }
    }

    /// No node fits.
    pub(super) fn park(&mut self, key: &Key, now: Instant) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.attempts = entry.attempts.saturating_add(1);
            entry.tried = Some(now);
            entry.wait = Wait::Parked { since: now };
        }
    }

    /// The attempt failed for a passing reason.
    pub(super) fn back_off(&mut self, key: &Key, now: Instant) {
        let last = self.last_backoff;
        if let Some(entry) = self.entries.get_mut(key) {
            entry.attempts = entry.attempts.saturating_add(1);
            entry.tried = Some(now);
            entry.wait = Wait::Until(now + backoff(entry.attempts, last));
        }
    }

    /// The pods to try now, the oldest first.
    pub(super) fn due(&self, now: Instant) -> Vec<Key> {
        let is_due = |wait: Wait| wait == Wait::Active || at(wait).is_some_and(|at| at <= now);
        let due = self.entries.iter().filter(|(_, entry)| is_due(entry.wait));
        let ordered: BTreeSet<_> = due.map(|(key, entry)| (entry.created, key.clone())).collect();
        ordered.into_iter().map(|(_, key)| key).collect()
    }

    /// When the next pod becomes due by itself.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.entries.values().filter_map(|entry| at(entry.wait)).min()
    }

    pub(super) fn counts(&self) -> (usize, usize, usize) {
        let count = |is: fn(&Wait) -> bool| self.entries.values().filter(|entry| is(&entry.wait)).count();
        (
            count(|wait| matches!(wait, Wait::Active)),
            count(|wait| matches!(wait, Wait::Until(_))),
            count(|wait| matches!(wait, Wait::Parked { .. })),
        )
    }
}

fn at(wait: Wait) -> Option<Instant> {
    match wait {
        Wait::Active | Wait::Held => None,
        Wait::Parked { since } => Some(since + PARKED_AT_MOST),
        Wait::Until(at) => Some(at),
    }
}

fn backoff(attempts: u32, last: Duration) -> Duration {
    FIRST_BACKOFF.saturating_mul(1 << attempts.saturating_sub(1).min(10)).min(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parked_pod_wakes_by_a_change_after_its_backoff() {
        let key = |name: &str| Key { namespace: "d".into(), name: name.into() };
        let mut pending = Pending::new(Duration::from_secs(10));
        let start = Instant::now();
        pending.add(key("a"), "1", None, false);
        assert_eq!(pending.due(start), [key("a")]);
        pending.park(&key("a"), start);
        assert!(pending.due(start).is_empty());
        assert_eq!(pending.next_due(), Some(start + PARKED_AT_MOST));
        pending.wake();
        assert_eq!(pending.next_due(), Some(start + FIRST_BACKOFF));
        for _ in 0..9 {
            pending.back_off(&key("a"), start);
        }
        assert_eq!(pending.next_due(), Some(start + Duration::from_secs(10)));
        pending.add(key("a"), "1", None, true);
        assert_eq!(pending.counts(), (1, 0, 0));
        pending.add(key("a"), "2", None, false);
        pending.remove(&key("a"));
        assert_eq!(pending.next_due(), None);
    }
}
