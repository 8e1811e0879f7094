//! A runtime that keeps real state but runs nothing: sandboxes, containers, images, events.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use orlop_cri::v1 as cri;
use orlop_cri::v1::image_service_server::{ImageService, ImageServiceServer};
use orlop_cri::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use tokio::sync::broadcast;
use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status};

type Answer<T> = Result<Response<T>, Status>;
type Boxed<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

#[derive(Clone, Debug)]
pub(crate) struct Container {
    pub(crate) sandbox: String,
    pub(crate) config: cri::ContainerConfig,
    pub(crate) status: cri::ContainerStatus,
    pub(crate) log: String,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) sandboxes: BTreeMap<String, (cri::PodSandboxConfig, bool, i64)>,
    pub(crate) containers: BTreeMap<String, Container>,
    pub(crate) images: BTreeSet<String>,
    pub(crate) pulls: u32,
    pub(crate) network_ready: bool,
    /// Commands that fail when run.
    pub(crate) failing: BTreeSet<String>,
    counter: u32,
}

#[derive(Clone)]
pub(crate) struct FakeCri {
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<cri::ContainerEventResponse>,
}

fn now() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap()
}

impl FakeCri {
    pub(crate) fn new() -> Self {
        let (events, _) = broadcast::channel(4096);
        let state = State { network_ready: true, ..State::default() };
        Self { state: Arc::new(Mutex::new(state)), events }
    }

    pub(crate) fn with<R>(&self, read: impl FnOnce(&mut State) -> R) -> R {
        read(&mut self.state.lock().unwrap())
    }

    /// Serves until the runtime that it is called in ends.
    pub(crate) fn serve(&self, socket: &Path) {
        let _ = std::fs::remove_file(socket);
        let listener = tokio::net::UnixListener::bind(socket).unwrap();
        let router = tonic::transport::Server::builder()
            .add_service(RuntimeServiceServer::new(self.clone()))
            .add_service(ImageServiceServer::new(self.clone()));
        tokio::spawn(router.serve_with_incoming(tokio_stream::wrappers::UnixListenerStream::new(listener)));
    }

    fn announce(&self, sandbox: &str) {
        let event = self.with(|state| {
            let (config, ..) = state.sandboxes.get(sandbox)?;
            let status = cri::PodSandboxStatus {
                id: sandbox.into(),
                metadata: config.metadata.clone(),
                ..Default::default()
            };
            Some(cri::ContainerEventResponse { pod_sandbox_status: Some(status), ..Default::default() })
        });
        if let Some(event) = event {
            let _ = self.events.send(event);
        }
    }

    /// Ends a container's process.
    pub(crate) fn end(&self, id: &str, code: i32) {
        let sandbox = self.with(|state| {
            let container = state.containers.get_mut(id).unwrap();
            container.status.state = cri::ContainerState::ContainerExited as i32;
            container.status.exit_code = code;
            container.status.finished_at = now();
            container.sandbox.clone()
        });
        self.announce(&sandbox);
    }

    /// Ids of running containers of a name.
    pub(crate) fn running(&self, name: &str) -> Vec<String> {
        self.with(|state| {
            let all = state.containers.iter();
            all.filter(|(_, c)| {
                c.status.state == cri::ContainerState::ContainerRunning as i32
                    && c.config.metadata.as_ref().unwrap().name == name
            })
            .map(|(id, _)| id.clone())
            .collect()
        })
    }
}

fn selected(labels: &HashMap<String, String>, selector: &HashMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Methods that nobody should call, in the shape that `async_trait` gives them.
macro_rules! absent {
    ($($name:ident($request:ident) -> $response:ident;)*) => {
        $(fn $name<'life0, 'async_trait>(
            &'life0 self,
            _: Request<cri::$request>,
        ) -> Pin<Box<dyn Future<Output = Answer<cri::$response>> + Send + 'async_trait>>
        where
            'life0: 'async_trait,
            Self: 'async_trait,
        {
            Box::pin(async { Err(Status::unimplemented(stringify!($name))) })
        })*
    };
}

macro_rules! absent_streams {
    ($($name:ident($request:ident) -> $stream:ident of $response:ident;)*) => {
        $(type $stream = Boxed<cri::$response>;
        fn $name<'life0, 'async_trait>(
            &'life0 self,
            _: Request<cri::$request>,
        ) -> Pin<Box<dyn Future<Output = Answer<Self::$stream>> + Send + 'async_trait>>
        where
            'life0: 'async_trait,
            Self: 'async_trait,
        {
            Box::pin(async { Err(Status::unimplemented(stringify!($name))) })
        })*
    };
}

#[tonic::async_trait]
impl RuntimeService for FakeCri {
    async fn version(&self, _: Request<cri::VersionRequest>) -> Answer<cri::VersionResponse> {
        Ok(Response::new(cri::VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "fake".into(),
            runtime_version: "1".into(),
            runtime_api_version: "v1".into(),
        }))
    }

    async fn status(&self, _: Request<cri::StatusRequest>) -> Answer<cri::StatusResponse> {
        let condition =
            |kind: &str, status| cri::RuntimeCondition { r#type: kind.into(), status, ..Default::default() };
        let network = self.with(|state| state.network_ready);
        let conditions = vec![condition("RuntimeReady", true), condition("NetworkReady", network)];
        Ok(Response::new(cri::StatusResponse {
            status: Some(cri::RuntimeStatus { conditions }),
            ..Default::default()
        }))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<cri::RunPodSandboxRequest>,
    ) -> Answer<cri::RunPodSandboxResponse> {
        let config = request.into_inner().config.unwrap();
        let id = self.with(|state| {
            state.counter += 1;
            let id = format!("sandbox{}", state.counter);
            state.sandboxes.insert(id.clone(), (config, true, now()));
            id
        });
        self.announce(&id);
        Ok(Response::new(cri::RunPodSandboxResponse { pod_sandbox_id: id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<cri::StopPodSandboxRequest>,
    ) -> Answer<cri::StopPodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        self.with(|state| state.sandboxes.get_mut(&id).map(|sandbox| sandbox.1 = false));
        self.announce(&id);
        Ok(Response::new(cri::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<cri::RemovePodSandboxRequest>,
    ) -> Answer<cri::RemovePodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        self.with(|state| {
            state.sandboxes.remove(&id);
            state.containers.retain(|_, container| container.sandbox != id);
        });
        Ok(Response::new(cri::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<cri::PodSandboxStatusRequest>,
    ) -> Answer<cri::PodSandboxStatusResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let number: u32 = id.trim_start_matches("sandbox").parse().unwrap();
        let ip = format!("10.244.{}.{}", number / 250, number % 250 + 2);
        let network = cri::PodSandboxNetworkStatus { ip, ..Default::default() };
        let status = cri::PodSandboxStatus { id, network: Some(network), ..Default::default() };
        Ok(Response::new(cri::PodSandboxStatusResponse { status: Some(status), ..Default::default() }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<cri::ListPodSandboxRequest>,
    ) -> Answer<cri::ListPodSandboxResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let items = self.with(|state| {
            let all = state
                .sandboxes
                .iter()
                .filter(|(_, (config, ..))| selected(&config.labels, &filter.label_selector));
            all.map(|(id, (config, ready, created_at))| cri::PodSandbox {
                id: id.clone(),
                metadata: config.metadata.clone(),
                state: if *ready {
                    cri::PodSandboxState::SandboxReady
                } else {
                    cri::PodSandboxState::SandboxNotready
                } as i32,
                created_at: *created_at,
                labels: config.labels.clone(),
                ..Default::default()
            })
            .collect()
        });
        Ok(Response::new(cri::ListPodSandboxResponse { items }))
    }

    async fn create_container(
        &self,
        request: Request<cri::CreateContainerRequest>,
    ) -> Answer<cri::CreateContainerResponse> {
        let request = request.into_inner();
        let config = request.config.unwrap();
        let log = format!("{}/{}", request.sandbox_config.unwrap().log_directory, config.log_path);
        let id = self.with(|state| {
            state.counter += 1;
            let id = format!("container{}", state.counter);
            let image = config.image.clone().unwrap();
            let status = cri::ContainerStatus {
                id: id.clone(),
                metadata: config.metadata.clone(),
                state: cri::ContainerState::ContainerCreated as i32,
                created_at: now(),
                image_ref: format!("sha256:{}", image.image),
                image: Some(image),
                labels: config.labels.clone(),
                annotations: config.annotations.clone(),
                ..Default::default()
            };
            state
                .containers
                .insert(id.clone(), Container { sandbox: request.pod_sandbox_id, config, status, log });
            id
        });
        Ok(Response::new(cri::CreateContainerResponse { container_id: id }))
    }

    async fn start_container(
        &self,
        request: Request<cri::StartContainerRequest>,
    ) -> Answer<cri::StartContainerResponse> {
        let id = request.into_inner().container_id;
        let sandbox = self.with(|state| {
            let container = state.containers.get_mut(&id).unwrap();
            container.status.state = cri::ContainerState::ContainerRunning as i32;
            container.status.started_at = now();
            std::fs::create_dir_all(Path::new(&container.log).parent().unwrap()).unwrap();
            std::fs::write(&container.log, "2026-01-01T00:00:00.000000000Z stdout F hello\n").unwrap();
            container.sandbox.clone()
        });
        self.announce(&sandbox);
        Ok(Response::new(cri::StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        request: Request<cri::StopContainerRequest>,
    ) -> Answer<cri::StopContainerResponse> {
        self.end(&request.into_inner().container_id, 143);
        Ok(Response::new(cri::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<cri::RemoveContainerRequest>,
    ) -> Answer<cri::RemoveContainerResponse> {
        let id = request.into_inner().container_id;
        self.with(|state| state.containers.remove(&id));
        Ok(Response::new(cri::RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<cri::ListContainersRequest>,
    ) -> Answer<cri::ListContainersResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let containers = self.with(|state| {
            let all =
                state.containers.iter().filter(|(_, c)| selected(&c.config.labels, &filter.label_selector));
            all.map(|(id, container)| cri::Container {
                id: id.clone(),
                pod_sandbox_id: container.sandbox.clone(),
                metadata: container.config.metadata.clone(),
                state: container.status.state,
                created_at: container.status.created_at,
                labels: container.config.labels.clone(),
                annotations: container.config.annotations.clone(),
                ..Default::default()
            })
            .collect()
        });
        Ok(Response::new(cri::ListContainersResponse { containers }))
    }

    async fn container_status(
        &self,
        request: Request<cri::ContainerStatusRequest>,
    ) -> Answer<cri::ContainerStatusResponse> {
        let id = request.into_inner().container_id;
        let status = self.with(|state| state.containers.get(&id).map(|container| container.status.clone()));
        let status = status.ok_or_else(|| Status::not_found(id))?;
        Ok(Response::new(cri::ContainerStatusResponse { status: Some(status), ..Default::default() }))
    }

    async fn exec_sync(&self, request: Request<cri::ExecSyncRequest>) -> Answer<cri::ExecSyncResponse> {
        let command = request.into_inner().cmd.join(" ");
        let exit_code = self.with(|state| i32::from(state.failing.contains(&command)));
        Ok(Response::new(cri::ExecSyncResponse { exit_code, ..Default::default() }))
    }

    type GetContainerEventsStream = Boxed<cri::ContainerEventResponse>;
    async fn get_container_events(
        &self,
        _: Request<cri::GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        let stream = tokio_stream::wrappers::BroadcastStream::new(self.events.subscribe());
        Ok(Response::new(Box::pin(stream.filter_map(|event| event.ok().map(Ok)))))
    }

    absent! {
        update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
        reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
        exec(ExecRequest) -> ExecResponse;
        attach(AttachRequest) -> AttachResponse;
        port_forward(PortForwardRequest) -> PortForwardResponse;
        container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
        list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
        pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
        list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
        update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse;
        checkpoint_container(CheckpointContainerRequest) -> CheckpointContainerResponse;
        checkpoint_pod(CheckpointPodRequest) -> CheckpointPodResponse;
        restore_pod(RestorePodRequest) -> RestorePodResponse;
        list_metric_descriptors(ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse;
        list_pod_sandbox_metrics(ListPodSandboxMetricsRequest) -> ListPodSandboxMetricsResponse;
        runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse;
        update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest) -> UpdatePodSandboxResourcesResponse;
    }

    absent_streams! {
        stream_pod_sandboxes(StreamPodSandboxesRequest) -> StreamPodSandboxesStream of StreamPodSandboxesResponse;
        stream_containers(StreamContainersRequest) -> StreamContainersStream of StreamContainersResponse;
        stream_container_stats(StreamContainerStatsRequest) -> StreamContainerStatsStream of StreamContainerStatsResponse;
        stream_pod_sandbox_stats(StreamPodSandboxStatsRequest) -> StreamPodSandboxStatsStream of StreamPodSandboxStatsResponse;
        stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest) -> StreamPodSandboxMetricsStream of StreamPodSandboxMetricsResponse;
    }
}

#[tonic::async_trait]
impl ImageService for FakeCri {
    async fn list_images(&self, _: Request<cri::ListImagesRequest>) -> Answer<cri::ListImagesResponse> {
        Ok(Response::new(cri::ListImagesResponse::default()))
    }

    async fn image_status(
        &self,
        request: Request<cri::ImageStatusRequest>,
    ) -> Answer<cri::ImageStatusResponse> {
        let name = request.into_inner().image.unwrap().image;
        let image = self.with(|state| state.images.contains(&name)).then(|| cri::Image {
            id: name,
            size: 5,
            ..Default::default()
        });
        Ok(Response::new(cri::ImageStatusResponse { image, ..Default::default() }))
    }

    async fn pull_image(&self, request: Request<cri::PullImageRequest>) -> Answer<cri::PullImageResponse> {
        let name = request.into_inner().image.unwrap().image;
        self.with(|state| state.pulls += 1);
        if name.starts_with("absent") {
            return Err(Status::not_found(format!("{name}: not found")));
        }
        self.with(|state| state.images.insert(name.clone()));
        Ok(Response::new(cri::PullImageResponse { image_ref: name }))
    }

    absent! {
        remove_image(RemoveImageRequest) -> RemoveImageResponse;
        image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse;
    }

    absent_streams! {
        stream_images(StreamImagesRequest) -> StreamImagesStream of StreamImagesResponse;
    }
}
