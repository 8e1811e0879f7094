//! The network process of a node: overlay, Service rules and DNS side by side over one set of watches.

use std::path::PathBuf;

use anyhow::Context as _;
use orlop_daemon::Frame;
use orlop_daemon::config::Validate;
use orlop_kube::network::NetworkWatches;
use serde::{Deserialize, Serialize};

use crate::up::layout::Layout;
use crate::up::spec::ClusterSpec;

/// `network.yaml`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct NetworkConfig {
    /// Client configuration of the network identity.
    pub(crate) kubeconfig: PathBuf,
    /// Bridge, VXLAN, masquerade, CNI configuration.
    pub(crate) overlay: orlop_cni::OverlayConfig,
    /// Services on nftables.
    pub(crate) proxy: orlop_proxy::Config,
    /// Cluster DNS.
    pub(crate) dns: orlop_dns::Config,
}

impl Validate for NetworkConfig {
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !self.kubeconfig.is_absolute() {
            problems.push(format!("kubeconfig is {:?}: give an absolute path", self.kubeconfig.display()));
        }
        let below = |section: &str, found: Vec<String>| -> Vec<String> {
            found.into_iter().map(|problem| format!("{section}: {problem}")).collect()
        };
        problems.extend(below("overlay", self.overlay.problems()));
        problems.extend(below("proxy", self.proxy.problems()));
        problems.extend(below("dns", self.dns.problems()));
        problems
    }
}

/// Wires the three parts.
pub(crate) async fn start(frame: &Frame, config: NetworkConfig) -> anyhow::Result<()> {
    let client = orlop_kube::client_from_kubeconfig(&config.kubeconfig).await?;
    let watches = NetworkWatches::start(frame, &client);
    for address in &config.dns.listen {
        orlop_cni::ensure_local_address(address.ip())
            .with_context(|| format!("failed to put the DNS address {} on this node", address.ip()))?;
    }
    orlop_proxy::start(frame, &watches, config.proxy).await?;
    orlop_dns::start(frame, &watches, config.dns).await?;
    orlop_cni::start_overlay(frame, client, &watches, config.overlay).await
}

/// Removes what the network process of a node without a namespace of its own left on the machine.
pub(crate) async fn cleanup(layout: &Layout, spec: &ClusterSpec) -> anyhow::Result<()> {
    let node = spec.nodes.first().context("the cluster has no node")?;
    let directory = layout.node(&node.name);
    let overlay = orlop_cni::OverlayConfig {
        cluster_cidr: spec.pod_cidr.into(),
        service_cidr: spec.service_cidr.into(),
        cni_conf_dir: directory.join("cni/net.d"),
        ipam_dir: directory.join("cni/ipam"),
        ..orlop_cni::OverlayConfig::default()
    };
    orlop_cni::cleanup(&overlay).context("failed to remove the overlay")?;
    orlop_cni::remove_local_address(spec.cluster_dns.into()).context("failed to remove the DNS address")?;
    orlop_proxy::cleanup().await.context("failed to remove the Service rules")
}
