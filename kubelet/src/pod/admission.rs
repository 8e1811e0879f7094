//! Whether this node takes a pod that was bound to it: resources, host ports, selector, operating system.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;

use super::model::{self, Role};
use super::status::Verdict;
use super::sysctls;
use crate::quantity::{self, Resources};

/// What the node offers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Offer {
    pub(crate) allocatable: Resources,
    pub(crate) labels: BTreeMap<String, String>,
    /// Sysctls beyond the safe ones.
    pub(crate) allowed_sysctls: Vec<String>,
}

const PODS: &str = "pods";

/// What the scheduler counts for a pod: the larger of running and starting it, with overhead. cpu in thousandths.
pub(crate) fn requests(pod: &core::Pod) -> BTreeMap<String, i64> {
    let mut running = BTreeMap::new();
    let mut sidecars: BTreeMap<String, i64> = BTreeMap::new();
    let mut starting: BTreeMap<String, i64> = BTreeMap::new();
    for (role, container) in model::containers(pod) {
        let requests = container_requests(&container);
        match role {
            Role::App => add(&mut running, &requests),
            Role::Sidecar => {
                add(&mut sidecars, &requests);
                raise(&mut starting, &sidecars);
            }
            Role::Init => {
                let mut together = sidecars.clone();
                add(&mut together, &requests);
                raise(&mut starting, &together);
            }
            Role::Ephemeral => {}
        }
    }
    add(&mut running, &sidecars);
    raise(&mut running, &starting);
    let overhead = model::spec(pod).overhead.iter().flatten();
    let overhead =
        overhead.filter_map(|(name, quantity)| Some((name.clone(), amount(name, &quantity.0)?))).collect();
    add(&mut running, &overhead);
    running.insert(PODS.to_owned(), 1);
    running
}

fn container_requests(container: &core::Container) -> BTreeMap<String, i64> {
    let resources = container.resources.clone().unwrap_or_default();
    let mut all = resources.limits.unwrap_or_default();
    all.extend(resources.requests.unwrap_or_default());
    all.into_iter().filter_map(|(name, quantity)| Some((name.clone(), amount(&name, &quantity.0)?))).collect()
}

fn amount(name: &str, text: &str) -> Option<i64> {
    if name == "cpu" { quantity::milli(text) } else { quantity::whole(text) }
}

fn add(total: &mut BTreeMap<String, i64>, more: &BTreeMap<String, i64>) {
    for (name, value) in more {
        let entry = total.entry(name.clone()).or_default();
        *entry = entry.saturating_add(*value);
    }
}

fn raise(total: &mut BTreeMap<String, i64>, other: &BTreeMap<String, i64>) {
    for (name, value) in other {
        let entry = total.entry(name.clone()).or_default();
        *entry = (*entry).max(*value);
    }
}

/// `(protocol, address, port)` of every host port.
fn host_ports(pod: &core::Pod) -> Vec<(String, String, i32)> {
    let mut ports = Vec::new();
    for (_, container) in model::containers(pod) {
        for port in container.ports.iter().flatten() {
            let Some(number) = port.host_port.filter(|number| *number > 0) else {
                continue;
            };
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            ports.push((protocol, port.host_ip.clone().unwrap_or_default(), number));
        }
    }
    ports
}

fn conflicts(one: &(String, String, i32), other: &(String, String, i32)) -> bool {
    let any = |address: &str| matches!(address, "" | "0.0.0.0" | "::");
    one.0 == other.0 && one.2 == other.2 && (any(&one.1) || any(&other.1) || one.1 == other.1)
}

/// `Err` with the reason and message that upstream's status has. `others` are the pods that have been taken and have not ended.
pub(crate) fn admit(pod: &core::Pod, others: &[&core::Pod], offer: &Offer) -> Result<(), Verdict> {
    let rejected = |reason: String, message: String| Verdict {
        rejected: true,
        reason,
        message: format!("Pod was rejected: {message}"),
    };
    let spec = model::spec(pod);
    if let Some(os) = spec.os.as_ref().filter(|os| os.name != "linux") {
        return Err(rejected(
            "PodOSNotSupported".to_owned(),
            format!("Failed to admit pod as the OS field doesn't match node OS: {}", os.name),
        ));
    }
    if let Some(problem) = sysctls::forbidden(spec, &offer.allowed_sysctls) {
        return Err(rejected("SysctlForbidden".to_owned(), problem));
    }
    let unmatched =
        spec.node_selector.iter().flatten().any(|(key, value)| offer.labels.get(key) != Some(value));
    if unmatched {
        return Err(rejected(
            "NodeAffinity".to_owned(),
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector".to_owned(),
        ));
    }
    let mine = host_ports(pod);
    let taken = others.iter().flat_map(|other| host_ports(other));
    if taken.into_iter().any(|taken| mine.iter().any(|port| conflicts(port, &taken))) {
        return Err(rejected(
            "NodePorts".to_owned(),
            "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"
                .to_owned(),
        ));
    }
    let mut used = BTreeMap::new();
    for other in others {
        add(&mut used, &requests(other));
    }
    for (name, requested) in requests(pod) {
        let capacity =
            offer.allocatable.get(&name).and_then(|quantity| amount(&name, &quantity.0)).unwrap_or(0);
        let used = used.get(&name).copied().unwrap_or(0);
        if requested > 0 && used.saturating_add(requested) > capacity {
            return Err(rejected(
                format!("OutOf{name}"),
                format!(
                    "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
                ),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: serde_json::Value) -> core::Pod {
        serde_json::from_value(serde_json::json!({"metadata": {"name": "p", "uid": "u"}, "spec": spec}))
            .unwrap()
    }

    fn offer() -> Offer {
        let resources = serde_json::json!({"cpu": "1", "memory": "1Gi", "pods": "2"});
        Offer {
            allocatable: serde_json::from_value(resources).unwrap(),
            labels: BTreeMap::from([("kubernetes.io/os".into(), "linux".into())]),
            allowed_sysctls: Vec::new(),
        }
    }

    #[test]
    fn what_fits_is_taken_and_what_does_not_says_why() {
        let half = pod(
            serde_json::json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "600m"}}}]}),
        );
        let plain = pod(serde_json::json!({"containers": [{"name": "a"}]}));
        let port = pod(
            serde_json::json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "hostPort": 80}]}]}),
        );
        let udp = pod(
            serde_json::json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "hostPort": 80, "protocol": "UDP"}]}]}),
        );
        let windows = pod(
            serde_json::json!({"containers": [{"name": "a"}], "nodeSelector": {"kubernetes.io/os": "windows"}}),
        );
        let tuned = pod(
            serde_json::json!({"containers": [{"name": "a"}], "securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}),
        );
        let table: [(&core::Pod, Vec<&core::Pod>, Option<&str>); 8] = [
            (&tuned, vec![], Some("SysctlForbidden")),
            (&half, vec![], None),
            (&half, vec![&half], Some("OutOfcpu")),
            (&plain, vec![&half], None),
            (&plain, vec![&plain, &half], Some("OutOfpods")),
            (&port, vec![&port], Some("NodePorts")),
            (&udp, vec![&port], None),
            (&windows, vec![], Some("NodeAffinity")),
        ];
        for (index, (pod, others, reason)) in table.iter().enumerate() {
            let result = admit(pod, others, &offer());
            assert_eq!(result.err().map(|verdict| verdict.reason).as_deref(), *reason, "row {index}");
        }
        let message = admit(&half, &[&half], &offer()).unwrap_err().message;
        assert_eq!(
            message,
            "Pod was rejected: Node didn't have enough resource: cpu, requested: 600, used: 600, capacity: 1000"
        );
    }

    #[test]
    fn init_containers_count_by_their_peak() {
        let pod = pod(serde_json::json!({
            "initContainers": [
                {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
                {"name": "i", "resources": {"requests": {"cpu": "500m"}}}],
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "200m"}}}]}));
        assert_eq!(requests(&pod)["cpu"], 600);
    }
}
