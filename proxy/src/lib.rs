//! Services on nftables: ClusterIP, NodePort, external and load balancer addresses.
//!
//! ```text
//!   Services, EndpointSlices --changed keys--> model --front ends--> plan --one transaction--> kernel (netlink)
//!                                                                      \--> stale UDP flows (conntrack)
//!   tables `ip orlop-proxy`, `ip6 orlop-proxy`:   unknown --replace whole--> known --update--> known
//!                                                    ^------- refused, or removed by others ------/
//! ```
//!
//! Where to read next: [`rules`](crate) for the layout, `plan` for what a change costs, `sync` for the task.
//!
//! Tasks: `proxy` (owns model and plans; inbox: the watches' changed keys), `proxy-health` (inbox: its port; reads the status).
//!
//! Invariants: only our own tables are written (these two, and for a moment a stand-in for each), each change is one atomic transaction,
//! and only rules that `nft` can list and load are made. Rules stay when the daemon stops or is killed: the data path needs no daemon. Nothing is touched before the watches
//! are synced. The table left by a predecessor serves until the moment its successor's replaces it.
//!
//! It deliberately runs no `nft`, watches nothing of its own, routes no packets and knows no DNS. Left out: topology hints of
//! EndpointSlices, `loadBalancerSourceRanges`, health check node ports, and node ports on 127.0.0.1.

mod health;
mod kernel;
#[cfg(test)]
mod kernel_tests;
mod metrics;
mod model;
mod plan;
mod rules;
mod sync;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use orlop_daemon::Frame;
use orlop_daemon::config::Validate;
use orlop_kube::network::NetworkWatches;
use orlop_nft::IpVersion;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Settings of the proxy.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Config {
    /// Name of this node's Node object: which endpoints are local.
    pub node_name: String,
    /// Networks of the addresses at which node ports answer; empty is all of the node's addresses but loopback.
    pub node_port_addresses: Vec<IpNet>,
    /// Pods of the cluster, at most one network of each IP version: clients from elsewhere are masqueraded.
    pub cluster_cidr: Vec<IpNet>,
    /// Services of the cluster, at most one network of each IP version: packets to what is no Service in there are dropped.
    pub service_cidr: Vec<IpNet>,
    /// Masquerade all connections to cluster addresses.
    pub masquerade_all: bool,
    /// Addresses that a server on this node answers itself (cluster DNS): their packets are left alone.
    pub local_addresses: Vec<IpAddr>,
    /// Shortest time between two changes of the rules, in milliseconds.
    pub min_sync_period_milliseconds: u64,
    /// Where `/healthz` and `/livez` answer.
    pub healthz_address: SocketAddr,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node_name: String::new(),
            node_port_addresses: Vec::new(),
            cluster_cidr: Vec::new(),
            service_cidr: Vec::new(),
            masquerade_all: false,
            local_addresses: Vec::new(),
            min_sync_period_milliseconds: 10,
            healthz_address: SocketAddr::from(([0, 0, 0, 0], 10256)),
        }
    }
}

impl Config {
    const fn min_sync_period(&self) -> Duration {
        Duration::from_millis(self.min_sync_period_milliseconds)
    }
}

impl Validate for Config {
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.node_name.is_empty() {
            problems.push("nodeName is empty: give the name of this node's Node object".to_owned());
        }
        for (name, networks) in [("clusterCidr", &self.cluster_cidr), ("serviceCidr", &self.service_cidr)] {
            let fours = networks.iter().filter(|network| network.addr().is_ipv4()).count();
            if fours > 1 || networks.len() - fours > 1 {
                problems.push(format!("{name} has several networks of one IP version: give one of each"));
            }
        }
        if self.min_sync_period_milliseconds > 60_000 {
            problems.push(
                "minSyncPeriodMilliseconds is above a minute: rules would be stale too long".to_owned(),
            );
        }
        problems
    }
}

/// Starts the proxy on the given watches.
///
/// Readiness guard `service-rules`: set when the rules are in the kernel for the first time.
///
/// # Errors
/// When the health port is taken.
pub async fn start(frame: &Frame, watches: &NetworkWatches, config: Config) -> anyhow::Result<()> {
    let metrics = metrics::Metrics::register(frame);
    let (sender, status) = watch::channel(sync::Status::default());
    let dumped = status.clone();
    frame.dump("proxy", move || {
        let status = *dumped.borrow();
        serde_json::json!({
            "services": status.services,
            "generation": status.generation,
            "inSync": status.in_sync.is_some() && status.behind_since.is_none(),
        })
    });
    health::serve(frame, config.healthz_address, status).await?;
    let guard = frame.ready().guard("service-rules");
    let task = sync::Sync::new(config, watches.clone(), metrics, sender, versions());
    let drain = frame.drain();
    frame.spawn("proxy", async move {
        task.run(guard, drain).await;
        Ok(())
    });
    Ok(())
}

/// IP versions that this kernel has.
fn versions() -> &'static [IpVersion] {
    if Path::new("/proc/net/if_inet6").exists() {
        &[IpVersion::V4, IpVersion::V6]
    } else {
        tracing::warn!("this kernel has no IPv6: IPv6 Services are not served");
        &[IpVersion::V4]
    }
}

/// Removes our tables from the calling thread's network namespace. Idempotent.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_all() -> anyhow::Result<()> {
    let versions = [IpVersion::V4, IpVersion::V6];
    let tables: Vec<_> = versions.into_iter().flat_map(|v| [rules::table(v), rules::stand_in(v)]).collect();
    Ok(kernel::Kernel::default().delete_tables(&tables)?)
}

/// [`remove_all`] for async callers: on a blocking thread, in the process's network namespace.
///
/// # Errors
/// As [`remove_all`].
pub async fn cleanup() -> anyhow::Result<()> {
    tokio::task::spawn_blocking(remove_all).await?
}
