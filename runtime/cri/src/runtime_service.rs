//! CRI's RuntimeService: every method hands over to a verb or reads the model.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use orlop_cri::v1;
use orlop_cri::v1::runtime_service_server::RuntimeService;
use tokio_stream::wrappers::BroadcastStream;
use tonic::{Request, Response, Status};

use crate::config::CgroupDriver;
use crate::error::CriError;
use crate::model::Container;
use crate::pod_metrics;
use crate::runtime::Runtime;
use crate::streaming::Wish;

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Objects of one stream message.
const STREAM_BATCH: usize = 256;

/// The service.
pub(crate) struct RuntimeApi {
    runtime: Arc<Runtime>,
}

impl RuntimeApi {
    /// Over the shared state.
    pub(crate) fn new(runtime: Arc<Runtime>) -> Self {
        Self { runtime }
    }

    async fn timed<T>(
        &self,
        verb: &'static str,
        object: &str,
        work: impl Future<Output = Result<T, CriError>>,
    ) -> Result<T, Status> {
        Ok(self.runtime.metrics.timed(verb, object, work).await?)
    }
}

fn batches<T: Clone + Send + 'static, M: Send + 'static>(
    objects: Vec<T>,
    wrap: fn(Vec<T>) -> M,
) -> Response<Streamed<M>> {
    let messages: Vec<Result<M, Status>> =
        objects.chunks(STREAM_BATCH).map(|batch| Ok(wrap(batch.to_vec()))).collect();
    Response::new(Box::pin(tokio_stream::iter(messages)))
}

fn no_checkpoints<T>(what: &str) -> Result<Response<T>, Status> {
    let why = "this runtime does not checkpoint containers: that needs CRIU, which it does not use";
    Err(Status::unimplemented(format!("{what}: {why}")))
}

fn condition(kind: &str, problem: Option<(&str, String)>) -> v1::RuntimeCondition {
    let (reason, message) = problem.map(|(reason, message)| (reason.to_owned(), message)).unwrap_or_default();
    v1::RuntimeCondition { r#type: kind.to_owned(), status: reason.is_empty(), reason, message }
}

#[tonic::async_trait]
impl RuntimeService for RuntimeApi {
    type StreamPodSandboxesStream = Streamed<v1::StreamPodSandboxesResponse>;
    type StreamContainersStream = Streamed<v1::StreamContainersResponse>;
    type StreamContainerStatsStream = Streamed<v1::StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = Streamed<v1::StreamPodSandboxStatsResponse>;
    type StreamPodSandboxMetricsStream = Streamed<v1::StreamPodSandboxMetricsResponse>;
    type GetContainerEventsStream = Streamed<v1::ContainerEventResponse>;

    async fn version(
        &self,
        _request: Request<v1::VersionRequest>,
    ) -> Result<Response<v1::VersionResponse>, Status> {
        Ok(Response::new(v1::VersionResponse {
            version: "0.1.0".to_owned(),
            runtime_name: "orlop".to_owned(),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
            runtime_api_version: "v1".to_owned(),
        }))
    }

    async fn status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        let network =
            self.runtime.cni.network().err().map(|error| ("NetworkPluginNotReady", error.to_string()));
        let info = if request.into_inner().verbose {
            let config = serde_json::to_string(&self.runtime.config).unwrap_or_default();
            HashMap::from([
                ("config".to_owned(), config),
                ("state".to_owned(), self.runtime.dump().to_string()),
            ])
        } else {
            HashMap::new()
        };
        let features = v1::RuntimeHandlerFeatures {
            recursive_read_only_mounts: true,
            user_namespaces: crate::machine::has_user_namespaces(),
        };
        // The default one has no name.
        let names =
            std::iter::once(String::new()).chain(self.runtime.config.runtime_handlers.keys().cloned());
        Ok(Response::new(v1::StatusResponse {
            status: Some(v1::RuntimeStatus {
                conditions: vec![condition("RuntimeReady", None), condition("NetworkReady", network)],
            }),
            info,
            runtime_handlers: names
                .map(|name| v1::RuntimeHandler { name, features: Some(features) })
                .collect(),
            features: Some(v1::RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: false,
                mount_options: true,
            }),
        }))
    }

    async fn runtime_config(
        &self,
        _request: Request<v1::RuntimeConfigRequest>,
    ) -> Result<Response<v1::RuntimeConfigResponse>, Status> {
        let driver = match self.runtime.config.cgroup_driver {
            CgroupDriver::Cgroupfs => v1::CgroupDriver::Cgroupfs,
            CgroupDriver::Systemd => v1::CgroupDriver::Systemd,
        };
        let linux = v1::LinuxRuntimeConfiguration { cgroup_driver: driver as i32 };
        Ok(Response::new(v1::RuntimeConfigResponse { linux: Some(linux) }))
    }

    async fn update_runtime_config(
        &self,
        _request: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Result<Response<v1::UpdateRuntimeConfigResponse>, Status> {
        // The pod range reaches CNI by its own configuration; containerd ignores this call in the same way.
        Ok(Response::new(v1::UpdateRuntimeConfigResponse {}))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<v1::RunPodSandboxRequest>,
    ) -> Result<Response<v1::RunPodSandboxResponse>, Status> {
        let request = request.into_inner();
        let config =
            request.config.ok_or_else(|| CriError::Invalid("no sandbox configuration".to_owned()))?;
        let metadata = config.metadata.clone().unwrap_or_default();
        let object = format!("{}/{}", metadata.namespace, metadata.name);
        let work = self.runtime.run_pod_sandbox(config, &request.runtime_handler);
        let pod_sandbox_id = self.timed("RunPodSandbox", &object, work).await?;
        Ok(Response::new(v1::RunPodSandboxResponse { pod_sandbox_id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Result<Response<v1::StopPodSandboxResponse>, Status> {
        let id = request.into_inner().pod_sandbox_id;
        self.timed("StopPodSandbox", &id, self.runtime.stop_pod_sandbox(&id)).await?;
        Ok(Response::new(v1::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Result<Response<v1::RemovePodSandboxResponse>, Status> {
        let id = request.into_inner().pod_sandbox_id;
        self.timed("RemovePodSandbox", &id, self.runtime.remove_pod_sandbox(&id)).await?;
        Ok(Response::new(v1::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Result<Response<v1::PodSandboxStatusResponse>, Status> {
        let request = request.into_inner();
        let sandbox = self.runtime.sandbox(&request.pod_sandbox_id)?;
        let containers_statuses =
            self.runtime.model().containers_of(&sandbox.id).map(Container::status).collect();
        let mut info = HashMap::new();
        if request.verbose {
            let detail = serde_json::json!({ "pid": sandbox.shim.map(|shim| shim.pid), "cgroup": sandbox.cgroup_parent() });
            info.insert("info".to_owned(), detail.to_string());
        }
        Ok(Response::new(v1::PodSandboxStatusResponse {
            status: Some(sandbox.status()),
            info,
            containers_statuses,
            timestamp: crate::machine::now(),
        }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Result<Response<v1::ListPodSandboxResponse>, Status> {
        let items = self.runtime.model().list_sandboxes(request.into_inner().filter.as_ref());
        Ok(Response::new(v1::ListPodSandboxResponse { items }))
    }

    async fn stream_pod_sandboxes(
        &self,
        request: Request<v1::StreamPodSandboxesRequest>,
    ) -> Result<Response<Self::StreamPodSandboxesStream>, Status> {
        let items = self.runtime.model().list_sandboxes(request.into_inner().filter.as_ref());
        Ok(batches(items, |pod_sandboxes| v1::StreamPodSandboxesResponse { pod_sandboxes }))
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Result<Response<v1::CreateContainerResponse>, Status> {
        let request = request.into_inner();
        let config =
            request.config.ok_or_else(|| CriError::Invalid("no container configuration".to_owned()))?;
        let object = config.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default();
        let work = self.runtime.create_container(&request.pod_sandbox_id, config);
        let container_id = self.timed("CreateContainer", &object, work).await?;
        Ok(Response::new(v1::CreateContainerResponse { container_id }))
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Result<Response<v1::StartContainerResponse>, Status> {
        let id = request.into_inner().container_id;
        self.timed("StartContainer", &id, self.runtime.start_container(&id)).await?;
        Ok(Response::new(v1::StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        request: Request<v1::StopContainerRequest>,
    ) -> Result<Response<v1::StopContainerResponse>, Status> {
        let request = request.into_inner();
        let (runtime, id) = (self.runtime.clone(), request.container_id.clone());
        // In a task of its own: a kubelet that gives up does not cut the ladder.
        let stop = tokio::spawn(async move { runtime.stop_container(&id, request.timeout).await });
        let work =
            async { stop.await.unwrap_or_else(|error| Err(CriError::failed("failed to stop", error))) };
        self.timed("StopContainer", &request.container_id, work).await?;
        Ok(Response::new(v1::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Result<Response<v1::RemoveContainerResponse>, Status> {
        let id = request.into_inner().container_id;
        self.timed("RemoveContainer", &id, self.runtime.remove_container(&id)).await?;
        Ok(Response::new(v1::RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<v1::ListContainersRequest>,
    ) -> Result<Response<v1::ListContainersResponse>, Status> {
        let containers = self.runtime.model().list_containers(request.into_inner().filter.as_ref());
        Ok(Response::new(v1::ListContainersResponse { containers }))
    }

    async fn stream_containers(
        &self,
        request: Request<v1::StreamContainersRequest>,
    ) -> Result<Response<Self::StreamContainersStream>, Status> {
        let containers = self.runtime.model().list_containers(request.into_inner().filter.as_ref());
        Ok(batches(containers, |containers| v1::StreamContainersResponse { containers }))
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Result<Response<v1::ContainerStatusResponse>, Status> {
        let request = request.into_inner();
        let container = self.runtime.container(&request.container_id)?;
        let mut info = HashMap::new();
        if request.verbose {
            let detail = serde_json::json!({ "sandboxID": container.sandbox_id, "cgroup": container.cgroup });
            info.insert("info".to_owned(), detail.to_string());
        }
        Ok(Response::new(v1::ContainerStatusResponse { status: Some(container.status()), info }))
    }

    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Result<Response<v1::UpdateContainerResourcesResponse>, Status> {
        let request = request.into_inner();
        let work = self.runtime.update_container_resources(&request.container_id, request.linux);
        self.timed("UpdateContainerResources", &request.container_id, work).await?;
        Ok(Response::new(v1::UpdateContainerResourcesResponse {}))
    }

    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> Result<Response<v1::ReopenContainerLogResponse>, Status> {
        let container = self.runtime.running(&request.into_inner().container_id)?;
        let reopen = orlop_shim::protocol::Request::ReopenLog { id: container.id.clone() };
        self.runtime
            .shim(&container.sandbox_id)
            .call(&reopen, crate::runtime::QUESTION_DEADLINE)
            .await
            .map_err(|error| error.to_cri("failed to reopen the log", &container.id))?;
        Ok(Response::new(v1::ReopenContainerLogResponse {}))
    }

    async fn exec_sync(
        &self,
        request: Request<v1::ExecSyncRequest>,
    ) -> Result<Response<v1::ExecSyncResponse>, Status> {
        let request = request.into_inner();
        let work = self.runtime.exec_sync(&request.container_id, request.cmd, request.timeout);
        Ok(Response::new(self.runtime.metrics.counted("ExecSync", &request.container_id, work).await?))
    }

    async fn exec(&self, request: Request<v1::ExecRequest>) -> Result<Response<v1::ExecResponse>, Status> {
        let request = request.into_inner();
        let id = request.container_id.clone();
        let work = async { self.runtime.streams.url(Wish::exec(&self.runtime, request)?).await };
        Ok(Response::new(v1::ExecResponse { url: self.timed("Exec", &id, work).await? }))
    }

    async fn attach(
        &self,
        request: Request<v1::AttachRequest>,
    ) -> Result<Response<v1::AttachResponse>, Status> {
        let request = request.into_inner();
        let id = request.container_id.clone();
        let work = async { self.runtime.streams.url(Wish::attach(&self.runtime, request)?).await };
        Ok(Response::new(v1::AttachResponse { url: self.timed("Attach", &id, work).await? }))
    }

    async fn port_forward(
        &self,
        request: Request<v1::PortForwardRequest>,
    ) -> Result<Response<v1::PortForwardResponse>, Status> {
        let request = request.into_inner();
        let id = request.pod_sandbox_id.clone();
        let work = async { self.runtime.streams.url(Wish::port_forward(&self.runtime, request)?).await };
        Ok(Response::new(v1::PortForwardResponse { url: self.timed("PortForward", &id, work).await? }))
    }

    async fn container_stats(
        &self,
        request: Request<v1::ContainerStatsRequest>,
    ) -> Result<Response<v1::ContainerStatsResponse>, Status> {
        let stats = self.runtime.container_stats(&request.into_inner().container_id).await?;
        Ok(Response::new(v1::ContainerStatsResponse { stats: Some(stats) }))
    }

    async fn list_container_stats(
        &self,
        request: Request<v1::ListContainerStatsRequest>,
    ) -> Result<Response<v1::ListContainerStatsResponse>, Status> {
        let stats = self.runtime.list_container_stats(request.into_inner().filter).await;
        Ok(Response::new(v1::ListContainerStatsResponse { stats }))
    }

    async fn stream_container_stats(
        &self,
        request: Request<v1::StreamContainerStatsRequest>,
    ) -> Result<Response<Self::StreamContainerStatsStream>, Status> {
        let stats = self.runtime.list_container_stats(request.into_inner().filter).await;
        Ok(batches(stats, |container_stats| v1::StreamContainerStatsResponse { container_stats }))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<v1::PodSandboxStatsRequest>,
    ) -> Result<Response<v1::PodSandboxStatsResponse>, Status> {
        let stats = self.runtime.pod_sandbox_stats(&request.into_inner().pod_sandbox_id).await?;
        Ok(Response::new(v1::PodSandboxStatsResponse { stats: Some(stats) }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Result<Response<v1::ListPodSandboxStatsResponse>, Status> {
        let stats = self.runtime.list_pod_sandbox_stats(request.into_inner().filter).await;
        Ok(Response::new(v1::ListPodSandboxStatsResponse { stats }))
    }

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxStatsStream>, Status> {
        let stats = self.runtime.list_pod_sandbox_stats(request.into_inner().filter).await;
        Ok(batches(stats, |pod_sandbox_stats| v1::StreamPodSandboxStatsResponse { pod_sandbox_stats }))
    }

    async fn get_container_events(
        &self,
        _request: Request<v1::GetEventsRequest>,
    ) -> Result<Response<Self::GetContainerEventsStream>, Status> {
        let drain = self.runtime.drain.clone();
        let events = BroadcastStream::new(self.runtime.subscribe()).map(|event| match event {
            Ok(event) => Ok(v1::ContainerEventResponse::clone(&event)),
            Err(lagged) => Err(Status::out_of_range(format!("events were missed ({lagged}): list anew"))),
        });
        // An open stream would keep the server from draining.
        Ok(Response::new(Box::pin(events.take_until(async move { drain.wait().await }))))
    }

    async fn checkpoint_container(
        &self,
        _request: Request<v1::CheckpointContainerRequest>,
    ) -> Result<Response<v1::CheckpointContainerResponse>, Status> {
        no_checkpoints("CheckpointContainer")
    }

    async fn checkpoint_pod(
        &self,
        _request: Request<v1::CheckpointPodRequest>,
    ) -> Result<Response<v1::CheckpointPodResponse>, Status> {
        no_checkpoints("CheckpointPod")
    }

    async fn restore_pod(
        &self,
        _request: Request<v1::RestorePodRequest>,
    ) -> Result<Response<v1::RestorePodResponse>, Status> {
        no_checkpoints("RestorePod")
    }

    async fn list_metric_descriptors(
        &self,
        _request: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Result<Response<v1::ListMetricDescriptorsResponse>, Status> {
        Ok(Response::new(v1::ListMetricDescriptorsResponse { descriptors: pod_metrics::descriptors() }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _request: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Result<Response<v1::ListPodSandboxMetricsResponse>, Status> {
        let pod_metrics = self.runtime.list_pod_metrics().await;
        Ok(Response::new(v1::ListPodSandboxMetricsResponse { pod_metrics }))
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _request: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxMetricsStream>, Status> {
        let metrics = self.runtime.list_pod_metrics().await;
        Ok(batches(metrics, |pod_sandbox_metrics| v1::StreamPodSandboxMetricsResponse {
            pod_sandbox_metrics,
        }))
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Result<Response<v1::UpdatePodSandboxResourcesResponse>, Status> {
        let request = request.into_inner();
        let id = request.pod_sandbox_id.clone();
        let work = async { self.runtime.update_pod_sandbox_resources(request) };
        self.timed("UpdatePodSandboxResources", &id, work).await?;
        Ok(Response::new(v1::UpdatePodSandboxResourcesResponse {}))
    }
}
