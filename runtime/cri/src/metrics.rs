//! Numbers of the daemon.

use std::time::Instant;

use orlop_daemon::Frame;
use orlop_daemon::prometheus_client::encoding::EncodeLabelSet;
use orlop_daemon::prometheus_client::metrics::counter::Counter;
use orlop_daemon::prometheus_client::metrics::family::Family;
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
}

impl Metrics {
    /// Makes and registers them.
    pub(crate) fn register(frame: &Frame) -> Self {
        let metrics = Self {
            durations: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 16))),
            failures: Family::default(),
            shims_lost: Counter::default(),
        };
        let mut registry = frame.metrics();
        registry.register("runtime_verb_seconds", "Time of finished CRI verbs", metrics.durations.clone());
        registry.register("runtime_verb_failures", "CRI verbs that failed", metrics.failures.clone());
        registry.register(
            "runtime_shims_lost",
            "Shims that died with their pod still wanted",
            metrics.shims_lost.clone(),
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
        let started = Instant::now();
        let result = work.await;
        let elapsed = started.elapsed();
        self.durations.get_or_create(&Verb { verb }).observe(elapsed.as_secs_f64());
        #[expect(clippy::cast_possible_truncation, reason = "584 million years of milliseconds fit")]
        let millis = elapsed.as_millis() as u64;
        match &result {
            Ok(_) => tracing::info!(verb, object, millis, "done"),
            Err(error) => {
                self.failures.get_or_create(&Verb { verb }).inc();
                tracing::warn!(verb, object, millis, %error, "failed");
            }
        }
        result
    }
}
