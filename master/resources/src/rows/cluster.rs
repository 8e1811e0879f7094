//! Nodes, Leases and what standard clients ask for.

use serde_json::{Value, json};

use super::shape::{AGE, NAME, age, column, fill, labels_text, list, object, objects, text_or};
use super::{BASE, metadata};
use crate::resource::{Field, NameRule, Resource, StatusRule, Subresource, text};

pub(super) const NODES: Resource = Resource {
    kind: "Node",
    list_kind: "NodeList",
    plural: "nodes",
    singular: "node",
    short_names: &["no"],
    namespaced: false,
    subresources: &[Subresource {
        name: "status",
        group: "",
        version: "v1",
        kind: "Node",
        verbs: &["get", "patch", "update"],
    }],
    storage: "minions",
    definition: "io.k8s.api.core.v1.Node",
    schema: |generator| generator.subschema_for::<k8s_openapi::api::core::v1::Node>(),
    // A kubelet registers with its status in place.
    status: StatusRule::None,
    update: |new, old, subresource| {
        let Some(map) = new.as_object_mut() else { return };
        let kept = if subresource == Some("status") { "spec" } else { "status" };
        match old.get(kept) {
            Some(value) => map.insert(kept.to_owned(), value.clone()),
            None => map.shift_remove(kept),
        };
    },
    defaults: |node| {
        // What is not allocatable by itself is all that there is.
        let capacity = node.pointer("/status/capacity").cloned();
        if let (Some(capacity), Some(status)) =
            (capacity, node.get_mut("status").and_then(Value::as_object_mut))
        {
            super::shape::fill(status, "allocatable", capacity);
        }
    },
    check: |node, errors| {
        for (index, taint) in list(node, "/spec/taints").iter().enumerate() {
            let path = format!("spec.taints[{index}]");
            let effect = text(taint, "/effect");
            if text(taint, "/key").is_empty() {
                errors.required(format!("{path}.key"), "");
            }
            if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect.as_str()) {
                let known = ["NoExecute", "NoSchedule", "PreferNoSchedule"];
                errors.not_supported(format!("{path}.effect"), &effect, &known);
            }
        }
    },
    check_update: |new, old, _, errors| {
        let (before, after) = (text(old, "/spec/podCIDR"), text(new, "/spec/podCIDR"));
        if !before.is_empty() && before != after {
            errors
                .forbidden("spec.podCIDRs", "node updates may not change podCIDR except from \"\" to valid");
        }
        let (before, after) = (text(old, "/spec/providerID"), text(new, "/spec/providerID"));
        if !before.is_empty() && before != after {
            errors.forbidden(
                "spec.providerID",
                "node updates may not change providerID except from \"\" to valid",
            );
        }
    },
    fields: &[Field {
        label: "spec.unschedulable",
        value: |node| (text(node, "/spec/unschedulable") == "true").to_string(),
    }],
    columns: &[
        NAME,
        column("Status", "string", 0),
        column("Roles", "string", 0),
        AGE,
        column("Version", "string", 0),
        column("Internal-IP", "string", 1),
        column("External-IP", "string", 1),
        column("OS-Image", "string", 1),
        column("Kernel-Version", "string", 1),
        column("Container-Runtime", "string", 1),
    ],
    cells: |node, now| {
        let address = |kind: &str| {
            let found = list(node, "/status/addresses").iter().find(|address| text(address, "/type") == kind);
            found.map_or_else(|| Value::from("<none>"), |address| Value::from(text(address, "/address")))
        };
        vec![
            Value::from(text(node, "/metadata/name")),
            Value::from(node_status(node)),
            Value::from(roles(node)),
            age(node, now),
            text_or(node, "/status/nodeInfo/kubeletVersion", ""),
            address("InternalIP"),
            address("ExternalIP"),
            text_or(node, "/status/nodeInfo/osImage", "<unknown>"),
            text_or(node, "/status/nodeInfo/kernelVersion", "<unknown>"),
            text_or(node, "/status/nodeInfo/containerRuntimeVersion", "<unknown>"),
        ]
    },
    ..BASE
};

fn node_status(node: &Value) -> String {
    let ready = list(node, "/status/conditions").iter().find(|condition| text(condition, "/type") == "Ready");
    let mut status = match ready.map(|condition| text(condition, "/status")) {
        Some(value) if value == "True" => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if text(node, "/spec/unschedulable") == "true" {
        status.push_str(",SchedulingDisabled");
    }
    status
}

fn roles(node: &Value) -> String {
    const PREFIX: &str = "node-role.kubernetes.io/";
    let labels = node.pointer("/metadata/labels").and_then(Value::as_object).into_iter().flatten();
    let mut roles: Vec<&str> = labels
        .filter_map(|(key, value)| {
            key.strip_prefix(PREFIX).filter(|role| !role.is_empty()).or_else(|| {
                (key == "kubernetes.io/role")
                    .then(|| value.as_str())
                    .flatten()
                    .filter(|role| !role.is_empty())
            })
        })
        .collect();
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() { "<none>".to_owned() } else { roles.join(",") }
}

pub(super) const LEASES: Resource = Resource {
    group: "coordination.k8s.io",
    kind: "Lease",
    list_kind: "LeaseList",
    plural: "leases",
    singular: "lease",
    storage: "leases",
    definition: "io.k8s.api.coordination.v1.Lease",
    schema: |generator| generator.subschema_for::<k8s_openapi::api::coordination::v1::Lease>(),
    check: |lease, errors| {
        for field in ["leaseDurationSeconds", "leaseTransitions"] {
            let least = i64::from(field == "leaseDurationSeconds");
            let value = lease.pointer(&format!("/spec/{field}")).and_then(Value::as_i64);
            if let Some(number) = value.filter(|number| *number < least) {
                let why =
                    if least == 1 { "must be greater than 0" } else { "must be greater than or equal to 0" };
                errors.invalid(format!("spec.{field}"), Value::from(number), why);
            }
        }
    },
    columns: &[NAME, column("Holder", "string", 0), AGE],
    cells: |lease, now| {
        vec![
            Value::from(text(lease, "/metadata/name")),
            text_or(lease, "/spec/holderIdentity", ""),
            age(lease, now),
        ]
    },
    ..BASE
};

pub(super) const RUNTIME_CLASSES: Resource = Resource {
    group: "node.k8s.io",
    kind: "RuntimeClass",
    list_kind: "RuntimeClassList",
    plural: "runtimeclasses",
    singular: "runtimeclass",
    namespaced: false,
    storage: "runtimeclasses",
    definition: "io.k8s.api.node.v1.RuntimeClass",
    schema: |generator| generator.subschema_for::<k8s_openapi::api::node::v1::RuntimeClass>(),
    check: |class, errors| {
        let handler = text(class, "/handler");
        for fault in super::names::label_faults(&handler) {
            errors.invalid("handler", Value::from(handler.as_str()), &fault);
        }
    },
    check_update: |new, old, _, errors| {
        if new.get("handler") != old.get("handler") {
            errors.invalid("handler", new.get("handler").cloned().unwrap_or_default(), "field is immutable");
        }
    },
    columns: &[NAME, column("Handler", "string", 0), AGE],
    cells: |class, now| {
        vec![Value::from(text(class, "/metadata/name")), text_or(class, "/handler", ""), age(class, now)]
    },
    ..BASE
};

pub(super) const PRIORITY_CLASSES: Resource = Resource {
    group: "scheduling.k8s.io",
    kind: "PriorityClass",
    list_kind: "PriorityClassList",
    plural: "priorityclasses",
    singular: "priorityclass",
    short_names: &["pc"],
    namespaced: false,
    storage: "priorityclasses",
    definition: "io.k8s.api.scheduling.v1.PriorityClass",
    schema: |generator| generator.subschema_for::<k8s_openapi::api::scheduling::v1::PriorityClass>(),
    defaults: |class| {
        if let Some(map) = class.as_object_mut() {
            super::shape::fill_text(map, "preemptionPolicy", "PreemptLowerPriority");
        }
    },
    check_update: |new, old, _, errors| {
        if new.get("value") != old.get("value") {
            errors.forbidden("value", "may not be changed in an update.");
        }
    },
    columns: &[
        NAME,
        column("Value", "integer", 0),
        column("Global-Default", "boolean", 0),
        AGE,
        column("PreemptionPolicy", "string", 1),
    ],
    cells: |class, now| {
        vec![
            Value::from(text(class, "/metadata/name")),
            class.get("value").cloned().unwrap_or_default(),
            Value::from(class.get("globalDefault") == Some(&Value::Bool(true))),
            age(class, now),
            text_or(class, "/preemptionPolicy", ""),
        ]
    },
    ..BASE
};

pub(super) const NETWORK_POLICIES: Resource = Resource {
    group: "networking.k8s.io",
    kind: "NetworkPolicy",
    list_kind: "NetworkPolicyList",
    plural: "networkpolicies",
    singular: "networkpolicy",
    short_names: &["netpol"],
    storage: "networkpolicies",
    definition: "io.k8s.api.networking.v1.NetworkPolicy",
    schema: |generator| generator.subschema_for::<k8s_openapi::api::networking::v1::NetworkPolicy>(),
    generation: true,
    defaults: |policy| {
        let egress = !list(policy, "/spec/egress").is_empty();
        let Some(spec) = super::shape::spec(policy) else {
            return;
        };
        let types = if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
        fill(spec, "policyTypes", types);
        object(spec, "podSelector");
        for direction in ["ingress", "egress"] {
            for rule in objects(spec, direction) {
                for port in objects(rule, "ports") {
                    super::shape::fill_text(port, "protocol", "TCP");
                }
            }
        }
    },
    check: |policy, errors| {
        metadata::check_labels(
            policy.pointer("/spec/podSelector/matchLabels"),
            "spec.podSelector.matchLabels",
            errors,
        )
    },
    columns: &[NAME, column("Pod-Selector", "string", 0), AGE],
    cells: |policy, now| {
        vec![
            Value::from(text(policy, "/metadata/name")),
            labels_text(policy.pointer("/spec/podSelector/matchLabels")),
            age(policy, now),
        ]
    },
    ..BASE
};

const fn storage_row(
    kind: &'static str,
    list_kind: &'static str,
    plural: &'static str,
    singular: &'static str,
) -> Resource {
    Resource {
        group: "storage.k8s.io",
        kind,
        list_kind,
        plural,
        singular,
        namespaced: false,
        storage: plural,
        name: NameRule::Subdomain,
        columns: &[NAME, AGE],
        cells: |object, now| vec![Value::from(text(object, "/metadata/name")), age(object, now)],
        ..BASE
    }
}

pub(super) const CSI_DRIVERS: Resource = Resource {
    definition: "io.k8s.api.storage.v1.CSIDriver",
    schema: |generator| generator.subschema_for::<k8s_openapi::api::storage::v1::CSIDriver>(),
    defaults: |driver| {
        let Some(spec) = super::shape::spec(driver) else {
            return;
        };
        for (field, value) in [
            ("attachRequired", json!(true)),
            ("fsGroupPolicy", json!("ReadWriteOnceWithFSType")),
            ("podInfoOnMount", json!(false)),
            ("requiresRepublish", json!(false)),
            ("seLinuxMount", json!(false)),
            ("storageCapacity", json!(false)),
            ("volumeLifecycleModes", json!(["Persistent"])),
        ] {
            fill(spec, field, value);
        }
    },
    ..storage_row("CSIDriver", "CSIDriverList", "csidrivers", "csidriver")
};

pub(super) const CSI_NODES: Resource = Resource {
    definition: "io.k8s.api.storage.v1.CSINode",
    schema: |generator| generator.subschema_for::<k8s_openapi::api::storage::v1::CSINode>(),
    ..storage_row("CSINode", "CSINodeList", "csinodes", "csinode")
};
