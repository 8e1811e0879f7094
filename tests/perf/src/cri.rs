//! Pods by CRI alone, in the same way whatever the runtime is.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures::future::try_join_all;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use orlop_cri::v1;
use orlop_cri::v1::image_service_client::ImageServiceClient;
use orlop_cri::v1::runtime_service_client::RuntimeServiceClient;
use tonic::transport::Channel;

/// The image that every measured container runs.
pub(crate) const IMAGE: &str = "docker.io/library/busybox:latest";

/// A client of one runtime.
#[derive(Clone, Debug)]
pub(crate) struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    /// Where the pods' logs go.
    pub logs: PathBuf,
}

/// A pod to run.
#[derive(Clone, Debug)]
pub(crate) struct PodOrder {
    /// Its name and uid.
    pub name: String,
    /// `cgroup_parent`.
    pub cgroup: String,
    /// In the machine's own network, without CNI.
    pub host_network: bool,
}

impl Cri {
    /// A lazy connection to a unix socket.
    pub(crate) fn new(socket: &str, logs: PathBuf) -> anyhow::Result<Self> {
        let channel = orlop_cri::connect(socket)?;
        let limit = orlop_cri::MESSAGE_LIMIT_BYTES;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(limit),
            images: ImageServiceClient::new(channel),
            logs,
        })
    }

    /// Whether runtime and network are ready; the reason when not.
    pub(crate) async fn ready(&self) -> anyhow::Result<()> {
        let status = self.runtime.clone().status(v1::StatusRequest { verbose: false }).await?.into_inner();
        for condition in status.status.unwrap_or_default().conditions {
            anyhow::ensure!(
                condition.status || !condition.r#type.ends_with("Ready"),
                "{}: {} {}",
                condition.r#type,
                condition.reason,
                condition.message
            );
        }
        Ok(())
    }

    /// Whether the runtime knows the image.
    pub(crate) async fn has_image(&self, image: &str) -> anyhow::Result<()> {
        let image = v1::ImageSpec { image: image.to_owned(), ..v1::ImageSpec::default() };
        let request = v1::ImageStatusRequest { image: Some(image), verbose: false };
        let answer = self.images.clone().image_status(request).await?.into_inner();
        answer.image.context("the image is not there").map(drop)
    }

    /// RunPodSandbox, CreateContainer, StartContainer, ContainerStatus says running; the sandbox's id.
    pub(crate) async fn run_pod(&self, order: &PodOrder) -> anyhow::Result<String> {
        let pod = self.run_sandbox(order).await?;
        let id = self.create(order, &pod).await?;
        self.start(&id).await?;
        let request = v1::ContainerStatusRequest { container_id: id, verbose: false };
        let status = self
            .runtime
            .clone()
            .container_status(request)
            .await
            .context("ContainerStatus")?
            .into_inner()
            .status;
        let state = status.unwrap_or_default().state();
        anyhow::ensure!(
            state == v1::ContainerState::ContainerRunning,
            "the container is {}",
            state.as_str_name()
        );
        Ok(pod)
    }

    /// RunPodSandbox; the sandbox's id.
    pub(crate) async fn run_sandbox(&self, order: &PodOrder) -> anyhow::Result<String> {
        let config = Some(sandbox_config(order, &self.logs));
        let request = v1::RunPodSandboxRequest { config, runtime_handler: String::new() };
        let answer = self.runtime.clone().run_pod_sandbox(request).await.context("RunPodSandbox")?;
        Ok(answer.into_inner().pod_sandbox_id)
    }

    /// CreateContainer; the container's id.
    pub(crate) async fn create(&self, order: &PodOrder, pod: &str) -> anyhow::Result<String> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(container_config(order)),
            sandbox_config: Some(sandbox_config(order, &self.logs)),
        };
        let answer = self.runtime.clone().create_container(request).await.context("CreateContainer")?;
        Ok(answer.into_inner().container_id)
    }

    /// StartContainer.
    pub(crate) async fn start(&self, id: &str) -> anyhow::Result<()> {
        let request = v1::StartContainerRequest { container_id: id.to_owned() };
        self.runtime.clone().start_container(request).await.context("StartContainer")?;
        Ok(())
    }

    /// ExecSync of `/bin/true`.
    pub(crate) async fn exec_true(&self, id: &str) -> anyhow::Result<()> {
        let request = v1::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: vec!["/bin/true".to_owned()],
            timeout: 30,
        };
        let answer = self.runtime.clone().exec_sync(request).await.context("ExecSync")?.into_inner();
        anyhow::ensure!(answer.exit_code == 0, "/bin/true ended with {}", answer.exit_code);
        Ok(())
    }

    /// StopPodSandbox.
    pub(crate) async fn stop_pod(&self, pod: &str) -> anyhow::Result<()> {
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        self.runtime.clone().stop_pod_sandbox(request).await.context("StopPodSandbox")?;
        Ok(())
    }

    /// RemovePodSandbox.
    pub(crate) async fn remove_pod(&self, pod: &str) -> anyhow::Result<()> {
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        self.runtime.clone().remove_pod_sandbox(request).await.context("RemovePodSandbox")?;
        Ok(())
    }

    /// Runs pods, at most `width` of them at the same time; how long until the last one runs.
    pub(crate) async fn run_pods(
        &self,
        orders: &[PodOrder],
        width: usize,
    ) -> anyhow::Result<(Duration, Vec<String>)> {
        let started = Instant::now();
        let pods =
            stream::iter(orders).map(|order| self.run_pod(order)).buffered(width).try_collect().await?;
        Ok((started.elapsed(), pods))
    }

    /// Stops and removes pods, all at once.
    pub(crate) async fn remove_pods(&self, pods: &[String]) -> anyhow::Result<()> {
        try_join_all(pods.iter().map(|pod| async move {
            self.stop_pod(pod).await?;
            self.remove_pod(pod).await
        }))
        .await
        .map(drop)
    }
}

/// As a kubelet asks for a pod without special wishes.
fn namespaces(order: &PodOrder) -> v1::NamespaceOption {
    let network = if order.host_network { v1::NamespaceMode::Node } else { v1::NamespaceMode::Pod };
    v1::NamespaceOption {
        network: network.into(),
        pid: v1::NamespaceMode::Container.into(),
        ipc: v1::NamespaceMode::Pod.into(),
        ..v1::NamespaceOption::default()
    }
}

fn sandbox_config(order: &PodOrder, logs: &std::path::Path) -> v1::PodSandboxConfig {
    let security =
        v1::LinuxSandboxSecurityContext { namespace_options: Some(namespaces(order)), ..Default::default() };
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: order.name.clone(),
            uid: order.name.clone(),
            namespace: "default".to_owned(),
            attempt: 0,
        }),
        hostname: if order.host_network { String::new() } else { order.name.clone() },
        log_directory: logs.join(&order.name).to_string_lossy().into_owned(),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: order.cgroup.clone(),
            security_context: Some(security),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn container_config(order: &PodOrder) -> v1::ContainerConfig {
    let security = v1::LinuxContainerSecurityContext {
        namespace_options: Some(namespaces(order)),
        ..Default::default()
    };
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: "c".to_owned(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: IMAGE.to_owned(), ..Default::default() }),
        command: ["sleep", "1000"].map(str::to_owned).to_vec(),
        log_path: "c.log".to_owned(),
        linux: Some(v1::LinuxContainerConfig { security_context: Some(security), ..Default::default() }),
        ..Default::default()
    }
}
