//! From what the kernel has and what is wanted to one transaction, at a cost of what changed.
//!
//! [`Plan`] holds both: what every Service claims, and what the table of one IP version has. A transaction that failed leaves the table
//! as it was, and [`Plan::replace`] then builds it anew, whole.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use orlop_kube::Key;
use orlop_kube::network::Protocol;
use orlop_nft::{Command, Element, IpVersion, Set, Table, Tuple, Value, Verdict};

use crate::model::{Frontend, FrontendKey, Place, WhenEmpty};
use crate::rules::{self, ChainId, List, Settings, Space};

/// UDP flows to look through: those to the key that do not go to one of these endpoints are stale.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UdpFlows {
    pub(crate) key: FrontendKey,
    pub(crate) endpoints: BTreeSet<SocketAddr>,
}

/// What to do.
#[derive(Debug, Default)]
pub(crate) struct Transaction {
    /// New chains and sets, to be committed on their own first: a packet whose walk began before a commit sees chains of that commit
    /// empty, but its map lookups already find elements that lead there.
    pub(crate) structure: Vec<Command>,
    pub(crate) commands: Vec<Command>,
    pub(crate) udp: Vec<UdpFlows>,
}

/// What the kernel has for one front end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Programmed {
    outside: ListState,
    inside: ListState,
    refused: Option<WhenEmpty>,
}

/// What the table of a predecessor says about affinity.
#[derive(Debug, Default)]
pub(crate) struct Adopted {
    /// Endpoints in their slots.
    pub(crate) slots: BTreeMap<(List, Tuple), Vec<Option<SocketAddr>>>,
    /// Clients that are remembered, by the set of their slot.
    pub(crate) clients: Vec<(Set, Vec<Element>)>,
}

impl Adopted {
    fn slots_of(&self, key: &FrontendKey) -> Programmed {
        let of = |inside| {
            let list = List { space: space_of(key), inside };
            let slots = self.slots.get(&(list, Tuple(rules::element_key(key)))).cloned().unwrap_or_default();
            ListState { slots, chain: None }
        };
        Programmed { outside: of(false), inside: of(true), refused: None }
    }
}

/// One list of endpoints in its slots, and the chain that its dispatch element names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ListState {
    slots: Vec<Option<SocketAddr>>,
    chain: Option<ChainId>,
}

/// The plan of one IP version.
#[derive(Debug)]
pub(crate) struct Plan {
    settings: Settings,
    table: Table,
    /// Which Services want a front end: the first one by name gets it.
    claims: BTreeMap<FrontendKey, BTreeMap<Key, Frontend>>,
    keys_of: BTreeMap<Key, Vec<FrontendKey>>,
    local_of: BTreeMap<Key, BTreeSet<IpAddr>>,
    programmed: BTreeMap<FrontendKey, Programmed>,
    chains: BTreeSet<ChainId>,
    sets: BTreeSet<String>,
    cluster_addresses: Counted,
    local_addresses: Counted,
    dirty: BTreeSet<FrontendKey>,
}

/// Addresses with the number of their users.
#[derive(Debug, Default)]
struct Counted {
    users: BTreeMap<IpAddr, usize>,
    changed: BTreeSet<IpAddr>,
    programmed: BTreeSet<IpAddr>,
}

impl Counted {
    fn add(&mut self, address: IpAddr) {
        *self.users.entry(address).or_default() += 1;
        self.changed.insert(address);
    }

    fn remove(&mut self, address: IpAddr) {
        if let Some(count) = self.users.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.users.remove(&address);
            }
        }
        self.changed.insert(address);
    }

    /// Addresses to add and to remove since the last call.
    fn take(&mut self) -> (Vec<IpAddr>, Vec<IpAddr>) {
        let (mut add, mut remove) = (Vec::new(), Vec::new());
        for address in std::mem::take(&mut self.changed) {
            match (self.users.contains_key(&address), self.programmed.contains(&address)) {
                (true, false) => {
                    self.programmed.insert(address);
                    add.push(address);
                }
                (false, true) => {
                    self.programmed.remove(&address);
                    remove.push(address);
                }
                (true, true) | (false, false) => {}
            }
        }
        (add, remove)
    }

    fn forget_programmed(&mut self) {
        self.programmed.clear();
        self.changed = self.users.keys().copied().collect();
    }
}

impl Plan {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            table: rules::table(settings.version),
            settings,
            claims: BTreeMap::new(),
            keys_of: BTreeMap::new(),
            local_of: BTreeMap::new(),
            programmed: BTreeMap::new(),
            chains: BTreeSet::new(),
            sets: BTreeSet::new(),
            cluster_addresses: Counted::default(),
            local_addresses: Counted::default(),
            dirty: BTreeSet::new(),
        }
    }

    pub(crate) const fn table(&self) -> &Table {
        &self.table
    }

    pub(crate) const fn version(&self) -> IpVersion {
        self.settings.version
    }

    /// Takes in what a Service wants now; front ends of the other IP version are left out.
    pub(crate) fn set_service(
        &mut self,
        service: &Key,
        frontends: &[(FrontendKey, Frontend)],
        local: &BTreeSet<IpAddr>,
    ) {
        for key in self.keys_of.remove(service).unwrap_or_default() {
            let claims = self.claims.entry(key).or_default();
            let old = claims.remove(service);
            if claims.is_empty() {
                self.claims.remove(&key);
            }
            if let Some(old) = old {
                self.count_cluster_address(&key, &old, false);
            }
            self.dirty.insert(key);
        }
        let version = self.version();
        let mut keys = Vec::new();
        for (key, frontend) in frontends.iter().filter(|(key, _)| key.place.version() == version) {
            let replaced = self.claims.entry(*key).or_default().insert(service.clone(), frontend.clone());
            if replaced.is_none() {
                self.count_cluster_address(key, frontend, true);
                keys.push(*key);
            }
            self.dirty.insert(*key);
        }
        if !keys.is_empty() {
            self.keys_of.insert(service.clone(), keys);
        }
        self.set_local(service, local);
    }

    fn count_cluster_address(&mut self, key: &FrontendKey, frontend: &Frontend, add: bool) {
        if let (Place::Address(address), true) = (key.place, frontend.cluster_address) {
            if add { self.cluster_addresses.add(address) } else { self.cluster_addresses.remove(address) }
        }
    }

    fn set_local(&mut self, service: &Key, local: &BTreeSet<IpAddr>) {
        let version = self.version();
        let wanted: BTreeSet<IpAddr> =
            local.iter().filter(|address| IpVersion::of(**address) == version).copied().collect();
        let old = self.local_of.remove(service).unwrap_or_default();
        for address in wanted.difference(&old) {
            self.local_addresses.add(*address);
        }
        for address in old.difference(&wanted) {
            self.local_addresses.remove(*address);
        }
        if !wanted.is_empty() {
            self.local_of.insert(service.clone(), wanted);
        }
    }

    /// The transaction for everything that changed since the last one.
    pub(crate) fn update(&mut self) -> Transaction {
        let mut writer = Writer::default();
        for key in std::mem::take(&mut self.dirty) {
            let kernel = self.programmed.remove(&key).unwrap_or_default();
            let preferred = kernel.clone();
            self.update_frontend(key, &kernel, &preferred, &mut writer);
        }
        self.update_addresses(&mut writer);
        writer.finish(&self.table)
    }

    /// Whether clients are remembered for any front end.
    pub(crate) fn has_affinity(&self) -> bool {
        self.claims.values().flat_map(BTreeMap::values).any(|frontend| frontend.affinity_seconds.is_some())
    }

    /// The transaction that makes the table anew, in one step: what is there (also of a predecessor) serves until that moment.
    ///
    /// `adopted` is what was read from the table before: its clients stay with their endpoints.
    pub(crate) fn replace(&mut self, adopted: Adopted) -> Transaction {
        let table = self.table.clone();
        let slots = std::mem::take(&mut self.programmed);
        self.chains.clear();
        self.sets.clear();
        self.cluster_addresses.forget_programmed();
        self.local_addresses.forget_programmed();
        self.dirty.clear();
        let mut writer = Writer::default();
        let keys: Vec<FrontendKey> = self.claims.keys().copied().collect();
        for key in keys {
            // Slots are kept where they are known: clients with affinity stay where they are.
            let preferred = slots.get(&key).cloned().unwrap_or_else(|| adopted.slots_of(&key));
            self.update_frontend(key, &Programmed::default(), &preferred, &mut writer);
        }
        self.update_addresses(&mut writer);
        let mut commands = vec![Command::AddTable(table.clone()), Command::DeleteTable(table.clone())];
        commands.extend(rules::skeleton(&self.settings));
        let served: Vec<Element> =
            self.settings.node_served.iter().map(|address| Element::key([Value::from(*address)])).collect();
        if !served.is_empty() {
            let set = rules::static_sets(self.version()).node_served;
            commands.push(Command::AddElements(table.clone(), set, served));
        }
        // One step: all of the old table, or all of the new one.
        let Transaction { structure, commands: rest, udp } = writer.finish(&table);
        commands.extend(structure);
        commands.extend(rest);
        for (set, clients) in adopted.clients {
            if self.sets.contains(&set.name) && !clients.is_empty() {
                commands.push(Command::AddElements(table.clone(), set, clients));
            }
        }
        Transaction { structure: Vec::new(), commands, udp }
    }

    /// Brings one front end from what the kernel has to what is wanted, keeping to the preferred slots.
    fn update_frontend(
        &mut self,
        key: FrontendKey,
        kernel: &Programmed,
        preferred: &Programmed,
        writer: &mut Writer,
    ) {
        let wanted = self.claims.get(&key).and_then(|claims| claims.values().next());
        let next = wanted.map(|frontend| plan_frontend(&key, frontend, preferred)).unwrap_or_default();
        for chain in [&next.outside.chain, &next.inside.chain].into_iter().flatten() {
            self.ensure_chain(chain, writer);
        }
        let version = self.version();
        let element_key = Tuple(rules::element_key(&key));
        let space = space_of(&key);
        let lists = [(false, &kernel.outside, &next.outside), (true, &kernel.inside, &next.inside)];
        for (inside, old, new) in lists {
            let list = List { space, inside };
            for index in 0..old.slots.len().max(new.slots.len()) {
                let at = |state: &ListState| state.slots.get(index).copied().flatten();
                writer.change(
                    &rules::endpoints(version, list, index),
                    &element_key,
                    at(old),
                    at(new),
                    endpoint_element,
                );
            }
            let dispatch = rules::dispatch(version, list);
            writer.change(&dispatch, &element_key, old.chain.as_ref(), new.chain.as_ref(), chain_element);
        }
        writer.change(
            &rules::refused(version, space),
            &element_key,
            kernel.refused,
            next.refused,
            refused_element,
        );
        if key.protocol == Protocol::Udp && kernel != &next {
            let endpoints = [&next.outside, &next.inside]
                .into_iter()
                .flat_map(|list| list.slots.iter().flatten().copied());
            writer.udp.push(UdpFlows { key, endpoints: endpoints.collect() });
        }
        if next != Programmed::default() {
            self.programmed.insert(key, next);
        }
    }

    /// Makes a chain with all it needs, once. Chains are never removed: their number is that of the different endpoint counts seen,
    /// and old kernels refuse to remove a chain in the transaction that removes the last element naming it.
    fn ensure_chain(&mut self, id: &ChainId, writer: &mut Writer) {
        if self.chains.contains(id) {
            return;
        }
        for need in id.needs() {
            self.ensure_chain(&need, writer);
        }
        for set in id.sets(self.version()) {
            if self.sets.insert(set.name.clone()) {
                writer.structure.push(Command::AddSet(self.table.clone(), set));
            }
        }
        writer.structure.push(Command::AddChain(self.table.clone(), id.chain(&self.settings)));
        self.chains.insert(id.clone());
    }

    fn update_addresses(&mut self, writer: &mut Writer) {
        let sets = rules::static_sets(self.version());
        let (add, remove) = self.cluster_addresses.take();
        let single = |address: &IpAddr| Element::key([Value::from(*address)]);
        writer.add_all(&sets.cluster_addresses, add.iter().map(single));
        writer.remove_all(&sets.cluster_addresses, remove.iter().map(single));
        let (add, remove) = self.local_addresses.take();
        let pair = |address: &IpAddr| Element::key([Value::from(*address), Value::from(*address)]);
        writer.add_all(&sets.hairpin, add.iter().map(pair));
        writer.remove_all(&sets.hairpin, remove.iter().map(pair));
    }
}

const fn space_of(key: &FrontendKey) -> Space {
    match key.place {
        Place::Address(_) => Space::Address,
        Place::NodePort(_) => Space::NodePort,
    }
}

fn endpoint_element(key: Tuple, endpoint: SocketAddr) -> Element {
    Element::value(key, [Value::from(endpoint.ip()), Value::Port(endpoint.port())])
}

fn chain_element(key: Tuple, chain: &ChainId) -> Element {
    Element::verdict(key, Verdict::Goto(chain.name()))
}

fn refused_element(key: Tuple, what: WhenEmpty) -> Element {
    Element::verdict(
        key,
        match what {
            WhenEmpty::Reject => Verdict::Goto("reject-service".to_owned()),
            WhenEmpty::Drop => Verdict::Drop,
        },
    )
}

fn plan_frontend(key: &FrontendKey, frontend: &Frontend, preferred: &Programmed) -> Programmed {
    let space = space_of(key);
    let plan_list = |inside, endpoints: &[SocketAddr], preferred: &ListState| {
        let slots = plan_slots(&preferred.slots, endpoints, frontend.affinity_seconds.is_some());
        let used: Vec<usize> =
            (0..).zip(&slots).filter(|(_, slot)| slot.is_some()).map(|(index, _)| index).collect();
        let chain = ChainId::for_slots(List { space, inside }, &used, frontend.affinity_seconds);
        ListState { slots, chain }
    };
    let mut outside = plan_list(false, &frontend.endpoints, &preferred.outside);
    let inside_endpoints = frontend.inside.as_deref().unwrap_or_default();
    let inside = plan_list(true, inside_endpoints, &preferred.inside);
    if inside.chain.is_some() {
        let next = outside.chain.take().map(Box::new);
        outside.chain = Some(ChainId::Local { space, next });
    } else if frontend.masquerade {
        outside.chain = outside.chain.map(|next| ChainId::Masquerade(Box::new(next)));
    }
    let refused = frontend.endpoints.is_empty().then_some(frontend.when_empty);
    Programmed { outside, inside, refused }
}

/// Puts endpoints into slots, moving as few as possible.
///
/// Without affinity the slots are dense: a free one is filled by a new endpoint, else by the last one. With affinity an endpoint never
/// moves while it lives, because clients are remembered by slot: free slots stay until a new endpoint takes them.
pub(crate) fn plan_slots(
    old: &[Option<SocketAddr>],
    wanted: &[SocketAddr],
    stable: bool,
) -> Vec<Option<SocketAddr>> {
    let keep: BTreeSet<SocketAddr> = wanted.iter().copied().collect();
    let mut placed = BTreeSet::new();
    let mut slots: Vec<Option<SocketAddr>> = old
        .iter()
        .map(|slot| slot.filter(|endpoint| keep.contains(endpoint) && placed.insert(*endpoint)))
        .collect();
    let mut free = 0;
    for endpoint in keep.difference(&placed) {
        while slots.get(free).is_some_and(Option::is_some) {
            free += 1;
        }
        match slots.get_mut(free) {
            Some(slot) => *slot = Some(*endpoint),
            None => slots.push(Some(*endpoint)),
        }
    }
    if !stable {
        let mut first = 0;
        while let Some(hole) = slots.iter().skip(first).position(Option::is_none).map(|offset| first + offset)
        {
            slots.swap_remove(hole);
            first = hole;
        }
    }
    while slots.last().is_some_and(Option::is_none) {
        slots.pop();
    }
    slots
}

/// Collects element changes by set, so that each set is one run of messages.
#[derive(Default)]
struct Writer {
    structure: Vec<Command>,
    remove: BTreeMap<String, (Set, Vec<Element>)>,
    add: BTreeMap<String, (Set, Vec<Element>)>,
    udp: Vec<UdpFlows>,
}

impl Writer {
    /// Changes the datum of a key in a map; `None` is no element.
    fn change<T: PartialEq>(
        &mut self,
        set: &Set,
        key: &Tuple,
        old: Option<T>,
        new: Option<T>,
        element: impl Fn(Tuple, T) -> Element,
    ) {
        if old == new {
            return;
        }
        if old.is_some() {
            self.remove_all(set, std::iter::once(Element::key(key.clone())));
        }
        self.add_all(set, new.into_iter().map(|new| element(key.clone(), new)));
    }

    fn add_all(&mut self, set: &Set, elements: impl Iterator<Item = Element>) {
        Self::put(&mut self.add, set, elements);
    }

    fn remove_all(&mut self, set: &Set, elements: impl Iterator<Item = Element>) {
        Self::put(&mut self.remove, set, elements);
    }

    fn put(
        into: &mut BTreeMap<String, (Set, Vec<Element>)>,
        set: &Set,
        elements: impl Iterator<Item = Element>,
    ) {
        let mut elements = elements.peekable();
        if elements.peek().is_none() {
            return;
        }
        match into.get_mut(&set.name) {
            Some((_, list)) => list.extend(elements),
            None => drop(into.insert(set.name.clone(), (set.clone(), elements.collect()))),
        }
    }

    /// Removals before additions, so that a key can be replaced.
    fn finish(self, table: &Table) -> Transaction {
        let mut commands = Vec::new();
        let remove = self.remove.into_values();
        commands.extend(remove.map(|(set, elements)| Command::DeleteElements(table.clone(), set, elements)));
        let add = self.add.into_values();
        commands.extend(add.map(|(set, elements)| Command::AddElements(table.clone(), set, elements)));
        Transaction { structure: self.structure, commands, udp: self.udp }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn endpoint(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 244, 0, last], 8080))
    }

    fn service(name: &str) -> Key {
        Key { namespace: "default".into(), name: name.into() }
    }

    fn settings() -> Settings {
        Settings {
            version: IpVersion::V4,
            cluster: Some("10.244.0.0/16".parse().unwrap()),
            services: Some("10.96.0.0/16".parse().unwrap()),
            masquerade_all: false,
            node_port_networks: Vec::new(),
            node_served: vec!["10.96.0.10".parse().unwrap()],
        }
    }

    fn address_key(last: u8) -> FrontendKey {
        FrontendKey {
            place: Place::Address(IpAddr::from([10, 96, 0, last])),
            protocol: Protocol::Tcp,
            port: 80,
        }
    }

    fn frontend(endpoints: &[u8]) -> Frontend {
        Frontend {
            endpoints: endpoints.iter().map(|last| endpoint(*last)).collect(),
            inside: None,
            affinity_seconds: None,
            masquerade: false,
            cluster_address: true,
            when_empty: WhenEmpty::Reject,
        }
    }

    fn text(transaction: &Transaction) -> String {
        transaction
            .structure
            .iter()
            .chain(&transaction.commands)
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n")
    }

    fn planned(endpoints: &[u8]) -> Plan {
        let mut plan = Plan::new(settings());
        plan.set_service(&service("web"), &[(address_key(7), frontend(endpoints))], &BTreeSet::new());
        plan.replace(Adopted::default());
        plan
    }

    #[test]
    fn a_new_endpoint_is_one_element_and_a_lost_one_moves_one() {
        let mut plan = planned(&[1, 2]);
        plan.set_service(&service("web"), &[(address_key(7), frontend(&[1, 2, 3]))], &BTreeSet::new());
        assert_eq!(
            text(&plan.update()),
            "add map ip orlop-proxy endpoints-2 { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }\n\
             add chain ip orlop-proxy slot-2\n\
             add rule ip orlop-proxy slot-2 dnat ip to ip daddr . meta l4proto . th dport map @endpoints-2\n\
             add rule ip orlop-proxy slot-2 goto slot-0\n\
             add chain ip orlop-proxy pick-3\n\
             add rule ip orlop-proxy pick-3 numgen random mod 3 vmap { 0 : goto slot-0, 1 : goto slot-1, 2 : goto slot-2 }\n\
             delete element ip orlop-proxy services { 10.96.0.7 . tcp . 80 }\n\
             add element ip orlop-proxy endpoints-2 { 10.96.0.7 . tcp . 80 : 10.244.0.3 . 8080 }\n\
             add element ip orlop-proxy services { 10.96.0.7 . tcp . 80 : goto pick-3 }"
        );
        plan.set_service(&service("web"), &[(address_key(7), frontend(&[2, 3]))], &BTreeSet::new());
        assert_eq!(
            text(&plan.update()),
            "delete element ip orlop-proxy endpoints-0 { 10.96.0.7 . tcp . 80 }\n\
             delete element ip orlop-proxy endpoints-2 { 10.96.0.7 . tcp . 80 }\n\
             delete element ip orlop-proxy services { 10.96.0.7 . tcp . 80 }\n\
             add element ip orlop-proxy endpoints-0 { 10.96.0.7 . tcp . 80 : 10.244.0.3 . 8080 }\n\
             add element ip orlop-proxy services { 10.96.0.7 . tcp . 80 : goto pick-2 }"
        );
        plan.set_service(&service("web"), &[(address_key(7), frontend(&[2, 3]))], &BTreeSet::new());
        assert!(plan.update().commands.is_empty());
    }

    #[test]
    fn without_endpoints_a_service_refuses_and_gone_it_is_gone() {
        let mut plan = planned(&[1]);
        plan.set_service(&service("web"), &[(address_key(7), frontend(&[]))], &BTreeSet::new());
        assert_eq!(
            text(&plan.update()),
            "delete element ip orlop-proxy endpoints-0 { 10.96.0.7 . tcp . 80 }\n\
             delete element ip orlop-proxy services { 10.96.0.7 . tcp . 80 }\n\
             add element ip orlop-proxy no-endpoint-services { 10.96.0.7 . tcp . 80 : goto reject-service }"
        );
        plan.set_service(&service("web"), &[], &BTreeSet::new());
        assert_eq!(
            text(&plan.update()),
            "delete element ip orlop-proxy cluster-ips { 10.96.0.7 }\n\
             delete element ip orlop-proxy no-endpoint-services { 10.96.0.7 . tcp . 80 }"
        );
    }

    #[test]
    fn of_two_claims_the_first_by_name_wins_until_it_goes() {
        let mut plan = planned(&[1]);
        plan.set_service(&service("a"), &[(address_key(7), frontend(&[9]))], &BTreeSet::new());
        assert!(text(&plan.update()).contains("10.244.0.9"));
        plan.set_service(&service("a"), &[], &BTreeSet::new());
        let back = text(&plan.update());
        assert!(back.contains("10.244.0.1 . 8080") && !back.contains("cluster-ips"), "{back}");
    }

    #[test]
    fn affinity_keeps_slots_where_they_are() {
        let slots = |old: &[Option<u8>], wanted: &[u8], stable| {
            let old: Vec<_> = old.iter().map(|slot| slot.map(endpoint)).collect();
            let wanted: Vec<_> = wanted.iter().map(|last| endpoint(*last)).collect();
            let new = plan_slots(&old, &wanted, stable);
            new.iter()
                .map(|slot| slot.map(|at| at.to_string()[9..].split(':').next().unwrap().parse().unwrap()))
                .collect::<Vec<Option<u8>>>()
        };
        assert_eq!(slots(&[Some(1), Some(2), Some(3)], &[2, 3], true), [None, Some(2), Some(3)]);
        assert_eq!(slots(&[None, Some(2), Some(3)], &[2, 3, 4], true), [Some(4), Some(2), Some(3)]);
        assert_eq!(slots(&[Some(1), Some(2), Some(3)], &[1], true), [Some(1)]);
        assert_eq!(slots(&[Some(1), Some(2), Some(3)], &[2, 3], false), [Some(3), Some(2)]);
        assert_eq!(slots(&[None, Some(2), Some(3)], &[2, 3], false), [Some(3), Some(2)]);
        let mut plan = Plan::new(settings());
        let sticky = |endpoints: &[u8]| Frontend { affinity_seconds: Some(60), ..frontend(endpoints) };
        plan.set_service(&service("web"), &[(address_key(7), sticky(&[1, 2, 3]))], &BTreeSet::new());
        plan.replace(Adopted::default());
        plan.set_service(&service("web"), &[(address_key(7), sticky(&[2, 3]))], &BTreeSet::new());
        let update = text(&plan.update());
        assert!(
            update.ends_with(
                "add element ip orlop-proxy services { 10.96.0.7 . tcp . 80 : goto sticky-60-1-2 }"
            ),
            "{update}"
        );
        // A table made anew keeps the slots, too.
        assert!(
            text(&plan.replace(Adopted::default()))
                .contains("add element ip orlop-proxy endpoints-2 { 10.96.0.7 . tcp . 80 : 10.244.0.3")
        );
    }

    /// What a naive reader of the commands believes the kernel has: elements by set and key.
    #[derive(Default)]
    struct Naive(BTreeMap<(String, Tuple), Element>);

    impl Naive {
        fn run(&mut self, transaction: &Transaction) {
            for command in &transaction.commands {
                match command {
                    Command::DeleteTable(_) => self.0.clear(),
                    Command::AddElements(_, set, elements) => {
                        for element in elements {
                            let old = self.0.insert((set.name.clone(), element.key.clone()), element.clone());
                            assert_eq!(old, None, "{} {element} was there", set.name);
                        }
                    }
                    Command::DeleteElements(_, set, elements) => {
                        for element in elements {
                            let old = self.0.remove(&(set.name.clone(), element.key.clone()));
                            assert!(old.is_some(), "{} {element} was not there", set.name);
                        }
                    }
                    Command::AddTable(_)
                    | Command::CreateTable(_)
                    | Command::AddChain(..)
                    | Command::AddSet(..) => {}
                }
            }
        }

        /// Endpoints that the dispatch chain of a key can reach.
        fn reachable(&self, key: &FrontendKey, list: List) -> BTreeSet<SocketAddr> {
            let key = Tuple(rules::element_key(key));
            let prefix = format!("{}endpoints-", list.prefix());
            let of_key = self.0.iter().filter(|((set, found), _)| *found == key && set.starts_with(&prefix));
            of_key
                .map(|(_, element)| match element.datum.as_ref().unwrap() {
                    orlop_nft::Datum::Values(Tuple(values)) => match values[..] {
                        [Value::Ipv4(address), Value::Port(port)] => SocketAddr::new(address.into(), port),
                        _ => unreachable!(),
                    },
                    orlop_nft::Datum::Verdict(_) => unreachable!(),
                })
                .collect()
        }
    }

    fn any_frontend() -> impl Strategy<Value = Frontend> {
        let lasts = || proptest::collection::btree_set(1u8..12, 0..6);
        (lasts(), proptest::option::of(lasts()), proptest::option::of(1u32..3), any::<bool>()).prop_map(
            |(outside, inside, affinity_seconds, masquerade)| Frontend {
                inside: inside.map(|lasts| lasts.into_iter().map(endpoint).collect()),
                affinity_seconds,
                masquerade,
                ..frontend(&outside.into_iter().collect::<Vec<_>>())
            },
        )
    }

    proptest! {
        #[test]
        fn any_history_ends_where_a_fresh_table_would(
            steps in proptest::collection::vec((0u8..3, 0u8..4, proptest::option::of(any_frontend()), any::<bool>()), 1..30)
        ) {
            let mut plan = Plan::new(settings());
            let mut kernel = Naive::default();
            kernel.run(&plan.replace(Adopted::default()));
            for (name, last, wanted, whole) in steps {
                let frontends: Vec<_> = wanted.iter().map(|frontend| (address_key(last), frontend.clone())).collect();
                plan.set_service(&service(&name.to_string()), &frontends, &BTreeSet::new());
                kernel.run(&if whole { plan.replace(Adopted::default()) } else { plan.update() });
            }
            for (key, claims) in &plan.claims {
                let wanted = claims.values().next().unwrap();
                let outside = kernel.reachable(key, List { space: Space::Address, inside: false });
                prop_assert_eq!(outside, wanted.endpoints.iter().copied().collect::<BTreeSet<_>>());
                let inside = kernel.reachable(key, List { space: Space::Address, inside: true });
                prop_assert_eq!(inside, wanted.inside.iter().flatten().copied().collect::<BTreeSet<_>>());
            }
            let dispatched = kernel.0.keys().filter(|(set, _)| set == "services" || set == "no-endpoint-services").map(|(_, key)| key);
            let wanted: BTreeSet<Tuple> = plan.claims.keys().map(|key| Tuple(rules::element_key(key))).collect();
            prop_assert_eq!(dispatched.cloned().collect::<BTreeSet<_>>(), wanted);
        }
    }
}
