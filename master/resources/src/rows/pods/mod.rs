//! Pods, and the pod templates of other kinds.

mod check;
mod containers;
mod defaults;
mod print;
mod volumes;

use serde_json::{Value, json};

use super::BASE;
use super::shape::{AGE, NAME, column};
use crate::resource::{Field, Resource, StatusRule, Subresource, text};

pub(crate) use check::check_spec;
pub(crate) use defaults::default_spec;

const fn sub(name: &'static str, kind: &'static str, verbs: &'static [&'static str]) -> Subresource {
    Subresource { name, group: "", version: "v1", kind, verbs }
}

pub(crate) const ROW: Resource = Resource {
    kind: "Pod",
    list_kind: "PodList",
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    categories: &["all"],
    storage: "pods",
    definition: "io.k8s.api.core.v1.Pod",
    schema: |generator| generator.subschema_for::<k8s_openapi::api::core::v1::Pod>(),
    subresources: &[
        sub("status", "Pod", &["get", "patch", "update"]),
        sub("binding", "Binding", &["create"]),
        Subresource {
            name: "eviction",
            group: "policy",
            version: "v1",
            kind: "Eviction",
            verbs: &["create"],
        },
        sub("log", "Pod", &["get"]),
        sub("exec", "PodExecOptions", &["create", "get"]),
        sub("attach", "PodAttachOptions", &["create", "get"]),
        sub("portforward", "PodPortForwardOptions", &["create", "get"]),
    ],
    status: StatusRule::Isolated,
    generation: true,
    defaults: |pod| {
        if let Some(spec) = super::shape::spec(pod) {
            default_spec(spec);
            defaults::default_pod(spec);
        }
    },
    create: |pod| {
        if let Some(map) = pod.as_object_mut() {
            let class = quality_class(map.get("spec").unwrap_or(&Value::Null));
            map.insert("status".to_owned(), json!({"phase": "Pending", "qosClass": class}));
        }
    },
    check: |pod, errors| check_spec(pod.get("spec").unwrap_or(&Value::Null), "spec", errors),
    check_update: check::check_update,
    fields: &[
        Field { label: "spec.nodeName", value: |pod| text(pod, "/spec/nodeName") },
        Field { label: "spec.restartPolicy", value: |pod| text(pod, "/spec/restartPolicy") },
        Field { label: "spec.schedulerName", value: |pod| text(pod, "/spec/schedulerName") },
        Field { label: "spec.serviceAccountName", value: |pod| text(pod, "/spec/serviceAccountName") },
        Field {
            label: "spec.hostNetwork",
            value: |pod| (text(pod, "/spec/hostNetwork") == "true").to_string(),
        },
        Field { label: "status.phase", value: |pod| text(pod, "/status/phase") },
        Field { label: "status.podIP", value: |pod| text(pod, "/status/podIP") },
        Field { label: "status.nominatedNodeName", value: |pod| text(pod, "/status/nominatedNodeName") },
    ],
    columns: &[
        NAME,
        column("Ready", "string", 0),
        column("Status", "string", 0),
        column("Restarts", "string", 0),
        AGE,
        column("IP", "string", 1),
        column("Node", "string", 1),
        column("Nominated Node", "string", 1),
        column("Readiness Gates", "string", 1),
    ],
    cells: print::cells,
    ..BASE
};

/// The quality-of-service class of a pod (upstream `pkg/apis/core/v1/helper/qos`): by cpu and memory of its containers.
pub(crate) fn quality_class(spec: &Value) -> &'static str {
    let containers =
        super::shape::list(spec, "/containers").iter().chain(super::shape::list(spec, "/initContainers"));
    let (mut any, mut guaranteed) = (false, true);
    for container in containers {
        for resource in ["cpu", "memory"] {
            let amount = |kind: &str| {
                let value = text(container, &format!("/resources/{kind}/{resource}"));
                value.parse::<orlop_types::Quantity>().ok().filter(|quantity| *quantity != zero())
            };
            let (limit, request) = (amount("limits"), amount("requests"));
            any |= limit.is_some() || request.is_some();
            // An absent request is the limit.
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn zero() -> orlop_types::Quantity {
    "0".parse().expect("zero is a quantity")
}

#[cfg(test)]
mod tests;
