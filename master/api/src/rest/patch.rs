use http::{StatusCode, header};
use orlop_resources::FieldError;
use orlop_resources::schema;
use orlop_resources::status::{self, ApiError};
use serde_json::Value;

use super::decode::check_fields;
use super::object_reply;
use super::update::{Target, update_object};
use crate::body::Reply;
use crate::context::Context;
use crate::rules::encode::text;
use crate::rules::options;

const ACCEPTED: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];
/// Upstream's limit of operations in a JSON patch.
const OPERATION_LIMIT: usize = 10_000;

/// A patch, decoded.
pub(crate) enum Patch {
    /// RFC 6902.
    Json(json_patch::Patch),
    /// RFC 7396.
    Merge(Value),
    /// Kubernetes' own.
    Strategic(Value),
}

impl Patch {
    /// Reads the patch from the body of the request.
    pub(crate) fn read(context: &mut Context) -> Result<Self, ApiError> {
        let media = context
            .header(header::CONTENT_TYPE)
            .unwrap_or_default()
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_owned();
        if media.starts_with("application/apply-patch+") {
            return Err(unsupported_apply());
        }
        if !ACCEPTED.contains(&media.as_str()) {
            return Err(status::unsupported_media_type(ACCEPTED));
        }
        let bytes = std::mem::take(&mut context.body);
        let (value, _) = schema::decode_json(&bytes)
            .map_err(|error| status::bad_request(format!("error decoding patch: {error}")))?;
        match media.as_str() {
            "application/json-patch+json" => {
                let patch: json_patch::Patch = serde_json::from_value(value)
                    .map_err(|error| status::bad_request(format!("error decoding patch: {error}")))?;
                if patch.0.len() > OPERATION_LIMIT {
                    let text = format!(
                        "The allowed maximum operations in a JSON patch is {OPERATION_LIMIT}, got {}",
                        patch.0.len()
                    );
                    return Err(status::request_entity_too_large(text));
                }
                Ok(Self::Json(patch))
            }
            _ if !value.is_object() => Err(status::bad_request("error decoding patch: it is no object")),
            "application/merge-patch+json" => Ok(Self::Merge(value)),
            _ => Ok(Self::Strategic(value)),
        }
    }

    /// The patched object.
    pub(crate) fn apply(&self, context: &Context, object: &Value) -> Result<Value, ApiError> {
        let mut patched = object.clone();
        match self {
            Self::Json(patch) => json_patch::patch(&mut patched, patch).map_err(|error| {
                ApiError::new(
                    422,
                    "Invalid",
                    format!("the server rejected our request due to an error in our request: {error}"),
                    None,
                )
            })?,
            Self::Merge(patch) => json_patch::merge(&mut patched, patch),
            Self::Strategic(patch) => {
                patched = orlop_resources::patch::strategic(context.resource, object, patch)
                    .map_err(status::bad_request)?;
            }
        }
        Ok(patched)
    }

    /// How a refusal shows it: a strategic merge patch as it came, others as what they made.
    pub(crate) fn shown(&self, patched: &Value) -> String {
        match self {
            Self::Strategic(patch) => orlop_resources::patch::go_text(patch),
            Self::Json(_) | Self::Merge(_) => patched.to_string(),
        }
    }
}

fn unsupported_apply() -> ApiError {
    let mut error = status::unsupported_media_type(ACCEPTED);
    error.body["message"] = Value::from(
        "server-side apply (application/apply-patch) is not supported by this server; use client-side apply \
         (kubectl apply --server-side=false) or one of: application/json-patch+json, application/merge-patch+json, \
         application/strategic-merge-patch+json",
    );
    error
}

/// PATCH of an object or of a subresource with the object's own kind.
pub(crate) async fn patch(context: &mut Context, subresource: Option<&str>) -> Result<Reply, ApiError> {
    let dry_run = context.dry_run()?;
    let patch = Patch::read(context)?;
    let validation = context.field_validation()?;
    if context.query.get("force").is_some() {
        let fault = FieldError::forbidden("force", "may not be specified for non-apply patch");
        options::refused("PatchOptions", &[fault])?;
    }
    let (api, identity, key) = (context.api.clone(), context.identity.clone(), context.key());
    let (resource, name) = (context.resource, context.info.name.clone());
    let target = Target { resource, key: &key, name: &name, subresource, dry_run };
    let updated = update_object(&api, &identity, target, &mut |current| {
        let mut patched = patch.apply(context, current)?;
        context.warnings.clear();
        check_fields(context, resource, validation, &mut patched, Vec::new())
            .map_err(|why| options::patch_refused(&patch.shown(&patched), &why))?;
        let new_name = text(&patched, "/metadata/name");
        if new_name != name {
            return Err(status::bad_request(format!(
                "the name of the object ({new_name}) does not match the name on the URL ({name})"
            )));
        }
        Ok(patched)
    })
    .await?;
    object_reply(context, StatusCode::OK, updated)
}
