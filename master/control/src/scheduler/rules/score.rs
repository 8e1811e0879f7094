use std::sync::Arc;

use crate::model::{Labels, Node, Pod, Scheduling, selects};
use crate::node::eviction::plan::bears;

use super::affinity;
use super::model::{Place, weight};

const FULL: i64 = 100;

/// The best of the fitting nodes. Weights as upstream's default profile: taints 3, affinity 2, spread 2, allocation 1, balance 1.
/// Among equals the node with fewer pods wins, then the first by name, so that a plan is reproducible.
pub(super) fn best<'a>(
    pod: &Pod,
    wants: &Scheduling,
    companions: &[Labels],
    fitting: &[(&'a Arc<Node>, &Place)],
) -> Option<&'a Arc<Node>> {
    let raw = |measure: &dyn Fn(&Node, &Place) -> i64| {
        fitting.iter().map(|(node, place)| measure(node, place)).collect::<Vec<_>>()
    };
    let repelled = raw(&|node, _| {
        let mild = node.taints.iter().filter(|taint| taint.effect == "PreferNoSchedule");
        let borne =
            |taint: &&crate::model::Taint| pod.tolerations.iter().any(|toleration| bears(toleration, taint));
        i64::try_from(mild.filter(|taint| !borne(taint)).count()).unwrap_or(i64::MAX)
    });
    let preferred = raw(&|node, _| affinity::preference(wants, node));
    let crowded = raw(&|_, place| companions_on(pod, companions, place));
    let scores = fitting.iter().enumerate().map(|(index, (node, place))| {
        let score = 3 * reversed(&repelled, index)
            + 2 * normalized(&preferred, index)
            + 2 * reversed(&crowded, index)
            + least_allocated(pod, node, place)
            + balance(pod, node, place);
        (score, std::cmp::Reverse(place.pods.len()), std::cmp::Reverse(node.meta.name.as_str()), *node)
    });
    scores
        .max_by(|left, right| (left.0, left.1, left.2).cmp(&(right.0, right.1, right.2)))
        .map(|(_, _, _, node)| node)
}

fn normalized(values: &[i64], index: usize) -> i64 {
    match values.iter().max() {
        Some(&most) if most > 0 => values[index] * FULL / most,
        _ => 0,
    }
}

fn reversed(values: &[i64], index: usize) -> i64 {
    FULL - normalized(values, index)
}

/// Pods of the same controller or behind the same Service.
fn companions_on(pod: &Pod, companions: &[Labels], place: &Place) -> i64 {
    let controller = pod.meta.controller();
    let is_companion = |other: &Pod| {
        other.meta.namespace == pod.meta.namespace
            && other.meta.deleting.is_none()
            && (controller
                .is_some_and(|owner| other.meta.controller().is_some_and(|theirs| theirs.uid == owner.uid))
                || companions.iter().any(|selector| selects(selector, &other.meta.labels)))
    };
    i64::try_from(place.pods.values().filter(|other| is_companion(other)).count()).unwrap_or(i64::MAX)
}

fn shares(pod: &Pod, node: &Node, place: &Place) -> [(i64, i64); 2] {
    let wanted = weight(pod);
    [
        (place.weighed.milli_cpu.saturating_add(wanted.milli_cpu), node.allocatable.milli_cpu),
        (place.weighed.memory_bytes.saturating_add(wanted.memory_bytes), node.allocatable.memory_bytes),
    ]
}

fn least_allocated(pod: &Pod, node: &Node, place: &Place) -> i64 {
    let free = shares(pod, node, place)
        .map(|(used, total)| if total <= 0 || used > total { 0 } else { share(total - used, total) });
    i64::midpoint(free[0], free[1])
}

/// 100 when CPU and memory are used to the same degree.
fn balance(pod: &Pod, node: &Node, place: &Place) -> i64 {
    let used = shares(pod, node, place).map(
        |(used, total)| {
            if total <= 0 { FULL } else { share(used, total).min(FULL) }
        },
    );
    FULL - (used[0] - used[1]).abs() / 2
}

fn share(part: i64, whole: i64) -> i64 {
    i64::try_from(i128::from(part) * i128::from(FULL) / i128::from(whole)).unwrap_or(0)
}
