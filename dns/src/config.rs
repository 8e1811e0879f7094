use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::Context as _;
use hickory_proto::rr::Name;
use ipnet::IpNet;
use orlop_daemon::config::Validate;
use serde::{Deserialize, Serialize};

/// Configuration of the DNS server.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Config {
    /// Addresses, each served over UDP and TCP.
    pub listen: Vec<SocketAddr>,
    /// The cluster's domain.
    pub domain: String,
    /// Time to live of the cluster's records.
    pub ttl_seconds: u32,
    /// Where all other names are asked for; empty takes the name servers of `resolvConf`.
    pub upstreams: Vec<SocketAddr>,
    /// A resolv.conf(5); read again when it changes.
    pub resolv_conf: PathBuf,
    /// Ranges whose reverse names are never asked for upstream: those of pods and Services.
    pub reverse_cidrs: Vec<IpNet>,
    /// Queries that may be under way at once.
    pub max_concurrent_queries: usize,
    /// Forwarded queries that may be under way at once.
    pub max_forwarded: usize,
    /// TCP connections at once.
    pub max_connections: usize,
    /// How long a TCP connection may be idle.
    pub tcp_idle_seconds: u32,
    /// How long one upstream may take.
    pub forward_timeout_milliseconds: u32,
    /// Answers remembered from upstream.
    pub cache_entries: usize,
    /// Longest time an answer from upstream is remembered.
    pub cache_seconds: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)), 53)],
            domain: "cluster.local".to_owned(),
            ttl_seconds: 5,
            upstreams: Vec::new(),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            reverse_cidrs: Vec::new(),
            max_concurrent_queries: 2000,
            max_forwarded: 1000,
            max_connections: 256,
            tcp_idle_seconds: 10,
            forward_timeout_milliseconds: 2000,
            cache_entries: 10_000,
            cache_seconds: 30,
        }
    }
}

impl Config {
    pub(crate) fn origin(&self) -> anyhow::Result<Name> {
        let mut name = Name::from_ascii(&self.domain)
            .with_context(|| format!("domain {:?} is no DNS name", self.domain))?
            .to_lowercase();
        name.set_fqdn(true);
        Ok(name)
    }
}

impl Validate for Config {
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.listen.is_empty() {
            problems.push("listen is empty: give at least one address with a port".to_owned());
        }
        if self.domain.trim_matches('.').is_empty() || self.origin().is_err() {
            problems.push(format!("domain {:?} is no DNS name: give one like cluster.local", self.domain));
        }
        if self.ttl_seconds > 3600 {
            problems.push(format!("ttlSeconds is {}: give at most 3600", self.ttl_seconds));
        }
        for (key, value) in [
            ("maxConcurrentQueries", self.max_concurrent_queries),
            ("maxForwarded", self.max_forwarded),
            ("maxConnections", self.max_connections),
        ] {
            if !(1..=100_000).contains(&value) {
                problems.push(format!("{key} is {value}: give a value from 1 to 100000"));
            }
        }
        if self.forward_timeout_milliseconds == 0 || self.tcp_idle_seconds == 0 {
            problems.push("forwardTimeoutMilliseconds and tcpIdleSeconds must be at least 1".to_owned());
        }
        if self.cache_entries > 1_000_000 {
            problems.push(format!("cacheEntries is {}: give at most 1000000", self.cache_entries));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_problems_are_named() {
        assert!(Config::default().problems().is_empty());
        let config =
            Config { listen: Vec::new(), domain: "a..b".into(), max_connections: 0, ..Config::default() };
        let problems = config.problems().join("\n");
        for key in ["listen", "domain", "maxConnections"] {
            assert!(problems.contains(key), "{key}: {problems}");
        }
    }
}
