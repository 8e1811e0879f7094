use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource, ResourceExt as _};
use orlop_daemon::backoff::Backoff;
use orlop_daemon::{Drain, Frame};
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, watch};

/// An object's identity within its kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Empty for cluster-scoped kinds.
    pub namespace: String,
    /// Object name.
    pub name: String,
}

impl std::fmt::Display for Key {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            formatter.write_str(&self.name)
        } else {
            write!(formatter, "{}/{}", self.namespace, self.name)
        }
    }
}

/// The current projection of a watched kind; cheap to clone.
#[derive(Debug)]
pub struct Informer<V> {
    shared: Arc<Shared<V>>,
}

impl<V> Clone for Informer<V> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

#[derive(Debug)]
struct Shared<V> {
    objects: RwLock<BTreeMap<Key, Arc<V>>>,
    synced: watch::Sender<bool>,
    subscribers: Mutex<Vec<Weak<Dirty>>>,
}

#[derive(Debug, Default)]
struct Dirty {
    keys: Mutex<BTreeSet<Key>>,
    notify: Notify,
}

/// Says which keys changed since it was last asked; changes coalesce, so it is bounded by the number of objects.
#[derive(Debug)]
pub struct Subscription {
    dirty: Arc<Dirty>,
}

impl Subscription {
    /// The keys that changed (made, changed or gone) since the last call; waits until there is one. Cancel safe.
    pub async fn changed(&self) -> BTreeSet<Key> {
        loop {
            let notified = self.dirty.notify.notified();
            let keys = std::mem::take(&mut *self.dirty.keys.lock().unwrap_or_else(PoisonError::into_inner));
            if !keys.is_empty() {
                return keys;
            }
            notified.await;
        }
    }
}

impl<V> Informer<V> {
    /// An informer without a watch behind it, for tests: see [`Informer::set`].
    pub fn detached(synced: bool) -> Self {
        let (synced, _) = watch::channel(synced);
        Self {
            shared: Arc::new(Shared { objects: RwLock::default(), synced, subscribers: Mutex::default() }),
        }
    }

    /// Whether the first list has been taken in whole.
    pub fn is_synced(&self) -> bool {
        *self.shared.synced.borrow()
    }

    /// Resolves once [`Informer::is_synced`]. Cancel safe.
    pub async fn synced(&self) {
        let mut synced = self.shared.synced.subscribe();
        let _ = synced.wait_for(|synced| *synced).await;
    }

    /// One object.
    pub fn get(&self, key: &Key) -> Option<Arc<V>> {
        self.shared.objects.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// Reads the whole map under its lock: keep `read` short.
    pub fn with<R>(&self, read: impl FnOnce(&BTreeMap<Key, Arc<V>>) -> R) -> R {
        read(&self.shared.objects.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// All objects.
    pub fn all(&self) -> Vec<(Key, Arc<V>)> {
        self.with(|objects| objects.iter().map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    /// A new subscription; every key that exists now counts as changed.
    pub fn subscribe(&self) -> Subscription {
        let dirty = Arc::new(Dirty::default());
        let mut subscribers = self.shared.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.retain(|subscriber| subscriber.strong_count() > 0);
        subscribers.push(Arc::downgrade(&dirty));
        let existing = self.with(|objects| objects.keys().cloned().collect::<BTreeSet<_>>());
        if !existing.is_empty() {
            *dirty.keys.lock().unwrap_or_else(PoisonError::into_inner) = existing;
            dirty.notify.notify_one();
        }
        Subscription { dirty }
    }

    /// Puts (or with `None` removes) one object and tells the subscribers.
    pub fn set(&self, key: Key, value: Option<V>) {
        {
            let mut objects = self.shared.objects.write().unwrap_or_else(PoisonError::into_inner);
            match value {
                Some(value) => drop(objects.insert(key.clone(), Arc::new(value))),
                None => {
                    if objects.remove(&key).is_none() {
                        return;
                    }
                }
            }
        }
        self.mark([key]);
    }

    /// Marks the informer synced.
    pub fn set_synced(&self) {
        self.shared.synced.send_replace(true);
    }

    fn mark(&self, keys: impl IntoIterator<Item = Key> + Clone) {
        let mut subscribers = self.shared.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.retain(|subscriber| {
            let Some(dirty) = subscriber.upgrade() else {
                return false;
            };
            dirty.keys.lock().unwrap_or_else(PoisonError::into_inner).extend(keys.clone());
            dirty.notify.notify_one();
            true
        });
    }

    /// Replaces everything after a (re-)list; only real differences of the key set and all listed keys count as changed.
    fn replace(&self, fresh: BTreeMap<Key, Arc<V>>) {
        let mut changed: BTreeSet<Key> = fresh.keys().cloned().collect();
        {
            let mut objects = self.shared.objects.write().unwrap_or_else(PoisonError::into_inner);
            changed.extend(objects.keys().cloned());
            *objects = fresh;
        }
        self.mark(changed);
    }
}

/// Starts a watch as a task of the frame and keeps `project` of each object; `None` leaves the object out.
///
/// `name` names the task and the readiness guard `NAME-synced`. The watch restarts by itself with backoff (at most 5 s), for ever.
pub fn informer<K, V>(
    frame: &Frame,
    name: &str,
    api: Api<K>,
    config: watcher::Config,
    project: impl Fn(K) -> Option<V> + Send + Sync + 'static,
) -> Informer<V>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    V: Send + Sync + 'static,
{
    let informer = Informer::detached(false);
    let guard = frame.ready().guard(format!("{name}-synced"));
    let task = informer.clone();
    let drain = frame.drain();
    let label = name.to_owned();
    frame.spawn(format!("watch-{name}"), async move {
        tokio::select! {
            () = follow(&label, &task, api, config, project, &guard, &drain) => {}
            () = drain.wait() => {}
        }
        Ok(())
    });
    informer
}

async fn follow<K, V>(
    label: &str,
    informer: &Informer<V>,
    api: Api<K>,
    config: watcher::Config,
    project: impl Fn(K) -> Option<V>,
    guard: &orlop_daemon::ReadyGuard,
    drain: &Drain,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    let mut events = watcher::watcher(api, config).boxed();
    let mut listing: Option<BTreeMap<Key, Arc<V>>> = None;
    loop {
        match events.try_next().await {
            Ok(Some(event)) => {
                backoff.reset();
                take_in(informer, event, &project, &mut listing, guard);
            }
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(watch = label, error = %chain(&error), "watch failed, trying again");
                if !drain.sleep(backoff.pause()).await {
                    return;
                }
            }
        }
    }
}

fn take_in<K: Resource, V>(
    informer: &Informer<V>,
    event: Event<K>,
    project: impl Fn(K) -> Option<V>,
    listing: &mut Option<BTreeMap<Key, Arc<V>>>,
    guard: &orlop_daemon::ReadyGuard,
) {
    match event {
        Event::Init => *listing = Some(BTreeMap::new()),
        Event::InitApply(object) => {
            let key = key_of(&object);
            if let (Some(listing), Some(value)) = (listing.as_mut(), project(object)) {
                listing.insert(key, Arc::new(value));
            }
        }
        Event::InitDone => {
            if let Some(fresh) = listing.take() {
                informer.replace(fresh);
            }
            informer.set_synced();
            guard.set();
        }
        Event::Apply(object) => {
            let key = key_of(&object);
            informer.set(key, project(object));
        }
        Event::Delete(object) => informer.set(key_of(&object), None),
    }
}

fn key_of<K: Resource>(object: &K) -> Key {
    Key { namespace: object.namespace().unwrap_or_default(), name: object.name_any() }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key { namespace: "default".into(), name: name.into() }
    }

    #[tokio::test]
    async fn changes_coalesce_and_are_never_lost() {
        let informer = Informer::<u32>::detached(true);
        informer.set(key("a"), Some(1));
        let subscription = informer.subscribe();
        informer.set(key("b"), Some(2));
        informer.set(key("b"), Some(3));
        informer.set(key("gone"), None);
        let changed = subscription.changed().await;
        assert_eq!(changed.into_iter().map(|key| key.name).collect::<Vec<_>>(), ["a", "b"]);
        informer.set(key("a"), None);
        assert_eq!(subscription.changed().await.len(), 1);
        assert!(informer.get(&key("a")).is_none());
        assert_eq!(*informer.get(&key("b")).unwrap(), 3);
    }

    #[tokio::test]
    async fn a_relist_marks_what_vanished() {
        let informer = Informer::<u32>::detached(true);
        informer.set(key("old"), Some(1));
        let subscription = informer.subscribe();
        subscription.changed().await;
        informer.replace(BTreeMap::from([(key("new"), Arc::new(2))]));
        let names: Vec<_> = subscription.changed().await.into_iter().map(|key| key.name).collect();
        assert_eq!(names, ["new", "old"]);
    }
}
