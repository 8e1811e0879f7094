use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use orlop_kube::Key;
use orlop_kube::network::{Endpoint, EndpointSlice, Service, ServicePort};

use super::{Data, Zone};

/// The version of the specification that is served (DNS specification 2.2).
const SPECIFICATION: &str = "1.1.0";

/// A Service with the slices that belong to it.
#[derive(Clone, Debug)]
pub struct ServiceRecord {
    /// Namespace and name.
    pub key: Key,
    /// The Service.
    pub service: Arc<Service>,
    /// Its slices.
    pub slices: Vec<Arc<EndpointSlice>>,
}

/// Builds the zone of `domain`. `own` are the addresses that the zone is served on.
pub fn build(domain: &str, own: &[IpAddr], services: &[ServiceRecord]) -> Zone {
    let domain = domain.to_lowercase();
    let mut zone = Zone { domain: domain.clone(), names: HashMap::new(), reverse: HashMap::new() };
    let server = format!("ns.dns.{domain}");
    insert(&mut zone, domain.clone(), Data::Authority);
    insert(&mut zone, domain.clone(), Data::NameServer(server.clone()));
    insert(&mut zone, format!("dns-version.{domain}"), Data::Text(SPECIFICATION.to_owned()));
    ensure(&mut zone, &format!("svc.{domain}"));
    for address in own {
        insert(&mut zone, server.clone(), Data::Address(*address));
    }
    for record in services {
        add(&mut zone, record);
    }
    zone
}

fn add(zone: &mut Zone, record: &ServiceRecord) {
    let name = format!("{}.{}.svc.{}", record.key.name, record.key.namespace, zone.domain);
    let service = &record.service;
    if let Some(target) = service.external_name.as_ref().filter(|_| service.kind == "ExternalName") {
        let target = target.trim_end_matches('.').to_lowercase();
        // An address is a valid externalName, but no name that a CNAME could hold.
        match target.parse::<IpAddr>() {
            Ok(address) => insert(zone, name, Data::Address(address)),
            Err(_) => insert(zone, name, Data::Alias(target)),
        }
        return;
    }
    if service.headless {
        add_headless(zone, &name, record);
    } else {
        add_cluster(zone, &name, service);
    }
}

/// A Service with a cluster address (DNS specification 2.3).
fn add_cluster(zone: &mut Zone, name: &str, service: &Service) {
    for address in &service.cluster_ips {
        insert(zone, name.to_owned(), Data::Address(*address));
        zone.reverse.entry(reverse_name(*address)).or_default().push(Data::Pointer(name.to_owned()));
    }
    let named: Vec<&ServicePort> = service.ports.iter().filter(|port| !port.name.is_empty()).collect();
    for port in &named {
        let data = Data::Service { weight: weight(1), port: port.port, target: name.to_owned() };
        insert(zone, format!("_{}._{}.{name}", port.name, port.protocol.name()), data);
    }
    for port in &service.ports {
        let data = Data::Service { weight: weight(service.ports.len()), port: port.port, target: name.to_owned() };
        insert(zone, name.to_owned(), data);
    }
}

/// A headless Service: its ready endpoints (DNS specification 2.4). Without any, the name does not exist.
fn add_headless(zone: &mut Zone, name: &str, record: &ServiceRecord) {
    let mut ports: BTreeMap<(String, &'static str), BTreeSet<(u16, String)>> = BTreeMap::new();
    for slice in &record.slices {
        let published = |endpoint: &&Endpoint| endpoint.ready || record.service.publish_not_ready;
        for endpoint in slice.endpoints.iter().filter(published) {
            for address in &endpoint.addresses {
                let target = format!("{}.{name}", endpoint_label(endpoint, *address));
                insert(zone, name.to_owned(), Data::Address(*address));
                insert(zone, target.clone(), Data::Address(*address));
                let pointers = zone.reverse.entry(reverse_name(*address)).or_default();
                if endpoint.hostname.is_some() || pointers.is_empty() {
                    pointers.push(Data::Pointer(target.clone()));
                }
                for port in &slice.ports {
                    let key = (port.name.clone(), port.protocol.name());
                    ports.entry(key).or_default().insert((port.port, target.clone()));
                }
            }
        }
    }
    for ((port, protocol), targets) in ports {
        let share = weight(targets.len());
        for (number, target) in targets {
            let data = Data::Service { weight: share, port: number, target };
            if !port.is_empty() {
                insert(zone, format!("_{port}._{protocol}.{name}"), data.clone());
            }
            insert(zone, name.to_owned(), data);
        }
    }
}

/// Weights of one name add up to about 100, as clients of SRV expect shares.
fn weight(count: usize) -> u16 {
    u16::try_from(100 / count.max(1)).unwrap_or(1).max(1)
}

fn endpoint_label(endpoint: &Endpoint, address: IpAddr) -> String {
    match &endpoint.hostname {
        Some(hostname) => hostname.to_lowercase(),
        None => address.to_string().replace(['.', ':'], "-"),
    }
}

fn insert(zone: &mut Zone, name: String, data: Data) {
    if let Some((_, parent)) = name.split_once('.') {
        ensure(zone, parent);
    }
    let entry = zone.names.entry(name).or_default();
    if !entry.contains(&data) {
        entry.push(data);
    }
}

/// Makes a name exist, and every name between it and the zone (RFC 8020).
fn ensure(zone: &mut Zone, name: &str) {
    let mut name = name;
    while name.len() >= zone.domain.len() && !zone.names.contains_key(name) {
        zone.names.insert(name.to_owned(), Vec::new());
        let Some((_, parent)) = name.split_once('.') else { return };
        name = parent;
    }
}

/// The name of a PTR record (RFC 1035 3.5, RFC 3596 2.5).
pub(super) fn reverse_name(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(address) => {
            let nibbles = address.octets().into_iter().rev().flat_map(|byte| [byte & 15, byte >> 4]);
            let mut name: String = nibbles.map(|nibble| format!("{nibble:x}.")).collect();
            name.push_str("ip6.arpa");
            name
        }
    }
}
