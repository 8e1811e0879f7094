//! A transaction as one netlink buffer: all of it happens, or nothing.
//!
//! Elements travel in messages of at most [`ELEMENTS_LIMIT_BYTES`], because the length of an attribute has 16 bits.

use crate::expression::{put_data, put_verdict};
use crate::object::{Chain, Command, Datum, Element, Family, Rule, Set, SetData, Table};
use crate::statement::Statement;
use crate::value::{DataType, Tuple, Value, Verdict, type_length, type_number};
use crate::wire::{self, Encoder};

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const BATCH_GENERATION: u16 = 1;
/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const NEW_SET: u16 = 9;
const NEW_ELEMENT: u16 = 12;
const DELETE_ELEMENT: u16 = 14;

const SET_ANONYMOUS: u32 = 0x1;
const SET_CONSTANT: u32 = 0x2;
const SET_INTERVAL: u32 = 0x4;
const SET_MAP: u32 = 0x8;
const SET_TIMEOUT: u32 = 0x10;
const SET_DYNAMIC: u32 = 0x20;
const SET_CONCATENATION: u32 = 0x80;
const TYPE_VERDICT: u32 = 0xffff_ff00;
const ELEMENT_INTERVAL_END: u32 = 1;

/// What one message of elements may hold: well below 64 KiB, and no element is longer than a few hundred bytes.
pub const ELEMENTS_LIMIT_BYTES: usize = 60_000;

/// An encoded transaction.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The buffer to send in one piece.
    pub bytes: Vec<u8>,
    /// Sequence number of the opening message, which carries errors of the whole.
    pub begin: u32,
    /// Sequence number of the message that is acknowledged.
    pub last: u32,
    /// Index of the command of each message after the opening one.
    commands: Vec<usize>,
}

impl Batch {
    /// The command that a sequence number in an answer belongs to.
    pub fn command_of(&self, sequence: u32) -> Option<usize> {
        let offset = sequence.wrapping_sub(self.begin).checked_sub(1)?;
        self.commands.get(offset as usize).copied()
    }
}

/// How many messages [`encode`] will make is not known before; this many sequence numbers are enough.
pub fn encode(commands: &[Command], generation: Option<u32>, first_sequence: u32) -> Batch {
    let mut writer = Writer {
        encoder: Encoder::new(),
        next: first_sequence,
        index: 0,
        commands: Vec::new(),
        last_start: 0,
        sets: 0,
    };
    writer.frame(BATCH_BEGIN, |encoder| {
        if let Some(generation) = generation {
            encoder.put_be32(BATCH_GENERATION, generation);
        }
    });
    for (index, command) in commands.iter().enumerate() {
        writer.index = index;
        writer.command(command);
    }
    let last = writer.next.wrapping_sub(1);
    let acknowledged = writer.last_start;
    writer.frame(BATCH_END, |_| {});
    let mut bytes = writer.encoder.into_bytes();
    // Only the last message is acknowledged: one answer for a batch of any size.
    bytes[acknowledged + 6] |= wire::FLAG_ACK.to_ne_bytes()[0];
    bytes[acknowledged + 7] |= wire::FLAG_ACK.to_ne_bytes()[1];
    Batch { bytes, begin: first_sequence, last, commands: writer.commands }
}

struct Writer {
    encoder: Encoder,
    next: u32,
    index: usize,
    commands: Vec<usize>,
    last_start: usize,
    sets: u32,
}

impl Writer {
    /// BATCH_BEGIN and BATCH_END: `struct nfgenmsg` with the subsystem as resource.
    fn frame(&mut self, kind: u16, body: impl FnOnce(&mut Encoder)) {
        let sequence = self.next;
        self.next = self.next.wrapping_add(1);
        self.encoder.message(kind, wire::FLAG_REQUEST, sequence, |encoder| {
            let [high, low] = SUBSYSTEM.to_be_bytes();
            encoder.raw(&[0, 0, high, low]);
            body(encoder);
        });
    }

    fn message(&mut self, kind: u16, flags: u16, family: Family, body: impl FnOnce(&mut Encoder)) {
        let sequence = self.next;
        self.next = self.next.wrapping_add(1);
        self.last_start = self.encoder.len();
        self.commands.push(self.index);
        self.encoder.message(SUBSYSTEM << 8 | kind, wire::FLAG_REQUEST | flags, sequence, |encoder| {
            encoder.raw(&[family.number(), 0, 0, 0]);
            body(encoder);
        });
    }

    fn command(&mut self, command: &Command) {
        match command {
            Command::AddTable(table) => self.table(table, wire::FLAG_CREATE),
            Command::CreateTable(table) => self.table(table, wire::FLAG_CREATE | wire::FLAG_EXCLUSIVE),
            Command::DeleteTable(table) => {
                self.message(DELETE_TABLE, 0, table.family, |encoder| encoder.put_str(1, &table.name));
            }
            Command::AddChain(table, chain) => self.chain(table, chain),
            Command::AddSet(table, set) => {
                self.sets += 1;
                let id = self.sets;
                self.set(table, set, set_flags(set), id);
            }
            Command::AddElements(table, set, elements) => {
                self.elements(NEW_ELEMENT, wire::FLAG_CREATE, table, set, None, elements);
            }
            Command::DeleteElements(table, set, elements) => {
                self.elements(DELETE_ELEMENT, 0, table, set, None, elements);
            }
        }
    }

    fn table(&mut self, table: &Table, flags: u16) {
        self.message(NEW_TABLE, flags, table.family, |encoder| {
            encoder.put_str(1, &table.name);
            encoder.put_be32(2, 0);
        });
    }

    fn chain(&mut self, table: &Table, chain: &Chain) {
        self.message(NEW_CHAIN, wire::FLAG_CREATE, table.family, |encoder| {
            encoder.put_str(1, &table.name);
            encoder.put_str(3, &chain.name);
            if let Some(base) = chain.base {
                encoder.nested(4, |encoder| {
                    encoder.put_be32(1, base.hook.number());
                    encoder.put_be32(2, base.priority.cast_unsigned());
                });
                encoder.put_be32(5, Verdict::Accept.code().cast_unsigned());
                encoder.put_str(7, base.kind.name());
            }
        });
        for rule in &chain.rules {
            self.rule(table, &chain.name, rule);
        }
    }

    fn rule(&mut self, table: &Table, chain: &str, rule: &Rule) {
        let expressions =
            Statement::lower(&rule.0, table.family, |verdicts| self.anonymous_map(table, verdicts));
        self.message(NEW_RULE, wire::FLAG_CREATE | wire::FLAG_APPEND, table.family, |encoder| {
            encoder.put_str(1, &table.name);
            encoder.put_str(2, chain);
            encoder.nested(4, |encoder| {
                for expression in &expressions {
                    expression.encode(encoder, table.family.number());
                }
            });
        });
    }

    /// The map from the random number to the verdict; the kernel replaces `%d` in its name by a free number.
    fn anonymous_map(&mut self, table: &Table, verdicts: &[Verdict]) -> (String, u32) {
        self.sets += 1;
        let id = self.sets;
        let set = Set::verdicts("__map%d", &[DataType::Integer]);
        self.set(table, &set, SET_MAP | SET_ANONYMOUS | SET_CONSTANT, id);
        let elements: Vec<Element> = (0..)
            .zip(verdicts)
            .map(|(number, verdict)| Element::verdict([Value::Integer(number)], verdict.clone()))
            .collect();
        self.elements(NEW_ELEMENT, wire::FLAG_CREATE, table, &set, Some(id), &elements);
        (set.name, id)
    }

    fn set(&mut self, table: &Table, set: &Set, flags: u32, id: u32) {
        self.message(NEW_SET, wire::FLAG_CREATE, table.family, |encoder| {
            encoder.put_str(1, &table.name);
            encoder.put_str(2, &set.name);
            encoder.put_be32(3, flags);
            encoder.put_be32(4, type_number(&set.key));
            encoder.put_be32(5, type_length(&set.key));
            match &set.data {
                SetData::None => {}
                SetData::Verdict => {
                    encoder.put_be32(6, TYPE_VERDICT);
                    encoder.put_be32(7, 0);
                }
                SetData::Values(fields) => {
                    encoder.put_be32(6, type_number(fields));
                    encoder.put_be32(7, type_length(fields));
                }
            }
            encoder.put_be32(10, id);
            put_description(encoder, set);
            encoder.put(13, &user_data(set));
        });
    }

    fn elements(
        &mut self,
        kind: u16,
        flags: u16,
        table: &Table,
        set: &Set,
        id: Option<u32>,
        elements: &[Element],
    ) {
        let mut encoded = elements.iter().flat_map(|element| encode_element(element, set)).peekable();
        while encoded.peek().is_some() {
            self.message(kind, flags, table.family, |encoder| {
                encoder.put_str(1, &table.name);
                encoder.put_str(2, &set.name);
                if let Some(id) = id {
                    encoder.put_be32(4, id);
                }
                encoder.nested(3, |encoder| {
                    let start = encoder.len();
                    while let Some(bytes) =
                        encoded.next_if(|bytes| encoder.len() - start + bytes.len() <= ELEMENTS_LIMIT_BYTES)
                    {
                        encoder.raw(&bytes);
                    }
                });
            });
        }
    }
}

fn set_flags(set: &Set) -> u32 {
    let mut flags = 0;
    if set.data != SetData::None {
        flags |= SET_MAP;
    }
    if set.interval {
        flags |= SET_INTERVAL;
        if set.key.len() > 1 {
            flags |= SET_CONCATENATION;
        }
    }
    if set.timeout {
        flags |= SET_TIMEOUT;
    }
    if set.dynamic_size.is_some() {
        flags |= SET_DYNAMIC;
    }
    flags
}

fn put_description(encoder: &mut Encoder, set: &Set) {
    // The kernel wants the lengths of a concatenation's fields exactly when its keys are ranges.
    let ranges_of_fields = set.interval && set.key.len() > 1;
    if set.dynamic_size.is_none() && !ranges_of_fields {
        return;
    }
    encoder.nested(9, |encoder| {
        if let Some(size) = set.dynamic_size {
            encoder.put_be32(1, size);
        }
        if ranges_of_fields {
            encoder.nested(2, |encoder| {
                for field in &set.key {
                    encoder.nested(1, |encoder| encoder.put_be32(1, field.length()));
                }
            });
        }
    });
}

/// What `nft` notes for itself: the byte order of key and data (type, length, 32-bit value).
fn user_data(set: &Set) -> Vec<u8> {
    const HOST_ORDER: u32 = 1;
    const NETWORK_ORDER: u32 = 2;
    let order = |fields: &[DataType]| match fields {
        [single] if single.is_host_order() => HOST_ORDER,
        [_] => NETWORK_ORDER,
        _ => 0,
    };
    let mut bytes = vec![0, 4];
    bytes.extend_from_slice(&order(&set.key).to_ne_bytes());
    let data = match &set.data {
        SetData::None => return bytes,
        SetData::Verdict => 0,
        SetData::Values(fields) => order(fields),
    };
    bytes.extend_from_slice(&[1, 4]);
    bytes.extend_from_slice(&data.to_ne_bytes());
    bytes
}

/// One element as list entries. A range in a set with one field is two entries: its first key, and the key behind its last one
/// marked as an end; in a concatenation it is one entry with two keys.
fn encode_element(element: &Element, set: &Set) -> Vec<Vec<u8>> {
    let last = element.end.as_ref().unwrap_or(&element.key);
    if !set.interval {
        return vec![entry(element, &element.key, None, 0)];
    }
    if set.key.len() > 1 {
        return vec![entry(element, &element.key, Some(last), 0)];
    }
    let mut entries = vec![entry(element, &element.key, None, 0)];
    if let Some(behind) = successor(last) {
        let end = Element::key(behind);
        entries.push(entry(&end, &end.key, None, ELEMENT_INTERVAL_END));
    }
    entries
}

fn entry(element: &Element, key: &Tuple, key_end: Option<&Tuple>, flags: u32) -> Vec<u8> {
    let mut encoder = Encoder::new();
    encoder.nested(1, |encoder| {
        put_data(encoder, 1, &key.bytes());
        if let Some(end) = key_end {
            put_data(encoder, 10, &end.bytes());
        }
        match &element.datum {
            None => {}
            Some(Datum::Verdict(verdict)) => encoder.nested(2, |encoder| put_verdict(encoder, verdict)),
            Some(Datum::Values(values)) => put_data(encoder, 2, &values.bytes()),
        }
        if flags != 0 {
            encoder.put_be32(3, flags);
        }
        if let Some(timeout) = element.timeout {
            encoder.put_be64(4, u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
        }
        if let Some(expires) = element.expires {
            encoder.put_be64(5, u64::try_from(expires.as_millis()).unwrap_or(u64::MAX));
        }
    });
    encoder.into_bytes()
}

/// The key behind the last one; none behind the greatest.
fn successor(key: &Tuple) -> Option<Tuple> {
    let [value] = key.0.as_slice() else { return None };
    let next = match *value {
        Value::Integer(number) => Value::Integer(number.checked_add(1)?),
        Value::Mark(number) => Value::Mark(number.checked_add(1)?),
        Value::Ipv4(address) => Value::Ipv4(u32::from(address).checked_add(1)?.into()),
        Value::Ipv6(address) => Value::Ipv6(u128::from(address).checked_add(1)?.into()),
        Value::Protocol(number) => Value::Protocol(number.checked_add(1)?),
        Value::Port(port) => Value::Port(port.checked_add(1)?),
    };
    Some(Tuple::from([next]))
}
