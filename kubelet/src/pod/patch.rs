//! The difference of two statuses as a strategic merge patch, as upstream's kubelet sends it: only fields that changed.

use k8s_openapi::api::core::v1 as core;
use serde_json::{Map, Value, json};

/// Lists that strategic merge joins by a key: what left must be deleted by name.
const KEYED: [(&str, &str); 3] = [("podIPs", "ip"), ("hostIPs", "ip"), ("conditions", "type")];

/// The patch from `old` to `new`, or `None` when they are equal. Conditions of others are left alone.
pub(crate) fn status_patch(uid: &str, old: &core::PodStatus, new: &core::PodStatus) -> Option<Value> {
    let old = object(old);
    let new = object(new);
    let mut status = Map::new();
    for (key, value) in &new {
        if old.get(key) == Some(value) {
            continue;
        }
        match KEYED.iter().find(|(list, _)| list == key) {
            Some((_, by)) => {
                let changed = keyed(old.get(key), value, by, key != "conditions");
                if !changed.is_empty() {
                    status.insert(key.clone(), Value::Array(changed));
                }
            }
            None => drop(status.insert(key.clone(), value.clone())),
        }
    }
    // Fields that only others write are not ours to clear.
    for key in ["reason", "message", "initContainerStatuses", "ephemeralContainerStatuses"] {
        if old.contains_key(key) && !new.contains_key(key) {
            status.insert(key.to_owned(), Value::Null);
        }
    }
    (!status.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": status}))
}

fn object(status: &core::PodStatus) -> Map<String, Value> {
    match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

fn keyed(old: Option<&Value>, new: &Value, by: &str, exclusive: bool) -> Vec<Value> {
    let empty = Vec::new();
    let old = old.and_then(Value::as_array).unwrap_or(&empty);
    let new = new.as_array().unwrap_or(&empty);
    let mut changed: Vec<Value> = Vec::new();
    for entry in new {
        let before = old.iter().find(|before| before.get(by) == entry.get(by));
        if before == Some(entry) {
            continue;
        }
        let mut entry = entry.clone();
        if let (Some(Value::Object(before)), Value::Object(entry)) = (before, &mut entry) {
            // A field that went away, for example a condition's reason, must be cleared by name.
            for key in before.keys() {
                if !entry.contains_key(key) && key != "lastProbeTime" {
                    entry.insert(key.clone(), Value::Null);
                }
            }
        }
        changed.push(entry);
    }
    if exclusive {
        for entry in old.iter().filter(|entry| !new.iter().any(|kept| kept.get(by) == entry.get(by))) {
            changed.push(json!({by: entry.get(by), "$patch": "delete"}));
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(kind: &str, status: &str, reason: Option<&str>) -> core::PodCondition {
        core::PodCondition {
            type_: kind.into(),
            status: status.into(),
            reason: reason.map(Into::into),
            ..Default::default()
        }
    }

    #[test]
    fn only_what_changed_and_only_what_is_ours() {
        let old = core::PodStatus {
            phase: Some("Pending".into()),
            reason: Some("x".into()),
            conditions: Some(vec![
                condition("Ready", "False", Some("No")),
                condition("example.com/gate", "True", None),
            ]),
            pod_ips: Some(vec![core::PodIP { ip: "10.0.0.1".into() }]),
            ..Default::default()
        };
        let new = core::PodStatus {
            phase: Some("Running".into()),
            conditions: Some(vec![condition("Ready", "True", None)]),
            pod_ips: Some(vec![core::PodIP { ip: "10.0.0.2".into() }]),
            ..Default::default()
        };
        let patch = status_patch("u", &old, &new).unwrap();
        assert_eq!(
            patch,
            json!({"metadata": {"uid": "u"}, "status": {
                "phase": "Running",
                "reason": null,
                "conditions": [{"type": "Ready", "status": "True", "reason": null}],
                "podIPs": [{"ip": "10.0.0.2"}, {"ip": "10.0.0.1", "$patch": "delete"}],
            }})
        );
        assert_eq!(status_patch("u", &new, &new), None);
    }
}
