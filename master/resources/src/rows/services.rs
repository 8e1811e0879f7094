//! Services.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::BASE;
use super::metadata::check_labels;
use super::names;
use super::shape::{
    AGE, NAME, age, column, fill, fill_text, joined, labels_text, list, objects, spec, text_or,
};
use crate::fields::Errors;
use crate::resource::{Field, NameRule, Resource, StatusRule, Subresource, text};

const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
const AFFINITIES: [&str; 2] = ["ClientIP", "None"];
const FAMILY_POLICIES: [&str; 3] = ["PreferDualStack", "RequireDualStack", "SingleStack"];
const POLICIES: [&str; 2] = ["Cluster", "Local"];
const PORT_RANGE: &str = "must be between 1 and 65535, inclusive";
const AFFINITY_SECONDS: i64 = 10_800;

pub(super) const SERVICES: Resource = Resource {
    kind: "Service",
    list_kind: "ServiceList",
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    categories: &["all"],
    subresources: &[Subresource {
        name: "status",
        group: "",
        version: "v1",
        kind: "Service",
        verbs: &["get", "patch", "update"],
    }],
    storage: "services/specs",
    definition: "io.k8s.api.core.v1.Service",
    schema: |generator| generator.subschema_for::<k8s_openapi::api::core::v1::Service>(),
    status: StatusRule::Isolated,
    name: NameRule::ServiceLabel,
    defaults,
    create: |service| {
        if let Some(map) = service.as_object_mut() {
            map.insert("status".to_owned(), json!({"loadBalancer": {}}));
        }
    },
    update: keep_allocated,
    check,
    check_update,
    fields: &[
        Field { label: "spec.clusterIP", value: |service| text(service, "/spec/clusterIP") },
        Field { label: "spec.type", value: |service| text(service, "/spec/type") },
    ],
    columns: &[
        NAME,
        column("Type", "string", 0),
        column("Cluster-IP", "string", 0),
        column("External-IP", "string", 0),
        column("Port(s)", "string", 0),
        AGE,
        column("Selector", "string", 1),
    ],
    cells,
    ..BASE
};

fn defaults(service: &mut Value) {
    let Some(spec) = spec(service) else { return };
    fill_text(spec, "type", "ClusterIP");
    fill_text(spec, "sessionAffinity", "None");
    let kind = spec.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    if spec.get("sessionAffinity") == Some(&Value::from("ClientIP")) {
        fill(spec, "sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": AFFINITY_SECONDS}}));
    } else {
        spec.shift_remove("sessionAffinityConfig");
    }
    if kind != "ExternalName" {
        fill_text(spec, "internalTrafficPolicy", "Cluster");
        fill(spec, "ipFamilyPolicy", "SingleStack");
        fill(spec, "ipFamilies", json!(["IPv4"]));
    }
    if is_external(&kind, spec.get("externalIPs")) {
        fill_text(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        fill(spec, "allocateLoadBalancerNodePorts", true);
    }
    if let Some(address) =
        spec.get("clusterIP").filter(|address| address.as_str().is_some_and(|text| !text.is_empty())).cloned()
    {
        fill(spec, "clusterIPs", json!([address]));
    }
    for port in objects(spec, "ports") {
        fill_text(port, "protocol", "TCP");
        let number = port.get("port").cloned().unwrap_or_default();
        let target = port.get("targetPort");
        if target.is_none_or(|target| target.is_null() || *target == 0 || *target == "") {
            port.insert("targetPort".to_owned(), number);
        }
    }
}

/// Whether clients from outside the cluster come in (upstream `ExternallyAccessible`).
fn is_external(kind: &str, addresses: Option<&Value>) -> bool {
    let has_addresses = addresses.and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    matches!(kind, "NodePort" | "LoadBalancer") || (kind == "ClusterIP" && has_addresses)
}

/// What only the former type had goes with it, unless the client has set it anew (upstream `dropTypeDependentFields`).
fn drop_of_former_type(spec: &mut Map<String, Value>, old: &Value) {
    let kind = spec.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let former = text(old, "/spec/type");
    let mut gone = Vec::new();
    let external = is_external(&kind, spec.get("externalIPs"));
    if !external && is_external(&former, old.pointer("/spec/externalIPs")) {
        gone.push("externalTrafficPolicy");
    }
    if kind != "LoadBalancer" && former == "LoadBalancer" {
        gone.extend(["allocateLoadBalancerNodePorts", "loadBalancerClass", "healthCheckNodePort"]);
    }
    for field in gone {
        if spec.get(field) == old.pointer(&format!("/spec/{field}")) {
            spec.shift_remove(field);
        }
    }
}

/// What was allocated stays when an update leaves it out (upstream `patchAllocatedValues`).
fn keep_allocated(new: &mut Value, old: &Value, subresource: Option<&str>) {
    if subresource.is_some() {
        return;
    }
    let needs_address = |kind: &str| kind != "ExternalName";
    let needs_port = |kind: &str| kind == "NodePort" || kind == "LoadBalancer";
    let (kind, before) = (text(new, "/spec/type"), text(old, "/spec/type"));
    let Some(spec) = spec(new) else { return };
    drop_of_former_type(spec, old);
    if needs_address(&kind) && needs_address(&before) {
        if let Some(address) = old.pointer("/spec/clusterIP") {
            fill_text(spec, "clusterIP", address.clone());
        }
        if let Some(addresses) = old.pointer("/spec/clusterIPs") {
            fill(spec, "clusterIPs", addresses.clone());
        }
    } else if !needs_address(&kind) && needs_address(&before) {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            if spec.get(field) == old.pointer(&format!("/spec/{field}")) {
                spec.shift_remove(field);
            }
        }
    }
    if needs_port(&kind) && needs_port(&before) {
        let known = list(old, "/spec/ports").to_vec();
        for port in objects(spec, "ports") {
            let same = |other: &&Value| {
                other.get("port") == port.get("port") && other.get("protocol") == port.get("protocol")
            };
            if let Some(number) = known.iter().find(same).and_then(|other| other.get("nodePort")).cloned() {
                fill(port, "nodePort", number);
            }
        }
    } else if !needs_port(&kind) && needs_port(&before) {
        for port in objects(spec, "ports") {
            port.shift_remove("nodePort");
        }
    }
}

fn check(service: &Value, errors: &mut Errors) {
    let kind = text(service, "/spec/type");
    let headless = text(service, "/spec/clusterIP") == "None";
    for (field, known) in [("type", &TYPES[..]), ("sessionAffinity", &AFFINITIES[..])] {
        let value = text(service, &format!("/spec/{field}"));
        if !known.contains(&value.as_str()) {
            errors.not_supported(format!("spec.{field}"), &value, known);
        }
    }
    for field in ["internalTrafficPolicy", "externalTrafficPolicy"] {
        let value = text(service, &format!("/spec/{field}"));
        if !value.is_empty() && !POLICIES.contains(&value.as_str()) {
            errors.not_supported(format!("spec.{field}"), &value, &POLICIES);
        }
    }
    if kind == "ExternalName" {
        let target = text(service, "/spec/externalName");
        if target.is_empty() {
            errors.required("spec.externalName", "");
        } else {
            for fault in names::subdomain_faults(target.trim_end_matches('.')) {
                errors.invalid("spec.externalName", Value::from(target.as_str()), &fault);
            }
        }
    } else if list(service, "/spec/ports").is_empty() && !headless {
        errors.required("spec.ports", "");
    }
    if headless && (kind == "NodePort" || kind == "LoadBalancer") {
        errors.invalid(
            "spec.clusterIPs[0]",
            Value::from("None"),
            &format!("may not be set to 'None' for {kind} services"),
        );
    }
    check_addresses(service, errors);
    check_families(service, errors);
    check_labels(service.pointer("/spec/selector"), "spec.selector", errors);
    check_ports(service, &kind, errors);
}

/// What is no address at all; whether an address is free is the allocator's question.
fn check_addresses(service: &Value, errors: &mut Errors) {
    for (index, address) in list(service, "/spec/clusterIPs").iter().enumerate() {
        let text = address.as_str().unwrap_or_default();
        let path = format!("spec.clusterIPs[{index}]");
        if text != "None" && text.parse::<IpAddr>().is_err() {
            errors.invalid(
                path,
                address.clone(),
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            );
        } else if text.parse::<Ipv6Addr>().is_ok() {
            let why = "the cluster has no IPv6 addresses for services: not configured on this cluster";
            errors.invalid(path, address.clone(), why);
        }
    }
}

/// Clusters of this server have one address family.
fn check_families(service: &Value, errors: &mut Errors) {
    const SINGLE: &str = "this cluster is not configured for dual-stack services";
    let policy = text(service, "/spec/ipFamilyPolicy");
    if policy == "RequireDualStack" {
        errors.invalid("spec.ipFamilyPolicy", policy, SINGLE);
    } else if !policy.is_empty() {
        errors.one_of("spec.ipFamilyPolicy", &policy, &FAMILY_POLICIES);
    }
    for (index, family) in list(service, "/spec/ipFamilies").iter().enumerate() {
        let path = format!("spec.ipFamilies[{index}]");
        match family.as_str().unwrap_or_default() {
            "IPv4" => {}
            "IPv6" => errors.invalid(path, "IPv6", "not configured on this cluster"),
            other => errors.not_supported(path, other, &["IPv4", "IPv6"]),
        }
    }
}

fn check_ports(service: &Value, kind: &str, errors: &mut Errors) {
    let ports = list(service, "/spec/ports");
    let (mut numbers, mut known) = (BTreeSet::new(), BTreeSet::new());
    for (index, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        let name = text(port, "/name");
        if name.is_empty() {
            if ports.len() > 1 {
                errors.required(format!("{path}.name"), "");
            }
        } else {
            for fault in names::label_faults(&name) {
                errors.invalid(format!("{path}.name"), Value::from(name.as_str()), &fault);
            }
            if !known.insert(name.clone()) {
                errors.duplicate(format!("{path}.name"), Value::from(name));
            }
        }
        let number = port.get("port").and_then(Value::as_i64).unwrap_or(0);
        if !(1..=65_535).contains(&number) {
            errors.invalid(format!("{path}.port"), Value::from(number), PORT_RANGE);
        }
        let protocol = text(port, "/protocol");
        if !PROTOCOLS.contains(&protocol.as_str()) {
            errors.not_supported(format!("{path}.protocol"), protocol.as_str(), &PROTOCOLS);
        }
        if !numbers.insert((protocol, number)) {
            errors.duplicate(&path, port.clone());
        }
        let target = port.get("targetPort").unwrap_or(&Value::Null);
        match target {
            Value::Number(number)
                if !number.as_i64().is_some_and(|number| (1..=65_535).contains(&number)) =>
            {
                errors.invalid(format!("{path}.targetPort"), target.clone(), PORT_RANGE);
            }
            Value::String(name) => {
                for fault in names::port_name_faults(name) {
                    errors.invalid(format!("{path}.targetPort"), target.clone(), &fault);
                }
            }
            _ => {}
        }
        let node_port = port.get("nodePort").and_then(Value::as_i64).unwrap_or(0);
        if node_port != 0 && kind == "ClusterIP" {
            errors.forbidden(format!("{path}.nodePort"), "may not be used when `type` is 'ClusterIP'");
        }
    }
}

fn check_update(new: &Value, old: &Value, subresource: Option<&str>, errors: &mut Errors) {
    let (before, after) = (text(old, "/spec/clusterIP"), text(new, "/spec/clusterIP"));
    let same_kind = text(old, "/spec/type") != "ExternalName" && text(new, "/spec/type") != "ExternalName";
    if subresource.is_none() && same_kind && !before.is_empty() && before != after {
        errors.invalid("spec.clusterIPs[0]", json!([after]), "may not change once set");
    }
}

fn cells(service: &Value, now: Timestamp) -> Vec<Value> {
    let kind = text(service, "/spec/type");
    let addresses = list(service, "/spec/clusterIPs");
    let address =
        addresses.first().map_or_else(|| text_or(service, "/spec/clusterIP", "<none>"), Clone::clone);
    let ports = list(service, "/spec/ports").iter().map(|port| {
        let node_port = port.get("nodePort").and_then(Value::as_i64).filter(|number| *number != 0);
        let node_port = node_port.map(|number| format!(":{number}")).unwrap_or_default();
        format!("{}{node_port}/{}", text(port, "/port"), text(port, "/protocol"))
    });
    vec![
        Value::from(text(service, "/metadata/name")),
        Value::from(kind.clone()),
        address,
        Value::from(external(service, &kind)),
        joined(ports),
        age(service, now),
        labels_text(service.pointer("/spec/selector")),
    ]
}

fn external(service: &Value, kind: &str) -> String {
    let mut found: Vec<String> = Vec::new();
    if kind == "LoadBalancer" {
        let ingress = list(service, "/status/loadBalancer/ingress").iter();
        found.extend(ingress.map(|entry| {
            if text(entry, "/ip").is_empty() { text(entry, "/hostname") } else { text(entry, "/ip") }
        }));
    }
    if kind == "ExternalName" {
        return text(service, "/spec/externalName");
    }
    found.extend(list(service, "/spec/externalIPs").iter().filter_map(Value::as_str).map(str::to_owned));
    match (found.is_empty(), kind) {
        (true, "LoadBalancer") => "<pending>".to_owned(),
        (true, _) => "<none>".to_owned(),
        (false, _) => found.join(","),
    }
}
