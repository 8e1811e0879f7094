//! What is counted of pulls through. The label `upstream` is a configured name, so there are few.

use orlop_daemon::prometheus_client::encoding::EncodeLabelSet;
use orlop_daemon::prometheus_client::metrics::counter::Counter;
use orlop_daemon::prometheus_client::metrics::family::Family;
use orlop_daemon::prometheus_client::registry::Registry as Metrics;

/// Where an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// From here, without asking.
    Hit,
    /// From here; the upstream says that it still holds.
    Revalidated,
    /// From the upstream.
    Miss,
    /// From here as last seen: the upstream does not say.
    Stale,
}

impl Source {
    /// As in the header `Orlop-Cache` and in labels.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Source::Hit => "hit",
            Source::Revalidated => "revalidated",
            Source::Miss => "miss",
            Source::Stale => "stale",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Upstream {
    upstream: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Pull {
    upstream: String,
    kind: &'static str,
    source: &'static str,
}

/// The counters.
#[derive(Clone, Default)]
pub(crate) struct Seen {
    pulls: Family<Pull, Counter>,
    stale: Family<Upstream, Counter>,
    saved: Family<Upstream, Counter>,
}

impl Seen {
    pub(crate) fn register(&self, metrics: &mut Metrics) {
        metrics.register(
            "mirror_pulls",
            "Pulls through by kind and where the answer came from",
            self.pulls.clone(),
        );
        metrics.register(
            "mirror_stale_served",
            "Tags served as last seen because the upstream did not say",
            self.stale.clone(),
        );
        metrics.register(
            "mirror_saved_bytes",
            "Bytes of blobs served from here instead of an upstream",
            self.saved.clone(),
        );
    }

    pub(crate) fn manifest(&self, upstream: &str, source: Source) {
        self.pull(upstream, "manifest", source);
        if source == Source::Stale {
            self.stale.get_or_create(&Upstream { upstream: upstream.to_owned() }).inc();
        }
    }

    /// A blob that is sent; `bytes` are those that need not come from the upstream.
    pub(crate) fn blob(&self, upstream: &str, source: Source, bytes: u64) {
        self.pull(upstream, "blob", source);
        self.saved.get_or_create(&Upstream { upstream: upstream.to_owned() }).inc_by(bytes);
    }

    fn pull(&self, upstream: &str, kind: &'static str, source: Source) {
        let labels = Pull { upstream: upstream.to_owned(), kind, source: source.name() };
        self.pulls.get_or_create(&labels).inc();
    }
}
