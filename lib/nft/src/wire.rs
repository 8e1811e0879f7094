//! Netlink messages and attributes as bytes: netlink(7), `include/uapi/linux/netlink.h`.

/// Length of `struct nlmsghdr`.
pub const HEADER_LENGTH: usize = 16;
/// `NLMSG_ERROR`: an error, or with code 0 an acknowledgement.
pub const MESSAGE_ERROR: u16 = 2;
/// `NLMSG_DONE`: the end of a dump.
pub const MESSAGE_DONE: u16 = 3;
/// `NLM_F_REQUEST`.
pub const FLAG_REQUEST: u16 = 0x1;
/// `NLM_F_ACK`.
pub const FLAG_ACK: u16 = 0x4;
/// `NLM_F_DUMP_INTR`: the dumped table changed meanwhile.
pub const FLAG_DUMP_INTERRUPTED: u16 = 0x10;
/// `NLM_F_DUMP`.
pub const FLAG_DUMP: u16 = 0x300;
/// `NLM_F_REPLACE`.
pub const FLAG_REPLACE: u16 = 0x100;
/// `NLM_F_EXCL`.
pub const FLAG_EXCLUSIVE: u16 = 0x200;
/// `NLM_F_CREATE`.
pub const FLAG_CREATE: u16 = 0x400;
/// `NLM_F_APPEND`.
pub const FLAG_APPEND: u16 = 0x800;

const NESTED: u16 = 0x8000;
const KIND_MASK: u16 = 0x3fff;

/// Writes messages and attributes one behind the other.
#[derive(Clone, Debug, Default)]
pub struct Encoder {
    bytes: Vec<u8>,
}

impl Encoder {
    /// An empty buffer.
    pub const fn new() -> Self {
        Self { bytes: Vec::new() }
    }

    /// The bytes so far.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The finished buffer.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Bytes written so far.
    pub const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was written.
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Writes one message; `body` writes the family header and the attributes.
    pub fn message(&mut self, kind: u16, flags: u16, sequence: u32, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        body(self);
        let length = u32::try_from(self.bytes.len() - start).expect("a message is far below 4 GiB");
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Bytes as they are, for example a family header; the caller keeps them a multiple of four.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// An attribute with a value.
    ///
    /// # Panics
    /// When the value does not fit the 16-bit length of an attribute; callers bound what they put.
    pub fn put(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).expect("an attribute is below 64 KiB");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.align();
    }

    /// An 8-bit attribute.
    pub fn put_u8(&mut self, kind: u16, value: u8) {
        self.put(kind, &[value]);
    }

    /// A 16-bit attribute in network order.
    pub fn put_be16(&mut self, kind: u16, value: u16) {
        self.put(kind, &value.to_be_bytes());
    }

    /// A 32-bit attribute in network order.
    pub fn put_be32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_be_bytes());
    }

    /// A 64-bit attribute in network order.
    pub fn put_be64(&mut self, kind: u16, value: u64) {
        self.put(kind, &value.to_be_bytes());
    }

    /// A 32-bit attribute in the machine's order.
    pub fn put_u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_ne_bytes());
    }

    /// A string attribute with its closing zero byte.
    pub fn put_str(&mut self, kind: u16, value: &str) {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.put(kind, &bytes);
    }

    /// An attribute that holds attributes.
    ///
    /// # Panics
    /// As [`Encoder::put`].
    pub fn nested(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        body(self);
        let length = u16::try_from(self.bytes.len() - start).expect("a nested attribute is below 64 KiB");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.align();
    }

    fn align(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }
}

/// One received message.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Message type.
    pub kind: u16,
    /// Flags.
    pub flags: u16,
    /// Sequence number of the request it answers.
    pub sequence: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

/// Splits a received buffer; stops at the first malformed header.
pub fn messages(bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = read_u32(rest, 0)? as usize;
        if length < HEADER_LENGTH || length > rest.len() {
            return None;
        }
        let message = Message {
            kind: read_u16(rest, 4)?,
            flags: read_u16(rest, 6)?,
            sequence: read_u32(rest, 8)?,
            payload: &rest[HEADER_LENGTH..length],
        };
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(message)
    })
}

/// Splits attributes into kind (without flag bits) and value; stops at the first malformed one.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(read_u16(rest, 0)?);
        if length < 4 || length > rest.len() {
            return None;
        }
        let kind = read_u16(rest, 2)? & KIND_MASK;
        let value = &rest[4..length];
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// The value of the first attribute of a kind.
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// A 16-bit number in the machine's order.
pub fn read_u16(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(offset..offset + 2)?.try_into().ok()?))
}

/// A 32-bit number in the machine's order.
pub fn read_u32(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?))
}

/// A 32-bit number in network order.
pub fn read_be32(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?))
}

/// A 64-bit number in network order.
pub fn read_be64(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(offset..offset + 8)?.try_into().ok()?))
}

/// A zero-terminated string.
pub fn read_str(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut encoder = Encoder::new();
        encoder.message(7, FLAG_REQUEST, 9, |encoder| {
            encoder.raw(&[1, 2, 3, 4]);
            encoder.put_str(1, "cni0");
            encoder.nested(2, |encoder| encoder.put_be32(3, 0x0102_0304));
        });
        let bytes = encoder.into_bytes();
        let message = messages(&bytes).next().unwrap();
        assert_eq!((message.kind, message.sequence), (7, 9));
        assert_eq!(read_str(attribute(&message.payload[4..], 1).unwrap()), "cni0");
        let nested = attribute(&message.payload[4..], 2).unwrap();
        assert_eq!(read_be32(attribute(nested, 3).unwrap(), 0), Some(0x0102_0304));
        assert_eq!(messages(&bytes).count(), 1);
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            for message in messages(&bytes) {
                let _ = attributes(message.payload).count();
            }
            let _ = attributes(&bytes).count();
        }
    }
}
