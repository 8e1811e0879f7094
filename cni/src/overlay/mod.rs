//! The overlay: what a node's pods need to reach each other and the world, kept as the Nodes say.
//!
//! ```text
//!   Nodes --changed--> wanted (plan) --blocking thread--> bridge, VXLAN, peers, masquerade, conflist (apply)
//!                          \--> own Node's annotations (the other nodes' plan)
//! ```

mod apply;
#[cfg(test)]
mod kernel_tests;
mod plan;

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use orlop_daemon::backoff::Backoff;
use orlop_daemon::config::Validate;
use orlop_daemon::{Drain, Frame, ReadyGuard};
use orlop_kube::Key;
use orlop_kube::network::NetworkWatches;
// The plan's words: plain values, no sockets.
use orlop_netlink::route::{MacAddress, Neighbour, NeighbourTable, Route};
use serde::{Deserialize, Serialize};
use serde_json::json;

use apply::{Applied, Wanted};

/// Network name in the conflist, and the folder of the leases.
pub const NETWORK: &str = "orlop";
/// File name of the conflist.
pub const CONFLIST: &str = "10-orlop.conflist";

/// Without any change, everything is compared with the kernel this often.
const REPAIR_PERIOD: Duration = Duration::from_secs(60);

/// Settings of the overlay.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OverlayConfig {
    /// Name of this node's Node object.
    pub node_name: String,
    /// This node's address towards the other nodes.
    pub node_ip: Ipv4Addr,
    /// Interface of that address; found by the address when absent.
    pub interface: Option<String>,
    /// All pods of the cluster.
    pub cluster_cidr: IpNet,
    /// All Services of the cluster.
    pub service_cidr: IpNet,
    /// VXLAN network identifier; the interface is named `flannel.VNI`.
    pub vni: u32,
    /// VXLAN UDP port.
    pub port: u16,
    /// Bridge of this node's pods.
    pub bridge: String,
    /// Where the conflist is written.
    pub cni_conf_dir: PathBuf,
    /// Where leases are kept.
    pub ipam_dir: PathBuf,
    /// `type` in the conflist: the plugin's file name.
    pub plugin_type: String,
    /// MTU of pods; derived from the interface when absent.
    pub mtu: Option<u32>,
}

impl Default for OverlayConfig {
    fn default() -> Self {
        Self {
            node_name: String::new(),
            node_ip: Ipv4Addr::UNSPECIFIED,
            interface: None,
            cluster_cidr: IpNet::new([10, 244, 0, 0].into(), 16).expect("a literal range"),
            service_cidr: IpNet::new([10, 96, 0, 0].into(), 16).expect("a literal range"),
            vni: 1,
            port: 8472,
            bridge: "cni0".to_owned(),
            cni_conf_dir: PathBuf::from("/etc/cni/net.d"),
            ipam_dir: PathBuf::from("/var/lib/cni/networks"),
            plugin_type: "orlop-cni".to_owned(),
            mtu: None,
        }
    }
}

impl OverlayConfig {
    fn vxlan_name(&self) -> String {
        format!("flannel.{}", self.vni)
    }
}

impl Validate for OverlayConfig {
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.node_name.is_empty() {
            problems.push("nodeName is empty: give the name of this node's Node object".to_owned());
        }
        if self.node_ip.is_unspecified() || self.node_ip.is_loopback() {
            problems.push("nodeIp must be an address that the other nodes reach".to_owned());
        }
        if self.vni == 0 || self.vni >= 1 << 24 {
            problems.push("vni must be between 1 and 16777215".to_owned());
        }
        if self.bridge.is_empty() || self.bridge.len() > 15 {
            problems.push("bridge must be an interface name of 1 to 15 characters".to_owned());
        }
        if self.mtu.is_some_and(|mtu| !(576..=65_535).contains(&mtu)) {
            problems.push("mtu must be between 576 and 65535".to_owned());
        }
        problems
    }
}

/// What the state dump shows.
#[derive(Debug, Default)]
struct Shown {
    wanted: Option<Wanted>,
    applied: Option<Applied>,
    error: Option<String>,
}

/// Starts the overlay: refuses ranges that the machine uses already, then follows the Nodes.
///
/// Readiness guard `overlay`: set once the node's own range is known, the kernel is set up and the conflist is written.
///
/// # Errors
/// When a range overlaps a route of the machine.
pub async fn start_overlay(
    frame: &Frame,
    client: Client,
    watches: &NetworkWatches,
    config: OverlayConfig,
) -> anyhow::Result<()> {
    let checked = config.clone();
    tokio::task::spawn_blocking(move || apply::check_ranges(&checked)).await??;
    let shown = Arc::new(Mutex::new(Shown::default()));
    let dumped = shown.clone();
    frame.dump("overlay", move || dump(&dumped.lock().unwrap_or_else(PoisonError::into_inner)));
    let guard = frame.ready().guard("overlay");
    let overlay = Overlay { config: Arc::new(config), watches: watches.clone(), client, shown };
    let drain = frame.drain();
    frame.spawn("overlay", async move {
        overlay.follow(&guard, &drain).await;
        Ok(())
    });
    Ok(())
}

fn dump(shown: &Shown) -> serde_json::Value {
    let peers: Vec<_> = shown.wanted.iter().flat_map(|wanted| &wanted.peers).collect();
    json!({
        "podRanges": shown.wanted.as_ref().map(|wanted| &wanted.subnets),
        "vxlanAddress": shown.applied.as_ref().and_then(|applied| applied.mac).map(|mac| mac.to_string()),
        "mtu": shown.applied.as_ref().map(|applied| applied.mtu),
        "peers": peers.iter().map(|peer| json!({
            "podRange": peer.pods, "address": peer.address, "vxlanAddress": peer.mac.to_string(),
        })).collect::<Vec<_>>(),
        "error": shown.error,
    })
}

struct Overlay {
    config: Arc<OverlayConfig>,
    watches: NetworkWatches,
    client: Client,
    shown: Arc<Mutex<Shown>>,
}

impl Overlay {
    /// Reconciles on every change of a Node, every [`REPAIR_PERIOD`], and after a failure with backoff.
    async fn follow(&self, guard: &ReadyGuard, drain: &Drain) {
        let nodes = self.watches.nodes.subscribe();
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        tokio::select! {
            () = self.watches.nodes.synced() => {}
            () = drain.wait() => return,
        }
        let mut repaired: Option<Instant> = None;
        loop {
            let due = repaired.is_none_or(|last| last.elapsed() >= REPAIR_PERIOD);
            let pause = match self.reconcile(due).await {
                Ok(true) => {
                    backoff.reset();
                    guard.set();
                    if due {
                        repaired = Some(Instant::now());
                    }
                    REPAIR_PERIOD
                }
                Ok(false) => REPAIR_PERIOD,
                Err(error) => {
                    let text = format!("{error:#}");
                    tracing::warn!(error = text, "the overlay could not be brought up, trying again");
                    self.show(|shown| shown.error = Some(text));
                    repaired = None;
                    backoff.pause()
                }
            };
            tokio::select! {
                _ = nodes.changed() => {}
                () = tokio::time::sleep(pause) => {}
                () = drain.wait() => return,
            }
        }
    }

    fn show(&self, change: impl FnOnce(&mut Shown)) {
        change(&mut self.shown.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// One round; false while the own Node has no pod range yet. Most changes of Nodes are heartbeats: unless a repair is `due`,
    /// the kernel is only asked when something else is wanted than before.
    async fn reconcile(&self, due: bool) -> anyhow::Result<bool> {
        let config = &self.config;
        let key = Key { namespace: String::new(), name: config.node_name.clone() };
        let Some(own) = self.watches.nodes.get(&key) else {
            return Ok(false);
        };
        let subnets = plan::pod_ranges(&own);
        if subnets.is_empty() {
            return Ok(false);
        }
        let peers = self.watches.nodes.with(|nodes| {
            let nodes = nodes.iter().map(|(key, node)| (key.name.as_str(), node.as_ref()));
            plan::peers(&config.node_name, config.vni, nodes)
        });
        let mac =
            plan::announced_mac(&own, config.vni).unwrap_or_else(|| plan::derived_mac(&config.node_name));
        let wanted = Wanted { subnets, mac, peers };
        let known = |shown: &Shown| shown.error.is_none() && shown.wanted.as_ref() == Some(&wanted);
        if !due && known(&self.shown.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(true);
        }
        let (settings, given) = (config.clone(), wanted.clone());
        let applied = tokio::task::spawn_blocking(move || -> anyhow::Result<Applied> {
            anyhow::ensure!(
                apply::is_local(settings.node_ip)?,
                "the node's address {} (nodeIp) is on no interface of this machine",
                settings.node_ip
            );
            let applied = apply::apply(&settings, &given)?;
            match apply::collect_leases(&settings) {
                Ok(0) => {}
                Ok(freed) => tracing::info!(freed, "freed addresses of pods that are gone"),
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "could not look for leftover addresses")
                }
            }
            Ok(applied)
        })
        .await
        .context("the overlay's worker panicked")??;
        if let Some(mac) = applied.mac {
            self.announce(&own, mac).await?;
        }
        self.show(|shown| {
            if shown.wanted.as_ref() != Some(&wanted) {
                tracing::info!(peers = wanted.peers.len(), ranges = ?wanted.subnets, mtu = applied.mtu, "overlay set");
            }
            *shown = Shown { wanted: Some(wanted), applied: Some(applied), error: None };
        });
        Ok(true)
    }

    /// Tells the other nodes where this one is, when they do not know yet.
    async fn announce(&self, own: &orlop_kube::network::Node, mac: MacAddress) -> anyhow::Result<()> {
        let wanted = plan::annotations(self.config.vni, mac, self.config.node_ip);
        if wanted.iter().all(|(key, value)| own.flannel.get(key) == Some(value)) {
            return Ok(());
        }
        let patch = json!({"metadata": {"annotations": wanted}});
        let nodes: Api<Node> = Api::all(self.client.clone());
        nodes
            .patch(&self.config.node_name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .context("failed to annotate this node")?;
        Ok(())
    }
}

/// Removes interfaces, routes, rules, conflist and leases that the overlay and the plugin made, in the calling thread's network
/// namespace. Idempotent.
///
/// # Errors
/// When the kernel refuses.
pub fn cleanup(config: &OverlayConfig) -> anyhow::Result<()> {
    apply::cleanup(config)
}

/// Puts the address of a server on this node (cluster DNS) on the loopback interface, for this machine and its pods only.
///
/// # Errors
/// When the kernel refuses.
pub fn ensure_local_address(ip: IpAddr) -> anyhow::Result<()> {
    apply::ensure_local_address(ip)
}

/// Takes an address of [`ensure_local_address`] off again. Idempotent.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_local_address(ip: IpAddr) -> anyhow::Result<()> {
    apply::remove_local_address(ip)
}
