//! CHECK and STATUS: look, change nothing.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use orlop_netlink::RouteSocket;
use orlop_netlink::namespace::{self, Namespace};

use super::add::{everything, single};
use super::error::{CniError, code};
use super::request::Configuration;
use super::{host_interface, route_socket};
use crate::leases::{self, Owner};

pub(super) fn check(configuration: &Configuration, owner: &Owner, netns: &Path) -> Result<(), CniError> {
    if configuration.prev_result.is_none() {
        return Err(CniError::new(code::INVALID_CONFIGURATION, "CHECK needs prevResult"));
    }
    let pod =
        Namespace::open(netns).map_err(|error| CniError::from_error(code::UNKNOWN_CONTAINER, &error))?;
    let mut host = route_socket()?;
    let links = host.links()?;
    let find = |name: &str| links.iter().find(|link| link.name == name);
    let bridge = find(&configuration.bridge).ok_or_else(|| failed("the bridge is gone"))?;
    let near = find(&host_interface(owner)).ok_or_else(|| failed("the host's end of the pair is gone"))?;
    if near.master != Some(bridge.index) {
        return Err(failed("the pair is not attached to the bridge"));
    }
    let leases = configuration.leases().all()?;
    let mine: Vec<IpAddr> =
        leases.iter().filter(|lease| &lease.owner == owner).map(|lease| lease.address).collect();
    let mut wanted = Vec::new();
    for subnet in &configuration.subnets {
        let address = mine.iter().find(|address| subnet.contains(*address));
        let address = address.ok_or_else(|| failed(&format!("there is no lease in {subnet}")))?;
        wanted.push((*address, leases::gateway(*subnet)));
    }
    namespace::inside(&pod, || check_pod(&owner.interface, &wanted))?
}

fn check_pod(name: &str, wanted: &[(IpAddr, Option<IpAddr>)]) -> Result<(), CniError> {
    let mut socket = RouteSocket::open()?;
    let link = socket.link(name)?.ok_or_else(|| failed(&format!("the pod has no {name}")))?;
    if !link.up {
        return Err(failed(&format!("{name} is down")));
    }
    let (addresses, routes) = (socket.addresses()?, socket.routes()?);
    for (address, gateway) in wanted {
        let network: IpNet = single(*address);
        if !addresses.iter().any(|found| found.link == link.index && found.network == network) {
            return Err(failed(&format!("{name} has not the address {address}")));
        }
        let default = everything(network);
        if !routes.iter().any(|route| route.destination == default && route.gateway == *gateway) {
            return Err(failed("the default route is missing"));
        }
    }
    Ok(())
}

pub(super) fn status(configuration: &Configuration) -> Result<(), CniError> {
    let unavailable = |error: CniError| CniError { code: code::NOT_AVAILABLE, ..error };
    configuration.leases().prepare().map_err(|error| unavailable(error.into()))?;
    let bridge = route_socket()?.link(&configuration.bridge)?;
    match bridge {
        Some(link) if link.up => Ok(()),
        _ => {
            let text = format!("bridge {} is not up: the node's overlay is not ready", configuration.bridge);
            Err(CniError::new(code::NOT_AVAILABLE, text))
        }
    }
}

fn failed(text: &str) -> CniError {
    CniError::new(code::CHECK_FAILED, text)
}
