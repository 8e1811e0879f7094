//! Namespaces, ConfigMaps, Secrets and ServiceAccounts.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::BASE;
use super::shape::{AGE, NAME, age, column, fill_text, list, object, text_or};
use crate::fields::Errors;
use crate::resource::{Field, NameRule, Resource, StatusRule, Subresource, text};

const DATA_LIMIT_BYTES: usize = 1 << 20;
const KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";

pub(super) const NAMESPACES: Resource = Resource {
    kind: "Namespace",
    list_kind: "NamespaceList",
    plural: "namespaces",
    singular: "namespace",
    short_names: &["ns"],
    namespaced: false,
    verbs: &["create", "delete", "get", "list", "patch", "update", "watch"],
    subresources: &[
        Subresource {
            name: "status",
            group: "",
            version: "v1",
            kind: "Namespace",
            verbs: &["get", "patch", "update"],
        },
        Subresource { name: "finalize", group: "", version: "v1", kind: "Namespace", verbs: &["update"] },
    ],
    storage: "namespaces",
    definition: "io.k8s.api.core.v1.Namespace",
    schema: |generator| generator.subschema_for::<k8s_openapi::api::core::v1::Namespace>(),
    status: StatusRule::Isolated,
    name: NameRule::Label,
    defaults: |namespace| {
        let name = text(namespace, "/metadata/name");
        let Some(metadata) = namespace.as_object_mut().and_then(|map| object(map, "metadata")) else {
            return;
        };
        if let (false, Some(labels)) = (name.is_empty(), object(metadata, "labels")) {
            labels.insert("kubernetes.io/metadata.name".to_owned(), Value::from(name));
        }
    },
    create: |namespace| {
        if let Some(map) = namespace.as_object_mut() {
            map.insert("spec".to_owned(), json!({"finalizers": ["kubernetes"]}));
            map.insert("status".to_owned(), json!({"phase": "Active"}));
        }
    },
    update: |new, old, subresource| {
        // Only the finalize endpoint takes finalizers away.
        if subresource != Some("finalize")
            && let (Some(map), Some(spec)) = (new.as_object_mut(), old.get("spec"))
        {
            map.insert("spec".to_owned(), spec.clone());
        }
    },
    fields: &[Field { label: "status.phase", value: |namespace| text(namespace, "/status/phase") }],
    columns: &[NAME, column("Status", "string", 0), AGE],
    cells: |namespace, now| {
        vec![
            Value::from(text(namespace, "/metadata/name")),
            text_or(namespace, "/status/phase", ""),
            age(namespace, now),
        ]
    },
    ..BASE
};

fn count(object: &Value, fields: &[&str]) -> Value {
    let sizes = fields.iter().map(|field| object.get(field).and_then(Value::as_object).map_or(0, Map::len));
    Value::from(sizes.sum::<usize>())
}

pub(super) const CONFIG_MAPS: Resource = Resource {
    kind: "ConfigMap",
    list_kind: "ConfigMapList",
    plural: "configmaps",
    singular: "configmap",
    short_names: &["cm"],
    storage: "configmaps",
    definition: "io.k8s.api.core.v1.ConfigMap",
    schema: |generator| generator.subschema_for::<k8s_openapi::api::core::v1::ConfigMap>(),
    check: |map, errors| check_data(map, &["data", "binaryData"], errors),
    check_update: |new, old, _, errors| check_immutable(new, old, &["data", "binaryData"], errors),
    columns: &[NAME, column("Data", "integer", 0), AGE],
    cells: |map, now| {
        vec![Value::from(text(map, "/metadata/name")), count(map, &["data", "binaryData"]), age(map, now)]
    },
    ..BASE
};

pub(super) const SECRETS: Resource = Resource {
    kind: "Secret",
    list_kind: "SecretList",
    plural: "secrets",
    singular: "secret",
    storage: "secrets",
    definition: "io.k8s.api.core.v1.Secret",
    schema: |generator| generator.subschema_for::<k8s_openapi::api::core::v1::Secret>(),
    defaults: default_secret,
    check: |secret, errors| {
        check_data(secret, &["data"], errors);
        check_secret_type(secret, errors);
    },
    check_update: |new, old, _, errors| {
        if new.get("type") != old.get("type") {
            errors.invalid("type", new.get("type").cloned().unwrap_or_default(), "field is immutable");
        }
        check_immutable(new, old, &["data"], errors);
    },
    fields: &[Field { label: "type", value: |secret| text(secret, "/type") }],
    columns: &[NAME, column("Type", "string", 0), column("Data", "integer", 0), AGE],
    cells: |secret, now| {
        vec![
            Value::from(text(secret, "/metadata/name")),
            text_or(secret, "/type", ""),
            count(secret, &["data"]),
            age(secret, now),
        ]
    },
    ..BASE
};

/// `stringData` is for writing alone: it ends up in `data`.
fn default_secret(secret: &mut Value) {
    let Some(map) = secret.as_object_mut() else { return };
    fill_text(map, "type", "Opaque");
    let Some(Value::Object(texts)) = map.shift_remove("stringData") else {
        return;
    };
    if let Some(data) = object(map, "data") {
        for (key, value) in texts {
            let encoded = STANDARD.encode(value.as_str().unwrap_or_default());
            data.insert(key, Value::from(encoded));
        }
    }
}

/// Keys that a type promises.
fn check_secret_type(secret: &Value, errors: &mut Errors) {
    let needed: &[&str] = match text(secret, "/type").as_str() {
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/service-account-token" => {
            if text(secret, "/metadata/annotations/kubernetes.io~1service-account.name").is_empty() {
                errors.required("metadata.annotations[kubernetes.io/service-account.name]", "");
            }
            &[]
        }
        _ => &[],
    };
    for key in needed {
        if secret.get("data").and_then(|data| data.get(key)).is_none() {
            errors.required(format!("data[{key}]"), "");
        }
    }
}

fn check_data(object: &Value, fields: &[&str], errors: &mut Errors) {
    let mut size = 0;
    for field in fields {
        for (key, value) in object.get(field).and_then(Value::as_object).into_iter().flatten() {
            let path = format!("{field}[{key}]");
            if key.len() > 253 {
                errors.invalid(&path, Value::from(key.as_str()), "must be no more than 253 characters");
            }
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
            if key.is_empty() || !key.bytes().all(plain) {
                errors.invalid(&path, Value::from(key.as_str()), KEY);
            } else if key == "." || key.starts_with("..") {
                errors.invalid(&path, Value::from(key.as_str()), &format!("must not be '{key}'"));
            }
            size += value.as_str().map_or(0, str::len);
            let twice =
                *field == "data" && object.pointer("/binaryData").and_then(|other| other.get(key)).is_some();
            if twice {
                errors.invalid(&path, Value::from(key.as_str()), "duplicate of key present in binaryData");
            }
        }
    }
    // Base64 is a third longer than what it stands for.
    let limit = if fields.contains(&"binaryData") { DATA_LIMIT_BYTES } else { DATA_LIMIT_BYTES * 4 / 3 + 4 };
    if size > limit {
        // Upstream's path without a name prints so.
        errors.too_long(if fields.contains(&"binaryData") { "[]" } else { "data" }, DATA_LIMIT_BYTES);
    }
}

fn check_immutable(new: &Value, old: &Value, fields: &[&str], errors: &mut Errors) {
    if old.get("immutable") != Some(&Value::Bool(true)) {
        return;
    }
    if new.get("immutable") != Some(&Value::Bool(true)) {
        errors.forbidden("immutable", "field is immutable when `immutable` is set");
    }
    for field in fields {
        if new.get(field) != old.get(field) {
            errors.forbidden(*field, "field is immutable when `immutable` is set");
        }
    }
}

pub(super) const SERVICE_ACCOUNTS: Resource = Resource {
    kind: "ServiceAccount",
    list_kind: "ServiceAccountList",
    plural: "serviceaccounts",
    singular: "serviceaccount",
    short_names: &["sa"],
    subresources: &[Subresource {
        name: "token",
        group: "authentication.k8s.io",
        version: "v1",
        kind: "TokenRequest",
        verbs: &["create"],
    }],
    storage: "serviceaccounts",
    definition: "io.k8s.api.core.v1.ServiceAccount",
    schema: |generator| generator.subschema_for::<k8s_openapi::api::core::v1::ServiceAccount>(),
    columns: &[NAME, column("Secrets", "integer", 0), AGE],
    cells: |account, now| {
        let secrets = Value::from(list(account, "/secrets").len());
        vec![Value::from(text(account, "/metadata/name")), secrets, age(account, now)]
    },
    ..BASE
};
