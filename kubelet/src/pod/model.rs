//! What a pod is and what was observed of it.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use sha2::{Digest as _, Sha256};

/// A pod sandbox, as CRI reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sandbox {
    pub(crate) id: String,
    pub(crate) attempt: u32,
    pub(crate) ready: bool,
    pub(crate) created_at: i64,
    pub(crate) ips: Vec<String>,
}

/// State of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Created,
    Running,
    Exited,
    Unknown,
}

/// A container, as CRI reports it; times in nanoseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) attempt: u32,
    pub(crate) sandbox_id: String,
    pub(crate) state: State,
    pub(crate) created_at: i64,
    pub(crate) started_at: i64,
    pub(crate) finished_at: i64,
    pub(crate) exit_code: i32,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) image: String,
    pub(crate) image_ref: String,
    pub(crate) hash: String,
    /// Seconds, from the annotation: what counts when the pod object is gone.
    pub(crate) grace_seconds: Option<i64>,
}

/// Everything of one pod; newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Observed {
    pub(crate) sandboxes: Vec<Sandbox>,
    pub(crate) containers: Vec<Container>,
}

impl Observed {
    /// The newest container of a name.
    pub(crate) fn latest(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|container| container.name == name)
    }

    /// The newest container of a name in one sandbox.
    pub(crate) fn latest_in(&self, name: &str, sandbox: &str) -> Option<&Container> {
        self.containers.iter().find(|container| container.name == name && container.sandbox_id == sandbox)
    }

    /// The one before the newest.
    pub(crate) fn previous(&self, name: &str) -> Option<&Container> {
        self.containers.iter().filter(|container| container.name == name).nth(1)
    }

    /// Containers with a process, or that may have one.
    pub(crate) fn alive(&self) -> impl Iterator<Item = &Container> {
        self.containers.iter().filter(|container| matches!(container.state, State::Running | State::Unknown))
    }

    /// The newest sandbox, when it is ready.
    pub(crate) fn ready_sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first().filter(|sandbox| sandbox.ready)
    }
}

/// Part of a container in the life of its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Init,
    /// An init container with `restartPolicy: Always` (KEP-753).
    Sidecar,
    App,
    Ephemeral,
}

fn init_role(container: &core::Container) -> Role {
    if container.restart_policy.as_deref() == Some("Always") { Role::Sidecar } else { Role::Init }
}

fn ephemeral(container: &core::EphemeralContainer) -> core::Container {
    let source = container.clone();
    core::Container {
        name: source.name,
        image: source.image,
        image_pull_policy: source.image_pull_policy,
        command: source.command,
        args: source.args,
        working_dir: source.working_dir,
        env: source.env,
        env_from: source.env_from,
        volume_mounts: source.volume_mounts,
        security_context: source.security_context,
        stdin: source.stdin,
        stdin_once: source.stdin_once,
        tty: source.tty,
        termination_message_path: source.termination_message_path,
        termination_message_policy: source.termination_message_policy,
        ..core::Container::default()
    }
}

/// The pod's specification; an object without one has no containers, which the API server never makes.
pub(crate) fn spec(pod: &core::Pod) -> &core::PodSpec {
    static EMPTY: std::sync::OnceLock<core::PodSpec> = std::sync::OnceLock::new();
    pod.spec.as_ref().unwrap_or_else(|| EMPTY.get_or_init(core::PodSpec::default))
}

/// All containers in the order in which they start.
pub(crate) fn containers(pod: &core::Pod) -> Vec<(Role, Cow<'_, core::Container>)> {
    let spec = spec(pod);
    let init = spec
        .init_containers
        .iter()
        .flatten()
        .map(|container| (init_role(container), Cow::Borrowed(container)));
    let apps = spec.containers.iter().map(|container| (Role::App, Cow::Borrowed(container)));
    let late = spec
        .ephemeral_containers
        .iter()
        .flatten()
        .map(|container| (Role::Ephemeral, Cow::Owned(ephemeral(container))));
    init.chain(apps).chain(late).collect()
}

/// One container by name.
pub(crate) fn container<'a>(pod: &'a core::Pod, name: &str) -> Option<(Role, Cow<'a, core::Container>)> {
    containers(pod).into_iter().find(|(_, container)| container.name == name)
}

pub(crate) fn uid(pod: &core::Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

pub(crate) fn name(pod: &core::Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub(crate) fn namespace(pod: &core::Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("default")
}

/// `name_namespace(uid)`, as upstream's messages name a pod.
pub(crate) fn full_name(pod: &core::Pod) -> String {
    format!("{}_{}({})", name(pod), namespace(pod), uid(pod))
}

pub(crate) fn host_network(pod: &core::Pod) -> bool {
    spec(pod).host_network.unwrap_or(false)
}

/// What makes a running container stale: its name and image (upstream: HashContainer).
pub(crate) fn hash(container: &core::Container) -> String {
    let mut hasher = Sha256::new();
    hasher.update(container.name.as_bytes());
    hasher.update([0]);
    hasher.update(container.image.as_deref().unwrap_or_default().as_bytes());
    hex::encode(&hasher.finalize()[..4])
}

/// Whether the phase is final.
pub(crate) fn is_terminal(status: Option<&core::PodStatus>) -> bool {
    matches!(status.and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"))
}

/// Seconds that the pod's containers get to end.
pub(crate) fn grace_seconds(pod: &core::Pod) -> i64 {
    pod.metadata
        .deletion_grace_period_seconds
        .filter(|_| pod.metadata.deletion_timestamp.is_some())
        .or(spec(pod).termination_grace_period_seconds)
        .unwrap_or(30)
        .max(0)
}

/// Quality of service class (KEP-753 keeps sidecars in it): from requests and limits of cpu and memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Qos {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// Computes the class; the one in the status, set by the API server, is not trusted to be there.
pub(crate) fn qos(pod: &core::Pod) -> Qos {
    let mut any = false;
    let mut guaranteed = true;
    for (role, container) in containers(pod) {
        if role == Role::Ephemeral {
            continue;
        }
        let resources = container.resources.as_ref();
        for resource in ["cpu", "memory"] {
            let limit = crate::quantity::milli_of(resources.and_then(|r| r.limits.as_ref()), resource)
                .filter(|v| *v > 0);
            let request = crate::quantity::milli_of(resources.and_then(|r| r.requests.as_ref()), resource)
                .filter(|v| *v > 0)
                .or(limit);
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && request == limit;
        }
    }
    match (any, guaranteed) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

/// Why a container waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// One line of backoff: doubles from `initial`, forgotten when nothing happened for twice the cap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) pause: Duration,
    pub(crate) updated: Timestamp,
}

/// First pause after a crash or a failed pull.
pub(crate) const BACKOFF_INITIAL: Duration = Duration::from_secs(10);
/// Longest pause.
pub(crate) const BACKOFF_CAP: Duration = Duration::from_secs(300);

impl Step {
    /// The step after `previous`, for an event at `now`.
    pub(crate) fn after(previous: Option<Self>, now: Timestamp) -> Self {
        let pause = match previous {
            Some(step) if !step.is_expired(now) => (step.pause * 2).min(BACKOFF_CAP),
            _ => BACKOFF_INITIAL,
        };
        Self { pause, updated: now }
    }

    pub(crate) fn is_expired(&self, event: Timestamp) -> bool {
        event.duration_since(self.updated)
            > jiff::SignedDuration::try_from(BACKOFF_CAP * 2).unwrap_or(jiff::SignedDuration::MAX)
    }
}

/// A start that failed, and when to try again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) waiting: Waiting,
    pub(crate) retry_at: Timestamp,
    pub(crate) step: Step,
}

/// What the worker knows beside what CRI says. Lost with the process: then everything is tried again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    /// Crash backoff by container name.
    pub(crate) crashes: BTreeMap<String, Step>,
    /// Failed starts by container name.
    pub(crate) failures: BTreeMap<String, Failure>,
    /// Names of containers whose image is being pulled.
    pub(crate) pulling: BTreeSet<String>,
    /// Ids of containers whose postStart hook runs.
    pub(crate) hooks: BTreeSet<String>,
    /// Ids of containers being stopped, with the time (seconds since 1970) until which they were given.
    pub(crate) stopping: BTreeMap<String, i64>,
    /// What the probes say.
    pub(crate) probes: ProbeView,
}

/// What the pod's status says of a container, if it is this very one that it speaks of.
pub(crate) fn reported<'a>(pod: &'a core::Pod, container: &Container) -> Option<&'a core::ContainerStatus> {
    let status = pod.status.as_ref()?;
    let lists = [&status.container_statuses, &status.init_container_statuses];
    lists.into_iter().flatten().flatten().find(|status| {
        let id = status.container_id.as_deref().and_then(|id| id.split_once("://")).map(|(_, id)| id);
        status.name == container.name && id == Some(container.id.as_str())
    })
}

/// A snapshot of probe results, by container id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProbeView {
    /// Readiness probes that succeed.
    pub(crate) ready: BTreeSet<String>,
    /// Startup probes that have succeeded.
    pub(crate) started: BTreeSet<String>,
    /// Liveness and startup probes that failed for good: the kind of probe.
    pub(crate) failed: BTreeMap<String, &'static str>,
}

/// A time as CRI writes it.
pub(crate) fn timestamp(nanoseconds: i64) -> Option<Timestamp> {
    (nanoseconds > 0).then(|| Timestamp::from_nanosecond(i128::from(nanoseconds)).ok()).flatten()
}
