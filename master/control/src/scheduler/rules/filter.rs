use crate::model::{HostPort, Pod, Resources, Scheduling, Taint};
use crate::node::eviction::plan::bears;

use super::affinity;
use super::model::Place;

/// Why a node does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Misfit {
    pub(super) reasons: Vec<String>,
    /// Whether pods leaving the node could make it fit.
    pub(super) is_resolvable: bool,
}

fn never(reason: impl Into<String>) -> Option<Misfit> {
    Some(Misfit { reasons: vec![reason.into()], is_resolvable: false })
}

/// Upstream's filters in upstream's order; the first that refuses gives its reasons.
pub(super) fn misfit(pod: &Pod, wants: &Scheduling, place: &Place) -> Option<Misfit> {
    let node = place.node.as_ref()?;
    let unschedulable = Taint {
        key: "node.kubernetes.io/unschedulable".to_owned(),
        value: String::new(),
        effect: "NoSchedule".to_owned(),
        added: None,
    };
    if node.unschedulable && !pod.tolerations.iter().any(|toleration| bears(toleration, &unschedulable)) {
        return never("node(s) were unschedulable");
    }
    let mut repelling =
        node.taints.iter().filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"));
    if let Some(taint) =
        repelling.find(|taint| !pod.tolerations.iter().any(|toleration| bears(toleration, taint)))
    {
        return never(format!("node(s) had untolerated taint {{{}: {}}}", taint.key, taint.value));
    }
    if !affinity::is_required_met(wants, node) {
        return never("node(s) didn't match Pod's node affinity/selector");
    }
    if wants.requires_pod_affinity {
        return never("node(s) are ruled out because this scheduler does not do required inter-pod affinity");
    }
    if has_port_conflict(pod, place) {
        let reason = "node(s) didn't have free ports for the requested pod ports".to_owned();
        return Some(Misfit { reasons: vec![reason], is_resolvable: true });
    }
    shortage(&pod.requests, place)
}

fn has_port_conflict(pod: &Pod, place: &Place) -> bool {
    let overlaps = |left: &HostPort, right: &HostPort| {
        left.port == right.port
            && left.protocol == right.protocol
            && (left.ip == right.ip || left.ip == "0.0.0.0" || right.ip == "0.0.0.0")
    };
    pod.host_ports.iter().any(|wanted| {
        place.pods.values().flat_map(|other| &other.host_ports).any(|taken| overlaps(wanted, taken))
    })
}

fn shortage(wanted: &Resources, place: &Place) -> Option<Misfit> {
    let node = place.node.as_ref()?;
    let (total, used) = (&node.allocatable, &place.requested);
    let mut reasons = Vec::new();
    let mut is_resolvable = true;
    if i64::try_from(place.pods.len()).unwrap_or(i64::MAX).saturating_add(1) > total.pods {
        reasons.push("Too many pods".to_owned());
    }
    let mut check = |name: &str, wanted: i64, used: i64, total: i64| {
        if wanted > 0 && wanted > total.saturating_sub(used) {
            reasons.push(format!("Insufficient {name}"));
            is_resolvable &= wanted <= total;
        }
    };
    check("cpu", wanted.milli_cpu, used.milli_cpu, total.milli_cpu);
    check("memory", wanted.memory_bytes, used.memory_bytes, total.memory_bytes);
    check("ephemeral-storage", wanted.ephemeral_bytes, used.ephemeral_bytes, total.ephemeral_bytes);
    for (name, amount) in &wanted.other {
        let of = |resources: &Resources| resources.other.get(name).copied().unwrap_or(0);
        check(name, *amount, of(used), of(total));
    }
    (!reasons.is_empty()).then_some(Misfit { reasons, is_resolvable })
}
