use std::net::IpAddr;

use orlop_nft::wire;

use super::{MacAddress, RouteSocket, family, ip_from, octets};
use crate::NetlinkError;

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;
const NTF_SELF: u8 = 0x02;

/// Which table an entry is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeighbourTable {
    /// ARP or NDP: network address to Ethernet address.
    Address,
    /// Forwarding entries of a VXLAN interface: Ethernet address to tunnel end.
    Forwarding,
}

/// A permanent entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Table.
    pub table: NeighbourTable,
    /// Interface index.
    pub link: u32,
    /// The neighbour's address, or the tunnel's far end.
    pub ip: IpAddr,
    /// Ethernet address.
    pub mac: MacAddress,
}

impl RouteSocket {
    /// The permanent entries of one interface in one table (IPv4 for addresses).
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub fn neighbours(&mut self, table: NeighbourTable, link: u32) -> Result<Vec<Neighbour>, NetlinkError> {
        let family = match table {
            NeighbourTable::Address => libc::AF_INET as u8,
            NeighbourTable::Forwarding => libc::AF_BRIDGE as u8,
        };
        let answers = self.socket.dump("list neighbours", libc::RTM_GETNEIGH, |encoder| {
            // A forwarding dump wants an ifinfomsg-sized header on old kernels and takes an ndmsg on new ones: both begin alike.
            encoder.raw(&[family, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        })?;
        let entries = answers.iter().filter(|answer| answer.kind == libc::RTM_NEWNEIGH);
        Ok(entries
            .filter_map(|answer| parse(&answer.payload, table))
            .filter(|entry| entry.link == link)
            .collect())
    }

    /// Sets a permanent entry.
    ///
    /// # Errors
    /// When the interface is gone.
    pub fn replace_neighbour(&mut self, neighbour: &Neighbour) -> Result<(), NetlinkError> {
        let act = || format!("set neighbour {} {} on link {}", neighbour.ip, neighbour.mac, neighbour.link);
        let flags = wire::FLAG_CREATE | wire::FLAG_REPLACE;
        self.socket.request(act, libc::RTM_NEWNEIGH, flags, |encoder| put(encoder, neighbour))
    }

    /// Removes an entry.
    ///
    /// # Errors
    /// [`NetlinkError::is_missing`] when it is gone already.
    pub fn delete_neighbour(&mut self, neighbour: &Neighbour) -> Result<(), NetlinkError> {
        let act =
            || format!("delete neighbour {} {} on link {}", neighbour.ip, neighbour.mac, neighbour.link);
        self.socket.request(act, libc::RTM_DELNEIGH, 0, |encoder| put(encoder, neighbour))
    }
}

/// `struct ndmsg` and the two addresses.
fn put(encoder: &mut wire::Encoder, neighbour: &Neighbour) {
    let (family, flags) = match neighbour.table {
        NeighbourTable::Address => (family(neighbour.ip), 0),
        NeighbourTable::Forwarding => (libc::AF_BRIDGE as u8, NTF_SELF),
    };
    encoder.raw(&[family, 0, 0, 0]);
    encoder.raw(&neighbour.link.to_ne_bytes());
    encoder.raw(&NUD_PERMANENT.to_ne_bytes());
    encoder.raw(&[flags, 0]);
    encoder.put(NDA_DST, &octets(neighbour.ip));
    encoder.put(NDA_LLADDR, &neighbour.mac.0);
}

fn parse(payload: &[u8], table: NeighbourTable) -> Option<Neighbour> {
    let link = wire::read_u32(payload, 4)?;
    if wire::read_u16(payload, 8)? & NUD_PERMANENT == 0 {
        return None;
    }
    let attributes = payload.get(12..)?;
    let ip = wire::attribute(attributes, NDA_DST).and_then(ip_from)?;
    let mac = MacAddress(wire::attribute(attributes, NDA_LLADDR)?.try_into().ok()?);
    Some(Neighbour { table, link, ip, mac })
}
