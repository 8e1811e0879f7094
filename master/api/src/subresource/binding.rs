use http::StatusCode;
use orlop_resources::status::{self, ApiError};
use orlop_store::Condition;
use serde_json::{Value, json};

use crate::body::Reply;
use crate::context::Context;
use crate::rest::{commit, decode_options, now_text, value_reply};
use crate::rules::encode::{metadata_mut, text};
use crate::state::{core, key, parse};

const CONFLICT_TRIES: usize = 16;

/// POST pods/NAME/binding, or POST bindings with the pod's name in the body: the scheduler's decision.
pub(super) async fn bind(context: &mut Context) -> Result<Reply, ApiError> {
    let binding = decode_options(context, "Binding")?;
    let dry_run = context.dry_run()?;
    let mut name = context.info.name.clone();
    if name.is_empty() {
        text(&binding, "/metadata/name").clone_into(&mut name);
    }
    let node = text(&binding, "/target/name").to_owned();
    if node.is_empty() || !matches!(text(&binding, "/target/kind"), "Node" | "") {
        return Err(status::bad_request("target: Invalid value: give kind Node and the name of the node"));
    }
    let pods = core("pods");
    let key = key(pods, &context.info.namespace, &name);
    let mut tries = CONFLICT_TRIES;
    loop {
        tries -= 1;
        let entry = context.api.cache.get(&key).ok_or_else(|| status::not_found(pods, &name))?;
        let mut pod = parse(&entry);
        check(&pod, &name, &binding)?;
        assign(&mut pod, &node, &binding);
        match commit(&context.api, pods, &key, Condition::At(entry.mod_revision), &pod, dry_run).await {
            Ok(_) => return value_reply(context, StatusCode::CREATED, &status::success(None)),
            Err(error) if tries > 0 && error.reason() == "Conflict" => {}
            Err(error) => return Err(error),
        }
    }
}

fn check(pod: &Value, name: &str, binding: &Value) -> Result<(), ApiError> {
    let pods = core("pods");
    let (wanted, uid) = (text(binding, "/metadata/uid"), text(pod, "/metadata/uid"));
    if !wanted.is_empty() && wanted != uid {
        let why = format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {uid}");
        return Err(status::conflict(pods, name, &why));
    }
    if !text(pod, "/metadata/deletionTimestamp").is_empty() {
        return Err(status::conflict(
            pods,
            name,
            &format!("pod {name} is being deleted, cannot be assigned to a host"),
        ));
    }
    let current = text(pod, "/spec/nodeName");
    if !current.is_empty() {
        return Err(status::conflict(
            pods,
            name,
            &format!("pod {name} is already assigned to node {current:?}"),
        ));
    }
    Ok(())
}

fn assign(pod: &mut Value, node: &str, binding: &Value) {
    pod["spec"]["nodeName"] = json!(node);
    if let Some(annotations) = binding.pointer("/metadata/annotations").and_then(Value::as_object) {
        let own = metadata_mut(pod).entry("annotations").or_insert_with(|| json!({}));
        if let Some(own) = own.as_object_mut() {
            own.extend(annotations.clone());
        }
    }
    let condition = json!({
        "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now_text(),
        "observedGeneration": pod.pointer("/metadata/generation").cloned().unwrap_or(json!(1)),
    });
    let mut conditions =
        pod.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    conditions.retain(|condition| text(condition, "/type") != "PodScheduled");
    conditions.push(condition);
    pod["status"]["conditions"] = Value::Array(conditions);
}
