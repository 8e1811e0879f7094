//! Strategic merge patch (apimachinery `pkg/util/strategicpatch`; its design is in the community's strategic-merge-patch.md).
//!
//! | in a patch | means |
//! |---|---|
//! | `null` | the field goes |
//! | `$patch: replace` in an object, or an element of a list | this is the whole of it |
//! | `$patch: delete` in an object or in an element of a keyed list | it goes |
//! | `$retainKeys: [..]` | only these keys stay |
//! | `$deleteFromPrimitiveList/FIELD: [..]` | these go from a list of scalars that merges as a set |
//! | `$setElementOrder/FIELD: [..]` | the order of a list |

use serde_json::{Map, Value};

use crate::resource::Resource;
use crate::schema::types::{Definition, Type, model};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList/";
const SET_ORDER: &str = "$setElementOrder/";
/// Nested lists and objects of a patch, at most; the JSON decoder has its own, larger bound.
const DEPTH: usize = 64;

/// Applies a strategic merge patch: lists merge by the keys the schema names.
///
/// # Errors
/// A malformed directive, with upstream's text.
pub fn strategic(res: &Resource, original: &Value, patch: &Value) -> Result<Value, String> {
    let (Some(original), Some(patch)) = (original.as_object(), patch.as_object()) else {
        return Err("the patch must be a JSON object".to_owned());
    };
    let merged = merge_object(model().definition(res.definition), original.clone(), patch, 0)?;
    Ok(Value::Object(merged.unwrap_or_default()))
}

/// A value as Go's `%+v` prints it: upstream shows strategic merge patches so in what it says.
pub fn go_text(value: &Value) -> String {
    let joined = |parts: Vec<String>| parts.join(" ");
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", joined(items.iter().map(go_text).collect())),
        Value::Object(map) => {
            let mut members: Vec<String> =
                map.iter().map(|(key, value)| format!("{key}:{}", go_text(value))).collect();
            members.sort();
            format!("map[{}]", joined(members))
        }
        scalar => scalar.to_string(),
    }
}

/// `None`: the patch deletes the object.
fn merge_object(
    definition: Option<&Definition>,
    mut original: Map<String, Value>,
    patch: &Map<String, Value>,
    depth: usize,
) -> Result<Option<Map<String, Value>>, String> {
    if depth > DEPTH {
        return Err("the patch is nested too deeply".to_owned());
    }
    match patch.get(PATCH) {
        None => {}
        Some(Value::String(directive)) => match directive.as_str() {
            "replace" => return Ok(Some(without_directives(patch))),
            "delete" => return Ok(None),
            "merge" => {}
            other => {
                let shown = go_text(&Value::Object(patch.clone()));
                return Err(format!("unknown patch type found: {other} in map: {shown}"));
            }
        },
        Some(other) => return Err(format!("wrong type for directive {PATCH}: {other}")),
    }
    if let Some(keys) = patch.get(RETAIN_KEYS) {
        let keys = keys.as_array().ok_or("the value of $retainKeys must be a list")?;
        original.retain(|key, _| keys.iter().any(|keep| keep == key));
    }
    for (key, value) in patch {
        if let Some(field) = key.strip_prefix(DELETE_FROM_LIST) {
            let gone = value.as_array().ok_or("the value of $deleteFromPrimitiveList must be a list")?;
            if let Some(Value::Array(list)) = original.get_mut(field) {
                list.retain(|item| !gone.contains(item));
            }
        } else if !key.starts_with('$') {
            merge_field(definition, &mut original, key, value, depth)?;
        }
    }
    for (key, value) in patch {
        if let Some(field) = key.strip_prefix(SET_ORDER) {
            let order = value.as_array().ok_or("the value of $setElementOrder must be a list")?;
            let merge_key = definition
                .and_then(|found| found.field(field))
                .and_then(|found| found.list)
                .map_or("", |fact| fact.merge_key);
            if let Some(Value::Array(list)) = original.get_mut(field) {
                reorder(list, order, merge_key);
            }
        }
    }
    Ok(Some(original))
}

fn merge_field(
    definition: Option<&Definition>,
    original: &mut Map<String, Value>,
    key: &str,
    value: &Value,
    depth: usize,
) -> Result<(), String> {
    let field = definition.and_then(|definition| definition.field(key));
    match value {
        Value::Null => drop(original.shift_remove(key)),
        Value::Object(patch) => {
            let old = match original.get(key) {
                Some(Value::Object(old)) => old.clone(),
                _ => Map::new(),
            };
            let below = match field.map(|field| &field.kind) {
                Some(Type::Object(index)) => Some(model().at(*index)),
                _ => None,
            };
            match merge_object(below, old, patch, depth + 1)? {
                Some(merged) => drop(original.insert(key.to_owned(), Value::Object(merged))),
                None => drop(original.shift_remove(key)),
            }
        }
        Value::Array(patch) => {
            let list = match (field, field.and_then(|field| field.list)) {
                (Some(field), Some(fact)) => {
                    let old = original.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
                    if fact.merge_key.is_empty() {
                        union(old, patch)
                    } else {
                        let item = match &field.kind {
                            Type::List(item) => match item.as_ref() {
                                Type::Object(index) => Some(model().at(*index)),
                                _ => None,
                            },
                            _ => None,
                        };
                        merge_list(item, old, patch, fact.merge_key, depth + 1)?
                    }
                }
                _ => patch.iter().map(clean).collect(),
            };
            original.insert(key.to_owned(), Value::Array(list));
        }
        scalar => drop(original.insert(key.to_owned(), scalar.clone())),
    }
    Ok(())
}

fn union(mut old: Vec<Value>, patch: &[Value]) -> Vec<Value> {
    for value in patch {
        if !old.contains(value) {
            old.push(value.clone());
        }
    }
    old
}

fn merge_list(
    item: Option<&Definition>,
    mut list: Vec<Value>,
    patch: &[Value],
    merge_key: &str,
    depth: usize,
) -> Result<Vec<Value>, String> {
    let replaces = |element: &Value| element.get(PATCH).is_some_and(|directive| directive == "replace");
    if patch.iter().any(replaces) {
        // The directive stands in an element of its own; the others are the whole list.
        return Ok(patch.iter().filter(|element| element.get(PATCH).is_none()).map(clean).collect());
    }
    for element in patch {
        let Some(element) = element.as_object() else {
            return Err(format!(
                "invalid patch format: every element of a list that merges by {merge_key} must be an object"
            ));
        };
        let Some(key) = element.get(merge_key) else {
            return Err(format!(
                "map: {} does not contain declared merge key: {merge_key}",
                go_text(&Value::Object(element.clone()))
            ));
        };
        let position = list.iter().position(|old| old.get(merge_key) == Some(key));
        let old = position.and_then(|position| list[position].as_object().cloned()).unwrap_or_default();
        match (merge_object(item, old, element, depth)?, position) {
            (Some(merged), Some(position)) => list[position] = Value::Object(merged),
            (Some(merged), None) => list.push(Value::Object(merged)),
            // Every element with the key goes: a list may hold doubles that nobody wanted.
            (None, _) => list.retain(|old| old.get(merge_key) != Some(key)),
        }
    }
    Ok(list)
}

/// Elements that the order names come in its order; the others stay behind the element they followed.
fn reorder(list: &mut Vec<Value>, order: &[Value], merge_key: &str) {
    let key_of = |value: &Value| {
        if merge_key.is_empty() { Some(value.clone()) } else { value.get(merge_key).cloned() }
    };
    let rank = |value: &Value| {
        let key = key_of(value)?;
        order.iter().position(|wanted| key_of(wanted).as_ref() == Some(&key) || *wanted == key)
    };
    let mut groups: Vec<(Option<usize>, Vec<Value>)> = Vec::new();
    for value in list.drain(..) {
        match (rank(&value), groups.last_mut()) {
            (None, Some((_, group))) => group.push(value),
            (rank, _) => groups.push((rank, vec![value])),
        }
    }
    groups.sort_by_key(|(rank, _)| rank.map_or(0, |rank| rank + 1));
    list.extend(groups.into_iter().flat_map(|(_, group)| group));
}

/// A value of a patch that stands for itself: nulls and directives in it are not for storing.
fn clean(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(without_directives(map)),
        Value::Array(items) => Value::Array(items.iter().map(clean).collect()),
        scalar => scalar.clone(),
    }
}

fn without_directives(map: &Map<String, Value>) -> Map<String, Value> {
    map.iter()
        .filter(|(key, value)| !key.starts_with('$') && !value.is_null())
        .map(|(key, value)| (key.clone(), clean(value)))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn patched(original: &Value, patch: &Value) -> Value {
        let row = crate::find("", "v1", "pods").unwrap();
        strategic(row, original, patch).unwrap()
    }

    fn pod(spec: &Value) -> Value {
        json!({"metadata": {"name": "a"}, "spec": spec})
    }

    #[test]
    fn directives_and_lists() {
        let base = json!({"containers": [{"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "2"}], "nodeSelector": {"k": "v"}});
        let table = [
            (
                json!({"containers": [{"name": "a", "image": "9"}]}),
                "/spec/containers",
                json!([{"name": "a", "image": "9", "args": ["x"]}, {"name": "b", "image": "2"}]),
            ),
            (
                json!({"containers": [{"name": "a", "$patch": "delete"}]}),
                "/spec/containers",
                json!([{"name": "b", "image": "2"}]),
            ),
            (
                json!({"containers": [{"$patch": "replace"}, {"name": "c", "image": "3"}]}),
                "/spec/containers",
                json!([{"name": "c", "image": "3"}]),
            ),
            (json!({"containers": [{"name": "a", "args": ["y"]}]}), "/spec/containers/0/args", json!(["y"])),
            (
                json!({"containers": [{"name": "a", "args": null}]}),
                "/spec/containers/0",
                json!({"name": "a", "image": "1"}),
            ),
            (json!({"nodeSelector": {"k": null, "l": "w"}}), "/spec/nodeSelector", json!({"l": "w"})),
            (
                json!({"nodeSelector": {"$patch": "replace", "z": "1"}}),
                "/spec/nodeSelector",
                json!({"z": "1"}),
            ),
            (
                json!({"containers": [{"name": "c"}], "$setElementOrder/containers": [{"name": "c"}, {"name": "b"}, {"name": "a"}]}),
                "/spec/containers",
                json!([{"name": "c"}, {"name": "b", "image": "2"}, {"name": "a", "image": "1", "args": ["x"]}]),
            ),
        ];
        for (patch, pointer, wanted) in table {
            let result = patched(&pod(&base), &json!({"spec": patch}));
            assert_eq!(result.pointer(pointer), Some(&wanted), "{patch}");
        }
    }

    #[test]
    fn sets_unions_and_errors() {
        let original = json!({"metadata": {"finalizers": ["a", "b"]}, "spec": {"volumes": [{"name": "v", "emptyDir": {}}]}});
        let patch = json!({"metadata": {"finalizers": ["c"], "$deleteFromPrimitiveList/finalizers": ["a"]}});
        assert_eq!(patched(&original, &patch)["metadata"]["finalizers"], json!(["b", "c"]));
        let patch = json!({"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/"}, "$retainKeys": ["name", "hostPath"]}]}});
        assert_eq!(
            patched(&original, &patch)["spec"]["volumes"],
            json!([{"name": "v", "hostPath": {"path": "/"}}])
        );
        let row = crate::find("", "v1", "pods").unwrap();
        let error = strategic(row, &original, &json!({"spec": {"volumes": [{"emptyDir": {}}]}})).unwrap_err();
        assert_eq!(error, "map: map[emptyDir:map[]] does not contain declared merge key: name");
        assert!(strategic(row, &original, &json!({"spec": {"$patch": "explode"}})).is_err());
    }

    #[test]
    fn go_prints_maps_sorted() {
        assert_eq!(
            go_text(&json!({"b": [1, null, "x"], "a": {"c": true}})),
            "map[a:map[c:true] b:[1 <nil> x]]"
        );
    }
}
