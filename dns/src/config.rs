use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use orlop_daemon::config::Validate;
use serde::{Deserialize, Serialize};

/// Configuration of the node's DNS.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Config {
    /// Addresses that are served, over UDP and TCP.
    pub listen: Vec<SocketAddr>,
    /// The cluster's domain, without a dot at the end.
    pub domain: String,
    /// Time to live of the cluster's own records.
    pub ttl_seconds: u32,
    /// Servers for all other names; without any, those of `resolvConf`.
    pub upstreams: Vec<SocketAddr>,
    /// Read at start when there are no `upstreams`.
    pub resolv_conf: PathBuf,
    /// Queries that wait for an upstream at one time; more get SERVFAIL.
    pub max_forwarded: usize,
    /// TCP connections at one time; more are closed.
    pub max_connections: usize,
    /// Answers of upstreams kept at one time.
    pub cache_entries: usize,
    /// Longest time such an answer is kept.
    pub cache_seconds: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from((Ipv4Addr::new(10, 96, 0, 10), 53))],
            domain: "cluster.local".to_owned(),
            ttl_seconds: 5,
            upstreams: Vec::new(),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            max_forwarded: 1000,
            max_connections: 200,
            cache_entries: 10_000,
            cache_seconds: 30,
        }
    }
}

impl Validate for Config {
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.listen.is_empty() {
            problems.push("listen is empty: give the cluster DNS address, for example 10.96.0.10:53".to_owned());
        }
        let labels_fit = self.domain.split('.').all(|label| !label.is_empty() && label.len() <= 63);
        if !labels_fit || self.domain.len() > 200 || !self.domain.is_ascii() {
            problems.push(format!("domain {:?} is no domain name: give for example cluster.local", self.domain));
        }
        for (key, value) in [("maxForwarded", self.max_forwarded), ("maxConnections", self.max_connections)] {
            if value == 0 {
                problems.push(format!("{key} is 0: give at least 1"));
            }
        }
        if self.upstreams.iter().any(|upstream| self.listen.contains(upstream)) {
            problems.push("upstreams holds an address of listen: queries would go round in circles".to_owned());
        }
        problems
    }
}
