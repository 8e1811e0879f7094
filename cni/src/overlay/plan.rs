//! What the node's network should look like, as values.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use orlop_kube::network::Node;
use orlop_nft::{
    Chain, ChainKind, Command, Family, Hook, PRIORITY_FILTER, PRIORITY_SNAT, Rule, Statement, Table, Verdict,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{MacAddress, Neighbour, NeighbourTable, Route};

/// `rtm_protocol` of our routes: a number that nobody has registered, to know them again.
pub(crate) const ROUTE_PROTOCOL: u8 = 111;
/// What VXLAN over IPv4 adds to a packet: outer Ethernet, IP, UDP and VXLAN headers.
pub(crate) const VXLAN_OVERHEAD_BYTES: u32 = 50;
const PREFIX: &str = "flannel.alpha.coreos.com";
const MULTICAST: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4));

/// Another node, as its annotations tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Peer {
    /// Its pod range.
    pub(crate) pods: Ipv4Net,
    /// Ethernet address of its VXLAN interface.
    pub(crate) mac: MacAddress,
    /// Its end of the tunnel.
    pub(crate) address: Ipv4Addr,
}

/// Flannel's `backend-data`. The order of the fields is part of the contract: flannel takes the text apart by hand.
#[derive(Debug, Serialize, Deserialize)]
struct BackendData {
    #[serde(rename = "VNI")]
    vni: u32,
    #[serde(rename = "VtepMAC")]
    mac: String,
}

/// A route of the machine, with its interface's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MachineRoute {
    pub(crate) destination: IpNet,
    pub(crate) interface: String,
    pub(crate) protocol: u8,
}

/// The pod ranges of a node: at most one of each family, those that parse.
pub(crate) fn pod_ranges(node: &Node) -> Vec<IpNet> {
    let mut ranges: Vec<IpNet> = Vec::new();
    for range in node.pod_cidrs.iter().filter_map(|text| text.parse::<IpNet>().ok()) {
        if !ranges.iter().any(|known| known.addr().is_ipv4() == range.addr().is_ipv4()) {
            ranges.push(range.trunc());
        }
    }
    ranges
}

/// The other nodes that can be reached by VXLAN. Nodes without the annotations (not ready, or with another network) are left out.
pub(crate) fn peers<'a>(
    own: &str,
    vni: u32,
    nodes: impl IntoIterator<Item = (&'a str, &'a Node)>,
) -> BTreeSet<Peer> {
    nodes.into_iter().filter(|(name, _)| *name != own).filter_map(|(_, node)| peer(node, vni)).collect()
}

fn peer(node: &Node, vni: u32) -> Option<Peer> {
    let get = |name: &str| node.flannel.get(&format!("{PREFIX}/{name}")).map(String::as_str);
    if get("kube-subnet-manager") != Some("true") || get("backend-type") != Some("vxlan") {
        return None;
    }
    let data: BackendData = serde_json::from_str(get("backend-data")?).ok()?;
    let pods = pod_ranges(node).into_iter().find_map(|range| match range {
        IpNet::V4(range) => Some(range),
        IpNet::V6(_) => None,
    })?;
    let address = get("public-ip-overwrite").or_else(|| get("public-ip"))?.parse().ok()?;
    (data.vni == vni).then_some(Peer { pods, mac: data.mac.parse().ok()?, address })
}

/// The Ethernet address that the node told the others before.
pub(crate) fn announced_mac(node: &Node, vni: u32) -> Option<MacAddress> {
    let data: BackendData =
        serde_json::from_str(node.flannel.get(&format!("{PREFIX}/backend-data"))?).ok()?;
    (data.vni == vni).then(|| data.mac.parse().ok())?
}

/// A locally administered address from the node's name: the same each time.
pub(crate) fn derived_mac(node_name: &str) -> MacAddress {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in node_name.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let [_, _, _, a, b, c, d, e] = hash.to_be_bytes();
    MacAddress([0x0e, a, b, c, d, e])
}

/// The annotations that make the node a peer, for us and for flannel.
pub(crate) fn annotations(vni: u32, mac: MacAddress, address: Ipv4Addr) -> BTreeMap<String, String> {
    let data = serde_json::to_string(&BackendData { vni, mac: mac.to_string() })
        .expect("two plain fields serialize");
    [
        ("backend-data", data),
        ("backend-type", "vxlan".to_owned()),
        ("kube-subnet-manager", "true".to_owned()),
        ("public-ip", address.to_string()),
    ]
    .into_iter()
    .map(|(name, value)| (format!("{PREFIX}/{name}"), value))
    .collect()
}

/// Entries of the kernel that lead to the peers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entries {
    pub(crate) routes: Vec<Route>,
    pub(crate) neighbours: Vec<Neighbour>,
}

/// Per peer: a route by its range's network address, the Ethernet address of that, and the tunnel end of the Ethernet address.
pub(crate) fn peer_entries<'a>(peers: impl IntoIterator<Item = &'a Peer>, link: u32) -> Entries {
    let mut entries = Entries::default();
    for peer in peers {
        let gateway = IpAddr::V4(peer.pods.network());
        entries.routes.push(Route {
            destination: IpNet::V4(peer.pods),
            gateway: Some(gateway),
            link,
            source: None,
            onlink: true,
            protocol: ROUTE_PROTOCOL,
        });
        let entry = |table, ip| Neighbour { table, link, ip, mac: peer.mac };
        entries.neighbours.push(entry(NeighbourTable::Address, gateway));
        entries.neighbours.push(entry(NeighbourTable::Forwarding, IpAddr::V4(peer.address)));
    }
    entries
}

/// What to remove and what to set so that `found` becomes `wanted`.
pub(crate) fn plan_entries(found: &Entries, wanted: &Entries) -> (Entries, Entries) {
    let without = |left: &Entries, right: &Entries| Entries {
        routes: left.routes.iter().filter(|route| !right.routes.contains(route)).copied().collect(),
        neighbours: left
            .neighbours
            .iter()
            .filter(|entry| !right.neighbours.contains(entry))
            .copied()
            .collect(),
    };
    let mut remove = without(found, wanted);
    // A route to the same destination is replaced, not removed: there is no moment without it.
    remove.routes.retain(|route| !wanted.routes.iter().any(|wanted| wanted.destination == route.destination));
    (remove, without(wanted, found))
}

/// Why the ranges cannot be used on this machine, in words for the operator.
pub(crate) fn range_problems(
    ranges: &[(&str, IpNet)],
    own_interfaces: &[&str],
    routes: &[MachineRoute],
) -> Vec<String> {
    let overlaps =
        |left: &IpNet, right: &IpNet| left.contains(&right.network()) || right.contains(&left.network());
    let mut problems = Vec::new();
    for (index, (name, range)) in ranges.iter().enumerate() {
        for (other_name, other) in &ranges[index + 1..] {
            if overlaps(range, other) {
                problems
                    .push(format!("{name} {range} and {other_name} {other} overlap: choose ranges apart"));
            }
        }
        for route in routes {
            let foreign =
                route.protocol != ROUTE_PROTOCOL && !own_interfaces.contains(&route.interface.as_str());
            if foreign && route.destination.prefix_len() > 0 && overlaps(range, &route.destination) {
                problems.push(format!(
                    "{name} {range} overlaps the machine's route {} on {}: choose another range for the cluster",
                    route.destination, route.interface
                ));
            }
        }
    }
    problems
}

/// Our table.
pub(crate) fn table() -> Table {
    Table::new(Family::Inet, "orlop-overlay")
}

/// Masquerade of what leaves the cluster, and acceptance of what pods send and get. Replaces the table in one transaction.
pub(crate) fn rules(cluster: IpNet, vxlan: &str) -> Vec<Command> {
    let table = table();
    let from = |negated| Statement::SourceIn { network: cluster, negated };
    let to = |negated| Statement::DestinationIn { network: cluster, negated };
    let accept = || Statement::Verdict(Verdict::Accept);
    let postrouting = vec![
        Rule::from([Statement::DestinationLocal, Statement::Verdict(Verdict::Return)]),
        // A node's own address is no source that a pod on another node could answer through the tunnel.
        Rule::from([
            Statement::OutInterface { name: vxlan.to_owned(), negated: false },
            from(true),
            to(false),
            Statement::Masquerade,
        ]),
        Rule::from([
            from(false),
            to(true),
            Statement::DestinationIn { network: MULTICAST, negated: true },
            Statement::Masquerade,
        ]),
    ];
    let forward = vec![Rule::from([from(false), accept()]), Rule::from([to(false), accept()])];
    vec![
        Command::AddTable(table.clone()),
        Command::DeleteTable(table.clone()),
        Command::AddTable(table.clone()),
        Command::AddChain(
            table.clone(),
            Chain::base("postrouting", ChainKind::Nat, Hook::Postrouting, PRIORITY_SNAT, postrouting),
        ),
        Command::AddChain(
            table,
            Chain::base("forward", ChainKind::Filter, Hook::Forward, PRIORITY_FILTER, forward),
        ),
    ]
}

/// The plugin's configuration.
pub(crate) fn conflist(
    plugin: &str,
    bridge: &str,
    mtu: u32,
    subnets: &[IpNet],
    ipam_dir: &std::path::Path,
) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        "name": super::NETWORK,
        "plugins": [{
            "type": plugin,
            "bridge": bridge,
            "mtu": mtu,
            "subnets": subnets,
            "ipam": {"dataDir": ipam_dir},
            "capabilities": {"portMappings": true},
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(pods: &str, annotations: BTreeMap<String, String>) -> Node {
        Node { pod_cidrs: vec![pods.to_owned()], internal_ips: Vec::new(), flannel: annotations }
    }

    fn mac() -> MacAddress {
        "0e:00:00:00:00:02".parse().unwrap()
    }

    #[test]
    fn annotations_have_flannels_shape_and_are_read_back() {
        let made = annotations(1, mac(), "192.168.0.2".parse().unwrap());
        assert_eq!(
            made["flannel.alpha.coreos.com/backend-data"],
            r#"{"VNI":1,"VtepMAC":"0e:00:00:00:00:02"}"#
        );
        let other = node("10.244.1.0/24", made.clone());
        assert_eq!(announced_mac(&other, 1), Some(mac()));
        assert_eq!(announced_mac(&other, 2), None);
        let mut foreign = made.clone();
        foreign.insert("flannel.alpha.coreos.com/backend-type".into(), "host-gw".into());
        let foreign = node("10.244.2.0/24", foreign);
        let silent = node("10.244.3.0/24", BTreeMap::new());
        let own = node("10.244.0.0/24", made);
        let found =
            peers("own", 1, [("own", &own), ("other", &other), ("foreign", &foreign), ("silent", &silent)]);
        let wanted = Peer {
            pods: "10.244.1.0/24".parse().unwrap(),
            mac: mac(),
            address: "192.168.0.2".parse().unwrap(),
        };
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [wanted]);
    }

    #[test]
    fn a_peer_that_moved_is_replaced_and_one_that_left_is_removed() {
        let peer = |third: u8, last: u8| Peer {
            pods: Ipv4Net::new([10, 244, third, 0].into(), 24).unwrap(),
            mac: MacAddress([0x0e, 0, 0, 0, 0, last]),
            address: [192, 168, 0, last].into(),
        };
        let found = peer_entries(&[peer(1, 1), peer(2, 2)], 7);
        let wanted = peer_entries(&[peer(1, 9), peer(3, 3)], 7);
        let (remove, set) = plan_entries(&found, &wanted);
        let destinations = |entries: &Entries| {
            entries.routes.iter().map(|route| route.destination.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(destinations(&remove), ["10.244.2.0/24"]);
        assert_eq!(destinations(&set), ["10.244.3.0/24"]);
        assert_eq!((remove.neighbours.len(), set.neighbours.len()), (4, 4));
        assert_eq!(plan_entries(&wanted, &wanted), (Entries::default(), Entries::default()));
    }

    #[test]
    fn ranges_that_overlap_are_named() {
        let route = |text: &str, interface: &str, protocol| MachineRoute {
            destination: text.parse().unwrap(),
            interface: interface.to_owned(),
            protocol,
        };
        let ranges = [
            ("pod range", "10.244.0.0/16".parse().unwrap()),
            ("service range", "10.96.0.0/16".parse().unwrap()),
        ];
        let routes = [
            route("0.0.0.0/0", "eth0", 3),
            route("10.244.7.0/24", "eth1", 2),
            route("10.244.0.0/24", "cni0", 2),
            route("10.96.0.0/16", "gone0", ROUTE_PROTOCOL),
            route("10.0.0.0/8", "vpn0", 4),
        ];
        let problems = range_problems(&ranges, &["cni0", "flannel.1"], &routes);
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(problems[0].contains("10.244.7.0/24 on eth1"), "{problems:?}");
        let same = [("a", "10.0.0.0/8".parse().unwrap()), ("b", "10.96.0.0/16".parse().unwrap())];
        assert_eq!(range_problems(&same, &[], &[]).len(), 1);
    }

    #[test]
    fn golden_rules() {
        let text: Vec<String> =
            rules("10.244.0.0/16".parse().unwrap(), "flannel.1").iter().map(ToString::to_string).collect();
        assert_eq!(
            text.join("\n"),
            "add table inet orlop-overlay\n\
             delete table inet orlop-overlay\n\
             add table inet orlop-overlay\n\
             add chain inet orlop-overlay postrouting { type nat hook postrouting priority 100; }\n\
             add rule inet orlop-overlay postrouting fib daddr type local return\n\
             add rule inet orlop-overlay postrouting oifname \"flannel.1\" ip saddr != 10.244.0.0/16 ip daddr 10.244.0.0/16 masquerade fully-random\n\
             add rule inet orlop-overlay postrouting ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random\n\
             add chain inet orlop-overlay forward { type filter hook forward priority 0; }\n\
             add rule inet orlop-overlay forward ip saddr 10.244.0.0/16 accept\n\
             add rule inet orlop-overlay forward ip daddr 10.244.0.0/16 accept"
        );
    }
}
