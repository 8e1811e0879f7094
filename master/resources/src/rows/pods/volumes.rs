//! Checks of volumes.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::fields::Errors;
use crate::resource::text;
use crate::rows::names;

/// Checks the volumes at `path` and gives their names.
pub(super) fn check_volumes(volumes: &[Value], path: &str, errors: &mut Errors) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    for (index, volume) in volumes.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let name = text(volume, "/name");
        if name.is_empty() {
            errors.required(format!("{path}.name"), "");
        } else {
            for fault in names::label_faults(&name) {
                errors.invalid(format!("{path}.name"), Value::from(name.as_str()), &fault);
            }
            if !seen.insert(name.clone()) {
                errors.duplicate(format!("{path}.name"), Value::from(name));
            }
        }
        let sources = volume
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(key, value)| *key != "name" && !value.is_null());
        for (kind, _) in sources.skip(1) {
            errors.forbidden(format!("{path}.{kind}"), "may not specify more than 1 volume type");
        }
        check_source(volume, &path, errors);
    }
    seen
}

fn check_source(volume: &Value, path: &str, errors: &mut Errors) {
    let is_there = |kind: &str| volume.get(kind).is_some_and(Value::is_object);
    for (kind, pointer, field) in [
        ("hostPath", "/hostPath/path", "path"),
        ("secret", "/secret/secretName", "secretName"),
        ("configMap", "/configMap/name", "name"),
        ("persistentVolumeClaim", "/persistentVolumeClaim/claimName", "claimName"),
    ] {
        if is_there(kind) && text(volume, pointer).is_empty() {
            errors.required(format!("{path}.{kind}.{field}"), "");
        }
    }
    let host = text(volume, "/hostPath/path");
    if host.split('/').any(|part| part == "..") {
        errors.invalid(format!("{path}.hostPath.path"), Value::from(host), "must not contain '..'");
    }
    for kind in ["secret", "configMap", "downwardAPI", "projected"] {
        let mode = volume.pointer(&format!("/{kind}/defaultMode")).and_then(Value::as_i64);
        if let Some(mode) = mode.filter(|mode| !(0..=0o777).contains(mode)) {
            let why = "must be a number between 0 and 0777 (octal), both inclusive";
            errors.invalid(format!("{path}.{kind}.defaultMode"), Value::from(mode), why);
        }
    }
}
