//! What a kubelet does all day, in a form that survives the death of the runtime: every call is tried again until it is answered.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use orlop_cri::v1;

use crate::client::{Cri, code, image_spec};
use crate::spec::{image, namespaces};

const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(5);

/// A pod with one container that sleeps.
pub fn pod_config(name: &str, cgroup_parent: String, logs: &std::path::Path) -> v1::PodSandboxConfig {
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            namespace: "load".to_owned(),
            attempt: 0,
        }),
        hostname: name.to_owned(),
        log_directory: logs.join(name).to_string_lossy().into_owned(),
        labels: [("pod".to_owned(), name.to_owned())].into(),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent,
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A container of such a pod.
pub fn container_config(name: &str, command: &[&str]) -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(image_spec(&image("busybox"))),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        log_path: format!("{name}.log"),
        linux: Some(v1::LinuxContainerConfig {
            security_context: Some(v1::LinuxContainerSecurityContext {
                namespace_options: Some(namespaces()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Whether a call had no answer: the runtime died meanwhile or is not there.
fn is_unanswered(error: &anyhow::Error) -> bool {
    let text = format!("{error:#}");
    matches!(code(error), tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Cancelled)
        || ["transport error", "connection", "broken pipe", "h2 protocol"]
            .iter()
            .any(|word| text.contains(word))
}

/// Asks until somebody answers; the answer may be an error.
///
/// # Errors
/// The answer's; nobody who answers in time.
pub async fn answered<T>(what: &str, mut ask: impl AsyncFnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        match ask().await {
            Err(error) if is_unanswered(&error) && Instant::now() < end => tokio::time::sleep(PAUSE).await,
            other => return other.with_context(|| what.to_owned()),
        }
    }
}

/// One turn of a kubelet's loop: a pod and a container are made, used and removed; nothing is lost or doubled in between.
///
/// # Errors
/// What is not as the client was told.
pub async fn turn(
    cri: &Cri,
    config: &v1::PodSandboxConfig,
    calls: &std::sync::atomic::AtomicU64,
) -> anyhow::Result<()> {
    let count = || calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let mut config = config.clone();
    let pod = loop {
        count();
        match answered("RunPodSandbox", async || cri.run_pod(config.clone()).await).await {
            Ok(pod) => break pod,
            // As a kubelet: what an earlier try left not ready is taken away, and the next attempt begins.
            Err(error) if code(&error) == tonic::Code::AlreadyExists => {
                remove_all(cri, &config).await?;
                config.metadata.get_or_insert_default().attempt += 1;
            }
            Err(error) => return Err(error),
        }
    };
    only_pod(cri, &config, &pod).await?;
    let wanted = container_config("c", &["sleep", "1000"]);
    count();
    let container = answered("CreateContainer", async || {
        // The first try's answer may be lost: the one that is there is it.
        match cri.create(&pod, &config, wanted.clone()).await {
            Err(error) if code(&error) == tonic::Code::AlreadyExists => {
                let filter = v1::ContainerFilter { pod_sandbox_id: pod.clone(), ..Default::default() };
                let all = cri.containers(filter).await?;
                ensure!(all.len() == 1, "{all:?}");
                Ok(all[0].id.clone())
            }
            other => other,
        }
    })
    .await?;
    only_container(cri, &pod, &container).await?;
    count();
    answered("StartContainer", async || match cri.start(&container).await {
        // Started by a try whose answer was lost.
        Err(error) if cri.container_status(&container).await.is_ok_and(|status| status.started_at > 0) => {
            let status = cri.container_status(&container).await?;
            ensure!(status.state() == v1::ContainerState::ContainerRunning, "{error:#}: {status:?}");
            Ok(())
        }
        other => other,
    })
    .await?;
    count();
    let done = answered("ExecSync", async || cri.exec(&container, &["echo", "alive"], 30).await).await?;
    ensure!(done.stdout == "alive\n" && done.code == 0, "{done:?}");
    only_container(cri, &pod, &container).await?;
    count();
    answered("StopContainer", async || cri.stop(&container, 0).await).await?;
    let status = answered("ContainerStatus", async || cri.container_status(&container).await).await?;
    ensure!(status.state() == v1::ContainerState::ContainerExited && status.exit_code == 137, "{status:?}");
    count();
    answered("RemoveContainer", async || cri.remove(&container).await).await?;
    count();
    answered("StopPodSandbox", async || cri.stop_pod(&pod).await).await?;
    count();
    answered("RemovePodSandbox", async || cri.remove_pod(&pod).await).await?;
    remove_all(cri, &config).await
}

/// Removes every sandbox that carries the pod's label.
///
/// # Errors
/// A call's.
pub async fn remove_all(cri: &Cri, config: &v1::PodSandboxConfig) -> anyhow::Result<()> {
    let filter = v1::PodSandboxFilter { label_selector: config.labels.clone(), ..Default::default() };
    for pod in answered("ListPodSandbox", async || cri.pods(filter.clone()).await).await? {
        answered("StopPodSandbox", async || cri.stop_pod(&pod.id).await).await?;
        answered("RemovePodSandbox", async || cri.remove_pod(&pod.id).await).await?;
    }
    Ok(())
}

async fn only_pod(cri: &Cri, config: &v1::PodSandboxConfig, pod: &str) -> anyhow::Result<()> {
    let filter = v1::PodSandboxFilter {
        label_selector: config.labels.clone(),
        state: Some(v1::PodSandboxStateValue { state: v1::PodSandboxState::SandboxReady.into() }),
        ..Default::default()
    };
    let all = answered("ListPodSandbox", async || cri.pods(filter.clone()).await).await?;
    let ids: Vec<&str> = all.iter().map(|pod| pod.id.as_str()).collect();
    ensure!(ids == [pod], "sandbox {pod} was made, ready are {ids:?}");
    Ok(())
}

async fn only_container(cri: &Cri, pod: &str, container: &str) -> anyhow::Result<()> {
    let filter = v1::ContainerFilter { pod_sandbox_id: pod.to_owned(), ..Default::default() };
    let all = answered("ListContainers", async || cri.containers(filter.clone()).await).await?;
    let ids: Vec<&str> = all.iter().map(|container| container.id.as_str()).collect();
    ensure!(ids == [container], "container {container} was made, there are {ids:?}");
    Ok(())
}
