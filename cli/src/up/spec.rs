//! What a cluster was made with: `DATA/cluster.json`, versioned. A second `up` takes it from there.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use anyhow::{Context as _, bail};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::file::write_atomic;

const VERSION: u32 = 1;

/// The cluster as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ClusterSpec {
    pub(crate) version: u32,
    pub(crate) pod_cidr: Ipv4Net,
    pub(crate) service_cidr: Ipv4Net,
    pub(crate) cluster_dns: Ipv4Addr,
    pub(crate) cluster_domain: String,
    /// HTTPS port of the API server.
    pub(crate) api_port: u16,
    /// Plain HTTP port on loopback; 0 is off.
    pub(crate) insecure_port: u16,
    /// Where nodes reach the API server.
    pub(crate) advertise_address: IpAddr,
    pub(crate) nodes: Vec<NodeSpec>,
    /// Set when the nodes live in network namespaces of their own.
    pub(crate) lab: Option<LabSpec>,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct NodeSpec {
    pub(crate) name: String,
    pub(crate) address: IpAddr,
}

/// The network that joins nodes on one machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct LabSpec {
    /// The bridge has the first address, node `i` the `10 + i`th.
    pub(crate) network: Ipv4Net,
}

/// What the user asked for on the command line; `None` is the default or what is remembered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wish {
    pub(crate) pod_cidr: Option<Ipv4Net>,
    pub(crate) service_cidr: Option<Ipv4Net>,
    pub(crate) api_port: Option<u16>,
    pub(crate) insecure_port: Option<u16>,
    pub(crate) node_ip: Option<IpAddr>,
    pub(crate) node_name: Option<String>,
    pub(crate) nodes: Option<u32>,
    pub(crate) node_network: Option<Ipv4Net>,
}

impl ClusterSpec {
    /// The remembered cluster, if there is one.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Option<Self>> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("failed to read {}", path.display())),
        };
        let spec: Self = serde_json::from_slice(&text).with_context(|| {
            format!("{} is damaged: restore it, or run `orlop down` and start anew", path.display())
        })?;
        if spec.version != VERSION {
            bail!("{} has version {}, this orlop knows version {VERSION}", path.display(), spec.version);
        }
        Ok(Some(spec))
    }

    /// Remembers the cluster.
    pub(crate) fn save(&self, path: &Path) -> anyhow::Result<()> {
        write_atomic(path, &serde_json::to_vec_pretty(self)?, 0o644)
    }

    /// A new cluster from wishes and what the machine has.
    pub(crate) fn create(wish: &Wish, machine: &Machine) -> anyhow::Result<Self> {
        let parse = |text: &str| text.parse().expect("the built-in ranges are valid");
        let pod_cidr = wish.pod_cidr.unwrap_or_else(|| parse("10.244.0.0/16"));
        let service_cidr = wish.service_cidr.unwrap_or_else(|| parse("10.96.0.0/16"));
        let cluster_dns = nth(service_cidr, 10).context("the Service range needs at least 16 addresses")?;
        let lab = wish
            .nodes
            .map(|_| LabSpec { network: wish.node_network.unwrap_or_else(|| parse("10.89.0.0/24")) });
        let (advertise_address, nodes) = match &lab {
            Some(lab) => lab_nodes(lab, wish.nodes.unwrap_or(1))?,
            None => {
                let address = wish.node_ip.or(machine.address).context(
                    "no address was found on this machine's interfaces: give one with --node-ip ADDRESS",
                )?;
                let name = wish.node_name.clone().unwrap_or_else(|| machine.hostname.to_lowercase());
                (address, vec![NodeSpec { name, address }])
            }
        };
        for node in &nodes {
            check_node_name(&node.name)?;
        }
        let spec = Self {
            version: VERSION,
            pod_cidr,
            service_cidr,
            cluster_dns,
            cluster_domain: "cluster.local".to_owned(),
            api_port: wish.api_port.unwrap_or(6443),
            insecure_port: wish.insecure_port.unwrap_or(0),
            advertise_address,
            nodes,
            lab,
        };
        spec.check_ranges(&machine.routes)?;
        Ok(spec)
    }

    /// The remembered cluster with the wishes that may change later; others must agree with what is remembered.
    pub(crate) fn resume(mut self, wish: &Wish) -> anyhow::Result<Self> {
        let fixed = |name: &str, wished: Option<String>, known: String| match wished {
            Some(wished) if wished != known => {
                bail!(
                    "this cluster was made with {name} {known}, not {wished}: leave the flag out, or run `orlop down` first"
                )
            }
            _ => Ok(()),
        };
        fixed("--pod-cidr", wish.pod_cidr.map(|cidr| cidr.to_string()), self.pod_cidr.to_string())?;
        fixed(
            "--service-cidr",
            wish.service_cidr.map(|cidr| cidr.to_string()),
            self.service_cidr.to_string(),
        )?;
        let known = if self.lab.is_some() { self.nodes.len().to_string() } else { "none".to_owned() };
        fixed("--nodes", wish.nodes.map(|nodes| nodes.to_string()), known)?;
        if let (None, [node]) = (&self.lab, self.nodes.as_mut_slice()) {
            fixed("--node-name", wish.node_name.clone(), node.name.clone())?;
            if let Some(address) = wish.node_ip {
                node.address = address;
                self.advertise_address = address;
            }
        }
        self.api_port = wish.api_port.unwrap_or(self.api_port);
        self.insecure_port = wish.insecure_port.unwrap_or(self.insecure_port);
        Ok(self)
    }

    /// Refuses ranges that overlap each other or a route of the machine: packets would go astray.
    fn check_ranges(&self, routes: &[Ipv4Net]) -> anyhow::Result<()> {
        let mut ranges = vec![
            ("the pod range", self.pod_cidr, "--pod-cidr"),
            ("the Service range", self.service_cidr, "--service-cidr"),
        ];
        if let Some(lab) = &self.lab {
            ranges.push(("the node network", lab.network, "--node-network"));
        }
        for (index, (what, range, flag)) in ranges.iter().enumerate() {
            for (other_what, other, _) in &ranges[..index] {
                if overlaps(*range, *other) {
                    bail!("{what} {range} overlaps {other_what} {other}: choose another with {flag}");
                }
            }
            if let Some(route) = routes.iter().find(|route| overlaps(*range, **route)) {
                bail!("{what} {range} overlaps this machine's route to {route}: choose another with {flag}");
            }
        }
        Ok(())
    }
}

/// What of the machine matters for a new cluster.
#[derive(Clone, Debug, Default)]
pub(crate) struct Machine {
    pub(crate) hostname: String,
    /// The address that other machines would use.
    pub(crate) address: Option<IpAddr>,
    /// Destinations of its routes, without the default route.
    pub(crate) routes: Vec<Ipv4Net>,
}

fn overlaps(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// The `index`th address of a range.
pub(crate) fn nth(range: Ipv4Net, index: u32) -> Option<Ipv4Addr> {
    let address = Ipv4Addr::from(u32::from(range.network()).checked_add(index)?);
    (range.contains(&address) && address != range.broadcast()).then_some(address)
}

fn lab_nodes(lab: &LabSpec, count: u32) -> anyhow::Result<(IpAddr, Vec<NodeSpec>)> {
    if !(1..=50).contains(&count) {
        bail!("--nodes {count} is out of range: 1 to 50 nodes fit on one machine");
    }
    let too_small = || format!("the node network {} is too small for {count} nodes", lab.network);
    let nodes = (1..=count)
        .map(|index| {
            let address = nth(lab.network, 10 + index).with_context(too_small)?;
            Ok(NodeSpec { name: format!("node-{index}"), address: address.into() })
        })
        .collect::<anyhow::Result<_>>()?;
    Ok((nth(lab.network, 1).with_context(too_small)?.into(), nodes))
}

fn check_node_name(name: &str) -> anyhow::Result<()> {
    let valid = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    if bytes.len() > 63 || !bytes.iter().copied().all(valid) || !edge(bytes.first()) || !edge(bytes.last()) {
        bail!(
            "{name:?} is no valid node name (RFC 1123: lower-case letters, digits, '-' and '.', at most 63): give one with --node-name"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            hostname: "Host".into(),
            address: Some("192.0.2.5".parse().unwrap()),
            routes: vec!["192.0.2.0/24".parse().unwrap()],
        }
    }

    #[test]
    fn defaults_make_one_node_named_by_the_host() {
        let spec = ClusterSpec::create(&Wish::default(), &machine()).unwrap();
        assert_eq!(spec.nodes, [NodeSpec { name: "host".into(), address: "192.0.2.5".parse().unwrap() }]);
        assert_eq!(spec.cluster_dns.to_string(), "10.96.0.10");
    }

    #[test]
    fn ranges_that_overlap_are_refused_by_name() {
        let overlap = |pod: &str| {
            let wish = Wish { pod_cidr: Some(pod.parse().unwrap()), ..Wish::default() };
            ClusterSpec::create(&wish, &machine()).unwrap_err().to_string()
        };
        assert_eq!(
            overlap("192.0.0.0/16"),
            "the pod range 192.0.0.0/16 overlaps this machine's route to 192.0.2.0/24: choose another with --pod-cidr"
        );
        assert!(overlap("10.96.128.0/17").contains("overlaps the pod range"));
    }

    #[test]
    fn lab_nodes_get_addresses_beside_the_bridge() {
        let spec = ClusterSpec::create(&Wish { nodes: Some(2), ..Wish::default() }, &machine()).unwrap();
        assert_eq!(spec.advertise_address.to_string(), "10.89.0.1");
        assert_eq!(spec.nodes[1].address.to_string(), "10.89.0.12");
        assert!(ClusterSpec::create(&Wish { nodes: Some(51), ..Wish::default() }, &machine()).is_err());
    }

    #[test]
    fn a_resumed_cluster_keeps_its_ranges() {
        let spec = ClusterSpec::create(&Wish::default(), &machine()).unwrap();
        let other = Wish { pod_cidr: Some("10.0.0.0/16".parse().unwrap()), ..Wish::default() };
        assert!(spec.clone().resume(&other).unwrap_err().to_string().contains("--pod-cidr 10.244.0.0/16"));
        let port = Wish { insecure_port: Some(8080), ..Wish::default() };
        assert_eq!(spec.resume(&port).unwrap().insecure_port, 8080);
    }
}
