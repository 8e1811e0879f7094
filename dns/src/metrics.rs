//! Metrics with the names that CoreDNS gives them, so that existing dashboards work.

use std::time::Duration;

use orlop_daemon::Frame;
use orlop_daemon::prometheus_client::encoding::EncodeLabelSet;
use orlop_daemon::prometheus_client::metrics::counter::Counter;
use orlop_daemon::prometheus_client::metrics::family::Family;
use orlop_daemon::prometheus_client::metrics::gauge::Gauge;
use orlop_daemon::prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Request {
    pub(crate) server: &'static str,
    pub(crate) zone: &'static str,
    pub(crate) proto: &'static str,
    pub(crate) family: &'static str,
    pub(crate) r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Response {
    server: &'static str,
    zone: &'static str,
    rcode: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Served {
    server: &'static str,
    zone: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CacheLabels {
    server: &'static str,
    r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct To {
    to: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ToCode {
    to: String,
    rcode: String,
}

const SERVER: &str = "dns://:53";

/// Which part of the server a query belongs to.
pub(crate) const CLUSTER_ZONE: &str = "cluster";
pub(crate) const OTHER_ZONE: &str = ".";

/// Labels are bounded: types beyond the usual are `other`, upstreams are those of the configuration.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    requests: Family<Request, Counter>,
    responses: Family<Response, Counter>,
    duration: Family<Served, Histogram, fn() -> Histogram>,
    hits: Family<CacheLabels, Counter>,
    misses: Family<Served, Counter>,
    entries: Family<CacheLabels, Gauge>,
    forwards: Family<To, Counter>,
    forward_responses: Family<ToCode, Counter>,
    forward_duration: Family<To, Histogram, fn() -> Histogram>,
    rejected: Counter,
}

fn quick() -> Histogram {
    Histogram::new(exponential_buckets(0.000_25, 2.0, 16))
}

impl Metrics {
    pub(crate) fn register(frame: &Frame) -> Self {
        let metrics = Self::new();
        let mut registry = frame.metrics();
        registry.register(
            "coredns_dns_requests",
            "Counter of DNS requests made per zone, protocol and family",
            metrics.requests.clone(),
        );
        registry.register(
            "coredns_dns_responses",
            "Counter of response status codes",
            metrics.responses.clone(),
        );
        let help = "Histogram of the time (in seconds) each request took per zone";
        registry.register("coredns_dns_request_duration_seconds", help, metrics.duration.clone());
        registry.register("coredns_cache_hits", "The count of cache hits", metrics.hits.clone());
        registry.register("coredns_cache_misses", "The count of cache misses", metrics.misses.clone());
        registry.register(
            "coredns_cache_entries",
            "The number of elements in the cache",
            metrics.entries.clone(),
        );
        registry.register(
            "coredns_forward_requests",
            "Counter of requests made per upstream",
            metrics.forwards.clone(),
        );
        let help = "Counter of responses received per upstream";
        registry.register("coredns_forward_responses", help, metrics.forward_responses.clone());
        let help = "Histogram of the time each request took per upstream";
        registry.register("coredns_forward_request_duration_seconds", help, metrics.forward_duration.clone());
        let help = "Counter of the number of queries rejected because the concurrent queries were at maximum";
        registry.register("coredns_forward_max_concurrent_rejects", help, metrics.rejected.clone());
        drop(registry);
        metrics
    }

    pub(crate) fn new() -> Self {
        Self {
            requests: Family::default(),
            responses: Family::default(),
            duration: Family::new_with_constructor(quick as fn() -> Histogram),
            hits: Family::default(),
            misses: Family::default(),
            entries: Family::default(),
            forwards: Family::default(),
            forward_responses: Family::default(),
            forward_duration: Family::new_with_constructor(quick as fn() -> Histogram),
            rejected: Counter::default(),
        }
    }

    pub(crate) fn request(&self, zone: &'static str, proto: &'static str, is_v6: bool, kind: &'static str) {
        let family = if is_v6 { "2" } else { "1" };
        self.requests.get_or_create(&Request { server: SERVER, zone, proto, family, r#type: kind }).inc();
    }

    pub(crate) fn response(&self, zone: &'static str, rcode: String, took: Duration) {
        self.responses.get_or_create(&Response { server: SERVER, zone, rcode }).inc();
        self.duration.get_or_create(&Served { server: SERVER, zone }).observe(took.as_secs_f64());
    }

    pub(crate) fn cache_hit(&self, is_denial: bool) {
        let kind = if is_denial { "denial" } else { "success" };
        self.hits.get_or_create(&CacheLabels { server: SERVER, r#type: kind }).inc();
    }

    pub(crate) fn cache_miss(&self) {
        self.misses.get_or_create(&Served { server: SERVER, zone: OTHER_ZONE }).inc();
    }

    pub(crate) fn cache_entries(&self, success: usize, denial: usize) {
        for (kind, count) in [("success", success), ("denial", denial)] {
            let gauge = self.entries.get_or_create(&CacheLabels { server: SERVER, r#type: kind });
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    pub(crate) fn forwarded(&self, to: String, rcode: Option<String>, took: Duration) {
        self.forwards.get_or_create(&To { to: to.clone() }).inc();
        if let Some(rcode) = rcode {
            self.forward_duration.get_or_create(&To { to: to.clone() }).observe(took.as_secs_f64());
            self.forward_responses.get_or_create(&ToCode { to, rcode }).inc();
        }
    }

    pub(crate) fn forward_rejected(&self) {
        self.rejected.inc();
    }
}
