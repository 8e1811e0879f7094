//! The Node object: a pure function of configuration, machine and health.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use orlop_cri::v1 as cri;

use super::machine::{self, Machine};
use crate::config::Config;
use crate::quantity::{self, Resources};

/// The Kubernetes version this kubelet implements.
pub(crate) const VERSION: &str = "v1.36.0";
/// Images listed in the status (upstream: nodeStatusMaxImages).
const IMAGES_LIMIT: usize = 50;
/// Below these the node is under pressure (upstream's default evictionHard).
const MEMORY_PRESSURE_BYTES: i64 = 100 << 20;
const DISK_PRESSURE_PERCENT: u64 = 10;

/// What the runtime says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Health {
    /// For example `containerd`; empty until it answered once.
    pub(crate) runtime_name: String,
    pub(crate) runtime_version: String,
    pub(crate) runtime_ready: bool,
    pub(crate) network_ready: bool,
    /// Why it is not ready.
    pub(crate) message: String,
    /// Name, recursive read-only mounts, user namespaces.
    pub(crate) handlers: Vec<(String, bool, bool)>,
    pub(crate) supplemental_groups_policy: bool,
}

impl Health {
    pub(crate) fn is_ready(&self) -> bool {
        self.runtime_ready && self.network_ready
    }
}

/// What is measured at each report.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measured {
    pub(crate) memory_available_bytes: i64,
    pub(crate) disk: Option<(u64, u64)>,
    pub(crate) pids: Option<(u64, u64)>,
    pub(crate) images: Vec<cri::Image>,
}

fn quantity(value: impl ToString) -> Quantity {
    Quantity(value.to_string())
}

/// Everything there is.
pub(crate) fn capacity(config: &Config, machine: &Machine) -> Resources {
    let mut capacity = Resources::from([
        ("cpu".to_owned(), quantity(machine.cpus)),
        ("memory".to_owned(), quantity(format!("{}Ki", machine.memory_bytes / 1024))),
        ("ephemeral-storage".to_owned(), quantity(format!("{}Ki", machine.disk_bytes / 1024))),
        ("pods".to_owned(), quantity(config.max_pods)),
    ]);
    for (size, bytes) in &machine.hugepages {
        capacity.insert(format!("hugepages-{size}"), quantity(bytes));
    }
    capacity
}

/// What pods may use.
pub(crate) fn allocatable(config: &Config, machine: &Machine) -> Resources {
    let mut allocatable = capacity(config, machine);
    for (name, reserved) in config.kube_reserved.iter().chain(&config.system_reserved) {
        let Some(entry) = allocatable.get_mut(name) else {
            continue;
        };
        let left = quantity::milli(&entry.0)
            .unwrap_or(0)
            .saturating_sub(quantity::milli(reserved).unwrap_or(0))
            .max(0);
        entry.0 = if name == "cpu" { format!("{left}m") } else { (left / 1000).to_string() };
    }
    allocatable
}

/// Labels that this kubelet owns.
pub(crate) fn labels(config: &Config) -> BTreeMap<String, String> {
    let mut labels = config.node_labels.clone();
    for prefix in ["kubernetes.io", "beta.kubernetes.io"] {
        labels.insert(format!("{prefix}/os"), "linux".to_owned());
        labels.insert(format!("{prefix}/arch"), machine::architecture().to_owned());
    }
    labels.insert("kubernetes.io/hostname".to_owned(), config.node_name.clone());
    labels
}

/// The object to register.
pub(crate) fn node(config: &Config, status: core::NodeStatus) -> core::Node {
    let taints = config.register_with_taints.clone();
    core::Node {
        metadata: ObjectMeta {
            name: Some(config.node_name.clone()),
            labels: Some(labels(config)),
            ..Default::default()
        },
        spec: Some(core::NodeSpec {
            provider_id: config.provider_id.clone(),
            taints: (!taints.is_empty()).then_some(taints),
            ..Default::default()
        }),
        status: Some(status),
    }
}

fn condition(kind: &str, bad: bool, when_bad: (&str, &str), when_good: (&str, &str)) -> core::NodeCondition {
    let (reason, message) = if bad { when_bad } else { when_good };
    core::NodeCondition {
        type_: kind.to_owned(),
        status: if bad { "True" } else { "False" }.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        ..Default::default()
    }
}

fn ready(health: &Health) -> core::NodeCondition {
    let (status, reason, message) = if health.is_ready() {
        ("True", "KubeletReady", "kubelet is posting ready status".to_owned())
    } else {
        ("False", "KubeletNotReady", health.message.clone())
    };
    core::NodeCondition {
        type_: "Ready".to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        ..Default::default()
    }
}

/// The four conditions, with times carried over from `before` where the status is the same.
fn conditions(
    health: &Health,
    measured: &Measured,
    before: &[core::NodeCondition],
    now: Timestamp,
) -> Vec<core::NodeCondition> {
    let disk_low =
        measured.disk.is_some_and(|(size, free)| size > 0 && free * 100 / size < DISK_PRESSURE_PERCENT);
    let pids_low = measured.pids.is_some_and(|(used, limit)| limit > 0 && used * 100 / limit > 90);
    let mut list = vec![
        condition(
            "MemoryPressure",
            measured.memory_available_bytes < MEMORY_PRESSURE_BYTES,
            ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
            ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ),
        condition(
            "DiskPressure",
            disk_low,
            ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ),
        condition(
            "PIDPressure",
            pids_low,
            ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
            ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ),
        ready(health),
    ];
    let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    for condition in &mut list {
        let same = before.iter().find(|old| old.type_ == condition.type_ && old.status == condition.status);
        condition.last_heartbeat_time = Some(now.clone());
        condition.last_transition_time =
            same.and_then(|old| old.last_transition_time.clone()).or_else(|| Some(now.clone()));
    }
    list
}

fn images(list: &[cri::Image]) -> Vec<core::ContainerImage> {
    let mut sorted: Vec<&cri::Image> = list.iter().collect();
    sorted.sort_by_key(|image| std::cmp::Reverse(image.size));
    let images = sorted.into_iter().take(IMAGES_LIMIT).map(|image| {
        let names = image.repo_digests.iter().chain(&image.repo_tags).take(5).cloned().collect();
        core::ContainerImage { names: Some(names), size_bytes: i64::try_from(image.size).ok() }
    });
    images.collect()
}

/// The whole status.
pub(crate) fn status(
    config: &Config,
    machine: &Machine,
    health: &Health,
    measured: &Measured,
    before: Option<&core::NodeStatus>,
    now: Timestamp,
) -> core::NodeStatus {
    let old_conditions = before.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let address =
        |kind: &str, address: &str| core::NodeAddress { type_: kind.to_owned(), address: address.to_owned() };
    core::NodeStatus {
        capacity: Some(capacity(config, machine)),
        allocatable: Some(allocatable(config, machine)),
        addresses: Some(vec![address("InternalIP", &config.node_ip), address("Hostname", &config.node_name)]),
        conditions: Some(conditions(health, measured, old_conditions, now)),
        daemon_endpoints: Some(core::NodeDaemonEndpoints {
            kubelet_endpoint: Some(core::DaemonEndpoint { port: i32::from(config.port) }),
        }),
        images: Some(images(&measured.images)),
        node_info: Some(core::NodeSystemInfo {
            architecture: machine::architecture().to_owned(),
            boot_id: machine.boot_id.clone(),
            container_runtime_version: format!("{}://{}", health.runtime_name, health.runtime_version),
            kernel_version: machine.kernel.clone(),
            kubelet_version: VERSION.to_owned(),
            machine_id: machine.machine_id.clone(),
            operating_system: "linux".to_owned(),
            os_image: machine.os_image.clone(),
            system_uuid: machine.system_uuid.clone(),
            ..Default::default()
        }),
        runtime_handlers: Some(
            health
                .handlers
                .iter()
                .map(|(name, read_only, users)| core::NodeRuntimeHandler {
                    name: Some(name.clone()),
                    features: Some(core::NodeRuntimeHandlerFeatures {
                        recursive_read_only_mounts: Some(*read_only),
                        user_namespaces: Some(*users),
                    }),
                })
                .collect(),
        ),
        features: Some(core::NodeFeatures {
            supplemental_groups_policy: Some(health.supplemental_groups_policy),
        }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_is_taken_off_and_times_are_carried_over() {
        let config = Config {
            node_name: "n1".into(),
            node_ip: "10.0.0.1".into(),
            kube_reserved: BTreeMap::from([("cpu".into(), "500m".into()), ("memory".into(), "1Mi".into())]),
            ..Config::default()
        };
        let machine = Machine { cpus: 2, memory_bytes: 4 << 20, ..Machine::default() };
        let allocatable = allocatable(&config, &machine);
        assert_eq!((allocatable["cpu"].0.as_str(), allocatable["memory"].0.as_str()), ("1500m", "3145728"));
        let health = Health { message: "network not ready".into(), ..Health::default() };
        let first = status(
            &config,
            &machine,
            &health,
            &Measured::default(),
            None,
            Timestamp::from_second(100).unwrap(),
        );
        let ready = Health { runtime_ready: true, network_ready: true, ..Health::default() };
        let measured = Measured { memory_available_bytes: 1 << 30, ..Measured::default() };
        let second =
            status(&config, &machine, &ready, &measured, Some(&first), Timestamp::from_second(200).unwrap());
        let times: Vec<(String, String, i64)> = second
            .conditions
            .unwrap()
            .into_iter()
            .map(|condition| {
                (condition.type_, condition.status, condition.last_transition_time.unwrap().0.as_second())
            })
            .collect();
        assert_eq!(times[0], ("MemoryPressure".into(), "False".into(), 200));
        assert_eq!(times[1], ("DiskPressure".into(), "False".into(), 100));
        assert_eq!(times[3], ("Ready".into(), "True".into(), 200));
    }
}
