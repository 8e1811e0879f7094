//! Short ways to read and complete JSON objects.

use serde_json::{Map, Value};

/// An object's members.
pub(crate) type Object = Map<String, Value>;

/// The text at a key; empty where there is none.
pub(crate) fn str_at<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The text at a pointer; empty where there is none.
pub(crate) fn str_of<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The integer at a key.
pub(crate) fn int_at(value: &Value, key: &str) -> Option<i64> {
    value.get(key).and_then(Value::as_i64)
}

/// The flag at a key; false where there is none.
pub(crate) fn flag_at(value: &Value, key: &str) -> bool {
    value.get(key).and_then(Value::as_bool).unwrap_or_default()
}

/// The elements at a key; empty where there are none.
pub(crate) fn list_at<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// The elements at a pointer; empty where there are none.
pub(crate) fn list_of<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// The texts of a list at a key.
pub(crate) fn texts_at<'a>(value: &'a Value, key: &str) -> Vec<&'a str> {
    list_at(value, key).iter().filter_map(Value::as_str).collect()
}

/// The members of the object at a pointer.
pub(crate) fn members<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    value.pointer(pointer).and_then(Value::as_object).into_iter().flatten()
}

/// The members of an object that is made if it is absent or null; nothing if something else stands there.
pub(crate) fn object_at<'a>(map: &'a mut Object, key: &str) -> Option<&'a mut Object> {
    if map.get(key).is_none_or(Value::is_null) {
        map.insert(key.to_owned(), Value::Object(Object::new()));
    }
    map.get_mut(key).and_then(Value::as_object_mut)
}

/// The elements of a list that may be there.
pub(crate) fn list_mut<'a>(map: &'a mut Object, key: &str) -> impl Iterator<Item = &'a mut Object> {
    map.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

/// The members of an object that may be there.
pub(crate) fn existing<'a>(map: &'a mut Object, key: &str) -> Option<&'a mut Object> {
    map.get_mut(key).and_then(Value::as_object_mut)
}

/// Sets a member that is absent or null.
pub(crate) fn fill(map: &mut Object, key: &str, value: impl Into<Value>) {
    if map.get(key).is_none_or(Value::is_null) {
        map.insert(key.to_owned(), value.into());
    }
}

/// Sets a member that is absent, null or the empty text.
pub(crate) fn fill_text(map: &mut Object, key: &str, text: &str) {
    if map.get(key).is_none_or(|old| old.is_null() || old == "") {
        map.insert(key.to_owned(), text.into());
    }
}

/// Whether a member is absent, null, or an empty text, list or object.
pub(crate) fn is_blank(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Array(list)) => list.is_empty(),
        Some(Value::Object(map)) => map.is_empty(),
        Some(_) => false,
    }
}
