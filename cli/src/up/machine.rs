//! Reads what a new cluster must know of the machine: hostname, address, routes. Linux, by /proc and netlink.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::Context as _;
use futures::TryStreamExt as _;
use ipnet::Ipv4Net;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressScope};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage};
use rtnetlink::{RouteMessageBuilder, new_connection};

use super::spec::Machine;

/// Reads the machine. Needs a tokio runtime.
pub(crate) async fn read() -> anyhow::Result<Machine> {
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let (connection, handle, _) = new_connection().context("failed to open a route socket")?;
    let driver = tokio::spawn(connection);
    let mut addresses: HashMap<u32, Vec<Ipv4Addr>> = HashMap::new();
    let mut order = Vec::new();
    let mut dump = handle.address().get().execute();
    while let Some(message) = dump.try_next().await.context("failed to list addresses")? {
        if message.header.family != AddressFamily::Inet || message.header.scope != AddressScope::Universe {
            continue;
        }
        for attribute in &message.attributes {
            if let AddressAttribute::Address(IpAddr::V4(address)) = attribute {
                addresses.entry(message.header.index).or_default().push(*address);
                order.push(*address);
            }
        }
    }
    let mut routes = Vec::new();
    let mut default_address = None;
    let mut dump = handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
    while let Some(route) = dump.try_next().await.context("failed to list routes")? {
        if route.header.table != RouteHeader::RT_TABLE_MAIN {
            continue;
        }
        match destination(&route) {
            Some(destination) => routes.push(destination),
            None => {
                let index = output_interface(&route);
                default_address = default_address.or_else(|| addresses.get(&index?)?.first().copied());
            }
        }
    }
    driver.abort();
    let address = default_address.or_else(|| order.first().copied()).map(IpAddr::V4);
    Ok(Machine { hostname, address, routes })
}

fn destination(route: &RouteMessage) -> Option<Ipv4Net> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => {
            Ipv4Net::new(*address, route.header.destination_prefix_length).ok()
        }
        _ => None,
    })
}

fn output_interface(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}
