//! What a controller of identical pods must do, as a pure function of what is there.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ReplicationControllerCondition, ReplicationControllerStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::model::{Phase, Pod, Workload, selects};

/// Most pods made or deleted in one step, as upstream's BurstReplicas.
pub(crate) const BURST: usize = 500;

/// A create that the API server refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// The actions, in the order in which they are carried out.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// Orphans to take over.
    pub(crate) adopt: Vec<Arc<Pod>>,
    /// Owned pods that no longer match.
    pub(crate) release: Vec<Arc<Pod>>,
    /// Pods to make.
    pub(crate) create: usize,
    /// Pods to delete, the first one first.
    pub(crate) delete: Vec<Arc<Pod>>,
    /// When a ready pod becomes available without any further change.
    pub(crate) look_again: Option<Duration>,
    /// Pods that count, after adoption and release.
    pub(crate) owned: Vec<Arc<Pod>>,
}

/// Plans from all pods of the namespace. `pods` carries what was created and not yet watched; `doomed` the uids whose deletion was
/// issued and not yet watched.
pub(crate) fn plan(
    workload: &Workload,
    pods: &[Arc<Pod>],
    doomed: &BTreeSet<String>,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    let deleting = workload.meta.deleting.is_some();
    for pod in pods.iter().filter(|pod| pod.is_active() && !doomed.contains(&pod.meta.uid)) {
        let matches = selects(&workload.selector, &pod.meta.labels);
        match pod.meta.controller() {
            Some(owner) if owner.uid == workload.meta.uid && matches => plan.owned.push(pod.clone()),
            Some(owner) if owner.uid == workload.meta.uid && !deleting => plan.release.push(pod.clone()),
            None if matches && !deleting => {
                plan.adopt.push(pod.clone());
                plan.owned.push(pod.clone());
            }
            _ => {}
        }
    }
    if !deleting {
        let wanted = usize::try_from(workload.replicas.max(0)).unwrap_or(usize::MAX);
        let have = plan.owned.len();
        plan.create = wanted.saturating_sub(have).min(BURST);
        plan.delete = victims(&plan.owned, have.saturating_sub(wanted).min(BURST), now);
    }
    plan.look_again = next_available(workload, &plan.owned, now);
    plan
}

/// The `count` pods that are missed least.
fn victims(pods: &[Arc<Pod>], count: usize, now: Timestamp) -> Vec<Arc<Pod>> {
    if count == 0 {
        return Vec::new();
    }
    let mut per_node: BTreeMap<&str, usize> = BTreeMap::new();
    for pod in pods {
        if let Some(node) = &pod.node {
            *per_node.entry(node).or_default() += 1;
        }
    }
    let rank = |pod: &Pod| pod.node.as_deref().and_then(|node| per_node.get(node)).copied().unwrap_or(0);
    let mut ranked: Vec<_> = pods.iter().collect();
    ranked.sort_by(|left, right| compare(left, right, &rank, now));
    ranked.into_iter().take(count).cloned().collect()
}

/// Upstream's ActivePodsWithRanks: unassigned, pending, not ready, cheap, crowded, ready for a short time, restarted, young.
fn compare(left: &Pod, right: &Pod, rank: &impl Fn(&Pod) -> usize, now: Timestamp) -> Ordering {
    let phase = |pod: &Pod| match pod.phase {
        Phase::Pending => 0,
        Phase::Unknown => 1,
        _ => 2,
    };
    let ready_time = |pod: &Pod| pod.ready.then_some(pod.ready_changed).flatten();
    left.node
        .is_some()
        .cmp(&right.node.is_some())
        .then_with(|| phase(left).cmp(&phase(right)))
        .then_with(|| left.ready.cmp(&right.ready))
        .then_with(|| left.deletion_cost.cmp(&right.deletion_cost))
        .then_with(|| rank(right).cmp(&rank(left)))
        .then_with(|| younger_first(ready_time(left), ready_time(right), now))
        .then_with(|| right.restarts.cmp(&left.restarts))
        .then_with(|| younger_first(left.meta.created, right.meta.created, now))
        .then_with(|| left.meta.uid.cmp(&right.meta.uid))
}

/// Ages count on a logarithmic scale (KEP-2185), so that among pods of like age the choice falls on uids.
fn younger_first(left: Option<Timestamp>, right: Option<Timestamp>, now: Timestamp) -> Ordering {
    let magnitude = |time: Timestamp| {
        let nanoseconds = now.as_nanosecond().saturating_sub(time.as_nanosecond()).max(1);
        nanoseconds.ilog2()
    };
    match (left, right) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Less,
        (Some(_), None) => Ordering::Greater,
        (Some(left), Some(right)) => magnitude(left).cmp(&magnitude(right)),
    }
}

fn available_in(pod: &Pod, min_ready_seconds: i64, now: Timestamp) -> Option<Duration> {
    if !pod.ready {
        return None;
    }
    let since = pod.ready_changed?.as_second();
    let left = since.saturating_add(min_ready_seconds).saturating_sub(now.as_second());
    Some(Duration::from_secs(u64::try_from(left.max(0)).unwrap_or(0)))
}

fn next_available(workload: &Workload, pods: &[Arc<Pod>], now: Timestamp) -> Option<Duration> {
    if workload.min_ready_seconds <= 0 {
        return None;
    }
    let waits = pods.iter().filter_map(|pod| available_in(pod, workload.min_ready_seconds, now));
    waits.filter(|wait| !wait.is_zero()).min()
}

/// The status that follows from the owned pods; `refusal` is the last create that failed in this step.
pub(crate) fn status(
    workload: &Workload,
    owned: &[Arc<Pod>],
    refusal: Option<&Refusal>,
    now: Timestamp,
) -> ReplicationControllerStatus {
    let count = |predicate: &dyn Fn(&Pod) -> bool| {
        let count = owned.iter().filter(|pod| predicate(pod)).count();
        i32::try_from(count).unwrap_or(i32::MAX)
    };
    let some = |count: i32| (count > 0).then_some(count);
    let is_available = |pod: &Pod| {
        pod.ready
            && (workload.min_ready_seconds <= 0
                || available_in(pod, workload.min_ready_seconds, now).is_some_and(|wait| wait.is_zero()))
    };
    let is_labeled = |pod: &Pod| {
        workload.template_labels.iter().all(|(key, value)| pod.meta.labels.get(key) == Some(value))
    };
    ReplicationControllerStatus {
        replicas: count(&|_| true),
        fully_labeled_replicas: some(count(&is_labeled)),
        ready_replicas: some(count(&|pod| pod.ready)),
        available_replicas: some(count(&is_available)),
        observed_generation: Some(
            workload.meta.generation.max(workload.status.observed_generation.unwrap_or(0)),
        ),
        conditions: conditions(workload, refusal, now),
    }
}

fn conditions(
    workload: &Workload,
    refusal: Option<&Refusal>,
    now: Timestamp,
) -> Option<Vec<ReplicationControllerCondition>> {
    const FAILURE: &str = "ReplicaFailure";
    let existing = workload.status.conditions.iter().flatten();
    let mut conditions: Vec<_> = existing.filter(|condition| condition.type_ != FAILURE).cloned().collect();
    if let Some(refusal) = refusal {
        let before = workload.status.conditions.iter().flatten().find(|condition| condition.type_ == FAILURE);
        let since = before.filter(|condition| condition.reason.as_deref() == Some(refusal.reason));
        conditions.push(ReplicationControllerCondition {
            type_: FAILURE.to_owned(),
            status: "True".to_owned(),
            reason: Some(refusal.reason.to_owned()),
            message: Some(refusal.message.clone()),
            last_transition_time: since
                .and_then(|condition| condition.last_transition_time.clone())
                .or(Some(Time(now))),
        });
    }
    (!conditions.is_empty()).then_some(conditions)
}

/// Sizes of the batches in which `count` pods are made: 1, 2, 4, … so that a namespace out of quota costs one refusal, not hundreds.
pub(crate) fn slow_start(count: usize) -> impl Iterator<Item = usize> {
    let mut left = count;
    let mut batch = 1;
    std::iter::from_fn(move || {
        let size = batch.min(left);
        left -= size;
        batch *= 2;
        (size > 0).then_some(size)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{Labels, Meta, Owner};

    fn now() -> Timestamp {
        "2026-01-01T00:10:00Z".parse().unwrap()
    }

    fn labels(app: &str) -> Labels {
        Labels::from([("app".to_owned(), app.to_owned())])
    }

    fn workload(replicas: i64) -> Workload {
        Workload {
            meta: Meta { uid: "rc".into(), generation: 2, ..Meta::default() },
            replicas,
            selector: labels("web"),
            template_labels: labels("web"),
            ..Workload::default()
        }
    }

    fn owner(uid: &str) -> Owner {
        Owner {
            api_version: "v1".into(),
            kind: "ReplicationController".into(),
            name: "web".into(),
            uid: uid.into(),
            controller: true,
            blocks_deletion: true,
        }
    }

    fn pod(uid: &str, change: impl FnOnce(&mut Pod)) -> Arc<Pod> {
        let mut pod = Pod {
            meta: Meta {
                uid: uid.into(),
                name: uid.into(),
                labels: labels("web"),
                owners: vec![owner("rc")],
                ..Meta::default()
            },
            node: Some("n1".into()),
            phase: Phase::Running,
            ready: true,
            ready_changed: Some("2026-01-01T00:00:00Z".parse().unwrap()),
            ..Pod::default()
        };
        change(&mut pod);
        Arc::new(pod)
    }

    fn uids(pods: &[Arc<Pod>]) -> Vec<&str> {
        pods.iter().map(|pod| pod.meta.uid.as_str()).collect()
    }

    #[test]
    fn counts_only_what_is_its_own_and_active() {
        let pods = [
            pod("mine", |_| {}),
            pod("finished", |pod| pod.phase = Phase::Failed),
            pod("deleted", |pod| pod.meta.deleting = Some(now())),
            pod("doomed", |_| {}),
            pod("orphan", |pod| pod.meta.owners.clear()),
            pod("other's", |pod| pod.meta.owners = vec![owner("else")]),
            pod("relabelled", |pod| pod.meta.labels = labels("old")),
        ];
        let plan = plan(&workload(3), &pods, &BTreeSet::from(["doomed".to_owned()]), now());
        assert_eq!(uids(&plan.owned), ["mine", "orphan"]);
        assert_eq!(uids(&plan.adopt), ["orphan"]);
        assert_eq!(uids(&plan.release), ["relabelled"]);
        assert_eq!((plan.create, plan.delete.len()), (1, 0));
    }

    #[test]
    fn a_deleted_controller_does_nothing() {
        let mut gone = workload(3);
        gone.meta.deleting = Some(now());
        let pods =
            [pod("orphan", |pod| pod.meta.owners.clear()), pod("r", |pod| pod.meta.labels = labels("old"))];
        let plan = plan(&gone, &pods, &BTreeSet::new(), now());
        assert_eq!((plan.create, plan.delete.len(), plan.adopt.len(), plan.release.len()), (0, 0, 0, 0));
    }

    #[test]
    fn victims_come_in_upstreams_order() {
        let minutes_ago = |minutes: i64| now().checked_sub(jiff::Span::new().minutes(minutes)).unwrap();
        let pods = [
            pod("old-and-good", |pod| pod.node = Some("n2".into())),
            pod("crowded", |_| {}),
            pod("restarted", |pod| {
                pod.node = Some("n3".into());
                pod.restarts = 4;
            }),
            pod("young", |pod| {
                pod.node = Some("n4".into());
                pod.ready_changed = Some(minutes_ago(1));
            }),
            pod("cheap", |pod| pod.deletion_cost = -1),
            pod("not-ready", |pod| pod.ready = false),
            pod("pending", |pod| {
                pod.phase = Phase::Pending;
                pod.ready = false;
            }),
            pod("unassigned", |pod| {
                pod.node = None;
                pod.phase = Phase::Pending;
                pod.ready = false;
            }),
        ];
        let plan = plan(&workload(0), &pods, &BTreeSet::new(), now());
        assert_eq!(
            uids(&plan.delete),
            ["unassigned", "pending", "not-ready", "cheap", "crowded", "young", "restarted", "old-and-good"]
        );
    }

    #[test]
    fn status_counts_and_waits_for_min_ready_seconds() {
        let mut slow = workload(3);
        slow.min_ready_seconds = 605;
        let pods = [
            pod("a", |_| {}),
            pod("b", |pod| pod.ready = false),
            pod("c", |pod| drop(pod.meta.labels.insert("more".into(), "x".into()))),
        ];
        let plan = plan(&slow, &pods, &BTreeSet::new(), now());
        assert_eq!(plan.look_again, Some(Duration::from_secs(5)));
        let status = status(&slow, &plan.owned, None, now());
        assert_eq!((status.replicas, status.ready_replicas, status.available_replicas), (3, Some(2), None));
        assert_eq!((status.fully_labeled_replicas, status.observed_generation), (Some(3), Some(2)));
        slow.min_ready_seconds = 600;
        assert_eq!(super::status(&slow, &plan.owned, None, now()).available_replicas, Some(2));
    }

    #[test]
    fn a_refused_create_is_a_condition_until_it_works() {
        let mut workload = workload(1);
        let refusal = Refusal { reason: "FailedCreate", message: "quota".into() };
        let failed = status(&workload, &[], Some(&refusal), now());
        assert_eq!(failed.conditions.as_ref().unwrap()[0].type_, "ReplicaFailure");
        workload.status = failed;
        assert_eq!(status(&workload, &[], None, now()).conditions, None);
    }

    #[test]
    fn batches_double() {
        assert_eq!(slow_start(0).count(), 0);
        assert_eq!(slow_start(10).collect::<Vec<_>>(), [1, 2, 4, 3]);
    }

    proptest! {
        /// Applying a plan to a naive model always ends, at the wanted number, without touching other owners' pods.
        #[test]
        fn plans_converge(wanted in 0i64..20, kinds in proptest::collection::vec(0u8..6, 0..20)) {
            let mut pods: Vec<Arc<Pod>> = kinds.iter().enumerate().map(|(index, kind)| {
                pod(&format!("p{index}"), |pod| match kind {
                    0 => pod.meta.owners.clear(),
                    1 => pod.meta.owners = vec![owner("else")],
                    2 => pod.phase = Phase::Succeeded,
                    3 => pod.meta.labels = labels("old"),
                    4 => pod.node = None,
                    _ => {}
                })
            }).collect();
            let foreign = kinds.iter().filter(|kind| **kind == 1).count();
            let workload = workload(wanted);
            for round in 0..3 {
                let plan = plan(&workload, &pods, &BTreeSet::new(), now());
                prop_assert!(plan.create == 0 || plan.delete.is_empty());
                let gone: BTreeSet<_> = plan.delete.iter().map(|pod| pod.meta.uid.clone()).collect();
                pods.retain(|pod| !gone.contains(&pod.meta.uid));
                for index in 0..plan.create {
                    pods.push(pod(&format!("new-{round}-{index}"), |_| {}));
                }
                for taken in &plan.adopt {
                    for slot in pods.iter_mut().filter(|pod| pod.meta.uid == taken.meta.uid) {
                        *slot = pod(&taken.meta.uid, |_| {});
                    }
                }
                for left in &plan.release {
                    for slot in pods.iter_mut().filter(|pod| pod.meta.uid == left.meta.uid) {
                        *slot = pod(&left.meta.uid, |pod| { pod.meta.owners.clear(); pod.meta.labels = labels("old"); });
                    }
                }
            }
            let end = plan(&workload, &pods, &BTreeSet::new(), now());
            prop_assert_eq!(end.owned.len(), usize::try_from(wanted).unwrap());
            prop_assert!(end.create == 0 && end.delete.is_empty() && end.adopt.is_empty() && end.release.is_empty());
            prop_assert_eq!(pods.iter().filter(|pod| pod.meta.owners.first().is_some_and(|owner| owner.uid == "else")).count(), foreign);
        }
    }
}
