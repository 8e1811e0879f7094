//! Dirty keys and the workers that take them.
//!
//! ```text
//!   add ---> waiting ---next---> running ---finish---> gone
//!              ^  ^                 |  \--added meanwhile--> waiting
//!              |  \--- due -- delayed <-- failed (backoff) or "look again at"
//! ```
//!
//! Bounded by the number of distinct keys; a key is in at most one worker's hands.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use orlop_daemon::Frame;
use orlop_daemon::prometheus_client::encoding::EncodeLabelSet;
use orlop_daemon::prometheus_client::metrics::counter::Counter;
use orlop_daemon::prometheus_client::metrics::family::Family;
use orlop_daemon::prometheus_client::metrics::gauge::Gauge;
use orlop_kube::Key;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::api::ApplyError;

const FIRST_RETRY: Duration = Duration::from_millis(5);
const LAST_RETRY: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct QueueLabels {
    name: &'static str,
}

/// Metrics of all queues, with the names that client-go gives them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    depth: Family<QueueLabels, Gauge>,
    adds: Family<QueueLabels, Counter>,
    retries: Family<QueueLabels, Counter>,
}

impl Metrics {
    pub(crate) fn register(frame: &Frame) -> Self {
        let metrics = Self::default();
        let mut registry = frame.metrics();
        registry.register("workqueue_depth", "Current depth of workqueue", metrics.depth.clone());
        registry.register(
            "workqueue_adds",
            "Total number of adds handled by workqueue",
            metrics.adds.clone(),
        );
        registry.register(
            "workqueue_retries",
            "Total number of retries handled by workqueue",
            metrics.retries.clone(),
        );
        metrics
    }
}

/// What a worker says about a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing more until it changes.
    Done,
    /// Look again after this time even if nothing changes.
    After(Duration),
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct WorkQueue {
    state: Mutex<State>,
    wake: Notify,
    depth: Gauge,
    adds: Counter,
    retries: Counter,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Key>,
    queued: HashSet<Key>,
    running: HashSet<Key>,
    again: HashSet<Key>,
    delayed: BTreeSet<(Instant, Key)>,
    due: BTreeMap<Key, Instant>,
    failures: HashMap<Key, u32>,
}

impl State {
    fn push(&mut self, key: Key) {
        if self.running.contains(&key) {
            self.again.insert(key);
        } else if self.queued.insert(key.clone()) {
            self.waiting.push_back(key);
        }
    }

    fn delay(&mut self, key: Key, at: Instant) {
        // The earlier of two wishes stands.
        if let Some(earlier) = self.due.get(&key).copied() {
            if earlier <= at {
                return;
            }
            self.delayed.remove(&(earlier, key.clone()));
        }
        self.due.insert(key.clone(), at);
        self.delayed.insert((at, key));
    }

    fn release_due(&mut self, now: Instant) {
        while let Some((at, key)) = self.delayed.first().cloned() {
            if at > now {
                break;
            }
            self.delayed.pop_first();
            self.due.remove(&key);
            self.push(key);
        }
    }
}

impl WorkQueue {
    pub(crate) fn new(name: &'static str, metrics: &Metrics) -> Arc<Self> {
        let labels = QueueLabels { name };
        Arc::new(Self {
            state: Mutex::default(),
            wake: Notify::new(),
            depth: metrics.depth.get_or_create_owned(&labels),
            adds: metrics.adds.get_or_create_owned(&labels),
            retries: metrics.retries.get_or_create_owned(&labels),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks a key dirty.
    pub(crate) fn add(&self, key: Key) {
        let mut state = self.state();
        state.push(key);
        self.adds.inc();
        self.depth.set(i64::try_from(state.waiting.len()).unwrap_or(i64::MAX));
        drop(state);
        self.wake.notify_one();
    }

    /// The next dirty key; [`WorkQueue::finish`] must follow. Cancel safe.
    pub(crate) async fn next(&self) -> Key {
        loop {
            let notified = self.wake.notified();
            let timer = {
                let mut state = self.state();
                state.release_due(Instant::now());
                if let Some(key) = state.waiting.pop_front() {
                    state.queued.remove(&key);
                    state.running.insert(key.clone());
                    self.depth.set(i64::try_from(state.waiting.len()).unwrap_or(i64::MAX));
                    // Another worker may sleep although more is waiting.
                    if !state.waiting.is_empty() {
                        self.wake.notify_one();
                    }
                    return key;
                }
                state.delayed.first().map(|(at, _)| *at)
            };
            match timer {
                Some(at) => tokio::select! {
                    () = notified => {}
                    () = tokio::time::sleep_until(at) => {}
                },
                None => notified.await,
            }
        }
    }

    /// Gives a key back with the result of its work.
    pub(crate) fn finish(&self, key: Key, result: Result<Next, Retry>) {
        let mut state = self.state();
        state.running.remove(&key);
        match result {
            Ok(next) => {
                state.failures.remove(&key);
                if let Next::After(pause) = next {
                    state.delay(key.clone(), Instant::now() + pause);
                }
            }
            Err(Retry) => {
                let failures = state.failures.entry(key.clone()).or_default();
                *failures = failures.saturating_add(1);
                let pause = FIRST_RETRY.saturating_mul(1 << (*failures - 1).min(16)).min(LAST_RETRY);
                let pause = pause.mul_f64(0.75 + rand::random::<f64>() / 2.0);
                state.delay(key.clone(), Instant::now() + pause);
                self.retries.inc();
            }
        }
        if state.again.remove(&key) {
            state.push(key);
        }
        drop(state);
        self.wake.notify_one();
    }
}

/// The work on a key failed; it comes back with backoff.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Retry;

/// Starts the workers of a queue; `ready` is awaited before the first key is taken.
pub(crate) fn spawn_workers<R, W, F>(
    frame: &Frame,
    name: &'static str,
    queue: &Arc<WorkQueue>,
    workers: u32,
    ready: impl Fn() -> R,
    work: W,
) where
    R: Future<Output = ()> + Send + 'static,
    W: Fn(Key) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Next, ApplyError>> + Send + 'static,
{
    for number in 0..workers {
        let (queue, work, ready, drain) = (queue.clone(), work.clone(), ready(), frame.drain());
        frame.spawn(format!("{name}-{number}"), async move {
            tokio::select! {
                () = ready => {}
                () = drain.wait() => return Ok(()),
            }
            loop {
                let key = tokio::select! {
                    key = queue.next() => key,
                    () = drain.wait() => return Ok(()),
                };
                let result = work(key.clone()).await;
                let result = result.map_err(|error| {
                    report(name, &key, &error);
                    Retry
                });
                queue.finish(key, result);
            }
        });
    }
}

fn report(name: &'static str, key: &Key, error: &ApplyError) {
    // A conflict or a namespace that is going away is everyday life; the next plan sees it.
    if error.is_expected() {
        tracing::debug!(controller = name, %key, error = %error.chain(), "trying again");
    } else {
        tracing::warn!(controller = name, %key, error = %error.chain(), "failed, trying again");
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn key(name: &str) -> Key {
        Key { namespace: String::new(), name: name.into() }
    }

    #[test]
    fn a_key_added_while_running_runs_again_once() {
        let queue = WorkQueue::new("t", &Metrics::default());
        queue.add(key("a"));
        queue.add(key("a"));
        let taken = queue.next().now_or_never().unwrap();
        queue.add(key("a"));
        queue.add(key("a"));
        assert_eq!(queue.next().now_or_never(), None);
        queue.finish(taken, Ok(Next::Done));
        let taken = queue.next().now_or_never().unwrap();
        queue.finish(taken, Ok(Next::Done));
        assert_eq!(queue.next().now_or_never(), None);
    }

    #[test]
    fn failures_back_off_and_success_forgets_them() {
        let queue = WorkQueue::new("t", &Metrics::default());
        let pause = || queue.state().due[&key("a")].duration_since(Instant::now());
        queue.add(key("a"));
        for _ in 0..20 {
            let taken = queue.next().now_or_never().unwrap();
            queue.finish(taken, Err(Retry));
            let mut state = queue.state();
            let due = state.due[&key("a")];
            state.release_due(due);
        }
        let taken = queue.next().now_or_never().unwrap();
        queue.finish(taken, Err(Retry));
        assert!(pause() <= LAST_RETRY.mul_f64(1.25) && pause() > LAST_RETRY.mul_f64(0.7));
        queue.add(key("a"));
        let taken = queue.next().now_or_never().unwrap();
        queue.finish(taken, Ok(Next::After(Duration::from_secs(3))));
        queue.state().delay(key("a"), Instant::now() + Duration::from_secs(9));
        assert!(pause() <= Duration::from_secs(3));
        assert!(queue.state().failures.is_empty());
    }
}
