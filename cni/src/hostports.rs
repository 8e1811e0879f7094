//! Host ports of pods (`portMappings`): tables `ip orlop-hostports` and `ip6 orlop-hostports`, made by the first pod that needs one.
//!
//! A host port is one element of a map from protocol and port (with a particular host address: from all three) to the pod's address
//! and port. So opening is one transaction, and closing needs only the pod's address. Not served is 127.0.0.1.

use std::net::IpAddr;

use ipnet::IpNet;
use orlop_netlink::nft::NftSocket;
use orlop_nft::{
    Chain, ChainKind, Command, DataType, Datum, Element, Hook, IpVersion, PRIORITY_DNAT, PRIORITY_SNAT, Rule,
    Selector, Set, Statement, Table, Tuple, Value, Verdict,
};

use crate::plugin::{CniError, PortMapping, code};

const VERSIONS: [IpVersion; 2] = [IpVersion::V4, IpVersion::V6];

/// The tables that hold host ports.
pub fn tables() -> Vec<Table> {
    VERSIONS.iter().map(|version| table(*version)).collect()
}

fn table(version: IpVersion) -> Table {
    Table::new(version.family(), "orlop-hostports")
}

struct Sets {
    everywhere: Set,
    particular: Set,
    hairpin: Set,
}

fn sets(version: IpVersion) -> Sets {
    let address = version.data_type();
    let target = [address, DataType::Port];
    Sets {
        everywhere: Set::map("hostports", &[DataType::Protocol, DataType::Port], &target),
        particular: Set::map("hostports-at", &[address, DataType::Protocol, DataType::Port], &target),
        hairpin: Set::plain("hairpin", &[address, address]),
    }
}

/// The table with its rules and empty maps.
fn skeleton(version: IpVersion) -> Vec<Command> {
    let table = table(version);
    let Sets { everywhere, particular, hairpin } = sets(version);
    let loopback = match version {
        IpVersion::V4 => IpNet::new([127, 0, 0, 0].into(), 8),
        IpVersion::V6 => IpNet::new([0, 0, 0, 0, 0, 0, 0, 1].into(), 128),
    };
    let loopback = loopback.expect("a literal network");
    let port = vec![Selector::Protocol, Selector::DestinationPort];
    let mut at = vec![Selector::DestinationAddress(version)];
    at.extend(&port);
    let rules = vec![
        Rule::from([Statement::DnatByMap { version, key: at, map: particular.name.clone() }]),
        Rule::from([
            Statement::DestinationIn { network: loopback, negated: true },
            Statement::DestinationLocal,
            Statement::DnatByMap { version, key: port, map: everywhere.name.clone() },
        ]),
    ];
    let to_rules = || vec![Rule::from([Statement::Verdict(Verdict::Goto("hostports".to_owned()))])];
    let pair = vec![Selector::SourceAddress(version), Selector::DestinationAddress(version)];
    let masquerade =
        vec![Rule::from([Statement::InSet { key: pair, set: hairpin.name.clone() }, Statement::Masquerade])];
    let nat = |name, hook, priority, rules| Chain::base(name, ChainKind::Nat, hook, priority, rules);
    let chains = [
        Chain::regular("hostports", rules),
        nat("prerouting", Hook::Prerouting, PRIORITY_DNAT, to_rules()),
        nat("output", Hook::Output, PRIORITY_DNAT, to_rules()),
        nat("postrouting", Hook::Postrouting, PRIORITY_SNAT, masquerade),
    ];
    let mut commands = vec![Command::CreateTable(table.clone())];
    commands.extend([everywhere, particular, hairpin].map(|set| Command::AddSet(table.clone(), set)));
    commands.extend(chains.map(|chain| Command::AddChain(table.clone(), chain)));
    commands
}

/// Opens the host ports of a pod.
///
/// # Errors
/// Code 7 for a mapping that makes no sense, 100 when the kernel refuses (a port that another pod has, for example).
pub fn open(mappings: &[PortMapping], addresses: &[(IpNet, IpAddr)]) -> Result<(), CniError> {
    let mappings: Vec<&PortMapping> = mappings.iter().filter(|mapping| mapping.host_port != 0).collect();
    if mappings.is_empty() {
        return Ok(());
    }
    let mut nft = NftSocket::open()?;
    for (network, _) in addresses {
        let pod = network.addr();
        let version = IpVersion::of(pod);
        let commands = plan_open(version, &mappings, pod)?;
        match nft.apply(&skeleton(version)) {
            Err(error) if error.is_exists() => {}
            other => other?,
        }
        nft.apply(&commands).map_err(|error| {
            if error.is_busy() || error.is_exists() {
                let ports: Vec<String> = mappings
                    .iter()
                    .map(|mapping| format!("{}/{}", mapping.host_port, mapping.protocol))
                    .collect();
                let text = format!("a host port is taken by another pod (wanted: {})", ports.join(", "));
                CniError::new(code::NETWORK_FAILURE, text)
            } else {
                error.into()
            }
        })?;
    }
    Ok(())
}

fn plan_open(version: IpVersion, mappings: &[&PortMapping], pod: IpAddr) -> Result<Vec<Command>, CniError> {
    let sets = sets(version);
    let (mut everywhere, mut particular) = (Vec::new(), Vec::new());
    for mapping in mappings {
        let protocol = Value::Protocol(match mapping.protocol.to_lowercase().as_str() {
            "tcp" => 6,
            "udp" => 17,
            "sctp" => 132,
            other => {
                let text = format!("portMappings: protocol {other:?} is not tcp, udp or sctp");
                return Err(CniError::new(code::INVALID_CONFIGURATION, text));
            }
        });
        let port = Value::Port(mapping.host_port);
        let target = Tuple::from([Value::from(pod), Value::Port(mapping.container_port)]);
        match mapping.particular_host_ip()? {
            None => everywhere.push(Element::value([protocol, port], target)),
            Some(host) if IpVersion::of(host) == version => {
                particular.push(Element::value([host.into(), protocol, port], target));
            }
            Some(_) => {}
        }
    }
    let table = table(version);
    let hairpin = vec![Element::key([Value::from(pod), Value::from(pod)])];
    let lists = [(sets.everywhere, everywhere), (sets.particular, particular), (sets.hairpin, hairpin)];
    let filled = lists.into_iter().filter(|(_, elements)| !elements.is_empty());
    Ok(filled.map(|(set, elements)| Command::AddElements(table.clone(), set, elements)).collect())
}

/// Closes the host ports that lead to these addresses; none is fine.
///
/// # Errors
/// When the kernel refuses.
pub fn close(addresses: &[IpAddr]) -> Result<(), CniError> {
    for version in VERSIONS {
        let pods: Vec<Value> = addresses
            .iter()
            .filter(|address| IpVersion::of(**address) == version)
            .map(|address| (*address).into())
            .collect();
        if pods.is_empty() {
            continue;
        }
        let mut nft = NftSocket::open()?;
        let table = table(version);
        let Sets { everywhere, particular, hairpin } = sets(version);
        let mut commands = Vec::new();
        for set in [everywhere, particular, hairpin] {
            let Some(elements) = nft.elements(&table, &set)? else {
                continue;
            };
            let leads_there = |element: &Element| match &element.datum {
                Some(Datum::Values(target)) => target.0.first().is_some_and(|address| pods.contains(address)),
                Some(Datum::Verdict(_)) => false,
                None => element.key.0.first().is_some_and(|address| pods.contains(address)),
            };
            let gone: Vec<Element> =
                elements.into_iter().filter(leads_there).map(|element| Element::key(element.key)).collect();
            if !gone.is_empty() {
                commands.push(Command::DeleteElements(table.clone(), set, gone));
            }
        }
        match nft.apply(&commands) {
            // A parallel DEL of the same pod was first.
            Err(error) if error.is_missing() => {}
            other => other?,
        }
    }
    Ok(())
}
