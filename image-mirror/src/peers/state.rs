//! What is known of each peer, and how far peers are with our changes.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use orlop_daemon::Frame;
use orlop_daemon::prometheus_client::encoding::EncodeLabelSet;
use orlop_daemon::prometheus_client::metrics::counter::Counter;
use orlop_daemon::prometheus_client::metrics::family::Family;
use orlop_daemon::prometheus_client::metrics::gauge::Gauge;
use tokio::sync::watch;

use super::protocol::{Node, POLL_SECONDS};

/// Mirrors whose polls are remembered.
const ASKER_LIMIT: usize = 64;
/// A peer polls again within this.
const PRESENT: Duration = Duration::from_secs(POLL_SECONDS + 5);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct PeerLabels {
    peer: String,
}

#[derive(Clone, Default)]
pub(crate) struct Metrics {
    connected: Family<PeerLabels, Gauge>,
    behind_changes: Family<PeerLabels, Gauge>,
    behind_seconds: Family<PeerLabels, Gauge>,
    pub(super) bytes: Counter,
    pub(super) peek_hits: Counter,
    pub(super) missing: Counter,
}

impl Metrics {
    pub(super) fn register(&self, frame: &Frame) {
        let mut metrics = frame.metrics();
        let gauges = [
            ("mirror_peer_connected", "Whether the peer answered its last poll", &self.connected),
            (
                "mirror_peer_behind_changes",
                "Changes of the peer that are not here yet, at most",
                &self.behind_changes,
            ),
            (
                "mirror_peer_behind_seconds",
                "Age of the peer's first change that is not here yet",
                &self.behind_seconds,
            ),
        ];
        for (name, help, gauge) in gauges {
            metrics.register(name, help, gauge.clone());
        }
        let counters = [
            ("mirror_peer_bytes", "Bytes of blobs that peers gave", &self.bytes),
            ("mirror_peer_blobs", "Blobs that peers gave, whole or in part", &self.peek_hits),
            (
                "mirror_replication_missing_blobs",
                "Rows of peers whose bytes were not to be had",
                &self.missing,
            ),
        ];
        for (name, help, counter) in counters {
            metrics.register(name, help, counter.clone());
        }
    }
}

/// A peer and what the last poll said of it.
pub(crate) struct Peer {
    pub(super) url: String,
    pub(super) metrics: Metrics,
    known: Mutex<Known>,
}

#[derive(Clone, Debug, Default)]
struct Known {
    node: Option<Node>,
    /// None before the first answer.
    connected: Option<bool>,
    behind: u64,
    seen: Option<Instant>,
    error: Option<String>,
}

impl Peer {
    pub(super) fn new(url: &str, metrics: &Metrics) -> Self {
        let peer = Self { url: url.to_owned(), metrics: metrics.clone(), known: Mutex::default() };
        peer.gauge(&metrics.connected, 0);
        peer
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gauge(&self, family: &Family<PeerLabels, Gauge>, value: u64) {
        let labels = PeerLabels { peer: self.url.clone() };
        family.get_or_create(&labels).set(i64::try_from(value).unwrap_or(i64::MAX));
    }

    /// Whether it pays to ask it for a blob.
    pub(super) fn may_answer(&self) -> bool {
        self.known().connected != Some(false)
    }

    /// It answered; true when it did not before.
    pub(super) fn answered(&self, node: Node, behind: u64, lag: Duration) -> bool {
        let mut known = self.known();
        let before = known.connected.replace(true);
        let seen = Some(Instant::now());
        *known = Known { node: Some(node), connected: Some(true), behind, seen, error: None };
        drop(known);
        self.gauge(&self.metrics.connected, 1);
        self.gauge(&self.metrics.behind_changes, behind);
        self.gauge(&self.metrics.behind_seconds, if behind == 0 { 0 } else { lag.as_secs() });
        before != Some(true)
    }

    /// It did not answer, or what it said could not be followed; true when that is new.
    pub(super) fn failed(&self, error: &str, reached: bool) -> bool {
        let mut known = self.known();
        let new = known.error.as_deref() != Some(error);
        known.connected = Some(reached);
        known.error = Some(error.to_owned());
        let away = known.seen.map_or(0, |seen| seen.elapsed().as_secs());
        drop(known);
        self.gauge(&self.metrics.connected, u64::from(reached));
        self.gauge(&self.metrics.behind_seconds, away);
        new
    }

    pub(super) fn dump(&self) -> serde_json::Value {
        let known = self.known().clone();
        serde_json::json!({
            "url": self.url,
            "node": known.node,
            "state": match known.connected {
                None => "unknown",
                Some(true) => "connected",
                Some(false) => "down",
            },
            "behindChanges": known.behind,
            "lastSeenSeconds": known.seen.map(|seen| seen.elapsed().as_secs()),
            "error": known.error,
        })
    }
}

/// Up to which change of ours each peer has everything on its disk.
pub(super) struct Acknowledgements {
    askers: watch::Sender<BTreeMap<Node, (u64, Instant)>>,
}

impl Default for Acknowledgements {
    fn default() -> Self {
        Self { askers: watch::channel(BTreeMap::new()).0 }
    }
}

impl Acknowledgements {
    /// A peer polls: it has everything up to `number`.
    pub(super) fn note(&self, asker: Node, number: u64) {
        self.askers.send_modify(|askers| {
            if askers.len() >= ASKER_LIMIT && !askers.contains_key(&asker) {
                askers.retain(|_, (_, seen)| seen.elapsed() < PRESENT);
                if askers.len() >= ASKER_LIMIT {
                    return;
                }
            }
            askers.insert(asker, (number, Instant::now()));
        });
    }

    pub(super) fn is_anybody_there(&self) -> bool {
        self.askers.borrow().values().any(|(_, seen)| seen.elapsed() < PRESENT)
    }

    /// Whether a peer has a change.
    pub(super) fn has(&self, number: u64) -> bool {
        self.askers.borrow().values().any(|(known, _)| *known >= number)
    }

    /// Waits until a peer has a change; whether one has.
    pub(super) async fn wait(&self, number: u64, patience: Duration) -> bool {
        let mut askers = self.askers.subscribe();
        let has =
            |askers: &BTreeMap<Node, (u64, Instant)>| askers.values().any(|(known, _)| *known >= number);
        if patience.is_zero() {
            return self.has(number);
        }
        tokio::time::timeout(patience, askers.wait_for(has)).await.is_ok_and(|found| found.is_ok())
    }
}
