use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;

use orlop_nft::wire::{self, Encoder};

use super::RouteSocket;
use crate::NetlinkError;
use crate::namespace::Namespace;

// include/uapi/linux/if_link.h
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LINK: u16 = 3;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddress(pub [u8; 6]);

impl std::fmt::Display for MacAddress {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl std::str::FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("{text:?} is no Ethernet address");
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(wrong)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() { Err(wrong()) } else { Ok(Self(octets)) }
    }
}

/// An interface as the kernel reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Index, unique within the namespace.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Ethernet address, where there is one.
    pub address: Option<MacAddress>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Loopback interface.
    pub loopback: bool,
    /// Index of the bridge (or other master) it belongs to.
    pub master: Option<u32>,
    /// Driver kind: `veth`, `bridge`, `vxlan`; empty for hardware.
    pub kind: String,
    /// For `vxlan`: its settings.
    pub vxlan: Option<VxlanSpec>,
}

/// Settings of a VXLAN interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VxlanSpec {
    /// Network identifier.
    pub vni: u32,
    /// UDP destination port.
    pub port: u16,
    /// Source address of the tunnel.
    pub local: Ipv4Addr,
    /// Index of the interface below, 0 for none.
    pub lower: u32,
}

/// What to create.
#[derive(Debug)]
pub enum LinkKind<'a> {
    /// A bridge.
    Bridge,
    /// A VXLAN interface that learns nothing: its forwarding entries are set by hand.
    Vxlan(VxlanSpec),
    /// One end of a pair; the other end is made in `namespace` under the name `peer`.
    Veth {
        /// Name of the other end.
        peer: &'a str,
        /// Ethernet address of the other end.
        peer_address: Option<MacAddress>,
        /// Where the other end goes.
        namespace: &'a Namespace,
    },
}

/// What to set on an interface; `None` leaves it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkChange {
    /// Up or down.
    pub up: Option<bool>,
    /// Index of the bridge to join.
    pub master: Option<u32>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Ethernet address.
    pub address: Option<MacAddress>,
}

impl RouteSocket {
    /// All interfaces.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let answers = self.socket.dump("list links", libc::RTM_GETLINK, |encoder| encoder.raw(&[0; 16]))?;
        Ok(answers
            .iter()
            .filter(|answer| answer.kind == libc::RTM_NEWLINK)
            .filter_map(|answer| parse(&answer.payload))
            .collect())
    }

    /// One interface by name.
    ///
    /// # Errors
    /// As [`RouteSocket::links`].
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        Ok(self.links()?.into_iter().find(|link| link.name == name))
    }

    /// Creates an interface.
    ///
    /// # Errors
    /// [`NetlinkError::is_exists`] when the name is taken, [`NetlinkError::is_unsupported`] when the kernel lacks the kind.
    pub fn add_link(
        &mut self,
        name: &str,
        kind: &LinkKind<'_>,
        change: &LinkChange,
    ) -> Result<(), NetlinkError> {
        let flags = wire::FLAG_CREATE | wire::FLAG_EXCLUSIVE;
        self.socket.request(
            || format!("add link {name}"),
            libc::RTM_NEWLINK,
            flags,
            |encoder| {
                header(encoder, 0, 0, change.up);
                encoder.put_str(IFLA_IFNAME, name);
                put_change(encoder, change);
                encoder.nested(IFLA_LINKINFO, |encoder| put_kind(encoder, kind, change.mtu));
            },
        )
    }

    /// Changes an interface.
    ///
    /// # Errors
    /// [`NetlinkError::is_missing`] when it is gone.
    pub fn change_link(&mut self, index: u32, change: &LinkChange) -> Result<(), NetlinkError> {
        self.socket.request(
            || format!("change link {index}"),
            libc::RTM_NEWLINK,
            0,
            |encoder| {
                header(encoder, 0, index, change.up);
                put_change(encoder, change);
            },
        )
    }

    /// Lets a bridge port send a frame back to where it came from (a pod that calls itself through its Service).
    ///
    /// # Errors
    /// When the interface is no bridge port.
    pub fn set_hairpin(&mut self, index: u32, on: bool) -> Result<(), NetlinkError> {
        self.socket.request(
            || format!("set hairpin mode of link {index}"),
            libc::RTM_SETLINK,
            0,
            |encoder| {
                header(encoder, libc::AF_BRIDGE as u8, index, None);
                encoder.nested(IFLA_PROTINFO, |encoder| encoder.put_u8(IFLA_BRPORT_MODE, u8::from(on)));
            },
        )
    }

    /// Removes an interface (for a veth: both ends).
    ///
    /// # Errors
    /// [`NetlinkError::is_missing`] when it is gone already.
    pub fn delete_link(&mut self, name: &str) -> Result<(), NetlinkError> {
        self.socket.request(
            || format!("delete link {name}"),
            libc::RTM_DELLINK,
            0,
            |encoder| {
                header(encoder, 0, 0, None);
                encoder.put_str(IFLA_IFNAME, name);
            },
        )
    }
}

/// `struct ifinfomsg`.
fn header(encoder: &mut Encoder, family: u8, index: u32, up: Option<bool>) {
    let flag = libc::IFF_UP as u32;
    encoder.raw(&[family, 0, 0, 0]);
    encoder.raw(&index.to_ne_bytes());
    encoder.raw(&(if up == Some(true) { flag } else { 0 }).to_ne_bytes());
    encoder.raw(&(if up.is_some() { flag } else { 0 }).to_ne_bytes());
}

fn put_change(encoder: &mut Encoder, change: &LinkChange) {
    if let Some(address) = change.address {
        encoder.put(IFLA_ADDRESS, &address.0);
    }
    if let Some(mtu) = change.mtu {
        encoder.put_u32(IFLA_MTU, mtu);
    }
    if let Some(master) = change.master {
        encoder.put_u32(IFLA_MASTER, master);
    }
}

fn put_kind(encoder: &mut Encoder, kind: &LinkKind<'_>, mtu: Option<u32>) {
    match kind {
        LinkKind::Bridge => encoder.put_str(IFLA_INFO_KIND, "bridge"),
        LinkKind::Vxlan(spec) => {
            encoder.put_str(IFLA_INFO_KIND, "vxlan");
            encoder.nested(IFLA_INFO_DATA, |encoder| {
                encoder.put_u32(IFLA_VXLAN_ID, spec.vni);
                if spec.lower != 0 {
                    encoder.put_u32(IFLA_VXLAN_LINK, spec.lower);
                }
                encoder.put(IFLA_VXLAN_LOCAL, &spec.local.octets());
                encoder.put_u8(IFLA_VXLAN_LEARNING, 0);
                encoder.put_be16(IFLA_VXLAN_PORT, spec.port);
            });
        }
        LinkKind::Veth { peer, peer_address, namespace } => {
            encoder.put_str(IFLA_INFO_KIND, "veth");
            encoder.nested(IFLA_INFO_DATA, |encoder| {
                encoder.nested(VETH_INFO_PEER, |encoder| {
                    header(encoder, 0, 0, None);
                    encoder.put_str(IFLA_IFNAME, peer);
                    put_change(encoder, &LinkChange { mtu, address: *peer_address, ..LinkChange::default() });
                    encoder.put_u32(IFLA_NET_NS_FD, namespace.file().as_raw_fd().cast_unsigned());
                });
            });
        }
    }
}

fn parse(payload: &[u8]) -> Option<Link> {
    let flags = wire::read_u32(payload, 8)?;
    let mut link = Link {
        index: wire::read_u32(payload, 4)?,
        name: String::new(),
        address: None,
        mtu: 0,
        up: flags & libc::IFF_UP as u32 != 0,
        loopback: flags & libc::IFF_LOOPBACK as u32 != 0,
        master: None,
        kind: String::new(),
        vxlan: None,
    };
    for (kind, value) in wire::attributes(payload.get(16..)?) {
        match kind {
            IFLA_IFNAME => link.name = wire::read_str(value),
            IFLA_ADDRESS => link.address = value.try_into().ok().map(MacAddress),
            IFLA_MTU => link.mtu = wire::read_u32(value, 0)?,
            IFLA_MASTER => link.master = wire::read_u32(value, 0),
            IFLA_LINKINFO => {
                link.kind = wire::attribute(value, IFLA_INFO_KIND).map(wire::read_str).unwrap_or_default();
                if link.kind == "vxlan" {
                    link.vxlan = wire::attribute(value, IFLA_INFO_DATA).map(parse_vxlan);
                }
            }
            _ => {}
        }
    }
    Some(link)
}

fn parse_vxlan(data: &[u8]) -> VxlanSpec {
    let mut spec = VxlanSpec { vni: 0, port: 0, local: Ipv4Addr::UNSPECIFIED, lower: 0 };
    for (kind, value) in wire::attributes(data) {
        match kind {
            IFLA_VXLAN_ID => spec.vni = wire::read_u32(value, 0).unwrap_or(0),
            IFLA_VXLAN_LINK => spec.lower = wire::read_u32(value, 0).unwrap_or(0),
            IFLA_VXLAN_LOCAL => {
                spec.local = <[u8; 4]>::try_from(value).map_or(Ipv4Addr::UNSPECIFIED, Ipv4Addr::from)
            }
            IFLA_VXLAN_PORT => spec.port = <[u8; 2]>::try_from(value).map_or(0, u16::from_be_bytes),
            _ => {}
        }
    }
    spec
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ethernet_address_is_written_as_it_is_read() {
        let text = "0a:58:0a:f4:00:01";
        assert_eq!(text.parse::<MacAddress>().unwrap().to_string(), text);
        for wrong in ["", "0a:58", "0a:58:0a:f4:00:01:02", "0a:58:0a:f4:00:zz", "a:58:0a:f4:00:01"] {
            assert!(wrong.parse::<MacAddress>().is_err(), "{wrong}");
        }
    }
}
