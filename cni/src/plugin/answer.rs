//! The result of ADD, in the shape of the request's version.

use std::net::IpAddr;

use ipnet::IpNet;
use orlop_netlink::route::MacAddress;
use serde_json::{Map, Value, json};

/// What ADD made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The bridge.
    pub bridge: Interface,
    /// The end on the host.
    pub host: Interface,
    /// The end in the pod.
    pub pod: Interface,
    /// Path of the pod's namespace.
    pub sandbox: String,
    /// The pod's addresses, with prefix length and gateway.
    pub addresses: Vec<(IpNet, IpAddr)>,
}

/// An interface in a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// Ethernet address.
    pub mac: Option<MacAddress>,
    /// MTU in bytes.
    pub mtu: u32,
}

impl Attached {
    /// The JSON of the result. Versions below 1.0.0 name the family of an address; 1.1.0 adds the MTU of an interface.
    pub fn to_json(&self, version: &str, dns: &Value) -> Value {
        let interfaces: Vec<Value> =
            [(&self.bridge, None), (&self.host, None), (&self.pod, Some(&self.sandbox))]
                .into_iter()
                .map(|(interface, sandbox)| interface.to_json(version, sandbox))
                .collect();
        let addresses: Vec<Value> =
            self.addresses.iter().map(|address| address_json(version, *address)).collect();
        let routes: Vec<Value> = self
            .addresses
            .iter()
            .map(|(network, gateway)| {
                let everything = if matches!(network, IpNet::V4(_)) { "0.0.0.0/0" } else { "::/0" };
                json!({"dst": everything, "gw": gateway})
            })
            .collect();
        let dns = if dns.is_object() { dns.clone() } else { json!({}) };
        json!({"cniVersion": version, "interfaces": interfaces, "ips": addresses, "routes": routes, "dns": dns})
    }
}

impl Interface {
    fn to_json(&self, version: &str, sandbox: Option<&String>) -> Value {
        let mut object = Map::new();
        object.insert("name".to_owned(), json!(self.name));
        if let Some(mac) = self.mac {
            object.insert("mac".to_owned(), json!(mac.to_string()));
        }
        if version >= "1.1.0" && self.mtu > 0 {
            object.insert("mtu".to_owned(), json!(self.mtu));
        }
        if let Some(sandbox) = sandbox {
            object.insert("sandbox".to_owned(), json!(sandbox));
        }
        Value::Object(object)
    }
}

fn address_json(version: &str, (network, gateway): (IpNet, IpAddr)) -> Value {
    let mut object = Map::new();
    if version < "1.0.0" {
        object.insert("version".to_owned(), json!(if matches!(network, IpNet::V4(_)) { "4" } else { "6" }));
    }
    object.insert("interface".to_owned(), json!(2));
    object.insert("address".to_owned(), json!(network.to_string()));
    object.insert("gateway".to_owned(), json!(gateway));
    Value::Object(object)
}
