//! Statistics and metrics.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Context as _, ensure};
use orlop_cri::v1;

use crate::spec::{Test, eventually, refused};

crate::specs![
    container_stats,
    listed_by_container,
    listed_without_filter,
    listed_by_labels,
    listed_by_pod,
    of_an_unknown,
    memory_grows,
    processor_time_grows,
    writable_layer_grows,
    pod_stats,
    pod_stats_listed,
    pod_network_and_processes,
    image_file_system,
    metric_descriptors,
    pod_metrics,
    metrics_have_descriptors,
    pressure,
];

async fn of_container(t: &Test, id: &str) -> anyhow::Result<v1::ContainerStats> {
    let request = v1::ContainerStatsRequest { container_id: id.to_owned() };
    t.cri.runtime().container_stats(request).await?.into_inner().stats.context("no statistics")
}

async fn list(t: &Test, filter: Option<v1::ContainerStatsFilter>) -> anyhow::Result<BTreeSet<String>> {
    let request = v1::ListContainerStatsRequest { filter };
    let all = t.cri.runtime().list_container_stats(request).await?.into_inner().stats;
    Ok(all.into_iter().filter_map(|stats| stats.attributes).map(|attributes| attributes.id).collect())
}

fn set(ids: &[&String]) -> BTreeSet<String> {
    ids.iter().map(|id| (*id).clone()).collect()
}

async fn container_stats(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let config = t.container_config(&pod, &["sleep", "1000"]);
    let id = t.create(&pod, config.clone()).await?;
    t.cri.start(&id).await?;
    eventually("complete statistics", async || {
        let stats = of_container(t, &id).await?;
        let attributes = stats.attributes.context("no attributes")?;
        ensure!(attributes.id == id && attributes.metadata == config.metadata, "{attributes:?}");
        let cpu = stats.cpu.context("no processor time")?;
        ensure!(
            cpu.timestamp > 0 && cpu.usage_core_nano_seconds.is_some_and(|used| used.value > 0),
            "{cpu:?}"
        );
        let memory = stats.memory.context("no memory")?;
        ensure!(memory.working_set_bytes.is_some_and(|used| used.value > 0), "{memory:?}");
        let layer = stats.writable_layer.context("no writable layer")?;
        ensure!(layer.used_bytes.is_some() && layer.fs_id.is_some(), "{layer:?}");
        Ok(())
    })
    .await
}

async fn listed_by_container(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let (one, _) = (t.running(&pod).await?, t.running(&pod).await?);
    let filter = v1::ContainerStatsFilter { id: one.clone(), ..Default::default() };
    ensure!(list(t, Some(filter)).await? == set(&[&one]), "not exactly the one");
    Ok(())
}

async fn listed_without_filter(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(t.running(&pod).await?);
    }
    let all = list(t, None).await?;
    ensure!(ids.iter().all(|id| all.contains(id)), "some are missing in {all:?}");
    Ok(())
}

async fn listed_by_labels(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let labels = |value: &str| HashMap::from([("stats".to_owned(), value.to_owned())]);
    let one = t.running_with(&pod, |config| config.labels = labels("yes")).await?;
    t.running_with(&pod, |config| config.labels = labels("other")).await?;
    for (value, wanted) in [("yes", set(&[&one])), ("no", BTreeSet::new())] {
        let filter = v1::ContainerStatsFilter { label_selector: labels(value), ..Default::default() };
        let found = list(t, Some(filter)).await?;
        ensure!(found == wanted, "{value}: {found:?}");
    }
    Ok(())
}

async fn listed_by_pod(t: &Test) -> anyhow::Result<()> {
    let (pod, other) = (t.pod().await?, t.pod().await?);
    let one = t.running(&pod).await?;
    t.running(&other).await?;
    let filter = v1::ContainerStatsFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() };
    ensure!(list(t, Some(filter)).await? == set(&[&one]), "not exactly the one");
    Ok(())
}

async fn of_an_unknown(t: &Test) -> anyhow::Result<()> {
    let (code, _) = refused("an unknown container", of_container(t, "no-such-one").await)?;
    ensure!(code == tonic::Code::NotFound, "{code:?}");
    Ok(())
}

async fn memory_grows(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.running(&pod).await?;
    let used = async || -> anyhow::Result<u64> {
        let memory = of_container(t, &id).await?.memory.context("no memory")?;
        Ok(memory.working_set_bytes.context("no working set")?.value)
    };
    let before = used().await?;
    t.sh(&id, "dd if=/dev/zero of=/dev/shm/block bs=1048576 count=16 2>&1").await?;
    eventually("16 MiB more", async || {
        let now = used().await?;
        ensure!(now >= before + (15 << 20), "{before}, then {now}");
        Ok(())
    })
    .await
}

async fn processor_time_grows(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.running(&pod).await?;
    let used = async || -> anyhow::Result<u64> {
        let cpu = of_container(t, &id).await?.cpu.context("no processor time")?;
        Ok(cpu.usage_core_nano_seconds.context("no time")?.value)
    };
    let before = used().await?;
    t.sh(&id, "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done").await?;
    eventually("more processor time", async || {
        ensure!(used().await? > before, "no more than {before}");
        Ok(())
    })
    .await
}

async fn writable_layer_grows(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.running(&pod).await?;
    t.sh(&id, "dd if=/dev/urandom of=/block bs=1048576 count=4 2>&1; sync").await?;
    eventually("4 MiB in the writable layer", async || {
        let layer = of_container(t, &id).await?.writable_layer.context("no writable layer")?;
        let (bytes, inodes) = (layer.used_bytes.unwrap_or_default(), layer.inodes_used.unwrap_or_default());
        ensure!(bytes.value >= 4 << 20 && inodes.value > 0, "{bytes:?} {inodes:?}");
        Ok(())
    })
    .await
}

async fn of_pod(t: &Test, id: &str) -> anyhow::Result<v1::PodSandboxStats> {
    let request = v1::PodSandboxStatsRequest { pod_sandbox_id: id.to_owned() };
    t.cri.runtime().pod_sandbox_stats(request).await?.into_inner().stats.context("no statistics")
}

async fn pod_stats(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.running(&pod).await?;
    let stats = of_pod(t, &pod.id).await?;
    let attributes = stats.attributes.context("no attributes")?;
    ensure!(attributes.id == pod.id && attributes.metadata == pod.config.metadata, "{attributes:?}");
    let linux = stats.linux.context("no linux part")?;
    ensure!(linux.cpu.is_some() && linux.memory.is_some(), "{linux:?}");
    let containers: Vec<String> =
        linux.containers.into_iter().filter_map(|one| one.attributes).map(|one| one.id).collect();
    ensure!(containers == [id], "{containers:?}");
    Ok(())
}

async fn pod_stats_listed(t: &Test) -> anyhow::Result<()> {
    let (pod, other) = (t.pod().await?, t.pod().await?);
    t.running(&pod).await?;
    let ids = async |filter: v1::PodSandboxStatsFilter| -> anyhow::Result<BTreeSet<String>> {
        let request = v1::ListPodSandboxStatsRequest { filter: Some(filter) };
        let all = t.cri.runtime().list_pod_sandbox_stats(request).await?.into_inner().stats;
        Ok(all.into_iter().filter_map(|stats| stats.attributes).map(|attributes| attributes.id).collect())
    };
    let by_id = v1::PodSandboxStatsFilter { id: pod.id.clone(), ..Default::default() };
    ensure!(ids(by_id).await? == set(&[&pod.id]), "not exactly the one");
    let labels = pod.config.labels.clone();
    let by_label = v1::PodSandboxStatsFilter { label_selector: labels, ..Default::default() };
    ensure!(ids(by_label).await? == set(&[&pod.id]), "not exactly the one");
    let all = ids(v1::PodSandboxStatsFilter::default()).await?;
    ensure!(all.contains(&pod.id) && all.contains(&other.id), "{all:?}");
    Ok(())
}

async fn pod_network_and_processes(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.running(&pod).await?;
    t.sh(&id, &format!("ping -c 2 {} || true", crate::subject::GATEWAY)).await?;
    eventually("complete statistics", async || {
        let linux = of_pod(t, &pod.id).await?.linux.context("no linux part")?;
        let network = linux.network.context("no network")?.default_interface.context("no interface")?;
        ensure!(network.name == "eth0" && network.tx_bytes.is_some_and(|sent| sent.value > 0), "{network:?}");
        let processes = linux.process.context("no processes")?.process_count.context("no count")?;
        ensure!(processes.value >= 1, "{processes:?}");
        Ok(())
    })
    .await
}

async fn image_file_system(t: &Test) -> anyhow::Result<()> {
    eventually("a file system with something in it", async || {
        let answer = t.cri.images().image_fs_info(v1::ImageFsInfoRequest {}).await?.into_inner();
        let first = answer.image_filesystems.first().context("no file system")?.clone();
        ensure!(first.timestamp > 0 && first.used_bytes.is_some_and(|used| used.value > 0), "{first:?}");
        let point = first.fs_id.context("no mount point")?.mountpoint;
        ensure!(t.host().run(&["test", "-d", &point]).code == 0, "{point} is no directory");
        Ok(())
    })
    .await
}

async fn descriptors(t: &Test) -> anyhow::Result<Vec<v1::MetricDescriptor>> {
    let request = v1::ListMetricDescriptorsRequest {};
    Ok(t.cri.runtime().list_metric_descriptors(request).await?.into_inner().descriptors)
}

/// A part of what a kubelet serves at /metrics/cadvisor and dashboards read (KEP-2371).
const METRICS: [&str; 8] = [
    "container_cpu_usage_seconds_total",
    "container_memory_usage_bytes",
    "container_memory_working_set_bytes",
    "container_fs_usage_bytes",
    "container_network_receive_bytes_total",
    "container_network_transmit_bytes_total",
    "container_processes",
    "container_last_seen",
];

async fn metric_descriptors(t: &Test) -> anyhow::Result<()> {
    let all = descriptors(t).await?;
    for wanted in METRICS {
        let known = all.iter().find(|one| one.name == wanted);
        ensure!(known.is_some_and(|one| !one.help.is_empty()), "{wanted} is missing");
    }
    Ok(())
}

async fn pod_metrics_of(t: &Test, id: &str) -> anyhow::Result<v1::PodSandboxMetrics> {
    let request = v1::ListPodSandboxMetricsRequest {};
    let all = t.cri.runtime().list_pod_sandbox_metrics(request).await?.into_inner().pod_metrics;
    all.into_iter().find(|one| one.pod_sandbox_id == id).context("no metrics of the pod")
}

async fn pod_metrics(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.running(&pod).await?;
    let metrics = pod_metrics_of(t, &pod.id).await?;
    ensure!(!metrics.metrics.is_empty(), "the pod has none");
    let of_container = metrics.container_metrics.into_iter().find(|one| one.container_id == id);
    let of_container = of_container.context("no metrics of the container")?.metrics;
    for wanted in ["container_cpu_usage_seconds_total", "container_memory_usage_bytes"] {
        ensure!(of_container.iter().any(|one| one.name == wanted), "{wanted} is missing");
    }
    Ok(())
}

async fn metrics_have_descriptors(t: &Test) -> anyhow::Result<()> {
    let known: HashMap<String, usize> =
        descriptors(t).await?.into_iter().map(|one| (one.name, one.label_keys.len())).collect();
    let pod = t.pod().await?;
    t.running(&pod).await?;
    let metrics = pod_metrics_of(t, &pod.id).await?;
    let of_containers = metrics.container_metrics.into_iter().flat_map(|one| one.metrics);
    for metric in metrics.metrics.into_iter().chain(of_containers) {
        let labels = known.get(&metric.name).with_context(|| format!("{} has no descriptor", metric.name))?;
        ensure!(*labels == metric.label_values.len(), "{metric:?} has {labels} label keys");
    }
    Ok(())
}

/// Pressure stall information, where the kernel has it per cgroup (v2).
async fn pressure(t: &Test) -> anyhow::Result<()> {
    if !std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return crate::spec::skip("cgroup v1 has no pressure stall information");
    }
    let pod = t.pod().await?;
    let id = t.running(&pod).await?;
    let stats = of_container(t, &id).await?;
    ensure!(stats.cpu.and_then(|cpu| cpu.psi).is_some(), "no pressure of the processor");
    ensure!(stats.memory.and_then(|memory| memory.psi).is_some(), "no pressure of memory");
    Ok(())
}
