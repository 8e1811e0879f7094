//! What the kernel answers to a question for elements.

use std::time::Duration;

use crate::object::{Datum, Element, Set, SetData};
use crate::value::{Tuple, Verdict};
use crate::wire;

/// The elements in one answer to `NFT_MSG_GETSETELEM` (the payload behind `struct nfgenmsg`); entries that do not fit the set are left
/// out, and so are the end marks of ranges.
pub fn elements(set: &Set, payload: &[u8]) -> Vec<Element> {
    let Some(list) = wire::attribute(payload, 3) else {
        return Vec::new();
    };
    wire::attributes(list).filter_map(|(_, entry)| element(set, entry)).collect()
}

fn element(set: &Set, entry: &[u8]) -> Option<Element> {
    let data = |kind| wire::attribute(entry, kind);
    let flags = data(3).and_then(|value| wire::read_be32(value, 0)).unwrap_or(0);
    if flags & 1 != 0 {
        return None;
    }
    let tuple = |kind, fields| Tuple::read(fields, wire::attribute(data(kind)?, 1)?);
    let datum = match &set.data {
        SetData::None => None,
        SetData::Verdict => Some(Datum::Verdict(verdict(wire::attribute(data(2)?, 2)?)?)),
        SetData::Values(fields) => Some(Datum::Values(tuple(2, fields)?)),
    };
    let time = |kind| data(kind).and_then(|value| wire::read_be64(value, 0)).map(Duration::from_millis);
    Some(Element {
        key: tuple(1, &set.key)?,
        end: tuple(10, &set.key),
        datum,
        timeout: time(4),
        expires: time(5),
    })
}

fn verdict(bytes: &[u8]) -> Option<Verdict> {
    let chain = || Some(wire::read_str(wire::attribute(bytes, 2)?));
    match wire::read_be32(wire::attribute(bytes, 1)?, 0)?.cast_signed() {
        0 => Some(Verdict::Drop),
        1 => Some(Verdict::Accept),
        -3 => Some(Verdict::Jump(chain()?)),
        -4 => Some(Verdict::Goto(chain()?)),
        -5 => Some(Verdict::Return),
        _ => None,
    }
}
