//! ADD: address, veth pair, routes. What fails is undone in reverse.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use orlop_netlink::namespace::{self, Namespace};
use orlop_netlink::route::{Address, AddressScope, Link, LinkChange, LinkKind, MacAddress, Route};
use orlop_netlink::{NetlinkError, RouteSocket, sysctl};

use super::answer::{Attached, Interface};
use super::error::{CniError, code};
use super::request::Configuration;
use super::{host_interface, route_socket};
use crate::hostports;
use crate::leases::{self, Owner};

/// `rtm_protocol` of what boot scripts and plugins set.
const PROTOCOL_BOOT: u8 = 3;

pub(super) fn add(configuration: &Configuration, owner: &Owner, netns: &Path) -> Result<Attached, CniError> {
    let pod =
        Namespace::open(netns).map_err(|error| CniError::from_error(code::UNKNOWN_CONTAINER, &error))?;
    if pod.identity() == Namespace::current()?.identity() {
        return Err(CniError::new(code::INVALID_ENVIRONMENT, "CNI_NETNS is the namespace of the host"));
    }
    let leases = configuration.leases();
    let mut addresses = Vec::new();
    for subnet in &configuration.subnets {
        match leases.acquire(*subnet, owner) {
            Ok(address) => addresses.push((single(address), gateway(*subnet)?)),
            Err(error) => {
                // What the first family got is given back; the error that matters is the first one.
                let _ = leases.release(owner);
                return Err(error.into());
            }
        }
    }
    let attached = attach(configuration, owner, &pod, &addresses, netns).and_then(|attached| {
        hostports::open(&configuration.runtime_config.port_mappings, &addresses)?;
        Ok(attached)
    });
    attached.inspect_err(|_| {
        let given: Vec<IpAddr> = addresses.iter().map(|(network, _)| network.addr()).collect();
        let _ = hostports::close(&given);
        let _ = route_socket().and_then(|mut host| Ok(host.delete_link(&host_interface(owner))?));
        let _ = leases.release(owner);
    })
}

fn attach(
    configuration: &Configuration,
    owner: &Owner,
    pod: &Namespace,
    addresses: &[(IpNet, IpAddr)],
    netns: &Path,
) -> Result<Attached, CniError> {
    let mut host = route_socket()?;
    let bridge = ensure_bridge(&mut host, configuration)?;
    let name = host_interface(owner);
    let mtu = (configuration.mtu > 0).then_some(configuration.mtu);
    let change = LinkChange { up: Some(true), master: Some(bridge.index), mtu, address: None };
    let kind = LinkKind::Veth { peer: &owner.interface, peer_address: pod_mac(addresses), namespace: pod };
    match host.add_link(&name, &kind, &change) {
        Err(error) if error.is_exists() => {
            // Either a cut-off ADD left its pair, or the pod has an interface of that name: only the first can be replaced.
            if host.delete_link(&name).is_err() {
                return Err(CniError::from_error(code::NETWORK_FAILURE, &error));
            }
            host.add_link(&name, &kind, &change)?;
        }
        other => other?,
    }
    let links = host.links()?;
    let near = links.into_iter().find(|link| link.name == name).ok_or_else(|| missing(&name))?;
    host.set_hairpin(near.index, true)?;
    let far = namespace::inside(pod, || configure(&owner.interface, addresses))??;
    Ok(Attached {
        bridge: interface(&bridge),
        host: interface(&near),
        pod: interface(&far),
        sandbox: netns.display().to_string(),
        addresses: addresses.to_vec(),
    })
}

/// The pod's side; runs inside its namespace.
fn configure(name: &str, addresses: &[(IpNet, IpAddr)]) -> Result<Link, CniError> {
    let mut socket = RouteSocket::open()?;
    let links = socket.links()?;
    let link = links.iter().find(|link| link.name == name).cloned().ok_or_else(|| missing(name))?;
    if let Some(loopback) = links.iter().find(|link| link.loopback && !link.up) {
        socket.change_link(loopback.index, &LinkChange { up: Some(true), ..LinkChange::default() })?;
    }
    if addresses.iter().any(|(network, _)| matches!(network, IpNet::V6(_))) {
        // The address is unique by its lease; waiting for duplicate address detection would only delay the pod.
        sysctl::write(&format!("net/ipv6/conf/{name}/accept_dad"), "0")?;
        sysctl::write(&format!("net/ipv6/conf/{name}/accept_ra"), "0")?;
    }
    socket.change_link(link.index, &LinkChange { up: Some(true), ..LinkChange::default() })?;
    for (network, gateway) in addresses {
        let address = Address { link: link.index, network: *network, scope: AddressScope::Universe };
        socket.replace_address(&address)?;
        let direct = Route {
            destination: single(*gateway),
            gateway: None,
            link: link.index,
            source: None,
            onlink: false,
            protocol: PROTOCOL_BOOT,
        };
        socket.replace_route(&direct)?;
        let default = Route { destination: everything(*network), gateway: Some(*gateway), ..direct };
        socket.replace_route(&default)?;
    }
    Ok(link)
}

/// The bridge with its addresses. The overlay made it with a stable Ethernet address; alone, the plugin makes it itself.
pub(crate) fn ensure_bridge(
    socket: &mut RouteSocket,
    configuration: &Configuration,
) -> Result<Link, CniError> {
    let name = &configuration.bridge;
    if let Some(link) = socket.link(name)?
        && link.up
    {
        return Ok(link);
    }
    let mtu = (configuration.mtu > 0).then_some(configuration.mtu);
    let address = configuration.subnets.iter().find_map(|subnet| leases::gateway(*subnet).and_then(mac_of));
    let change = LinkChange { up: Some(true), mtu, address, master: None };
    match socket.add_link(name, &LinkKind::Bridge, &change) {
        Err(error) if error.is_exists() => {}
        other => other?,
    }
    let link = socket.link(name)?.ok_or_else(|| missing(name))?;
    socket.change_link(link.index, &LinkChange { up: Some(true), ..LinkChange::default() })?;
    for subnet in &configuration.subnets {
        let network = IpNet::new(gateway(*subnet)?, subnet.prefix_len())
            .expect("the prefix length is that of a parsed range");
        socket.replace_address(&Address { link: link.index, network, scope: AddressScope::Universe })?;
        match subnet {
            IpNet::V4(_) => sysctl::write("net/ipv4/ip_forward", "1")?,
            IpNet::V6(_) => sysctl::write("net/ipv6/conf/all/forwarding", "1")?,
        }
    }
    Ok(link)
}

/// The Ethernet address that belongs to an IPv4 address (flannel's and the bridge plugin's scheme): an address that is given out again
/// brings its old entry in the neighbours' tables along.
pub(crate) fn mac_of(address: IpAddr) -> Option<MacAddress> {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            Some(MacAddress([0x0a, 0x58, a, b, c, d]))
        }
        IpAddr::V6(_) => None,
    }
}

fn pod_mac(addresses: &[(IpNet, IpAddr)]) -> Option<MacAddress> {
    addresses.iter().find_map(|(network, _)| mac_of(network.addr()))
}

fn gateway(subnet: IpNet) -> Result<IpAddr, CniError> {
    let missing =
        || CniError::new(code::INVALID_CONFIGURATION, format!("subnet {subnet} has no room for a gateway"));
    leases::gateway(subnet).ok_or_else(missing)
}

pub(super) fn single(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

pub(super) fn everything(network: IpNet) -> IpNet {
    IpNet::new(if network.addr().is_ipv4() { [0; 4].into() } else { [0; 16].into() }, 0)
        .expect("0 is a prefix length")
}

pub(super) fn missing(name: &str) -> CniError {
    let error = NetlinkError::missing_link(name);
    CniError::from_error(code::NETWORK_FAILURE, &error)
}

fn interface(link: &Link) -> Interface {
    Interface { name: link.name.clone(), mac: link.address, mtu: link.mtu }
}
