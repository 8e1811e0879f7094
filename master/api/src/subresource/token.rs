use http::StatusCode;
use orlop_resources::FieldError;
use orlop_resources::status::{self, ApiError};
use serde_json::{Value, json};

use crate::body::Reply;
use crate::context::Context;
use crate::rest::{decode_options, now_text, value_reply};
use crate::rules::encode::text;
use crate::token::Claims;

const DEFAULT_SECONDS: i64 = 3600;
const SHORTEST_SECONDS: i64 = 600;
const LONGEST_SECONDS: i64 = 1 << 32;

/// POST serviceaccounts/NAME/token: a token that expires, and dies with what it is bound to.
pub(super) async fn request(context: &mut Context) -> Result<Reply, ApiError> {
    let mut request = decode_options(context, "TokenRequest")?;
    let account = context.entry()?;
    let seconds = request
        .pointer("/spec/expirationSeconds")
        .and_then(Value::as_i64)
        .unwrap_or(DEFAULT_SECONDS);
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
    let (bound, node) = bound(context, &request)?;
    let now = jiff::Timestamp::now().as_second();
    let claims = Claims {
        namespace: context.info.namespace.clone(),
        account: context.info.name.clone(),
        account_uid: account.meta.uid.to_string(),
        bound,
        node,
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
    let error = FieldError {
        cause: "FieldValueInvalid",
        field: "spec.expirationSeconds".to_owned(),
        message,
    };
    Err(status::invalid_kind(
        "authentication.k8s.io",
        "TokenRequest",
        name,
        &[error],
    ))
}

type Reference = (String, String, String);

/// What the token dies with, checked to exist; and the node of a pod. A kubelet must name a pod of its own.
fn bound(
    context: &Context,
    request: &Value,
) -> Result<(Option<Reference>, Option<(String, String)>), ApiError> {
    let own_node = context.identity.node();
    let forbidden = |why: &str| {
        Err(status::forbidden_because(
            context.resource,
            &context.info.name,
            why,
        ))
    };
    let Some(reference) = request
        .pointer("/spec/boundObjectRef")
        .filter(|reference| reference.is_object())
    else {
        return match own_node {
            Some(_) => forbidden("node requested token not bound to a pod"),
            None => Ok((None, None)),
        };
    };
    let (kind, plural, namespace) = match text(reference, "/kind") {
        "Pod" => ("pod", "pods", context.info.namespace.as_str()),
        "Secret" => ("secret", "secrets", context.info.namespace.as_str()),
        "Node" => ("node", "nodes", ""),
        other => {
            return Err(status::bad_request(format!(
                "cannot bind token for serviceaccount {:?} to object of kind {other:?}",
                context.info.name
            )));
        }
    };
    if own_node.is_some() && kind != "pod" {
        return forbidden("node requested token not bound to a pod");
    }
    let (name, uid) = (text(reference, "/name"), text(reference, "/uid"));
    let entry = context.api.core_entry(plural, namespace, name);
    let Some(entry) = entry else {
        return Err(status::not_found(crate::state::core(plural), name));
    };
    if !uid.is_empty() && uid != &*entry.meta.uid {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(status::conflict(crate::state::core(plural), name, &why));
    }
    let mut node = None;
    if kind == "pod" {
        let account = format!("serviceaccounts/{}", context.info.name);
        if !entry.meta.references.iter().any(|used| **used == *account) {
            return Err(status::bad_request(format!(
                "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                context.info.name
            )));
        }
        let node_name = entry.meta.field("spec.nodeName").unwrap_or_default().to_owned();
        if own_node.is_some_and(|own| own != node_name) {
            return forbidden("node requested token bound to a pod scheduled on a different node");
        }
        if !node_name.is_empty() {
            let uid = context
                .api
                .core_entry("nodes", "", &node_name)
                .map(|entry| entry.meta.uid.to_string());
            node = Some((node_name, uid.unwrap_or_default()));
        }
    }
    Ok((
        Some((kind.to_owned(), name.to_owned(), entry.meta.uid.to_string())),
        node,
    ))
}
