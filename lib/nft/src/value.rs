//! Data types and values of keys, elements and comparisons.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The type of one field of a key. The numbers are those of the `nft` program (`enum datatypes` in its `datatype.h`): the kernel does
/// not look at them, but without them `nft list` could not print the elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DataType {
    /// `integer`, 32 bits in the machine's order, as `numgen` makes it.
    Integer,
    /// `ipv4_addr`.
    Ipv4,
    /// `ipv6_addr`.
    Ipv6,
    /// `inet_proto`.
    Protocol,
    /// `inet_service`.
    Port,
    /// `mark`.
    Mark,
}

impl DataType {
    /// The number in `nft`.
    pub const fn number(self) -> u32 {
        match self {
            Self::Integer => 4,
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Mark => 19,
        }
    }

    /// Length in bytes.
    pub const fn length(self) -> u32 {
        match self {
            Self::Integer | Self::Ipv4 | Self::Mark => 4,
            Self::Ipv6 => 16,
            Self::Protocol => 1,
            Self::Port => 2,
        }
    }

    /// Length in a concatenation, where each field begins at a 32-bit register.
    pub const fn padded_length(self) -> u32 {
        self.length().next_multiple_of(4)
    }

    /// Whether the value is in the machine's order.
    pub const fn is_host_order(self) -> bool {
        matches!(self, Self::Integer | Self::Mark)
    }

    /// The name in `nft`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Integer => "integer",
            Self::Ipv4 => "ipv4_addr",
            Self::Ipv6 => "ipv6_addr",
            Self::Protocol => "inet_proto",
            Self::Port => "inet_service",
            Self::Mark => "mark",
        }
    }
}

/// The number of a concatenation in `nft`: six bits for each field.
pub(crate) fn type_number(fields: &[DataType]) -> u32 {
    fields.iter().fold(0, |number, field| (number << 6) | field.number())
}

/// The length of a key with these fields.
pub(crate) fn type_length(fields: &[DataType]) -> u32 {
    match fields {
        [single] => single.length(),
        fields => fields.iter().map(|field| field.padded_length()).sum(),
    }
}

/// One value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Value {
    /// A number in the machine's order.
    Integer(u32),
    /// An IPv4 address.
    Ipv4(Ipv4Addr),
    /// An IPv6 address.
    Ipv6(Ipv6Addr),
    /// A protocol number.
    Protocol(u8),
    /// A port.
    Port(u16),
    /// A packet mark.
    Mark(u32),
}

impl Value {
    /// Its type.
    pub const fn data_type(self) -> DataType {
        match self {
            Self::Integer(_) => DataType::Integer,
            Self::Ipv4(_) => DataType::Ipv4,
            Self::Ipv6(_) => DataType::Ipv6,
            Self::Protocol(_) => DataType::Protocol,
            Self::Port(_) => DataType::Port,
            Self::Mark(_) => DataType::Mark,
        }
    }

    pub(crate) fn put(self, bytes: &mut Vec<u8>) {
        match self {
            Self::Integer(number) | Self::Mark(number) => bytes.extend_from_slice(&number.to_ne_bytes()),
            Self::Ipv4(address) => bytes.extend_from_slice(&address.octets()),
            Self::Ipv6(address) => bytes.extend_from_slice(&address.octets()),
            Self::Protocol(number) => bytes.push(number),
            Self::Port(port) => bytes.extend_from_slice(&port.to_be_bytes()),
        }
    }

    /// Reads one field from the front of `bytes`.
    pub(crate) fn take(kind: DataType, bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..kind.length() as usize)?;
        Some(match kind {
            DataType::Integer => Self::Integer(u32::from_ne_bytes(bytes.try_into().ok()?)),
            DataType::Mark => Self::Mark(u32::from_ne_bytes(bytes.try_into().ok()?)),
            DataType::Ipv4 => Self::Ipv4(<[u8; 4]>::try_from(bytes).ok()?.into()),
            DataType::Ipv6 => Self::Ipv6(<[u8; 16]>::try_from(bytes).ok()?.into()),
            DataType::Protocol => Self::Protocol(*bytes.first()?),
            DataType::Port => Self::Port(u16::from_be_bytes(bytes.try_into().ok()?)),
        })
    }
}

impl From<IpAddr> for Value {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::Ipv4(address),
            IpAddr::V6(address) => Self::Ipv6(address),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(number) => write!(formatter, "{number}"),
            Self::Mark(number) => write!(formatter, "{number:#010x}"),
            Self::Ipv4(address) => write!(formatter, "{address}"),
            Self::Ipv6(address) => write!(formatter, "{address}"),
            Self::Protocol(6) => formatter.write_str("tcp"),
            Self::Protocol(17) => formatter.write_str("udp"),
            Self::Protocol(132) => formatter.write_str("sctp"),
            Self::Protocol(number) => write!(formatter, "{number}"),
            Self::Port(port) => write!(formatter, "{port}"),
        }
    }
}

/// A key or a datum: one value, or a concatenation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple(pub Vec<Value>);

impl Tuple {
    /// The bytes as the kernel compares them.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(24);
        for value in &self.0 {
            value.put(&mut bytes);
            if self.0.len() > 1 {
                while !bytes.len().is_multiple_of(4) {
                    bytes.push(0);
                }
            }
        }
        bytes
    }

    /// Reads a tuple back; `None` when the bytes are too short.
    pub fn read(fields: &[DataType], bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let mut values = Vec::with_capacity(fields.len());
        for field in fields {
            values.push(Value::take(*field, rest)?);
            rest = rest.get(field.padded_length() as usize..).unwrap_or(&[]);
        }
        Some(Self(values))
    }
}

impl<const N: usize> From<[Value; N]> for Tuple {
    fn from(values: [Value; N]) -> Self {
        Self(values.to_vec())
    }
}

impl fmt::Display for Tuple {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, value) in self.0.iter().enumerate() {
            if index > 0 {
                formatter.write_str(" . ")?;
            }
            value.fmt(formatter)?;
        }
        Ok(())
    }
}

/// What happens to a packet.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// `accept`.
    Accept,
    /// `drop`.
    Drop,
    /// `return`.
    Return,
    /// `jump CHAIN`.
    Jump(String),
    /// `goto CHAIN`.
    Goto(String),
}

impl Verdict {
    /// `NF_*` and `NFT_*` of the kernel.
    pub(crate) const fn code(&self) -> i32 {
        match self {
            Self::Drop => 0,
            Self::Accept => 1,
            Self::Jump(_) => -3,
            Self::Goto(_) => -4,
            Self::Return => -5,
        }
    }

    /// The chain it names.
    pub fn chain(&self) -> Option<&str> {
        match self {
            Self::Jump(chain) | Self::Goto(chain) => Some(chain),
            Self::Accept | Self::Drop | Self::Return => None,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => formatter.write_str("accept"),
            Self::Drop => formatter.write_str("drop"),
            Self::Return => formatter.write_str("return"),
            Self::Jump(chain) => write!(formatter, "jump {chain}"),
            Self::Goto(chain) => write!(formatter, "goto {chain}"),
        }
    }
}
