//! Everything of a cluster that is on disk or in the kernel before its first process starts.

use std::net::IpAddr;

use anyhow::Context as _;

use super::layout::Layout;
use super::pki::{Authority, CertificateFiles, Leaf, service_account_key};
use super::spec::{ClusterSpec, NodeSpec, Wish, nth};
use super::{configs, kubeconfig, lab, machine};

/// Certificates of the master, by path.
pub(crate) struct MasterFiles {
    pub(crate) serving: CertificateFiles,
    pub(crate) kubelet_client: CertificateFiles,
    pub(crate) service_account_key: std::path::PathBuf,
}

/// Makes or resumes the cluster of a data directory.
pub(crate) fn cluster(layout: &Layout, wish: &Wish) -> anyhow::Result<ClusterSpec> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let spec = match ClusterSpec::load(&layout.cluster_file())? {
        Some(spec) => spec.resume(wish)?,
        None => ClusterSpec::create(wish, &runtime.block_on(machine::read())?)?,
    };
    if let Some(lab) = &spec.lab {
        runtime.block_on(lab::ensure(layout, &spec, lab)).context("failed to make the nodes' network")?;
    }
    files(layout, &spec)?;
    // Last: a cluster that could not be prepared is not remembered.
    spec.save(&layout.cluster_file())?;
    Ok(spec)
}

fn files(layout: &Layout, spec: &ClusterSpec) -> anyhow::Result<()> {
    let authority = Authority::open(&layout.pki())?;
    let server = |address: IpAddr| match address {
        IpAddr::V4(address) => format!("https://{address}:{}", spec.api_port),
        IpAddr::V6(address) => format!("https://[{address}]:{}", spec.api_port),
    };
    let master = master_files(layout, spec, &authority)?;
    configs::write_master(layout, spec, &authority, &master)?;
    let admin = authority.leaf(
        "admin",
        &Leaf { common_name: "kubernetes-admin", organization: Some("system:masters"), ..Leaf::default() },
    )?;
    let api = server(spec.advertise_address);
    kubeconfig::write(&layout.admin_kubeconfig(), &authority, &api, "kubernetes-admin", &admin)?;
    for node in &spec.nodes {
        self::node(layout, spec, &authority, node, &api)
            .with_context(|| format!("failed to prepare node {}", node.name))?;
    }
    Ok(())
}

fn master_files(layout: &Layout, spec: &ClusterSpec, authority: &Authority) -> anyhow::Result<MasterFiles> {
    let domain = &spec.cluster_domain;
    let names: Vec<String> = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"]
        .into_iter()
        .map(str::to_owned)
        .chain([format!("kubernetes.default.svc.{domain}")])
        .collect();
    let service = nth(spec.service_cidr, 1).context("the Service range is too small")?;
    let addresses = [spec.advertise_address, service.into(), IpAddr::from([127, 0, 0, 1])];
    let serving = Leaf {
        common_name: "kube-apiserver",
        dns_names: &names,
        addresses: &addresses,
        server: true,
        organization: None,
    };
    let kubelet_client = Leaf {
        common_name: "kube-apiserver-kubelet-client",
        organization: Some("system:masters"),
        ..Leaf::default()
    };
    Ok(MasterFiles {
        serving: authority.leaf("apiserver", &serving)?,
        kubelet_client: authority.leaf("apiserver-kubelet-client", &kubelet_client)?,
        service_account_key: service_account_key(&layout.pki())?,
    })
}

fn node(
    layout: &Layout,
    spec: &ClusterSpec,
    authority: &Authority,
    node: &NodeSpec,
    api: &str,
) -> anyhow::Result<()> {
    let user = format!("system:node:{}", node.name);
    let kubelet = Leaf { common_name: &user, organization: Some("system:nodes"), ..Leaf::default() };
    let files = authority.leaf(&format!("kubelet-{}", node.name), &kubelet)?;
    let directory = layout.node(&node.name);
    kubeconfig::write(&directory.join("kubelet.kubeconfig"), authority, api, &user, &files)?;
    let network_user = format!("system:orlop:network:{}", node.name);
    let network =
        Leaf { common_name: &network_user, organization: Some("system:orlop:network"), ..Leaf::default() };
    let files = authority.leaf(&format!("network-{}", node.name), &network)?;
    kubeconfig::write(&directory.join("network.kubeconfig"), authority, api, &network_user, &files)?;
    let names = [node.name.clone()];
    let addresses = [node.address];
    let serving = Leaf {
        common_name: &user,
        organization: Some("system:nodes"),
        dns_names: &names,
        addresses: &addresses,
        server: true,
    };
    let serving = authority.leaf(&format!("kubelet-serving-{}", node.name), &serving)?;
    configs::write_node(layout, spec, node, authority, &serving)
}
