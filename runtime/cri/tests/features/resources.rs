//! Limits changed in flight, statistics, metrics.

use std::collections::BTreeSet;
use std::path::PathBuf;

use orlop_cri::v1;

use crate::support::{self, Client, Node, container, pod, say};

fn limited(memory: i64, both: i64) -> v1::LinuxContainerResources {
    v1::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 20_000,
        cpu_shares: 512,
        memory_limit_in_bytes: memory,
        memory_swap_limit_in_bytes: both,
        ..Default::default()
    }
}

/// A pod in a cgroup of its own, as a kubelet makes them, with one container under way.
async fn running(node: &Node, client: &mut Client) -> (String, String) {
    let mut config = pod(node, "web");
    let linux = config.linux.as_mut().unwrap();
    linux.cgroup_parent = format!("{}/poduid-web", linux.cgroup_parent);
    let sandbox = client.run_pod(&config).await.unwrap();
    let mut config = container("c", &["/bin/busybox", "sleep", "600"]);
    config.linux.as_mut().unwrap().resources = Some(limited(64 << 20, 64 << 20));
    let id = client.create(&sandbox, config).await.unwrap();
    client.start(&id).await.unwrap();
    (sandbox, id)
}

/// Reads the container's own files, v1 or v2.
fn read(node: &Node, id: &str, v1: &str, v2: &str) -> String {
    let parent = format!(
        "orlop-test-{}/poduid-web/{id}",
        node.directory.path().file_name().unwrap().to_str().unwrap()
    );
    let (controller, file) = v1.split_once('/').unwrap();
    let legacy = PathBuf::from("/sys/fs/cgroup").join(controller).join(&parent).join(file);
    let unified = PathBuf::from("/sys/fs/cgroup").join(&parent).join(v2);
    let path = if legacy.exists() { legacy } else { unified };
    std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .trim()
        .to_owned()
}

async fn update(
    client: &mut Client,
    id: &str,
    linux: v1::LinuxContainerResources,
) -> Result<(), tonic::Status> {
    let request = v1::UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(linux),
        ..Default::default()
    };
    client.runtime.update_container_resources(request).await.map(drop)
}

#[tokio::test]
async fn limits_change_in_flight_or_not_at_all() {
    let Some((node, mut client)) = support::real_node(|_| {}).await else { return };
    let (sandbox, id) = running(&node, &mut client).await;
    let memory = |node: &Node, id: &str| read(node, id, "memory/memory.limit_in_bytes", "memory.max");
    assert_eq!(memory(&node, &id), (64 << 20).to_string());
    for size in [128_i64 << 20, 32 << 20] {
        update(&mut client, &id, limited(size, 0)).await.unwrap();
        assert_eq!(memory(&node, &id), size.to_string());
        let status = client.status(&id).await.resources.unwrap().linux.unwrap();
        assert_eq!((status.memory_limit_in_bytes, status.cpu_shares), (size, 512));
    }
    let change = v1::LinuxContainerResources { oom_score_adj: 900, ..Default::default() };
    update(&mut client, &id, change).await.unwrap();
    assert_eq!(say(&mut client, &id, "/bin/busybox cat /proc/1/oom_score_adj").await, "900");
    // No such processor: the kernel refuses, and the quota that was written before is put back.
    let mut refused = limited(0, 0);
    refused.cpu_quota = 50_000;
    refused.cpuset_cpus = "5000".into();
    let error = update(&mut client, &id, refused).await.unwrap_err();
    assert!(error.message().contains("cpuset.cpus"), "{error}");
    let quota = read(&node, &id, "cpu/cpu.cfs_quota_us", "cpu.max");
    assert_eq!(quota.split(' ').next().unwrap(), "20000");
    assert_eq!(client.status(&id).await.resources.unwrap().linux.unwrap().cpu_quota, 20_000);

    let resources = v1::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: sandbox.clone(),
        overhead: None,
        resources: Some(limited(256 << 20, 0)),
    };
    client.runtime.update_pod_sandbox_resources(resources).await.unwrap();
    client.remove_pod(&sandbox).await.unwrap();
}

#[tokio::test]
async fn statistics_and_metrics_tell_what_is_used() {
    let Some((node, mut client)) = support::real_node(|_| {}).await else { return };
    let (sandbox, id) = running(&node, &mut client).await;
    say(&mut client, &id, "/bin/busybox head -c 3000000 /dev/zero > /tmp/file").await;
    let request = v1::ContainerStatsRequest { container_id: id.clone() };
    let stats = client.runtime.container_stats(request).await.unwrap().into_inner().stats.unwrap();
    let (cpu, memory) = (stats.cpu.unwrap(), stats.memory.unwrap());
    assert!(cpu.timestamp > 0 && cpu.usage_core_nano_seconds.unwrap().value > 0);
    assert!(memory.usage_bytes.unwrap().value >= memory.working_set_bytes.unwrap().value);
    assert!(memory.available_bytes.unwrap().value <= 64 << 20 && memory.page_faults.unwrap().value > 0);
    assert!(stats.writable_layer.unwrap().used_bytes.unwrap().value >= 3_000_000);
    let request = v1::PodSandboxStatsRequest { pod_sandbox_id: sandbox.clone() };
    let stats = client.runtime.pod_sandbox_stats(request).await.unwrap().into_inner().stats.unwrap();
    let linux = stats.linux.unwrap();
    assert_eq!(linux.containers.len(), 1);
    assert!(linux.process.unwrap().process_count.unwrap().value >= 1);
    assert!(
        linux.cpu.unwrap().usage_core_nano_seconds.unwrap().value
            >= cpu.usage_core_nano_seconds.unwrap().value
    );

    let descriptors = client.runtime.list_metric_descriptors(v1::ListMetricDescriptorsRequest {}).await;
    let descriptors = descriptors.unwrap().into_inner().descriptors;
    let listed = client.runtime.list_pod_sandbox_metrics(v1::ListPodSandboxMetricsRequest {}).await;
    let listed = listed.unwrap().into_inner().pod_metrics;
    let mine = listed.iter().find(|metrics| metrics.pod_sandbox_id == sandbox).unwrap();
    let of_container = &mine.container_metrics[0];
    assert_eq!(of_container.container_id, id);
    for metric in mine.metrics.iter().chain(&of_container.metrics) {
        let descriptor = descriptors.iter().find(|descriptor| descriptor.name == metric.name).unwrap();
        assert_eq!(descriptor.label_keys.len(), metric.label_values.len(), "{}", metric.name);
    }
    let names: BTreeSet<&str> = of_container.metrics.iter().map(|metric| metric.name.as_str()).collect();
    // What a machine may lack: disks that account, huge pages, pressure.
    for descriptor in &descriptors {
        let optional = ["_fs_reads", "_fs_writes", "_blkio_", "_hugetlb_", "_pressure_", "_network_"];
        let wanted = !optional.iter().any(|part| descriptor.name.contains(part));
        assert!(!wanted || names.contains(descriptor.name.as_str()), "{}", descriptor.name);
    }
    let value = |name: &str| {
        let metric = of_container.metrics.iter().find(|metric| metric.name == name).unwrap();
        metric.value.unwrap().value
    };
    assert_eq!(value("container_spec_memory_limit_bytes"), 64 << 20);
    assert_eq!(value("container_spec_cpu_quota"), 20_000);
    assert!(value("container_processes") >= 1 && value("container_file_descriptors") >= 3);
    assert!(value("container_start_time_seconds") > 1_000_000_000);
    client.remove_pod(&sandbox).await.unwrap();
}
