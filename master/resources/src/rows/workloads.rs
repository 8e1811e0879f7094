//! ReplicationControllers.

use serde_json::{Value, json};

use super::BASE;
use super::pods::{check_spec, default_spec};
use super::shape::{AGE, NAME, age, column, fill, joined, labels_text, list, object, spec};
use crate::fields::Errors;
use crate::resource::{Field, Resource, StatusRule, Subresource, text};

pub(super) const REPLICATION_CONTROLLERS: Resource = Resource {
    kind: "ReplicationController",
    list_kind: "ReplicationControllerList",
    plural: "replicationcontrollers",
    singular: "replicationcontroller",
    short_names: &["rc"],
    categories: &["all"],
    subresources: &[
        Subresource {
            name: "status",
            group: "",
            version: "v1",
            kind: "ReplicationController",
            verbs: &["get", "patch", "update"],
        },
        Subresource {
            name: "scale",
            group: "autoscaling",
            version: "v1",
            kind: "Scale",
            verbs: &["get", "patch", "update"],
        },
    ],
    storage: "controllers",
    definition: "io.k8s.api.core.v1.ReplicationController",
    schema: |generator| generator.subschema_for::<k8s_openapi::api::core::v1::ReplicationController>(),
    status: StatusRule::Isolated,
    generation: true,
    defaults,
    create: |controller| {
        if let Some(map) = controller.as_object_mut() {
            map.insert("status".to_owned(), json!({"replicas": 0}));
        }
    },
    check,
    fields: &[Field { label: "status.replicas", value: |controller| text(controller, "/status/replicas") }],
    columns: &[
        NAME,
        column("Desired", "integer", 0),
        column("Current", "integer", 0),
        column("Ready", "integer", 0),
        AGE,
        column("Containers", "string", 1),
        column("Images", "string", 1),
        column("Selector", "string", 1),
    ],
    cells: |controller, now| {
        let number =
            |pointer: &str| Value::from(controller.pointer(pointer).and_then(Value::as_i64).unwrap_or(0));
        let containers = list(controller, "/spec/template/spec/containers");
        vec![
            Value::from(text(controller, "/metadata/name")),
            number("/spec/replicas"),
            number("/status/replicas"),
            number("/status/readyReplicas"),
            age(controller, now),
            joined(containers.iter().map(|container| text(container, "/name"))),
            joined(containers.iter().map(|container| text(container, "/image"))),
            labels_text(controller.pointer("/spec/selector")),
        ]
    },
    ..BASE
};

fn defaults(controller: &mut Value) {
    let labels = controller.pointer("/spec/template/metadata/labels").cloned();
    if let Some(labels) = labels.filter(|labels| labels.as_object().is_some_and(|labels| !labels.is_empty()))
    {
        if let Some(spec) = spec(controller) {
            let empty = spec.get("selector").and_then(Value::as_object).is_none_or(serde_json::Map::is_empty);
            if empty {
                spec.insert("selector".to_owned(), labels.clone());
            }
        }
        if let Some(metadata) = controller.as_object_mut().and_then(|map| object(map, "metadata")) {
            let empty =
                metadata.get("labels").and_then(Value::as_object).is_none_or(serde_json::Map::is_empty);
            if empty {
                metadata.insert("labels".to_owned(), labels);
            }
        }
    }
    let Some(spec) = spec(controller) else { return };
    fill(spec, "replicas", 1);
    let template = spec.get_mut("template").and_then(Value::as_object_mut);
    if let Some(template) = template {
        fill(template, "metadata", json!({}));
        if let Some(pod) = object(template, "spec") {
            default_spec(pod);
        }
    }
}

fn check(controller: &Value, errors: &mut Errors) {
    for field in ["replicas", "minReadySeconds"] {
        let value = controller.pointer(&format!("/spec/{field}")).and_then(Value::as_i64);
        if let Some(number) = value.filter(|number| *number < 0) {
            errors.invalid(
                format!("spec.{field}"),
                Value::from(number),
                "must be greater than or equal to 0",
            );
        }
    }
    let selector = controller.pointer("/spec/selector").and_then(Value::as_object);
    let selector = selector.filter(|selector| !selector.is_empty());
    if selector.is_none() {
        errors.required("spec.selector", "");
    }
    let Some(template) = controller.pointer("/spec/template").filter(|template| template.is_object()) else {
        errors.required("spec.template", "");
        return;
    };
    let labels = template.pointer("/metadata/labels").and_then(Value::as_object);
    let mut selected = selector.into_iter().flatten();
    let matches = selected.all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value));
    if !matches {
        let labels = labels.cloned().map_or_else(|| json!({}), Value::Object);
        errors.invalid(
            "spec.template.metadata.labels",
            labels,
            "`selector` does not match template `labels`",
        );
    }
    check_spec(template.get("spec").unwrap_or(&Value::Null), "spec.template.spec", errors);
    let restart = text(template, "/spec/restartPolicy");
    if restart != "Always" {
        errors.not_supported("spec.template.spec.restartPolicy", &restart, &["Always"]);
    }
    if template.pointer("/spec/activeDeadlineSeconds").is_some_and(|value| !value.is_null()) {
        errors.forbidden(
            "spec.template.spec.activeDeadlineSeconds",
            "activeDeadlineSeconds in ReplicationController is not Supported",
        );
    }
}
