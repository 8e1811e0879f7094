//! Carries transactions out. Blocking; opened in the namespace of the thread that first uses it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use orlop_netlink::conntrack::{ConntrackSocket, Flow};
use orlop_netlink::nft::NftSocket;
use orlop_netlink::{NetlinkError, RouteSocket};
use orlop_nft::{Command, Datum, Element, IpVersion, Table, Tuple, Value};

use crate::model::Place;
use crate::plan::{Adopted, Transaction, UdpFlows};
use crate::rules::{self, SlotSet};

const UDP: u8 = 17;
/// Slots beyond this number are not read from a table: no Service of ours has them.
const SLOT_LIMIT: usize = 65_536;

/// The kernel's side.
#[derive(Debug, Default)]
pub(crate) struct Kernel {
    nft: Option<NftSocket>,
}

impl Kernel {
    fn nft(&mut self) -> Result<&mut NftSocket, NetlinkError> {
        if self.nft.is_none() {
            self.nft = Some(NftSocket::open()?);
        }
        Ok(self.nft.as_mut().expect("it was opened just now"))
    }

    /// Carries a plan out.
    pub(crate) fn carry_out(&mut self, transaction: &Transaction) -> Result<(), NetlinkError> {
        self.apply(&transaction.structure)?;
        self.apply(&transaction.commands)
    }

    /// Carries the plan of a whole table out; with `serving`, one is there that must serve on until the last moment.
    ///
    /// Of hooks with one priority the kernel calls the younger first: a packet may pass those of the new table before the commit and those
    /// of the old one after it, and find no rule in either. A stand-in with the same rules serves it meanwhile. A daemon that is killed
    /// here leaves the stand-in to its successor, which comes this way too.
    pub(crate) fn replace(
        &mut self,
        mut transaction: Transaction,
        version: IpVersion,
        serving: bool,
    ) -> Result<Transaction, NetlinkError> {
        let (table, stand_in) = (rules::table(version), rules::stand_in(version));
        let move_to = |commands: Vec<Command>, table: &Table| -> Vec<Command> {
            commands.into_iter().map(|command| command.in_table(table)).collect()
        };
        if serving {
            transaction.commands = move_to(transaction.commands, &stand_in);
            self.apply(&transaction.commands)?;
            transaction.commands = move_to(transaction.commands, &table);
        }
        let replaced = self.carry_out(&transaction);
        let removed = self.apply(&[Command::AddTable(stand_in.clone()), Command::DeleteTable(stand_in)]);
        replaced.and(removed).map(|()| transaction)
    }

    /// One transaction: all of it, or nothing.
    fn apply(&mut self, commands: &[Command]) -> Result<(), NetlinkError> {
        let applied = self.nft()?.apply(commands);
        if applied.is_err() {
            // Answers may still be under way: a fresh socket has none.
            self.nft = None;
        }
        applied
    }

    pub(crate) fn has_table(&mut self, table: &Table) -> Result<bool, NetlinkError> {
        self.nft()?.has_table(table)
    }

    /// What the table says about affinity; nothing when there is no table.
    pub(crate) fn adopt(&mut self, version: IpVersion) -> Result<Adopted, NetlinkError> {
        let table = rules::table(version);
        let mut adopted = Adopted::default();
        let nft = self.nft()?;
        for name in nft.set_names(&table)? {
            match rules::slot_set(&name) {
                Some(SlotSet::Endpoints(list, index)) if index < SLOT_LIMIT => {
                    let elements =
                        nft.elements(&table, &rules::endpoints(version, list, index))?.unwrap_or_default();
                    for (key, endpoint) in elements.into_iter().filter_map(endpoint_of) {
                        let slots = adopted.slots.entry((list, key)).or_default();
                        slots.resize(slots.len().max(index + 1), None);
                        slots[index] = Some(endpoint);
                    }
                }
                Some(SlotSet::Clients(list, index)) => {
                    let set = rules::affinity(version, list, index);
                    let mut clients = nft.elements(&table, &set)?.unwrap_or_default();
                    clients.retain(|client| {
                        client.timeout.is_some() && client.expires.is_none_or(|left| !left.is_zero())
                    });
                    adopted.clients.push((set, clients));
                }
                Some(SlotSet::Endpoints(..)) | None => {}
            }
        }
        Ok(adopted)
    }

    pub(crate) fn delete_tables(&mut self, tables: &[Table]) -> Result<(), NetlinkError> {
        self.nft()?.delete_tables(tables)
    }
}

fn endpoint_of(element: Element) -> Option<(Tuple, SocketAddr)> {
    let Some(Datum::Values(Tuple(values))) = element.datum else {
        return None;
    };
    match values[..] {
        [Value::Ipv4(address), Value::Port(port)] => {
            Some((element.key, SocketAddr::new(address.into(), port)))
        }
        [Value::Ipv6(address), Value::Port(port)] => {
            Some((element.key, SocketAddr::new(address.into(), port)))
        }
        _ => None,
    }
}

/// Forgets UDP flows that still go to endpoints that are gone, or that began before their Service had rules: without an end of the
/// connection, a client that goes on sending would keep them alive. Returns how many were deleted.
pub(crate) fn forget_stale(version: IpVersion, stale: &[UdpFlows]) -> Result<u64, NetlinkError> {
    let mut addresses: BTreeMap<SocketAddr, &BTreeSet<SocketAddr>> = BTreeMap::new();
    let mut node_ports: BTreeMap<u16, &BTreeSet<SocketAddr>> = BTreeMap::new();
    for flows in stale {
        match flows.key.place {
            Place::Address(address) => {
                addresses.insert(SocketAddr::new(address, flows.key.port), &flows.endpoints);
            }
            Place::NodePort(_) => {
                node_ports.insert(flows.key.port, &flows.endpoints);
            }
        }
    }
    if addresses.is_empty() && node_ports.is_empty() {
        return Ok(0);
    }
    let local: BTreeSet<IpAddr> = if node_ports.is_empty() {
        BTreeSet::new()
    } else {
        RouteSocket::open()?.addresses()?.into_iter().map(|address| address.network.addr()).collect()
    };
    let is_stale = |flow: &Flow| {
        let at_node =
            || local.contains(&flow.destination.ip()).then(|| node_ports.get(&flow.destination.port()));
        let endpoints = addresses.get(&flow.destination).or_else(|| at_node().flatten());
        endpoints.is_some_and(|endpoints| !endpoints.contains(&flow.answered_by))
    };
    let mut socket = ConntrackSocket::open()?;
    let mut deleted = 0;
    for flow in socket.flows(version == IpVersion::V6, UDP, is_stale)? {
        match socket.delete(&flow) {
            Ok(()) => deleted += 1,
            Err(error) if error.is_missing() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(deleted)
}
