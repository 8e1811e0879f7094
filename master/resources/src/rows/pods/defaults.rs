//! Defaults of pod specifications (upstream `pkg/apis/core/v1/defaults.go`).

use serde_json::{Map, Value, json};

use crate::rows::shape::{fill, fill_text, object, objects};

type Fields = Map<String, Value>;

const FILE_MODE: i64 = 0o644;

/// Fills in a pod specification.
pub(crate) fn default_spec(spec: &mut Fields) {
    fill_text(spec, "restartPolicy", "Always");
    fill_text(spec, "dnsPolicy", "ClusterFirst");
    fill_text(spec, "schedulerName", "default-scheduler");
    fill(spec, "terminationGracePeriodSeconds", 30);
    fill(spec, "securityContext", json!({}));
    default_account(spec);
    for kind in ["initContainers", "containers", "ephemeralContainers"] {
        for container in objects(spec, kind) {
            default_container(container);
        }
    }
    for volume in objects(spec, "volumes") {
        default_volume(volume);
    }
}

/// What is filled in for pods and not for the templates of pods (upstream `SetDefaults_Pod`).
pub(super) fn default_pod(spec: &mut Fields) {
    fill(spec, "enableServiceLinks", true);
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for kind in ["initContainers", "containers"] {
        for container in objects(spec, kind) {
            default_requests(container);
            for port in objects(container, "ports").filter(|_| host_network) {
                if let Some(number) = port.get("containerPort").cloned() {
                    fill(port, "hostPort", number);
                }
            }
        }
    }
}

/// What is limited and not requested is requested as limited.
fn default_requests(container: &mut Fields) {
    let Some(resources) = object(container, "resources") else {
        return;
    };
    let limits = resources.get("limits").and_then(Value::as_object).cloned().unwrap_or_default();
    if limits.is_empty() {
        return;
    }
    if let Some(requests) = object(resources, "requests") {
        for (name, amount) in limits {
            fill(requests, &name, amount);
        }
    }
}

/// The deprecated `serviceAccount` always equals `serviceAccountName`.
fn default_account(spec: &mut Fields) {
    let name = |spec: &Fields, key: &str| {
        spec.get(key).and_then(Value::as_str).filter(|name| !name.is_empty()).map(str::to_owned)
    };
    if let Some(account) = name(spec, "serviceAccountName").or_else(|| name(spec, "serviceAccount")) {
        spec.insert("serviceAccountName".to_owned(), Value::from(account.clone()));
        spec.insert("serviceAccount".to_owned(), Value::from(account));
    }
}

fn default_container(container: &mut Fields) {
    let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
    let policy = if is_latest(image) { "Always" } else { "IfNotPresent" };
    fill_text(container, "imagePullPolicy", policy);
    fill_text(container, "terminationMessagePath", "/dev/termination-log");
    fill_text(container, "terminationMessagePolicy", "File");
    fill(container, "resources", json!({}));
    for port in objects(container, "ports") {
        fill_text(port, "protocol", "TCP");
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(probe).and_then(Value::as_object_mut) {
            default_probe(probe);
        }
    }
    if let Some(lifecycle) = container.get_mut("lifecycle").and_then(Value::as_object_mut) {
        for hook in ["postStart", "preStop"] {
            if let Some(hook) = lifecycle.get_mut(hook).and_then(Value::as_object_mut) {
                default_http(hook);
            }
        }
    }
    for variable in objects(container, "env") {
        let field = variable
            .get_mut("valueFrom")
            .and_then(|source| source.get_mut("fieldRef"))
            .and_then(Value::as_object_mut);
        if let Some(field) = field {
            fill_text(field, "apiVersion", "v1");
        }
    }
}

/// Whether an image is named by the tag `latest` or by none (`parsers.ParseImageName`).
fn is_latest(image: &str) -> bool {
    let name = image.rsplit('/').next().unwrap_or(image);
    !image.contains('@') && name.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

fn default_probe(probe: &mut Fields) {
    for (key, number) in
        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        if probe.get(key).is_none_or(|value| value.is_null() || *value == 0) {
            probe.insert(key.to_owned(), Value::from(number));
        }
    }
    if let Some(grpc) = probe.get_mut("grpc").and_then(Value::as_object_mut) {
        fill(grpc, "service", "");
    }
    default_http(probe);
}

fn default_http(handler: &mut Fields) {
    if let Some(http) = handler.get_mut("httpGet").and_then(Value::as_object_mut) {
        fill_text(http, "path", "/");
        fill_text(http, "scheme", "HTTP");
    }
}

fn default_volume(volume: &mut Fields) {
    let sources = volume.keys().filter(|key| *key != "name").count();
    if sources == 0 {
        volume.insert("emptyDir".to_owned(), json!({}));
    }
    for kind in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(kind).and_then(Value::as_object_mut) {
            fill(source, "defaultMode", FILE_MODE);
            default_items(source);
        }
    }
    if let Some(path) = volume.get_mut("hostPath").and_then(Value::as_object_mut) {
        fill(path, "type", "");
    }
    if let Some(projected) = volume.get_mut("projected").and_then(Value::as_object_mut) {
        for source in objects(projected, "sources") {
            if let Some(token) = source.get_mut("serviceAccountToken").and_then(Value::as_object_mut) {
                fill(token, "expirationSeconds", 3600);
            }
            if let Some(downward) = source.get_mut("downwardAPI").and_then(Value::as_object_mut) {
                default_items(downward);
            }
        }
    }
}

fn default_items(source: &mut Fields) {
    for item in objects(source, "items") {
        if let Some(field) = item.get_mut("fieldRef").and_then(Value::as_object_mut) {
            fill_text(field, "apiVersion", "v1");
        }
    }
}
