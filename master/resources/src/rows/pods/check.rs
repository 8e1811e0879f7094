//! Checks of pod specifications (upstream `pkg/apis/core/validation/validation.go`).

use std::collections::BTreeSet;

use serde_json::Value;

use super::containers;
use super::volumes::check_volumes;
use crate::fields::Errors;
use crate::resource::text;
use crate::rows::metadata::check_labels;
use crate::rows::names;
use crate::rows::shape::list;

const RESTART_POLICIES: [&str; 3] = ["Always", "OnFailure", "Never"];
const DNS_POLICIES: [&str; 4] = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
const OPERATORS: [&str; 2] = ["Equal", "Exists"];
const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// Checks a pod specification at `path`.
pub(crate) fn check_spec(spec: &Value, path: &str, errors: &mut Errors) {
    let volumes = check_volumes(list(spec, "/volumes"), &format!("{path}.volumes"), errors);
    if list(spec, "/containers").is_empty() {
        errors.required(format!("{path}.containers"), "");
    }
    let mut seen = BTreeSet::new();
    for kind in ["initContainers", "containers", "ephemeralContainers"] {
        for (index, container) in list(spec, &format!("/{kind}")).iter().enumerate() {
            let path = format!("{path}.{kind}[{index}]");
            containers::check(container, &path, &volumes, errors);
            let name = text(container, "/name");
            if !name.is_empty() && !seen.insert(name.clone()) {
                errors.duplicate(format!("{path}.name"), Value::from(name));
            }
            let restart = text(container, "/restartPolicy");
            if kind == "initContainers" && !restart.is_empty() && restart != "Always" {
                errors.not_supported(format!("{path}.restartPolicy"), &restart, &["Always"]);
            }
        }
    }
    one_of(spec, "restartPolicy", path, &RESTART_POLICIES, errors);
    one_of(spec, "dnsPolicy", path, &DNS_POLICIES, errors);
    check_labels(spec.get("nodeSelector"), &format!("{path}.nodeSelector"), errors);
    check_host_ports(spec, path, errors);
    check_names(spec, path, errors);
    check_tolerations(spec, path, errors);
    for (field, least) in [("terminationGracePeriodSeconds", 0), ("activeDeadlineSeconds", 1)] {
        let value = spec.get(field).and_then(Value::as_i64);
        if let Some(number) = value.filter(|number| *number < least) {
            let why = if least == 0 {
                "must be greater than or equal to 0"
            } else {
                "must be between 1 and 2147483647, inclusive"
            };
            errors.invalid(format!("{path}.{field}"), Value::from(number), why);
        }
    }
}

fn one_of(spec: &Value, field: &str, path: &str, known: &[&str], errors: &mut Errors) {
    let value = text(spec, &format!("/{field}"));
    if value.is_empty() {
        errors.required(format!("{path}.{field}"), "");
    } else if !known.contains(&value.as_str()) {
        errors.not_supported(format!("{path}.{field}"), &value, known);
    }
}

fn check_names(spec: &Value, path: &str, errors: &mut Errors) {
    for (field, faults) in [
        ("serviceAccountName", names::subdomain_faults as fn(&str) -> Vec<String>),
        ("nodeName", names::subdomain_faults),
        ("hostname", names::label_faults),
        ("subdomain", names::label_faults),
    ] {
        let value = text(spec, &format!("/{field}"));
        if !value.is_empty() {
            for fault in faults(&value) {
                errors.invalid(format!("{path}.{field}"), Value::from(value.as_str()), &fault);
            }
        }
    }
    for (index, alias) in list(spec, "/hostAliases").iter().enumerate() {
        let address = text(alias, "/ip");
        if address.parse::<std::net::IpAddr>().is_err() {
            let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            errors.invalid(format!("{path}.hostAliases[{index}].ip"), Value::from(address), why);
        }
    }
}

/// Two containers of a pod cannot have the same port of the node.
fn check_host_ports(spec: &Value, path: &str, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (index, container) in list(spec, "/containers").iter().enumerate() {
        for (number, port) in list(container, "/ports").iter().enumerate() {
            let host = port.get("hostPort").and_then(Value::as_i64).unwrap_or(0);
            let key = (host, text(port, "/protocol"), text(port, "/hostIP"));
            if host != 0 && !seen.insert(key) {
                let value =
                    Value::from(format!("{}/{}/{host}", text(port, "/protocol"), text(port, "/hostIP")));
                errors.duplicate(format!("{path}.containers[{index}].ports[{number}].hostPort"), value);
            }
        }
    }
}

fn check_tolerations(spec: &Value, path: &str, errors: &mut Errors) {
    for (index, toleration) in list(spec, "/tolerations").iter().enumerate() {
        let path = format!("{path}.tolerations[{index}]");
        let key = text(toleration, "/key");
        let operator = text(toleration, "/operator");
        let effect = text(toleration, "/effect");
        if !key.is_empty() {
            for fault in names::qualified_name_faults(&key) {
                errors.invalid(format!("{path}.key"), Value::from(key.as_str()), &fault);
            }
        } else if operator != "Exists" {
            let why =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.invalid(format!("{path}.operator"), Value::from(operator.as_str()), why);
        }
        if !operator.is_empty() && !OPERATORS.contains(&operator.as_str()) {
            errors.not_supported(format!("{path}.operator"), operator.as_str(), &OPERATORS);
        }
        if operator == "Exists" && !text(toleration, "/value").is_empty() {
            let why = "value must be empty when `operator` is 'Exists'";
            errors.invalid(format!("{path}.operator"), toleration.clone(), why);
        }
        if !effect.is_empty() && !EFFECTS.contains(&effect.as_str()) {
            errors.not_supported(format!("{path}.effect"), &effect, &EFFECTS);
        }
    }
}

/// A pod's specification is fixed but for a few fields.
pub(super) fn check_update(new: &Value, old: &Value, subresource: Option<&str>, errors: &mut Errors) {
    if subresource.is_some() {
        return;
    }
    let (mut before, mut after) = (mutable_cleared(old), mutable_cleared(new));
    // Tolerations may be added, not taken away.
    let tolerations = |pod: &Value| list(pod, "/spec/tolerations").to_vec();
    let kept = tolerations(new);
    if tolerations(old).iter().all(|toleration| kept.iter().any(|now| same_toleration(now, toleration))) {
        for spec in [&mut before, &mut after] {
            if let Some(map) = spec.as_object_mut() {
                map.shift_remove("tolerations");
            }
        }
    }
    if before != after {
        let why = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
        errors.forbidden("spec", why);
    }
    let gates = |pod: &Value| list(pod, "/spec/schedulingGates").to_vec();
    let allowed = gates(old);
    if gates(new).iter().any(|gate| !allowed.contains(gate)) {
        errors.forbidden("spec.schedulingGates", "only deletion is allowed, but found new scheduling gates");
    }
    let deadline = |pod: &Value| pod.pointer("/spec/activeDeadlineSeconds").and_then(Value::as_i64);
    if let Some(limit) = deadline(old) {
        match deadline(new) {
            Some(value) if value > limit => {
                errors.invalid(
                    "spec.activeDeadlineSeconds",
                    Value::from(value),
                    "must be less than or equal to previous value",
                );
            }
            None => errors.invalid(
                "spec.activeDeadlineSeconds",
                Value::Null,
                "must not update from a positive integer to nil value",
            ),
            Some(_) => {}
        }
    }
}

fn same_toleration(a: &Value, b: &Value) -> bool {
    ["/key", "/operator", "/value", "/effect"].iter().all(|pointer| text(a, pointer) == text(b, pointer))
}

/// The specification without what an update may change.
fn mutable_cleared(pod: &Value) -> Value {
    let mut spec = pod.get("spec").cloned().unwrap_or_default();
    for kind in ["containers", "initContainers"] {
        for container in spec.get_mut(kind).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(container) = container.as_object_mut() {
                container.shift_remove("image");
            }
        }
    }
    if let Some(map) = spec.as_object_mut() {
        map.shift_remove("activeDeadlineSeconds");
        map.shift_remove("schedulingGates");
    }
    spec
}
