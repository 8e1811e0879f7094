//! The chains that choose an endpoint. Each is named by what it does, made once, and shared by all Services that need it.

use std::time::Duration;

use orlop_nft::{Chain, IpVersion, Rule, Selector, Set, Statement, Verdict};

use super::{MASQUERADE_MARK, NODE_PORT_KEY, Settings, address_key, dispatch, endpoints, types};

/// Clients that are remembered per slot; when it is full, further ones are not.
const AFFINITY_CLIENTS: u32 = 65_536;
/// Chain names have 255 characters; a pattern that does not fit is named by its hash.
const PATTERN_LIMIT: usize = 100;

/// What keys look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Space {
    /// Address, protocol and port.
    Address,
    /// Protocol and port, at any address of the node.
    NodePort,
}

impl Space {
    pub(crate) fn key(self, version: IpVersion) -> Vec<Selector> {
        match self {
            Self::Address => address_key(version),
            Self::NodePort => NODE_PORT_KEY.to_vec(),
        }
    }
}

/// One of the lists of endpoints that a key can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct List {
    pub(crate) space: Space,
    /// For clients inside the cluster, where these are treated differently.
    pub(crate) inside: bool,
}

impl List {
    pub(crate) const fn prefix(self) -> &'static str {
        match (self.inside, self.space) {
            (false, Space::Address) => "",
            (false, Space::NodePort) => "nodeport-",
            (true, Space::Address) => "inside-",
            (true, Space::NodePort) => "inside-nodeport-",
        }
    }
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum ChainId {
    /// Translates to the endpoint in a slot.
    Slot { list: List, index: usize },
    /// Chooses among the first `count` slots.
    Pick { list: List, count: usize },
    /// Remembers the client for a slot, then translates.
    StickySlot { list: List, seconds: u32, index: usize },
    /// Finds the slot of a client, or chooses one of these.
    Sticky { list: List, seconds: u32, slots: Vec<usize> },
    /// Marks for masquerade, then goes on.
    Masquerade(Box<ChainId>),
    /// Sends clients inside the cluster elsewhere; the others go on, or are left for the filter chains.
    Local { space: Space, next: Option<Box<ChainId>> },
    /// Looks the key up among those for clients inside.
    Inside(Space),
}

impl ChainId {
    /// The chain that serves from these slots (of which some may be empty); `None` when all are.
    pub(crate) fn for_slots(list: List, slots: &[usize], affinity_seconds: Option<u32>) -> Option<Self> {
        match (slots, affinity_seconds) {
            ([], _) => None,
            (slots, Some(seconds)) => Some(Self::Sticky { list, seconds, slots: slots.to_vec() }),
            ([0], None) => Some(Self::Slot { list, index: 0 }),
            (slots, None) => Some(Self::Pick { list, count: slots.len() }),
        }
    }

    pub(crate) fn name(&self) -> String {
        match self {
            Self::Slot { list, index } => format!("{}slot-{index}", list.prefix()),
            Self::Pick { list, count } => format!("{}pick-{count}", list.prefix()),
            Self::StickySlot { list, seconds, index } => {
                format!("{}sticky-slot-{seconds}-{index}", list.prefix())
            }
            Self::Sticky { list, seconds, slots } => {
                format!("{}sticky-{seconds}-{}", list.prefix(), pattern(slots))
            }
            Self::Masquerade(next) => format!("masquerade-{}", next.name()),
            Self::Local { space, next } => {
                let next =
                    next.as_ref().map_or_else(|| format!("{}none", prefix(*space)), |next| next.name());
                format!("local-{next}")
            }
            Self::Inside(space) => format!("{}inside", prefix(*space)),
        }
    }

    /// Chains that it goes to.
    pub(crate) fn needs(&self) -> Vec<Self> {
        match self {
            Self::Slot { index: 0, .. } | Self::Inside(_) => Vec::new(),
            Self::Slot { list, .. } => vec![Self::Slot { list: *list, index: 0 }],
            Self::Pick { list, count } => {
                (0..*count).map(|index| Self::Slot { list: *list, index }).collect()
            }
            Self::StickySlot { list, index, .. } => vec![Self::Slot { list: *list, index: *index }],
            Self::Sticky { list, seconds, slots } => {
                let slot = |index: &usize| Self::StickySlot { list: *list, seconds: *seconds, index: *index };
                slots.iter().map(slot).collect()
            }
            Self::Masquerade(next) => vec![(**next).clone()],
            Self::Local { space, next } => {
                let mut needs = vec![Self::Inside(*space)];
                needs.extend(next.as_deref().cloned());
                needs
            }
        }
    }

    /// Sets that its rules name, beyond those that are always there.
    pub(crate) fn sets(&self, version: IpVersion) -> Vec<Set> {
        match self {
            Self::Slot { list, index } => vec![endpoints(version, *list, *index)],
            Self::StickySlot { list, index, .. } => vec![affinity(version, *list, *index)],
            Self::Pick { .. }
            | Self::Sticky { .. }
            | Self::Masquerade(_)
            | Self::Local { .. }
            | Self::Inside(_) => Vec::new(),
        }
    }

    pub(crate) fn chain(&self, settings: &Settings) -> Chain {
        let version = settings.version;
        let rules = match self {
            Self::Slot { list, index } => {
                let map = endpoints(version, *list, *index).name;
                let mut rules =
                    vec![Rule::from([Statement::DnatByMap { version, key: list.space.key(version), map }])];
                // A slot may be emptied between the choice and this lookup; the first one is filled as long as there is any.
                rules.extend(self.needs().iter().map(goto));
                rules
            }
            Self::Pick { .. } => {
                vec![Rule::from([Statement::RandomVerdict(self.needs().iter().map(goto_verdict).collect())])]
            }
            Self::StickySlot { list, seconds, index } => {
                let set = affinity(version, *list, *index).name;
                let timeout = Duration::from_secs((*seconds).into());
                // The update is a rule of its own: when the set is full it fails, and the client still gets its answer.
                vec![
                    Rule::from([Statement::Update { key: client_key(version), set, timeout }]),
                    goto(&Self::Slot { list: *list, index: *index }),
                ]
            }
            Self::Sticky { list, slots, .. } => sticky_rules(version, *list, slots, &self.needs()),
            Self::Masquerade(next) => vec![Rule::from([Statement::MarkSet(MASQUERADE_MARK)]), goto(next)],
            Self::Local { space, next } => local_rules(settings, *space, next.as_deref()),
            Self::Inside(space) => {
                let map = dispatch(version, List { space: *space, inside: true }).name;
                vec![Rule::from([Statement::VerdictMap { key: space.key(version), map }])]
            }
        };
        Chain::regular(self.name(), rules)
    }
}

const fn prefix(space: Space) -> &'static str {
    List { space, inside: false }.prefix()
}

fn goto_verdict(chain: &ChainId) -> Verdict {
    Verdict::Goto(chain.name())
}

fn goto(chain: &ChainId) -> Rule {
    Rule::from([Statement::Verdict(goto_verdict(chain))])
}

/// `client . address . protocol . port`
fn client_key(version: IpVersion) -> Vec<Selector> {
    let mut key = vec![Selector::SourceAddress(version)];
    key.extend(address_key(version));
    key
}

/// The clients that a slot remembers.
pub(crate) fn affinity(version: IpVersion, list: List, index: usize) -> Set {
    Set::dynamic(format!("{}affinity-{index}", list.prefix()), &types(&client_key(version)), AFFINITY_CLIENTS)
}

fn sticky_rules(version: IpVersion, list: List, slots: &[usize], chains: &[ChainId]) -> Vec<Rule> {
    let remembered = |(index, chain): (&usize, &ChainId)| {
        let set = affinity(version, list, *index).name;
        Rule::from([
            Statement::InSet { key: client_key(version), set },
            Statement::Verdict(goto_verdict(chain)),
        ])
    };
    let mut rules: Vec<Rule> = slots.iter().zip(chains).map(remembered).collect();
    rules.push(match chains {
        [single] => goto(single),
        several => Rule::from([Statement::RandomVerdict(several.iter().map(goto_verdict).collect())]),
    });
    rules
}

fn local_rules(settings: &Settings, space: Space, next: Option<&ChainId>) -> Vec<Rule> {
    let inside = || Statement::Verdict(goto_verdict(&ChainId::Inside(space)));
    let mut rules = Vec::new();
    if let Some(network) = settings.cluster {
        rules.push(Rule::from([Statement::SourceIn { network, negated: false }, inside()]));
    }
    rules.push(Rule::from([Statement::SourceLocal, inside()]));
    rules.extend(next.map(goto));
    rules
}

/// Slots in short: `0-3.5`.
fn pattern(slots: &[usize]) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for slot in slots {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *slot => *last = *slot,
            _ => ranges.push((*slot, *slot)),
        }
    }
    let text = ranges
        .iter()
        .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
        .collect::<Vec<_>>()
        .join(".");
    if text.len() <= PATTERN_LIMIT {
        return text;
    }
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{}-of-{}-{hash:016x}", slots.len(), slots.last().map_or(0, |last| last + 1))
}
