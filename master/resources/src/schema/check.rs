//! Walks a value along its type.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use orlop_types::Quantity;
use serde_json::Value;

use super::types::{Definition, FieldType, Type, model};
use crate::status::quote;

/// At most so many unknown fields are reported.
const UNKNOWN: usize = 100;
const BAD_QUANTITY: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

/// Paths of the fields that the definition does not have.
pub(super) fn unknown(root: &Definition, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    unknown_in_object(root, value, "", &mut found);
    found
}

fn unknown_in_object(definition: &Definition, value: &Value, path: &str, found: &mut Vec<String>) {
    for (key, value) in value.as_object().into_iter().flatten() {
        let path = join(path, key);
        match definition.field(key) {
            Some(field) => unknown_in(&field.kind, value, &path, found),
            None if found.len() < UNKNOWN => found.push(path),
            None => return,
        }
    }
}

fn unknown_in(kind: &Type, value: &Value, path: &str, found: &mut Vec<String>) {
    match kind {
        Type::Object(index) => unknown_in_object(model().at(*index), value, path, found),
        Type::List(item) => {
            for (index, value) in value.as_array().into_iter().flatten().enumerate() {
                unknown_in(item, value, &format!("{path}[{index}]"), found);
            }
        }
        Type::Map(item) => {
            for (key, value) in value.as_object().into_iter().flatten() {
                unknown_in(item, value, &join(path, key), found);
            }
        }
        _ => {}
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// The first value that does not decode.
pub(super) fn wrong(root: &Definition, value: &Value) -> Option<String> {
    if !value.is_object() && !value.is_null() {
        return Some(format!(
            "json: cannot unmarshal {} into Go value of type {}",
            json_kind(value),
            root.go_type
        ));
    }
    wrong_in_object(root, value, "")
}

fn wrong_in_object(definition: &Definition, value: &Value, path: &str) -> Option<String> {
    value.as_object()?.iter().find_map(|(key, value)| {
        let field = definition.field(key)?;
        wrong_in(definition, &field.kind, value, &join(path, key))
    })
}

fn wrong_in(owner: &Definition, kind: &Type, value: &Value, path: &str) -> Option<String> {
    if value.is_null() {
        return None;
    }
    let mismatch = || {
        let found = json_kind(value);
        Some(format!(
            "json: cannot unmarshal {found} into Go struct field {}.{path} of type {}",
            owner.short_name(),
            model().go_type(kind)
        ))
    };
    match kind {
        Type::Any => None,
        Type::String if value.is_string() => None,
        Type::Bool if value.is_boolean() => None,
        Type::Number if value.is_number() => None,
        Type::Int32 if value.as_i64().is_some_and(|number| i32::try_from(number).is_ok()) => None,
        Type::Int64 if value.as_i64().is_some() => None,
        Type::IntOrString
            if value.is_string() || value.as_i64().is_some_and(|number| i32::try_from(number).is_ok()) =>
        {
            None
        }
        Type::Quantity if value.is_string() || value.is_number() => quantity_of(value).err(),
        Type::Time | Type::MicroTime if value.is_string() => wrong_time(value.as_str().unwrap_or_default()),
        Type::Bytes if value.is_string() => wrong_base64(value.as_str().unwrap_or_default()),
        Type::Object(index) if value.is_object() => wrong_in_object(model().at(*index), value, path),
        Type::List(item) => match value.as_array() {
            Some(list) => list.iter().find_map(|value| wrong_in(owner, item, value, path)),
            None => mismatch(),
        },
        Type::Map(item) => match value.as_object() {
            Some(map) => map.values().find_map(|value| wrong_in(owner, item, value, path)),
            None => mismatch(),
        },
        _ => mismatch(),
    }
}

fn json_kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::Number(number)
            if number.is_f64() || number.as_i64().is_none_or(|number| i32::try_from(number).is_err()) =>
        {
            format!("number {number}")
        }
        Value::Number(_) => "number".to_owned(),
        Value::String(_) => "string".to_owned(),
        Value::Array(_) => "array".to_owned(),
        Value::Object(_) => "object".to_owned(),
    }
}

fn quantity_of(value: &Value) -> Result<Quantity, String> {
    let parsed = match value {
        Value::String(text) => text.parse(),
        other => other.to_string().parse(),
    };
    parsed.map_err(|_| BAD_QUANTITY.to_owned())
}

fn wrong_time(text: &str) -> Option<String> {
    if text.parse::<jiff::Timestamp>().is_ok() {
        return None;
    }
    Some(format!(
        "parsing time {0} as \"2006-01-02T15:04:05Z07:00\": cannot parse {0} as \"2006\"",
        quote(text)
    ))
}

fn wrong_base64(text: &str) -> Option<String> {
    match STANDARD.decode(text) {
        Ok(_) => None,
        Err(base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _)) => {
            Some(format!("illegal base64 data at input byte {at}"))
        }
        Err(_) => Some(format!("illegal base64 data at input byte {}", text.len())),
    }
}

/// The one form in which upstream writes a time. Go's clients fail on a whole list when one micro time in it has no fraction.
fn rewrite_time(value: &mut Value, form: &str) {
    if let Some(time) = value.as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok()) {
        *value = Value::String(time.strftime(form).to_string());
    }
}

/// Removes what a typed decoder would not keep; see `schema::normalize`.
pub(super) fn normalize(root: &Definition, value: &mut Value) {
    let Some(map) = value.as_object_mut() else { return };
    map.retain(|key, value| match root.field(key) {
        None => false,
        Some(field) => {
            normalize_value(&field.kind, value);
            keep(field, value)
        }
    });
}

fn keep(field: &FieldType, value: &Value) -> bool {
    match (&field.kind, value) {
        (_, Value::Null) => false,
        (Type::List(_), Value::Array(list)) => field.required || !list.is_empty(),
        (Type::Map(_), Value::Object(map)) => field.required || !map.is_empty(),
        _ => true,
    }
}

fn normalize_value(kind: &Type, value: &mut Value) {
    match kind {
        Type::Object(index) => normalize(model().at(*index), value),
        Type::List(item) => {
            for value in value.as_array_mut().into_iter().flatten() {
                normalize_value(item, value);
            }
        }
        Type::Map(item) => {
            for (_, value) in value.as_object_mut().into_iter().flatten() {
                normalize_value(item, value);
            }
        }
        Type::Quantity => {
            if let Ok(quantity) = quantity_of(value) {
                *value = Value::String(quantity.to_string());
            }
        }
        Type::Time => rewrite_time(value, "%Y-%m-%dT%H:%M:%SZ"),
        Type::MicroTime => rewrite_time(value, "%Y-%m-%dT%H:%M:%S.%6fZ"),
        _ => {}
    }
}
