//! Which namespaces a container is in: the machine's, its pod's, its own, another container's; and users of its own.

use anyhow::{Context as _, ensure};
use orlop_cri::v1;
use orlop_cri::v1::NamespaceMode::{Container, Node, Pod as OfPod, Target};

use crate::spec::{Test, namespaces, refused, security, security_of_pod, skip};

crate::specs![
    pid_of_the_machine,
    pid_of_the_pod,
    orphans_are_reaped,
    pid_of_its_own,
    pid_of_a_target,
    pid_of_an_unknown_target,
    ipc_of_the_machine,
    ipc_of_the_pod,
    network_is_of_the_pod,
    mount_is_its_own,
    users_of_the_pod,
    users_of_the_machine,
    users_with_two_mappings,
    users_without_root,
    users_of_the_container,
    users_of_a_target,
    users_in_exec,
    users_and_volumes,
];

async fn link(t: &Test, id: &str, name: &str) -> anyhow::Result<String> {
    t.sh(id, &format!("readlink /proc/self/ns/{name}")).await
}

fn of_machine(t: &Test, name: &str) -> anyhow::Result<String> {
    Ok(t.host().must(&["readlink", &format!("/proc/self/ns/{name}")])?.trim().to_owned())
}

async fn pid_of_the_machine(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod_with(v1::NamespaceOption { pid: Node.into(), ..namespaces() }).await?;
    let id = t.running_with(&pod, |config| config.command = vec!["sleep".into(), "31415".into()]).await?;
    ensure!(link(t, &id, "pid").await? == of_machine(t, "pid")?, "another PID namespace");
    let other = t.running(&pod).await?;
    let seen = t.sh(&other, "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '").await?;
    ensure!(seen.contains("sleep 31415"), "the other container is not seen");
    t.cri.stop(&id, 0).await?;
    ensure!(t.sh(&other, "echo fine").await? == "fine", "the other container suffered");
    Ok(())
}

async fn pid_of_the_pod(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod_with(v1::NamespaceOption { pid: OfPod.into(), ..namespaces() }).await?;
    let id = t.running_with(&pod, |config| config.command = vec!["sleep".into(), "31415".into()]).await?;
    let other = t.running(&pod).await?;
    ensure!(link(t, &id, "pid").await? == link(t, &other, "pid").await?, "two PID namespaces");
    let first = t.sh(&id, "cat /proc/1/cmdline | tr '\\0' ' '").await?;
    ensure!(!first.contains("sleep 31415"), "the container is the first process: {first}");
    t.cri.stop(&id, 0).await?;
    ensure!(t.sh(&other, "echo fine").await? == "fine", "the other container suffered");
    Ok(())
}

/// A child whose parent ended falls to the first process of the pod, which reaps it.
async fn orphans_are_reaped(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod_with(v1::NamespaceOption { pid: OfPod.into(), ..namespaces() }).await?;
    let id = t.running(&pod).await?;
    t.sh(&id, "sh -c 'sleep 0.05 & exit 0'; sleep 0.1").await?;
    crate::spec::eventually("no zombie", async || {
        t.sh(&id, "! grep -l '^State:.Z' /proc/[0-9]*/status").await.map(drop)
    })
    .await
}

async fn pid_of_its_own(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod_with(v1::NamespaceOption { pid: Container.into(), ..namespaces() }).await?;
    let id = t.running_with(&pod, |config| config.command = vec!["sleep".into(), "31415".into()]).await?;
    let first = t.sh(&id, "cat /proc/1/cmdline | tr '\\0' ' '").await?;
    ensure!(first.contains("sleep 31415"), "the first process is {first}");
    let other = t.running(&pod).await?;
    ensure!(link(t, &id, "pid").await? != link(t, &other, "pid").await?, "one PID namespace");
    Ok(())
}

/// `kubectl debug --target`.
async fn pid_of_a_target(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let target = t.running_with(&pod, |config| config.command = vec!["sleep".into(), "31415".into()]).await?;
    let debugger = t
        .running_with(&pod, |config| {
            security(config).namespace_options =
                Some(v1::NamespaceOption { pid: Target.into(), target_id: target.clone(), ..namespaces() });
        })
        .await?;
    ensure!(link(t, &debugger, "pid").await? == link(t, &target, "pid").await?, "two PID namespaces");
    let seen = t.sh(&debugger, "cat /proc/1/cmdline | tr '\\0' ' '").await?;
    ensure!(seen.contains("sleep 31415"), "{seen}");
    t.cri.stop(&debugger, 0).await?;
    ensure!(t.sh(&target, "echo fine").await? == "fine", "the target suffered");
    Ok(())
}

async fn pid_of_an_unknown_target(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let mut config = t.container_config(&pod, &["true"]);
    security(&mut config).namespace_options =
        Some(v1::NamespaceOption { pid: Target.into(), target_id: "no-such-one".into(), ..namespaces() });
    refused("an unknown target", t.create(&pod, config).await).map(drop)
}

async fn ipc(t: &Test, mode: v1::NamespaceMode) -> anyhow::Result<bool> {
    let made = t.host().must(&["ipcmk", "--shmem", "4096"])?;
    let segment = made.trim().rsplit(' ').next().context("an id")?.to_owned();
    let seen = async {
        let pod = t.pod_with(v1::NamespaceOption { ipc: mode.into(), ..namespaces() }).await?;
        let id = t.running(&pod).await?;
        let table = t.sh(&id, "cat /proc/sysvipc/shm").await?;
        anyhow::Ok(table.lines().any(|line| line.split_whitespace().nth(1) == Some(&segment)))
    }
    .await;
    t.host().must(&["ipcrm", "--shmem-id", &segment])?;
    seen
}

async fn ipc_of_the_machine(t: &Test) -> anyhow::Result<()> {
    ensure!(ipc(t, Node).await?, "the machine's segment is not seen");
    Ok(())
}

async fn ipc_of_the_pod(t: &Test) -> anyhow::Result<()> {
    ensure!(!ipc(t, OfPod).await?, "the machine's segment is seen");
    let pod = t.pod().await?;
    let (one, other) = (t.running(&pod).await?, t.running(&pod).await?);
    ensure!(link(t, &one, "ipc").await? == link(t, &other, "ipc").await?, "two IPC namespaces");
    Ok(())
}

async fn network_is_of_the_pod(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let (one, other) = (t.running(&pod).await?, t.running(&pod).await?);
    for name in ["net", "uts"] {
        let own = link(t, &one, name).await?;
        ensure!(own == link(t, &other, name).await? && own != of_machine(t, name)?, "{name}");
    }
    Ok(())
}

async fn mount_is_its_own(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let (one, other) = (t.running(&pod).await?, t.running(&pod).await?);
    let own = link(t, &one, "mnt").await?;
    ensure!(own != link(t, &other, "mnt").await? && own != of_machine(t, "mnt")?, "{own}");
    Ok(())
}

fn mapping(host_id: u32, container_id: u32) -> v1::IdMapping {
    v1::IdMapping { host_id, container_id, length: 65536 }
}

fn users(mode: v1::NamespaceMode, mappings: Vec<v1::IdMapping>) -> v1::NamespaceOption {
    let users = v1::UserNamespace { mode: mode.into(), uids: mappings.clone(), gids: mappings };
    v1::NamespaceOption { userns_options: Some(users), ..namespaces() }
}

async fn supports_users(t: &Test) -> anyhow::Result<()> {
    let answer = t.cri.runtime().status(v1::StatusRequest { verbose: false }).await?.into_inner();
    let default = answer.runtime_handlers.into_iter().find(|handler| handler.name.is_empty());
    if default.and_then(|handler| handler.features).is_some_and(|features| features.user_namespaces) {
        return Ok(());
    }
    skip("the runtime does not claim user namespaces")
}

async fn users_of_the_pod(t: &Test) -> anyhow::Result<()> {
    supports_users(t).await?;
    let pod = t.pod_with(users(OfPod, vec![mapping(200_000, 0)])).await?;
    let id = t.running(&pod).await?;
    for file in ["uid_map", "gid_map"] {
        let seen = t.sh(&id, &format!("cat /proc/self/{file}")).await?;
        let words: Vec<&str> = seen.split_whitespace().collect();
        ensure!(words == ["0", "200000", "65536"], "{file}: {words:?}");
    }
    ensure!(t.sh(&id, "id -u; stat -c %u /etc/passwd").await? == "0\n0", "not root in its own file system");
    t.sh(&id, "touch /file && chown 33 /file").await.map(drop)
}

async fn users_of_the_machine(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod_with(users(Node, Vec::new())).await?;
    let id = t.running(&pod).await?;
    let own = std::fs::read_to_string("/proc/self/uid_map")?;
    let seen = t.sh(&id, "cat /proc/self/uid_map").await?;
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    ensure!(words(&seen) == words(&own), "{seen}");
    Ok(())
}

/// Refused, and nothing was made.
async fn refused_users(t: &Test, options: v1::NamespaceOption) -> anyhow::Result<()> {
    supports_users(t).await?;
    let mut config = t.pod_config();
    security_of_pod(&mut config).namespace_options = Some(options);
    let labels = config.labels.clone();
    let (code, _) = refused("impossible users", t.cri.run_pod(config).await)?;
    ensure!(code != tonic::Code::Unavailable, "{code:?}");
    let filter = v1::PodSandboxFilter { label_selector: labels, ..Default::default() };
    ensure!(t.cri.pods(filter).await?.is_empty(), "a sandbox was made");
    Ok(())
}

async fn users_with_two_mappings(t: &Test) -> anyhow::Result<()> {
    refused_users(t, users(OfPod, vec![mapping(200_000, 0), mapping(300_000, 0)])).await
}

async fn users_without_root(t: &Test) -> anyhow::Result<()> {
    refused_users(t, users(OfPod, vec![mapping(200_000, 1)])).await
}

async fn users_of_the_container(t: &Test) -> anyhow::Result<()> {
    refused_users(t, users(Container, Vec::new())).await
}

async fn users_of_a_target(t: &Test) -> anyhow::Result<()> {
    refused_users(t, users(Target, Vec::new())).await
}

async fn users_in_exec(t: &Test) -> anyhow::Result<()> {
    supports_users(t).await?;
    let pod = t.pod_with(users(OfPod, vec![mapping(200_000, 0)])).await?;
    let id = t.running(&pod).await?;
    let own = link(t, &id, "user").await?;
    ensure!(own != of_machine(t, "user")?, "a command is in the machine's user namespace");
    Ok(())
}

async fn users_and_volumes(t: &Test) -> anyhow::Result<()> {
    supports_users(t).await?;
    let directory = t.directory("volume")?;
    let pod = t.pod_with(users(OfPod, vec![mapping(200_000, 0)])).await?;
    let map = vec![mapping(200_000, 0)];
    let id = t
        .running_with(&pod, |config| {
            config.mounts = vec![v1::Mount {
                host_path: directory.to_string_lossy().into_owned(),
                container_path: "/data".into(),
                uid_mappings: map.clone(),
                gid_mappings: map,
                ..Default::default()
            }];
        })
        .await?;
    t.sh(&id, "touch /data/file").await?;
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(directory.join("file"))?);
    ensure!(owner == 0, "on the host it belongs to {owner}");
    Ok(())
}
