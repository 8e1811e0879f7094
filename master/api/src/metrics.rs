//! Metrics, under upstream's names.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    verb: String,
    resource: String,
    code: u16,
}

/// What the API server counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    requests: Family<RequestLabels, Counter>,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        // The encoder appends "_total".
        registry.register(
            "apiserver_request",
            "Requests by verb, resource and code",
            metrics.requests.clone(),
        );
        metrics
    }

    /// `resource` must be a known one, or empty: labels are bounded.
    pub(crate) fn count(&self, verb: &str, resource: &str, code: u16) {
        let labels = RequestLabels { verb: verb.to_uppercase(), resource: resource.to_owned(), code };
        self.requests.get_or_create(&labels).inc();
    }
}
