//! What pulls have done so far, for logs and the state dump.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

/// Between two log lines of one pull.
const LOG_PERIOD: Duration = Duration::from_secs(10);

/// A pull that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PullProgress {
    /// The image, as it was asked for.
    pub image: String,
    /// Since it began.
    pub seconds: u64,
    /// Since the last byte arrived or layer was finished.
    pub idle_seconds: u64,
    /// Layers that are in their place or wait for those below.
    pub layers_done: u64,
    /// Layers of the image; zero while its manifest is fetched.
    pub layers: u64,
    /// Bytes of layers that arrived.
    pub bytes_done: u64,
    /// Bytes of layers that the registry has to send.
    pub bytes: u64,
}

/// The pulls of a store.
#[derive(Default)]
pub(super) struct Pulls {
    running: Mutex<BTreeMap<u64, Arc<Counters>>>,
    next: AtomicU64,
}

struct Counters {
    image: String,
    started: Instant,
    /// Milliseconds after `started`.
    last: AtomicU64,
    logged: AtomicU64,
    layers_done: AtomicU64,
    layers: AtomicU64,
    bytes_done: AtomicU64,
    bytes: AtomicU64,
}

/// One pull's entry; gone when dropped.
pub(super) struct Progress<'a> {
    pulls: &'a Pulls,
    number: u64,
    counters: Arc<Counters>,
}

impl Pulls {
    pub(super) fn begin(&self, image: String) -> Progress<'_> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let zero = || AtomicU64::new(0);
        let counters = Arc::new(Counters {
            image,
            started: Instant::now(),
            last: zero(),
            logged: zero(),
            layers_done: zero(),
            layers: zero(),
            bytes_done: zero(),
            bytes: zero(),
        });
        self.running.lock().unwrap_or_else(PoisonError::into_inner).insert(number, Arc::clone(&counters));
        Progress { pulls: self, number, counters }
    }

    pub(super) fn list(&self) -> Vec<PullProgress> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.values().map(|counters| counters.shown()).collect()
    }
}

impl Counters {
    fn milliseconds(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn shown(&self) -> PullProgress {
        let now = self.milliseconds();
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PullProgress {
            image: self.image.clone(),
            seconds: now / 1000,
            idle_seconds: now.saturating_sub(get(&self.last)) / 1000,
            layers_done: get(&self.layers_done),
            layers: get(&self.layers),
            bytes_done: get(&self.bytes_done),
            bytes: get(&self.bytes),
        }
    }
}

impl Progress<'_> {
    pub(super) fn set_layers(&self, layers: usize) {
        self.counters.layers.store(layers as u64, Ordering::Relaxed);
    }

    pub(super) fn expect(&self, bytes: u64) {
        self.counters.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn add(&self, bytes: usize) {
        self.counters.bytes_done.fetch_add(bytes as u64, Ordering::Relaxed);
        self.moved();
    }

    pub(super) fn layer_done(&self) {
        self.counters.layers_done.fetch_add(1, Ordering::Relaxed);
        self.moved();
    }

    fn moved(&self) {
        let counters = &self.counters;
        let now = counters.milliseconds();
        counters.last.store(now, Ordering::Relaxed);
        let logged = counters.logged.load(Ordering::Relaxed);
        let period = u64::try_from(LOG_PERIOD.as_millis()).unwrap_or(u64::MAX);
        if now - logged.min(now) >= period
            && counters.logged.compare_exchange(logged, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            let PullProgress { image, seconds, layers_done, layers, bytes_done, bytes, .. } =
                counters.shown();
            tracing::info!(image, seconds, layers_done, layers, bytes_done, bytes, "image is being pulled");
        }
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        self.pulls.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}
