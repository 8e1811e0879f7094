//! What upstream says of a body that it cannot read (apiserver `endpoints/handlers/rest.go`, `transformDecodeError`).

use orlop_resources::Resource;
use orlop_resources::status::{self, ApiError};
use serde_json::{Map, Value};

/// So much of a body is shown.
const SHOWN_BYTES: usize = 30;
/// What upstream's decoder reads first.
const TYPE_META: &str = "struct { APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }";

/// Neither version nor kind can be told.
pub(crate) fn unrecognized(kind: &str, why: &str, body: &[u8]) -> ApiError {
    let shown = summary(body);
    status::bad_request(format!(
        "the object provided is unrecognized (must be of type {kind}): {why} ({shown})"
    ))
}

/// A body that is no JSON.
pub(crate) fn no_json(kind: &str, why: &str, body: &[u8]) -> ApiError {
    unrecognized(kind, &format!("couldn't get version/kind; json parse error: {why}"), body)
}

/// JSON that is no object.
pub(crate) fn no_object(kind: &str, value: &Value, body: &[u8]) -> ApiError {
    let found = type_name(value);
    no_json(kind, &format!("json: cannot unmarshal {found} into Go value of type {TYPE_META}"), body)
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Kind and version are known, the rest is wrong.
pub(crate) fn unhandled(api_version: &str, given_kind: &str, kind: &str, why: &str) -> ApiError {
    let version = api_version.rsplit('/').next().unwrap_or_default();
    status::bad_request(format!("{given_kind} in version {version:?} cannot be handled as a {kind}: {why}"))
}

fn summary(body: &[u8]) -> String {
    let shown = &body[..body.len().min(SHOWN_BYTES)];
    let more = if body.len() > SHOWN_BYTES { " ..." } else { "" };
    match body.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => format!("{}{more}", String::from_utf8_lossy(shown)),
        Some(_) => {
            let hex: String = shown.iter().map(|byte| format!("{byte:02x}")).collect();
            hex + more
        }
    }
}

/// Refuses a body of another type than `resource`; absent apiVersion and kind are those of the resource.
pub(crate) fn check_type(
    resource: &Resource,
    object: &Map<String, Value>,
    body: &[u8],
) -> Result<(), ApiError> {
    let expected = resource.api_version();
    let mut given = [expected.as_str(), resource.kind];
    for (slot, field) in given.iter_mut().zip(["apiVersion", "kind"]) {
        match object.get(field) {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) if text.is_empty() => {}
            Some(Value::String(text)) => *slot = text,
            Some(other) => {
                let found = type_name(other);
                let why =
                    format!("json: cannot unmarshal {found} into Go struct field .{field} of type string");
                return Err(no_json(resource.kind, &why, body));
            }
        }
    }
    let [version, kind] = given;
    if version == expected && kind == resource.kind {
        return Ok(());
    }
    if !is_known(version, kind) {
        return Err(unhandled(version, kind, resource.kind, &not_registered(version, kind)));
    }
    if kind != resource.kind {
        let short = version.rsplit('/').next().unwrap_or_default();
        let internal = resource.group.split('.').next().filter(|group| !group.is_empty()).unwrap_or("core");
        let target = resource.kind;
        let why = format!("converting ({short}.{kind}) to ({internal}.{target}): unknown conversion");
        return Err(unhandled(version, kind, target, &why));
    }
    Err(status::bad_request(format!(
        "the API version in the data ({version}) does not match the expected API version ({expected})"
    )))
}

/// Refuses a body that says it is another kind than `kind`, which is no row of the table and comes in several versions.
pub(crate) fn check_kind(kind: &str, object: &Map<String, Value>) -> Result<(), ApiError> {
    let word = |field: &str| object.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
    match (word("kind"), word("apiVersion")) {
        (Some(given), version) if given != kind => {
            let version = version.unwrap_or("v1");
            Err(unhandled(version, given, kind, &not_registered(version, given)))
        }
        _ => Ok(()),
    }
}

fn not_registered(version: &str, kind: &str) -> String {
    format!(
        "no kind {kind:?} is registered for version {version:?} in scheme \"pkg/api/legacyscheme/scheme.go:30\""
    )
}

fn is_known(api_version: &str, kind: &str) -> bool {
    orlop_resources::resources().iter().any(|known| known.kind == kind && known.api_version() == api_version)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bodies_are_refused_in_upstreams_words() {
        let core = |plural: &str| orlop_resources::find("", "v1", plural).unwrap();
        let table = [
            (json!({"kind": "ConfigMap", "apiVersion": "v1"}), ""),
            (json!({}), ""),
            (
                json!({"kind": "Pod", "apiVersion": "v1"}),
                "Pod in version \"v1\" cannot be handled as a ConfigMap: converting (v1.Pod) to (core.ConfigMap): unknown conversion",
            ),
            (
                json!({"kind": "ConfigMap", "apiVersion": "acme.com/v2"}),
                "ConfigMap in version \"v2\" cannot be handled as a ConfigMap: no kind \"ConfigMap\" is registered for version \"acme.com/v2\" in scheme \"pkg/api/legacyscheme/scheme.go:30\"",
            ),
            (
                json!({"kind": 1}),
                "the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse error: json: cannot unmarshal number into Go struct field .kind of type string ({\"kind\":1})",
            ),
        ];
        for (body, expected) in table {
            let outcome =
                check_type(core("configmaps"), body.as_object().unwrap(), body.to_string().as_bytes());
            let text = outcome.err().map(|error| error.message().to_owned()).unwrap_or_default();
            assert_eq!(text, expected);
        }
        let event = json!({"kind": "Event", "apiVersion": "events.k8s.io/v1"});
        let error = check_type(core("events"), event.as_object().unwrap(), b"").unwrap_err();
        assert_eq!(
            error.message(),
            "the API version in the data (events.k8s.io/v1) does not match the expected API version (v1)"
        );
    }

    #[test]
    fn what_is_no_object_is_shown() {
        assert_eq!(
            no_json("Pod", "unexpected end of JSON input", b"{").message(),
            "the object provided is unrecognized (must be of type Pod): couldn't get version/kind; json parse error: unexpected end of JSON input ({)"
        );
        assert!(no_json("Pod", "x", b"").message().ends_with("(<empty>)"));
        assert!(no_object("Pod", &json!([]), b"[]").message().ends_with(" (5b5d)"));
        assert!(unrecognized("Pod", "x", &[b'{'; 31]).message().ends_with("{{{{ ...)"));
    }
}
