//! rtnetlink(7): interfaces, addresses, routes, neighbours.

mod address;
mod link;
mod neighbour;
mod routes;

use std::net::IpAddr;

use nix::sys::socket::SockProtocol;

pub use address::{Address, AddressScope};
pub use link::{Link, LinkChange, LinkKind, MacAddress, VxlanSpec};
pub use neighbour::{Neighbour, NeighbourTable};
pub use routes::Route;

use crate::NetlinkError;
use crate::socket::Socket;

/// A route socket in one network namespace.
#[derive(Debug)]
pub struct RouteSocket {
    socket: Socket,
}

impl RouteSocket {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel has no rtnetlink or descriptors ran out.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self { socket: Socket::open(SockProtocol::NetlinkRoute)? })
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn ip_from(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

const fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}
