use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;

use super::{HasMeta, Labels, Meta, Resources};

/// `status.phase`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Not all containers have started.
    #[default]
    Pending,
    /// Its node does not answer (no longer set by kubelets).
    Unknown,
    /// Running.
    Running,
    /// All containers ended with success.
    Succeeded,
    /// Ended, at least one with failure.
    Failed,
}

/// A container's declared port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPort {
    /// Name, maybe empty.
    pub name: String,
    /// Port.
    pub port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
}

/// A port that the pod takes on its node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// Address, `0.0.0.0` for all.
    pub ip: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Port.
    pub port: u16,
}

/// A toleration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Toleration {
    /// Taint key; empty matches all with `Exists`.
    pub key: String,
    /// `Equal` (also empty) or `Exists`.
    pub operator: String,
    /// Value for `Equal`.
    pub value: String,
    /// Effect; empty matches all.
    pub effect: String,
    /// How long a NoExecute taint is borne; none is for ever.
    pub seconds: Option<i64>,
}

/// What only the scheduler reads, kept while the pod has no node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scheduling {
    /// `spec.nodeSelector`.
    pub node_selector: Labels,
    /// `spec.affinity.nodeAffinity`.
    pub node_affinity: Option<core::NodeAffinity>,
    /// Whether inter-pod (anti-)affinity is required, which this scheduler does not do.
    pub requires_pod_affinity: bool,
    /// `spec.topologySpreadConstraints`.
    pub spread: Vec<core::TopologySpreadConstraint>,
    /// Names of scheduling gates.
    pub gates: Vec<String>,
    /// Message of the condition PodScheduled when it is False.
    pub refusal: Option<String>,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pod {
    /// Metadata.
    pub meta: Meta,
    /// Node it is bound to.
    pub node: Option<String>,
    /// Phase.
    pub phase: Phase,
    /// Its addresses, the primary first.
    pub ips: Vec<IpAddr>,
    /// Condition Ready is True.
    pub ready: bool,
    /// When Ready last changed.
    pub ready_changed: Option<Timestamp>,
    /// Whether condition Ready exists at all.
    pub has_ready_condition: bool,
    /// The highest restart count of its containers.
    pub restarts: i32,
    /// `spec.hostname`.
    pub hostname: String,
    /// `spec.subdomain`.
    pub subdomain: String,
    /// `spec.schedulerName`.
    pub scheduler: String,
    /// Declared ports.
    pub ports: Vec<ContainerPort>,
    /// Ports taken on the node.
    pub host_ports: Vec<HostPort>,
    /// Tolerations.
    pub tolerations: Vec<Toleration>,
    /// What it asks for.
    pub requests: Resources,
    /// Annotation `controller.kubernetes.io/pod-deletion-cost`.
    pub deletion_cost: i32,
    /// Present while the pod has no node.
    pub scheduling: Option<Box<Scheduling>>,
}

impl HasMeta for Pod {
    fn meta(&self) -> &Meta {
        &self.meta
    }
}

impl Pod {
    /// Projects a pod.
    pub fn of(object: &core::Pod) -> Self {
        let spec = object.spec.as_ref();
        let status = object.status.as_ref();
        let node = spec.and_then(|spec| spec.node_name.clone()).filter(|name| !name.is_empty());
        let ready = condition(status, "Ready");
        let annotations = object.metadata.annotations.as_ref();
        let cost = annotations.and_then(|all| all.get("controller.kubernetes.io/pod-deletion-cost"));
        Self {
            meta: Meta::of(&object.metadata),
            phase: phase(status.and_then(|status| status.phase.as_deref())),
            ips: addresses(status),
            ready: ready.is_some_and(|condition| condition.status == "True"),
            ready_changed: ready
                .and_then(|condition| condition.last_transition_time.as_ref())
                .map(|time| time.0),
            has_ready_condition: ready.is_some(),
            restarts: restarts(status),
            hostname: spec.and_then(|spec| spec.hostname.clone()).unwrap_or_default(),
            subdomain: spec.and_then(|spec| spec.subdomain.clone()).unwrap_or_default(),
            scheduler: spec
                .and_then(|spec| spec.scheduler_name.clone())
                .unwrap_or_else(|| "default-scheduler".to_owned()),
            ports: spec.map(container_ports).unwrap_or_default(),
            host_ports: spec.map(host_ports).unwrap_or_default(),
            tolerations: spec
                .and_then(|spec| spec.tolerations.as_ref())
                .into_iter()
                .flatten()
                .map(toleration)
                .collect(),
            requests: spec.map(resource_requests).unwrap_or_default(),
            deletion_cost: cost.and_then(|text| text.parse().ok()).unwrap_or(0),
            scheduling: node.is_none().then(|| spec.map(|spec| Box::new(scheduling(spec, status)))).flatten(),
            node,
        }
    }

    /// Succeeded or Failed.
    pub fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }

    /// Neither finished nor being deleted: what replica counts count.
    pub fn is_active(&self) -> bool {
        !self.is_finished() && self.meta.deleting.is_none()
    }
}

fn phase(text: Option<&str>) -> Phase {
    match text {
        Some("Running") => Phase::Running,
        Some("Succeeded") => Phase::Succeeded,
        Some("Failed") => Phase::Failed,
        Some("Unknown") => Phase::Unknown,
        _ => Phase::Pending,
    }
}

fn condition<'a>(status: Option<&'a core::PodStatus>, kind: &str) -> Option<&'a core::PodCondition> {
    status?.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

fn addresses(status: Option<&core::PodStatus>) -> Vec<IpAddr> {
    let Some(status) = status else { return Vec::new() };
    let all: Vec<IpAddr> =
        status.pod_ips.iter().flatten().filter_map(|address| address.ip.parse().ok()).collect();
    if all.is_empty() { status.pod_ip.iter().filter_map(|text| text.parse().ok()).collect() } else { all }
}

fn restarts(status: Option<&core::PodStatus>) -> i32 {
    let containers = status.and_then(|status| status.container_statuses.as_ref()).into_iter().flatten();
    containers.map(|container| container.restart_count).max().unwrap_or(0)
}

fn is_sidecar(container: &core::Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

fn serving_containers(spec: &core::PodSpec) -> impl Iterator<Item = &core::Container> {
    let sidecars = spec.init_containers.iter().flatten().filter(|container| is_sidecar(container));
    spec.containers.iter().chain(sidecars)
}

fn container_ports(spec: &core::PodSpec) -> Vec<ContainerPort> {
    let ports = serving_containers(spec).flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            Some(ContainerPort {
                name: port.name.clone().unwrap_or_default(),
                port: u16::try_from(port.container_port).ok()?,
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            })
        })
        .collect()
}

fn host_ports(spec: &core::PodSpec) -> Vec<HostPort> {
    let host_network = spec.host_network.unwrap_or(false);
    let ports = serving_containers(spec).flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let number =
                port.host_port.or(host_network.then_some(port.container_port)).filter(|port| *port > 0)?;
            Some(HostPort {
                ip: port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".to_owned()),
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                port: u16::try_from(number).ok()?,
            })
        })
        .collect()
}

fn toleration(object: &core::Toleration) -> Toleration {
    Toleration {
        key: object.key.clone().unwrap_or_default(),
        operator: object.operator.clone().unwrap_or_default(),
        value: object.value.clone().unwrap_or_default(),
        effect: object.effect.clone().unwrap_or_default(),
        seconds: object.toleration_seconds,
    }
}

fn scheduling(spec: &core::PodSpec, status: Option<&core::PodStatus>) -> Scheduling {
    let affinity = spec.affinity.as_ref();
    let required = |terms: Option<&Vec<core::PodAffinityTerm>>| terms.is_some_and(|terms| !terms.is_empty());
    let pod_affinity = affinity.and_then(|affinity| affinity.pod_affinity.as_ref());
    let anti_affinity = affinity.and_then(|affinity| affinity.pod_anti_affinity.as_ref());
    let terms = |terms: Option<&core::PodAffinity>| {
        required(terms.and_then(|terms| terms.required_during_scheduling_ignored_during_execution.as_ref()))
    };
    let anti_terms = |terms: Option<&core::PodAntiAffinity>| {
        required(terms.and_then(|terms| terms.required_during_scheduling_ignored_during_execution.as_ref()))
    };
    let refusal = condition(status, "PodScheduled").filter(|condition| condition.status == "False");
    Scheduling {
        node_selector: spec.node_selector.clone().unwrap_or_default(),
        node_affinity: affinity.and_then(|affinity| affinity.node_affinity.clone()),
        requires_pod_affinity: terms(pod_affinity) || anti_terms(anti_affinity),
        spread: spec.topology_spread_constraints.clone().unwrap_or_default(),
        gates: spec.scheduling_gates.iter().flatten().map(|gate| gate.name.clone()).collect(),
        refusal: refusal.and_then(|condition| condition.message.clone()),
    }
}

fn container_requests(resources: Option<&core::ResourceRequirements>) -> Resources {
    let Some(resources) = resources else {
        return Resources::default();
    };
    // An absent request defaults to the limit (API defaulting does the same; a pod may predate it).
    let mut list = resources.limits.clone().unwrap_or_default();
    list.extend(resources.requests.clone().unwrap_or_default());
    Resources::of(&list)
}

/// What a pod asks of its node: the sum of its containers or the peak of its init containers, whichever is more, with sidecars
/// counted in both (KEP-753), a pod-level request in place of the sum (KEP-2837), and the overhead on top.
pub fn resource_requests(spec: &core::PodSpec) -> Resources {
    let mut total = Resources::default();
    for container in &spec.containers {
        total.add(&container_requests(container.resources.as_ref()));
    }
    let mut sidecars = Resources::default();
    let mut peak = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let mut at_start = container_requests(container.resources.as_ref());
        if is_sidecar(container) {
            sidecars.add(&at_start);
            at_start = Resources::default();
        }
        at_start.add(&sidecars);
        peak.max(&at_start);
    }
    total.add(&sidecars);
    total.max(&peak);
    if let Some(pod_level) = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()) {
        let wanted = Resources::of(pod_level);
        if pod_level.contains_key("cpu") {
            total.milli_cpu = wanted.milli_cpu;
        }
        if pod_level.contains_key("memory") {
            total.memory_bytes = wanted.memory_bytes;
        }
    }
    if let Some(overhead) = &spec.overhead {
        total.add(&Resources::of(overhead));
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: serde_json::Value) -> core::Pod {
        serde_json::from_value(serde_json::json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    #[test]
    fn requests_follow_containers_sidecars_and_overhead() {
        let object = pod(serde_json::json!({
            "containers": [
                {"name": "a", "resources": {"requests": {"cpu": "100m", "memory": "10Mi"}}},
                {"name": "b", "resources": {"limits": {"cpu": "200m"}}},
            ],
            "initContainers": [
                {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "50m"}}},
                {"name": "init", "resources": {"requests": {"cpu": "1", "memory": "1Mi"}}},
            ],
            "overhead": {"cpu": "10m"},
        }));
        let requests = Pod::of(&object).requests;
        assert_eq!(requests.milli_cpu, 1060);
        assert_eq!(requests.memory_bytes, 10 << 20);
    }

    #[test]
    fn the_host_network_takes_the_declared_ports() {
        let object = pod(serde_json::json!({
            "hostNetwork": true,
            "containers": [{"name": "a", "ports": [{"containerPort": 80}, {"containerPort": 53, "protocol": "UDP", "hostIP": "127.0.0.1"}]}],
        }));
        let ports = Pod::of(&object).host_ports;
        assert_eq!(ports.len(), 2);
        assert_eq!((ports[0].ip.as_str(), ports[0].port), ("0.0.0.0", 80));
        assert_eq!((ports[1].ip.as_str(), ports[1].protocol.as_str()), ("127.0.0.1", "UDP"));
    }
}
