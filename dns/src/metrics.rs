use orlop_daemon::Frame;
use orlop_daemon::prometheus_client::encoding::EncodeLabelSet;
use orlop_daemon::prometheus_client::metrics::counter::Counter;
use orlop_daemon::prometheus_client::metrics::family::Family;
use orlop_daemon::prometheus_client::metrics::gauge::Gauge;
use orlop_daemon::prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

/// Labels of `coredns_dns_requests_total`; types outside the usual ones count as `other`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RequestLabels {
    pub proto: &'static str,
    pub r#type: &'static str,
}

/// Labels of `coredns_dns_responses_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ResponseLabels {
    pub rcode: String,
}

/// Named as CoreDNS names them, so that its dashboards work.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    pub requests: Family<RequestLabels, Counter>,
    pub responses: Family<ResponseLabels, Counter>,
    pub duration: Histogram,
    pub cache_hits: Counter,
    pub cache_misses: Counter,
    pub cache_entries: Gauge,
    pub forward_requests: Counter,
    pub forward_rejects: Counter,
}

impl Metrics {
    pub(crate) fn new(frame: &Frame) -> Self {
        let metrics = Self {
            requests: Family::default(),
            responses: Family::default(),
            duration: Histogram::new(exponential_buckets(0.000_025, 2.0, 16)),
            cache_hits: Counter::default(),
            cache_misses: Counter::default(),
            cache_entries: Gauge::default(),
            forward_requests: Counter::default(),
            forward_rejects: Counter::default(),
        };
        let mut registry = frame.metrics();
        registry.register("coredns_dns_requests", "Queries by protocol and type", metrics.requests.clone());
        registry.register("coredns_dns_responses", "Answers by code", metrics.responses.clone());
        registry.register("coredns_dns_request_duration_seconds", "Time to answer", metrics.duration.clone());
        registry.register("coredns_cache_hits", "Upstream answers from the cache", metrics.cache_hits.clone());
        registry.register("coredns_cache_misses", "Questions not in the cache", metrics.cache_misses.clone());
        registry.register("coredns_cache_entries", "Upstream answers in the cache", metrics.cache_entries.clone());
        registry.register("coredns_forward_requests", "Questions to upstreams", metrics.forward_requests.clone());
        registry.register(
            "coredns_forward_max_concurrent_rejects",
            "Questions not forwarded because too many were under way",
            metrics.forward_rejects.clone(),
        );
        drop(registry);
        metrics
    }
}
