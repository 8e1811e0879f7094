//! The layout of our tables.
//!
//! ```text
//!   prerouting, output --> services: map services (address, protocol, port) or nodeports (protocol, port)
//!       --> [masquerade-] [local-] pick-N --random--> slot-I: dnat to map endpoints-I (same key) --> address and port
//! ```
//!
//! Chains depend on the number of endpoints, never on the Service: a Service is some elements. A new endpoint is one element, and
//! removing one moves at most one other.

mod chains;

use std::net::IpAddr;

use ipnet::IpNet;
use orlop_nft::{
    Chain, ChainKind, Command, DataType, Hook, IpVersion, PRIORITY_DNAT, PRIORITY_FILTER, PRIORITY_SNAT,
    Rule, Selector, Set, Statement, Table, Value, Verdict,
};

pub(crate) use chains::{ChainId, List, Space, affinity};

use crate::model::{FrontendKey, Place};
use orlop_kube::network::Protocol;

/// kube-proxy's masquerade bit: others (flannel) know it and leave such packets alone.
pub(crate) const MASQUERADE_MARK: u32 = 0x4000;

/// What the rules need to know of the node, per IP version.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) version: IpVersion,
    /// Pods of the cluster.
    pub(crate) cluster: Option<IpNet>,
    /// Services of the cluster: what is in here and no Service is dropped.
    pub(crate) services: Option<IpNet>,
    pub(crate) masquerade_all: bool,
    /// Where node ports answer; empty is every address but loopback.
    pub(crate) node_port_networks: Vec<IpNet>,
    /// Addresses served by this node itself: never translated, never refused.
    pub(crate) node_served: Vec<IpAddr>,
}

/// The table of an IP version.
pub(crate) fn table(version: IpVersion) -> Table {
    Table::new(version.family(), "orlop-proxy")
}

/// The table that serves while [`table`] is made anew.
pub(crate) fn stand_in(version: IpVersion) -> Table {
    Table::new(version.family(), "orlop-proxy-stand-in")
}

/// `address . protocol . port`
fn address_key(version: IpVersion) -> Vec<Selector> {
    vec![Selector::DestinationAddress(version), Selector::Protocol, Selector::DestinationPort]
}

const NODE_PORT_KEY: [Selector; 2] = [Selector::Protocol, Selector::DestinationPort];

fn types(key: &[Selector]) -> Vec<DataType> {
    key.iter().map(|selector| selector.data_type()).collect()
}

/// Sets that are always there.
pub(crate) struct StaticSets {
    pub(crate) node_served: Set,
    pub(crate) cluster_addresses: Set,
    pub(crate) hairpin: Set,
}

pub(crate) fn static_sets(version: IpVersion) -> StaticSets {
    let address = version.data_type();
    StaticSets {
        node_served: Set::plain("node-served", &[address]),
        cluster_addresses: Set::plain("cluster-ips", &[address]),
        hairpin: Set::plain("hairpin", &[address, address]),
    }
}

/// The map from a key to the chain that serves it.
pub(crate) fn dispatch(version: IpVersion, list: List) -> Set {
    let name = match (list.inside, list.space) {
        (false, Space::Address) => "services",
        (false, Space::NodePort) => "nodeports",
        (true, Space::Address) => "inside-services",
        (true, Space::NodePort) => "inside-nodeports",
    };
    Set::verdicts(name, &types(&list.space.key(version)))
}

/// The map from a key to what becomes of packets without an endpoint.
pub(crate) fn refused(version: IpVersion, space: Space) -> Set {
    let name = match space {
        Space::Address => "no-endpoint-services",
        Space::NodePort => "no-endpoint-nodeports",
    };
    Set::verdicts(name, &types(&space.key(version)))
}

/// The map from a key to the endpoint in a slot.
pub(crate) fn endpoints(version: IpVersion, list: List, index: usize) -> Set {
    let name = format!("{}endpoints-{index}", list.prefix());
    Set::map(name, &types(&list.space.key(version)), &[version.data_type(), DataType::Port])
}

/// What a set of a table is for, by its name: the endpoints or the remembered clients of a slot.
pub(crate) fn slot_set(name: &str) -> Option<SlotSet> {
    let index = |rest: &str, kind: &str| rest.strip_prefix(kind)?.parse().ok();
    [Space::Address, Space::NodePort]
        .into_iter()
        .flat_map(|space| [false, true].map(|inside| List { space, inside }))
        .find_map(|list| {
            let rest = name.strip_prefix(list.prefix())?;
            match (index(rest, "endpoints-"), index(rest, "affinity-")) {
                (Some(index), _) => Some(SlotSet::Endpoints(list, index)),
                (None, Some(index)) => Some(SlotSet::Clients(list, index)),
                (None, None) => None,
            }
        })
}

/// See [`slot_set`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotSet {
    Endpoints(List, usize),
    Clients(List, usize),
}

/// The key of a front end as set elements have it.
pub(crate) fn element_key(key: &FrontendKey) -> Vec<Value> {
    let protocol = Value::Protocol(match key.protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    });
    match key.place {
        Place::Address(address) => vec![address.into(), protocol, Value::Port(key.port)],
        Place::NodePort(_) => vec![protocol, Value::Port(key.port)],
    }
}

/// The parts of a table that do not depend on Services, in the order that references need.
pub(crate) fn skeleton(settings: &Settings) -> Vec<Command> {
    let version = settings.version;
    let table = table(version);
    let sets = static_sets(version);
    let mut commands = vec![Command::AddTable(table.clone())];
    for set in [sets.node_served, sets.cluster_addresses, sets.hairpin] {
        commands.push(Command::AddSet(table.clone(), set));
    }
    for space in [Space::Address, Space::NodePort] {
        for inside in [false, true] {
            commands.push(Command::AddSet(table.clone(), dispatch(version, List { space, inside })));
        }
        commands.push(Command::AddSet(table.clone(), refused(version, space)));
    }
    let nat = |name: &str, hook, priority, rules| Chain::base(name, ChainKind::Nat, hook, priority, rules);
    let filter = |name: &str, hook, rules| Chain::base(name, ChainKind::Filter, hook, PRIORITY_FILTER, rules);
    let to = |chain: &str| Statement::Verdict(Verdict::Goto(chain.to_owned()));
    let unanswered = || vec![Rule::from([Statement::ConnectionNew, to("unanswered")])];
    let chains = [
        Chain::regular("services", services(settings)),
        nat("nat-prerouting", Hook::Prerouting, PRIORITY_DNAT, vec![Rule::from([to("services")])]),
        nat("nat-output", Hook::Output, PRIORITY_DNAT, vec![Rule::from([to("services")])]),
        nat("nat-postrouting", Hook::Postrouting, PRIORITY_SNAT, postrouting(version)),
        // A reset is not rate-limited as ICMP is: a client that tries again and again is refused each time.
        Chain::regular(
            "reject-service",
            vec![Rule::from([Statement::ResetTcp]), Rule::from([Statement::Reject])],
        ),
        Chain::regular("unanswered", refusals(settings)),
        filter("filter-input", Hook::Input, unanswered()),
        filter("filter-forward", Hook::Forward, unanswered()),
        filter("filter-output", Hook::Output, unanswered()),
    ];
    commands.extend(chains.map(|chain| Command::AddChain(table.clone(), chain)));
    commands
}

fn in_set(key: Vec<Selector>, set: &str) -> Statement {
    Statement::InSet { key, set: set.to_owned() }
}

fn verdict_map(key: Vec<Selector>, map: &Set) -> Statement {
    Statement::VerdictMap { key, map: map.name.clone() }
}

/// Conditions under which a packet is for a node port, one list for each alternative.
fn node_port_conditions(settings: &Settings) -> Vec<Vec<Statement>> {
    let within = |network: &IpNet, negated| Statement::DestinationIn { network: *network, negated };
    if settings.node_port_networks.is_empty() {
        let loopback = match settings.version {
            IpVersion::V4 => IpNet::new([127, 0, 0, 0].into(), 8),
            IpVersion::V6 => IpNet::new([0, 0, 0, 0, 0, 0, 0, 1].into(), 128),
        };
        let loopback = loopback.expect("a literal network");
        return vec![vec![within(&loopback, true), Statement::DestinationLocal]];
    }
    settings
        .node_port_networks
        .iter()
        .map(|network| vec![within(network, false), Statement::DestinationLocal])
        .collect()
}

fn services(settings: &Settings) -> Vec<Rule> {
    let version = settings.version;
    let destination = || vec![Selector::DestinationAddress(version)];
    let mut rules =
        vec![Rule::from([in_set(destination(), "node-served"), Statement::Verdict(Verdict::Return)])];
    let mark = [in_set(destination(), "cluster-ips"), Statement::MarkSet(MASQUERADE_MARK)];
    if settings.masquerade_all {
        rules.push(Rule::from(mark));
    } else if let Some(network) = settings.cluster {
        // A client outside the cluster would get the answer from an address it never called.
        let [set, mark] = mark;
        rules.push(Rule::from([Statement::SourceIn { network, negated: true }, set, mark]));
    }
    let outside = |space| List { space, inside: false };
    rules.push(Rule::from([verdict_map(address_key(version), &dispatch(version, outside(Space::Address)))]));
    for mut condition in node_port_conditions(settings) {
        condition.push(verdict_map(NODE_PORT_KEY.to_vec(), &dispatch(version, outside(Space::NodePort))));
        rules.push(Rule(condition));
    }
    rules
}

fn postrouting(version: IpVersion) -> Vec<Rule> {
    let pair = vec![Selector::SourceAddress(version), Selector::DestinationAddress(version)];
    vec![
        // An endpoint that reached itself through its Service must not see its own address as the client. Only what was translated: a
        // connection of a host to itself that is older than these rules would lose its port.
        Rule::from([Statement::ConnectionTranslated, in_set(pair, "hairpin"), Statement::Masquerade]),
        Rule::from([
            Statement::MarkHas { bits: MASQUERADE_MARK, negated: true },
            Statement::Verdict(Verdict::Return),
        ]),
        Rule::from([Statement::MarkClear(MASQUERADE_MARK)]),
        Rule::from([Statement::Masquerade]),
    ]
}

/// What is new and was not translated: Services without endpoints, unknown ports and addresses.
fn refusals(settings: &Settings) -> Vec<Rule> {
    let version = settings.version;
    let destination = || vec![Selector::DestinationAddress(version)];
    let mut rules = vec![
        Rule::from([in_set(destination(), "node-served"), Statement::Verdict(Verdict::Return)]),
        Rule::from([verdict_map(address_key(version), &refused(version, Space::Address))]),
    ];
    for mut condition in node_port_conditions(settings) {
        condition.push(verdict_map(NODE_PORT_KEY.to_vec(), &refused(version, Space::NodePort)));
        rules.push(Rule(condition));
    }
    rules.push(Rule::from([
        in_set(destination(), "cluster-ips"),
        Statement::Verdict(Verdict::Goto("reject-service".to_owned())),
    ]));
    if let Some(network) = settings.services {
        rules.push(Rule::from([
            Statement::DestinationIn { network, negated: false },
            Statement::Verdict(Verdict::Drop),
        ]));
    }
    rules
}
