//! The runtime, known only as CRI: every call has a bound and an error that names the call.

use std::time::Duration;

use orlop_cri::v1 as cri;
use orlop_cri::v1::image_service_client::ImageServiceClient;
use orlop_cri::v1::runtime_service_client::RuntimeServiceClient;
use tonic::transport::Channel;

/// The longest pull; a registry that stalls is given up by the runtime long before.
const PULL_LIMIT: Duration = Duration::from_secs(3600);

/// A CRI call that failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct RuntimeError {
    /// The call, for example `RunPodSandbox`.
    pub(crate) call: &'static str,
    pub(crate) code: tonic::Code,
    /// As gRPC libraries print it.
    pub(crate) message: String,
    /// The runtime's own words alone: what upstream shows of a failed create or start.
    pub(crate) words: String,
}

impl RuntimeError {
    fn new(call: &'static str, status: &tonic::Status) -> Self {
        Self {
            call,
            code: status.code(),
            message: format!("rpc error: code = {:?} desc = {}", status.code(), status.message()),
            words: status.message().to_owned(),
        }
    }

    fn timeout(call: &'static str, limit: Duration) -> Self {
        let words = format!("{call} took longer than {limit:?}");
        let message = format!("rpc error: code = DeadlineExceeded desc = {words}");
        Self { call, code: tonic::Code::DeadlineExceeded, message, words }
    }

    pub(crate) fn is_not_found(&self) -> bool {
        self.code == tonic::Code::NotFound
    }
}

type Result<T> = std::result::Result<T, RuntimeError>;

/// Both CRI services; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Runtime {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    limit: Duration,
}

async fn bounded<T>(
    call: &'static str,
    limit: Duration,
    answer: impl Future<Output = std::result::Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T> {
    match tokio::time::timeout(limit, answer).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(RuntimeError::new(call, &status)),
        Err(_) => Err(RuntimeError::timeout(call, limit)),
    }
}

/// `name(request) -> response` over one of the two services, bounded by `self.limit`.
macro_rules! calls {
    ($($service:ident.$name:ident($request:ident) -> $response:ident as $call:literal;)*) => {
        $(pub(crate) async fn $name(&self, request: cri::$request) -> Result<cri::$response> {
            let mut service = self.$service.clone();
            bounded($call, self.limit, service.$name(request)).await
        })*
    };
}

impl Runtime {
    pub(crate) fn connect(
        runtime: &str,
        images: Option<&str>,
        limit: Duration,
    ) -> std::result::Result<Self, orlop_cri::ConnectError> {
        let channel = orlop_cri::connect(runtime)?;
        let image_channel = match images {
            Some(endpoint) => orlop_cri::connect(endpoint)?,
            None => channel.clone(),
        };
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel)
                .max_decoding_message_size(orlop_cri::MESSAGE_LIMIT_BYTES)
                .max_encoding_message_size(orlop_cri::MESSAGE_LIMIT_BYTES),
            images: ImageServiceClient::new(image_channel)
                .max_decoding_message_size(orlop_cri::MESSAGE_LIMIT_BYTES)
                .max_encoding_message_size(orlop_cri::MESSAGE_LIMIT_BYTES),
            limit,
        })
    }

    calls! {
        runtime.version(VersionRequest) -> VersionResponse as "Version";
        runtime.status(StatusRequest) -> StatusResponse as "Status";
        runtime.run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse as "RunPodSandbox";
        runtime.stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse as "StopPodSandbox";
        runtime.remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse as "RemovePodSandbox";
        runtime.pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse as "PodSandboxStatus";
        runtime.list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse as "ListPodSandbox";
        runtime.create_container(CreateContainerRequest) -> CreateContainerResponse as "CreateContainer";
        runtime.start_container(StartContainerRequest) -> StartContainerResponse as "StartContainer";
        runtime.remove_container(RemoveContainerRequest) -> RemoveContainerResponse as "RemoveContainer";
        runtime.list_containers(ListContainersRequest) -> ListContainersResponse as "ListContainers";
        runtime.container_status(ContainerStatusRequest) -> ContainerStatusResponse as "ContainerStatus";
        runtime.reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse as "ReopenContainerLog";
        runtime.exec(ExecRequest) -> ExecResponse as "Exec";
        runtime.attach(AttachRequest) -> AttachResponse as "Attach";
        runtime.port_forward(PortForwardRequest) -> PortForwardResponse as "PortForward";
        runtime.list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse as "ListContainerStats";
        images.list_images(ListImagesRequest) -> ListImagesResponse as "ListImages";
        images.image_status(ImageStatusRequest) -> ImageStatusResponse as "ImageStatus";
    }

    pub(crate) async fn pull_image(&self, request: cri::PullImageRequest) -> Result<cri::PullImageResponse> {
        let mut images = self.images.clone();
        bounded("PullImage", PULL_LIMIT, images.pull_image(request)).await
    }

    /// Stops within `grace`; the call itself is given the usual limit on top.
    pub(crate) async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        let mut runtime = self.runtime.clone();
        let timeout = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        let request = cri::StopContainerRequest { container_id: id.to_owned(), timeout };
        match bounded("StopContainer", grace + self.limit, runtime.stop_container(request)).await {
            Err(error) if error.is_not_found() => Ok(()),
            result => result.map(drop),
        }
    }

    /// Runs a command and waits; `limit` zero means none but the hour that everything is bound to.
    pub(crate) async fn exec_sync(
        &self,
        id: &str,
        cmd: &[String],
        limit: Duration,
    ) -> Result<cri::ExecSyncResponse> {
        let mut runtime = self.runtime.clone();
        let timeout = i64::try_from(limit.as_secs()).unwrap_or(0);
        let request = cri::ExecSyncRequest { container_id: id.to_owned(), cmd: cmd.to_vec(), timeout };
        let patience = if limit.is_zero() { PULL_LIMIT } else { limit + Duration::from_secs(5) };
        bounded("ExecSync", patience, runtime.exec_sync(request)).await
    }

    pub(crate) async fn container_events(&self) -> Result<tonic::Streaming<cri::ContainerEventResponse>> {
        let mut runtime = self.runtime.clone();
        bounded("GetContainerEvents", self.limit, runtime.get_container_events(cri::GetEventsRequest {}))
            .await
    }

    /// As [`Runtime::stop_pod_sandbox`]; one that is gone counts as stopped.
    pub(crate) async fn stop_sandbox(&self, id: &str) -> Result<()> {
        match self.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() }).await {
            Err(error) if error.is_not_found() => Ok(()),
            result => result.map(drop),
        }
    }

    /// Removes a sandbox with its containers; one that is gone counts as removed.
    pub(crate) async fn remove_sandbox(&self, id: &str) -> Result<()> {
        match self.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() }).await {
            Err(error) if error.is_not_found() => Ok(()),
            result => result.map(drop),
        }
    }

    /// Removes a container; one that is gone counts as removed.
    pub(crate) async fn delete_container(&self, id: &str) -> Result<()> {
        match self.remove_container(cri::RemoveContainerRequest { container_id: id.to_owned() }).await {
            Err(error) if error.is_not_found() => Ok(()),
            result => result.map(drop),
        }
    }
}
