//! DefaultTolerationSeconds and Priority.

use orlop_resources::Resource;
use orlop_resources::status::{self, ApiError};
use serde_json::{Value, json};

use crate::rules::encode::text;

const UNREADY_TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];
const TOLERATION_SECONDS: u64 = 300;

pub(super) fn admit(resource: &Resource, pod: &mut Value) -> Result<(), ApiError> {
    priority(resource, pod)?;
    tolerations(pod);
    Ok(())
}

/// A pod stays five minutes on a node that is lost, unless it says otherwise.
fn tolerations(pod: &mut Value) {
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    let given = spec.get("tolerations").and_then(Value::as_array).cloned().unwrap_or_default();
    let tolerates = |taint: &str| {
        given.iter().any(|toleration| {
            let key = text(toleration, "/key");
            let effect = text(toleration, "/effect");
            (key == taint || key.is_empty()) && (effect == "NoExecute" || effect.is_empty())
        })
    };
    let missing: Vec<Value> = UNREADY_TAINTS
        .into_iter()
        .filter(|taint| !tolerates(taint))
        .map(|taint| json!({"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION_SECONDS}))
        .collect();
    if !missing.is_empty() {
        let all: Vec<Value> = given.into_iter().chain(missing).collect();
        spec.insert("tolerations".to_owned(), Value::Array(all));
    }
}

/// The two classes that every cluster has; other classes do not exist here.
fn priority(resource: &Resource, pod: &mut Value) -> Result<(), ApiError> {
    let class = text(pod, "/spec/priorityClassName").to_owned();
    let value = match class.as_str() {
        "" => 0,
        "system-cluster-critical" => 2_000_000_000,
        "system-node-critical" => 2_000_001_000,
        other => {
            let why = format!("no PriorityClass with name {other} was found");
            return Err(status::forbidden_because(resource, text(pod, "/metadata/name"), &why));
        }
    };
    let given = pod.pointer("/spec/priority").and_then(Value::as_i64);
    if given.is_some_and(|given| given != value) {
        let why = format!(
            "the integer value of priority ({}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name",
            given.unwrap_or_default()
        );
        return Err(status::forbidden_because(resource, text(pod, "/metadata/name"), &why));
    }
    if let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) {
        spec.insert("priority".to_owned(), json!(value));
        spec.entry("preemptionPolicy").or_insert_with(|| json!("PreemptLowerPriority"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerations_are_added_once() {
        let mut pod =
            json!({"spec": {"tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists"}]}});
        tolerations(&mut pod);
        tolerations(&mut pod);
        let keys: Vec<_> = pod["spec"]["tolerations"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| text(one, "/key").to_owned())
            .collect();
        assert_eq!(keys, ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"]);
        let mut pod = json!({"spec": {"tolerations": [{"operator": "Exists"}]}});
        tolerations(&mut pod);
        assert_eq!(pod["spec"]["tolerations"].as_array().unwrap().len(), 1);
    }
}
