//! The daemons' configuration files. Written anew by every `up`; what a user wants otherwise is a flag of `up`.

use std::fs::DirBuilder;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, symlink};
use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;

use super::file::write_atomic;
use super::layout::Layout;
use super::pki::{Authority, CertificateFiles};
use super::prepare::MasterFiles;
use super::spec::{ClusterSpec, NodeSpec};
use crate::MasterConfig;
use crate::network::NetworkConfig;
use crate::node::NodeConfig;

const PLUGIN: &str = "orlop-cni";
const DNS_PORT: u16 = 53;
/// Longest Service and pod address part of a node: a /24 of the pod range.
const NODE_PREFIX: u8 = 24;

/// Writes `master.yaml`.
pub(crate) fn write_master(
    layout: &Layout,
    spec: &ClusterSpec,
    authority: &Authority,
    files: &MasterFiles,
) -> anyhow::Result<()> {
    let api = orlop_api::Config {
        listen: vec![SocketAddr::from(([0, 0, 0, 0], spec.api_port))],
        advertise_address: Some(spec.advertise_address),
        data_dir: layout.master_dir(),
        tls_cert_file: files.serving.certificate.clone(),
        tls_key_file: files.serving.key.clone(),
        client_ca_file: authority.certificate(),
        service_account_key_file: files.service_account_key.clone(),
        issuer: format!("https://kubernetes.default.svc.{}", spec.cluster_domain),
        kubelet_client_cert_file: Some(files.kubelet_client.certificate.clone()),
        kubelet_client_key_file: Some(files.kubelet_client.key.clone()),
        kubelet_ca_file: Some(authority.certificate()),
        service_cidr: spec.service_cidr,
        cluster_dns: Some(spec.cluster_dns),
        insecure_port: spec.insecure_port,
        ..orlop_api::Config::default()
    };
    let control = orlop_control::Config {
        cluster_cidr: spec.pod_cidr.into(),
        node_cidr_mask_size: NODE_PREFIX.max(spec.pod_cidr.prefix_len()),
        root_ca_file: Some(authority.certificate()),
        ..orlop_control::Config::default()
    };
    DirBuilder::new().recursive(true).mode(0o700).create(layout.master_dir())?;
    write(&layout.data().join("master.yaml"), &MasterConfig { api, control })
}

/// Writes the files of one node, and the directory with its CNI plugin.
pub(crate) fn write_node(
    layout: &Layout,
    spec: &ClusterSpec,
    node: &NodeSpec,
    authority: &Authority,
    serving: &CertificateFiles,
) -> anyhow::Result<()> {
    let directory = layout.node(&node.name);
    let config = NodeConfig {
        network_namespace: spec.lab.as_ref().map(|_| layout.netns(&node.name)),
        hostname: spec.lab.as_ref().map(|_| node.name.clone()),
        directory: directory.clone(),
        log_directory: directory.join("log"),
    };
    write(&directory.join("node.yaml"), &config)?;
    write(&directory.join("runtime.yaml"), &runtime(layout, node))?;
    write(&directory.join("kubelet.yaml"), &kubelet(layout, spec, node, authority, serving))?;
    write(&directory.join("network.yaml"), &network(layout, spec, node)?)?;
    link_plugin(&directory.join("cni/bin"))
}

fn runtime(layout: &Layout, node: &NodeSpec) -> orlop_runtime::Config {
    let (directory, run) = (layout.node(&node.name), layout.node_run(&node.name));
    orlop_runtime::Config {
        listen: format!("unix://{}", run.join("runtime.sock").display()),
        root: layout.runtime_root(&node.name),
        state: run.join("runtime"),
        cni_conf_dir: directory.join("cni/net.d"),
        cni_bin_dirs: vec![directory.join("cni/bin")],
        ..orlop_runtime::Config::default()
    }
}

fn kubelet(
    layout: &Layout,
    spec: &ClusterSpec,
    node: &NodeSpec,
    authority: &Authority,
    serving: &CertificateFiles,
) -> orlop_kubelet::Config {
    let (directory, run) = (layout.node(&node.name), layout.node_run(&node.name));
    let x509 = orlop_kubelet::X509 { client_ca_file: Some(authority.certificate()) };
    orlop_kubelet::Config {
        kubeconfig: directory.join("kubelet.kubeconfig"),
        node_name: node.name.clone(),
        node_ip: node.address.to_string(),
        root_dir: directory.join("kubelet"),
        memory_dir: run.join("kubelet"),
        pod_logs_dir: directory.join("log/pods"),
        tls_cert_file: Some(serving.certificate.clone()),
        tls_private_key_file: Some(serving.key.clone()),
        authentication: orlop_kubelet::Authentication { x509, ..orlop_kubelet::Authentication::default() },
        container_runtime_endpoint: format!("unix://{}", run.join("runtime.sock").display()),
        cluster_dns: vec![spec.cluster_dns.to_string()],
        cluster_domain: spec.cluster_domain.clone(),
        cgroup_root: format!("{}/{}", layout.cgroup(), node.name),
        ..orlop_kubelet::Config::default()
    }
}

fn network(layout: &Layout, spec: &ClusterSpec, node: &NodeSpec) -> anyhow::Result<NetworkConfig> {
    let directory = layout.node(&node.name);
    let std::net::IpAddr::V4(node_ip) = node.address else {
        anyhow::bail!("the node address {} is not IPv4: the overlay needs one", node.address);
    };
    Ok(NetworkConfig {
        kubeconfig: directory.join("network.kubeconfig"),
        overlay: orlop_cni::OverlayConfig {
            node_name: node.name.clone(),
            node_ip,
            cluster_cidr: spec.pod_cidr.into(),
            service_cidr: spec.service_cidr.into(),
            cni_conf_dir: directory.join("cni/net.d"),
            ipam_dir: directory.join("cni/ipam"),
            plugin_type: PLUGIN.to_owned(),
            ..orlop_cni::OverlayConfig::default()
        },
        proxy: orlop_proxy::Config {
            node_name: node.name.clone(),
            cluster_cidr: vec![spec.pod_cidr.into()],
            service_cidr: vec![spec.service_cidr.into()],
            local_addresses: vec![spec.cluster_dns.into()],
            ..orlop_proxy::Config::default()
        },
        dns: orlop_dns::Config {
            listen: vec![SocketAddr::new(spec.cluster_dns.into(), DNS_PORT)],
            domain: spec.cluster_domain.clone(),
            reverse_cidrs: vec![spec.pod_cidr.into(), spec.service_cidr.into()],
            ..orlop_dns::Config::default()
        },
    })
}

/// Plugins are found by name in a directory: ours is this binary under its other name.
fn link_plugin(directory: &Path) -> anyhow::Result<()> {
    let target = std::env::current_exe().context("failed to find the orlop binary")?;
    let link = directory.join(PLUGIN);
    let linked = (|| {
        std::fs::create_dir_all(directory)?;
        if std::fs::read_link(&link).is_ok_and(|now| now == target) {
            return Ok(());
        }
        let fresh = directory.join(format!(".{PLUGIN}.new"));
        let _ = std::fs::remove_file(&fresh);
        symlink(&target, &fresh)?;
        std::fs::rename(&fresh, &link)
    })();
    linked.with_context(|| format!("failed to link {}", link.display()))
}

/// JSON is YAML; sorted as the structs are.
fn write(path: &Path, config: &impl Serialize) -> anyhow::Result<()> {
    write_atomic(path, &serde_json::to_vec_pretty(config)?, 0o600)
}
