//! From the body of a request to an object.

use bytes::Bytes;
use http::header;
use orlop_resources::Resource;
use orlop_resources::schema;
use orlop_resources::status::{self, ApiError};
use serde_json::{Map, Value};

use crate::context::{Context, FieldValidation};
use crate::rules::encode::{remove_path, strip_nulls, text};
use crate::rules::protobuf::{self, Refusal};

const ACCEPTED: &[&str] = &["application/json", "application/yaml"];

/// Reads, decodes and checks the body as an object of `resource`: type, unknown and duplicate fields, apiVersion and kind.
pub(crate) fn decode_body(context: &mut Context, resource: &'static Resource) -> Result<Value, ApiError> {
    let bytes = std::mem::take(&mut context.body);
    let (mut object, duplicates) = parse(context.header(header::CONTENT_TYPE), &bytes, resource.kind)?;
    check_type(&mut object, &resource.api_version(), resource.kind)?;
    check_fields(context, resource, &mut object, duplicates)?;
    Ok(object)
}

/// Reads the body as options or another small kind that is no row of the table; an empty body is an empty object.
pub(crate) fn decode_options(context: &mut Context, kind: &str) -> Result<Value, ApiError> {
    let bytes = std::mem::take(&mut context.body);
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Object(Map::new()));
    }
    let (mut object, _) = parse(context.header(header::CONTENT_TYPE), &bytes, kind)?;
    if !object.is_object() {
        return Err(status::bad_request(format!("the body of the request is no {kind} object")));
    }
    strip_nulls(&mut object);
    Ok(object)
}

fn parse(content_type: Option<&str>, bytes: &Bytes, kind: &str) -> Result<(Value, Vec<String>), ApiError> {
    let media = content_type.unwrap_or("application/json").split(';').next().unwrap_or_default().trim();
    let malformed = |error: &str| {
        status::bad_request(format!("{kind} in version \"v1\" cannot be handled as a {kind}: {error}"))
    };
    match media {
        "application/json" | "" | "*/*" => schema::decode_json(bytes)
            .map_err(|error| malformed(&format!("couldn't get version/kind; json parse error: {error}"))),
        "application/yaml" | "application/x-yaml" | "text/yaml" => {
            yaml(bytes).map_err(|error| malformed(&error))
        }
        "application/vnd.kubernetes.protobuf" => match protobuf::decode(bytes) {
            Ok(object) => Ok((object, Vec::new())),
            Err(Refusal::Malformed(why)) => Err(malformed(&format!("the protobuf body is malformed: {why}"))),
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
    let place = |error: serde_saphyr::Error| format!("error converting YAML to JSON: yaml: {error}");
    match serde_saphyr::from_slice::<Value>(bytes) {
        Ok(value) => Ok((value, Vec::new())),
        Err(error) if error.to_string().contains("duplicate") => {
            let options =
                serde_saphyr::options! { duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins };
            let value = serde_saphyr::from_slice_with_options::<Value>(bytes, options).map_err(place)?;
            Ok((value, vec![error.to_string().lines().next().unwrap_or_default().to_owned()]))
        }
        Err(error) => Err(place(error)),
    }
}

/// Absent apiVersion and kind are those of the path; others must equal them.
fn check_type(object: &mut Value, api_version: &str, kind: &str) -> Result<(), ApiError> {
    let Some(map) = object.as_object_mut() else {
        return Err(status::bad_request(format!("the body of the request is no {kind} object")));
    };
    let given = |map: &Map<String, Value>, key: &str| {
        map.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let (given_version, given_kind) = (given(map, "apiVersion"), given(map, "kind"));
    if !given_version.is_empty() && given_version != api_version {
        return Err(status::bad_request(format!(
            "the API version in the data ({given_version}) does not match the expected API version ({api_version})"
        )));
    }
    if !given_kind.is_empty() && given_kind != kind {
        return Err(status::bad_request(format!(
            "{kind} in version {api_version:?} cannot be handled as a {kind}: the kind in the data ({given_kind}) does not match the expected kind ({kind})"
        )));
    }
    map.insert("apiVersion".to_owned(), Value::from(api_version));
    map.insert("kind".to_owned(), Value::from(kind));
    Ok(())
}

/// Wrong types are refused; unknown and duplicate fields are refused, warned about or ignored; unknown ones go.
pub(super) fn check_fields(
    context: &mut Context,
    resource: &Resource,
    object: &mut Value,
    duplicates: Vec<String>,
) -> Result<(), ApiError> {
    let version = resource.api_version();
    if let Some(error) = schema::type_errors(resource, object) {
        let kind = resource.kind;
        return Err(status::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {kind}: {error}"
        )));
    }
    let unknown = schema::unknown_fields(resource, object);
    let mut complaints: Vec<String> =
        duplicates
            .iter()
            .map(|field| {
                if field.contains("duplicate") {
                    field.clone()
                } else {
                    format!("duplicate field \"{field}\"")
                }
            })
            .collect();
    complaints.extend(unknown.iter().map(|field| format!("unknown field \"{field}\"")));
    match context.field_validation()? {
        FieldValidation::Strict if !complaints.is_empty() => {
            let name = text(object, "/metadata/name");
            tracing::debug!(name, "strict decoding refused an object");
            return Err(status::bad_request(format!(
                "{} in version {version:?} cannot be handled as a {}: strict decoding error: {}",
                resource.kind,
                resource.kind,
                complaints.join(", ")
            )));
        }
        FieldValidation::Warn => context.warnings.extend(complaints),
        FieldValidation::Strict | FieldValidation::Ignore => {}
    }
    for path in &unknown {
        remove_path(object, path);
    }
    strip_nulls(object);
    Ok(())
}
