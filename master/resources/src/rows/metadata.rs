//! Checks of `metadata`, the same for every kind (apimachinery `pkg/api/validation/objectmeta.go`).

use serde_json::Value;

use super::names;
use crate::fields::Errors;
use crate::resource::{NameRule, Resource};

const ANNOTATIONS_LIMIT_BYTES: usize = 256 * 1024;
const OWNER_LIMITS: [&str; 4] = ["apiVersion", "kind", "name", "uid"];

pub(crate) fn check(row: &Resource, object: &Value, errors: &mut Errors) {
    let empty = Value::Null;
    let metadata = object.get("metadata").unwrap_or(&empty);
    let name = metadata.get("name").and_then(Value::as_str).unwrap_or_default();
    let generate = metadata
        .get("generateName")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if name.is_empty() {
        // A generated name is in place by the time that this looks.
        let why = if generate.is_empty() {
            "name or generateName is required"
        } else {
            ""
        };
        errors.required("metadata.name", why);
    } else {
        for fault in name_faults(row.name, name) {
            errors.invalid("metadata.name", Value::from(name), &fault);
        }
    }
    if row.namespaced
        && metadata
            .get("namespace")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .is_empty()
    {
        errors.required("metadata.namespace", "");
    }
    check_labels(metadata.get("labels"), "metadata.labels", errors);
    check_annotations(metadata.get("annotations"), errors);
    let finalizers = metadata.get("finalizers").and_then(Value::as_array);
    for (index, finalizer) in finalizers.into_iter().flatten().enumerate() {
        for fault in names::qualified_name_faults(finalizer.as_str().unwrap_or_default()) {
            errors.invalid(format!("metadata.finalizers[{index}]"), finalizer.clone(), &fault);
        }
    }
    check_owners(metadata, errors);
}

fn name_faults(rule: NameRule, name: &str) -> Vec<String> {
    match rule {
        NameRule::Subdomain => names::subdomain_faults(name),
        NameRule::Label => names::label_faults(name),
        NameRule::ServiceLabel => names::service_label_faults(name),
        NameRule::PathSegment if matches!(name, "." | "..") => vec![format!("may not be '{name}'")],
        NameRule::PathSegment => {
            let bad = ["/", "%"].into_iter().filter(|text| name.contains(text));
            bad.map(|text| format!("may not contain '{text}'")).collect()
        }
        NameRule::Free => Vec::new(),
    }
}

/// Keys and values of a label map.
pub(crate) fn check_labels(labels: Option<&Value>, path: &str, errors: &mut Errors) {
    for (key, value) in labels.and_then(Value::as_object).into_iter().flatten() {
        for fault in names::qualified_name_faults(key) {
            errors.invalid(path, Value::from(key.as_str()), &fault);
        }
        for fault in names::label_value_faults(value.as_str().unwrap_or_default()) {
            errors.invalid(path, value.clone(), &fault);
        }
    }
}

fn check_annotations(annotations: Option<&Value>, errors: &mut Errors) {
    let mut size = 0;
    for (key, value) in annotations.and_then(Value::as_object).into_iter().flatten() {
        // Keys may be of either case here.
        for fault in names::qualified_name_faults(&key.to_lowercase()) {
            errors.invalid("metadata.annotations", Value::from(key.as_str()), &fault);
        }
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_LIMIT_BYTES {
        errors.too_long("metadata.annotations", ANNOTATIONS_LIMIT_BYTES);
    }
}

fn check_owners(metadata: &Value, errors: &mut Errors) {
    let owners = metadata
        .get("ownerReferences")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    for (index, owner) in owners.iter().enumerate() {
        for field in OWNER_LIMITS {
            let value = owner.get(field).cloned().unwrap_or_else(|| Value::from(""));
            if value.as_str().unwrap_or_default().is_empty() {
                let path = format!("metadata.ownerReferences[{index}].{field}");
                let why = if field == "apiVersion" {
                    "version must not be empty"
                } else {
                    "must not be empty"
                };
                errors.invalid(path, value, why);
            }
        }
    }
    let controllers = owners
        .iter()
        .filter(|owner| owner.get("controller") == Some(&Value::Bool(true)))
        .count();
    if controllers > 1 {
        let why = "Only one reference can have Controller set to true";
        errors.invalid("metadata.ownerReferences", Value::from(controllers), why);
    }
}

pub(crate) fn check_update(new: &Value, old: &Value, errors: &mut Errors) {
    for field in ["name", "namespace", "uid", "creationTimestamp"] {
        let pointer = format!("/metadata/{field}");
        if let (Some(value), Some(before)) = (new.pointer(&pointer), old.pointer(&pointer))
            && value != before
        {
            errors.invalid(format!("metadata.{field}"), value.clone(), "field is immutable");
        }
    }
    if old.pointer("/metadata/deletionTimestamp").is_some() {
        let finalizers = |object: &Value| {
            object
                .pointer("/metadata/finalizers")
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default()
        };
        let before = finalizers(old);
        let added: Vec<Value> = finalizers(new)
            .into_iter()
            .filter(|finalizer| !before.contains(finalizer))
            .collect();
        if !added.is_empty() {
            let names: Vec<&str> = added.iter().filter_map(Value::as_str).collect();
            let why = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers {names:?}"
            );
            errors.forbidden("metadata.finalizers", &why);
        }
    }
}
