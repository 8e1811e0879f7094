//! The upstreams' state as metrics and in the dump: read from the client when somebody looks.

use std::fmt;

use orlop_daemon::prometheus_client::collector::Collector;
use orlop_daemon::prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use orlop_daemon::prometheus_client::metrics::MetricType;
use orlop_daemon::prometheus_client::metrics::counter::ConstCounter;
use orlop_daemon::prometheus_client::metrics::gauge::ConstGauge;
use orlop_distribution::client::{HostHealth, RegistryClient};

use crate::config::Config;

/// The configured upstreams and the hosts that they are at.
#[derive(Clone)]
pub(crate) struct Hosts {
    client: RegistryClient,
    upstreams: Vec<(String, String)>,
}

impl fmt::Debug for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hosts").field("upstreams", &self.upstreams).finish_non_exhaustive()
    }
}

type Number = fn(&HostHealth) -> Option<u64>;

/// Name, help, type and value of what one number per upstream says.
const NUMBERS: [(&str, &str, MetricType, Number); 4] = [
    ("mirror_upstream_answers", "Answers of upstreams", MetricType::Counter, |seen| Some(seen.answers)),
    (
        "mirror_upstream_bytes",
        "Bytes of manifests and blobs that upstreams sent",
        MetricType::Counter,
        |seen| Some(seen.bytes),
    ),
    (
        "mirror_upstream_resting",
        "1 while an upstream is not asked because it did not answer, or wants to be left alone",
        MetricType::Gauge,
        |seen| Some(u64::from(seen.resting.is_some())),
    ),
    (
        "mirror_upstream_rate_limit_remaining",
        "Pulls that an upstream still grants, as it says",
        MetricType::Gauge,
        |seen| seen.remaining,
    ),
];

impl Hosts {
    pub(crate) fn new(config: &Config, client: RegistryClient) -> Self {
        let authority = |url: &str| {
            let uri: Option<http::Uri> = url.parse().ok();
            uri.and_then(|uri| uri.authority().map(ToString::to_string)).unwrap_or_default()
        };
        let upstreams = config.upstreams.iter().map(|(name, url)| (name.clone(), authority(url))).collect();
        Self { client, upstreams }
    }

    fn each(&self) -> impl Iterator<Item = (&str, HostHealth)> {
        self.upstreams.iter().map(|(name, host)| {
            let unseen = || HostHealth { host: host.clone(), ..HostHealth::default() };
            (name.as_str(), self.client.health(host).unwrap_or_else(unseen))
        })
    }

    /// For the dump.
    pub(crate) fn state(&self) -> serde_json::Value {
        let one = |(name, seen): (&str, HostHealth)| {
            serde_json::json!({
                "name": name,
                "host": seen.host,
                "failures": seen.failures,
                "restingSeconds": seen.resting.map(|rest| rest.as_secs() + 1),
                "lastError": seen.last_error,
                "rateLimit": seen.limit,
                "rateLimitRemaining": seen.remaining,
                "rateLimitSource": seen.limit_source,
                "answers": seen.answers,
                "bytes": seen.bytes,
                "errors": seen.errors,
            })
        };
        self.each().map(one).collect()
    }
}

impl Collector for Hosts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, kind, number) in NUMBERS {
            let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
            for (upstream, seen) in self.each() {
                let Some(value) = number(&seen) else { continue };
                let labels = [("upstream", upstream)];
                let family = metric.encode_family(&labels)?;
                match kind {
                    MetricType::Counter => ConstCounter::new(value).encode(family)?,
                    _ => ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(family)?,
                }
            }
        }
        let help = "Errors of upstreams by kind";
        let mut metric =
            encoder.encode_descriptor("mirror_upstream_errors", help, None, MetricType::Counter)?;
        for (upstream, seen) in self.each() {
            for (kind, count) in seen.errors {
                let labels = [("upstream", upstream), ("kind", kind)];
                let family = metric.encode_family(&labels)?;
                ConstCounter::new(count).encode(family)?;
            }
        }
        Ok(())
    }
}
