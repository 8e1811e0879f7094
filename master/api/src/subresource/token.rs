use http::StatusCode;
use orlop_resources::FieldError;
use orlop_resources::status::{self, ApiError};
use orlop_store::Entry;
use serde_json::{Value, json};

use crate::body::Reply;
use crate::context::Context;
use crate::rest::{decode_options, now_text, value_reply};
use crate::rules::encode::text;
use crate::state::core;
use crate::token::Claims;

const DEFAULT_SECONDS: i64 = 3600;
const SHORTEST_SECONDS: i64 = 600;
const LONGEST_SECONDS: i64 = 1 << 32;

/// POST serviceaccounts/NAME/token: a token that expires, and dies with what it is bound to.
pub(super) async fn request(context: &mut Context) -> Result<Reply, ApiError> {
    let mut request = decode_options(context, "TokenRequest")?;
    let account = context.entry()?;
    let seconds =
        request.pointer("/spec/expirationSeconds").and_then(Value::as_i64).unwrap_or(DEFAULT_SECONDS);
    check_seconds(seconds, &context.info.name)?;
    let mut audiences: Vec<String> = request
        .pointer("/spec/audiences")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|audience| audience.as_str().map(str::to_owned))
        .collect();
    if audiences.is_empty() {
        audiences.push(context.api.tokens.issuer.clone());
    }
    let bound = bound(context, &request)?;
    let now = jiff::Timestamp::now().as_second();
    let claims = Claims {
        namespace: context.info.namespace.clone(),
        account: context.info.name.clone(),
        account_uid: account.meta.uid.to_string(),
        bound: bound.object,
        node: bound.node,
        audiences: audiences.clone(),
        issued: now,
        expires: now + seconds,
        id: uuid::Uuid::new_v4().to_string(),
    };
    let token = context.api.tokens.sign(&claims).map_err(status::internal)?;
    let expires = jiff::Timestamp::from_second(claims.expires).map_err(status::internal)?;
    request["kind"] = json!("TokenRequest");
    request["apiVersion"] = json!("authentication.k8s.io/v1");
    request["metadata"] = json!({
        "name": context.info.name, "namespace": context.info.namespace, "creationTimestamp": now_text(),
    });
    request["spec"]["audiences"] = json!(audiences);
    request["spec"]["expirationSeconds"] = json!(seconds);
    request["status"] =
        json!({"token": token, "expirationTimestamp": expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()});
    value_reply(context, StatusCode::CREATED, &request)
}

fn check_seconds(seconds: i64, name: &str) -> Result<(), ApiError> {
    let why = if seconds < SHORTEST_SECONDS {
        "may not specify a duration less than 10 minutes"
    } else if seconds > LONGEST_SECONDS {
        "may not specify a duration larger than 2^32 seconds"
    } else {
        return Ok(());
    };
    let message = format!("Invalid value: {seconds}: {why}");
    let error =
        FieldError { cause: "FieldValueInvalid", field: "spec.expirationSeconds".to_owned(), message };
    Err(status::invalid_kind("authentication.k8s.io", "TokenRequest", name, &[error]))
}

/// Kind, name and uid.
type Reference = (String, String, String);

/// What a token dies with, and where that runs.
#[derive(Default)]
struct Bound {
    object: Option<Reference>,
    /// Name and uid of a pod's node.
    node: Option<(String, String)>,
}

/// What the token dies with, checked to exist. A kubelet must name a pod of its own.
fn bound(context: &Context, request: &Value) -> Result<Bound, ApiError> {
    let own_node = context.identity.node();
    let unbound = || forbidden(context, "node requested token not bound to a pod");
    let Some(reference) = request.pointer("/spec/boundObjectRef").filter(|reference| reference.is_object())
    else {
        return if own_node.is_some() { Err(unbound()) } else { Ok(Bound::default()) };
    };
    let (kind, plural, namespace) = match text(reference, "/kind") {
        "Pod" => ("pod", "pods", context.info.namespace.as_str()),
        "Secret" => ("secret", "secrets", context.info.namespace.as_str()),
        "Node" => ("node", "nodes", ""),
        other => {
            let account = &context.info.name;
            let text =
                format!("cannot bind token for serviceaccount {account:?} to object of kind {other:?}");
            return Err(status::bad_request(text));
        }
    };
    if own_node.is_some() && kind != "pod" {
        return Err(unbound());
    }
    let (name, uid) = (text(reference, "/name"), text(reference, "/uid"));
    let entry = context.api.core_entry(plural, namespace, name);
    let entry = entry.ok_or_else(|| status::not_found(core(plural), name))?;
    if !uid.is_empty() && uid != &*entry.meta.uid {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(status::conflict(core(plural), name, &why));
    }
    let node = if kind == "pod" { node_of(context, &entry)? } else { None };
    Ok(Bound { object: Some((kind.to_owned(), name.to_owned(), entry.meta.uid.to_string())), node })
}

fn forbidden(context: &Context, why: &str) -> ApiError {
    status::forbidden_because(context.resource, &context.info.name, why)
}

/// The node of a pod that runs as the account: a kubelet gets tokens for its own pods only.
fn node_of(context: &Context, pod: &Entry) -> Result<Option<(String, String)>, ApiError> {
    let account = format!("serviceaccounts/{}", context.info.name);
    if !pod.meta.references.iter().any(|used| **used == *account) {
        let account = &context.info.name;
        let text = format!(
            "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
        );
        return Err(status::bad_request(text));
    }
    let name = pod.meta.field("spec.nodeName").unwrap_or_default().to_owned();
    if context.identity.node().is_some_and(|own| own != name) {
        return Err(forbidden(context, "node requested token bound to a pod scheduled on a different node"));
    }
    if name.is_empty() {
        return Ok(None);
    }
    let uid = context.api.core_entry("nodes", "", &name).map(|entry| entry.meta.uid.to_string());
    Ok(Some((name, uid.unwrap_or_default())))
}
