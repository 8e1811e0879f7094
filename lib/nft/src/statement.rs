//! Statements of a rule in the words of `nft`, and what they become in the kernel's expressions.
//!
//! Only forms are offered that `nft` itself writes, with its choice of registers: so every rule can be listed and loaded again. A
//! rule that the kernel takes and `nft` does not know can make `nft list` abort.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::expression::{self, Expression, FibKey, MetaKey, NatKind, PayloadBase};
use crate::object::Family;
use crate::value::{DataType, Tuple, Value, Verdict};

/// A property of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selector {
    /// `ip saddr` or `ip6 saddr`, by the type given.
    SourceAddress(IpVersion),
    /// `ip daddr` or `ip6 daddr`.
    DestinationAddress(IpVersion),
    /// `meta l4proto`.
    Protocol,
    /// `th dport`.
    DestinationPort,
    /// `meta mark`.
    Mark,
}

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IpVersion {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpVersion {
    /// The version of an address.
    pub const fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    /// The type of an address.
    pub const fn data_type(self) -> DataType {
        match self {
            Self::V4 => DataType::Ipv4,
            Self::V6 => DataType::Ipv6,
        }
    }

    /// The family of a table for it alone.
    pub const fn family(self) -> Family {
        match self {
            Self::V4 => Family::Ip,
            Self::V6 => Family::Ip6,
        }
    }

    const fn source_offset(self) -> u32 {
        match self {
            Self::V4 => 12,
            Self::V6 => 8,
        }
    }

    const fn destination_offset(self) -> u32 {
        match self {
            Self::V4 => 16,
            Self::V6 => 24,
        }
    }

    const fn length(self) -> u32 {
        self.data_type().length()
    }
}

impl Selector {
    /// The type of its value.
    pub const fn data_type(self) -> DataType {
        match self {
            Self::SourceAddress(version) | Self::DestinationAddress(version) => version.data_type(),
            Self::Protocol => DataType::Protocol,
            Self::DestinationPort => DataType::Port,
            Self::Mark => DataType::Mark,
        }
    }

    /// Loads the value into a register.
    fn load(self, register: u32) -> Expression {
        let payload = |base, offset, length| Expression::Payload { base, offset, length, register };
        match self {
            Self::SourceAddress(version) => {
                payload(PayloadBase::Network, version.source_offset(), version.length())
            }
            Self::DestinationAddress(version) => {
                payload(PayloadBase::Network, version.destination_offset(), version.length())
            }
            Self::Protocol => Expression::Meta { key: MetaKey::L4Protocol, register },
            Self::DestinationPort => payload(PayloadBase::Transport, 2, 2),
            Self::Mark => Expression::Meta { key: MetaKey::Mark, register },
        }
    }

    const fn version(self) -> Option<IpVersion> {
        match self {
            Self::SourceAddress(version) | Self::DestinationAddress(version) => Some(version),
            Self::Protocol | Self::DestinationPort | Self::Mark => None,
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SourceAddress(version) => write!(formatter, "{} saddr", version.word()),
            Self::DestinationAddress(version) => write!(formatter, "{} daddr", version.word()),
            Self::Protocol => formatter.write_str("meta l4proto"),
            Self::DestinationPort => formatter.write_str("th dport"),
            Self::Mark => formatter.write_str("meta mark"),
        }
    }
}

/// One statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// `ip saddr 10.0.0.0/8`, or with `!=`.
    SourceIn {
        /// The network.
        network: IpNet,
        /// Matches the others.
        negated: bool,
    },
    /// `ip daddr 10.0.0.0/8`, or with `!=`.
    DestinationIn {
        /// The network.
        network: IpNet,
        /// Matches the others.
        negated: bool,
    },
    /// `KEY @set`.
    InSet {
        /// The key.
        key: Vec<Selector>,
        /// Set name.
        set: String,
    },
    /// `KEY vmap @map`.
    VerdictMap {
        /// The key.
        key: Vec<Selector>,
        /// Map name.
        map: String,
    },
    /// `numgen random mod N vmap { 0 : V0, 1 : V1, … }`.
    RandomVerdict(Vec<Verdict>),
    /// `dnat ip to KEY map @map`, the map giving address and port.
    DnatByMap {
        /// Address version.
        version: IpVersion,
        /// The key.
        key: Vec<Selector>,
        /// Map name.
        map: String,
    },
    /// `masquerade fully-random`.
    Masquerade,
    /// `update @set { KEY timeout T }`.
    Update {
        /// The key.
        key: Vec<Selector>,
        /// Set name.
        set: String,
        /// Silence after which the element goes.
        timeout: Duration,
    },
    /// `meta mark set meta mark | BITS`.
    MarkSet(u32),
    /// `meta mark & BITS != 0`, or with `negated` `== 0`.
    MarkHas {
        /// The bits.
        bits: u32,
        /// None of them.
        negated: bool,
    },
    /// `meta mark set meta mark & ~BITS`.
    MarkClear(u32),
    /// `ct state new`.
    ConnectionNew,
    /// `ct status dnat`.
    ConnectionTranslated,
    /// `fib daddr type local`.
    DestinationLocal,
    /// `fib saddr type local`.
    SourceLocal,
    /// `oifname NAME`.
    OutInterface {
        /// Interface name.
        name: String,
        /// The others.
        negated: bool,
    },
    /// `reject`: ICMP port unreachable.
    Reject,
    /// `meta l4proto tcp reject with tcp reset`.
    ResetTcp,
    /// `counter`.
    Counter,
    /// `notrack`.
    Notrack,
    /// A verdict.
    Verdict(Verdict),
}

/// The registers of a key: the first field begins at register 1, each next one at a 32-bit register behind it.
fn load_key(key: &[Selector], into: &mut Vec<Expression>) {
    let mut word = 0;
    for selector in key {
        let register = if word == 0 { expression::REGISTER_1 } else { expression::REGISTER_32_00 + word };
        into.push(selector.load(register));
        word += selector.data_type().padded_length() / 4;
    }
}

fn display_key(formatter: &mut fmt::Formatter<'_>, key: &[Selector]) -> fmt::Result {
    for (index, selector) in key.iter().enumerate() {
        if index > 0 {
            formatter.write_str(" . ")?;
        }
        write!(formatter, "{selector}")?;
    }
    Ok(())
}

/// `NF_CT_STATE_BIT(IP_CT_NEW)`.
const CT_STATE_NEW: u32 = 8;
/// `IPS_DST_NAT`.
const CT_STATUS_DNAT: u32 = 0x20;
/// `IFNAMSIZ`.
const INTERFACE_NAME_BYTES: usize = 16;
/// `IPPROTO_TCP`.
const PROTOCOL_TCP: u8 = 6;
/// `RTN_LOCAL`.
const ADDRESS_LOCAL: u32 = 2;

impl Statement {
    /// The IP version that the statement looks at, where it does: in a table of both, `nft` checks it first.
    fn version(&self) -> Option<IpVersion> {
        match self {
            Self::SourceIn { network, .. } | Self::DestinationIn { network, .. } => {
                Some(IpVersion::of(network.addr()))
            }
            Self::InSet { key, .. } | Self::VerdictMap { key, .. } | Self::Update { key, .. } => {
                key.iter().find_map(|selector| selector.version())
            }
            Self::DnatByMap { version, .. } => Some(*version),
            Self::RandomVerdict(_)
            | Self::Masquerade
            | Self::MarkSet(_)
            | Self::MarkHas { .. }
            | Self::MarkClear(_)
            | Self::ConnectionNew
            | Self::ConnectionTranslated
            | Self::DestinationLocal
            | Self::SourceLocal
            | Self::OutInterface { .. }
            | Self::Reject
            | Self::ResetTcp
            | Self::Counter
            | Self::Notrack
            | Self::Verdict(_) => None,
        }
    }

    /// Expressions of a whole rule. `anonymous` gives the name and id of the set made for a [`Statement::RandomVerdict`].
    pub(crate) fn lower(
        statements: &[Self],
        family: Family,
        mut anonymous: impl FnMut(&[Verdict]) -> (String, u32),
    ) -> Vec<Expression> {
        let mut into = Vec::with_capacity(statements.len() * 3);
        let mut checked = None;
        for statement in statements {
            let version = statement.version();
            if family == Family::Inet && version.is_some() && version != checked {
                checked = version;
                let number = version.map_or(0, |version| version.family().number());
                into.push(Expression::Meta {
                    key: MetaKey::NetworkProtocol,
                    register: expression::REGISTER_1,
                });
                into.push(expression::equal(vec![number], false));
            }
            statement.lower_one(&mut into, &mut anonymous);
        }
        into
    }

    fn lower_one(&self, into: &mut Vec<Expression>, anonymous: &mut impl FnMut(&[Verdict]) -> (String, u32)) {
        let register = expression::REGISTER_1;
        match self {
            Self::SourceIn { network, negated } => {
                lower_network(into, *network, IpVersion::source_offset, *negated)
            }
            Self::DestinationIn { network, negated } => {
                lower_network(into, *network, IpVersion::destination_offset, *negated);
            }
            Self::InSet { key, set } => {
                load_key(key, into);
                into.push(Expression::lookup(set));
            }
            Self::VerdictMap { key, map } => {
                load_key(key, into);
                into.push(Expression::lookup_into(map, expression::REGISTER_VERDICT));
            }
            Self::RandomVerdict(verdicts) => lower_random(into, verdicts, anonymous(verdicts)),
            Self::DnatByMap { version, key, map } => {
                load_key(key, into);
                into.push(Expression::lookup_into(map, register));
                let port = expression::REGISTER_32_00 + version.data_type().padded_length() / 4;
                into.push(Expression::Nat {
                    kind: NatKind::Destination,
                    version: *version,
                    address: register,
                    port,
                });
            }
            Self::Masquerade => into.push(Expression::Masquerade),
            Self::Update { key, set, timeout } => {
                load_key(key, into);
                into.push(Expression::Update { set: set.clone(), timeout: *timeout });
            }
            Self::MarkSet(_) | Self::MarkHas { .. } | Self::MarkClear(_) => self.lower_mark(into),
            Self::ConnectionNew => lower_connection(into, expression::CT_STATE, CT_STATE_NEW),
            Self::ConnectionTranslated => lower_connection(into, expression::CT_STATUS, CT_STATUS_DNAT),
            Self::DestinationLocal => lower_fib(into, FibKey::Destination),
            Self::SourceLocal => lower_fib(into, FibKey::Source),
            Self::OutInterface { name, negated } => lower_out_interface(into, name, *negated),
            Self::Reject => into.push(Expression::Reject),
            Self::ResetTcp => lower_reset(into),
            Self::Counter => into.push(Expression::Counter),
            Self::Notrack => into.push(Expression::Notrack),
            Self::Verdict(verdict) => into.push(Expression::Verdict(verdict.clone())),
        }
    }

    fn lower_mark(&self, into: &mut Vec<Expression>) {
        let register = expression::REGISTER_1;
        into.push(Expression::Meta { key: MetaKey::Mark, register });
        let words = |mask: u32, xor: u32| {
            expression::bitwise(mask.to_ne_bytes().to_vec(), xor.to_ne_bytes().to_vec())
        };
        match self {
            Self::MarkHas { bits, negated } => {
                into.push(words(*bits, 0));
                into.push(expression::equal(vec![0; 4], !negated));
                return;
            }
            Self::MarkClear(bits) => into.push(words(!bits, 0)),
            // x | b == (x & ~b) ^ b
            Self::MarkSet(bits) => into.push(words(!bits, *bits)),
            _ => {}
        }
        into.push(Expression::SetMark { register });
    }
}

/// A byte-aligned prefix is compared by loading only its bytes, any other by a mask: as `nft` does.
fn lower_network(into: &mut Vec<Expression>, network: IpNet, offset: fn(IpVersion) -> u32, negated: bool) {
    let version = IpVersion::of(network.addr());
    let bytes = Tuple::from([Value::from(network.network())]).bytes();
    let prefix = network.prefix_len();
    let whole = prefix.is_multiple_of(8) && prefix > 0;
    let length = if whole { u32::from(prefix) / 8 } else { version.length() };
    into.push(Expression::Payload {
        base: PayloadBase::Network,
        offset: offset(version),
        length,
        register: expression::REGISTER_1,
    });
    if !whole {
        let mask = Tuple::from([Value::from(network.netmask())]).bytes();
        into.push(expression::bitwise(mask, vec![0; bytes.len()]));
    }
    into.push(expression::equal(bytes[..length as usize].to_vec(), negated));
}

/// A random number below the number of verdicts, looked up in the anonymous map of name and id.
fn lower_random(into: &mut Vec<Expression>, verdicts: &[Verdict], (set, id): (String, u32)) {
    let modulus = u32::try_from(verdicts.len()).expect("a rule has far fewer verdicts than 4 billion");
    into.push(Expression::Random { modulus, register: expression::REGISTER_1 });
    into.push(Expression::Lookup { set, id: Some(id), destination: Some(expression::REGISTER_VERDICT) });
}

fn lower_out_interface(into: &mut Vec<Expression>, name: &str, negated: bool) {
    into.push(Expression::Meta { key: MetaKey::OutInterfaceName, register: expression::REGISTER_1 });
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(INTERFACE_NAME_BYTES, 0);
    into.push(expression::equal(bytes, negated));
}

fn lower_reset(into: &mut Vec<Expression>) {
    into.push(Expression::Meta { key: MetaKey::L4Protocol, register: expression::REGISTER_1 });
    into.push(expression::equal(vec![PROTOCOL_TCP], false));
    into.push(Expression::ResetTcp);
}

fn lower_connection(into: &mut Vec<Expression>, key: u32, bits: u32) {
    into.push(Expression::Connection { key });
    into.push(expression::bitwise(bits.to_ne_bytes().to_vec(), vec![0; 4]));
    into.push(expression::equal(vec![0; 4], true));
}

fn lower_fib(into: &mut Vec<Expression>, key: FibKey) {
    into.push(Expression::AddressType { of: key });
    into.push(expression::equal(ADDRESS_LOCAL.to_ne_bytes().to_vec(), false));
}

impl fmt::Display for Statement {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = |negated: bool| if negated { "!= " } else { "" };
        match self {
            Self::SourceIn { network, negated } => {
                write!(formatter, "{} saddr {}{network}", IpVersion::of(network.addr()).word(), not(*negated))
            }
            Self::DestinationIn { network, negated } => {
                write!(formatter, "{} daddr {}{network}", IpVersion::of(network.addr()).word(), not(*negated))
            }
            Self::InSet { key, set } => {
                display_key(formatter, key)?;
                write!(formatter, " @{set}")
            }
            Self::VerdictMap { key, map } => {
                display_key(formatter, key)?;
                write!(formatter, " vmap @{map}")
            }
            Self::RandomVerdict(verdicts) => {
                write!(formatter, "numgen random mod {} vmap {{", verdicts.len())?;
                for (index, verdict) in verdicts.iter().enumerate() {
                    write!(formatter, "{} {index} : {verdict}", if index > 0 { "," } else { "" })?;
                }
                formatter.write_str(" }")
            }
            Self::DnatByMap { version, key, map } => {
                write!(formatter, "dnat {} to ", version.word())?;
                display_key(formatter, key)?;
                write!(formatter, " map @{map}")
            }
            Self::Masquerade => formatter.write_str("masquerade fully-random"),
            Self::Update { key, set, timeout } => {
                write!(formatter, "update @{set} {{ ")?;
                display_key(formatter, key)?;
                write!(formatter, " timeout {}s }}", timeout.as_secs())
            }
            Self::MarkSet(bits) => write!(formatter, "meta mark set meta mark | {bits:#010x}"),
            Self::MarkHas { bits, negated } => {
                write!(formatter, "meta mark & {bits:#010x} {} 0", if *negated { "==" } else { "!=" })
            }
            Self::MarkClear(bits) => write!(formatter, "meta mark set meta mark & {:#010x}", !bits),
            Self::ConnectionNew => formatter.write_str("ct state new"),
            Self::ConnectionTranslated => formatter.write_str("ct status dnat"),
            Self::DestinationLocal => formatter.write_str("fib daddr type local"),
            Self::SourceLocal => formatter.write_str("fib saddr type local"),
            Self::OutInterface { name, negated } => write!(formatter, "oifname {}\"{name}\"", not(*negated)),
            Self::Reject => formatter.write_str("reject"),
            Self::ResetTcp => formatter.write_str("meta l4proto tcp reject with tcp reset"),
            Self::Counter => formatter.write_str("counter"),
            Self::Notrack => formatter.write_str("notrack"),
            Self::Verdict(verdict) => write!(formatter, "{verdict}"),
        }
    }
}
