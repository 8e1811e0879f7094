//! Which conditions a silent node gets, and which taints follow from conditions.

use jiff::Timestamp;

use crate::model::{Node, Taint};

const PREFIX: &str = "node.kubernetes.io/";
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const NO_SCHEDULE: &str = "NoSchedule";
const NO_EXECUTE: &str = "NoExecute";

/// Conditions that only the kubelet writes.
const KUBELET_CONDITIONS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// Taint of a condition: type, status that taints, name under `node.kubernetes.io/`.
const BY_CONDITION: [(&str, &str, &str); 4] = [
    ("MemoryPressure", "True", "memory-pressure"),
    ("DiskPressure", "True", "disk-pressure"),
    ("PIDPressure", "True", "pid-pressure"),
    ("NetworkUnavailable", "True", "network-unavailable"),
];

/// A condition to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Silence {
    pub(crate) kind: &'static str,
    pub(crate) reason: &'static str,
    pub(crate) message: &'static str,
    /// Whether the status changes, so that the transition time does.
    pub(crate) is_transition: bool,
}

/// The conditions of a node whose kubelet is silent; empty when they are written already.
pub(crate) fn silence(node: &Node) -> Vec<Silence> {
    let wanted = KUBELET_CONDITIONS.into_iter().filter_map(|kind| match node.condition(kind) {
        Some(condition) if condition.status == "Unknown" => None,
        Some(_) => Some(Silence {
            kind,
            reason: "NodeStatusUnknown",
            message: "Kubelet stopped posting node status.",
            is_transition: true,
        }),
        None => Some(Silence {
            kind,
            reason: "NodeStatusNeverUpdated",
            message: "Kubelet never posted node status.",
            is_transition: true,
        }),
    });
    wanted.collect()
}

/// The taints a node must have: its foreign ones in their order, and ours by its conditions. `None` when it has them.
pub(crate) fn taints(node: &Node, is_silent: bool, now: Timestamp) -> Option<Vec<Taint>> {
    let mut wanted: Vec<(String, &str)> = Vec::new();
    let ready = node.condition("Ready").map(|condition| condition.status.as_str());
    match ready {
        Some("True") if !is_silent => {}
        Some("False") if !is_silent => {
            wanted.push((NOT_READY.to_owned(), NO_SCHEDULE));
            wanted.push((NOT_READY.to_owned(), NO_EXECUTE));
        }
        // A new node has not said anything yet: nothing is placed on it, and nothing is on it to be evicted.
        None if !is_silent => wanted.push((NOT_READY.to_owned(), NO_SCHEDULE)),
        _ => {
            wanted.push((UNREACHABLE.to_owned(), NO_SCHEDULE));
            wanted.push((UNREACHABLE.to_owned(), NO_EXECUTE));
        }
    }
    for (kind, status, name) in BY_CONDITION {
        if node.condition(kind).is_some_and(|condition| condition.status == status) {
            wanted.push((format!("{PREFIX}{name}"), NO_SCHEDULE));
        }
    }
    if node.unschedulable {
        wanted.push((format!("{PREFIX}unschedulable"), NO_SCHEDULE));
    }
    let mut taints: Vec<Taint> = Vec::new();
    for taint in &node.taints {
        let position = wanted.iter().position(|(key, effect)| *key == taint.key && *effect == taint.effect);
        match position {
            Some(position) => {
                wanted.remove(position);
                taints.push(taint.clone());
            }
            None if is_managed(taint) => {}
            None => taints.push(taint.clone()),
        }
    }
    taints.extend(wanted.into_iter().map(|(key, effect)| Taint {
        key,
        value: String::new(),
        effect: effect.to_owned(),
        added: Some(now),
    }));
    (taints != node.taints).then_some(taints)
}

fn is_managed(taint: &Taint) -> bool {
    let Some(name) = taint.key.strip_prefix(PREFIX) else {
        return false;
    };
    match taint.effect.as_str() {
        NO_EXECUTE => matches!(name, "not-ready" | "unreachable"),
        NO_SCHEDULE => {
            matches!(name, "not-ready" | "unreachable" | "unschedulable")
                || BY_CONDITION.iter().any(|(_, _, managed)| *managed == name)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Condition;

    fn node(conditions: &[(&str, &str)], taints: &[(&str, &str)]) -> Node {
        Node {
            conditions: conditions
                .iter()
                .map(|(kind, status)| Condition {
                    kind: (*kind).into(),
                    status: (*status).into(),
                    reason: String::new(),
                    heartbeat: None,
                })
                .collect(),
            taints: taints
                .iter()
                .map(|(key, effect)| Taint {
                    key: (*key).into(),
                    value: String::new(),
                    effect: (*effect).into(),
                    added: None,
                })
                .collect(),
            ..Node::default()
        }
    }

    fn keys(taints: Option<Vec<Taint>>) -> Option<Vec<String>> {
        let short = |taint: Taint| format!("{}:{}", taint.key.trim_start_matches(PREFIX), taint.effect);
        taints.map(|taints| taints.into_iter().map(short).collect())
    }

    #[test]
    fn taints_follow_conditions() {
        let now = Timestamp::UNIX_EPOCH;
        let some = |list: &[&str]| Some(list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        let healthy = node(&[("Ready", "True")], &[("mine", "NoExecute")]);
        assert_eq!(taints(&healthy, false, now), None);
        let tainted = node(&[("Ready", "True")], &[(NOT_READY, NO_SCHEDULE), ("mine", "NoSchedule")]);
        assert_eq!(keys(taints(&tainted, false, now)), some(&["mine:NoSchedule"]));
        assert_eq!(keys(taints(&node(&[], &[]), false, now)), some(&["not-ready:NoSchedule"]));
        let failing = node(&[("Ready", "False"), ("DiskPressure", "True")], &[]);
        assert_eq!(
            keys(taints(&failing, false, now)),
            some(&["not-ready:NoSchedule", "not-ready:NoExecute", "disk-pressure:NoSchedule"])
        );
        assert_eq!(
            keys(taints(&healthy, true, now)),
            some(&["mine:NoExecute", "unreachable:NoSchedule", "unreachable:NoExecute"])
        );
        let silent = node(&[("Ready", "Unknown")], &[(UNREACHABLE, NO_SCHEDULE), (UNREACHABLE, NO_EXECUTE)]);
        assert_eq!(taints(&silent, false, now), None);
        let mut cordoned = healthy;
        cordoned.unschedulable = true;
        assert_eq!(
            keys(taints(&cordoned, false, now)),
            some(&["mine:NoExecute", "unschedulable:NoSchedule"])
        );
    }

    #[test]
    fn silence_is_said_once() {
        let first = silence(&node(&[("Ready", "True"), ("MemoryPressure", "False")], &[]));
        assert_eq!(first.len(), 4);
        assert_eq!((first[0].reason, first[2].reason), ("NodeStatusUnknown", "NodeStatusNeverUpdated"));
        let all: Vec<_> = KUBELET_CONDITIONS.iter().map(|kind| (*kind, "Unknown")).collect();
        assert!(silence(&node(&all, &[])).is_empty());
    }
}
