//! Idle memory of the daemons, without pods.

use anyhow::Context as _;
use orlop_tests::Cluster;

use crate::memory::{Resident, processes};
use crate::report::{Measure, Row};

/// Where the node's runtime keeps its run state: the shims' command lines name it.
pub(crate) fn state_directory(cluster: &Cluster) -> anyhow::Result<String> {
    let nodes =
        std::fs::read_dir(cluster.data().join("nodes"))?.next().context("the cluster has a node")??;
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(nodes.path().join("runtime.yaml"))?)?;
    Ok(config["state"].as_str().context("runtime.yaml has a state directory")?.to_owned())
}

/// Measured on the cluster beside containerd and etcd, which do as little.
pub(crate) fn measure(
    cluster: &Cluster,
    containerd: u32,
    etcd: u32,
    rows: &mut Vec<Row>,
) -> anyhow::Result<()> {
    let data = cluster.data().display().to_string();
    let daemons = |names: &[&str]| {
        let patterns: Vec<String> = names.iter().map(|name| format!(" {name} --config={data}/")).collect();
        let pids = processes(|line| patterns.iter().any(|pattern| line.contains(pattern)))?;
        anyhow::ensure!(pids.len() == names.len(), "{} processes of {names:?}", pids.len());
        Resident::of(&pids)
    };
    let mut row = |what: &str, target, ours, reference: Option<(Resident, &'static str)>| {
        let reference = reference.map(|(resident, name)| (Measure::Memory(resident), name));
        rows.push(Row {
            what: format!("idle resident memory, {what}"),
            target,
            ours: Measure::Memory(ours),
            reference,
        });
    };
    let etcd = (Resident::of(&[etcd])?, "etcd alone, empty, without kube-apiserver, scheduler, controllers");
    row("master", Some(40.0), daemons(&["master"])?, Some(etcd));
    let containerd =
        (Resident::of(&[containerd])?, "containerd alone, without kubelet, kube-proxy, CNI daemon, DNS");
    let all = ["node", "runtime", "kubelet", "network"];
    row(
        "all node daemons (runtime, kubelet, network, their supervisor)",
        Some(60.0),
        daemons(&all)?,
        Some(containerd),
    );
    row("runtime of them", None, daemons(&["runtime"])?, Some(containerd));
    row("kubelet of them", None, daemons(&["kubelet"])?, None);
    row("network of them", None, daemons(&["network"])?, None);
    let everything = processes(|line| line.contains(&data) && !line.starts_with("kubectl"))?;
    row("everything of a cluster of one node", None, Resident::of(&everything)?, None);
    Ok(())
}
