//! Limits: CPU, memory, processes of the machine's cgroups; what happens beyond them; how they are changed.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use orlop_cri::v1;

use crate::spec::{Test, refused, resources};

crate::specs![
    memory_limit,
    out_of_memory,
    cpu,
    cpuset,
    oom_score,
    update_memory,
    update_cpu,
    update_created,
    update_ended,
    update_unknown,
    update_nonsense,
    told_by_the_status,
    own_cgroup_in_the_container,
    hugepages_are_accepted,
    device_given,
    device_without_write,
    device_that_is_missing,
    cdi_device,
    cdi_device_that_is_missing,
];

const MIB: i64 = 1 << 20;

/// The cgroup directory of a container in the hierarchy that has `file`.
fn cgroup(t: &Test, id: &str, file: &str) -> anyhow::Result<PathBuf> {
    let all = t.host().inventory().cgroups;
    let mut found = all.into_iter().filter(|path| path.to_string_lossy().contains(id));
    found.find(|path| path.join(file).exists()).with_context(|| format!("no cgroup of {id} has {file}"))
}

/// A limit by its names in cgroup v1 and v2.
fn limit(t: &Test, id: &str, v1_name: &str, v2_name: &str) -> anyhow::Result<String> {
    let name = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { v2_name } else { v1_name };
    Ok(std::fs::read_to_string(cgroup(t, id, name)?.join(name))?.trim().to_owned())
}

async fn limited(t: &Test, wanted: v1::LinuxContainerResources) -> anyhow::Result<String> {
    let pod = t.pod().await?;
    t.running_with(&pod, |config| *resources(config) = wanted).await
}

async fn memory_limit(t: &Test) -> anyhow::Result<()> {
    let id =
        limited(t, v1::LinuxContainerResources { memory_limit_in_bytes: 64 * MIB, ..Default::default() })
            .await?;
    let seen = limit(t, &id, "memory.limit_in_bytes", "memory.max")?;
    ensure!(seen == (64 * MIB).to_string(), "{seen}");
    Ok(())
}

async fn out_of_memory(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let status = t
        .ended_with(&pod, |config| {
            config.command = ["dd", "if=/dev/zero", "of=/dev/null", "bs=20M"].map(str::to_owned).to_vec();
            let limits = resources(config);
            limits.memory_limit_in_bytes = 15 * MIB;
            limits.memory_swap_limit_in_bytes = 15 * MIB;
        })
        .await?;
    ensure!(status.exit_code == 137 && status.reason == "OOMKilled", "{status:?}");
    Ok(())
}

async fn cpu(t: &Test) -> anyhow::Result<()> {
    let id = limited(
        t,
        v1::LinuxContainerResources {
            cpu_shares: 512,
            cpu_quota: 50_000,
            cpu_period: 100_000,
            ..Default::default()
        },
    )
    .await?;
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        let seen = limit(t, &id, "", "cpu.max")?;
        ensure!(seen == "50000 100000", "{seen}");
        return Ok(());
    }
    for (file, wanted) in
        [("cpu.shares", "512"), ("cpu.cfs_quota_us", "50000"), ("cpu.cfs_period_us", "100000")]
    {
        let seen = limit(t, &id, file, "")?;
        ensure!(seen == wanted, "{file} is {seen}");
    }
    Ok(())
}

async fn cpuset(t: &Test) -> anyhow::Result<()> {
    let id = limited(
        t,
        v1::LinuxContainerResources {
            cpuset_cpus: "0".into(),
            cpuset_mems: "0".into(),
            ..Default::default()
        },
    )
    .await?;
    let seen = limit(t, &id, "cpuset.cpus", "cpuset.cpus")?;
    ensure!(seen == "0", "{seen}");
    let seen = t.sh(&id, "grep Cpus_allowed_list /proc/1/status | cut -f2").await?;
    ensure!(seen == "0", "{seen}");
    Ok(())
}

async fn oom_score(t: &Test) -> anyhow::Result<()> {
    let id = limited(t, v1::LinuxContainerResources { oom_score_adj: 500, ..Default::default() }).await?;
    ensure!(t.sh(&id, "cat /proc/1/oom_score_adj").await? == "500", "another score");
    Ok(())
}

async fn update(t: &Test, id: &str, linux: v1::LinuxContainerResources) -> anyhow::Result<()> {
    let request = v1::UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(linux),
        ..Default::default()
    };
    t.cri.runtime().update_container_resources(request).await.map(drop).map_err(anyhow::Error::from)
}

async fn update_memory(t: &Test) -> anyhow::Result<()> {
    let id =
        limited(t, v1::LinuxContainerResources { memory_limit_in_bytes: 64 * MIB, ..Default::default() })
            .await?;
    for size in [128 * MIB, 32 * MIB] {
        update(t, &id, v1::LinuxContainerResources { memory_limit_in_bytes: size, ..Default::default() })
            .await?;
        let seen = limit(t, &id, "memory.limit_in_bytes", "memory.max")?;
        ensure!(seen == size.to_string(), "{seen}, not {size}");
    }
    Ok(())
}

async fn update_cpu(t: &Test) -> anyhow::Result<()> {
    let id = limited(
        t,
        v1::LinuxContainerResources {
            cpu_shares: 512,
            cpu_quota: 50_000,
            cpu_period: 100_000,
            ..Default::default()
        },
    )
    .await?;
    let change = v1::LinuxContainerResources {
        cpu_shares: 256,
        cpu_quota: 20_000,
        cpu_period: 100_000,
        ..Default::default()
    };
    update(t, &id, change).await?;
    let seen = limit(t, &id, "cpu.cfs_quota_us", "cpu.max")?;
    ensure!(seen.starts_with("20000"), "{seen}");
    Ok(())
}

async fn update_created(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.create(&pod, t.container_config(&pod, &["sleep", "1000"])).await?;
    update(t, &id, v1::LinuxContainerResources { memory_limit_in_bytes: 48 * MIB, ..Default::default() })
        .await?;
    t.cri.start(&id).await?;
    let seen = limit(t, &id, "memory.limit_in_bytes", "memory.max")?;
    ensure!(seen == (48 * MIB).to_string(), "{seen}");
    Ok(())
}

async fn update_ended(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let ended = t.ended_with(&pod, |config| config.command = vec!["true".into()]).await?.id;
    let change = v1::LinuxContainerResources { memory_limit_in_bytes: 48 * MIB, ..Default::default() };
    refused("limits of what has ended", update(t, &ended, change).await).map(drop)
}

async fn update_unknown(t: &Test) -> anyhow::Result<()> {
    let answer = update(t, "no-such-one", v1::LinuxContainerResources::default()).await;
    let (code, _) = refused("an unknown container", answer)?;
    ensure!(code == tonic::Code::NotFound, "{code:?}");
    Ok(())
}

async fn update_nonsense(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.running(&pod).await?;
    let change = v1::LinuxContainerResources { cpuset_cpus: "99999".into(), ..Default::default() };
    refused("processors that are not there", update(t, &id, change).await)?;
    ensure!(t.sh(&id, "echo fine").await? == "fine", "the container suffered");
    Ok(())
}

async fn told_by_the_status(t: &Test) -> anyhow::Result<()> {
    let wanted = v1::LinuxContainerResources {
        memory_limit_in_bytes: 64 * MIB,
        cpu_shares: 512,
        ..Default::default()
    };
    let id = limited(t, wanted).await?;
    let told = async || -> anyhow::Result<v1::LinuxContainerResources> {
        let status = t.cri.container_status(&id).await?;
        status.resources.and_then(|resources| resources.linux).context("no resources in the status")
    };
    let first = told().await?;
    ensure!(first.memory_limit_in_bytes == 64 * MIB && first.cpu_shares == 512, "{first:?}");
    update(t, &id, v1::LinuxContainerResources { memory_limit_in_bytes: 96 * MIB, ..Default::default() })
        .await?;
    let second = told().await?;
    ensure!(second.memory_limit_in_bytes == 96 * MIB && second.cpu_shares == 512, "{second:?}");
    Ok(())
}

/// Programs in containers read their own limits there.
async fn own_cgroup_in_the_container(t: &Test) -> anyhow::Result<()> {
    let id =
        limited(t, v1::LinuxContainerResources { memory_limit_in_bytes: 64 * MIB, ..Default::default() })
            .await?;
    let script =
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";
    let seen = t.sh(&id, script).await?;
    ensure!(seen == (64 * MIB).to_string(), "{seen}");
    Ok(())
}

/// A kubelet sends a limit for every page size, mostly 0; a machine without huge pages has nothing to write it to.
async fn hugepages_are_accepted(t: &Test) -> anyhow::Result<()> {
    let hugepage_limits = vec![v1::HugepageLimit { page_size: "2MB".into(), limit: 0 }];
    limited(t, v1::LinuxContainerResources { hugepage_limits, ..Default::default() }).await.map(drop)
}

async fn with_device(t: &Test, permissions: &str) -> anyhow::Result<String> {
    let pod = t.pod().await?;
    t.running_with(&pod, |config| {
        config.devices = vec![v1::Device {
            container_path: "/dev/given".into(),
            host_path: "/dev/fuse".into(),
            permissions: permissions.to_owned(),
        }];
    })
    .await
}

async fn device_given(t: &Test) -> anyhow::Result<()> {
    let id = with_device(t, "rwm").await?;
    let seen = t.sh(&id, "stat -c '%F %t:%T' /dev/given").await?;
    ensure!(seen == "character special file a:e5", "{seen}");
    t.sh(&id, ": < /dev/given").await.map(drop)
}

async fn device_without_write(t: &Test) -> anyhow::Result<()> {
    let id = with_device(t, "r").await?;
    t.sh(&id, ": < /dev/given").await?;
    let done = t.exec(&id, &["sh", "-c", ": > /dev/given"]).await?;
    ensure!(done.code != 0, "it can be written: {done:?}");
    Ok(())
}

async fn device_that_is_missing(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let mut config = t.container_config(&pod, &["true"]);
    config.devices = vec![v1::Device {
        container_path: "/dev/given".into(),
        host_path: "/dev/no-such-device".into(),
        permissions: "r".into(),
    }];
    let (_, said) = refused("a missing device", t.create(&pod, config).await)?;
    ensure!(said.contains("no-such-device"), "{said}");
    Ok(())
}

/// Container Device Interface: a device by name, described by a file of the machine.
async fn cdi_device(t: &Test) -> anyhow::Result<()> {
    let directory = t.host().run_path("cdi");
    std::fs::create_dir_all(&directory)?;
    let text = serde_json::json!({
        "cdiVersion": "0.6.0",
        "kind": "orlop.example/device",
        "devices": [{"name": "one", "containerEdits": {
            "env": ["FROM_CDI=yes"],
            "deviceNodes": [{"path": "/dev/cdi-null", "hostPath": "/dev/null"}],
        }}],
    });
    let file = directory.join("orlop.json");
    std::fs::write(&file, text.to_string())?;
    let pod = t.pod().await?;
    let made = t
        .running_with(&pod, |config| {
            config.cdi_devices = vec![v1::CdiDevice { name: "orlop.example/device=one".into() }];
        })
        .await;
    let seen = match made {
        Ok(id) => t.sh(&id, "echo $FROM_CDI; stat -c %F /dev/cdi-null").await,
        Err(error) => Err(error),
    };
    std::fs::remove_dir_all(&directory)?;
    let seen = seen?;
    ensure!(seen == "yes\ncharacter special file", "{seen}");
    Ok(())
}

async fn cdi_device_that_is_missing(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let mut config = t.container_config(&pod, &["true"]);
    config.cdi_devices = vec![v1::CdiDevice { name: "orlop.example/device=none".into() }];
    let (code, said) = refused("an unknown device", t.create(&pod, config).await)?;
    ensure!(
        code != tonic::Code::Unimplemented && said.contains("orlop.example/device=none"),
        "{code:?} {said}"
    );
    Ok(())
}
