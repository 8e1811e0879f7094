//! Which pods nobody will end: their node is gone, they never had one, or they are finished and too many.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::Pod;

/// What to do.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// Pods of these nodes are orphaned, once the API confirms that the node is gone.
    pub(crate) orphaned: BTreeMap<String, Vec<Arc<Pod>>>,
    /// Being deleted and never bound.
    pub(crate) unbound: Vec<Arc<Pod>>,
    /// Finished, the oldest first, above the threshold.
    pub(crate) finished: Vec<Arc<Pod>>,
    /// Nodes that pods name and that do not exist.
    pub(crate) missing: BTreeSet<String>,
}

/// `due` are the missing nodes whose grace is over.
pub(crate) fn plan(
    pods: &[Arc<Pod>],
    nodes: &BTreeSet<String>,
    due: &BTreeSet<String>,
    threshold: usize,
) -> Plan {
    let mut plan = Plan::default();
    let mut finished = Vec::new();
    for pod in pods {
        match &pod.node {
            Some(node) if !nodes.contains(node) => {
                plan.missing.insert(node.clone());
                if due.contains(node) {
                    plan.orphaned.entry(node.clone()).or_default().push(pod.clone());
                }
            }
            None if pod.meta.deleting.is_some() => plan.unbound.push(pod.clone()),
            _ if pod.is_finished() && pod.meta.deleting.is_none() => finished.push(pod.clone()),
            _ => {}
        }
    }
    finished.sort_by_key(|pod| (pod.meta.created, pod.meta.uid.clone()));
    let above = finished.len().saturating_sub(threshold);
    plan.finished = finished.into_iter().take(above).collect();
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Meta, Phase};

    #[test]
    fn only_what_nobody_ends_is_collected() {
        let pod = |name: &str, node: Option<&str>, phase: Phase, deleting: bool| {
            Arc::new(Pod {
                meta: Meta {
                    name: name.into(),
                    uid: name.into(),
                    deleting: deleting.then_some(jiff::Timestamp::UNIX_EPOCH),
                    ..Meta::default()
                },
                node: node.map(str::to_owned),
                phase,
                ..Pod::default()
            })
        };
        let pods = [
            pod("fine", Some("n1"), Phase::Running, false),
            pod("waiting", Some("gone-lately"), Phase::Running, false),
            pod("orphan", Some("gone"), Phase::Running, true),
            pod("unbound", None, Phase::Pending, true),
            pod("pending", None, Phase::Pending, false),
            pod("done-1", Some("n1"), Phase::Succeeded, false),
            pod("done-2", Some("n1"), Phase::Failed, false),
        ];
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let plan = plan(&pods, &set(&["n1"]), &set(&["gone"]), 1);
        assert_eq!(plan.missing, set(&["gone", "gone-lately"]));
        assert_eq!(plan.orphaned["gone"][0].meta.name, "orphan");
        assert_eq!(plan.unbound[0].meta.name, "unbound");
        assert_eq!(plan.finished.iter().map(|pod| pod.meta.name.as_str()).collect::<Vec<_>>(), ["done-1"]);
    }
}
