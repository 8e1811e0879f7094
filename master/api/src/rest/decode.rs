//! From the body of a request to an object.

use bytes::Bytes;
use http::header;
use orlop_resources::Resource;
use orlop_resources::schema;
use orlop_resources::status::{self, ApiError};
use serde_json::{Map, Value};

use crate::context::Context;
use crate::rules::encode::{remove_path, strip_nulls};
use crate::rules::options::FieldValidation;
use crate::rules::protobuf::{self, Refusal};
use crate::rules::unreadable;

/// The definition of what sizes a controller.
pub(crate) const SCALE: &str = "io.k8s.api.autoscaling.v1.Scale";
const DELETE_OPTIONS: &str = "DeleteOptions";
const ACCEPTED: &[&str] = &["application/json", "application/yaml"];

/// Reads, decodes and checks the body as an object of `resource`: type, unknown and duplicate fields, apiVersion and kind.
pub(crate) fn decode_body(context: &mut Context, resource: &'static Resource) -> Result<Value, ApiError> {
    let bytes = std::mem::take(&mut context.body);
    let (mut object, duplicates) = parse(context.header(header::CONTENT_TYPE), &bytes, resource.kind)?;
    let map = as_map(&mut object, resource.kind, &bytes)?;
    unreadable::check_type(resource, map, &bytes)?;
    map.insert("apiVersion".to_owned(), Value::from(resource.api_version()));
    map.insert("kind".to_owned(), Value::from(resource.kind));
    let validation = context.field_validation()?;
    check_fields(context, resource, validation, &mut object, duplicates)
        .map_err(|why| unreadable::unhandled(resource.version, resource.kind, resource.kind, &why))?;
    Ok(object)
}

/// Reads the body as options or another small kind that is no row of the table; an empty body is an empty object.
pub(crate) fn decode_options(context: &mut Context, kind: &str) -> Result<Value, ApiError> {
    let bytes = std::mem::take(&mut context.body);
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Object(Map::new()));
    }
    let (mut object, _) = parse(context.header(header::CONTENT_TYPE), &bytes, kind)?;
    unreadable::check_kind(kind, as_map(&mut object, kind, &bytes)?)?;
    let (definition, version) = definition_of(kind);
    let unhandled = |why: &str| unreadable::unhandled(version, kind, kind, why);
    if let Some(error) = schema::type_errors_of(definition, &object) {
        return Err(unhandled(&error));
    }
    // Upstream reads the options of a deletion without looking for fields that are none.
    if kind != DELETE_OPTIONS {
        let unknown = schema::unknown_fields_of(definition, &object);
        let complaints = unknown.iter().map(|field| format!("unknown field \"{field}\"")).collect();
        let validation = context.field_validation()?;
        complain(context, validation, complaints).map_err(|why| unhandled(&why))?;
    }
    strip_nulls(&mut object);
    Ok(object)
}

/// Definition and version of a small kind.
fn definition_of(kind: &str) -> (&'static str, &'static str) {
    match kind {
        "Scale" => (SCALE, "autoscaling/v1"),
        "Eviction" => ("io.k8s.api.policy.v1.Eviction", "policy/v1"),
        "TokenRequest" => ("io.k8s.api.authentication.v1.TokenRequest", "authentication.k8s.io/v1"),
        "Binding" => ("io.k8s.api.core.v1.Binding", "v1"),
        _ => ("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions", "v1"),
    }
}

/// Refuses, warns or is silent, as the client wants it.
fn complain(
    context: &mut Context,
    validation: FieldValidation,
    complaints: Vec<String>,
) -> Result<(), String> {
    match validation {
        FieldValidation::Strict if !complaints.is_empty() => {
            Err(format!("strict decoding error: {}", complaints.join(", ")))
        }
        FieldValidation::Warn => {
            context.warnings.extend(complaints);
            Ok(())
        }
        FieldValidation::Strict | FieldValidation::Ignore => Ok(()),
    }
}

/// The object in the body; `null` is an empty one, as for Go.
fn as_map<'a>(
    value: &'a mut Value,
    kind: &str,
    bytes: &[u8],
) -> Result<&'a mut Map<String, Value>, ApiError> {
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => Ok(map),
        other => Err(unreadable::no_object(kind, other, bytes)),
    }
}

fn parse(content_type: Option<&str>, bytes: &Bytes, kind: &str) -> Result<(Value, Vec<String>), ApiError> {
    let media = content_type.unwrap_or("application/json").split(';').next().unwrap_or_default().trim();
    match media {
        "application/json" | "" | "*/*" => {
            let (value, duplicates) =
                schema::decode_json(bytes).map_err(|why| unreadable::no_json(kind, &why, bytes))?;
            Ok((value, duplicates.iter().map(|field| format!("duplicate field \"{field}\"")).collect()))
        }
        "application/yaml" | "application/x-yaml" | "text/yaml" => {
            yaml(bytes).map_err(|why| unreadable::unrecognized(kind, &why, bytes))
        }
        "application/vnd.kubernetes.protobuf" => match protobuf::decode(bytes) {
            Ok(object) => Ok((object, Vec::new())),
            Err(Refusal::Malformed(why)) => {
                let why = format!("the protobuf body is malformed: {why}");
                Err(unreadable::unrecognized(kind, &why, bytes))
            }
            Err(Refusal::Unsupported(what)) => Err(unsupported_protobuf(&what)),
        },
        _ => Err(status::unsupported_media_type(ACCEPTED)),
    }
}

fn unsupported_protobuf(what: &str) -> ApiError {
    let mut error = status::unsupported_media_type(ACCEPTED);
    let text = format!(
        "this server does not read {what} as protobuf - accepted media types include: {}",
        ACCEPTED.join(", ")
    );
    error.body["message"] = Value::from(text);
    error
}

/// YAML: duplicate keys are reported, the last one counts (as with JSON).
fn yaml(bytes: &[u8]) -> Result<(Value, Vec<String>), String> {
    let place =
        |error: serde_saphyr::Error| format!("error converting YAML to JSON: yaml: {}", in_line(&error));
    match serde_saphyr::from_slice::<Value>(bytes) {
        Ok(value) => Ok((value, Vec::new())),
        Err(error) if error.to_string().contains("duplicate mapping key") => {
            let options =
                serde_saphyr::options! { duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins };
            let value = serde_saphyr::from_slice_with_options::<Value>(bytes, options).map_err(place)?;
            Ok((value, vec![already_set(&in_line(&error))]))
        }
        Err(error) => Err(place(error)),
    }
}

/// `line 3: unclosed bracket`, without the column and the excerpt.
fn in_line(error: &serde_saphyr::Error) -> String {
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    let first = first.strip_prefix("error: ").unwrap_or(first);
    match first.split_once(": ") {
        Some((place, why)) => {
            let line = place.split(" column").next().unwrap_or_default();
            format!("{line}: {why}")
        }
        None => first.to_owned(),
    }
}

/// The strict YAML decoder's words for a key that is there twice.
fn already_set(text: &str) -> String {
    let (line, why) = text.split_once(": ").unwrap_or(("", text));
    let key = why.split_once("mapping key: ").map_or(why, |(_, rest)| rest);
    let key = key.split(", set Dup").next().unwrap_or_default();
    format!("yaml: unmarshal errors:\n  {line}: key {key:?} already set in map")
}

/// Wrong types are refused; unknown and duplicate fields are refused, warned about or ignored; unknown ones go.
///
/// # Errors
/// What upstream's decoder says; the caller knows what was decoded.
pub(super) fn check_fields(
    context: &mut Context,
    resource: &Resource,
    validation: FieldValidation,
    object: &mut Value,
    mut complaints: Vec<String>,
) -> Result<(), String> {
    if let Some(error) = schema::type_errors(resource, object) {
        return Err(error.to_string());
    }
    let unknown = schema::unknown_fields(resource, object);
    complaints.extend(unknown.iter().map(|field| format!("unknown field \"{field}\"")));
    complain(context, validation, complaints)?;
    for path in &unknown {
        remove_path(object, path);
    }
    strip_nulls(object);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_errors_name_the_line() {
        assert_eq!(
            yaml(b"a: 1\nb: 2\na: 3\n").unwrap().1,
            ["yaml: unmarshal errors:\n  line 3: key \"a\" already set in map"]
        );
        let error = yaml(b"a: 1\nb: {c\n").unwrap_err();
        assert!(error.starts_with("error converting YAML to JSON: yaml: line 2: "), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
}
