//! Makes the kernel and the files be as planned. Blocking; every step may be repeated.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use ipnet::IpNet;
use orlop_netlink::nft::NftSocket;
use orlop_netlink::route::{
    Address, AddressScope, Link, LinkChange, LinkKind, MacAddress, NeighbourTable, Route, VxlanSpec,
};
use orlop_netlink::{RouteSocket, sysctl};

use super::plan::{self, Entries, MachineRoute, Peer};
use super::{CONFLIST, NETWORK, OverlayConfig};
use crate::leases::{self, Leases};
use crate::plugin;

/// An ADD has its address this long before its interface at most; older leases without one are left over.
const LEASE_AGE: Duration = Duration::from_secs(60);
const ETHERNET_MTU: u32 = 1500;

/// What the node's network should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) subnets: Vec<IpNet>,
    pub(super) mac: MacAddress,
    pub(super) peers: BTreeSet<Peer>,
}

/// What came out.
#[derive(Clone, Debug)]
pub(super) struct Applied {
    /// The VXLAN interface's address; `None` when the kernel has no VXLAN.
    pub(super) mac: Option<MacAddress>,
    pub(super) mtu: u32,
}

/// Refuses ranges that would cut the machine off from something it reaches now.
pub(super) fn check_ranges(config: &OverlayConfig) -> anyhow::Result<()> {
    let mut socket = RouteSocket::open()?;
    let links = socket.links()?;
    let name = |index| links.iter().find(|link| link.index == index).map_or("?", |link| link.name.as_str());
    let loopback = |index| links.iter().any(|link| link.index == index && link.loopback);
    let routes: Vec<MachineRoute> = socket
        .routes()?
        .into_iter()
        .filter(|route| !loopback(route.link))
        .map(|route| MachineRoute {
            destination: route.destination,
            interface: name(route.link).to_owned(),
            protocol: route.protocol,
        })
        .collect();
    let ranges = [
        ("the pod range (clusterCidr)", config.cluster_cidr),
        ("the service range (serviceCidr)", config.service_cidr),
    ];
    let own = [config.bridge.as_str(), &config.vxlan_name()];
    let problems = plan::range_problems(&ranges, &own, &routes);
    anyhow::ensure!(problems.is_empty(), "{}", problems.join("; "));
    Ok(())
}

/// Brings everything into the wanted state, then tells the runtime by the conflist.
pub(super) fn apply(config: &OverlayConfig, wanted: &Wanted) -> anyhow::Result<Applied> {
    let mut socket = RouteSocket::open()?;
    sysctl::write("net/ipv4/ip_forward", "1")?;
    if wanted.subnets.iter().any(|subnet| matches!(subnet, IpNet::V6(_))) {
        sysctl::write("net/ipv6/conf/all/forwarding", "1")?;
    }
    let lower = lower_link(&mut socket, config)?;
    let vxlan = match ensure_vxlan(&mut socket, config, wanted, lower.as_ref()) {
        Ok(link) => Some(link),
        Err(error)
            if error
                .downcast_ref::<orlop_netlink::NetlinkError>()
                .is_some_and(orlop_netlink::NetlinkError::is_unsupported) =>
        {
            tracing::warn!(
                error = format!("{error:#}"),
                "this kernel has no VXLAN (CONFIG_VXLAN): pods on other nodes cannot be reached, this node alone works"
            );
            None
        }
        Err(error) => return Err(error),
    };
    let below =
        lower.as_ref().map_or(ETHERNET_MTU, |link| if link.loopback { ETHERNET_MTU } else { link.mtu });
    let overhead = if vxlan.is_some() { plan::VXLAN_OVERHEAD_BYTES } else { 0 };
    let mtu = config.mtu.unwrap_or_else(|| below.saturating_sub(overhead));
    let bridge = ensure_bridge(&mut socket, config, &wanted.subnets, mtu)?;
    service_route(&mut socket, config, &wanted.subnets, &bridge)?;
    if let Some(vxlan) = &vxlan {
        ensure_peers(&mut socket, vxlan, &wanted.peers)?;
    }
    NftSocket::open()?.apply(&plan::rules(config.cluster_cidr, &config.vxlan_name()))?;
    let conflist =
        plan::conflist(&config.plugin_type, &config.bridge, mtu, &wanted.subnets, &config.ipam_dir);
    write_atomically(&config.cni_conf_dir, CONFLIST, &format!("{conflist:#}\n"))?;
    Ok(Applied { mac: vxlan.and_then(|link| link.address), mtu })
}

/// The interface of the node's address (or the configured one).
fn lower_link(socket: &mut RouteSocket, config: &OverlayConfig) -> anyhow::Result<Option<Link>> {
    let links = socket.links()?;
    if let Some(name) = &config.interface {
        let found = links.into_iter().find(|link| &link.name == name);
        return Ok(Some(found.with_context(|| format!("the configured interface {name} does not exist"))?));
    }
    let node_ip = IpAddr::V4(config.node_ip);
    let address = socket.addresses()?.into_iter().find(|address| address.network.addr() == node_ip);
    Ok(address.and_then(|address| links.into_iter().find(|link| link.index == address.link)))
}

fn ensure_vxlan(
    socket: &mut RouteSocket,
    config: &OverlayConfig,
    wanted: &Wanted,
    lower: Option<&Link>,
) -> anyhow::Result<Link> {
    let name = config.vxlan_name();
    let spec = VxlanSpec {
        vni: config.vni,
        port: config.port,
        local: config.node_ip,
        lower: lower.map_or(0, |link| link.index),
    };
    let below = lower.map_or(ETHERNET_MTU, |link| link.mtu);
    let mtu = Some(config.mtu.unwrap_or_else(|| below.saturating_sub(plan::VXLAN_OVERHEAD_BYTES)));
    if let Some(found) = socket.link(&name)?
        && found.vxlan != Some(spec)
    {
        tracing::info!(
            interface = name,
            "replacing the VXLAN interface: its settings are not the configured ones"
        );
        socket.delete_link(&name)?;
    }
    let change = LinkChange { up: Some(true), mtu, address: Some(wanted.mac), master: None };
    match socket.add_link(&name, &LinkKind::Vxlan(spec), &change) {
        Err(error) if error.is_exists() => {}
        other => other?,
    }
    let link = socket.link(&name)?.with_context(|| format!("{name} is gone right after it was made"))?;
    if !link.up || Some(link.mtu) != mtu || link.address != Some(wanted.mac) {
        // The other nodes were told this Ethernet address: the interface follows, not they.
        socket.change_link(link.index, &change)?;
    }
    // Flannel's shape: the interface has the network address of the node's range, and routes go by the peer's.
    let own: Vec<IpNet> = wanted
        .subnets
        .iter()
        .filter(|subnet| matches!(subnet, IpNet::V4(_)))
        .map(|subnet| IpNet::from(subnet.network()))
        .collect();
    set_addresses(socket, &link, &own)?;
    Ok(Link { address: Some(wanted.mac), ..link })
}

fn ensure_bridge(
    socket: &mut RouteSocket,
    config: &OverlayConfig,
    subnets: &[IpNet],
    mtu: u32,
) -> anyhow::Result<Link> {
    let gateways: Vec<IpNet> = subnets
        .iter()
        .filter_map(|subnet| IpNet::new(leases::gateway(*subnet)?, subnet.prefix_len()).ok())
        .collect();
    anyhow::ensure!(gateways.len() == subnets.len(), "the node's pod range has no room for a gateway");
    let mac = gateways.iter().find_map(|gateway| plugin::mac_of(gateway.addr()));
    let change = LinkChange { up: Some(true), mtu: Some(mtu), address: mac, master: None };
    match socket.add_link(&config.bridge, &LinkKind::Bridge, &change) {
        Err(error) if error.is_exists() => {}
        other => other?,
    }
    let link = socket
        .link(&config.bridge)?
        .with_context(|| format!("{} is gone right after it was made", config.bridge))?;
    anyhow::ensure!(
        link.kind == "bridge",
        "{} exists and is no bridge: remove it or configure another name",
        config.bridge
    );
    if !link.up || link.mtu != mtu || (mac.is_some() && link.address != mac) {
        socket.change_link(link.index, &change)?;
    }
    set_addresses(socket, &link, &gateways)?;
    // Pods talk to each other by the bridge's address, in and out by one interface: telling them of a shorter way would be wrong, and
    // would use up the rate of the errors that they must get. Each interface keeps its own setting, so `all` takes nothing away.
    for interface in ["all", &config.bridge] {
        sysctl::write(&format!("net/ipv4/conf/{interface}/send_redirects"), "0")?;
    }
    Ok(link)
}

/// Leaves exactly these addresses on an interface of ours (and link-local ones).
fn set_addresses(socket: &mut RouteSocket, link: &Link, wanted: &[IpNet]) -> anyhow::Result<()> {
    let found: Vec<Address> =
        socket.addresses()?.into_iter().filter(|address| address.link == link.index).collect();
    for network in wanted.iter().filter(|network| !found.iter().any(|address| address.network == **network)) {
        socket.replace_address(&Address {
            link: link.index,
            network: *network,
            scope: AddressScope::Universe,
        })?;
    }
    for address in found {
        if address.scope == AddressScope::Universe && !wanted.contains(&address.network) {
            tracing::info!(interface = link.name, address = %address.network, "removing an address of an earlier pod range");
            socket.delete_address(&address)?;
        }
    }
    Ok(())
}

/// The host's own connections to a Service need a route before the output hook can translate them; by the bridge, they get a source
/// that pods everywhere can answer, and what is no Service does not leave the machine.
fn service_route(
    socket: &mut RouteSocket,
    config: &OverlayConfig,
    subnets: &[IpNet],
    bridge: &Link,
) -> anyhow::Result<()> {
    let four = subnets.iter().find(|subnet| subnet.addr().is_ipv4() == config.service_cidr.addr().is_ipv4());
    let route = Route {
        destination: config.service_cidr.trunc(),
        gateway: None,
        link: bridge.index,
        source: four.and_then(|subnet| leases::gateway(*subnet)),
        onlink: false,
        protocol: plan::ROUTE_PROTOCOL,
    };
    if !socket.routes()?.contains(&route) {
        socket.replace_route(&route)?;
    }
    Ok(())
}

fn ensure_peers(socket: &mut RouteSocket, vxlan: &Link, peers: &BTreeSet<Peer>) -> anyhow::Result<()> {
    let mut neighbours = socket.neighbours(NeighbourTable::Address, vxlan.index)?;
    neighbours.extend(socket.neighbours(NeighbourTable::Forwarding, vxlan.index)?);
    let ours = |route: &Route| route.protocol == plan::ROUTE_PROTOCOL && route.link == vxlan.index;
    let found = Entries { routes: socket.routes()?.into_iter().filter(ours).collect(), neighbours };
    let wanted = plan::peer_entries(peers, vxlan.index);
    let (remove, set) = plan::plan_entries(&found, &wanted);
    for route in &remove.routes {
        gone_is_fine(socket.delete_route(route))?;
    }
    for neighbour in &remove.neighbours {
        gone_is_fine(socket.delete_neighbour(neighbour))?;
    }
    // Address before route: no packet takes a route whose next hop would be asked for by broadcast.
    for neighbour in &set.neighbours {
        socket.replace_neighbour(neighbour)?;
    }
    for route in &set.routes {
        socket.replace_route(route)?;
    }
    Ok(())
}

fn gone_is_fine(result: Result<(), orlop_netlink::NetlinkError>) -> Result<(), orlop_netlink::NetlinkError> {
    match result {
        Err(error) if error.is_missing() => Ok(()),
        other => other,
    }
}

/// Frees the addresses of attachments that are gone: after a reboot, or when a pod was killed without a DEL.
///
/// Gone means: the host has no interface of the name that ADD gives. The kernel removes it together with the pod's namespace.
pub(super) fn collect_leases(config: &OverlayConfig) -> anyhow::Result<usize> {
    let links: BTreeSet<String> = RouteSocket::open()?.links()?.into_iter().map(|link| link.name).collect();
    let leases = Leases::new(&config.ipam_dir, NETWORK);
    let freed = leases
        .collect(LEASE_AGE, SystemTime::now(), |owner| !links.contains(&plugin::host_interface(owner)))?;
    let addresses: Vec<IpAddr> = freed.iter().map(|lease| lease.address).collect();
    crate::hostports::close(&addresses)
        .map_err(|error| anyhow::anyhow!("{}: {}", error.message, error.details))?;
    Ok(freed.len())
}

fn write_atomically(folder: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let path = folder.join(name);
    if std::fs::read_to_string(&path).is_ok_and(|found| found == text) {
        return Ok(());
    }
    let write = || -> io::Result<()> {
        std::fs::create_dir_all(folder)?;
        let unfinished = folder.join(format!(".{name}.new"));
        std::fs::write(&unfinished, text)?;
        std::fs::rename(&unfinished, &path)
    };
    write().with_context(|| format!("failed to write {}", path.display()))
}

/// Removes what the overlay and the plugin made in this network namespace. What is gone already is fine.
pub(super) fn cleanup(config: &OverlayConfig) -> anyhow::Result<()> {
    let _ = std::fs::remove_file(config.cni_conf_dir.join(CONFLIST));
    let mut socket = RouteSocket::open()?;
    let links = socket.links()?;
    let bridge = links.iter().find(|link| link.name == config.bridge);
    let ports = links.iter().filter(|link| bridge.is_some_and(|bridge| link.master == Some(bridge.index)));
    for port in ports.filter(|link| link.kind == "veth") {
        gone_is_fine(socket.delete_link(&port.name))?;
    }
    // Routes and neighbours go with their interfaces.
    for name in [&config.bridge, &config.vxlan_name()] {
        gone_is_fine(socket.delete_link(name))?;
    }
    let mut nft = NftSocket::open()?;
    nft.delete_tables(&[plan::table()])?;
    nft.delete_tables(&crate::hostports::tables())?;
    let _ = std::fs::remove_dir_all(config.ipam_dir.join(NETWORK));
    Ok(())
}

/// Puts an address on the loopback interface, valid on this machine only.
pub(super) fn ensure_local_address(ip: IpAddr) -> anyhow::Result<()> {
    let mut socket = RouteSocket::open()?;
    let loopback = loopback(&mut socket)?;
    if !loopback.up {
        socket.change_link(loopback.index, &LinkChange { up: Some(true), ..LinkChange::default() })?;
    }
    socket.replace_address(&local_address(&loopback, ip))?;
    Ok(())
}

/// Takes the address off again; gone already is fine.
pub(super) fn remove_local_address(ip: IpAddr) -> anyhow::Result<()> {
    let mut socket = RouteSocket::open()?;
    let loopback = loopback(&mut socket)?;
    gone_is_fine(socket.delete_address(&local_address(&loopback, ip)))?;
    Ok(())
}

fn loopback(socket: &mut RouteSocket) -> anyhow::Result<Link> {
    socket.links()?.into_iter().find(|link| link.loopback).context("there is no loopback interface")
}

fn local_address(loopback: &Link, ip: IpAddr) -> Address {
    Address { link: loopback.index, network: IpNet::from(ip), scope: AddressScope::Host }
}

/// Whether an IPv4 address is on some interface of this machine.
pub(super) fn is_local(address: Ipv4Addr) -> anyhow::Result<bool> {
    let addresses = RouteSocket::open()?.addresses()?;
    Ok(addresses.iter().any(|found| found.network.addr() == IpAddr::V4(address)))
}
