//! The canonical encoding of an object, and cleaning of what clients send.

use bytes::Bytes;
use orlop_store::Encoded;
use serde_json::{Map, Value};

/// Written before the revision, in this order.
const BEFORE_REVISION: [&str; 4] = ["name", "generateName", "namespace", "uid"];
/// Never stored.
const DROPPED: [&str; 3] = ["resourceVersion", "managedFields", "selfLink"];

/// Writes `object` as JSON with kind, apiVersion and metadata first and a place for the revision.
pub(crate) fn encode(api_version: &str, kind: &str, object: &Value) -> Encoded {
    let empty = Map::new();
    let object = object.as_object().unwrap_or(&empty);
    let metadata = object.get("metadata").and_then(Value::as_object).unwrap_or(&empty);
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(b"{\"kind\":");
    put(&mut out, &Value::from(kind));
    out.extend_from_slice(b",\"apiVersion\":");
    put(&mut out, &Value::from(api_version));
    out.extend_from_slice(b",\"metadata\":{");
    for key in BEFORE_REVISION {
        if let Some(value) = metadata.get(key) {
            put_member(&mut out, key, value);
            out.push(b',');
        }
    }
    out.extend_from_slice(b"\"resourceVersion\":\"");
    let revision_at = u32::try_from(out.len()).expect("names are bounded, so this offset is small");
    out.push(b'"');
    for (key, value) in metadata {
        if !BEFORE_REVISION.contains(&key.as_str()) && !DROPPED.contains(&key.as_str()) {
            out.push(b',');
            put_member(&mut out, key, value);
        }
    }
    out.push(b'}');
    for (key, value) in object {
        if !matches!(key.as_str(), "kind" | "apiVersion" | "metadata") {
            out.push(b',');
            put_member(&mut out, key, value);
        }
    }
    out.push(b'}');
    Encoded { bytes: Bytes::from(out), revision_at }
}

fn put_member(out: &mut Vec<u8>, key: &str, value: &Value) {
    put(out, &Value::from(key));
    out.push(b':');
    put(out, value);
}

fn put(out: &mut Vec<u8>, value: &Value) {
    serde_json::to_writer(out, value).expect("a JSON value is written to memory");
}

/// Removes members that are null, at every depth: in typed objects null and absent are the same.
pub(crate) fn strip_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(strip_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(strip_nulls),
        _ => {}
    }
}

/// Removes the member that a path such as `spec.containers[0].foo` names. Keys may hold dots.
pub(crate) fn remove_path(value: &mut Value, path: &str) {
    match value {
        Value::Object(map) => {
            if map.shift_remove(path).is_some() {
                return;
            }
            for (key, child) in map {
                let Some(rest) = path.strip_prefix(key.as_str()) else {
                    continue;
                };
                if let Some(rest) = rest.strip_prefix('.') {
                    remove_path(child, rest);
                } else if rest.starts_with('[') {
                    remove_path(child, rest);
                }
            }
        }
        Value::Array(items) => {
            let Some((index, rest)) = path.strip_prefix('[').and_then(|rest| rest.split_once(']')) else {
                return;
            };
            let Some(item) = index.parse::<usize>().ok().and_then(|index| items.get_mut(index)) else {
                return;
            };
            remove_path(item, rest.strip_prefix('.').unwrap_or(rest));
        }
        _ => {}
    }
}

/// The metadata of an object, made when it is missing or no object.
pub(crate) fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let map = object.as_object_mut().expect("was just made an object");
    let metadata = map.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    if !metadata.is_object() {
        *metadata = Value::Object(Map::new());
    }
    metadata.as_object_mut().expect("was just made an object")
}

/// The text at a pointer; empty when there is none.
pub(crate) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_revision_goes_where_it_belongs_whatever_the_object_says() {
        let object = json!({
            "spec": {"resourceVersion": "7"}, "apiVersion": "x", "kind": "y",
            "metadata": {"annotations": {"a": "\"resourceVersion\":\"\""}, "resourceVersion": "3", "name": "n", "managedFields": []}
        });
        let bytes = encode("v1", "Pod", &object).at(42);
        let decoded: Value = serde_json::from_slice(&bytes).unwrap();
        let expected = json!({
            "kind": "Pod", "apiVersion": "v1", "spec": {"resourceVersion": "7"},
            "metadata": {"annotations": {"a": "\"resourceVersion\":\"\""}, "resourceVersion": "42", "name": "n"}
        });
        assert_eq!(decoded, expected);
        let empty: Value = serde_json::from_slice(&encode("v1", "Pod", &json!(null)).at(1)).unwrap();
        assert_eq!(empty["metadata"]["resourceVersion"], "1");
    }

    #[test]
    fn paths_are_removed() {
        let mut object = json!({"a": [{"b.c": 1, "d": 2}], "e.f": 3, "e": {"f": 4}});
        for path in ["a[0].b.c", "e.f"] {
            remove_path(&mut object, path);
        }
        assert_eq!(object, json!({"a": [{"d": 2}], "e": {"f": 4}}));
    }

    #[test]
    fn nulls_go_from_objects_only() {
        let mut object = json!({"a": null, "b": [null, {"c": null}], "d": {}});
        strip_nulls(&mut object);
        assert_eq!(object, json!({"b": [null, {}], "d": {}}));
    }
}
