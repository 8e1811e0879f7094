//! The node agent: pod lifecycle over CRI, volumes, probes, status, :10250.
//!
//! ```text
//!   API pods(spec.nodeName=me) --> dispatcher --inbox of one--> worker per pod UID --CRI--> runtime
//!   CRI events, relist ----------> dispatcher --wake----------/      \--status patch, events--> API
//! ```
//! A worker observes over CRI, plans ([`pod::plan`], pure), applies, and reports a status that is a pure function of what was
//! observed ([`pod::status`]). Its states: `Running -> Stopping -> Stopped`. Pulls, hooks, stops and status writes run beside it.
//!
//! | task | does |
//! |---|---|
//! | `watch-pods`, `watch-services` | informers |
//! | `dispatch` | admission, one worker per pod, orphans, housekeeping |
//! | `pleg` | runtime events and relists wake workers |
//! | `runtime-health`, `node`, `lease` | readiness of the runtime, Node object, heartbeat |
//! | `events` | sends events, counts repeated ones |
//! | `log-rotation` | bounds container logs |
//! | `server`, `healthz` | HTTPS on 10250, plain health on 10248 |
//!
//! Invariant: the runtime is known only as CRI, the master only as the Kubernetes API within what the Node authorizer grants.
//! Invariant: a restart adopts what runs; nothing that is remembered only here is needed to go on.
//!
//! It deliberately does not: run static pods, evict under pressure, resize in place, manage devices, mount CSI volumes, collect
//! images. What a pod asks of these is answered with an event or a status that says so.

mod cgroups;
mod config;
mod container;
mod events;
mod images;
mod labels;
mod logs;
mod metrics;
mod node;
mod objects;
mod pod;
mod probe;
mod quantity;
mod runtime;
mod server;
mod services;
mod volume;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::Context as _;
use k8s_openapi::api::core::v1 as core;
use kube::Api;
use orlop_daemon::{Drain, Frame};
use orlop_kube::{Informer, informer};
use tokio::sync::{Semaphore, mpsc, watch};

pub use config::{Authentication, Authorization, AuthorizationMode, Config, Enabled, GoDuration, X509};
use node::machine::Machine;
use node::model::Health;
use quantity::Resources;
use runtime::Runtime;

/// Wake-ups that may wait for the dispatcher.
const WAKE_LIMIT: usize = 1024;
const STATUS_WRITES: usize = 16;
const PULLS: usize = 4;

/// What all parts share.
pub(crate) struct Kubelet {
    pub(crate) frame: Frame,
    pub(crate) config: Config,
    pub(crate) client: kube::Client,
    pub(crate) runtime: Runtime,
    pub(crate) events: events::Events,
    pub(crate) objects: objects::ApiObjects,
    pub(crate) volumes: volume::Volumes,
    pub(crate) cgroups: cgroups::Cgroups,
    pub(crate) services: Informer<container::env::Service>,
    pub(crate) pods: Informer<core::Pod>,
    pub(crate) health: watch::Receiver<Health>,
    pub(crate) machine: Machine,
    pub(crate) allocatable: Resources,
    pub(crate) host_ips: Vec<String>,
    pub(crate) pulls: Semaphore,
    pub(crate) status_writes: Semaphore,
    pub(crate) drain: Drain,
    pub(crate) metrics: metrics::Metrics,
    node: RwLock<core::Node>,
}

impl Kubelet {
    /// Keeps the newest Node object.
    pub(crate) fn set_node(&self, node: core::Node) {
        *self.node.write().unwrap_or_else(PoisonError::into_inner) = node;
    }

    /// Labels of the Node.
    pub(crate) fn node_labels(&self) -> BTreeMap<String, String> {
        self.node.read().unwrap_or_else(PoisonError::into_inner).metadata.labels.clone().unwrap_or_default()
    }

    /// UID of the Node, once it is registered.
    pub(crate) fn node_uid(&self) -> Option<String> {
        self.node.read().unwrap_or_else(PoisonError::into_inner).metadata.uid.clone()
    }
}

/// Wires the kubelet, spawns its tasks and returns.
///
/// # Errors
/// What cannot be right later either: a kubeconfig or certificate that cannot be read, a port that is taken.
pub async fn start(frame: &Frame, config: Config) -> anyhow::Result<()> {
    let client = orlop_kube::client_from_kubeconfig(&config.kubeconfig).await?;
    start_with_client(frame, config, client).await
}

/// As [`start`], with a client that is there already.
///
/// # Errors
/// As [`start`].
pub async fn start_with_client(frame: &Frame, config: Config, client: kube::Client) -> anyhow::Result<()> {
    make_dirs(&config)?;
    let runtime = Runtime::connect(
        &config.container_runtime_endpoint,
        config.image_service_endpoint.as_deref(),
        config.runtime_request_timeout.0,
    )?;
    let cgroups =
        cgroups::Cgroups::detect(&config.cgroup_root, config.cgroups_per_qos, config.pod_pids_limit)
            .context("failed to look at the cgroup hierarchies")?;
    cgroups.set_up().context("failed to make the kubepods cgroups")?;
    let machine = Machine::detect(&config.root_dir);
    let (events, queue) = events::channel();
    let (health_sender, health) =
        watch::channel(Health { message: "runtime has not been asked yet".to_owned(), ..Health::default() });
    let labels = node::model::labels(&config);
    let node = core::Node {
        metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
            labels: Some(labels),
            ..Default::default()
        },
        ..Default::default()
    };
    let kubelet = Arc::new(Kubelet {
        frame: frame.clone(),
        events,
        objects: objects::ApiObjects::new(client.clone()),
        volumes: volume::Volumes::new(config.root_dir.clone(), config.memory_dir.clone(), client.clone()),
        cgroups,
        services: services::watch(frame, &client),
        pods: watch_pods(frame, &client, &config.node_name),
        health,
        allocatable: node::model::allocatable(&config, &machine),
        machine,
        host_ips: vec![config.node_ip.clone()],
        pulls: Semaphore::new(config.max_parallel_image_pulls.map_or(PULLS, |count| count.max(1) as usize)),
        status_writes: Semaphore::new(STATUS_WRITES),
        drain: frame.drain(),
        metrics: metrics::Metrics::register(frame),
        node: RwLock::new(node),
        runtime,
        config,
        client,
    });
    server::start(frame, &kubelet).await?;
    spawn_tasks(frame, &kubelet, health_sender, queue);
    Ok(())
}

fn make_dirs(config: &Config) -> anyhow::Result<()> {
    for dir in [&config.root_dir, &config.memory_dir, &config.pod_logs_dir] {
        std::fs::create_dir_all(dir).with_context(|| format!("failed to create {}", dir.display()))?;
    }
    volume::host::keep_in_memory(&config.memory_dir).with_context(|| {
        format!("failed to mount a tmpfs on {}: secrets must not reach a disk", config.memory_dir.display())
    })?;
    let private = |dir: &Path| std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700));
    private(&config.memory_dir).with_context(|| format!("failed to protect {}", config.memory_dir.display()))
}

fn watch_pods(frame: &Frame, client: &kube::Client, node: &str) -> Informer<core::Pod> {
    let selector = kube::runtime::watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    informer(frame, "pods", Api::<core::Pod>::all(client.clone()), selector, |mut pod: core::Pod| {
        pod.metadata.managed_fields = None;
        Some(pod)
    })
}

fn spawn_tasks(frame: &Frame, kubelet: &Arc<Kubelet>, health: watch::Sender<Health>, queue: events::Queue) {
    let (wake, woken) = mpsc::channel(WAKE_LIMIT);
    frame.spawn("runtime-health", node::watch_health(kubelet.clone(), health));
    frame.spawn("node", node::report(kubelet.clone()));
    frame.spawn("lease", node::renew_lease(kubelet.clone()));
    frame.spawn("pleg", pod::pleg::watch(kubelet.clone(), wake));
    frame.spawn("dispatch", pod::dispatch::run(kubelet.clone(), kubelet.pods.clone(), woken));
    frame.spawn("log-rotation", logs::rotation::run(kubelet.clone()));
    let (client, node, drain) =
        (kubelet.client.clone(), kubelet.config.node_name.clone(), kubelet.drain.clone());
    frame.spawn("events", async move {
        events::send_all(queue, client, node, drain).await;
        Ok(())
    });
    let dumped = kubelet.clone();
    frame.dump("pods", move || {
        let names: Vec<String> = dumped.pods.with(|pods| pods.keys().map(ToString::to_string).collect());
        serde_json::json!({"pods": names, "runtime": dumped.health.borrow().runtime_name, "ready": dumped.health.borrow().is_ready()})
    });
}
