//! The Node object and its Lease: registration, heartbeats, and what the runtime says of its health.

pub(crate) mod machine;
pub(crate) mod model;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1 as coordination;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use orlop_cri::v1 as cri;
use orlop_daemon::backoff::Backoff;
use tokio::sync::watch;

use crate::Kubelet;
use crate::events::Kind;
use model::{Health, Measured};

const LEASES: &str = "kube-node-lease";
const FAST_POLL: Duration = Duration::from_millis(100);
const SLOW_POLL: Duration = Duration::from_secs(5);

/// Asks the runtime: often until it is ready, then every few seconds.
pub(crate) async fn watch_health(kubelet: Arc<Kubelet>, health: watch::Sender<Health>) -> anyhow::Result<()> {
    let drain = kubelet.drain.clone();
    loop {
        let fresh = ask(&kubelet).await;
        let ready = fresh.is_ready();
        health.send_if_modified(|known| {
            let changed = *known != fresh;
            if changed {
                tracing::info!(ready, message = fresh.message, "runtime health changed");
                *known = fresh;
            }
            changed
        });
        if !drain.sleep(if ready { SLOW_POLL } else { FAST_POLL }).await {
            return Ok(());
        }
    }
}

async fn ask(kubelet: &Kubelet) -> Health {
    let mut health = kubelet.health.borrow().clone();
    health.runtime_ready = false;
    health.network_ready = false;
    if health.runtime_name.is_empty() {
        match kubelet.runtime.version(cri::VersionRequest { version: "0.1.0".to_owned() }).await {
            Ok(version) => {
                health.runtime_name = version.runtime_name;
                health.runtime_version = version.runtime_version;
            }
            Err(error) => {
                health.message = format!("container runtime is down: {error}");
                return health;
            }
        }
    }
    match kubelet.runtime.status(cri::StatusRequest { verbose: false }).await {
        Ok(answer) => take_status(&mut health, answer),
        Err(error) => {
            health.message = format!("container runtime is down: {error}");
            // A runtime that comes back may be another version.
            health.runtime_name = String::new();
        }
    }
    health
}

fn take_status(health: &mut Health, answer: cri::StatusResponse) {
    let conditions = answer.status.unwrap_or_default().conditions;
    let mut problems = Vec::new();
    for condition in &conditions {
        match condition.r#type.as_str() {
            "RuntimeReady" => health.runtime_ready = condition.status,
            "NetworkReady" => health.network_ready = condition.status,
            _ => continue,
        }
        if !condition.status {
            let what = if condition.r#type == "NetworkReady" {
                "container runtime network not ready"
            } else {
                "container runtime not ready"
            };
            problems.push(format!(
                "{what}: {}=false reason:{} message:{}",
                condition.r#type, condition.reason, condition.message
            ));
        }
    }
    health.message = problems.join(", ");
    health.handlers = answer
        .runtime_handlers
        .into_iter()
        .map(|handler| {
            let features = handler.features.unwrap_or_default();
            (handler.name, features.recursive_read_only_mounts, features.user_namespaces)
        })
        .collect();
    health.supplemental_groups_policy =
        answer.features.is_some_and(|features| features.supplemental_groups_policy);
}

async fn measure(kubelet: &Kubelet) -> Measured {
    let images = kubelet
        .runtime
        .list_images(cri::ListImagesRequest::default())
        .await
        .map(|answer| answer.images)
        .unwrap_or_default();
    let number =
        |path: &str| std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let threads = std::fs::read_to_string("/proc/loadavg")
        .ok()
        .and_then(|text| text.split_whitespace().nth(3)?.split_once('/')?.1.parse::<u64>().ok());
    Measured {
        memory_available_bytes: machine::meminfo("MemAvailable").unwrap_or(i64::MAX),
        disk: machine::disk(&kubelet.config.root_dir),
        pids: threads.zip(number("/proc/sys/kernel/pid_max")),
        images,
    }
}

/// Registers the node, then keeps its status true.
pub(crate) async fn report(kubelet: Arc<Kubelet>) -> anyhow::Result<()> {
    let drain = kubelet.drain.clone();
    let guard = kubelet.frame.ready().guard("node-registered");
    let mut health = kubelet.health.clone();
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    let mut sent = Sent::default();
    let mut was_ready = None;
    loop {
        health.borrow_and_update();
        let pause = match report_once(&kubelet, &mut sent).await {
            Ok(()) => {
                guard.set();
                backoff.reset();
                announce(&kubelet, &mut was_ready);
                kubelet.config.node_status_update_frequency.0
            }
            Err(error) => {
                tracing::warn!(error = %format!("{error:#}"), "could not report the node");
                backoff.pause()
            }
        };
        tokio::select! {
            alive = drain.sleep(pause) => if !alive { return Ok(()) },
            changed = health.changed() => if changed.is_err() { return Ok(()) },
        }
    }
}

fn announce(kubelet: &Kubelet, was_ready: &mut Option<bool>) {
    let ready = kubelet.health.borrow().is_ready();
    if *was_ready == Some(ready) {
        return;
    }
    if was_ready.is_some() || ready {
        let reason = if ready { "NodeReady" } else { "NodeNotReady" };
        let name = &kubelet.config.node_name;
        kubelet.events.node(name, Kind::Normal, reason, format!("Node {name} status is now: {reason}"));
    }
    *was_ready = Some(ready);
}

/// What the API server was told last.
#[derive(Default)]
struct Sent {
    /// Whether this kubelet's node was there once: one that is deleted later stays away until the kubelet starts again.
    registered: bool,
    last: Option<Report>,
}

struct Report {
    at: Timestamp,
    status: serde_json::Value,
    /// How the API server stored it.
    stored: serde_json::Value,
}

async fn report_once(kubelet: &Kubelet, sent: &mut Sent) -> anyhow::Result<()> {
    let config = &kubelet.config;
    let nodes = Api::<core::Node>::all(kubelet.client.clone());
    let now = Timestamp::now();
    let health = kubelet.health.borrow().clone();
    let measured = measure(kubelet).await;
    let known = match nodes.get_opt(&config.node_name).await? {
        Some(node) => node,
        None if sent.registered => {
            anyhow::bail!("node {:?} was deleted: restart the kubelet to register it again", config.node_name)
        }
        None if !config.register_node => {
            anyhow::bail!("node {:?} does not exist and registerNode is off", config.node_name)
        }
        None => {
            let status = model::status(config, &kubelet.machine, &health, &measured, None, now);
            nodes.create(&PostParams::default(), &model::node(config, status)).await?
        }
    };
    if !sent.registered {
        own_labels(kubelet, &nodes, &known).await?;
        kubelet.set_node(known.clone());
        sent.registered = true;
    }
    let status = model::status(config, &kubelet.machine, &health, &measured, known.status.as_ref(), now);
    let (wanted, stored) = (without_heartbeat(&status), without_heartbeat(&known.status.unwrap_or_default()));
    if let Some(last) = &sent.last {
        let age = now.duration_since(last.at);
        let due = age >= jiff::SignedDuration::try_from(config.node_status_report_frequency.0)?;
        // Somebody else may have changed what is stored: the node lifecycle controller, while this node could not be reached.
        if !due && last.status == wanted && last.stored == stored {
            return Ok(());
        }
    }
    // Addresses and conditions are joined by type, all else is replaced: what others wrote there stays.
    let patch = serde_json::json!({ "status": &status });
    let node =
        nodes.patch_status(&config.node_name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
    let stored = without_heartbeat(node.status.as_ref().unwrap_or(&status));
    kubelet.set_node(node);
    sent.last = Some(Report { at: now, status: wanted, stored });
    Ok(())
}

async fn own_labels(kubelet: &Kubelet, nodes: &Api<core::Node>, known: &core::Node) -> anyhow::Result<()> {
    let labels = model::labels(&kubelet.config);
    let current = known.metadata.labels.clone().unwrap_or_default();
    if labels.iter().any(|(key, value)| current.get(key) != Some(value)) {
        let patch = serde_json::json!({"metadata": {"labels": labels}});
        nodes.patch(&kubelet.config.node_name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    }
    Ok(())
}

fn without_heartbeat(status: &core::NodeStatus) -> serde_json::Value {
    let mut status = status.clone();
    for condition in status.conditions.iter_mut().flatten() {
        condition.last_heartbeat_time = None;
    }
    let relevant = core::NodeStatus {
        capacity: status.capacity,
        allocatable: status.allocatable,
        addresses: status.addresses,
        conditions: status.conditions,
        images: status.images,
        node_info: status.node_info,
        runtime_handlers: status.runtime_handlers,
        daemon_endpoints: status.daemon_endpoints,
        ..Default::default()
    };
    serde_json::to_value(relevant).unwrap_or_default()
}

/// Renews the Lease at a quarter of its life (KEP-589).
pub(crate) async fn renew_lease(kubelet: Arc<Kubelet>) -> anyhow::Result<()> {
    let drain = kubelet.drain.clone();
    let seconds = u64::try_from(kubelet.config.node_lease_duration_seconds).unwrap_or(40);
    let period = Duration::from_millis(seconds * 250);
    let leases = Api::<coordination::Lease>::namespaced(kubelet.client.clone(), LEASES);
    let mut known: Option<coordination::Lease> = None;
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(7).min(period));
    loop {
        let pause = match renew(&kubelet, &leases, known.take()).await {
            Ok(lease) => {
                known = Some(lease);
                backoff.reset();
                period
            }
            Err(error) => {
                tracing::warn!(%error, "could not renew the lease");
                backoff.pause()
            }
        };
        if !drain.sleep(pause).await {
            return Ok(());
        }
    }
}

async fn renew(
    kubelet: &Kubelet,
    leases: &Api<coordination::Lease>,
    known: Option<coordination::Lease>,
) -> Result<coordination::Lease, kube::Error> {
    let name = &kubelet.config.node_name;
    let current = match known {
        Some(lease) => Some(lease),
        None => leases.get_opt(name).await?,
    };
    let exists = current.is_some();
    let mut lease = current.unwrap_or_default();
    lease.metadata.name = Some(name.clone());
    if lease.metadata.owner_references.is_none()
        && let Some(uid) = kubelet.node_uid()
    {
        lease.metadata.owner_references = Some(vec![OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: name.clone(),
            uid,
            ..Default::default()
        }]);
    }
    let spec = lease.spec.get_or_insert_default();
    spec.holder_identity = Some(name.clone());
    spec.lease_duration_seconds = Some(kubelet.config.node_lease_duration_seconds);
    let now = Timestamp::now();
    spec.renew_time = Some(MicroTime(Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)));
    if exists {
        leases.replace(name, &PostParams::default(), &lease).await
    } else {
        lease.metadata = ObjectMeta { namespace: Some(LEASES.to_owned()), ..lease.metadata };
        leases.create(&PostParams::default(), &lease).await
    }
}
