//! CreateContainer: root file system, specification, record, shim.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use orlop_cri::v1;
use orlop_images::{ImageRecord, Rootfs};
use orlop_shim::protocol::{self, Phase, Request, Response, StagedMount};

use super::wishes;
use crate::error::CriError;
use crate::files::{self, SandboxDir};
use crate::model::{Container, RECORD_VERSION, Sandbox, pod_user_namespace};
use crate::runtime::Runtime;
use crate::spec::mounts::PodFiles;
use crate::spec::plan;
use crate::volumes::{self, Owner, Volumes};
use crate::{apparmor, cdi, convert};
use crate::{machine, users};

/// Mounts, namespaces and cgroups of a loaded machine.
const CREATE_DEADLINE: Duration = Duration::from_secs(60);
/// As docker's; log collectors know it.
const CONTAINER_ID_LENGTH: usize = 64;

/// What is on disk for the shim.
struct Prepared {
    container: Container,
    rootfs: Rootfs,
    mounts: Vec<StagedMount>,
}

impl Runtime {
    /// The verb. A retry with the same name and attempt joins, or gets the container that is already there.
    pub(crate) async fn create_container(
        self: &Arc<Self>,
        sandbox_id: &str,
        config: v1::ContainerConfig,
    ) -> Result<String, CriError> {
        let sandbox = self.sandbox(sandbox_id)?;
        let Some(metadata) = config.metadata.clone().filter(|metadata| !metadata.name.is_empty()) else {
            return Err(CriError::Invalid("the container has no name".to_owned()));
        };
        wishes::check_container(&config)?;
        wishes::check_privilege(&sandbox.config, &config)?;
        let key = (sandbox.id.clone(), metadata.name.clone(), metadata.attempt);
        let runtime = self.clone();
        self.creations
            .join(key, || async move { runtime.create_named(sandbox, metadata, config).await })
            .await
    }

    async fn create_named(
        self: Arc<Self>,
        sandbox: Sandbox,
        metadata: v1::ContainerMetadata,
        config: v1::ContainerConfig,
    ) -> Result<String, CriError> {
        if !sandbox.is_ready() {
            return Err(CriError::WrongState(format!("sandbox {} is not ready", sandbox.id)));
        }
        let existing = {
            let model = self.model();
            model
                .container_named(&sandbox.id, &metadata)
                .map(|container| (container.id.clone(), container.phase))
        };
        match existing {
            Some((id, Phase::Created)) => return Ok(id),
            Some((id, Phase::Running | Phase::Exited)) => {
                let text = format!(
                    "name {} attempt {} is reserved by container {id}",
                    metadata.name, metadata.attempt
                );
                return Err(CriError::AlreadyExists(text));
            }
            None => {}
        }
        let id = machine::random_id(CONTAINER_ID_LENGTH);
        let runtime = self.clone();
        let (of_task, sandbox_of_task) = (id.clone(), sandbox.clone());
        let prepared =
            tokio::task::spawn_blocking(move || runtime.prepare(&of_task, &sandbox_of_task, config)).await;
        let prepared =
            prepared.unwrap_or_else(|error| Err(CriError::failed("failed to prepare the container", error)));
        let made = match prepared {
            Ok(prepared) => self.make_container(&sandbox, prepared).await,
            Err(error) => Err(error),
        };
        if let Err(error) = made {
            self.discard_container(&sandbox.id, &id).await;
            return Err(error);
        }
        self.announce_container(&id, v1::ContainerEventType::ContainerCreatedEvent);
        Ok(id)
    }

    /// Everything on disk that the shim needs. Blocking.
    fn prepare(
        &self,
        id: &str,
        sandbox: &Sandbox,
        mut config: v1::ContainerConfig,
    ) -> Result<Prepared, CriError> {
        let wanted = config.image.as_ref().map(|image| image.image.clone()).unwrap_or_default();
        let image = self
            .images
            .find(&wanted)
            .map_err(|error| convert::image_error(&wanted, &error))?
            .ok_or_else(|| CriError::NotFound { kind: "image", id: wanted.clone() })?;
        let directory = self.directory(&sandbox.id);
        let bundle = directory.bundle(id);
        let keep = |error| CriError::failed(format!("failed to write the bundle of container {id}"), error);
        files::make_private_dir(&bundle).map_err(keep)?;
        let rootfs = self
            .images
            .prepare_rootfs(id, &image.id)
            .map_err(|error| convert::image_error(&wanted, &error))?;
        let user = pod_user_namespace(&sandbox.config);
        let shim_root = sandbox.shim.map(|shim| PathBuf::from(format!("/proc/{}/root", shim.pid)));
        let owner = Owner { id, bundle: &bundle, images: &self.images, user, shim_root };
        let volumes = volumes::resolve(&mut config.mounts, &owner)?;
        let (container, spec) = self.plan(id, sandbox, config, &image, &rootfs.lower, &volumes)?;
        files::write_json(&bundle.join("config.json"), &spec).map_err(keep)?;
        files::write_json(&directory.container_record(id), &container).map_err(keep)?;
        if let Some(parent) =
            PathBuf::from(&container.log_path).parent().filter(|_| !container.log_path.is_empty())
        {
            std::fs::create_dir_all(parent)
                .map_err(|error| CriError::failed(format!("failed to create {}", parent.display()), error))?;
        }
        Ok(Prepared { container, rootfs, mounts: volumes.staged })
    }

    fn plan(
        &self,
        id: &str,
        sandbox: &Sandbox,
        config: v1::ContainerConfig,
        image: &ImageRecord,
        layers: &[PathBuf],
        volumes: &Volumes,
    ) -> Result<(Container, oci_spec::runtime::Spec), CriError> {
        let context = plan::security_context(&config);
        let resolved = users::resolve(&context, &image.config, layers)?;
        let directory = self.directory(&sandbox.id);
        let handler = self.config.runtime_handlers.get(&sandbox.runtime_handler).cloned().unwrap_or_default();
        let group = sandbox.container_group(id);
        let mut spec = plan::plan_spec(&plan::Input {
            config: &config,
            sandbox,
            image: &image.config,
            user: &resolved.user,
            home: &resolved.home,
            hostname: read_hostname(&directory).trim(),
            mounts: &volumes.mounts,
            files: &pod_files(&directory),
            devices: &machine::resolve_devices(
                &config.devices,
                context.privileged && !handler.privileged_without_host_devices,
            )?,
            apparmor: apparmor::profile(&context)?,
            localhost_seccomp: machine::localhost_seccomp(&context, &self.config.seccomp_profile_root)?,
            target_pid: self.target_pid(&context)?,
            cgroup: &group.named,
            cgroups: &self.features,
            available_capabilities: &self.capabilities,
            oom_score_adj_floor: self.config.oom_score_adj_floor,
        })?;
        self.inject_devices(&config, &mut spec)?;
        let log_path = if config.log_path.is_empty() || sandbox.config.log_directory.is_empty() {
            String::new()
        } else {
            PathBuf::from(&sandbox.config.log_directory).join(&config.log_path).to_string_lossy().into_owned()
        };
        let asked = config.image.as_ref().map(|image| image.user_specified_image.as_str());
        let image_name = convert::image_name(image, asked.unwrap_or_default());
        let container = Container {
            version: RECORD_VERSION,
            id: id.to_owned(),
            sandbox_id: sandbox.id.clone(),
            image_id: image.id.clone(),
            image_ref: convert::image_ref(image, &image_name),
            image_name,
            resources: plan::wanted_resources(&config),
            user: resolved.user,
            log_path,
            stop_signal: plan::stop_signal(&config, &image.config),
            cgroup: group.path,
            phase: Phase::Created,
            created_at: machine::now(),
            started_at: 0,
            exit: None,
            failure: None,
            config,
        };
        Ok((container, spec))
    }

    fn inject_devices(
        &self,
        config: &v1::ContainerConfig,
        spec: &mut oci_spec::runtime::Spec,
    ) -> Result<(), CriError> {
        let devices = cdi::wanted(config)?;
        if devices.is_empty() {
            return Ok(());
        }
        let registry = cdi::Registry::read(&self.config.cdi_spec_dirs);
        cdi::inject(spec, &registry.edits(&devices)?)
    }

    /// The first process of the container whose PID namespace is to be joined, asked of its shim at plan time.
    fn target_pid(&self, context: &v1::LinuxContainerSecurityContext) -> Result<Option<u32>, CriError> {
        let Some(options) =
            context.namespace_options.as_ref().filter(|options| options.pid() == v1::NamespaceMode::Target)
        else {
            return Ok(None);
        };
        let target = self.running(&options.target_id)?;
        let (shim, id) = (self.shim(&target.sandbox_id), target.id);
        let answer = tokio::runtime::Handle::current()
            .block_on(shim.call(&Request::State, crate::runtime::QUESTION_DEADLINE))
            .map_err(|error| error.to_cri("failed to find the target container's process", &id))?;
        let Response::State(state) = answer else {
            return Err(CriError::no_container(&id));
        };
        match state
            .containers
            .into_iter()
            .find(|container| container.id == id)
            .and_then(|container| container.pid)
        {
            Some(pid) => Ok(Some(pid)),
            None => Err(CriError::WrongState(format!("container {id} is not running"))),
        }
    }

    async fn make_container(&self, sandbox: &Sandbox, prepared: Prepared) -> Result<(), CriError> {
        let Prepared { container, rootfs, mounts } = prepared;
        let create = protocol::CreateContainer {
            id: container.id.clone(),
            bundle: self.directory(&sandbox.id).bundle(&container.id),
            rootfs: protocol::RootfsMount { lower: rootfs.lower, upper: rootfs.upper, work: rootfs.work },
            log_path: (!container.log_path.is_empty()).then(|| PathBuf::from(&container.log_path)),
            terminal: container.config.tty,
            stdin: container.config.stdin,
            stdin_once: container.config.stdin_once,
            stop_signal: container.stop_signal,
            mounts,
        };
        let request = Request::Create(Box::new(create));
        self.shim(&sandbox.id)
            .call(&request, CREATE_DEADLINE)
            .await
            .map_err(|error| error.to_cri("failed to create the container", &container.id))?;
        let mut model = self.model();
        // A stop that ran meanwhile has ended the shim and would not see this container any more.
        if !model.sandboxes.get(&sandbox.id).is_some_and(Sandbox::is_ready) {
            return Err(CriError::WrongState(format!("sandbox {} was stopped meanwhile", sandbox.id)));
        }
        model.containers.insert(container.id.clone(), container);
        Ok(())
    }

    /// Undoes a container that was never announced. What fails is logged; the next start tries again.
    pub(crate) async fn discard_container(&self, sandbox_id: &str, id: &str) {
        let request = Request::Remove { id: id.to_owned() };
        if let Err(error) = self.shim(sandbox_id).call(&request, CREATE_DEADLINE).await
            && !error.is_broken()
        {
            tracing::warn!(container = id, %error, "could not remove the container from its shim");
        }
        let (images, directory, id) = (self.images.clone(), self.directory(sandbox_id), id.to_owned());
        let removed = tokio::task::spawn_blocking(move || {
            if let Err(error) = images.remove_rootfs(&id) {
                tracing::warn!(container = id, %error, "could not remove the root file system");
            }
            if let Err(error) = files::remove_tree(&directory.bundle(&id)) {
                tracing::warn!(container = id, %error, "could not remove the bundle");
            }
        });
        // The task itself cannot fail; it only logs.
        let _ = removed.await;
    }
}

fn read_hostname(directory: &SandboxDir) -> String {
    std::fs::read_to_string(directory.pod_file("hostname")).unwrap_or_default()
}

fn pod_files(directory: &SandboxDir) -> PodFiles {
    PodFiles {
        shm: directory.pod_file("shm"),
        resolv_conf: directory.pod_file("resolv.conf"),
        hostname: directory.pod_file("hostname"),
        hosts: directory.pod_file("hosts"),
    }
}
