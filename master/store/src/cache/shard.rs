//! One prefix of the cache.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::{At, Change, ChangeKind, Entry, Expired, Page, PageRequest, WatchFilter};
use crate::Revision;

/// Watches that start again and continued lists find this much history: young history up to the large bounds (upstream keeps at
/// least 75 s), older history only up to the small ones.
const YOUNG: Duration = Duration::from_secs(75);
const YOUNG_LIMIT: usize = 65_536;
const YOUNG_LIMIT_BYTES: usize = 16 << 20;
const OLD_LIMIT: usize = 512;
const OLD_LIMIT_BYTES: usize = 512 << 10;
/// What a change costs beside the encoded bytes.
const CHANGE_OVERHEAD_BYTES: usize = 400;

pub(super) struct Shard {
    pub(super) prefix: String,
    objects: BTreeMap<Arc<str>, Arc<Entry>>,
    history: VecDeque<(Instant, Arc<Change>)>,
    history_bytes: usize,
    /// States after this revision (and this one) can be rebuilt.
    oldest: Revision,
    watchers: Vec<Watcher>,
}

struct Watcher {
    prefix: String,
    filter: WatchFilter,
    queue: mpsc::Sender<Arc<Change>>,
}

impl Shard {
    pub(super) fn new(prefix: String) -> Self {
        Self {
            prefix,
            objects: BTreeMap::new(),
            history: VecDeque::new(),
            history_bytes: 0,
            oldest: 0,
            watchers: Vec::new(),
        }
    }

    pub(super) fn insert(&mut self, entry: Arc<Entry>) {
        self.objects.insert(entry.key.clone(), entry);
    }

    /// History starts here.
    pub(super) fn loaded(&mut self, revision: Revision) {
        self.oldest = revision;
    }

    pub(super) fn get(&self, key: &str) -> Option<Arc<Entry>> {
        self.objects.get(key).cloned()
    }

    pub(super) fn counts(&self) -> (String, usize, usize, usize) {
        (self.prefix.clone(), self.objects.len(), self.history.len(), self.watchers.len())
    }

    pub(super) fn put(&mut self, entry: Entry, now: Instant) {
        let previous = self.objects.insert(entry.key.clone(), Arc::new(entry.clone()));
        let kind = if previous.is_some() { ChangeKind::Updated } else { ChangeKind::Created };
        self.record(Change { kind, entry, previous }, now);
    }

    pub(super) fn delete(&mut self, key: &str, revision: Revision, now: Instant) {
        let Some(previous) = self.objects.remove(key) else {
            return;
        };
        let entry = previous.at_revision(revision);
        self.record(Change { kind: ChangeKind::Deleted, entry, previous: Some(previous) }, now);
    }

    fn record(&mut self, change: Change, now: Instant) {
        let change = Arc::new(change);
        self.watchers.retain(|watcher| {
            if !change.entry.key.starts_with(&watcher.prefix) || !(watcher.filter)(&change) {
                return !watcher.queue.is_closed();
            }
            match watcher.queue.try_send(change.clone()) {
                Ok(()) => true,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    tracing::warn!(prefix = %watcher.prefix, "a watcher does not keep up and is cut off");
                    false
                }
                Err(mpsc::error::TrySendError::Closed(_)) => false,
            }
        });
        self.history_bytes += cost(&change);
        self.history.push_back((now, change));
        self.trim(now);
    }

    pub(super) fn trim(&mut self, now: Instant) {
        while let Some((recorded, change)) = self.history.front() {
            let old = now.saturating_duration_since(*recorded) > YOUNG;
            let (limit, limit_bytes) =
                if old { (OLD_LIMIT, OLD_LIMIT_BYTES) } else { (YOUNG_LIMIT, YOUNG_LIMIT_BYTES) };
            if self.history.len() <= limit && self.history_bytes <= limit_bytes {
                break;
            }
            self.history_bytes -= cost(change);
            self.oldest = change.revision();
            self.history.pop_front();
        }
        self.watchers.retain(|watcher| !watcher.queue.is_closed());
    }

    pub(super) fn watch(
        &mut self,
        prefix: &str,
        since: Revision,
        filter: WatchFilter,
        queue: mpsc::Sender<Arc<Change>>,
    ) -> Result<Vec<Arc<Change>>, Expired> {
        self.check(since)?;
        let first = self.history.partition_point(|(_, change)| change.revision() <= since);
        let replay = self
            .history
            .range(first..)
            .map(|(_, change)| change)
            .filter(|change| change.entry.key.starts_with(prefix) && filter(change))
            .cloned()
            .collect();
        self.watchers.push(Watcher { prefix: prefix.to_owned(), filter, queue });
        Ok(replay)
    }

    fn check(&self, requested: Revision) -> Result<(), Expired> {
        if requested < self.oldest { Err(Expired { requested, oldest: self.oldest }) } else { Ok(()) }
    }

    pub(super) fn list(&self, request: &PageRequest<'_>, now: Revision) -> Result<Page, Expired> {
        let start = if request.start.is_empty() { request.prefix } else { request.start };
        let (revision, undone) = match request.at {
            At::Revision(revision) if revision < now => {
                self.check(revision)?;
                (revision, self.undo(revision, start, request.prefix))
            }
            At::Revision(_) | At::Now => (now, BTreeMap::new()),
        };
        let mut page = Page { revision, entries: Vec::new(), next: None, remaining: 0 };
        let mut take = |entry: &Arc<Entry>| {
            if !(request.matches)(entry) {
                return;
            }
            if request.limit == 0 || page.entries.len() < request.limit {
                page.entries.push(entry.clone());
            } else {
                page.next.get_or_insert_with(|| entry.key.clone());
                page.remaining += 1;
            }
        };
        let range = (Bound::Included(start), Bound::Unbounded);
        let mut undone = undone.into_iter().peekable();
        let current =
            self.objects.range::<str, _>(range).take_while(|(key, _)| key.starts_with(request.prefix));
        for (key, entry) in current {
            while let Some((_, before)) = undone.next_if(|(other, _)| **other < **key) {
                before.iter().for_each(&mut take);
            }
            match undone.next_if(|(other, _)| **other == **key) {
                Some((_, before)) => before.iter().for_each(&mut take),
                None => take(entry),
            }
        }
        for (_, before) in undone {
            before.iter().for_each(&mut take);
        }
        Ok(page)
    }

    /// For each key that changed after `revision`: what it was then.
    fn undo(&self, revision: Revision, start: &str, prefix: &str) -> BTreeMap<Arc<str>, Option<Arc<Entry>>> {
        let mut undone = BTreeMap::new();
        for (_, change) in self.history.iter().rev().take_while(|(_, change)| change.revision() > revision) {
            let key = &change.entry.key;
            if key.starts_with(prefix) && &**key >= start {
                undone.insert(key.clone(), change.previous.clone());
            }
        }
        undone
    }
}

fn cost(change: &Change) -> usize {
    change.entry.bytes.len() + CHANGE_OVERHEAD_BYTES
}
