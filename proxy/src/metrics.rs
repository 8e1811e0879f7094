//! Metrics under kube-proxy's names.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use orlop_daemon::Frame;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

type Seconds = Gauge<f64, std::sync::atomic::AtomicU64>;

/// All metrics of the proxy; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    pub(crate) sync: Histogram,
    pub(crate) sync_full: Histogram,
    pub(crate) sync_partial: Histogram,
    pub(crate) failures: Counter,
    pub(crate) service_changes: Counter,
    pub(crate) endpoint_changes: Counter,
    pub(crate) conntrack_deleted: Counter,
    pub(crate) last_sync: Seconds,
    pub(crate) last_queued: Seconds,
}

impl Metrics {
    pub(crate) fn register(frame: &Frame) -> Self {
        let histogram = || Histogram::new(exponential_buckets(0.000_25, 2.0, 17));
        let metrics = Self {
            sync: histogram(),
            sync_full: histogram(),
            sync_partial: histogram(),
            failures: Counter::default(),
            service_changes: Counter::default(),
            endpoint_changes: Counter::default(),
            conntrack_deleted: Counter::default(),
            last_sync: Seconds::default(),
            last_queued: Seconds::default(),
        };
        let mut registry = frame.metrics();
        let prefix = "kubeproxy_sync_proxy_rules";
        registry.register(
            format!("{prefix}_duration_seconds"),
            "Time of a sync of the rules",
            metrics.sync.clone(),
        );
        registry.register(
            "kubeproxy_sync_full_proxy_rules_duration_seconds",
            "Time of a sync that builds the tables anew",
            metrics.sync_full.clone(),
        );
        registry.register(
            "kubeproxy_sync_partial_proxy_rules_duration_seconds",
            "Time of a sync of what changed",
            metrics.sync_partial.clone(),
        );
        registry.register(
            format!("{prefix}_nftables_sync_failures"),
            "Transactions that the kernel refused",
            metrics.failures.clone(),
        );
        registry.register(
            format!("{prefix}_service_changes"),
            "Changes of Services",
            metrics.service_changes.clone(),
        );
        registry.register(
            format!("{prefix}_endpoint_changes"),
            "Changes of EndpointSlices",
            metrics.endpoint_changes.clone(),
        );
        registry.register(
            "kubeproxy_conntrack_reconciler_deleted_entries",
            "Stale UDP connections deleted",
            metrics.conntrack_deleted.clone(),
        );
        registry.register(
            format!("{prefix}_last_timestamp_seconds"),
            "When the rules were last in sync",
            metrics.last_sync.clone(),
        );
        registry.register(
            format!("{prefix}_last_queued_timestamp_seconds"),
            "When a sync was last asked for",
            metrics.last_queued.clone(),
        );
        drop(registry);
        metrics
    }

    pub(crate) fn synced(&self, duration: Duration, full: bool) {
        let seconds = duration.as_secs_f64();
        self.sync.observe(seconds);
        if full {
            self.sync_full.observe(seconds)
        } else {
            self.sync_partial.observe(seconds)
        }
        self.last_sync.set(unix_seconds());
    }

    pub(crate) fn queued(&self) {
        self.last_queued.set(unix_seconds());
    }
}

fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |passed| passed.as_secs_f64())
}
