//! The state that all verbs share.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use orlop_cri::v1;
use orlop_daemon::{Drain, Frame};
use orlop_images::ImageStore;
use orlop_shim::protocol::{Phase, Request, Response};
use tokio::sync::broadcast;

use crate::cgroup::Hierarchies;
use crate::cgroup_parents::CgroupParents;
use crate::cni::Cni;
use crate::config::{CgroupDriver, Config};
use crate::error::CriError;
use crate::files::{self, SandboxDir};
use crate::flights::Flights;
use crate::metrics::Metrics;
use crate::model::{Container, Model, Sandbox, SandboxName};
use crate::shim::{Launcher, ShimClient};
use crate::spec::resources::CgroupFeatures;
use crate::stats::{DiskUsage, Rates};
use crate::streaming::Streams;
use crate::verbs::OutputRoom;

/// Events that a slow subscriber may lag behind before it is told to list anew.
const EVENT_BACKLOG: usize = 4096;
/// A question to a healthy shim takes less than a millisecond.
pub(crate) const QUESTION_DEADLINE: Duration = Duration::from_secs(10);

/// Everything.
pub(crate) struct Runtime {
    /// As configured.
    pub config: Config,
    /// Images and root file systems.
    pub images: ImageStore,
    /// Pod networks.
    pub cni: Cni,
    /// Starts shims.
    pub launcher: Launcher,
    /// Control groups of this machine.
    pub hierarchies: Hierarchies,
    /// Those above the pods' own that are ours.
    pub cgroup_parents: Arc<CgroupParents>,
    /// What they can do.
    pub features: CgroupFeatures,
    /// Capabilities that containers can be given.
    pub capabilities: std::collections::BTreeSet<String>,
    /// Gives out URLs of sessions.
    pub streams: Streams,
    /// Durations and failures.
    pub metrics: Metrics,
    /// Watchers end with it.
    pub drain: Drain,
    /// Disk use of containers, measured at most every few seconds.
    pub disk: DiskUsage,
    /// Processor use of containers and pods over time.
    pub rates: Rates,
    /// RunPodSandbox by name.
    pub runs: Flights<SandboxName, String>,
    /// CreateContainer by sandbox, name and attempt.
    pub creations: Flights<(String, String, u32), String>,
    /// StartContainer by id.
    pub starts: Flights<String, ()>,
    /// StopPodSandbox by id.
    pub sandbox_stops: Flights<String, ()>,
    /// RemoveContainer and RemovePodSandbox by id.
    pub removals: Flights<String, ()>,
    /// Pulls by reference: an impatient kubelet's retry finds the first one.
    pub pulls: Flights<String, String>,
    /// Memory for what commands of ExecSync say.
    pub exec_output: OutputRoom,
    /// Held while a container's limits change.
    pub updates: Mutex<()>,
    model: Mutex<Model>,
    events: broadcast::Sender<Arc<v1::ContainerEventResponse>>,
}

impl Runtime {
    /// Opens the stores; nothing is adopted yet.
    pub(crate) fn open(frame: &Frame, config: Config, streams: Streams) -> anyhow::Result<Arc<Self>> {
        for directory in [config.root.clone(), config.state.clone(), config.state.join("sandboxes")] {
            files::make_private_dir(&directory)
                .with_context(|| format!("failed to create {}", directory.display()))?;
        }
        let images = ImageStore::open(orlop_images::Config {
            root: config.root.clone(),
            hosts_dir: config.registry_hosts_dir.clone(),
            mirror: config.registry_mirror.clone(),
            max_concurrent_downloads: config.pull_concurrency,
            pull_progress_timeout_seconds: config.image_pull_progress_timeout_seconds,
            signature_policy: config.signature_policy.clone(),
            pinned: config.pinned_images.clone(),
            ..orlop_images::Config::default()
        })
        .with_context(|| format!("failed to open the image store {}", config.root.display()))?;
        if config.cgroup_driver == CgroupDriver::Systemd {
            orlop_oci::systemd::check()
                .context("cgroupDriver is systemd, but systemd cannot be asked; use cgroupfs without it")?;
        }
        let hierarchies = Hierarchies::detect().context("failed to read the cgroup mounts")?;
        let features = hierarchies.features();
        let launcher =
            Launcher::new(&config.shim_command).context("failed to find this program for the shims")?;
        let cni_timeout = Duration::from_secs(config.cni_timeout_seconds);
        Ok(Arc::new(Self {
            cni: Cni::new(config.cni_conf_dir.clone(), config.cni_bin_dirs.clone(), cni_timeout),
            images,
            launcher,
            hierarchies,
            cgroup_parents: Arc::default(),
            features,
            capabilities: crate::machine::own_capabilities()
                .context("failed to read this process's capabilities")?,
            streams,
            metrics: Metrics::register(frame),
            drain: frame.drain(),
            disk: DiskUsage::default(),
            rates: Rates::default(),
            runs: Flights::default(),
            creations: Flights::default(),
            starts: Flights::default(),
            sandbox_stops: Flights::default(),
            removals: Flights::default(),
            pulls: Flights::default(),
            exec_output: OutputRoom::default(),
            updates: Mutex::default(),
            model: Mutex::default(),
            events: broadcast::channel(EVENT_BACKLOG).0,
            config,
        }))
    }

    /// The model, for a short look or change.
    pub(crate) fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A sandbox by id or prefix.
    pub(crate) fn sandbox(&self, id: &str) -> Result<Sandbox, CriError> {
        self.model().sandbox(id).cloned().ok_or_else(|| CriError::no_sandbox(id))
    }

    /// A container by id or prefix.
    pub(crate) fn container(&self, id: &str) -> Result<Container, CriError> {
        self.model().container(id).cloned().ok_or_else(|| CriError::no_container(id))
    }

    /// A container that runs, with its sandbox.
    pub(crate) fn running(&self, id: &str) -> Result<Container, CriError> {
        let container = self.container(id)?;
        if container.phase != Phase::Running {
            let state = container.state().as_str_name();
            return Err(CriError::WrongState(format!("container {id} is not running: {state}")));
        }
        Ok(container)
    }

    /// The files of a sandbox.
    pub(crate) fn directory(&self, sandbox_id: &str) -> SandboxDir {
        SandboxDir::new(&self.config.state, sandbox_id)
    }

    /// The shim of a sandbox.
    pub(crate) fn shim(&self, sandbox_id: &str) -> ShimClient {
        ShimClient::new(self.directory(sandbox_id).shim_socket())
    }

    /// How shims of a handler's pods are started.
    pub(crate) fn launcher(&self, handler: &str) -> Launcher {
        let command =
            self.config.runtime_handlers.get(handler).map(|handler| handler.shim_command.as_slice());
        match command {
            Some(command) if !command.is_empty() => Launcher::with(command),
            _ => self.launcher.clone(),
        }
    }

    /// Asks the shim for everything and takes it over.
    pub(crate) async fn refresh(&self, sandbox_id: &str) -> Result<(), crate::shim::ShimError> {
        let response = self.shim(sandbox_id).call(&Request::State, QUESTION_DEADLINE).await?;
        if let Response::State(state) = response {
            for seen in &state.containers {
                self.observe(seen);
            }
        }
        Ok(())
    }

    /// Takes over what a shim said about one container; subscribers hear of a change once.
    pub(crate) fn observe(&self, seen: &orlop_shim::protocol::ContainerState) {
        use v1::ContainerEventType::{ContainerStartedEvent, ContainerStoppedEvent};
        let mut events = Vec::new();
        self.change_container(&seen.id, |container| {
            let before = container.phase;
            if container.observe(seen) {
                // A container that ended before it was seen running still started.
                if before == Phase::Created {
                    events.push(ContainerStartedEvent);
                }
                if container.phase == Phase::Exited {
                    events.push(ContainerStoppedEvent);
                    let code = container.exit.as_ref().map(|exit| exit.code);
                    tracing::info!(container = %container.id, code, "container ended");
                }
            }
        });
        for event in events {
            self.announce_container(&seen.id, event);
        }
    }

    /// Changes a container and its record together; nothing when it is unknown.
    pub(crate) fn change_container(&self, id: &str, change: impl FnOnce(&mut Container)) {
        let mut model = self.model();
        let Some(container) = model.containers.get_mut(id) else {
            return;
        };
        change(container);
        let path = self.directory(&container.sandbox_id).container_record(id);
        if let Err(error) = files::write_json(&path, container) {
            tracing::error!(container = id, %error, "could not write the container's record");
        }
    }

    /// Changes a sandbox and its record together; nothing when it is unknown.
    pub(crate) fn change_sandbox(&self, id: &str, change: impl FnOnce(&mut Sandbox)) {
        let mut model = self.model();
        let Some(sandbox) = model.sandboxes.get_mut(id) else {
            return;
        };
        change(sandbox);
        if let Err(error) = files::write_json(&self.directory(id).record(), sandbox) {
            tracing::error!(sandbox = id, %error, "could not write the sandbox's record");
        }
    }

    /// A new subscriber of events.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Arc<v1::ContainerEventResponse>> {
        self.events.subscribe()
    }

    /// Tells subscribers about a container.
    pub(crate) fn announce_container(&self, id: &str, event: v1::ContainerEventType) {
        let sandbox_id = self.model().containers.get(id).map(|container| container.sandbox_id.clone());
        if let Some(sandbox_id) = sandbox_id {
            self.announce(id, &sandbox_id, event);
        }
    }

    /// Tells subscribers about a container or sandbox, with the state of the whole pod.
    pub(crate) fn announce(&self, id: &str, sandbox_id: &str, event: v1::ContainerEventType) {
        self.count();
        if self.events.receiver_count() == 0 {
            return;
        }
        let (pod, containers) = {
            let model = self.model();
            let containers: Vec<v1::ContainerStatus> =
                model.containers_of(sandbox_id).map(Container::status).collect();
            (model.sandboxes.get(sandbox_id).map(Sandbox::status), containers)
        };
        let event = v1::ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: event as i32,
            created_at: crate::machine::now(),
            pod_sandbox_status: pod,
            containers_statuses: containers,
        };
        // Nobody listening any more is fine.
        let _ = self.events.send(Arc::new(event));
    }

    /// Counts what holds now.
    pub(crate) fn count(&self) {
        let model = self.model();
        let shims = model.sandboxes.values().filter(|sandbox| sandbox.is_ready()).count();
        let running = model.containers.values().filter(|container| container.phase == Phase::Running).count();
        self.metrics.hold(shims, running);
    }

    /// Section of the state dump.
    pub(crate) fn dump(&self) -> serde_json::Value {
        let model = self.model();
        let sandboxes: BTreeMap<&str, serde_json::Value> = model
            .sandboxes
            .values()
            .map(|sandbox| {
                let metadata = sandbox.config.metadata.clone().unwrap_or_default();
                let containers: Vec<serde_json::Value> = model
                    .containers_of(&sandbox.id)
                    .map(|container| {
                        serde_json::json!({
                            "id": container.id, "name": container.config.metadata.as_ref().map(|m| m.name.clone()),
                            "phase": container.phase, "exit": container.exit, "image": container.image_name,
                        })
                    })
                    .collect();
                let value = serde_json::json!({
                    "namespace": metadata.namespace, "name": metadata.name, "uid": metadata.uid, "stage": sandbox.stage,
                    "shim": sandbox.shim, "addresses": sandbox.addresses, "containers": containers,
                });
                (sandbox.id.as_str(), value)
            })
            .collect();
        serde_json::json!({ "sandboxes": sandboxes, "pulls": self.images.pulls(), "subscribers": self.events.receiver_count() })
    }

    /// Directory that holds all sandboxes.
    pub(crate) fn sandboxes_dir(&self) -> PathBuf {
        self.config.state.join("sandboxes")
    }
}
