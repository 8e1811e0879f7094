use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::TopologySpreadConstraint;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::model::{Labels, Node, Pod, Scheduling};

use super::affinity;
use super::model::{Cluster, Place};

/// A hard topology spread constraint (KEP-895) with the pods counted in each domain.
pub(super) struct Spread<'a> {
    constraint: &'a TopologySpreadConstraint,
    per_domain: BTreeMap<&'a str, i64>,
    counts_itself: bool,
}

/// The constraints of a pod that must hold.
pub(super) fn hard<'a>(cluster: &'a Cluster, pod: &Pod, wants: &'a Scheduling) -> Vec<Spread<'a>> {
    let constraints =
        wants.spread.iter().filter(|constraint| constraint.when_unsatisfiable == "DoNotSchedule");
    constraints.map(|constraint| count(cluster, pod, wants, constraint)).collect()
}

fn count<'a>(
    cluster: &'a Cluster,
    pod: &Pod,
    wants: &Scheduling,
    constraint: &'a TopologySpreadConstraint,
) -> Spread<'a> {
    let selector = selector(constraint, &pod.meta.labels);
    let honors_affinity = constraint.node_affinity_policy.as_deref() != Some("Ignore");
    let mut per_domain: BTreeMap<&str, i64> = BTreeMap::new();
    for (node, place) in cluster.nodes() {
        let Some(domain) = node.meta.labels.get(&constraint.topology_key) else {
            continue;
        };
        if honors_affinity && !affinity::is_required_met(wants, node) {
            continue;
        }
        *per_domain.entry(domain).or_default() += matching(place, pod, &selector);
    }
    Spread {
        constraint,
        per_domain,
        counts_itself: affinity::label_selector_matches(&selector, &pod.meta.labels),
    }
}

fn matching(place: &Place, pod: &Pod, selector: &LabelSelector) -> i64 {
    let pods = place.pods.values().filter(|other| {
        other.meta.namespace == pod.meta.namespace
            && other.meta.deleting.is_none()
            && affinity::label_selector_matches(selector, &other.meta.labels)
    });
    i64::try_from(pods.count()).unwrap_or(i64::MAX)
}

/// The constraint's selector with the pod's own values of `matchLabelKeys` (KEP-3243).
fn selector(constraint: &TopologySpreadConstraint, labels: &Labels) -> LabelSelector {
    // Without a selector nothing is counted.
    let Some(mut selector) = constraint.label_selector.clone() else {
        let nothing = k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement {
            key: String::new(),
            operator: "In".to_owned(),
            values: None,
        };
        return LabelSelector { match_expressions: Some(vec![nothing]), match_labels: None };
    };
    for key in constraint.match_label_keys.iter().flatten() {
        if let Some(value) = labels.get(key) {
            selector.match_labels.get_or_insert_default().insert(key.clone(), value.clone());
        }
    }
    selector
}

impl Spread<'_> {
    /// Why this node may not take the pod.
    pub(super) fn refusal(&self, node: &Node) -> Option<&'static str> {
        let Some(domain) = node.meta.labels.get(&self.constraint.topology_key) else {
            return Some("node(s) didn't match pod topology spread constraints (missing required label)");
        };
        let domains = i64::try_from(self.per_domain.len()).unwrap_or(i64::MAX);
        let is_short = self.constraint.min_domains.is_some_and(|minimum| domains < i64::from(minimum));
        let least = if is_short { 0 } else { self.per_domain.values().min().copied().unwrap_or(0) };
        let here = self.per_domain.get(domain.as_str()).copied().unwrap_or(0) + i64::from(self.counts_itself);
        (here - least > i64::from(self.constraint.max_skew))
            .then_some("node(s) didn't match pod topology spread constraints")
    }
}
