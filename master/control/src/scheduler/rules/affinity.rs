use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::model::{Labels, Node, Scheduling};

/// `spec.nodeSelector` and the required part of the node affinity.
pub(super) fn is_required_met(wants: &Scheduling, node: &Node) -> bool {
    let selected = wants.node_selector.iter().all(|(key, value)| node.meta.labels.get(key) == Some(value));
    let required = wants
        .node_affinity
        .as_ref()
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    selected
        && required
            .is_none_or(|selector| selector.node_selector_terms.iter().any(|term| term_matches(term, node)))
}

/// Sum of the weights of the preferred terms that match.
pub(super) fn preference(wants: &Scheduling, node: &Node) -> i64 {
    let preferred = wants
        .node_affinity
        .as_ref()
        .and_then(|affinity| affinity.preferred_during_scheduling_ignored_during_execution.as_ref());
    let matching = preferred.into_iter().flatten().filter(|term| term_matches(&term.preference, node));
    matching.map(|term| i64::from(term.weight)).sum()
}

/// A term without requirements matches nothing.
fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let name = Labels::from([("metadata.name".to_owned(), node.meta.name.clone())]);
    (!expressions.is_empty() || !fields.is_empty())
        && expressions.iter().all(|requirement| requirement_matches(requirement, &node.meta.labels))
        && fields.iter().all(|requirement| requirement_matches(requirement, &name))
}

fn requirement_matches(requirement: &NodeSelectorRequirement, labels: &Labels) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let found = labels.get(&requirement.key);
    let compare = |wanted: fn(&i64, &i64) -> bool| {
        let bound = values.first().and_then(|text| text.parse::<i64>().ok());
        let actual = found.and_then(|text| text.parse::<i64>().ok());
        actual.zip(bound).is_some_and(|(actual, bound)| wanted(&actual, &bound))
    };
    match requirement.operator.as_str() {
        "Gt" => compare(i64::gt),
        "Lt" => compare(i64::lt),
        operator => set_matches(operator, values, found),
    }
}

fn set_matches(operator: &str, values: &[String], found: Option<&String>) -> bool {
    match operator {
        "In" => found.is_some_and(|found| values.contains(found)),
        "NotIn" => found.is_none_or(|found| !values.contains(found)),
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        _ => false,
    }
}

/// A label selector; an empty one matches everything.
pub(super) fn label_selector_matches(selector: &LabelSelector, labels: &Labels) -> bool {
    let equal = selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let mut expressions = selector.match_expressions.iter().flatten();
    equal
        && expressions.all(|requirement| {
            let values = requirement.values.as_deref().unwrap_or_default();
            set_matches(&requirement.operator, values, labels.get(&requirement.key))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Meta;

    #[test]
    fn operators() {
        let node = Node {
            meta: Meta {
                name: "n1".into(),
                labels: Labels::from([("zone".into(), "a".into()), ("cores".into(), "8".into())]),
                ..Meta::default()
            },
            ..Node::default()
        };
        for (key, operator, values, expected) in [
            ("zone", "In", vec!["a", "b"], true),
            ("zone", "NotIn", vec!["a"], false),
            ("none", "NotIn", vec!["a"], true),
            ("zone", "Exists", vec![], true),
            ("zone", "DoesNotExist", vec![], false),
            ("cores", "Gt", vec!["4"], true),
            ("cores", "Lt", vec!["8"], false),
            ("zone", "Gt", vec!["1"], false),
            ("zone", "Like", vec!["a"], false),
        ] {
            let requirement = NodeSelectorRequirement {
                key: key.into(),
                operator: operator.into(),
                values: Some(values.into_iter().map(str::to_owned).collect()),
            };
            let term = NodeSelectorTerm { match_expressions: Some(vec![requirement]), match_fields: None };
            assert_eq!(term_matches(&term, &node), expected, "{key} {operator}");
        }
        assert!(!term_matches(&NodeSelectorTerm::default(), &node));
    }
}
