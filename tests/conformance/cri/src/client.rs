//! The kubelet's side: the generated client with the calls that the specs make.

use anyhow::Context as _;
use orlop_cri::v1;
use orlop_cri::v1::image_service_client::ImageServiceClient;
use orlop_cri::v1::runtime_service_client::RuntimeServiceClient;
use tonic::Code;
use tonic::transport::Channel;

/// A client of one runtime; clones share the connection.
#[derive(Clone, Debug)]
pub struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

/// What a command in a container left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exec {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Exit code.
    pub code: i32,
}

/// The status that a failed call ended with.
pub fn status(error: &anyhow::Error) -> Option<&tonic::Status> {
    error.chain().find_map(|cause| cause.downcast_ref())
}

/// The code that a failed call ended with.
pub fn code(error: &anyhow::Error) -> Code {
    status(error).map_or(Code::Unknown, tonic::Status::code)
}

impl Cri {
    /// A lazy connection.
    ///
    /// # Errors
    /// An address that is no unix socket.
    pub fn new(socket: &str) -> anyhow::Result<Self> {
        let channel = orlop_cri::connect(socket)?;
        // ExecSync alone may carry 16 MiB of each stream.
        let limit = 4 * orlop_cri::MESSAGE_LIMIT_BYTES;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(limit),
            images: ImageServiceClient::new(channel).max_decoding_message_size(limit),
        })
    }

    /// RuntimeService as it is.
    pub fn runtime(&self) -> RuntimeServiceClient<Channel> {
        self.runtime.clone()
    }

    /// ImageService as it is.
    pub fn images(&self) -> ImageServiceClient<Channel> {
        self.images.clone()
    }

    /// Whether runtime and network are ready.
    ///
    /// # Errors
    /// The condition that is not.
    pub async fn ready(&self) -> anyhow::Result<()> {
        let status = self.runtime().status(v1::StatusRequest { verbose: false }).await?.into_inner();
        for condition in status.status.unwrap_or_default().conditions {
            anyhow::ensure!(condition.status || !condition.r#type.ends_with("Ready"), "{condition:?}");
        }
        Ok(())
    }

    /// RunPodSandbox; the id.
    ///
    /// # Errors
    /// The call's.
    pub async fn run_pod(&self, config: v1::PodSandboxConfig) -> anyhow::Result<String> {
        let request = v1::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        let answer = self.runtime().run_pod_sandbox(request).await.context("RunPodSandbox")?;
        Ok(answer.into_inner().pod_sandbox_id)
    }

    /// StopPodSandbox.
    ///
    /// # Errors
    /// The call's.
    pub async fn stop_pod(&self, id: &str) -> anyhow::Result<()> {
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.runtime().stop_pod_sandbox(request).await.context("StopPodSandbox").map(drop)
    }

    /// RemovePodSandbox.
    ///
    /// # Errors
    /// The call's.
    pub async fn remove_pod(&self, id: &str) -> anyhow::Result<()> {
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.runtime().remove_pod_sandbox(request).await.context("RemovePodSandbox").map(drop)
    }

    /// PodSandboxStatus.
    ///
    /// # Errors
    /// The call's.
    pub async fn pod_status(&self, id: &str) -> anyhow::Result<v1::PodSandboxStatus> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let answer = self.runtime().pod_sandbox_status(request).await.context("PodSandboxStatus")?;
        answer.into_inner().status.context("PodSandboxStatus without a status")
    }

    /// ListPodSandbox.
    ///
    /// # Errors
    /// The call's.
    pub async fn pods(&self, filter: v1::PodSandboxFilter) -> anyhow::Result<Vec<v1::PodSandbox>> {
        let request = v1::ListPodSandboxRequest { filter: Some(filter) };
        Ok(self.runtime().list_pod_sandbox(request).await.context("ListPodSandbox")?.into_inner().items)
    }

    /// CreateContainer; the id.
    ///
    /// # Errors
    /// The call's.
    pub async fn create(
        &self,
        pod: &str,
        sandbox: &v1::PodSandboxConfig,
        config: v1::ContainerConfig,
    ) -> anyhow::Result<String> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox.clone()),
        };
        let answer = self.runtime().create_container(request).await.context("CreateContainer")?;
        Ok(answer.into_inner().container_id)
    }

    /// StartContainer.
    ///
    /// # Errors
    /// The call's.
    pub async fn start(&self, id: &str) -> anyhow::Result<()> {
        let request = v1::StartContainerRequest { container_id: id.to_owned() };
        self.runtime().start_container(request).await.context("StartContainer").map(drop)
    }

    /// StopContainer.
    ///
    /// # Errors
    /// The call's.
    pub async fn stop(&self, id: &str, grace_seconds: i64) -> anyhow::Result<()> {
        let request = v1::StopContainerRequest { container_id: id.to_owned(), timeout: grace_seconds };
        self.runtime().stop_container(request).await.context("StopContainer").map(drop)
    }

    /// RemoveContainer.
    ///
    /// # Errors
    /// The call's.
    pub async fn remove(&self, id: &str) -> anyhow::Result<()> {
        let request = v1::RemoveContainerRequest { container_id: id.to_owned() };
        self.runtime().remove_container(request).await.context("RemoveContainer").map(drop)
    }

    /// ContainerStatus.
    ///
    /// # Errors
    /// The call's.
    pub async fn container_status(&self, id: &str) -> anyhow::Result<v1::ContainerStatus> {
        let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let answer = self.runtime().container_status(request).await.context("ContainerStatus")?;
        answer.into_inner().status.context("ContainerStatus without a status")
    }

    /// ListContainers.
    ///
    /// # Errors
    /// The call's.
    pub async fn containers(&self, filter: v1::ContainerFilter) -> anyhow::Result<Vec<v1::Container>> {
        let request = v1::ListContainersRequest { filter: Some(filter) };
        Ok(self.runtime().list_containers(request).await.context("ListContainers")?.into_inner().containers)
    }

    /// ExecSync.
    ///
    /// # Errors
    /// The call's.
    pub async fn exec(&self, id: &str, command: &[&str], timeout_seconds: i64) -> anyhow::Result<Exec> {
        let request = v1::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            timeout: timeout_seconds,
        };
        let answer = self.runtime().exec_sync(request).await.context("ExecSync")?.into_inner();
        Ok(Exec {
            stdout: String::from_utf8_lossy(&answer.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&answer.stderr).into_owned(),
            code: answer.exit_code,
        })
    }

    /// PullImage; what it names the image.
    ///
    /// # Errors
    /// The call's.
    pub async fn pull(&self, image: &str) -> anyhow::Result<String> {
        let request = v1::PullImageRequest { image: Some(image_spec(image)), ..Default::default() };
        let answer = self.images().pull_image(request).await.with_context(|| format!("PullImage {image}"))?;
        Ok(answer.into_inner().image_ref)
    }

    /// ImageStatus; nothing where there is none.
    ///
    /// # Errors
    /// The call's.
    pub async fn image(&self, image: &str) -> anyhow::Result<Option<v1::Image>> {
        let request = v1::ImageStatusRequest { image: Some(image_spec(image)), verbose: false };
        let answer =
            self.images().image_status(request).await.with_context(|| format!("ImageStatus {image}"))?;
        Ok(answer.into_inner().image)
    }

    /// ListImages, all or those of one name.
    ///
    /// # Errors
    /// The call's.
    pub async fn list_images(&self, name: Option<&str>) -> anyhow::Result<Vec<v1::Image>> {
        let filter = name.map(|name| v1::ImageFilter { image: Some(image_spec(name)) });
        let request = v1::ListImagesRequest { filter };
        Ok(self.images().list_images(request).await.context("ListImages")?.into_inner().images)
    }

    /// RemoveImage.
    ///
    /// # Errors
    /// The call's.
    pub async fn remove_image(&self, image: &str) -> anyhow::Result<()> {
        let request = v1::RemoveImageRequest { image: Some(image_spec(image)) };
        self.images().remove_image(request).await.with_context(|| format!("RemoveImage {image}")).map(drop)
    }
}

/// An image by name alone.
pub fn image_spec(image: &str) -> v1::ImageSpec {
    v1::ImageSpec { image: image.to_owned(), ..Default::default() }
}
