//! Questions about who somebody is and what somebody may do.

use http::StatusCode;
use orlop_resources::FieldError;
use orlop_resources::status::{self, ApiError};
use serde_json::{Map, Value, json};

use crate::body::Reply;
use crate::context::Context;
use crate::identity::{Identity, MASTERS};
use crate::rest::{decode_body, value_reply};
use crate::rules::authorize::{self, Attributes};
use crate::rules::encode::text;

pub(super) async fn answer(context: &mut Context) -> Result<Reply, ApiError> {
    let mut review = decode_body(context, context.resource)?;
    let status = match context.resource.plural {
        "selfsubjectaccessreviews" => access(context, &context.identity, &review)?,
        "subjectaccessreviews" => access(context, &subject(&review)?, &review)?,
        "localsubjectaccessreviews" => {
            let namespace = text(&review, "/spec/resourceAttributes/namespace");
            if namespace != context.info.namespace {
                return Err(status::bad_request(
                    "spec.resourceAttributes.namespace must match the namespace of the request",
                ));
            }
            access(context, &subject(&review)?, &review)?
        }
        "selfsubjectrulesreviews" => rules(&context.identity),
        "selfsubjectreviews" => json!({"userInfo": user_info(&context.identity)}),
        "tokenreviews" => token(context, &review)?,
        _ => {
            return Err(status::not_implemented(format!("{} is not served", context.resource.plural)));
        }
    };
    if !review.get("metadata").is_some_and(Value::is_object) {
        review["metadata"] = json!({});
    }
    review["metadata"]["creationTimestamp"] = Value::Null;
    review["status"] = status;
    value_reply(context, StatusCode::CREATED, &review)
}

/// The user that a review asks about.
fn subject(review: &Value) -> Result<Identity, ApiError> {
    let user = text(review, "/spec/user");
    let groups: Vec<String> = review
        .pointer("/spec/groups")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|group| group.as_str().map(str::to_owned))
        .collect();
    if user.is_empty() && groups.is_empty() {
        let why = "at least one of user or group must be specified";
        return Err(invalid(FieldError::invalid("spec.user", &Value::from(""), why)));
    }
    Ok(Identity { user: user.to_owned(), groups, ..Identity::default() })
}

/// Upstream leaves the kind out here.
fn invalid(fault: FieldError) -> ApiError {
    status::invalid_kind("authorization.k8s.io", "", "", &[fault])
}

fn access(context: &Context, identity: &Identity, review: &Value) -> Result<Value, ApiError> {
    let spec = |pointer: &str| text(review, pointer);
    let allowed =
        if let Some(asked) = review.pointer("/spec/resourceAttributes").filter(|asked| asked.is_object()) {
            let requirements =
                asked.pointer("/fieldSelector/requirements").and_then(Value::as_array).into_iter().flatten();
            let node_name = requirements
                .into_iter()
                .find(|one| text(one, "/key") == "spec.nodeName" && text(one, "/operator") == "In")
                .and_then(|one| one.pointer("/values/0")?.as_str());
            let asked = Attributes {
                verb: text(asked, "/verb"),
                group: text(asked, "/group"),
                resource: text(asked, "/resource"),
                subresource: text(asked, "/subresource"),
                namespace: text(asked, "/namespace"),
                name: text(asked, "/name"),
                node_name,
            };
            authorize::may(identity, &asked, &*context.api)
        } else if review.pointer("/spec/nonResourceAttributes").is_some_and(Value::is_object) {
            let verb = spec("/spec/nonResourceAttributes/verb").to_ascii_lowercase();
            authorize::may_path(identity, &verb, spec("/spec/nonResourceAttributes/path"))
        } else {
            let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            return Err(invalid(FieldError::invalid("spec.resourceAttributes", &Value::Null, why)));
        };
    Ok(json!({"allowed": allowed}))
}

/// What `kubectl auth can-i --list` shows. Only superusers have rules that say everything.
fn rules(identity: &Identity) -> Value {
    if identity.is_in(MASTERS) {
        return json!({
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
            "incomplete": false,
        });
    }
    let urls = [
        "/api",
        "/api/*",
        "/apis",
        "/apis/*",
        "/healthz",
        "/livez",
        "/openapi",
        "/openapi/*",
        "/readyz",
        "/version",
    ];
    let incomplete =
        identity.groups.iter().any(|group| group == "system:nodes" || group == "system:orlop:network");
    json!({
        "resourceRules": [
            {"verbs": ["create"], "apiGroups": ["authorization.k8s.io"], "resources": ["selfsubjectaccessreviews", "selfsubjectrulesreviews"]},
            {"verbs": ["create"], "apiGroups": ["authentication.k8s.io"], "resources": ["selfsubjectreviews"]},
        ],
        "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": urls}],
        "incomplete": incomplete,
    })
}

fn user_info(identity: &Identity) -> Value {
    let mut info = Map::new();
    info.insert("username".to_owned(), json!(identity.user));
    if !identity.uid.is_empty() {
        info.insert("uid".to_owned(), json!(identity.uid));
    }
    info.insert("groups".to_owned(), json!(identity.groups));
    if !identity.extra.is_empty() {
        let extra: Map<String, Value> =
            identity.extra.iter().map(|(key, values)| (key.clone(), json!(values))).collect();
        info.insert("extra".to_owned(), Value::Object(extra));
    }
    Value::Object(info)
}

fn token(context: &Context, review: &Value) -> Result<Value, ApiError> {
    let token = text(review, "/spec/token");
    if token.is_empty() {
        return Err(status::bad_request("token is required for TokenReview in authentication"));
    }
    let audiences = review.pointer("/spec/audiences").and_then(Value::as_array).into_iter().flatten();
    let audiences: Vec<String> =
        audiences.filter_map(|audience| audience.as_str().map(str::to_owned)).collect();
    Ok(match context.api.authenticate_token(token, &audiences) {
        Ok((identity, audiences)) => {
            json!({"authenticated": true, "user": user_info(&identity), "audiences": audiences})
        }
        Err(reason) => json!({"authenticated": false, "user": {}, "error": reason}),
    })
}
