//! The pod's status: a pure function of its specification and what was observed (upstream: generateAPIPodStatus).

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::model::{self, Container, Memory, Observed, Role, State, Waiting};
use super::plan;

/// A phase that does not follow from the containers: rejected, deadline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// The pod was never taken: nothing of it ran here.
    pub(crate) rejected: bool,
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// What the status follows from.
pub(crate) struct Facts<'a> {
    pub(crate) pod: &'a core::Pod,
    /// The status sent last, or the API's.
    pub(crate) before: &'a core::PodStatus,
    pub(crate) observed: &'a Observed,
    pub(crate) memory: &'a Memory,
    pub(crate) waiting: &'a BTreeMap<String, Waiting>,
    pub(crate) host_ips: &'a [String],
    /// Scheme of container ids, for example `containerd`.
    pub(crate) runtime: &'a str,
    /// Nothing will be started any more.
    pub(crate) ending: bool,
    /// Nothing runs any more, for good.
    pub(crate) ended: bool,
    pub(crate) verdict: Option<&'a Verdict>,
    pub(crate) now: Timestamp,
}

/// Computes the status.
pub(crate) fn status(facts: &Facts<'_>) -> core::PodStatus {
    let pod = facts.pod;
    let mut status = core::PodStatus {
        start_time: facts.before.start_time.clone().or(Some(Time(facts.now))),
        qos_class: Some(facts.before.qos_class.clone().unwrap_or_else(|| model::qos(pod).name().to_owned())),
        observed_generation: pod.metadata.generation,
        host_ip: facts.host_ips.first().cloned(),
        host_ips: Some(facts.host_ips.iter().map(|ip| core::HostIP { ip: ip.clone() }).collect()),
        ..core::PodStatus::default()
    };
    if let Some(verdict) = facts.verdict.filter(|verdict| verdict.rejected) {
        status.phase = Some("Failed".to_owned());
        status.reason = Some(verdict.reason.clone());
        status.message = Some(verdict.message.clone());
        return status;
    }
    addresses(facts, &mut status);
    let mut by_role: BTreeMap<u8, Vec<core::ContainerStatus>> = BTreeMap::new();
    for (role, container) in model::containers(pod) {
        let group = match role {
            Role::Init | Role::Sidecar => 0,
            Role::App => 1,
            Role::Ephemeral => 2,
        };
        by_role.entry(group).or_default().push(container_status(facts, role, &container));
    }
    let phase = phase(facts, &by_role);
    if facts.ended {
        end_missing(pod, &mut by_role);
    }
    status.init_container_statuses = by_role.remove(&0);
    status.container_statuses = by_role.remove(&1);
    status.ephemeral_container_statuses = by_role.remove(&2);
    match facts.verdict {
        Some(verdict) => {
            status.phase = Some("Failed".to_owned());
            status.reason = Some(verdict.reason.clone());
            status.message = Some(verdict.message.clone());
        }
        None if model::is_terminal(Some(facts.before)) => {
            status.phase.clone_from(&facts.before.phase);
            status.reason.clone_from(&facts.before.reason);
            status.message.clone_from(&facts.before.message);
        }
        None => status.phase = Some(phase.to_owned()),
    }
    if facts.ended && !model::is_terminal(Some(&status)) {
        status.phase = Some("Failed".to_owned());
    }
    status.conditions = Some(conditions(facts, &status));
    status
}

fn addresses(facts: &Facts<'_>, status: &mut core::PodStatus) {
    let sandbox = facts.observed.sandboxes.first();
    let ips: Vec<String> = if model::host_network(facts.pod) {
        if sandbox.is_some() { facts.host_ips.to_vec() } else { Vec::new() }
    } else {
        sandbox.map(|sandbox| sandbox.ips.clone()).unwrap_or_default()
    };
    if ips.is_empty() {
        // A torn down sandbox has no address; the status keeps the one it had.
        status.pod_ip.clone_from(&facts.before.pod_ip);
        status.pod_ips.clone_from(&facts.before.pod_ips);
    } else {
        status.pod_ip = ips.first().cloned();
        status.pod_ips = Some(ips.into_iter().map(|ip| core::PodIP { ip }).collect());
    }
}

fn time(nanoseconds: i64) -> Option<Time> {
    model::timestamp(nanoseconds).map(|time| {
        // The API keeps seconds; a status with more would differ from what comes back.
        Time(Timestamp::from_second(time.as_second()).unwrap_or(time))
    })
}

fn container_id(facts: &Facts<'_>, container: &Container) -> String {
    format!("{}://{}", facts.runtime, container.id)
}

fn terminated(facts: &Facts<'_>, container: &Container) -> core::ContainerStateTerminated {
    let reason = match container.reason.as_str() {
        "" if container.exit_code == 0 => "Completed",
        "" => "Error",
        reason => reason,
    };
    core::ContainerStateTerminated {
        exit_code: container.exit_code,
        reason: Some(reason.to_owned()),
        message: Some(container.message.clone()).filter(|message| !message.is_empty()),
        started_at: time(container.started_at),
        finished_at: time(container.finished_at),
        container_id: Some(container_id(facts, container)),
        signal: None,
    }
}

fn terminated_state(state: core::ContainerStateTerminated) -> core::ContainerState {
    core::ContainerState { terminated: Some(state), ..Default::default() }
}

fn waiting_state(waiting: &Waiting) -> core::ContainerState {
    core::ContainerState {
        waiting: Some(core::ContainerStateWaiting {
            reason: Some(waiting.reason.clone()),
            message: Some(waiting.message.clone()).filter(|message| !message.is_empty()),
        }),
        ..Default::default()
    }
}

fn before<'a>(facts: &'a Facts<'_>, name: &str) -> Option<&'a core::ContainerStatus> {
    let lists = [
        &facts.before.container_statuses,
        &facts.before.init_container_statuses,
        &facts.before.ephemeral_container_statuses,
    ];
    lists.into_iter().flatten().flatten().find(|status| status.name == name)
}

fn default_waiting(pod: &core::Pod, role: Role) -> Waiting {
    let has_init = model::spec(pod).init_containers.as_ref().is_some_and(|list| !list.is_empty());
    let reason = if has_init && role != Role::Ephemeral { "PodInitializing" } else { "ContainerCreating" };
    Waiting { reason: reason.to_owned(), message: String::new() }
}

fn container_status(facts: &Facts<'_>, role: Role, spec: &core::Container) -> core::ContainerStatus {
    let before = before(facts, &spec.name);
    let Some(latest) = facts.observed.latest(&spec.name) else {
        return missing_status(facts, role, spec, before);
    };
    let previous = facts.observed.previous(&spec.name);
    let mut status = core::ContainerStatus {
        name: spec.name.clone(),
        image: if latest.image.is_empty() {
            spec.image.clone().unwrap_or_default()
        } else {
            latest.image.clone()
        },
        image_id: latest.image_ref.clone(),
        container_id: Some(container_id(facts, latest)),
        restart_count: i32::try_from(latest.attempt).unwrap_or(i32::MAX),
        started: Some(false),
        ..Default::default()
    };
    status.last_state = previous
        .filter(|previous| previous.state == State::Exited)
        .map(|previous| terminated_state(terminated(facts, previous)))
        .or_else(|| {
            before
                .filter(|before| before.container_id == status.container_id)
                .and_then(|before| before.last_state.clone())
        })
        .or_else(|| Some(core::ContainerState::default()));
    let waiting = facts.waiting.get(&spec.name);
    match latest.state {
        State::Running => {
            status.state = Some(core::ContainerState {
                running: Some(core::ContainerStateRunning { started_at: time(latest.started_at) }),
                ..Default::default()
            });
            let started = plan::is_started(spec, latest, facts.memory);
            status.started = Some(started);
            let ready = spec.readiness_probe.is_none() || facts.memory.probes.ready.contains(&latest.id);
            status.ready = started && ready && matches!(role, Role::App | Role::Sidecar);
            status.resources.clone_from(&spec.resources);
        }
        State::Created | State::Unknown => {
            let default = default_waiting(facts.pod, Role::Ephemeral);
            status.state = Some(waiting_state(waiting.unwrap_or(&default)));
        }
        State::Exited => {
            let ended = terminated_state(terminated(facts, latest));
            status.ready = role == Role::Init && latest.exit_code == 0;
            match waiting.filter(|_| !facts.ending) {
                Some(waiting) => {
                    status.state = Some(waiting_state(waiting));
                    status.last_state = Some(ended);
                }
                None => status.state = Some(ended),
            }
        }
    }
    status
}

/// The status of a container that the runtime does not know.
fn missing_status(
    facts: &Facts<'_>,
    role: Role,
    spec: &core::Container,
    before: Option<&core::ContainerStatus>,
) -> core::ContainerStatus {
    if let Some(before) = before.filter(|before| is_terminated(before)) {
        // Collected after it ended: what was known of it stays true.
        return before.clone();
    }
    let default = default_waiting(facts.pod, role);
    let waiting = facts.waiting.get(&spec.name).unwrap_or(&default);
    let mut status = core::ContainerStatus {
        name: spec.name.clone(),
        image: spec.image.clone().unwrap_or_default(),
        state: Some(waiting_state(waiting)),
        last_state: Some(core::ContainerState::default()),
        started: Some(false),
        ..Default::default()
    };
    if let Some(before) = before {
        status.restart_count = before.restart_count;
        status.last_state.clone_from(&before.last_state);
        let ran = before.state.as_ref().is_some_and(|state| state.running.is_some());
        if ran && before.container_id.is_some() {
            status.last_state = Some(terminated_state(lost(before.container_id.clone())));
        }
    }
    status
}

fn lost(container_id: Option<String>) -> core::ContainerStateTerminated {
    core::ContainerStateTerminated {
        exit_code: 137,
        reason: Some("ContainerStatusUnknown".to_owned()),
        message: Some("The container could not be located when the pod was terminated".to_owned()),
        container_id,
        ..Default::default()
    }
}

/// Upstream's TerminatePod: what must have run and cannot be found counts as failed. What initialization never let begin goes on waiting.
fn end_missing(pod: &core::Pod, by_role: &mut BTreeMap<u8, Vec<core::ContainerStatus>>) {
    let inits = by_role.get(&0).map_or(&[][..], Vec::as_slice);
    let apps = by_role.get(&1).map_or(&[][..], Vec::as_slice);
    let began = |status: &core::ContainerStatus| {
        let waits = status.state.as_ref().is_none_or(|state| state.waiting.is_some());
        !waits || last_exit_code(status).is_some()
    };
    let last_done = inits.last().is_none_or(|last| {
        let sidecar = model::container(pod, &last.name).is_some_and(|(role, _)| role == Role::Sidecar);
        (sidecar && last.started == Some(true))
            || (!sidecar && (exit_code(last) == Some(0) || last_exit_code(last) == Some(0)))
    });
    let initialized = last_done || apps.iter().any(began);
    let attempted = inits.iter().rposition(began).map_or(1, |last| last + 1);
    for status in by_role.get_mut(&0).into_iter().flatten().take(attempted) {
        end_unknown(status);
    }
    for status in by_role.get_mut(&1).into_iter().flatten().filter(|_| initialized) {
        end_unknown(status);
    }
}

fn end_unknown(status: &mut core::ContainerStatus) {
    if !is_terminated(status) {
        status.state = Some(terminated_state(lost(status.container_id.clone())));
        status.ready = false;
        status.started = Some(false);
    }
}

fn is_terminated(status: &core::ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|state| state.terminated.is_some())
}

fn exit_code(status: &core::ContainerStatus) -> Option<i32> {
    status.state.as_ref()?.terminated.as_ref().map(|state| state.exit_code)
}

fn last_exit_code(status: &core::ContainerStatus) -> Option<i32> {
    status.last_state.as_ref()?.terminated.as_ref().map(|state| state.exit_code)
}

/// Upstream's getPhase.
fn phase(facts: &Facts<'_>, by_role: &BTreeMap<u8, Vec<core::ContainerStatus>>) -> &'static str {
    let policy = model::spec(facts.pod).restart_policy.as_deref().unwrap_or("Always");
    let apps = by_role.get(&1).map_or(&[][..], Vec::as_slice);
    let app_started = apps.iter().any(|status| status.container_id.is_some());
    let inits = by_role.get(&0).map_or(&[][..], Vec::as_slice);
    let mut pending_initialization = false;
    for ((role, _), status) in model::containers(facts.pod).iter().zip(inits) {
        match role {
            Role::Init => match exit_code(status) {
                Some(0) => {}
                Some(_) if policy == "Never" => return "Failed",
                _ => pending_initialization = true,
            },
            _ => pending_initialization |= status.started != Some(true),
        }
    }
    let (mut waiting, mut running, mut stopped, mut succeeded) = (0, 0, 0, 0);
    for status in apps {
        let state = status.state.clone().unwrap_or_default();
        let had = status.last_state.as_ref().is_some_and(|state| state.terminated.is_some());
        if state.running.is_some() {
            running += 1;
        } else if let Some(code) = exit_code(status) {
            stopped += 1;
            succeeded += u32::from(code == 0);
        } else if had {
            stopped += 1;
        } else {
            waiting += 1;
        }
    }
    if pending_initialization && !app_started {
        return if facts.ended { "Failed" } else { "Pending" };
    }
    if waiting > 0 {
        "Pending"
    } else if running > 0 {
        "Running"
    } else if stopped == succeeded && (policy != "Always" || facts.ended) {
        "Succeeded"
    } else if policy == "Never" || facts.ended {
        "Failed"
    } else {
        "Running"
    }
}

struct Condition {
    kind: &'static str,
    unmet: Option<(&'static str, String)>,
}

fn conditions(facts: &Facts<'_>, status: &core::PodStatus) -> Vec<core::PodCondition> {
    let ready_to_start = facts
        .observed
        .ready_sandbox()
        .is_some_and(|sandbox| model::host_network(facts.pod) || !sandbox.ips.is_empty());
    let containers_ready = containers_ready(facts.pod, status);
    let ready = containers_ready.clone().or_else(|| readiness_gates(facts));
    let list = [
        Condition {
            kind: "PodReadyToStartContainers",
            unmet: (!ready_to_start).then(|| ("", String::new())),
        },
        Condition { kind: "Initialized", unmet: initialized(facts.pod, status) },
        Condition { kind: "Ready", unmet: ready },
        Condition { kind: "ContainersReady", unmet: containers_ready },
        Condition { kind: "PodScheduled", unmet: None },
    ];
    list.into_iter().map(|condition| render(facts, condition, status)).collect()
}

fn render(facts: &Facts<'_>, condition: Condition, status: &core::PodStatus) -> core::PodCondition {
    let known = facts.before.conditions.iter().flatten().find(|old| old.type_ == condition.kind);
    let value = if condition.unmet.is_some() { "False" } else { "True" };
    let (mut reason, mut message) = condition.unmet.map_or((None, None), |(reason, message)| {
        (Some(reason.to_owned()).filter(|r| !r.is_empty()), Some(message).filter(|m| !m.is_empty()))
    });
    if condition.kind == "Initialized" && value == "True" && status.phase.as_deref() == Some("Succeeded") {
        reason = Some("PodCompleted".to_owned());
        message = None;
    }
    let same = known.filter(|old| old.status == value);
    let second = Timestamp::from_second(facts.now.as_second()).unwrap_or(facts.now);
    core::PodCondition {
        type_: condition.kind.to_owned(),
        status: value.to_owned(),
        reason,
        message,
        last_transition_time: same.and_then(|old| old.last_transition_time.clone()).or(Some(Time(second))),
        last_probe_time: None,
        observed_generation: facts.pod.metadata.generation,
    }
}

fn containers_ready(pod: &core::Pod, status: &core::PodStatus) -> Option<(&'static str, String)> {
    match status.phase.as_deref() {
        Some("Succeeded") => return Some(("PodCompleted", String::new())),
        Some("Failed") => return Some(("PodFailed", String::new())),
        _ => {}
    }
    let sidecars = model::containers(pod).into_iter().filter(|(role, _)| *role == Role::Sidecar);
    let sidecars: Vec<String> = sidecars.map(|(_, container)| container.name.clone()).collect();
    let counted = status
        .init_container_statuses
        .iter()
        .flatten()
        .filter(|status| sidecars.contains(&status.name))
        .chain(status.container_statuses.iter().flatten());
    let unready: Vec<&str> =
        counted.filter(|status| !status.ready).map(|status| status.name.as_str()).collect();
    (!unready.is_empty())
        .then(|| ("ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" "))))
}

fn initialized(pod: &core::Pod, status: &core::PodStatus) -> Option<(&'static str, String)> {
    let app_started = status.container_statuses.iter().flatten().any(|status| status.container_id.is_some());
    if app_started || status.phase.as_deref() == Some("Succeeded") {
        return None;
    }
    let statuses = status.init_container_statuses.iter().flatten();
    let incomplete: Vec<&str> = model::containers(pod)
        .iter()
        .zip(statuses)
        .filter(|((role, _), status)| match role {
            Role::Sidecar => status.started != Some(true),
            _ => exit_code(status) != Some(0),
        })
        .map(|(_, status)| status.name.as_str())
        .collect();
    (!incomplete.is_empty()).then(|| {
        ("ContainersNotInitialized", format!("containers with incomplete status: [{}]", incomplete.join(" ")))
    })
}

fn readiness_gates(facts: &Facts<'_>) -> Option<(&'static str, String)> {
    let conditions = facts.pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let gates = model::spec(facts.pod).readiness_gates.iter().flatten();
    let unmet: Vec<String> = gates
        .filter_map(|gate| {
            let kind = &gate.condition_type;
            match conditions.into_iter().flatten().find(|condition| condition.type_ == *kind) {
                None => {
                    Some(format!("corresponding condition of pod readiness gate {kind:?} does not exist."))
                }
                Some(condition) if condition.status == "True" => None,
                Some(condition) => Some(format!(
                    "the status of pod readiness gate {kind:?} is not \"True\", but {}",
                    condition.status
                )),
            }
        })
        .collect();
    (!unmet.is_empty()).then(|| ("ReadinessGatesNotReady", unmet.join(", ")))
}
