//! Connection tracking entries over ctnetlink: look through them, remove single ones by their exact tuple.

use std::net::{IpAddr, SocketAddr};

use nix::sys::socket::SockProtocol;
use orlop_nft::wire;

use crate::NetlinkError;
use crate::socket::{Answer, Socket};

/// `NFNL_SUBSYS_CTNETLINK`.
const SUBSYSTEM: u16 = 1 << 8;
const NEW: u16 = 0;
const GET: u16 = 1;
const DELETE: u16 = 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ZONE: u16 = 18;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;

/// One tracked flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Protocol number: 6 TCP, 17 UDP, 132 SCTP.
    pub protocol: u8,
    /// Who began it.
    pub source: SocketAddr,
    /// Whom it was meant for, before any translation.
    pub destination: SocketAddr,
    /// Who answers, after translation.
    pub answered_by: SocketAddr,
    /// The original tuple as the kernel gave it: what names the flow.
    tuple: Vec<u8>,
    zone: Option<Vec<u8>>,
}

/// A conntrack socket in one network namespace.
#[derive(Debug)]
pub struct ConntrackSocket {
    socket: Socket,
}

impl ConntrackSocket {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel has no nfnetlink.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self { socket: Socket::open(SockProtocol::NetlinkNetFilter)? })
    }

    /// The flows of one protocol and IP version that `wanted` picks. Reads the whole table.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub fn flows(
        &mut self,
        ipv6: bool,
        protocol: u8,
        wanted: impl Fn(&Flow) -> bool,
    ) -> Result<Vec<Flow>, NetlinkError> {
        let answers = self
            .socket
            .dump("list connections", SUBSYSTEM | GET, |encoder| encoder.raw(&[family(ipv6), 0, 0, 0]))?;
        let flows = answers.iter().filter(|answer| answer.kind == SUBSYSTEM | NEW).filter_map(parse);
        Ok(flows.filter(|flow| flow.protocol == protocol && wanted(flow)).collect())
    }

    /// Forgets a flow: its next packet is handled as the first of a new one.
    ///
    /// # Errors
    /// [`NetlinkError::is_missing`] when it is gone already.
    pub fn delete(&mut self, flow: &Flow) -> Result<(), NetlinkError> {
        let act = || format!("delete the connection {} to {}", flow.source, flow.destination);
        self.socket.request(act, SUBSYSTEM | DELETE, 0, |encoder| {
            encoder.raw(&[family(flow.source.is_ipv6()), 0, 0, 0]);
            encoder.nested(TUPLE_ORIGINAL, |encoder| encoder.raw(&flow.tuple));
            if let Some(zone) = &flow.zone {
                encoder.put(ZONE, zone);
            }
        })
    }
}

const fn family(ipv6: bool) -> u8 {
    if ipv6 { libc::AF_INET6 as u8 } else { libc::AF_INET as u8 }
}

fn parse(answer: &Answer) -> Option<Flow> {
    let attributes = answer.payload.get(4..)?;
    let tuple = wire::attribute(attributes, TUPLE_ORIGINAL)?;
    let (protocol, source, destination) = endpoints(tuple)?;
    let (_, answered_by, _) = endpoints(wire::attribute(attributes, TUPLE_REPLY)?)?;
    let zone = wire::attribute(attributes, ZONE).map(<[u8]>::to_vec);
    Some(Flow { protocol, source, destination, answered_by, tuple: tuple.to_vec(), zone })
}

fn endpoints(tuple: &[u8]) -> Option<(u8, SocketAddr, SocketAddr)> {
    let ip = wire::attribute(tuple, TUPLE_IP)?;
    let address = |four, six| -> Option<IpAddr> {
        match wire::attribute(ip, four) {
            Some(bytes) => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
            None => Some(IpAddr::from(<[u8; 16]>::try_from(wire::attribute(ip, six)?).ok()?)),
        }
    };
    let protocol = wire::attribute(tuple, TUPLE_PROTOCOL)?;
    let port = |kind| Some(u16::from_be_bytes(wire::attribute(protocol, kind)?.try_into().ok()?));
    let number = *wire::attribute(protocol, PROTOCOL_NUMBER)?.first()?;
    let source = SocketAddr::new(address(1, 3)?, port(SOURCE_PORT)?);
    let destination = SocketAddr::new(address(2, 4)?, port(DESTINATION_PORT)?);
    Some((number, source, destination))
}
