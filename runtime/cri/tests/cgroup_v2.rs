//! Pods on a machine with cgroup v2 alone (`./test --vm`), over the real shim; elsewhere SKIP.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test program")]

mod support;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use orlop_cri::v1;
use support::{Client, Node, container, pod};

const GROUPS: &str = "/sys/fs/cgroup";
const CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "io", "memory", "pids", "hugetlb"];

async fn lab() -> Option<(Node, Client)> {
    if !Path::new(GROUPS).join("cgroup.controllers").exists() {
        println!("SKIP needs cgroup v2 alone");
        return None;
    }
    let Some(shim) = support::real_shim() else {
        println!("SKIP needs a real shim (ORLOP_TEST_SHIM)");
        return None;
    };
    let mut node = Node::new();
    node.write_network();
    node.import_image();
    let mut config = node.config();
    config.shim_command = shim;
    let client = node.start_with(config).await;
    Some((node, client))
}

fn limited(name: &str, script: &str, resources: v1::LinuxContainerResources) -> v1::ContainerConfig {
    let mut config = container(name, &["/bin/busybox", "sh", "-c", script]);
    config.linux.as_mut().unwrap().resources = Some(resources);
    config
}

fn read(directory: &Path, file: &str) -> String {
    let path = directory.join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.trim().to_owned()
}

/// The group of a container, which is all that it sees.
async fn group(client: &mut Client, id: &str) -> PathBuf {
    let output = client.exec_sync(id, &["/bin/busybox", "cat", "/proc/self/cgroup"]).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0::/\n");
    let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
    let status = client.runtime.container_status(request).await.unwrap().into_inner();
    let info: serde_json::Value = serde_json::from_str(&status.info["info"]).unwrap();
    Path::new(GROUPS).join(info["cgroup"].as_str().unwrap().trim_start_matches('/'))
}

async fn change(
    client: &mut Client,
    id: &str,
    linux: v1::LinuxContainerResources,
) -> Result<(), tonic::Status> {
    let request = v1::UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(linux),
        windows: None,
        annotations: HashMap::new(),
    };
    client.runtime.update_container_resources(request).await.map(drop)
}

#[tokio::test]
async fn limits_reach_the_kernel_and_the_group_is_the_containers_world() {
    let Some((node, mut client)) = lab().await else { return };
    let sandbox = client.run_pod(&pod(&node, "web")).await.unwrap();
    let resources = v1::LinuxContainerResources {
        cpu_shares: 512,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        cpuset_cpus: "0".into(),
        memory_limit_in_bytes: 64 << 20,
        memory_swap_limit_in_bytes: 80 << 20,
        hugepage_limits: vec![v1::HugepageLimit { page_size: "2MB".into(), limit: 2 << 20 }],
        unified: HashMap::from([
            ("memory.oom.group".into(), "1".into()),
            ("memory.high".into(), (48 << 20).to_string()),
        ]),
        ..Default::default()
    };
    let id = client.create(&sandbox, limited("c", "sleep 600", resources)).await.unwrap();
    client.start(&id).await.unwrap();
    let group = group(&mut client, &id).await;
    for (file, value) in [
        ("cpu.weight", "59".to_owned()),
        ("cpu.max", "50000 100000".to_owned()),
        ("cpuset.cpus", "0".to_owned()),
        ("memory.max", (64 << 20).to_string()),
        ("memory.swap.max", (16 << 20).to_string()),
        ("memory.high", (48 << 20).to_string()),
        ("memory.oom.group", "1".to_owned()),
        ("hugetlb.2MB.max", (2 << 20).to_string()),
    ] {
        assert_eq!(read(&group, file), value, "{file}");
    }
    let delegated = read(group.parent().unwrap(), "cgroup.subtree_control");
    for controller in CONTROLLERS {
        assert!(delegated.split(' ').any(|word| word == controller), "{controller}: {delegated}");
    }
    let output = client.exec_sync(&id, &["/bin/busybox", "mkdir", "/sys/fs/cgroup/x"]).await.unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("Read-only file system"), "{output:?}");
    let output = client.exec_sync(&id, &["/bin/busybox", "cat", "/sys/fs/cgroup/memory.max"]).await.unwrap();
    assert_eq!(output.stdout, format!("{}\n", 64 << 20).as_bytes());

    let wanted = v1::LinuxContainerResources {
        cpu_shares: 1024,
        memory_limit_in_bytes: 96 << 20,
        unified: HashMap::from([("memory.high".into(), "max".into())]),
        ..Default::default()
    };
    change(&mut client, &id, wanted).await.unwrap();
    let seen = ["cpu.weight", "memory.max", "memory.high"].map(|file| read(&group, file));
    assert_eq!(seen, ["100".to_owned(), (96 << 20).to_string(), "max".to_owned()]);
    let escape = HashMap::from([("../memory.max".to_owned(), "1".to_owned())]);
    change(&mut client, &id, v1::LinuxContainerResources { unified: escape, ..Default::default() })
        .await
        .unwrap_err();
    client.remove_pod(&sandbox).await.unwrap();
    assert!(!group.exists() && node.cgroups().is_empty(), "{:?}", node.cgroups());
}

#[tokio::test]
async fn a_limit_of_memory_alone_leaves_no_swap() {
    let Some((node, mut client)) = lab().await else { return };
    let sandbox = client.run_pod(&pod(&node, "web")).await.unwrap();
    let resources = v1::LinuxContainerResources { memory_limit_in_bytes: 32 << 20, ..Default::default() };
    let id = client.create(&sandbox, limited("c", "sleep 600", resources)).await.unwrap();
    client.start(&id).await.unwrap();
    let group = group(&mut client, &id).await;
    assert_eq!(read(&group, "memory.swap.max"), "0");
    client.remove_pod(&sandbox).await.unwrap();
}

#[tokio::test]
async fn the_whole_container_dies_with_one_of_its_processes() {
    let Some((node, mut client)) = lab().await else { return };
    let sandbox = client.run_pod(&pod(&node, "web")).await.unwrap();
    let resources = v1::LinuxContainerResources {
        memory_limit_in_bytes: 24 << 20,
        memory_swap_limit_in_bytes: 24 << 20,
        unified: HashMap::from([("memory.oom.group".into(), "1".into())]),
        ..Default::default()
    };
    // The hungry one is a child: without the group, the shell would go on.
    let script = "/bin/busybox sh -c 'x=a; while true; do x=$x$x; done'; sleep 600";
    let id = client.create(&sandbox, limited("hungry", script, resources)).await.unwrap();
    client.start(&id).await.unwrap();
    let status = client.wait_state(&id, v1::ContainerState::ContainerExited).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    client.remove_pod(&sandbox).await.unwrap();
    assert!(node.cgroups().is_empty(), "{:?}", node.cgroups());
}

#[tokio::test]
async fn statistics_come_from_the_unified_hierarchy() {
    let Some((node, mut client)) = lab().await else { return };
    let sandbox = client.run_pod(&pod(&node, "web")).await.unwrap();
    let resources = v1::LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() };
    let script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done > /tmp/done; sleep 600";
    let id = client.create(&sandbox, limited("c", script, resources)).await.unwrap();
    client.start(&id).await.unwrap();
    let wait = ["/bin/busybox", "sh", "-c", "until /bin/busybox test -e /tmp/done; do sleep 0.05; done"];
    client.exec_sync(&id, &wait).await.unwrap();
    let request = v1::ContainerStatsRequest { container_id: id.clone() };
    let stats = client.runtime.container_stats(request).await.unwrap().into_inner().stats.unwrap();
    let (cpu, memory) = (stats.cpu.unwrap(), stats.memory.unwrap());
    // Microseconds in the kernel, nanoseconds here.
    assert!(cpu.usage_core_nano_seconds.unwrap().value > 1_000_000, "{cpu:?}");
    assert!(memory.usage_bytes.unwrap().value > 0 && memory.rss_bytes.unwrap().value > 0, "{memory:?}");
    client.remove_pod(&sandbox).await.unwrap();
}
