//! What the runtime asks: environment and configuration, parsed and checked whole.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::error::{CniError, code};
use crate::leases::{Leases, Owner};

/// Versions of the specification this plugin speaks, oldest first.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The configuration on standard input.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Configuration {
    /// Version of the answer.
    #[serde(default)]
    pub cni_version: String,
    /// Network name.
    #[serde(default)]
    pub name: String,
    /// Bridge that pods are attached to.
    #[serde(default = "default_bridge")]
    pub bridge: String,
    /// MTU of the pods' interfaces; 0 is the kernel's default.
    #[serde(default)]
    pub mtu: u32,
    /// The node's pod ranges: one, or one of each family.
    #[serde(default)]
    pub subnets: Vec<IpNet>,
    /// Address management.
    pub ipam: Option<Ipam>,
    /// Passed on in the result.
    #[serde(default)]
    pub dns: Value,
    /// Values of the capabilities the runtime supports.
    #[serde(default)]
    pub runtime_config: RuntimeConfig,
    /// Result of ADD, for CHECK and DEL.
    pub prev_result: Option<Value>,
    /// GC: the attachments that are still wanted.
    #[serde(rename = "cni.dev/valid-attachments")]
    pub valid_attachments: Option<Vec<Attachment>>,
}

/// Where leases are kept.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ipam {
    /// Folder; leases are in a subfolder named as the network.
    pub data_dir: PathBuf,
}

/// Capability values.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeConfig {
    /// Host ports.
    #[serde(default)]
    pub port_mappings: Vec<PortMapping>,
}

/// One host port.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// Port on the host.
    pub host_port: u16,
    /// Port in the pod.
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`.
    #[serde(default = "default_protocol")]
    pub protocol: String,
    /// Host address; empty or unspecified is all.
    #[serde(default, rename = "hostIP")]
    pub host_ip: String,
}

/// An attachment that a GC request keeps.
#[derive(Clone, Debug, Deserialize)]
pub struct Attachment {
    /// Container id.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// Interface.
    pub ifname: String,
}

fn default_bridge() -> String {
    "cni0".to_owned()
}

fn default_protocol() -> String {
    "tcp".to_owned()
}

/// The environment of a request.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `CNI_COMMAND`.
    pub command: String,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub interface: String,
}

impl Environment {
    /// Reads the process's environment.
    pub fn read() -> Self {
        let get = |name: &str| std::env::var(name).unwrap_or_default();
        Self {
            command: get("CNI_COMMAND"),
            container_id: get("CNI_CONTAINERID"),
            netns: get("CNI_NETNS"),
            interface: get("CNI_IFNAME"),
        }
    }

    /// The attachment that is meant.
    ///
    /// # Errors
    /// Code 4 naming the variable that is missing or malformed.
    pub fn owner(&self) -> Result<Owner, CniError> {
        let invalid =
            |name: &str, why: &str| CniError::new(code::INVALID_ENVIRONMENT, format!("{name} {why}"));
        if self.container_id.is_empty() {
            return Err(invalid("CNI_CONTAINERID", "is not set"));
        }
        if !is_identifier(&self.container_id) {
            return Err(invalid("CNI_CONTAINERID", "must be alphanumeric, then also '_', '.', '-'"));
        }
        if self.interface.is_empty() {
            return Err(invalid("CNI_IFNAME", "is not set"));
        }
        if !is_interface_name(&self.interface) {
            return Err(invalid(
                "CNI_IFNAME",
                "is no interface name (1 to 15 characters without '/', ':' and spaces)",
            ));
        }
        Ok(Owner { container_id: self.container_id.clone(), interface: self.interface.clone() })
    }

    /// The path of the pod's namespace.
    ///
    /// # Errors
    /// Code 4 when it is not set.
    pub fn netns(&self) -> Result<PathBuf, CniError> {
        if self.netns.is_empty() {
            return Err(CniError::new(code::INVALID_ENVIRONMENT, "CNI_NETNS is not set"));
        }
        Ok(PathBuf::from(&self.netns))
    }
}

impl Configuration {
    /// Parses the configuration; the version is checked by [`Configuration::check_version`], the rest by [`Configuration::check`].
    ///
    /// # Errors
    /// Code 6 when it is no JSON, 7 when a field has the wrong type.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        let value: Value = serde_json::from_str(text).map_err(|error| {
            CniError::new(code::DECODE_FAILURE, format!("the network configuration is no JSON: {error}"))
        })?;
        serde_json::from_value(value).map_err(|error| {
            CniError::new(
                code::INVALID_CONFIGURATION,
                format!("the network configuration is invalid: {error}"),
            )
        })
    }

    /// Whether the plugin speaks the version, and the version has the verb.
    ///
    /// # Errors
    /// Code 1.
    pub fn check_version(&self, command: &str) -> Result<(), CniError> {
        let refused = |text: String| CniError::new(code::INCOMPATIBLE_VERSION, text);
        if !VERSIONS.contains(&self.cni_version.as_str()) {
            let known = VERSIONS.join(", ");
            return Err(refused(format!(
                "incompatible CNI version {:?}, supported: {known}",
                self.cni_version
            )));
        }
        let since = match command {
            "CHECK" => "0.4.0",
            "GC" | "STATUS" => "1.1.0",
            _ => "0.3.0",
        };
        // All versions have single digits: the texts sort as the numbers do.
        if self.cni_version.as_str() < since {
            return Err(refused(format!(
                "CNI version {} has no {command} (since {since})",
                self.cni_version
            )));
        }
        Ok(())
    }

    /// Checks what every verb that works on the network needs.
    ///
    /// # Errors
    /// Code 7.
    pub fn check(&self) -> Result<(), CniError> {
        let invalid = |text: &str| Err(CniError::new(code::INVALID_CONFIGURATION, text));
        if !is_identifier(&self.name) {
            return invalid("name is missing or not alphanumeric with '_', '.', '-'");
        }
        if !is_interface_name(&self.bridge) {
            return invalid("bridge is no interface name");
        }
        if self.ipam.as_ref().is_none_or(|ipam| !ipam.data_dir.is_absolute()) {
            return invalid("ipam.dataDir is missing or no absolute path");
        }
        let fours = self.subnets.iter().filter(|subnet| matches!(subnet, IpNet::V4(_))).count();
        if self.subnets.is_empty() || fours > 1 || self.subnets.len() - fours > 1 {
            return invalid("subnets must hold one range, or one of each family");
        }
        if self.subnets.iter().any(|subnet| subnet.max_prefix_len() - subnet.prefix_len() < 2) {
            return invalid("a subnet has no room for a gateway and a pod");
        }
        Ok(())
    }

    /// The leases of this network.
    pub fn leases(&self) -> Leases {
        let data_dir = self.ipam.as_ref().map(|ipam| ipam.data_dir.clone()).unwrap_or_default();
        Leases::new(&data_dir, &self.name)
    }
}

impl PortMapping {
    /// The host address when it is a particular one.
    ///
    /// # Errors
    /// Code 7 when it is no address.
    pub fn particular_host_ip(&self) -> Result<Option<IpAddr>, CniError> {
        if self.host_ip.is_empty() {
            return Ok(None);
        }
        let ip: IpAddr = self.host_ip.parse().map_err(|_| {
            CniError::new(
                code::INVALID_CONFIGURATION,
                format!("portMappings: hostIP {:?} is no address", self.host_ip),
            )
        })?;
        Ok(Some(ip).filter(|ip| !ip.is_unspecified()))
    }
}

fn is_identifier(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.chars().all(|character| character.is_ascii_alphanumeric() || "_.-".contains(character))
}

fn is_interface_name(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && text != "."
        && text != ".."
        && !text.contains(|character: char| character == '/' || character == ':' || character.is_whitespace())
}
