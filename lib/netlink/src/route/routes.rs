use std::net::IpAddr;

use ipnet::IpNet;
use orlop_nft::wire;

use super::{RouteSocket, family, ip_from, octets};
use crate::NetlinkError;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RTA_TABLE: u16 = 15;
/// The gateway need not be inside a network of the interface.
const RTNH_F_ONLINK: u32 = 4;

/// A unicast route of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination; a prefix of length 0 is the default route.
    pub destination: IpNet,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// Interface index.
    pub link: u32,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// The gateway is on the link whatever the addresses say.
    pub onlink: bool,
    /// Who made it (`rtm_protocol`): 2 the kernel, 3 boot, 4 static; a program uses a number of its own to know its routes again.
    pub protocol: u8,
}

impl RouteSocket {
    /// The unicast routes of the main table, both families.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub fn routes(&mut self) -> Result<Vec<Route>, NetlinkError> {
        let answers = self.socket.dump("list routes", libc::RTM_GETROUTE, |encoder| encoder.raw(&[0; 12]))?;
        let routes = answers.iter().filter(|answer| answer.kind == libc::RTM_NEWROUTE);
        Ok(routes.filter_map(|answer| parse(&answer.payload)).collect())
    }

    /// Adds a route, in the place of one to the same destination.
    ///
    /// # Errors
    /// When the interface is gone or the gateway cannot be reached.
    pub fn replace_route(&mut self, route: &Route) -> Result<(), NetlinkError> {
        let flags = wire::FLAG_CREATE | wire::FLAG_REPLACE;
        let act = || format!("add route {} by link {}", route.destination, route.link);
        self.socket.request(act, libc::RTM_NEWROUTE, flags, |encoder| put(encoder, route))
    }

    /// Removes a route.
    ///
    /// # Errors
    /// [`NetlinkError::is_missing`] when it is gone already.
    pub fn delete_route(&mut self, route: &Route) -> Result<(), NetlinkError> {
        let act = || format!("delete route {} by link {}", route.destination, route.link);
        self.socket.request(act, libc::RTM_DELROUTE, 0, |encoder| put(encoder, route))
    }
}

/// `struct rtmsg` and what the route needs.
fn put(encoder: &mut wire::Encoder, route: &Route) {
    let scope = if route.gateway.is_some() { libc::RT_SCOPE_UNIVERSE } else { libc::RT_SCOPE_LINK };
    let destination = route.destination.trunc();
    let (prefix, table) = (destination.prefix_len(), libc::RT_TABLE_MAIN);
    encoder.raw(&[family(destination.addr()), prefix, 0, 0, table, route.protocol, scope, libc::RTN_UNICAST]);
    encoder.raw(&(if route.onlink { RTNH_F_ONLINK } else { 0 }).to_ne_bytes());
    if prefix > 0 {
        encoder.put(RTA_DST, &octets(destination.addr()));
    }
    if let Some(gateway) = route.gateway {
        encoder.put(RTA_GATEWAY, &octets(gateway));
    }
    if let Some(source) = route.source {
        encoder.put(RTA_PREFSRC, &octets(source));
    }
    encoder.put_u32(RTA_OIF, route.link);
}

fn parse(payload: &[u8]) -> Option<Route> {
    let [family, prefix, _, _, table, protocol, _, kind] = *payload.first_chunk::<8>()?;
    if kind != libc::RTN_UNICAST {
        return None;
    }
    let flags = wire::read_u32(payload, 8)?;
    let attributes = payload.get(12..)?;
    let table = wire::attribute(attributes, RTA_TABLE)
        .and_then(|value| wire::read_u32(value, 0))
        .unwrap_or(table.into());
    if table != u32::from(libc::RT_TABLE_MAIN) {
        return None;
    }
    let unspecified =
        if i32::from(family) == libc::AF_INET6 { IpAddr::from([0; 16]) } else { IpAddr::from([0; 4]) };
    let destination = wire::attribute(attributes, RTA_DST).and_then(ip_from).unwrap_or(unspecified);
    Some(Route {
        destination: IpNet::new(destination, prefix).ok()?,
        gateway: wire::attribute(attributes, RTA_GATEWAY).and_then(ip_from),
        link: wire::attribute(attributes, RTA_OIF).and_then(|value| wire::read_u32(value, 0))?,
        source: wire::attribute(attributes, RTA_PREFSRC).and_then(ip_from),
        onlink: flags & RTNH_F_ONLINK != 0,
        protocol,
    })
}
