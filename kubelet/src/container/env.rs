//! Environment variables: service variables, references, expansion. Pure: the objects referred to come as values.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;

use crate::pod::model;
use crate::quantity::{self, Resources};

/// One Service as its variables need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Service {
    pub(crate) address: IpAddr,
    pub(crate) ports: Vec<Port>,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) name: String,
    /// As in the API: `TCP`.
    pub(crate) protocol: String,
    pub(crate) port: i32,
}

/// Why a container cannot be configured; the reason in the status is `CreateContainerConfigError`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EnvError {
    #[error("{0} {1:?} not found")]
    Missing(&'static str, String),
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey { kind: &'static str, namespace: String, name: String, key: String },
    #[error("unsupported fieldPath: {0}")]
    Field(String),
    #[error("unsupported container resource: {0}")]
    Resource(String),
    #[error("environment variable {name} of {kind} {object} is not text")]
    Encoding { kind: &'static str, object: String, name: String },
}

/// Objects that were fetched for one container; an absent object is absent here.
#[derive(Clone, Debug, Default)]
pub(crate) struct Objects {
    pub(crate) config_maps: BTreeMap<String, core::ConfigMap>,
    pub(crate) secrets: BTreeMap<String, core::Secret>,
}

/// What the downward API can say.
pub(crate) struct Downward<'a> {
    pub(crate) pod: &'a core::Pod,
    pub(crate) pod_ips: &'a [String],
    pub(crate) host_ips: &'a [String],
    pub(crate) allocatable: &'a Resources,
}

impl Downward<'_> {
    /// `fieldRef.fieldPath`.
    pub(crate) fn field(&self, path: &str) -> Result<String, EnvError> {
        let metadata = &self.pod.metadata;
        if let Some((map, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) {
            let map = match map {
                "metadata.labels" => metadata.labels.as_ref(),
                "metadata.annotations" => metadata.annotations.as_ref(),
                _ => return Err(EnvError::Field(path.to_owned())),
            };
            return Ok(map.and_then(|map| map.get(key)).cloned().unwrap_or_default());
        }
        let spec = model::spec(self.pod);
        Ok(match path {
            "metadata.name" => model::name(self.pod).to_owned(),
            "metadata.namespace" => model::namespace(self.pod).to_owned(),
            "metadata.uid" => model::uid(self.pod).to_owned(),
            "metadata.labels" => format_map(metadata.labels.as_ref()),
            "metadata.annotations" => format_map(metadata.annotations.as_ref()),
            "spec.nodeName" => spec.node_name.clone().unwrap_or_default(),
            "spec.serviceAccountName" => spec.service_account_name.clone().unwrap_or_default(),
            "status.hostIP" => self.host_ips.first().cloned().unwrap_or_default(),
            "status.hostIPs" => self.host_ips.join(","),
            "status.podIP" => self.pod_ips.first().cloned().unwrap_or_default(),
            "status.podIPs" => self.pod_ips.join(","),
            _ => return Err(EnvError::Field(path.to_owned())),
        })
    }

    /// `resourceFieldRef`: a limit that is not set is what the node can give.
    pub(crate) fn resource(
        &self,
        selector: &core::ResourceFieldSelector,
        container: Option<&core::Container>,
    ) -> Result<String, EnvError> {
        let unsupported = || EnvError::Resource(selector.resource.clone());
        let container = match &selector.container_name {
            Some(name) if !name.is_empty() => {
                model::container(self.pod, name).map(|(_, container)| container.into_owned())
            }
            _ => container.cloned(),
        };
        let container = container.ok_or_else(unsupported)?;
        let resources = container.resources.unwrap_or_default();
        let (list, name) = selector.resource.split_once('.').ok_or_else(unsupported)?;
        let list = match list {
            "limits" => &resources.limits,
            "requests" => &resources.requests,
            _ => return Err(unsupported()),
        };
        if !matches!(name, "cpu" | "memory" | "ephemeral-storage") && !name.starts_with("hugepages-") {
            return Err(unsupported());
        }
        let set = quantity::milli_of(list.as_ref(), name);
        let value = match set {
            Some(value) => value,
            None if selector.resource.starts_with("limits.") => {
                quantity::milli_of(Some(self.allocatable), name).unwrap_or(0)
            }
            None => 0,
        };
        let divisor = selector
            .divisor
            .as_ref()
            .and_then(|divisor| quantity::milli(&divisor.0))
            .filter(|divisor| *divisor > 0);
        let divisor = i128::from(divisor.unwrap_or(1000));
        let value = i128::from(value);
        Ok(((value + divisor - 1) / divisor).to_string())
    }
}

/// `key="value"` lines with Go's quoting, sorted by key.
fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    let lines = map.into_iter().flatten().map(|(key, value)| format!("{key}={}", go_quote(value)));
    lines.collect::<Vec<_>>().join("\n")
}

fn go_quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => quoted.push_str(&format!("\\x{:02x}", c as u32)),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// Names of the objects that a container's environment needs: `(config maps, secrets)`, with whether they are optional.
pub(crate) fn references(container: &core::Container) -> (BTreeMap<String, bool>, BTreeMap<String, bool>) {
    let (mut maps, mut secrets) = (BTreeMap::new(), BTreeMap::new());
    let mut note = |map: bool, name: &str, optional: Option<bool>| {
        let into = if map { &mut maps } else { &mut secrets };
        let entry = into.entry(name.to_owned()).or_insert(true);
        *entry &= optional.unwrap_or(false);
    };
    for from in container.env_from.iter().flatten() {
        if let Some(source) = &from.config_map_ref {
            note(true, &source.name, source.optional);
        }
        if let Some(source) = &from.secret_ref {
            note(false, &source.name, source.optional);
        }
    }
    for from in container.env.iter().flatten().filter_map(|env| env.value_from.as_ref()) {
        if let Some(source) = &from.config_map_key_ref {
            note(true, &source.name, source.optional);
        }
        if let Some(source) = &from.secret_key_ref {
            note(false, &source.name, source.optional);
        }
    }
    (maps, secrets)
}

/// The variables of all Services of a namespace: `{SVC}_SERVICE_HOST` and the docker-links forms.
pub(crate) fn service_variables(services: &BTreeMap<String, Service>) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    for (name, service) in services {
        let prefix = name.to_uppercase().replace('-', "_");
        let host = service.address.to_string();
        let bracketed = if service.address.is_ipv6() { format!("[{host}]") } else { host.clone() };
        variables.insert(format!("{prefix}_SERVICE_HOST"), host.clone());
        for (index, port) in service.ports.iter().enumerate() {
            let number = port.port.to_string();
            let protocol = port.protocol.to_lowercase();
            let url = format!("{protocol}://{bracketed}:{number}");
            if index == 0 {
                variables.insert(format!("{prefix}_SERVICE_PORT"), number.clone());
                variables.insert(format!("{prefix}_PORT"), url.clone());
            }
            if !port.name.is_empty() {
                let port_name = port.name.to_uppercase().replace('-', "_");
                variables.insert(format!("{prefix}_SERVICE_PORT_{port_name}"), number.clone());
            }
            let link = format!("{prefix}_PORT_{number}_{}", protocol.to_uppercase());
            variables.insert(link.clone(), url);
            variables.insert(format!("{link}_PROTO"), protocol);
            variables.insert(format!("{link}_PORT"), number);
            variables.insert(format!("{link}_ADDR"), host.clone());
        }
    }
    variables
}

/// The whole environment of a container, in order.
pub(crate) fn environment(
    container: &core::Container,
    services: &BTreeMap<String, String>,
    objects: &Objects,
    downward: &Downward<'_>,
) -> Result<Vec<(String, String)>, EnvError> {
    let mut result: Vec<(String, String)> = Vec::new();
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in from_objects(container, objects)? {
        known.insert(name.clone(), value.clone());
        put(&mut result, name, value);
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), _) if !value.is_empty() => {
                expand(value, |name| known.get(name).or_else(|| services.get(name)).cloned())
            }
            (_, Some(source)) => match value_from(source, container, objects, downward)? {
                Some(value) => value,
                None => continue,
            },
            _ => String::new(),
        };
        known.insert(variable.name.clone(), value.clone());
        put(&mut result, variable.name.clone(), value);
    }
    for (name, value) in services {
        if !known.contains_key(name) {
            result.push((name.clone(), value.clone()));
        }
    }
    Ok(result)
}

fn put(result: &mut Vec<(String, String)>, name: String, value: String) {
    match result.iter_mut().find(|(known, _)| *known == name) {
        Some(entry) => entry.1 = value,
        None => result.push((name, value)),
    }
}

/// Names that can be variables (KEP-4369: printable ASCII without `=`).
fn is_variable_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b'=')
}

fn from_objects(container: &core::Container, objects: &Objects) -> Result<Vec<(String, String)>, EnvError> {
    let mut result = Vec::new();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let mut add = |name: &str, value: String| {
            let name = format!("{prefix}{name}");
            if is_variable_name(&name) {
                result.push((name, value));
            }
        };
        if let Some(source) = &from.config_map_ref {
            match objects.config_maps.get(&source.name) {
                Some(map) => map.data.iter().flatten().for_each(|(name, value)| add(name, value.clone())),
                None if source.optional == Some(true) => {}
                None => return Err(EnvError::Missing("configmap", source.name.clone())),
            }
        }
        if let Some(source) = &from.secret_ref {
            match objects.secrets.get(&source.name) {
                Some(secret) => {
                    for (name, value) in secret.data.iter().flatten() {
                        add(name, text(&value.0, "secret", &source.name, name)?);
                    }
                }
                None if source.optional == Some(true) => {}
                None => return Err(EnvError::Missing("secret", source.name.clone())),
            }
        }
    }
    Ok(result)
}

fn text(bytes: &[u8], kind: &'static str, object: &str, name: &str) -> Result<String, EnvError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| EnvError::Encoding {
        kind,
        object: object.to_owned(),
        name: name.to_owned(),
    })
}

fn value_from(
    source: &core::EnvVarSource,
    container: &core::Container,
    objects: &Objects,
    downward: &Downward<'_>,
) -> Result<Option<String>, EnvError> {
    if let Some(field) = &source.field_ref {
        return downward.field(&field.field_path).map(Some);
    }
    if let Some(selector) = &source.resource_field_ref {
        return downward.resource(selector, Some(container)).map(Some);
    }
    let namespace = model::namespace(downward.pod).to_owned();
    if let Some(key) = &source.config_map_key_ref {
        let optional = key.optional == Some(true);
        let Some(map) = objects.config_maps.get(&key.name) else {
            return if optional { Ok(None) } else { Err(EnvError::Missing("configmap", key.name.clone())) };
        };
        return match map.data.as_ref().and_then(|data| data.get(&key.key)) {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => Err(EnvError::NoKey {
                kind: "ConfigMap",
                namespace,
                name: key.name.clone(),
                key: key.key.clone(),
            }),
        };
    }
    if let Some(key) = &source.secret_key_ref {
        let optional = key.optional == Some(true);
        let Some(secret) = objects.secrets.get(&key.name) else {
            return if optional { Ok(None) } else { Err(EnvError::Missing("secret", key.name.clone())) };
        };
        return match secret.data.as_ref().and_then(|data| data.get(&key.key)) {
            Some(value) => text(&value.0, "secret", &key.name, &key.key).map(Some),
            None if optional => Ok(None),
            None => Err(EnvError::NoKey {
                kind: "Secret",
                namespace,
                name: key.name.clone(),
                key: key.key.clone(),
            }),
        };
    }
    Err(EnvError::Field("a value source that this kubelet does not support".to_owned()))
}

/// `$(NAME)` is replaced when known, `$$` is a dollar (upstream: third_party/forked/golang/expansion).
pub(crate) fn expand(input: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut output = String::with_capacity(input.len());
    let mut rest = input;
    while let Some(at) = rest.find('$') {
        output.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            output.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|open| open.split_once(')')) {
            match lookup(name) {
                Some(value) => output.push_str(&value),
                None => output.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            output.push('$');
        }
    }
    output.push_str(rest);
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expansion() {
        let lookup = |name: &str| (name == "A").then(|| "1".to_owned());
        for (input, output) in [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("a$", "a$"),
            ("", ""),
        ] {
            assert_eq!(expand(input, lookup), output, "{input}");
        }
    }

    #[test]
    fn service_variables_in_both_forms() {
        let port = |name: &str, port| Port { name: name.into(), protocol: "TCP".into(), port };
        let service =
            Service { address: "10.0.0.11".parse().unwrap(), ports: vec![port("p-q", 80), port("", 443)] };
        let variables = service_variables(&BTreeMap::from([("red-is".to_owned(), service)]));
        let lines: Vec<String> = variables.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(
            lines,
            [
                "RED_IS_PORT=tcp://10.0.0.11:80",
                "RED_IS_PORT_443_TCP=tcp://10.0.0.11:443",
                "RED_IS_PORT_443_TCP_ADDR=10.0.0.11",
                "RED_IS_PORT_443_TCP_PORT=443",
                "RED_IS_PORT_443_TCP_PROTO=tcp",
                "RED_IS_PORT_80_TCP=tcp://10.0.0.11:80",
                "RED_IS_PORT_80_TCP_ADDR=10.0.0.11",
                "RED_IS_PORT_80_TCP_PORT=80",
                "RED_IS_PORT_80_TCP_PROTO=tcp",
                "RED_IS_SERVICE_HOST=10.0.0.11",
                "RED_IS_SERVICE_PORT=80",
                "RED_IS_SERVICE_PORT_P_Q=80",
            ]
        );
    }

    #[test]
    fn references_win_in_order_and_missing_ones_say_so() {
        let pod: core::Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"a": "x\"y"}},
            "spec": {"containers": [{"name": "c",
                "envFrom": [{"prefix": "P_", "configMapRef": {"name": "m"}}],
                "env": [{"name": "P_a", "value": "over"}, {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    {"name": "URL", "value": "http://$(IP):$(X_SERVICE_PORT)/$(P_b)"},
                    {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                    {"name": "L", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a']"}}},
                    {"name": "O", "valueFrom": {"secretKeyRef": {"name": "none", "key": "k", "optional": true}}}]}]}
        }))
        .unwrap();
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let allocatable = serde_json::from_value(serde_json::json!({"cpu": "1500m"})).unwrap();
        let ips = ["10.0.0.2".to_owned()];
        let downward = Downward { pod: &pod, pod_ips: &ips, host_ips: &[], allocatable: &allocatable };
        let mut objects = Objects::default();
        let services = BTreeMap::from([("X_SERVICE_PORT".to_owned(), "80".to_owned())]);
        let missing = environment(container, &services, &objects, &downward).unwrap_err();
        assert_eq!(missing.to_string(), "configmap \"m\" not found");
        let map =
            serde_json::from_value(serde_json::json!({"data": {"a": "1", "b": "2", "=": "bad"}})).unwrap();
        objects.config_maps.insert("m".into(), map);
        let env = environment(container, &services, &objects, &downward).unwrap();
        let lines: Vec<String> = env.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(
            lines,
            [
                "P_a=over",
                "P_b=2",
                "IP=10.0.0.2",
                "URL=http://10.0.0.2:80/2",
                "CPU=2",
                "L=x\"y",
                "X_SERVICE_PORT=80"
            ]
        );
        assert_eq!(downward.field("metadata.labels").unwrap(), "a=\"x\\\"y\"");
    }
}
