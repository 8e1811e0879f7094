use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::{Labels, Pod};

use super::model::{Cluster, Place};
use super::{filter, score, spread};

/// Where a pod goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Bind it to this node.
    Bind(String),
    /// No node fits; the message is upstream's.
    Unschedulable(String),
    /// A scheduling gate holds it back.
    Gated,
}

/// Finds the best node for a pod. `companions` are the selectors of the Services that select it.
pub(crate) fn plan(cluster: &Cluster, pod: &Pod, companions: &[Labels]) -> Verdict {
    let nothing = Default::default();
    let wants = pod.scheduling.as_deref().unwrap_or(&nothing);
    if !wants.gates.is_empty() {
        return Verdict::Gated;
    }
    let spreads = spread::hard(cluster, pod, wants);
    let mut fitting: Vec<(&Arc<crate::model::Node>, &Place)> = Vec::new();
    let mut refusals = Refusals::default();
    for (node, place) in cluster.nodes() {
        refusals.nodes += 1;
        if let Some(misfit) = filter::misfit(pod, wants, place) {
            refusals.add(&misfit.reasons, misfit.is_resolvable);
        } else if let Some(reason) = spreads.iter().find_map(|spread| spread.refusal(node)) {
            refusals.add(&[reason.to_owned()], true);
        } else {
            fitting.push((node, place));
        }
    }
    match score::best(pod, wants, companions, &fitting) {
        Some(node) => Verdict::Bind(node.meta.name.clone()),
        None => Verdict::Unschedulable(refusals.message()),
    }
}

#[derive(Default)]
struct Refusals {
    nodes: usize,
    resolvable: usize,
    reasons: BTreeMap<String, usize>,
}

impl Refusals {
    fn add(&mut self, reasons: &[String], is_resolvable: bool) {
        self.resolvable += usize::from(is_resolvable);
        for reason in reasons {
            *self.reasons.entry(reason.clone()).or_default() += 1;
        }
    }

    /// Upstream's FitError: counts in front of sorted reasons, then what preemption found. All pods have one priority here, so
    /// preemption never finds a victim.
    fn message(&self) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".to_owned();
        }
        let mut reasons: Vec<_> =
            self.reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        reasons.sort();
        let mut preemption = Vec::new();
        if self.resolvable > 0 {
            preemption.push(format!("{} No preemption victims found for incoming pod", self.resolvable));
        }
        if self.nodes > self.resolvable {
            preemption
                .push(format!("{} Preemption is not helpful for scheduling", self.nodes - self.resolvable));
        }
        preemption.sort();
        format!(
            "0/{nodes} nodes are available: {}. preemption: 0/{nodes} nodes are available: {}.",
            reasons.join(", "),
            preemption.join(", "),
            nodes = self.nodes
        )
    }
}

#[cfg(test)]
mod tests {
    use orlop_kube::Key;
    use serde_json::json;

    use super::*;
    use crate::model::{Node, Pod};

    fn node(name: &str, change: serde_json::Value) -> Arc<Node> {
        let mut object = json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "status": {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "110", "ephemeral-storage": "10Gi"}},
        });
        merge(&mut object, change);
        Arc::new(Node::of(&serde_json::from_value(object).unwrap()))
    }

    fn merge(into: &mut serde_json::Value, from: serde_json::Value) {
        match (into, from) {
            (serde_json::Value::Object(into), serde_json::Value::Object(from)) => {
                for (key, value) in from {
                    merge(into.entry(key).or_insert(serde_json::Value::Null), value);
                }
            }
            (into, from) => *into = from,
        }
    }

    fn pod(name: &str, spec: serde_json::Value) -> Arc<Pod> {
        let mut object = json!({
            "metadata": {"name": name, "namespace": "d", "uid": name, "labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "500m", "memory": "64Mi"}}}]},
        });
        merge(&mut object, json!({"spec": spec}));
        Arc::new(Pod::of(&serde_json::from_value(object).unwrap()))
    }

    fn key(name: &str) -> Key {
        Key { namespace: "d".into(), name: name.into() }
    }

    fn cluster(nodes: &[Arc<Node>], pods: &[Arc<Pod>]) -> Cluster {
        let mut cluster = Cluster::default();
        for node in nodes {
            cluster.set_node(&node.meta.name, Some(node.clone()));
        }
        for pod in pods {
            cluster.set_pod(&key(&pod.meta.name), Some(pod.clone()));
        }
        cluster
    }

    fn refused(verdict: Verdict) -> String {
        match verdict {
            Verdict::Unschedulable(message) => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn golden_refusals() {
        let none = "Preemption is not helpful for scheduling";
        let victims = "No preemption victims found for incoming pod";
        let taint = json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}});
        let busy = json!({"ports": [{"containerPort": 80, "hostPort": 80}], "name": "c"});
        let want = |name: &str, amount: &str| json!({"containers": [{"name": "c", "resources": {"requests": {name: amount}}}]});
        for (name, nodes, pods, spec, reason, preemption) in [
            (
                "cpu",
                vec![json!({})],
                vec![json!({"nodeName": "n0"}); 4],
                json!({}),
                "1 Insufficient cpu",
                format!("1 {victims}"),
            ),
            (
                "too much",
                vec![json!({})],
                vec![],
                want("cpu", "3"),
                "1 Insufficient cpu",
                format!("1 {none}"),
            ),
            (
                "gpu",
                vec![json!({})],
                vec![],
                want("example.com/gpu", "1"),
                "1 Insufficient example.com/gpu",
                format!("1 {none}"),
            ),
            (
                "pods",
                vec![json!({"status": {"allocatable": {"pods": "0"}}})],
                vec![],
                json!({}),
                "1 Too many pods",
                format!("1 {victims}"),
            ),
            (
                "taint",
                vec![taint.clone(), taint],
                vec![],
                json!({}),
                "2 node(s) had untolerated taint {k: v}",
                format!("2 {none}"),
            ),
            (
                "cordon",
                vec![json!({"spec": {"unschedulable": true}})],
                vec![],
                json!({}),
                "1 node(s) were unschedulable",
                format!("1 {none}"),
            ),
            (
                "selector",
                vec![json!({})],
                vec![],
                json!({"nodeSelector": {"disk": "ssd"}}),
                "1 node(s) didn't match Pod's node affinity/selector",
                format!("1 {none}"),
            ),
            (
                "ports",
                vec![json!({})],
                vec![json!({"nodeName": "n0", "containers": [busy.clone()]})],
                json!({"containers": [busy]}),
                "1 node(s) didn't have free ports for the requested pod ports",
                format!("1 {victims}"),
            ),
        ] {
            let nodes: Vec<_> = nodes
                .into_iter()
                .enumerate()
                .map(|(index, change)| node(&format!("n{index}"), change))
                .collect();
            let pods: Vec<_> =
                pods.into_iter().enumerate().map(|(index, spec)| pod(&format!("p{index}"), spec)).collect();
            let message = refused(plan(&cluster(&nodes, &pods), &pod("new", spec), &[]));
            let count = nodes.len();
            let expected = format!(
                "0/{count} nodes are available: {reason}. preemption: 0/{count} nodes are available: {preemption}."
            );
            assert_eq!(message, expected, "{name}");
        }
        assert_eq!(
            refused(plan(&Cluster::default(), &pod("new", json!({})), &[])),
            "no nodes available to schedule pods"
        );
    }

    #[test]
    fn pods_of_one_service_spread_over_nodes() {
        let mut cluster = cluster(&[node("a", json!({})), node("b", json!({}))], &[]);
        let companions = [Labels::from([("app".to_owned(), "web".to_owned())])];
        let mut placed = Vec::new();
        for index in 0..4 {
            let name = format!("p{index}");
            let pod = pod(&name, json!({}));
            let Verdict::Bind(node) = plan(&cluster, &pod, &companions) else { panic!("does not fit") };
            cluster.assume(&key(&name), pod, &node);
            placed.push(node);
        }
        assert_eq!(placed, ["a", "b", "a", "b"]);
    }

    #[test]
    fn preferences_and_mild_taints_decide() {
        let mild = json!({"spec": {"taints": [{"key": "k", "effect": "PreferNoSchedule"}]}});
        let nodes = [node("a", mild), node("b", json!({}))];
        assert_eq!(plan(&cluster(&nodes, &[]), &pod("p", json!({})), &[]), Verdict::Bind("b".into()));
        let preference = json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 100, "preference": {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["b"]}]}},
        ]}}});
        let nodes = [node("a", json!({})), node("b", json!({}))];
        assert_eq!(plan(&cluster(&nodes, &[]), &pod("p", preference), &[]), Verdict::Bind("b".into()));
        assert_eq!(plan(&cluster(&nodes, &[]), &pod("p", json!({})), &[]), Verdict::Bind("a".into()));
    }

    #[test]
    fn hard_spread_and_gates_hold_back() {
        let spread = json!({"topologySpreadConstraints": [{
            "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app": "web"}},
        }]});
        let nodes = [node("a", json!({})), node("b", json!({"spec": {"unschedulable": true}}))];
        let cluster = cluster(&nodes, &[pod("p0", json!({"nodeName": "a"}))]);
        let message = refused(plan(&cluster, &pod("p1", spread), &[]));
        assert!(message.contains("1 node(s) didn't match pod topology spread constraints"), "{message}");
        assert_eq!(
            plan(&cluster, &pod("p1", json!({"schedulingGates": [{"name": "g"}]})), &[]),
            Verdict::Gated
        );
    }

    #[test]
    fn assumptions_count_until_the_watch_speaks() {
        let nodes = [node("a", json!({"status": {"allocatable": {"cpu": "600m"}}}))];
        let mut cluster = cluster(&nodes, &[]);
        let first = pod("p0", json!({}));
        cluster.assume(&key("p0"), first.clone(), "a");
        // The stale watch still shows it without a node.
        cluster.set_pod(&key("p0"), Some(first));
        assert!(matches!(plan(&cluster, &pod("p1", json!({})), &[]), Verdict::Unschedulable(_)));
        cluster.forget(&key("p0"), "p0");
        assert_eq!(plan(&cluster, &pod("p1", json!({})), &[]), Verdict::Bind("a".into()));
        cluster.assume(&key("p0"), pod("p0", json!({})), "a");
        cluster.set_pod(&key("p0"), None);
        assert_eq!(plan(&cluster, &pod("p1", json!({})), &[]), Verdict::Bind("a".into()));
        cluster.set_node("a", None);
        assert!(cluster.places.is_empty());
    }
}
