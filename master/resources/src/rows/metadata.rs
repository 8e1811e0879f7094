//! Checks of `metadata`, the same for every kind (apimachinery `pkg/api/validation/objectmeta.go`).

use serde_json::Value;

use super::names;
use crate::fields::Errors;
use crate::resource::{NameRule, Resource};

const ANNOTATIONS_LIMIT_BYTES: usize = 256 * 1024;
const STANDARD_FINALIZERS: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];
const OWNER_LIMITS: [&str; 4] = ["apiVersion", "kind", "name", "uid"];

pub(crate) fn check(row: &Resource, object: &Value, errors: &mut Errors) {
    let empty = Value::Null;
    let metadata = object.get("metadata").unwrap_or(&empty);
    let name = metadata.get("name").and_then(Value::as_str).unwrap_or_default();
    let generate = metadata.get("generateName").and_then(Value::as_str).unwrap_or_default();
    if name.is_empty() {
        // A generated name is in place by the time that this looks.
        let why = if generate.is_empty() { "name or generateName is required" } else { "" };
        errors.required("metadata.name", why);
    } else {
        errors.faults("metadata.name", name, name_faults(row.name, name));
    }
    if !generate.is_empty() {
        // What is appended ends in an alphanumeric character, so a prefix may end in a dash.
        let prefix =
            generate.strip_suffix('-').map_or_else(|| generate.to_owned(), |prefix| format!("{prefix}a"));
        errors.faults("metadata.generateName", generate, name_faults(row.name, &prefix));
    }
    let namespace = metadata.get("namespace").and_then(Value::as_str).unwrap_or_default();
    match (row.namespaced, namespace.is_empty()) {
        (true, true) => errors.required("metadata.namespace", ""),
        (true, false) => errors.faults("metadata.namespace", namespace, names::label_faults(namespace)),
        (false, false) => errors.forbidden("metadata.namespace", "not allowed on this type"),
        (false, true) => {}
    }
    check_labels(metadata.get("labels"), "metadata.labels", errors);
    check_annotations(metadata.get("annotations"), errors);
    for finalizer in metadata.get("finalizers").and_then(Value::as_array).into_iter().flatten() {
        check_finalizer(finalizer.as_str().unwrap_or_default(), errors);
    }
    check_owners(metadata, errors);
}

fn check_finalizer(finalizer: &str, errors: &mut Errors) {
    errors.faults("metadata.finalizers", finalizer, names::qualified_name_faults(finalizer));
    if !finalizer.contains('/') && !STANDARD_FINALIZERS.contains(&finalizer) {
        let why = "name is neither a standard finalizer name nor is it fully qualified";
        errors.invalid("metadata.finalizers", Value::from(finalizer), why);
    }
}

fn name_faults(rule: NameRule, name: &str) -> Vec<String> {
    match rule {
        NameRule::Subdomain => names::subdomain_faults(name),
        NameRule::Label => names::label_faults(name),
        NameRule::ServiceLabel => names::service_label_faults(name),
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
    let owners =
        metadata.get("ownerReferences").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for (index, owner) in owners.iter().enumerate() {
        for field in OWNER_LIMITS {
            let value = owner.get(field).cloned().unwrap_or_else(|| Value::from(""));
            if value.as_str().unwrap_or_default().is_empty() {
                let path = format!("metadata.ownerReferences[{index}].{field}");
                let why =
                    if field == "apiVersion" { "version must not be empty" } else { "must not be empty" };
                errors.invalid(path, value, why);
            }
        }
    }
    let controllers =
        owners.iter().filter(|owner| owner.get("controller") == Some(&Value::Bool(true))).count();
    if controllers > 1 {
        let why = "Only one reference can have Controller set to true";
        errors.invalid("metadata.ownerReferences", Value::from(controllers), why);
    }
}

pub(crate) fn check_update(new: &Value, old: &Value, errors: &mut Errors) {
    for field in
        ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"]
    {
        let pointer = format!("/metadata/{field}");
        let value = new.pointer(&pointer);
        // What the request leaves out, the server puts back.
        if value.is_some_and(|value| !value.is_null()) {
            errors.immutable(&format!("metadata.{field}"), value, old.pointer(&pointer));
        }
    }
    if old.pointer("/metadata/deletionTimestamp").is_some() {
        let finalizers = |object: &Value| {
            object.pointer("/metadata/finalizers").and_then(Value::as_array).cloned().unwrap_or_default()
        };
        let before = finalizers(old);
        let added: Vec<Value> =
            finalizers(new).into_iter().filter(|finalizer| !before.contains(finalizer)).collect();
        if !added.is_empty() {
            let names: Vec<&str> = added.iter().filter_map(Value::as_str).collect();
            let why = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers {names:?}"
            );
            errors.forbidden("metadata.finalizers", &why);
        }
    }
}
