//! The `autoscaling/v1` Scale of a ReplicationController.

use http::StatusCode;
use orlop_resources::FieldError;
use orlop_resources::schema;
use orlop_resources::status::{self, ApiError};
use serde_json::{Value, json};

use crate::body::Reply;
use crate::context::Context;
use crate::rest::{Patch, SCALE, Target, check_place, decode_options, update_object, value_reply};
use crate::rules::encode::text;
use crate::rules::options::patch_refused;

pub(super) async fn answer(context: &mut Context) -> Result<Reply, ApiError> {
    match context.info.verb {
        "get" => {
            let scale = scale_of(&context.object_of(&*context.entry()?));
            value_reply(context, StatusCode::OK, &scale)
        }
        "update" => {
            let scale = decode_options(context, "Scale")?;
            check_place(context, &scale)?;
            store(context, &mut |_| Ok(scale.clone())).await
        }
        "patch" => {
            let patch = match Patch::read(context)? {
                // Scale has no lists: a strategic merge is a plain one.
                Patch::Strategic(patch) => Patch::Merge(patch),
                other => other,
            };
            let context = &*context;
            store(context, &mut |current| {
                let scale = patch.apply(context, current)?;
                match schema::type_errors_of(SCALE, &scale) {
                    Some(why) => Err(patch_refused(&patch.shown(&scale), &why)),
                    None => Ok(scale),
                }
            })
            .await
        }
        _ => Err(status::method_not_allowed()),
    }
}

async fn store(
    context: &Context,
    change: &mut (dyn FnMut(&Value) -> Result<Value, ApiError> + Send),
) -> Result<Reply, ApiError> {
    let (key, name) = (context.key(), &context.info.name);
    let target = Target {
        resource: context.resource,
        key: &key,
        name,
        subresource: None,
        dry_run: context.dry_run()?,
    };
    let updated = update_object(&context.api, &context.identity, target, &mut |current| {
        let scale = change(&scale_of(current))?;
        let replicas = scale.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or_default();
        if !(0..=i64::from(i32::MAX)).contains(&replicas) {
            let message = format!("Invalid value: {replicas}: must be greater than or equal to 0");
            let error = FieldError { cause: "FieldValueInvalid", field: "spec.replicas".to_owned(), message };
            return Err(status::invalid_kind("autoscaling", "Scale", name, &[error]));
        }
        let mut new = current.clone();
        new["spec"]["replicas"] = json!(replicas);
        new["metadata"]["resourceVersion"] = json!(text(&scale, "/metadata/resourceVersion"));
        Ok(new)
    })
    .await?;
    let object: Value = serde_json::from_slice(&updated).map_err(status::internal)?;
    value_reply(context, StatusCode::OK, &scale_of(&object))
}

fn scale_of(controller: &Value) -> Value {
    let selector = controller.pointer("/spec/selector").and_then(Value::as_object).into_iter().flatten();
    let mut selector: Vec<String> =
        selector.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    selector.sort();
    let mut metadata = json!({});
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = controller.pointer(&format!("/metadata/{key}")) {
            metadata[key] = value.clone();
        }
    }
    let number = |pointer: &str| controller.pointer(pointer).and_then(Value::as_i64).unwrap_or_default();
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": {"replicas": number("/spec/replicas")},
        "status": {"replicas": number("/status/replicas"), "selector": selector.join(",")},
    })
}
