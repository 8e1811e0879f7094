//! What `/metrics` says, under upstream's names so that existing dashboards work.

use std::sync::atomic::AtomicI64;

use orlop_daemon::Frame;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

/// The kubelet's own metrics.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// Ready sandboxes.
    pub(crate) running_pods: Gauge<i64, AtomicI64>,
    pub(crate) running_containers: Gauge<i64, AtomicI64>,
    pub(crate) started_containers: Counter,
    pub(crate) failed_containers: Counter,
    pub(crate) started_sandboxes: Counter,
    pub(crate) failed_sandboxes: Counter,
}

impl Metrics {
    /// Makes and registers them. The registry adds `_total` to counters.
    pub(crate) fn register(frame: &Frame) -> Self {
        let metrics = Self::default();
        let mut registry = frame.metrics();
        registry.register("kubelet_running_pods", "Pods with a ready sandbox", metrics.running_pods.clone());
        registry.register(
            "kubelet_running_containers",
            "Running containers",
            metrics.running_containers.clone(),
        );
        registry.register(
            "kubelet_started_containers",
            "Containers started",
            metrics.started_containers.clone(),
        );
        let failed = metrics.failed_containers.clone();
        registry.register(
            "kubelet_started_containers_errors",
            "Containers that could not be started",
            failed,
        );
        registry.register(
            "kubelet_started_pod_sandbox",
            "Sandboxes started",
            metrics.started_sandboxes.clone(),
        );
        let failed = metrics.failed_sandboxes.clone();
        registry.register("kubelet_run_podsandbox_errors", "Sandboxes that could not be started", failed);
        drop(registry);
        metrics
    }
}
