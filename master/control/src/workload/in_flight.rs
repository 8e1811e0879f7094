//! What was written and not yet seen in the watch, so that a stale watch never doubles a pod.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use orlop_kube::Key;
use tokio::time::Instant;

use crate::model::Pod;

/// After this time an entry is checked against the API itself.
pub(super) const DOUBT_AFTER: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct Entry {
    created: BTreeMap<String, (Arc<Pod>, Instant)>,
    doomed: BTreeMap<String, (String, Instant)>,
}

/// Bounded by the pods that one step of each workload may touch; entries leave when the watch shows them.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    entries: Mutex<HashMap<Key, Entry>>,
}

/// Entries that have been waited for too long.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    pub(super) pods: Vec<(String, String)>,
}

impl InFlight {
    fn entries(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn created(&self, workload: &Key, pod: Pod) {
        let uid = pod.meta.uid.clone();
        let mut entries = self.entries();
        entries.entry(workload.clone()).or_default().created.insert(uid, (Arc::new(pod), Instant::now()));
    }

    pub(super) fn doomed(&self, workload: &Key, pod: &Pod) {
        let mut entries = self.entries();
        let entry = entries.entry(workload.clone()).or_default();
        entry.doomed.insert(pod.meta.uid.clone(), (pod.meta.name.clone(), Instant::now()));
    }

    /// The watch has shown a pod (alive: `deleted` false).
    pub(super) fn seen(&self, workload: &Key, uid: &str, deleted: bool) {
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(workload) else {
            return;
        };
        entry.created.remove(uid);
        if deleted {
            entry.doomed.remove(uid);
        }
        if entry.created.is_empty() && entry.doomed.is_empty() {
            entries.remove(workload);
        }
    }

    /// The watched pods of the namespace with the created ones added, and the uids whose deletion is under way.
    ///
    /// `read` runs after the entries are pinned: an entry that left before was already visible to `read`.
    pub(super) fn overlay(
        &self,
        workload: &Key,
        read: impl FnOnce() -> Vec<Arc<Pod>>,
    ) -> (Vec<Arc<Pod>>, BTreeSet<String>) {
        let mut entries = self.entries();
        let mut pods = read();
        let Some(entry) = entries.get_mut(workload) else {
            return (pods, BTreeSet::new());
        };
        {
            let known: BTreeSet<&str> = pods.iter().map(|pod| pod.meta.uid.as_str()).collect();
            entry.created.retain(|uid, _| !known.contains(uid.as_str()));
        }
        pods.extend(entry.created.values().map(|(pod, _)| pod.clone()));
        (pods, entry.doomed.keys().cloned().collect())
    }

    /// Whether anything of the workload is under way.
    pub(super) fn is_waiting(&self, workload: &Key) -> bool {
        self.entries()
            .get(workload)
            .is_some_and(|entry| !entry.created.is_empty() || !entry.doomed.is_empty())
    }

    /// Names and uids of the pods whose echo is overdue.
    pub(super) fn doubts(&self, workload: &Key) -> Doubts {
        let entries = self.entries();
        let Some(entry) = entries.get(workload) else {
            return Doubts::default();
        };
        let created =
            entry.created.iter().map(|(uid, (pod, since))| (pod.meta.name.clone(), uid.clone(), *since));
        let doomed = entry.doomed.iter().map(|(uid, (name, since))| (name.clone(), uid.clone(), *since));
        let overdue = created.chain(doomed).filter(|(_, _, since)| since.elapsed() >= DOUBT_AFTER);
        Doubts { pods: overdue.map(|(name, uid, _)| (name, uid)).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Meta;

    fn pod(uid: &str) -> Pod {
        Pod { meta: Meta { uid: uid.into(), name: uid.into(), ..Meta::default() }, ..Pod::default() }
    }

    #[tokio::test]
    async fn a_created_pod_counts_once_before_and_after_its_echo() {
        let in_flight = InFlight::default();
        let key = Key { namespace: "d".into(), name: "rc".into() };
        in_flight.created(&key, pod("a"));
        assert_eq!(in_flight.overlay(&key, Vec::new).0.len(), 1);
        assert_eq!(in_flight.overlay(&key, || vec![Arc::new(pod("a"))]).0.len(), 1);
        assert!(!in_flight.is_waiting(&key));
        in_flight.doomed(&key, &pod("a"));
        in_flight.seen(&key, "a", false);
        assert_eq!(in_flight.overlay(&key, Vec::new).1.len(), 1);
        in_flight.seen(&key, "a", true);
        assert!(in_flight.overlay(&key, Vec::new).1.is_empty());
        assert!(in_flight.entries().is_empty());
    }
}
