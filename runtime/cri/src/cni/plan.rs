//! CNI as values: configurations, what a plugin gets, what it answers. Pure.

use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The interface inside the pod.
pub(crate) const INTERFACE: &str = "eth0";

/// One plugin of a chain, with everything its configuration says.
pub(crate) type Plugin = Map<String, Value>;

/// A network configuration list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NetworkList {
    /// Version of the specification.
    pub cni_version: String,
    /// The network's name.
    pub name: String,
    /// The chain.
    pub plugins: Vec<Plugin>,
}

/// A pod on a network: everything that DEL needs again.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Attachment {
    /// Sandbox id.
    pub container_id: String,
    /// Path of the network namespace; empty when it is gone.
    pub netns: String,
    /// `CNI_ARGS`.
    pub arguments: String,
    /// Capability arguments, by capability.
    pub capabilities: Map<String, Value>,
    /// The configuration at the time of ADD.
    pub network: NetworkList,
    /// The last plugin's result.
    pub result: Option<Value>,
}

/// Whether a file in the configuration directory counts.
pub(crate) fn is_configuration(path: &Path) -> bool {
    path.extension()
        .and_then(|extension| extension.to_str())
        .is_some_and(|kind| matches!(kind, "conflist" | "conf" | "json"))
}

/// Reads a list, or a single plugin's configuration as a list of one.
///
/// # Errors
/// What is wrong, for people.
pub(crate) fn parse(text: &str) -> Result<NetworkList, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let object = value.as_object().ok_or("not a JSON object")?;
    let text_of = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let plugins: Vec<Plugin> = match object.get("plugins") {
        Some(Value::Array(plugins)) => plugins
            .iter()
            .map(|plugin| plugin.as_object().cloned().ok_or("a plugin is not a JSON object"))
            .collect::<Result<_, _>>()?,
        Some(_) => return Err("\"plugins\" is not a list".to_owned()),
        None => vec![object.clone()],
    };
    let network = NetworkList { cni_version: text_of("cniVersion"), name: text_of("name"), plugins };
    if network.name.is_empty() {
        return Err("no name".to_owned());
    }
    if network.plugins.is_empty() {
        return Err("no plugins".to_owned());
    }
    for plugin in &network.plugins {
        let kind = plugin_type(plugin);
        // The type is a file name that is looked up in the plugin directories.
        if kind.is_empty() || kind.contains('/') || kind.starts_with('.') {
            return Err(format!("plugin type {kind:?} is not a file name"));
        }
    }
    Ok(network)
}

/// The plugin's program.
pub(crate) fn plugin_type(plugin: &Plugin) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

impl Attachment {
    /// What one plugin of the chain reads from its standard input.
    pub(crate) fn plugin_config(&self, plugin: &Plugin, previous: Option<&Value>) -> Value {
        let mut config = plugin.clone();
        let announced = config.remove("capabilities");
        config.insert("name".to_owned(), json!(self.network.name));
        if !self.network.cni_version.is_empty() {
            config.insert("cniVersion".to_owned(), json!(self.network.cni_version));
        }
        let wanted = announced.as_ref().and_then(Value::as_object);
        let arguments: Map<String, Value> = self
            .capabilities
            .iter()
            .filter(|(name, _)| wanted.is_some_and(|wanted| wanted.get(*name) == Some(&Value::Bool(true))))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if !arguments.is_empty() {
            config.insert("runtimeConfig".to_owned(), Value::Object(arguments));
        }
        if let Some(previous) = previous {
            config.insert("prevResult".to_owned(), previous.clone());
        }
        Value::Object(config)
    }

    /// The environment of one call.
    pub(crate) fn environment(&self, command: &str, search_path: &str) -> Vec<(&'static str, String)> {
        vec![
            ("CNI_COMMAND", command.to_owned()),
            ("CNI_CONTAINERID", self.container_id.clone()),
            ("CNI_NETNS", self.netns.clone()),
            ("CNI_IFNAME", INTERFACE.to_owned()),
            ("CNI_ARGS", self.arguments.clone()),
            ("CNI_PATH", search_path.to_owned()),
        ]
    }

    /// The pod's addresses: those of interfaces inside the namespace, IPv4 first, otherwise in the plugins' order.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let result = self.result.as_ref();
        let interfaces = result.and_then(|result| result.get("interfaces")).and_then(Value::as_array);
        let in_pod = |index: &Value| {
            let interface = index.as_u64().and_then(|index| interfaces?.get(usize::try_from(index).ok()?));
            interface.is_none_or(|interface| {
                interface.get("sandbox").and_then(Value::as_str).is_some_and(|sandbox| !sandbox.is_empty())
            })
        };
        let mut addresses: Vec<IpAddr> = result
            .and_then(|result| result.get("ips"))
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter(|ip| ip.get("interface").is_none_or(in_pod))
            .filter_map(|ip| ip.get("address")?.as_str()?.split('/').next()?.parse().ok())
            .collect();
        addresses.sort_by_key(IpAddr::is_ipv6);
        addresses.iter().map(IpAddr::to_string).collect()
    }
}

/// `CNI_ARGS` of a pod. Semicolons would start another argument; the API server allows them in none of these.
pub(crate) fn pod_arguments(namespace: &str, name: &str, uid: &str, sandbox_id: &str) -> String {
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
        namespace.replace(';', ""),
        name.replace(';', ""),
        sandbox_id,
        uid.replace(';', "")
    )
}

/// The `portMappings` capability argument.
pub(crate) fn port_mappings(mappings: &[orlop_cri::v1::PortMapping]) -> Vec<Value> {
    mappings
        .iter()
        .filter(|mapping| mapping.host_port > 0)
        .map(|mapping| {
            let protocol = match mapping.protocol() {
                orlop_cri::v1::Protocol::Tcp => "tcp",
                orlop_cri::v1::Protocol::Udp => "udp",
                orlop_cri::v1::Protocol::Sctp => "sctp",
            };
            json!({
                "hostPort": mapping.host_port,
                "containerPort": mapping.container_port,
                "protocol": protocol,
                "hostIP": mapping.host_ip,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"{"cniVersion":"1.0.0","name":"net","plugins":[
        {"type":"bridge","bridge":"cni0"},{"type":"portmap","capabilities":{"portMappings":true,"bandwidth":true}}]}"#;

    fn attachment() -> Attachment {
        Attachment {
            container_id: "s1".to_owned(),
            netns: "/proc/7/ns/net".to_owned(),
            arguments: pod_arguments("ns", "p;x=1", "u", "s1"),
            capabilities: Map::from_iter([("portMappings".to_owned(), json!([{"hostPort": 80}]))]),
            network: parse(LIST).unwrap(),
            result: None,
        }
    }

    #[test]
    fn a_plugin_gets_only_what_it_announced() {
        let attachment = attachment();
        let previous = json!({"ips": []});
        let bridge = attachment.plugin_config(&attachment.network.plugins[0], None);
        assert_eq!(bridge, json!({"type":"bridge","bridge":"cni0","name":"net","cniVersion":"1.0.0"}));
        let portmap = attachment.plugin_config(&attachment.network.plugins[1], Some(&previous));
        assert_eq!(
            portmap,
            json!({"type":"portmap","name":"net","cniVersion":"1.0.0","prevResult":previous,
                "runtimeConfig":{"portMappings":[{"hostPort":80}]}})
        );
        assert!(!attachment.arguments.contains(";x=1") && attachment.arguments.contains("K8S_POD_NAME=px=1"));
    }

    #[test]
    fn addresses_are_the_pods_own() {
        let mut attachment = attachment();
        attachment.result = Some(json!({
            "interfaces": [{"name":"cni0"},{"name":"eth0","sandbox":"/proc/7/ns/net"}],
            "ips": [{"address":"fd00::2/64","interface":1},{"address":"10.1.0.1/24","interface":0},
                    {"address":"10.1.0.2/24","interface":1},{"address":"nonsense"}]
        }));
        assert_eq!(attachment.addresses(), ["10.1.0.2", "fd00::2"]);
        attachment.result = None;
        assert!(attachment.addresses().is_empty());
    }

    #[test]
    fn broken_configurations_are_refused() {
        for (text, word) in [
            ("", "EOF"),
            ("[]", "object"),
            (r#"{"name":"n","plugins":[]}"#, "no plugins"),
            (r#"{"name":"n","plugins":[{"type":"../sh"}]}"#, "file name"),
            (r#"{"plugins":[{"type":"a"}]}"#, "no name"),
            (r#"{"name":"n","plugins":{}}"#, "list"),
        ] {
            assert!(parse(text).unwrap_err().contains(word), "{text}");
        }
        assert_eq!(parse(r#"{"name":"n","cniVersion":"0.4.0","type":"bridge"}"#).unwrap().plugins.len(), 1);
    }
}
