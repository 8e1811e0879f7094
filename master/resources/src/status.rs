//! `metav1.Status` answers with upstream's reasons and texts (apimachinery `pkg/api/errors`).

use std::fmt::{self, Display};

use serde_json::{Map, Value, json};

use crate::fields::FieldError;
use crate::resource::Resource;

/// An answer that is an error: its HTTP code and its `metav1.Status` body.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    /// HTTP status code.
    pub code: u16,
    /// The whole `metav1.Status`.
    pub body: Value,
    /// Value of the `Retry-After` header, in seconds.
    pub retry_after: Option<u32>,
}

impl Display for ApiError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.message())
    }
}

impl std::error::Error for ApiError {}

/// Who asked for what, for `forbidden`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attempt<'a> {
    /// Name of the user.
    pub user: &'a str,
    /// Verb, as `get`.
    pub verb: &'a str,
    /// API group.
    pub group: &'a str,
    /// Plural.
    pub resource: &'a str,
    /// Subresource or empty.
    pub subresource: &'a str,
    /// Namespace or empty for the cluster scope.
    pub namespace: &'a str,
    /// Name or empty.
    pub name: &'a str,
}

impl ApiError {
    /// An error of any reason.
    pub fn new(code: u16, reason: &str, message: impl Into<String>, details: Option<Value>) -> Self {
        let mut body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message.into()});
        if !reason.is_empty() {
            body["reason"] = json!(reason);
        }
        let retry_after = details
            .as_ref()
            .and_then(|details| details.get("retryAfterSeconds"))
            .and_then(Value::as_u64)
            .map(|seconds| u32::try_from(seconds).unwrap_or(u32::MAX));
        if let Some(details) = details {
            body["details"] = details;
        }
        body["code"] = json!(code);
        Self { code, body, retry_after }
    }

    /// Machine-readable reason.
    pub fn reason(&self) -> &str {
        self.body.get("reason").and_then(Value::as_str).unwrap_or_default()
    }

    /// Human-readable text.
    pub fn message(&self) -> &str {
        self.body.get("message").and_then(Value::as_str).unwrap_or_default()
    }
}

fn details(group: &str, kind: &str, name: &str) -> Value {
    let mut details = Map::new();
    for (key, value) in [("name", name), ("group", group), ("kind", kind)] {
        if !value.is_empty() {
            details.insert(key.to_owned(), json!(value));
        }
    }
    Value::Object(details)
}

/// Quotes as Go's `%q` does for the texts that occur here.
pub(crate) fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{b}' => quoted.push_str("\\v"),
            '\u{c}' => quoted.push_str("\\f"),
            control if (control as u32) < 0x20 || control as u32 == 0x7f => {
                quoted.push_str(&format!("\\x{:02x}", control as u32));
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

/// 404 for an object.
pub fn not_found(resource: &Resource, name: &str) -> ApiError {
    ApiError::new(
        404,
        "NotFound",
        format!("{} {} not found", resource.group_resource(), quote(name)),
        Some(details(resource.group, resource.plural, name)),
    )
}

/// 404 for a path no resource lives at.
pub fn no_such_resource() -> ApiError {
    ApiError::new(404, "NotFound", "the server could not find the requested resource", Some(json!({})))
}

/// 409 on create.
pub fn already_exists(resource: &Resource, name: &str) -> ApiError {
    ApiError::new(
        409,
        "AlreadyExists",
        format!("{} {} already exists", resource.group_resource(), quote(name)),
        Some(details(resource.group, resource.plural, name)),
    )
}

/// The reason given when `metadata.resourceVersion` is stale.
pub const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

/// 409 on update.
pub fn conflict(resource: &Resource, name: &str, why: &str) -> ApiError {
    ApiError::new(
        409,
        "Conflict",
        format!("Operation cannot be fulfilled on {} {}: {why}", resource.group_resource(), quote(name)),
        Some(details(resource.group, resource.plural, name)),
    )
}

/// 422: `errors` are the object's field errors.
pub fn invalid(resource: &Resource, name: &str, errors: &[FieldError]) -> ApiError {
    invalid_kind(resource.group, resource.kind, name, errors)
}

/// 422 for a kind that is not a row (options, scales, evictions).
pub fn invalid_kind(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> ApiError {
    let mut texts: Vec<String> = Vec::with_capacity(errors.len());
    for text in errors.iter().map(ToString::to_string) {
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    let list = match texts.as_slice() {
        [only] => only.clone(),
        several => format!("[{}]", several.join(", ")),
    };
    let causes: Vec<Value> = errors
        .iter()
        .map(|error| json!({"reason": error.cause, "message": error.message, "field": error.field}))
        .collect();
    let qualified = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
    let mut details = details(group, kind, name);
    details["causes"] = Value::Array(causes);
    ApiError::new(422, "Invalid", format!("{qualified} {} is invalid: {list}", quote(name)), Some(details))
}

/// 400.
pub fn bad_request(text: impl Into<String>) -> ApiError {
    ApiError::new(400, "BadRequest", text, None)
}

/// 401.
pub fn unauthorized() -> ApiError {
    ApiError::new(401, "Unauthorized", "Unauthorized", None)
}

/// 403 of the authorizer.
pub fn forbidden(attempt: Attempt<'_>) -> ApiError {
    let Attempt { user, verb, group, resource, subresource, namespace, name } = attempt;
    let full = if subresource.is_empty() { resource.to_owned() } else { format!("{resource}/{subresource}") };
    let place = if namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {}", quote(namespace))
    };
    let why = format!(
        "User {} cannot {verb} resource {} in API group {} {place}",
        quote(user),
        quote(&full),
        quote(group)
    );
    forbidden_text(group, resource, name, &why)
}

/// 403 of the authorizer for a path that is not a resource.
pub fn forbidden_path(user: &str, verb: &str, path: &str) -> ApiError {
    let why = format!("forbidden: User {} cannot {verb} path {}", quote(user), quote(path));
    ApiError::new(403, "Forbidden", why, Some(json!({})))
}

/// 403 of admission: `pods "x" is forbidden: WHY`.
pub fn forbidden_because(resource: &Resource, name: &str, why: &str) -> ApiError {
    forbidden_text(resource.group, resource.plural, name, why)
}

/// 403 for new objects in a namespace that is going away.
pub fn namespace_terminating(resource: &Resource, name: &str, namespace: &str) -> ApiError {
    let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
    let mut error = forbidden_text(resource.group, resource.plural, name, &why);
    error.body["details"]["causes"] = json!([{"reason": "NamespaceTerminating", "message": format!("namespace {namespace} is being terminated"), "field": "metadata.namespace"}]);
    error
}

fn forbidden_text(group: &str, resource: &str, name: &str, why: &str) -> ApiError {
    let qualified = if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") };
    let text = if name.is_empty() {
        format!("{qualified} is forbidden: {why}")
    } else {
        format!("{qualified} {} is forbidden: {why}", quote(name))
    };
    ApiError::new(403, "Forbidden", text, Some(details(group, resource, name)))
}

/// 405.
pub fn method_not_allowed() -> ApiError {
    ApiError::new(
        405,
        "MethodNotAllowed",
        "the server does not allow this method on the requested resource",
        Some(json!({})),
    )
}

/// 415: `accepted` are the media types that would do.
pub fn unsupported_media_type(accepted: &[&str]) -> ApiError {
    let text = format!(
        "the body of the request was in an unknown format - accepted media types include: {}",
        accepted.join(", ")
    );
    ApiError::new(415, "UnsupportedMediaType", text, None)
}

/// 406: `accepted` are the media types there are.
pub fn not_acceptable(accepted: &[&str]) -> ApiError {
    let text = format!("only the following media types are accepted: {}", accepted.join(", "));
    ApiError::new(406, "NotAcceptable", text, None)
}

/// 410 with reason Expired: the history asked for is compacted.
pub fn gone_expired(text: impl Into<String>) -> ApiError {
    ApiError::new(410, "Expired", text, None)
}

/// 504: the resource version asked for is in the future.
pub fn too_large_resource_version(asked: u64, current: u64) -> ApiError {
    let text = format!("Too large resource version: {asked}, current: {current}");
    let details = json!({"causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}], "retryAfterSeconds": 1});
    ApiError::new(504, "Timeout", format!("Timeout: {text}"), Some(details))
}

/// 507: the store refuses writes because its disk is full.
pub fn insufficient_storage(text: impl Into<String>) -> ApiError {
    ApiError::new(507, "InsufficientStorage", text, Some(json!({"retryAfterSeconds": 5})))
}

/// 500.
pub fn internal(text: impl Display) -> ApiError {
    let text = text.to_string();
    ApiError::new(
        500,
        "InternalError",
        format!("Internal error occurred: {text}"),
        Some(json!({"causes": [{"message": text}]})),
    )
}

/// 504.
pub fn timeout(text: impl Display, retry_after_seconds: u32) -> ApiError {
    let details =
        if retry_after_seconds == 0 { json!({}) } else { json!({"retryAfterSeconds": retry_after_seconds}) };
    ApiError::new(504, "Timeout", format!("Timeout: {text}"), Some(details))
}

/// 503.
pub fn service_unavailable(text: impl Into<String>) -> ApiError {
    ApiError::new(503, "ServiceUnavailable", text, None)
}

/// 429.
pub fn too_many_requests(text: impl Into<String>, retry_after_seconds: u32) -> ApiError {
    ApiError::new(429, "TooManyRequests", text, Some(json!({"retryAfterSeconds": retry_after_seconds})))
}

/// 413.
pub fn request_entity_too_large(text: impl Display) -> ApiError {
    ApiError::new(413, "RequestEntityTooLarge", format!("Request entity too large: {text}"), None)
}

/// 501-like answer for what this server does not do; upstream's reason for an unserved verb.
pub fn not_implemented(text: impl Into<String>) -> ApiError {
    ApiError::new(501, "NotImplemented", text, None)
}

/// 200, the answer to a delete that is complete.
pub fn success(details: Option<Value>) -> Value {
    let mut body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"});
    if let Some(details) = details {
        body["details"] = details;
    }
    body
}

/// The details of `success` for a deleted object.
pub fn deleted_details(resource: &Resource, name: &str, uid: &str) -> Value {
    let mut details = details(resource.group, resource.plural, name);
    if !uid.is_empty() {
        details["uid"] = json!(uid);
    }
    details
}
