//! Starting: the sandbox, then containers.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use orlop_cri::v1 as cri;

use super::images::Presence;
use super::model::{self, Role, Step};
use super::operations;
use super::worker::Worker;
use crate::container::config::{self, ContainerFacts, SandboxFacts};
use crate::container::env::{self, Downward};
use crate::container::{dns, security};
use crate::events::Kind;
use crate::volume::blocking;

/// How long a first container waits for the list of Services.
const SERVICES_LIMIT: Duration = Duration::from_secs(5);

impl Worker {
    /// Volumes, cgroup, sandbox. `Err` when it must be tried later.
    pub(crate) async fn create_sandbox(&mut self, pod: &Arc<core::Pod>, attempt: u32) -> Result<bool, ()> {
        let (network_ready, problem) = {
            let health = self.kubelet.health.borrow();
            (health.network_ready, health.message.clone())
        };
        if !network_ready && !model::host_network(pod) {
            let message = format!("network is not ready: {problem}");
            self.kubelet.events.pod(pod, None, Kind::Warning, "NetworkNotReady", message);
            return Err(());
        }
        self.ensure_volumes(pod).await?;
        self.ensure_cgroup(pod).await?;
        let config = self.sandbox_config(pod, attempt)?;
        if let Err(error) = std::fs::create_dir_all(self.log_dir()) {
            tracing::warn!(uid = self.uid, %error, "could not make the log directory");
            return Err(());
        }
        let handler = self.runtime_handler(pod).await?;
        let request = cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler };
        match self.kubelet.runtime.run_pod_sandbox(request).await {
            Ok(_) => {
                self.kubelet.metrics.started_sandboxes.inc();
                self.sandbox_config = Some(config);
                Ok(true)
            }
            Err(error) => {
                self.kubelet.metrics.failed_sandboxes.inc();
                let message = format!("Failed to create pod sandbox: {error}");
                self.kubelet.events.pod(pod, None, Kind::Warning, "FailedCreatePodSandBox", message);
                Err(())
            }
        }
    }

    async fn ensure_cgroup(&mut self, pod: &Arc<core::Pod>) -> Result<(), ()> {
        if self.cgroup_ready {
            return Ok(());
        }
        let cgroups = self.kubelet.cgroups.clone();
        let made = pod.clone();
        let result = blocking(move || cgroups.create_pod(&made).map_err(|error| error.to_string())).await;
        match result {
            Ok(()) => {
                self.cgroup_ready = true;
                Ok(())
            }
            Err(error) => {
                let message = format!("unable to ensure pod container exists: {error}");
                self.kubelet.events.pod(pod, None, Kind::Warning, "FailedCreatePodContainer", message);
                Err(())
            }
        }
    }

    fn sandbox_config(&self, pod: &core::Pod, attempt: u32) -> Result<cri::PodSandboxConfig, ()> {
        let configuration = &self.kubelet.config;
        let node = std::fs::read_to_string(&configuration.resolv_conf)
            .map(|text| dns::parse(&text))
            .unwrap_or_default();
        let facts = SandboxFacts {
            attempt,
            hostname: dns::kernel_hostname(
                pod,
                &configuration.cluster_domain,
                &self.kubelet.machine.hostname,
            ),
            log_directory: self.log_dir().to_string_lossy().into_owned(),
            resolver: dns::resolver(pod, &node, &configuration.cluster_dns, &configuration.cluster_domain),
            cgroup_parent: self.kubelet.cgroups.pod_parent(pod),
            source: "api",
        };
        config::sandbox(pod, &facts).map_err(|error| {
            let message = format!("Failed to create pod sandbox: {error}");
            self.kubelet.events.pod(pod, None, Kind::Warning, "FailedCreatePodSandBox", message);
        })
    }

    async fn runtime_handler(&self, pod: &core::Pod) -> Result<String, ()> {
        let Some(class) = model::spec(pod).runtime_class_name.as_ref().filter(|name| !name.is_empty()) else {
            return Ok(String::new());
        };
        let classes = kube::Api::<k8s_openapi::api::node::v1::RuntimeClass>::all(self.kubelet.client.clone());
        match classes.get(class).await {
            Ok(class) => Ok(class.handler),
            Err(error) => {
                let cause = crate::objects::words(&error);
                let message =
                    format!("Failed to create pod sandbox: failed to get RuntimeClass {class:?}: {cause}");
                self.kubelet.events.pod(pod, None, Kind::Warning, "FailedCreatePodSandBox", message);
                Err(())
            }
        }
    }

    /// Image, configuration, create, start, hook. `Ok(true)` when a container was started.
    pub(crate) async fn start_container(
        &mut self,
        pod: &Arc<core::Pod>,
        name: &str,
        attempt: u32,
        crashed: bool,
    ) -> Result<bool, ()> {
        let Some((role, spec)) = model::container(pod, name) else {
            return Ok(false);
        };
        let spec = spec.into_owned();
        // After a restart of the kubelet, volumes may have to be made again (a tmpfs after a reboot).
        self.ensure_volumes(pod).await?;
        if attempt > 0 {
            self.renew_volumes(pod).await;
        }
        let (image_ref, image) = match self.ensure_image(pod, &spec).await {
            Presence::Here(image_ref, image) => (image_ref, image),
            Presence::Coming | Presence::Failed => return Ok(false),
        };
        if crashed {
            let step = Step::after(self.memory.crashes.get(name).copied(), Timestamp::now());
            self.memory.crashes.insert(name.to_owned(), step);
        }
        let config = match self.container_config(pod, &spec, role, attempt, &image_ref, &image).await {
            Ok(config) => config,
            Err(problem) => {
                self.fail_start(pod, name, "CreateContainerConfigError", problem);
                return Ok(false);
            }
        };
        self.create_and_start(pod, &spec, config).await
    }

    async fn create_and_start(
        &mut self,
        pod: &Arc<core::Pod>,
        spec: &core::Container,
        config: cri::ContainerConfig,
    ) -> Result<bool, ()> {
        let name = &spec.name;
        let Some(sandbox) = self.observed.ready_sandbox() else {
            return Err(());
        };
        let sandbox_id = sandbox.id.clone();
        if self.sandbox_config.is_none() {
            self.sandbox_config = Some(self.sandbox_config(pod, sandbox.attempt)?);
        }
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox_id,
            config: Some(config),
            sandbox_config: self.sandbox_config.clone(),
        };
        let id = match self.kubelet.runtime.create_container(request).await {
            Ok(answer) => answer.container_id,
            Err(error) => {
                self.fail_start(pod, name, "CreateContainerError", error.words);
                return Ok(false);
            }
        };
        self.kubelet.events.container(pod, name, Kind::Normal, "Created", "Container created".to_owned());
        let start = cri::StartContainerRequest { container_id: id.clone() };
        if let Err(error) = self.kubelet.runtime.start_container(start).await {
            self.fail_start(pod, name, "RunContainerError", error.words);
            self.kubelet.metrics.failed_containers.inc();
            return Ok(true);
        }
        self.kubelet.events.container(pod, name, Kind::Normal, "Started", "Container started".to_owned());
        self.kubelet.metrics.started_containers.inc();
        self.memory.failures.remove(name);
        if spec.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.post_start.is_some()) {
            self.memory.hooks.insert(id.clone());
            let hook =
                operations::post_start(self.kubelet.clone(), pod.clone(), id, name.clone(), self.address());
            self.operations.spawn(hook);
        }
        Ok(true)
    }

    async fn container_config(
        &mut self,
        pod: &Arc<core::Pod>,
        spec: &core::Container,
        role: Role,
        attempt: u32,
        image_ref: &str,
        image: &cri::Image,
    ) -> Result<cri::ContainerConfig, String> {
        let env = self.environment(pod, spec).await?;
        let mut mounts =
            self.kubelet.volumes.mounts(pod, spec, &env).await.map_err(|error| error.to_string())?;
        mounts.extend(self.own_mounts(pod, spec, attempt)?);
        let target_id = if role == Role::Ephemeral { self.ephemeral_target(pod, &spec.name)? } else { None };
        let facts = ContainerFacts {
            attempt,
            image_ref,
            image: Some(image),
            env,
            mounts,
            memory_capacity_bytes: self.kubelet.machine.memory_bytes,
            unified: self.kubelet.cgroups.is_unified(),
            target_id,
        };
        config::container(pod, spec, facts).map_err(|error: security::SecurityError| error.to_string())
    }

    fn ephemeral_target(&self, pod: &core::Pod, name: &str) -> Result<Option<String>, String> {
        let list = model::spec(pod).ephemeral_containers.iter().flatten();
        let target = list
            .filter(|container| container.name == name)
            .find_map(|container| container.target_container_name.clone());
        let Some(target) = target.filter(|target| !target.is_empty()) else {
            return Ok(None);
        };
        let found = self.observed.alive().find(|container| container.name == target);
        found
            .map(|container| Some(container.id.clone()))
            .ok_or_else(|| format!("target container {target:?} is not running"))
    }

    async fn environment(
        &self,
        pod: &core::Pod,
        spec: &core::Container,
    ) -> Result<Vec<(String, String)>, String> {
        let services = &self.kubelet.services;
        if !services.is_synced() && tokio::time::timeout(SERVICES_LIMIT, services.synced()).await.is_err() {
            return Err("services have not yet been read at least once, cannot construct envvars".to_owned());
        }
        let namespace = model::namespace(pod);
        let links = model::spec(pod).enable_service_links != Some(false);
        let visible = crate::services::visible(services, namespace, links);
        let mut objects = env::Objects::default();
        let (maps, secrets) = env::references(spec);
        for name in maps.keys() {
            if let Some(map) = self
                .kubelet
                .objects
                .config_map(namespace, name)
                .await
                .map_err(|error| crate::objects::words(&error))?
            {
                objects.config_maps.insert(name.clone(), map);
            }
        }
        for name in secrets.keys() {
            if let Some(secret) = self
                .kubelet
                .objects
                .secret(namespace, name)
                .await
                .map_err(|error| crate::objects::words(&error))?
            {
                objects.secrets.insert(name.clone(), secret);
            }
        }
        let pod_ips = self.pod_ips();
        let downward = Downward {
            pod,
            pod_ips: &pod_ips,
            host_ips: &self.kubelet.host_ips,
            allocatable: &self.kubelet.allocatable,
        };
        env::environment(spec, &env::service_variables(&visible), &objects, &downward)
            .map_err(|error| error.to_string())
    }

    /// The hosts file and the termination message file.
    fn own_mounts(
        &self,
        pod: &core::Pod,
        spec: &core::Container,
        attempt: u32,
    ) -> Result<Vec<cri::Mount>, String> {
        let places = self.places();
        let taken: BTreeMap<&str, ()> =
            spec.volume_mounts.iter().flatten().map(|mount| (mount.mount_path.as_str(), ())).collect();
        let mut mounts = Vec::new();
        if !taken.contains_key("/etc/hosts") {
            let path = places.pod_dir.join("etc-hosts");
            self.write_hosts(pod, &path)
                .map_err(|error| format!("failed to write {}: {error}", path.display()))?;
            mounts.push(file_mount("/etc/hosts", &path));
        }
        let message_path = spec
            .termination_message_path
            .as_deref()
            .filter(|path| !path.is_empty())
            .unwrap_or("/dev/termination-log");
        let path = places.message_file(&spec.name, attempt);
        make_message_file(&path).map_err(|error| format!("failed to make {}: {error}", path.display()))?;
        mounts.push(file_mount(message_path, &path));
        Ok(mounts)
    }

    fn write_hosts(&self, pod: &core::Pod, path: &Path) -> std::io::Result<()> {
        let domain = &self.kubelet.config.cluster_domain;
        let (hostname, pod_domain) = dns::hostname(pod, domain, &self.kubelet.machine.hostname);
        let host_file =
            model::host_network(pod).then(|| std::fs::read_to_string("/etc/hosts").unwrap_or_default());
        let text = dns::hosts_file(pod, &self.pod_ips(), &hostname, &pod_domain, host_file.as_deref());
        if std::fs::read_to_string(path).is_ok_and(|known| known == text) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        // Written in place: running containers have this very file mounted.
        std::fs::write(path, text)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
    }
}

fn file_mount(container_path: &str, host_path: &Path) -> cri::Mount {
    cri::Mount {
        container_path: container_path.to_owned(),
        host_path: host_path.to_string_lossy().into_owned(),
        ..Default::default()
    }
}

fn make_message_file(path: &Path) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::OpenOptions::new().create(true).append(true).open(path)?;
    // Containers of any user write it.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))
}
