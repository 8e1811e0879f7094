//! Pod sandboxes: their life, what is told of them, and how they are found again.

use std::collections::HashMap;

use anyhow::{Context as _, ensure};
use futures::future::join_all;
use orlop_cri::v1;
use orlop_cri::v1::PodSandboxState::{SandboxNotready, SandboxReady};
use tonic::Code;

use crate::spec::{Test, eventually, refused, security_of_pod};

crate::specs![
    run,
    stop,
    remove,
    remove_while_running,
    attributes,
    created_at,
    verbose_status,
    containers_in_status,
    unknown_status,
    filters,
    prefix_of_an_id,
    same_name_again,
    same_name_at_once,
    next_attempt,
    without_metadata,
    safe_sysctls,
    unsafe_sysctls,
    sysctl_that_does_not_exist,
    host_sysctl_is_refused,
    stop_ends_containers,
    remove_removes_containers,
    stopped_takes_no_container,
    log_directory_is_not_needed,
    cgroup_parent,
    overhead_and_resources,
];

fn by_id(id: &str) -> v1::PodSandboxFilter {
    v1::PodSandboxFilter { id: id.to_owned(), ..Default::default() }
}

async fn run(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let status = t.cri.pod_status(&pod.id).await?;
    ensure!(status.state() == SandboxReady && status.id == pod.id, "{status:?}");
    let listed = t.cri.pods(by_id(&pod.id)).await?;
    ensure!(listed.len() == 1 && listed[0].state() == SandboxReady, "{listed:?}");
    Ok(())
}

async fn stop(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    t.cri.stop_pod(&pod.id).await?;
    let status = t.cri.pod_status(&pod.id).await?;
    ensure!(status.state() == SandboxNotready, "{status:?}");
    let listed = t.cri.pods(by_id(&pod.id)).await?;
    ensure!(listed.len() == 1 && listed[0].state() == SandboxNotready, "{listed:?}");
    Ok(())
}

async fn remove(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    t.cri.stop_pod(&pod.id).await?;
    t.cri.remove_pod(&pod.id).await?;
    ensure!(t.cri.pods(by_id(&pod.id)).await?.is_empty(), "still listed");
    let (code, _) = refused("the status of a removed pod", t.cri.pod_status(&pod.id).await)?;
    ensure!(code == Code::NotFound, "{code:?}");
    Ok(())
}

async fn remove_while_running(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let container = t.running(&pod).await?;
    t.cri.remove_pod(&pod.id).await?;
    ensure!(t.cri.pods(by_id(&pod.id)).await?.is_empty(), "still listed");
    refused("the status of its container", t.cri.container_status(&container).await).map(drop)
}

async fn attributes(t: &Test) -> anyhow::Result<()> {
    let mut config = t.pod_config();
    config.labels.insert("foo".into(), "bar".into());
    config.annotations.insert("abc".into(), "def".into());
    config.metadata.as_mut().context("metadata")?.attempt = 2;
    let pod = t.run_pod(config.clone()).await?;
    let status = t.cri.pod_status(&pod.id).await?;
    ensure!(status.metadata == config.metadata && status.labels == config.labels, "{status:?}");
    ensure!(status.annotations == config.annotations && status.runtime_handler.is_empty(), "{status:?}");
    let options = status.linux.and_then(|linux| linux.namespaces).and_then(|all| all.options);
    let options = options.context("no namespaces in the status")?;
    ensure!(options.pid() == v1::NamespaceMode::Container, "{options:?}");
    ensure!(options.network() == v1::NamespaceMode::Pod, "{options:?}");
    let listed = t.cri.pods(by_id(&pod.id)).await?;
    ensure!(listed.len() == 1, "{listed:?}");
    ensure!(listed[0].metadata == config.metadata && listed[0].labels == config.labels, "{listed:?}");
    ensure!(listed[0].annotations == config.annotations, "{listed:?}");
    Ok(())
}

async fn created_at(t: &Test) -> anyhow::Result<()> {
    let nanos = || {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        anyhow::Ok(i64::try_from(since.as_nanos())?)
    };
    let before = nanos()?;
    let pod = t.pod().await?;
    let created = t.cri.pod_status(&pod.id).await?.created_at;
    ensure!((before..=nanos()?).contains(&created), "{created} is not between {before} and now");
    ensure!(t.cri.pods(by_id(&pod.id)).await?[0].created_at == created, "the list says another time");
    Ok(())
}

async fn verbose_status(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    for verbose in [false, true] {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose };
        let answer = t.cri.runtime().pod_sandbox_status(request).await?.into_inner();
        ensure!(answer.info.is_empty() != verbose, "verbose {verbose}: {:?}", answer.info);
    }
    Ok(())
}

/// What evented PLEG reads instead of listing.
async fn containers_in_status(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let container = t.running(&pod).await?;
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: false };
    let answer = t.cri.runtime().pod_sandbox_status(request).await?.into_inner();
    ensure!(answer.containers_statuses.len() == 1, "{:?}", answer.containers_statuses);
    ensure!(answer.containers_statuses[0].id == container && answer.timestamp > 0, "{answer:?}");
    Ok(())
}

async fn unknown_status(t: &Test) -> anyhow::Result<()> {
    let (code, said) = refused("an unknown pod", t.cri.pod_status("no-such-pod").await)?;
    ensure!(code == Code::NotFound && said.contains("no-such-pod"), "{code:?} {said}");
    Ok(())
}

async fn filters(t: &Test) -> anyhow::Result<()> {
    let mut config = t.pod_config();
    config.labels = HashMap::from([("suite".into(), "filters".into()), ("which".into(), "one".into())]);
    let one = t.run_pod(config).await?.id;
    let mut config = t.pod_config();
    config.labels = HashMap::from([("suite".into(), "filters".into()), ("which".into(), "two".into())]);
    let two = t.run_pod(config).await?.id;
    t.cri.stop_pod(&two).await?;
    let labels = |pairs: &[(&str, &str)]| -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let state = |state: v1::PodSandboxState| Some(v1::PodSandboxStateValue { state: state.into() });
    let suite = labels(&[("suite", "filters")]);
    let table: [(v1::PodSandboxFilter, &[&String]); 7] = [
        (v1::PodSandboxFilter { label_selector: suite.clone(), ..Default::default() }, &[&one, &two]),
        (
            v1::PodSandboxFilter {
                label_selector: suite.clone(),
                state: state(SandboxReady),
                ..Default::default()
            },
            &[&one],
        ),
        (
            v1::PodSandboxFilter {
                label_selector: suite,
                state: state(SandboxNotready),
                ..Default::default()
            },
            &[&two],
        ),
        (
            v1::PodSandboxFilter {
                label_selector: labels(&[("suite", "filters"), ("which", "one")]),
                ..Default::default()
            },
            &[&one],
        ),
        (v1::PodSandboxFilter { label_selector: labels(&[("suite", "no")]), ..Default::default() }, &[]),
        (
            v1::PodSandboxFilter {
                id: one.clone(),
                label_selector: labels(&[("which", "two")]),
                state: None,
            },
            &[],
        ),
        (by_id("no-such-pod"), &[]),
    ];
    for (filter, wanted) in table {
        let mut found: Vec<String> =
            t.cri.pods(filter.clone()).await?.into_iter().map(|pod| pod.id).collect();
        let mut wanted: Vec<String> = wanted.iter().map(|id| (*id).clone()).collect();
        found.sort();
        wanted.sort();
        ensure!(found == wanted, "{filter:?} found {found:?}, not {wanted:?}");
    }
    Ok(())
}

/// crictl's users type the first characters.
async fn prefix_of_an_id(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    ensure!(t.cri.pods(by_id(&pod.id[..13])).await?.len() == 1, "not found by the start of its id");
    ensure!(t.cri.pod_status(&pod.id[..13]).await?.id == pod.id, "another pod");
    Ok(())
}

/// One name is one sandbox: the second call is told so, or given the first one's.
async fn same_name_again(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    if let Ok(id) = t.cri.run_pod(pod.config.clone()).await {
        ensure!(id == pod.id, "two sandboxes of one name");
    }
    ensure!(t.cri.pod_status(&pod.id).await?.state() == SandboxReady, "the first one suffered");
    let labels = pod.config.labels.clone();
    let listed = t.cri.pods(v1::PodSandboxFilter { label_selector: labels, ..Default::default() }).await?;
    ensure!(listed.len() == 1, "{listed:?}");
    Ok(())
}

async fn same_name_at_once(t: &Test) -> anyhow::Result<()> {
    let config = t.pod_config();
    let answers = join_all((0..6).map(|_| t.cri.run_pod(config.clone()))).await;
    let ids: Vec<String> = answers.into_iter().flatten().collect();
    ids.iter().for_each(|id| t.remember(id));
    ensure!(!ids.is_empty() && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let labels = config.labels.clone();
    let listed = t.cri.pods(v1::PodSandboxFilter { label_selector: labels, ..Default::default() }).await?;
    ensure!(listed.len() == 1 && listed[0].id == ids[0], "{listed:?}");
    Ok(())
}

async fn next_attempt(t: &Test) -> anyhow::Result<()> {
    let first = t.pod().await?;
    t.cri.stop_pod(&first.id).await?;
    let mut config = first.config.clone();
    config.metadata.as_mut().context("metadata")?.attempt = 1;
    let second = t.run_pod(config).await?;
    ensure!(first.id != second.id, "the same sandbox");
    ensure!(t.cri.pod_status(&first.id).await?.state() == SandboxNotready, "the first one came back");
    Ok(())
}

async fn without_metadata(t: &Test) -> anyhow::Result<()> {
    let mut config = t.pod_config();
    config.metadata = None;
    refused("a sandbox without metadata", t.cri.run_pod(config).await)?;
    let request = v1::RunPodSandboxRequest::default();
    let answer = t.cri.runtime().run_pod_sandbox(request).await.map_err(anyhow::Error::from);
    refused("no configuration", answer).map(drop)
}

async fn sysctl(t: &Test, name: &str, value: &str, file: &str) -> anyhow::Result<()> {
    let before = std::fs::read_to_string(file).unwrap_or_default();
    let mut config = t.pod_config();
    config.linux.get_or_insert_default().sysctls.insert(name.to_owned(), value.to_owned());
    let pod = t.run_pod(config).await?;
    let container = t.running(&pod).await?;
    let seen = t.sh(&container, &format!("cat {file}")).await?;
    ensure!(seen == value, "{name} is {seen}");
    let after = std::fs::read_to_string(file).unwrap_or_default();
    ensure!(before == after, "the machine's own {name} changed from {before} to {after}");
    Ok(())
}

async fn safe_sysctls(t: &Test) -> anyhow::Result<()> {
    sysctl(t, "kernel.shm_rmid_forced", "1", "/proc/sys/kernel/shm_rmid_forced").await?;
    sysctl(t, "net.ipv4.ip_local_port_range", "40000\t50000", "/proc/sys/net/ipv4/ip_local_port_range").await
}

async fn unsafe_sysctls(t: &Test) -> anyhow::Result<()> {
    sysctl(t, "fs.mqueue.msg_max", "100", "/proc/sys/fs/mqueue/msg_max").await
}

async fn refused_sysctl(t: &Test, name: &str, pod: bool) -> anyhow::Result<()> {
    let mut config = t.pod_config();
    config.linux.get_or_insert_default().sysctls.insert(name.to_owned(), "1".to_owned());
    match t.cri.run_pod(config.clone()).await {
        Err(error) => ensure!(format!("{error:#}").contains(name), "the error does not name it: {error:#}"),
        Ok(id) => {
            t.remember(&id);
            ensure!(!pod, "{name} was not refused");
        }
    }
    Ok(())
}

async fn sysctl_that_does_not_exist(t: &Test) -> anyhow::Result<()> {
    refused_sysctl(t, "kernel.shm_no_such_thing", true).await
}

/// A sysctl that is not of a namespace would change the machine.
async fn host_sysctl_is_refused(t: &Test) -> anyhow::Result<()> {
    let file = "/proc/sys/vm/panic_on_oom";
    let before = std::fs::read_to_string(file)?;
    let answer = refused_sysctl(t, "vm.panic_on_oom", true).await;
    let after = std::fs::read_to_string(file)?;
    if after != before {
        std::fs::write(file, &before)?;
        anyhow::bail!("the machine's own sysctl was written");
    }
    answer
}

async fn stop_ends_containers(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let container = t.running(&pod).await?;
    t.cri.stop_pod(&pod.id).await?;
    let status = t.wait_state(&container, v1::ContainerState::ContainerExited).await?;
    ensure!(status.exit_code != 0 && status.finished_at > 0, "{status:?}");
    Ok(())
}

async fn remove_removes_containers(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let running = t.running(&pod).await?;
    let created = t.create(&pod, t.container_config(&pod, &["true"])).await?;
    t.cri.stop_pod(&pod.id).await?;
    t.cri.remove_pod(&pod.id).await?;
    for id in [running, created] {
        let filter = v1::ContainerFilter { id: id.clone(), ..Default::default() };
        ensure!(t.cri.containers(filter).await?.is_empty(), "container {id} is still listed");
    }
    Ok(())
}

async fn stopped_takes_no_container(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    t.cri.stop_pod(&pod.id).await?;
    let config = t.container_config(&pod, &["true"]);
    refused("a container in a stopped pod", t.create(&pod, config).await)?;
    let filter = v1::ContainerFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() };
    ensure!(t.cri.containers(filter).await?.is_empty(), "something was created");
    Ok(())
}

async fn log_directory_is_not_needed(t: &Test) -> anyhow::Result<()> {
    let mut config = t.pod_config();
    config.log_directory.clear();
    let pod = t.run_pod(config).await?;
    let status = t.ended_with(&pod, |config| config.command = vec!["echo".into(), "unheard".into()]).await?;
    ensure!(status.exit_code == 0, "{status:?}");
    Ok(())
}

async fn cgroup_parent(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let container = t.running(&pod).await?;
    let parent = pod.config.linux.as_ref().map(|linux| linux.cgroup_parent.clone()).unwrap_or_default();
    let all = t.host().inventory();
    let below = all
        .cgroups
        .iter()
        .any(|path| path.to_string_lossy().contains(&parent) && path.to_string_lossy().contains(&container));
    ensure!(below, "no cgroup of the container below {parent}");
    t.cri.stop_pod(&pod.id).await?;
    t.cri.remove_pod(&pod.id).await?;
    eventually("the container's cgroups are gone", async || {
        let all = t.host().inventory();
        let left = all.cgroups.iter().find(|path| path.to_string_lossy().contains(&container));
        ensure!(left.is_none(), "{left:?}");
        Ok(())
    })
    .await
}

async fn overhead_and_resources(t: &Test) -> anyhow::Result<()> {
    let mut config = t.pod_config();
    let linux = config.linux.get_or_insert_default();
    linux.overhead =
        Some(v1::LinuxContainerResources { memory_limit_in_bytes: 1 << 20, ..Default::default() });
    linux.resources =
        Some(v1::LinuxContainerResources { cpu_shares: 100, cpu_period: 100_000, ..Default::default() });
    security_of_pod(&mut config).run_as_user = Some(v1::Int64Value { value: 1000 });
    let pod = t.run_pod(config).await?;
    t.running(&pod).await.map(drop)
}
