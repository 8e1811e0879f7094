//! The kernel's expressions: `include/uapi/linux/netfilter/nf_tables.h`.

use std::time::Duration;

use crate::statement::IpVersion;
use crate::value::Verdict;
use crate::wire::Encoder;

/// `NFT_REG_VERDICT`.
pub(crate) const REGISTER_VERDICT: u32 = 0;
/// `NFT_REG_1`: 16 bytes.
pub(crate) const REGISTER_1: u32 = 1;
/// `NFT_REG32_00`: the first four bytes of register 1.
pub(crate) const REGISTER_32_00: u32 = 8;
/// `NFT_CT_STATE`.
pub(crate) const CT_STATE: u32 = 0;
/// `NFT_CT_STATUS`.
pub(crate) const CT_STATUS: u32 = 2;

const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
const COMPARE_EQUAL: u32 = 0;
const COMPARE_NOT_EQUAL: u32 = 1;
const NUMGEN_RANDOM: u32 = 1;
const NAT_RANDOM_FULLY: u32 = 0x10;
const FIB_RESULT_ADDRTYPE: u32 = 3;
const DYNSET_UPDATE: u32 = 1;
const REJECT_ICMP_UNREACHABLE: u32 = 0;
const REJECT_TCP_RESET: u32 = 1;
const REJECT_ICMPX_UNREACHABLE: u32 = 2;
const ICMP_PORT_UNREACHABLE: u8 = 3;
const ICMP6_PORT_UNREACHABLE: u8 = 4;
const ICMPX_PORT_UNREACHABLE: u8 = 1;

/// Header that a payload offset counts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PayloadBase {
    Network = 1,
    Transport = 2,
}

/// `NFT_META_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MetaKey {
    Mark = 3,
    OutInterfaceName = 7,
    NetworkProtocol = 15,
    L4Protocol = 16,
}

/// `NFT_NAT_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NatKind {
    Destination = 1,
}

/// `NFTA_FIB_F_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FibKey {
    Source = 1,
    Destination = 2,
}

/// One expression of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expression {
    Payload { base: PayloadBase, offset: u32, length: u32, register: u32 },
    Meta { key: MetaKey, register: u32 },
    SetMark { register: u32 },
    Compare { value: Vec<u8>, negated: bool },
    Bitwise { mask: Vec<u8>, xor: Vec<u8> },
    Lookup { set: String, id: Option<u32>, destination: Option<u32> },
    Random { modulus: u32, register: u32 },
    Nat { kind: NatKind, version: IpVersion, address: u32, port: u32 },
    Masquerade,
    Update { set: String, timeout: Duration },
    Connection { key: u32 },
    AddressType { of: FibKey },
    Reject,
    ResetTcp,
    Counter,
    Notrack,
    Verdict(Verdict),
}

pub(crate) const fn equal(value: Vec<u8>, negated: bool) -> Expression {
    Expression::Compare { value, negated }
}

pub(crate) const fn bitwise(mask: Vec<u8>, xor: Vec<u8>) -> Expression {
    Expression::Bitwise { mask, xor }
}

impl Expression {
    pub(crate) fn lookup(set: &str) -> Self {
        Self::Lookup { set: set.to_owned(), id: None, destination: None }
    }

    pub(crate) fn lookup_into(map: &str, register: u32) -> Self {
        Self::Lookup { set: map.to_owned(), id: None, destination: Some(register) }
    }

    const fn name(&self) -> &'static str {
        match self {
            Self::Payload { .. } => "payload",
            Self::Meta { .. } | Self::SetMark { .. } => "meta",
            Self::Compare { .. } => "cmp",
            Self::Bitwise { .. } => "bitwise",
            Self::Lookup { .. } => "lookup",
            Self::Random { .. } => "numgen",
            Self::Nat { .. } => "nat",
            Self::Masquerade => "masq",
            Self::Update { .. } => "dynset",
            Self::Connection { .. } => "ct",
            Self::AddressType { .. } => "fib",
            Self::Reject | Self::ResetTcp => "reject",
            Self::Counter => "counter",
            Self::Notrack => "notrack",
            Self::Verdict(_) => "immediate",
        }
    }

    /// Writes the expression as one element of a rule's list. `family` is the `NFPROTO_*` of the table.
    pub(crate) fn encode(&self, encoder: &mut Encoder, family: u8) {
        encoder.nested(LIST_ELEMENT, |encoder| {
            encoder.put_str(EXPRESSION_NAME, self.name());
            encoder.nested(EXPRESSION_DATA, |encoder| self.encode_data(encoder, family));
        });
    }

    fn encode_data(&self, encoder: &mut Encoder, family: u8) {
        match self {
            Self::Payload { base, offset, length, register } => {
                put_all(encoder, &[(1, *register), (2, *base as u32), (3, *offset), (4, *length)]);
            }
            Self::Meta { key, register } => put_all(encoder, &[(2, *key as u32), (1, *register)]),
            Self::SetMark { register } => put_all(encoder, &[(2, MetaKey::Mark as u32), (3, *register)]),
            Self::Compare { value, negated } => {
                let operation = if *negated { COMPARE_NOT_EQUAL } else { COMPARE_EQUAL };
                put_all(encoder, &[(1, REGISTER_1), (2, operation)]);
                put_data(encoder, 3, value);
            }
            Self::Bitwise { mask, xor } => {
                let length = u32::try_from(mask.len()).expect("a mask is at most 16 bytes");
                put_all(encoder, &[(1, REGISTER_1), (2, REGISTER_1), (3, length), (6, 0)]);
                put_data(encoder, 4, mask);
                put_data(encoder, 5, xor);
            }
            Self::Lookup { set, id, destination } => encode_lookup(encoder, set, *id, *destination),
            Self::Random { modulus, register } => {
                put_all(encoder, &[(1, *register), (2, *modulus), (3, NUMGEN_RANDOM), (4, 0)]);
            }
            Self::Nat { kind, version, address, port } => {
                let family = u32::from(version.family().number());
                put_all(encoder, &[(1, *kind as u32), (2, family), (3, *address), (5, *port)]);
            }
            Self::Connection { key } => put_all(encoder, &[(1, REGISTER_1), (2, *key)]),
            Self::AddressType { of } => {
                put_all(encoder, &[(1, REGISTER_1), (2, FIB_RESULT_ADDRTYPE), (3, *of as u32)]);
            }
            Self::Masquerade
            | Self::Update { .. }
            | Self::Reject
            | Self::ResetTcp
            | Self::Counter
            | Self::Notrack
            | Self::Verdict(_) => self.encode_action(encoder, family),
        }
    }

    /// Expressions that do something instead of loading or comparing.
    fn encode_action(&self, encoder: &mut Encoder, family: u8) {
        match self {
            Self::Masquerade => encoder.put_be32(1, NAT_RANDOM_FULLY),
            Self::Update { set, timeout } => {
                encoder.put_str(1, set);
                put_all(encoder, &[(3, DYNSET_UPDATE), (4, REGISTER_1)]);
                encoder.put_be64(6, u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
            }
            Self::Reject => encode_reject(encoder, family),
            Self::ResetTcp => {
                encoder.put_be32(1, REJECT_TCP_RESET);
                encoder.put_u8(2, 0);
            }
            Self::Counter => {
                encoder.put_be64(1, 0);
                encoder.put_be64(2, 0);
            }
            Self::Verdict(verdict) => {
                encoder.put_be32(1, REGISTER_VERDICT);
                encoder.nested(2, |encoder| put_verdict(encoder, verdict));
            }
            // `notrack` has no attributes; the rest is not an action.
            _ => {}
        }
    }
}

fn encode_lookup(encoder: &mut Encoder, set: &str, id: Option<u32>, destination: Option<u32>) {
    encoder.put_be32(2, REGISTER_1);
    if let Some(destination) = destination {
        encoder.put_be32(3, destination);
    }
    encoder.put_str(1, set);
    if let Some(id) = id {
        encoder.put_be32(4, id);
    }
}

/// Port unreachable, in the words of each family; a table of both has codes of its own (`NFT_REJECT_ICMPX_*`).
fn encode_reject(encoder: &mut Encoder, family: u8) {
    let (kind, code) = match family {
        2 => (REJECT_ICMP_UNREACHABLE, ICMP_PORT_UNREACHABLE),
        10 => (REJECT_ICMP_UNREACHABLE, ICMP6_PORT_UNREACHABLE),
        _ => (REJECT_ICMPX_UNREACHABLE, ICMPX_PORT_UNREACHABLE),
    };
    encoder.put_be32(1, kind);
    encoder.put_u8(2, code);
}

fn put_all(encoder: &mut Encoder, values: &[(u16, u32)]) {
    for (kind, value) in values {
        encoder.put_be32(*kind, *value);
    }
}

pub(crate) fn put_data(encoder: &mut Encoder, kind: u16, value: &[u8]) {
    encoder.nested(kind, |encoder| encoder.put(DATA_VALUE, value));
}

/// `NFTA_DATA_VERDICT` with code and chain.
pub(crate) fn put_verdict(encoder: &mut Encoder, verdict: &Verdict) {
    encoder.nested(DATA_VERDICT, |encoder| {
        encoder.put_be32(VERDICT_CODE, verdict.code().cast_unsigned());
        if let Some(chain) = verdict.chain() {
            encoder.put_str(VERDICT_CHAIN, chain);
        }
    });
}
