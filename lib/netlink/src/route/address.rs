use std::net::IpAddr;

use ipnet::IpNet;
use orlop_nft::wire;

use super::{RouteSocket, family, ip_from, octets};
use crate::NetlinkError;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;
/// No duplicate address detection: the address is usable at once.
const IFA_F_NODAD: u32 = 0x02;

/// How far an address is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressScope {
    /// Everywhere.
    Universe,
    /// On the attached link.
    Link,
    /// Inside this machine.
    Host,
}

impl AddressScope {
    const fn number(self) -> u8 {
        match self {
            Self::Universe => libc::RT_SCOPE_UNIVERSE,
            Self::Link => libc::RT_SCOPE_LINK,
            Self::Host => libc::RT_SCOPE_HOST,
        }
    }

    const fn from_number(number: u8) -> Self {
        match number {
            libc::RT_SCOPE_HOST => Self::Host,
            libc::RT_SCOPE_LINK => Self::Link,
            _ => Self::Universe,
        }
    }
}

/// An address on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Interface index.
    pub link: u32,
    /// Address with the prefix length of its network.
    pub network: IpNet,
    /// Scope.
    pub scope: AddressScope,
}

impl RouteSocket {
    /// All addresses of the namespace.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub fn addresses(&mut self) -> Result<Vec<Address>, NetlinkError> {
        let answers =
            self.socket.dump("list addresses", libc::RTM_GETADDR, |encoder| encoder.raw(&[0; 8]))?;
        let addresses = answers.iter().filter(|answer| answer.kind == libc::RTM_NEWADDR);
        Ok(addresses.filter_map(|answer| parse(&answer.payload)).collect())
    }

    /// Adds an address, or confirms one that is there.
    ///
    /// # Errors
    /// When the interface is gone or the family is off.
    pub fn replace_address(&mut self, address: &Address) -> Result<(), NetlinkError> {
        let act = || format!("add address {} to link {}", address.network, address.link);
        self.socket.request(act, libc::RTM_NEWADDR, wire::FLAG_CREATE | wire::FLAG_REPLACE, |encoder| {
            put(encoder, address);
            if let IpNet::V4(network) = address.network
                && network.prefix_len() < 31
            {
                encoder.put(IFA_BROADCAST, &network.broadcast().octets());
            }
            if matches!(address.network, IpNet::V6(_)) {
                encoder.put_u32(IFA_FLAGS, IFA_F_NODAD);
            }
        })
    }

    /// Removes an address.
    ///
    /// # Errors
    /// [`NetlinkError::is_missing`] when it is gone already.
    pub fn delete_address(&mut self, address: &Address) -> Result<(), NetlinkError> {
        let act = || format!("delete address {} from link {}", address.network, address.link);
        self.socket.request(act, libc::RTM_DELADDR, 0, |encoder| put(encoder, address))
    }
}

/// `struct ifaddrmsg` and the address.
fn put(encoder: &mut wire::Encoder, address: &Address) {
    let ip = address.network.addr();
    encoder.raw(&[family(ip), address.network.prefix_len(), 0, address.scope.number()]);
    encoder.raw(&address.link.to_ne_bytes());
    let bytes = octets(ip);
    encoder.put(IFA_LOCAL, &bytes);
    encoder.put(IFA_ADDRESS, &bytes);
}

fn parse(payload: &[u8]) -> Option<Address> {
    let prefix = *payload.get(1)?;
    let scope = AddressScope::from_number(*payload.get(3)?);
    let link = wire::read_u32(payload, 4)?;
    let attributes = payload.get(8..)?;
    let ip: IpAddr = wire::attribute(attributes, IFA_LOCAL)
        .or_else(|| wire::attribute(attributes, IFA_ADDRESS))
        .and_then(ip_from)?;
    Some(Address { link, network: IpNet::new(ip, prefix).ok()?, scope })
}
