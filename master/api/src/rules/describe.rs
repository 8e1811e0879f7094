//! What the cache keeps beside an object's bytes.

use orlop_resources::Resource;
use orlop_store::Meta;
use serde_json::Value;

use super::encode::text;

/// Extracts labels, fields and references. `resource` is the row that owns the stored form.
pub(crate) fn describe(resource: &Resource, object: &Value) -> Meta {
    let mut labels: Vec<(Box<str>, Box<str>)> = object
        .pointer("/metadata/labels")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.as_str().into(), value.as_str().unwrap_or_default().into()))
        .collect();
    labels.sort();
    let fields = resource
        .selectable_fields(object)
        .into_iter()
        .filter(|(field, _)| !matches!(*field, "metadata.name" | "metadata.namespace"))
        .map(|(field, value)| (field, value.into_boxed_str()))
        .collect();
    let references = match (resource.group, resource.plural) {
        ("", "pods") => pod_references(object),
        ("", "services") => service_references(object),
        _ => Vec::new(),
    };
    Meta {
        namespace: text(object, "/metadata/namespace").into(),
        name: text(object, "/metadata/name").into(),
        uid: text(object, "/metadata/uid").into(),
        labels: labels.into(),
        fields,
        references: references.into_iter().map(String::into_boxed_str).collect(),
    }
}

/// What the Node authorizer lets a node read because of a pod: `secrets/x`, `configmaps/x`, `serviceaccounts/x`.
fn pod_references(pod: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let account = text(pod, "/spec/serviceAccountName");
    found.push(format!("serviceaccounts/{}", if account.is_empty() { "default" } else { account }));
    let Some(spec) = pod.get("spec") else { return found };
    for secret in list(spec, "imagePullSecrets") {
        add(&mut found, "secrets", text(secret, "/name"));
    }
    for volume in list(spec, "volumes") {
        add(&mut found, "secrets", text(volume, "/secret/secretName"));
        add(&mut found, "configmaps", text(volume, "/configMap/name"));
        for source in volume.pointer("/projected/sources").and_then(Value::as_array).into_iter().flatten() {
            add(&mut found, "secrets", text(source, "/secret/name"));
            add(&mut found, "configmaps", text(source, "/configMap/name"));
        }
    }
    for kind in ["containers", "initContainers", "ephemeralContainers"] {
        for container in list(spec, kind) {
            for variable in list(container, "env") {
                add(&mut found, "secrets", text(variable, "/valueFrom/secretKeyRef/name"));
                add(&mut found, "configmaps", text(variable, "/valueFrom/configMapKeyRef/name"));
            }
            for source in list(container, "envFrom") {
                add(&mut found, "secrets", text(source, "/secretRef/name"));
                add(&mut found, "configmaps", text(source, "/configMapRef/name"));
            }
        }
    }
    found
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn add(found: &mut Vec<String>, kind: &str, name: &str) {
    let reference = format!("{kind}/{name}");
    if !name.is_empty() && !found.contains(&reference) {
        found.push(reference);
    }
}

/// What a Service takes from the shared ranges: `ip/10.96.0.1`, `port/30080/TCP`.
fn service_references(service: &Value) -> Vec<String> {
    let mut found: Vec<String> =
        cluster_addresses(service).into_iter().map(|address| format!("ip/{address}")).collect();
    let Some(spec) = service.get("spec") else {
        return found;
    };
    for port in list(spec, "ports") {
        if let Some(number) = port.get("nodePort").and_then(Value::as_u64).filter(|number| *number > 0) {
            let protocol = port.get("protocol").and_then(Value::as_str).unwrap_or("TCP");
            found.push(format!("port/{number}/{protocol}"));
        }
    }
    if let Some(number) = spec.get("healthCheckNodePort").and_then(Value::as_u64).filter(|number| *number > 0)
    {
        found.push(format!("port/{number}/TCP"));
    }
    found
}

/// The addresses that a Service holds; none when it is headless.
pub(crate) fn cluster_addresses(service: &Value) -> Vec<&str> {
    let first = text(service, "/spec/clusterIP");
    let mut addresses = vec![first];
    for address in service.pointer("/spec/clusterIPs").and_then(Value::as_array).into_iter().flatten() {
        let address = address.as_str().unwrap_or_default();
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses.retain(|address| !address.is_empty() && *address != "None");
    addresses
}
