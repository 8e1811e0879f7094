//! Numbers of the daemon.

use std::time::Instant;

use orlop_daemon::Frame;
use orlop_daemon::prometheus_client::encoding::EncodeLabelSet;
use orlop_daemon::prometheus_client::metrics::counter::Counter;
use orlop_daemon::prometheus_client::metrics::family::Family;
use orlop_daemon::prometheus_client::metrics::gauge::Gauge;
use orlop_daemon::prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use crate::error::CriError;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Verb {
    verb: &'static str,
}

/// Registered once.
#[derive(Clone)]
pub(crate) struct Metrics {
    durations: Family<Verb, Histogram, fn() -> Histogram>,
    failures: Family<Verb, Counter>,
    shims_lost: Counter,
    shims: Gauge,
    running: Gauge,
    image_bytes: Gauge,
}

impl Metrics {
    /// Makes and registers them.
    pub(crate) fn register(frame: &Frame) -> Self {
        let metrics = Self {
            durations: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 16))),
            failures: Family::default(),
            shims_lost: Counter::default(),
            shims: Gauge::default(),
            running: Gauge::default(),
            image_bytes: Gauge::default(),
        };
        let mut registry = frame.metrics();
        registry.register("runtime_verb_seconds", "Time of finished CRI verbs", metrics.durations.clone());
        registry.register("runtime_verb_failures", "CRI verbs that failed", metrics.failures.clone());
        registry.register(
            "runtime_shims_lost",
            "Shims that died with their pod still wanted",
            metrics.shims_lost.clone(),
        );
        registry.register("runtime_shims", "Shims of ready pods", metrics.shims.clone());
        registry.register("runtime_running_containers", "Containers that run", metrics.running.clone());
        registry.register(
            "runtime_image_bytes",
            "Disk use of blobs and unpacked layers when a kubelet last asked",
            metrics.image_bytes.clone(),
        );
        metrics
    }

    /// A shim died.
    pub(crate) fn shim_lost(&self) {
        self.shims_lost.inc();
    }

    /// Runs a verb that changes something: one log line with its duration when it is finished.
    pub(crate) async fn timed<T>(
        &self,
        verb: &'static str,
        object: &str,
        work: impl Future<Output = Result<T, CriError>>,
    ) -> Result<T, CriError> {
        let (result, millis) = self.measured(verb, work).await;
        match &result {
            Ok(_) => tracing::info!(verb, object, millis, "done"),
            Err(error) => tracing::warn!(verb, object, millis, %error, "failed"),
        }
        result
    }

    /// As [`Metrics::timed`], for what kubelets ask for every few seconds: the line is for those who debug.
    pub(crate) async fn counted<T>(
        &self,
        verb: &'static str,
        object: &str,
        work: impl Future<Output = Result<T, CriError>>,
    ) -> Result<T, CriError> {
        let (result, millis) = self.measured(verb, work).await;
        match &result {
            Ok(_) => tracing::debug!(verb, object, millis, "done"),
            Err(error) => tracing::debug!(verb, object, millis, %error, "failed"),
        }
        result
    }

    async fn measured<T>(
        &self,
        verb: &'static str,
        work: impl Future<Output = Result<T, CriError>>,
    ) -> (Result<T, CriError>, u64) {
        let started = Instant::now();
        let result = work.await;
        let elapsed = started.elapsed();
        self.durations.get_or_create(&Verb { verb }).observe(elapsed.as_secs_f64());
        if result.is_err() {
            self.failures.get_or_create(&Verb { verb }).inc();
        }
        #[expect(clippy::cast_possible_truncation, reason = "584 million years of milliseconds fit")]
        let millis = elapsed.as_millis() as u64;
        (result, millis)
    }

    /// What holds now; counted when something changes.
    pub(crate) fn hold(&self, shims: usize, running: usize) {
        self.shims.set(i64::try_from(shims).unwrap_or(i64::MAX));
        self.running.set(i64::try_from(running).unwrap_or(i64::MAX));
    }

    /// Disk use of images and layers, as the kubelet has just asked for it.
    pub(crate) fn used_disk(&self, bytes: u64) {
        self.image_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}
