//! ServiceAccount: every pod runs as an account, and gets its token, the cluster's CA and its namespace mounted.

use orlop_resources::Resource;
use orlop_resources::status::{self, ApiError};
use serde_json::{Map, Value, json};

use crate::rest::generate_name;
use crate::rules::encode::text;
use crate::state::{Api, parse};

const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Upstream asks for an hour and a bit, to tell these tokens from others.
const TOKEN_SECONDS: u64 = 3607;
const MIRROR: &str = "/metadata/annotations/kubernetes.io~1config.mirror";

pub(super) fn admit(api: &Api, resource: &Resource, pod: &mut Value) -> Result<(), ApiError> {
    if pod.pointer(MIRROR).is_some() {
        return Ok(());
    }
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else {
        return Ok(());
    };
    let word = |spec: &Map<String, Value>, key: &str| {
        spec.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let mut account = word(spec, "serviceAccountName");
    if account.is_empty() {
        account = word(spec, "serviceAccount");
    }
    if account.is_empty() {
        "default".clone_into(&mut account);
    }
    spec.insert("serviceAccountName".to_owned(), json!(account));
    // The field's old name, which upstream still fills.
    spec.insert("serviceAccount".to_owned(), json!(account));
    let (namespace, name) =
        (text(pod, "/metadata/namespace").to_owned(), text(pod, "/metadata/name").to_owned());
    let Some(entry) = api.core_entry("serviceaccounts", &namespace, &account) else {
        let why = format!(
            "error looking up service account {namespace}/{account}: serviceaccount {account:?} not found"
        );
        return Err(status::forbidden_because(resource, &name, &why));
    };
    let entry = parse(&entry);
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else {
        return Ok(());
    };
    if let Some(secrets) = entry.get("imagePullSecrets").filter(|_| empty(spec, "imagePullSecrets")) {
        spec.insert("imagePullSecrets".to_owned(), secrets.clone());
    }
    let of_pod = spec.get("automountServiceAccountToken").and_then(Value::as_bool);
    let of_account = entry.get("automountServiceAccountToken").and_then(Value::as_bool);
    if of_pod.or(of_account).unwrap_or(true) {
        mount_token(spec);
    }
    Ok(())
}

fn empty(spec: &Map<String, Value>, key: &str) -> bool {
    spec.get(key).and_then(Value::as_array).is_none_or(Vec::is_empty)
}

/// Mounts the token into every container that has nothing there yet.
fn mount_token(spec: &mut Map<String, Value>) {
    let volume = generate_name("kube-api-access-");
    let mut used = false;
    for kind in ["initContainers", "containers"] {
        for container in spec.get_mut(kind).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(container) = container.as_object_mut() else {
                continue;
            };
            let mounts = container.entry("volumeMounts").or_insert_with(|| json!([]));
            let Some(mounts) = mounts.as_array_mut() else {
                continue;
            };
            if mounts.iter().any(|mount| text(mount, "/mountPath") == MOUNT_PATH) {
                continue;
            }
            mounts.push(json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH}));
            used = true;
        }
    }
    if !used {
        return;
    }
    let volumes = spec.entry("volumes").or_insert_with(|| json!([]));
    if let Some(volumes) = volumes.as_array_mut() {
        volumes.push(token_volume(&volume));
    }
}

fn token_volume(name: &str) -> Value {
    let field = json!({"apiVersion": "v1", "fieldPath": "metadata.namespace"});
    json!({
        "name": name,
        "projected": {
            "defaultMode": 420,
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": field}]}},
            ],
        },
    })
}
