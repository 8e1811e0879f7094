//! The watch cache: every object under a set of prefixes, the changes that led here, and who waits for more.
//!
//! One lock for all prefixes: a list and its revision then belong together whatever else is committed meanwhile. It is held
//! for as long as a batch is applied or the pointers of a list are copied, never across IO.

mod entry;
mod shard;

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use tokio::sync::{mpsc, watch};

use crate::{Event, Meta, Record, Revision, Sink};

pub use entry::{Change, ChangeKind, Entry};
use shard::Shard;

/// Changes that may wait for one watcher; with more it is cut off.
const WATCH_QUEUE_LIMIT: usize = 2048;

/// Extracts from encoded bytes what objects of a prefix are selected by.
type Describe = dyn Fn(&str, &[u8]) -> Meta + Send + Sync;

/// Which changes a watcher wants at all, decided before they are queued for it.
pub type WatchFilter = Arc<dyn Fn(&Change) -> bool + Send + Sync>;

/// Objects in memory. Made once, fed by [`Cache::sink`].
pub struct Cache {
    shards: RwLock<Vec<Shard>>,
    revision: watch::Sender<Revision>,
    describe: Box<Describe>,
}

/// The history does not reach back that far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("revision {requested} was compacted, the oldest is {oldest}")]
pub struct Expired {
    /// What was asked for.
    pub requested: Revision,
    /// The oldest revision that can still be asked for.
    pub oldest: Revision,
}

/// Which state a list shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// The newest.
    Now,
    /// As it was right after this revision.
    Revision(Revision),
}

/// What to list.
pub struct PageRequest<'a> {
    /// Which state.
    pub at: At,
    /// Only keys that start with this; must start with a prefix of the cache.
    pub prefix: &'a str,
    /// The first key; empty for the start.
    pub start: &'a str,
    /// At most so many objects; 0 for all.
    pub limit: usize,
    /// Which objects.
    pub matches: &'a dyn Fn(&Entry) -> bool,
}

/// A consistent list, or a part of one.
#[derive(Debug)]
pub struct Page {
    /// The revision that the list shows.
    pub revision: Revision,
    /// The objects in the order of their keys.
    pub entries: Vec<Arc<Entry>>,
    /// The first key of the next page when there is one.
    pub next: Option<Arc<str>>,
    /// How many matching objects are left after this page.
    pub remaining: usize,
}

/// A running watch.
#[derive(Debug)]
pub struct Watch {
    /// Changes from the history that the watcher has not seen.
    pub replay: Vec<Arc<Change>>,
    /// Changes from now on; the end means that the watcher was too slow.
    pub changes: mpsc::Receiver<Arc<Change>>,
    /// The revision at which `changes` starts.
    pub revision: Revision,
}

impl Cache {
    /// A cache for the given prefixes, for example `/registry/pods/`. No prefix may start with another one.
    pub fn new(
        prefixes: impl IntoIterator<Item = String>,
        describe: impl Fn(&str, &[u8]) -> Meta + Send + Sync + 'static,
    ) -> Arc<Self> {
        let mut shards: Vec<Shard> = prefixes.into_iter().map(Shard::new).collect();
        shards.sort_by(|one, other| one.prefix.cmp(&other.prefix));
        shards.dedup_by(|one, other| one.prefix == other.prefix);
        let (revision, _) = watch::channel(0);
        Arc::new(Self { shards: RwLock::new(shards), revision, describe: Box::new(describe) })
    }

    /// What a store feeds.
    pub fn sink(self: &Arc<Self>) -> Box<dyn Sink> {
        Box::new(Feed { cache: self.clone(), loading: Vec::new() })
    }

    /// The newest revision whose change is visible here.
    pub fn revision(&self) -> Revision {
        *self.revision.borrow()
    }

    /// Waits until a revision is visible. Cancel safe.
    pub async fn wait_for(&self, revision: Revision) {
        let mut seen = self.revision.subscribe();
        // An error means that the cache is gone, and then nobody waits.
        let _ = seen.wait_for(|newest| *newest >= revision).await;
    }

    /// One object.
    pub fn get(&self, key: &str) -> Option<Arc<Entry>> {
        let shards = self.read();
        shard(&shards, key)?.get(key)
    }

    /// Lists objects.
    ///
    /// # Errors
    /// [`Expired`] when the asked revision is no longer in the history.
    pub fn list(&self, request: &PageRequest<'_>) -> Result<Page, Expired> {
        let shards = self.read();
        let revision = self.revision();
        match shard(&shards, request.prefix) {
            Some(shard) => shard.list(request, revision),
            None => Ok(Page { revision, entries: Vec::new(), next: None, remaining: 0 }),
        }
    }

    /// Watches keys that start with `prefix`, from the change after `since`, or from now on.
    ///
    /// # Errors
    /// [`Expired`] when changes after `since` are no longer in the history.
    pub fn watch(
        &self,
        prefix: &str,
        since: Option<Revision>,
        filter: WatchFilter,
    ) -> Result<Watch, Expired> {
        let (sender, changes) = mpsc::channel(WATCH_QUEUE_LIMIT);
        let mut shards = self.write();
        let revision = self.revision();
        let replay = match shards.iter_mut().find(|shard| prefix.starts_with(&shard.prefix)) {
            Some(shard) => shard.watch(prefix, since.unwrap_or(revision), filter, sender)?,
            None => Vec::new(),
        };
        Ok(Watch { replay, changes, revision })
    }

    /// Lists and watches in one step: the changes start exactly after the list.
    ///
    /// # Errors
    /// [`Expired`], only when the request asks for a revision.
    pub fn list_and_watch(
        &self,
        request: &PageRequest<'_>,
        filter: WatchFilter,
    ) -> Result<(Page, Watch), Expired> {
        let (sender, changes) = mpsc::channel(WATCH_QUEUE_LIMIT);
        let mut shards = self.write();
        let revision = self.revision();
        let (page, replay) = match shards.iter_mut().find(|shard| request.prefix.starts_with(&shard.prefix)) {
            Some(shard) => {
                let page = shard.list(request, revision)?;
                let replay = shard.watch(request.prefix, page.revision, filter, sender)?;
                (page, replay)
            }
            None => (Page { revision, entries: Vec::new(), next: None, remaining: 0 }, Vec::new()),
        };
        Ok((page, Watch { replay, changes, revision }))
    }

    /// Drops history that is older than it has to be. Call it now and then; writes do it for the prefix they touch.
    pub fn trim(&self) {
        let now = Instant::now();
        for shard in self.write().iter_mut() {
            shard.trim(now);
        }
    }

    /// Objects, history length and watchers per prefix, for the state dump.
    pub fn counts(&self) -> Vec<(String, usize, usize, usize)> {
        self.read().iter().map(Shard::counts).collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, Vec<Shard>> {
        self.shards.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Vec<Shard>> {
        self.shards.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The prefix of the cache that a key belongs to.
    fn describe(&self, key: &str, bytes: &[u8]) -> Meta {
        (self.describe)(key, bytes)
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Cache").field("revision", &self.revision()).finish_non_exhaustive()
    }
}

fn shard<'a>(shards: &'a [Shard], key: &str) -> Option<&'a Shard> {
    shards.iter().find(|shard| key.starts_with(&shard.prefix))
}

struct Feed {
    cache: Arc<Cache>,
    loading: Vec<Arc<Entry>>,
}

impl Sink for Feed {
    fn load(&mut self, record: Record) {
        self.loading.push(Arc::new(Entry::new(&record, |key, bytes| self.cache.describe(key, bytes))));
    }

    fn loaded(&mut self, revision: Revision) {
        let mut shards = self.cache.write();
        for entry in std::mem::take(&mut self.loading) {
            if let Some(shard) = shards.iter_mut().find(|shard| entry.key.starts_with(&shard.prefix)) {
                shard.insert(entry);
            }
        }
        for shard in shards.iter_mut() {
            shard.loaded(revision);
        }
        self.cache.revision.send_replace(revision);
    }

    fn apply(&mut self, events: Vec<Event>) {
        let now = Instant::now();
        let Some(revision) = events.last().map(Event::revision) else {
            return;
        };
        // Encoding and parsing happen before the lock.
        let puts: Vec<(Event, Option<Entry>)> = events
            .into_iter()
            .map(|event| {
                let entry = match &event {
                    Event::Put(record) => {
                        Some(Entry::new(record, |key, bytes| self.cache.describe(key, bytes)))
                    }
                    Event::Delete { .. } => None,
                };
                (event, entry)
            })
            .collect();
        let mut shards = self.cache.write();
        for (event, entry) in puts {
            let key = match &event {
                Event::Put(record) => record.key.clone(),
                Event::Delete { key, .. } => key.clone(),
            };
            let Some(shard) = shards.iter_mut().find(|shard| key.starts_with(&shard.prefix)) else {
                continue;
            };
            match entry {
                Some(entry) => shard.put(entry, now),
                None => shard.delete(&key, event.revision(), now),
            }
        }
        // Under the lock: whoever reads the revision under it sees exactly the changes up to it.
        self.cache.revision.send_replace(revision);
    }
}

#[cfg(test)]
mod tests;
