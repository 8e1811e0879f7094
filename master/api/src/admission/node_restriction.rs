//! NodeRestriction: what a kubelet writes concerns itself (upstream `plugin/pkg/admission/noderestriction`).

use orlop_resources::Resource;
use orlop_resources::status::{self, ApiError};
use serde_json::Value;

use crate::identity::Identity;
use crate::rules::encode::text;

const MIRROR: &str = "kubernetes.io/config.mirror";
const RESTRICTED_LABELS: &str = "node-restriction.kubernetes.io/";

pub(super) fn create(identity: &Identity, resource: &Resource, object: &Value) -> Result<(), ApiError> {
    let Some(node) = identity.node() else {
        return Ok(());
    };
    let name = text(object, "/metadata/name");
    let refuse = |why: String| Err(status::forbidden_because(resource, name, &why));
    match (resource.group, resource.plural) {
        ("", "nodes") | ("storage.k8s.io", "csinodes") if name != node => {
            refuse(format!("node {node:?} is not allowed to create {} {name:?}", resource.singular))
        }
        ("coordination.k8s.io", "leases") if name != node => {
            refuse(format!("can only access node lease with the same name as the requesting node: {node:?}"))
        }
        ("", "nodes") => labels(resource, node, object, &Value::Null),
        ("", "pods") => {
            let annotations = object.pointer("/metadata/annotations").and_then(Value::as_object);
            if annotations.is_none_or(|annotations| !annotations.contains_key(MIRROR)) {
                return refuse(format!(
                    "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"
                ));
            }
            if text(object, "/spec/nodeName") != node {
                return refuse(format!(
                    "node {node:?} can only create pods with spec.nodeName set to itself"
                ));
            }
            let volumes = object.pointer("/spec/volumes").and_then(Value::as_array).into_iter().flatten();
            let secret = volumes.into_iter().any(|volume| {
                ["secret", "configMap", "projected", "persistentVolumeClaim"]
                    .iter()
                    .any(|kind| volume.get(*kind).is_some())
            });
            if secret || !text(object, "/spec/serviceAccountName").is_empty() {
                return refuse(format!("node {node:?} can not create pods that reference API objects"));
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

pub(super) fn update(
    identity: &Identity,
    resource: &Resource,
    new: &Value,
    old: &Value,
) -> Result<(), ApiError> {
    let Some(node) = identity.node() else {
        return Ok(());
    };
    if !resource.group.is_empty() || resource.plural != "nodes" {
        return Ok(());
    }
    if new.pointer("/spec/taints") != old.pointer("/spec/taints") {
        let why = format!("node {node:?} is not allowed to modify taints");
        return Err(status::forbidden_because(resource, node, &why));
    }
    labels(resource, node, new, old)
}

/// Labels that schedule pods by trust are not the node's own to set.
fn labels(resource: &Resource, node: &str, new: &Value, old: &Value) -> Result<(), ApiError> {
    let none = serde_json::Map::new();
    let of = |object: &'_ Value| {
        object.pointer("/metadata/labels").and_then(Value::as_object).unwrap_or(&none).clone()
    };
    let (new, old) = (of(new), of(old));
    let changed = new
        .keys()
        .chain(old.keys())
        .find(|key| key.contains(RESTRICTED_LABELS) && new.get(*key) != old.get(*key));
    match changed {
        Some(label) => {
            let why = format!("is not allowed to modify labels: {label}");
            Err(status::forbidden_because(resource, node, &why))
        }
        None => Ok(()),
    }
}
