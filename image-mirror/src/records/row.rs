//! The rows, and how they are written down.

use std::collections::BTreeMap;

use orlop_types::Digest;
use serde::{Deserialize, Serialize};

use super::stamp::Stamp;

/// What a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Kind {
    /// A pushed tag; the key is the tag.
    Tag,
    /// A tag as an upstream last gave it; the key is the tag. Apart from `Tag`, so that a fetch never hides a push.
    FetchedTag,
    /// A manifest of a repository; the key is its digest.
    Manifest,
    /// A blob of a repository; the key is its digest.
    Blob,
}

impl Kind {
    pub(crate) fn byte(self) -> u8 {
        match self {
            Kind::Tag => b't',
            Kind::FetchedTag => b'f',
            Kind::Manifest => b'm',
            Kind::Blob => b'b',
        }
    }

    pub(crate) fn of_byte(byte: u8) -> Option<Self> {
        [Kind::Tag, Kind::FetchedTag, Kind::Manifest, Kind::Blob].into_iter().find(|kind| kind.byte() == byte)
    }
}

/// The name of a row.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Row {
    pub kind: Kind,
    /// The repository, with the registry in front when it is an upstream's.
    pub name: String,
    /// A tag or a digest.
    pub key: String,
}

/// A manifest or blob that a manifest needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Part {
    pub digest: Digest,
    pub size: u64,
}

/// What is known of a manifest without reading it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ManifestRow {
    pub media_type: String,
    pub size: u64,
    /// From an upstream, where it can be had again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fetched: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// Blobs of an image, manifests of an index.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Part>,
}

/// What a row says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Value {
    Tag(Digest),
    Manifest(ManifestRow),
    Blob {
        size: u64,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        fetched: bool,
    },
}

impl Value {
    pub(crate) fn is_fetched(&self) -> bool {
        matches!(self, Value::Manifest(ManifestRow { fetched: true, .. }) | Value::Blob { fetched: true, .. })
    }
}

/// A row's last change; without a value it was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cell {
    pub stamp: Stamp,
    pub value: Option<Value>,
}

impl Row {
    pub(crate) fn new(kind: Kind, name: &str, key: &str) -> Self {
        Self { kind, name: name.to_owned(), key: key.to_owned() }
    }

    /// `KIND NAME 0 KEY`: rows of a repository stand together. Neither part holds a zero byte.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Self::prefix(self.kind, &self.name);
        bytes.extend_from_slice(self.key.as_bytes());
        bytes
    }

    /// What the rows of one kind in one repository begin with.
    pub(crate) fn prefix(kind: Kind, name: &str) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(name.len() + 2 + 72);
        bytes.push(kind.byte());
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(0);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        let zero = rest.iter().position(|byte| *byte == 0)?;
        let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(str::to_owned);
        Some(Self { kind: Kind::of_byte(*kind)?, name: text(&rest[..zero])?, key: text(&rest[zero + 1..])? })
    }
}

/// `NUMBER TIME NODE` in front of a cell's JSON; NUMBER is the row's place in the journal.
const HEADER_BYTES: usize = 24;

pub(crate) fn encode_cell(number: u64, cell: &Cell) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(128);
    for field in [number, cell.stamp.time, cell.stamp.node] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    if let Some(value) = &cell.value {
        serde_json::to_writer(&mut bytes, value).expect("rows are plain values");
    }
    bytes
}

/// The place in the journal and the cell; none when the bytes are damaged.
pub(crate) fn decode_cell(bytes: &[u8]) -> Option<(u64, Cell)> {
    let (header, json) = bytes.split_at_checked(HEADER_BYTES)?;
    let field = |at: usize| header[at..at + 8].try_into().ok().map(u64::from_le_bytes);
    let stamp = Stamp { time: field(8)?, node: field(16)? };
    let value = if json.is_empty() { None } else { Some(serde_json::from_slice(json).ok()?) };
    Some((field(0)?, Cell { stamp, value }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cell() -> impl Strategy<Value = Cell> {
        let value = prop_oneof![
            Just(None),
            (any::<bool>()).prop_map(|fetched| Some(Value::Blob { size: 1, fetched })),
        ];
        (1_u64..5, 1_u64..3, value)
            .prop_map(|(time, node, value)| Cell { stamp: Stamp { time, node }, value })
    }

    proptest! {
        #[test]
        fn rows_survive(kind in 0_usize..4, name in "[a-z/.:]{1,20}", key in "[a-zA-Z0-9:]{1,20}") {
            let kind = [Kind::Tag, Kind::FetchedTag, Kind::Manifest, Kind::Blob][kind];
            let row = Row { kind, name, key };
            prop_assert_eq!(Row::decode(&row.encode()), Some(row));
        }

        #[test]
        fn nonsense_is_no_row(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = (Row::decode(&bytes), decode_cell(&bytes));
        }

        #[test]
        fn cells_survive(cell in cell(), number in any::<u64>()) {
            prop_assert_eq!(decode_cell(&encode_cell(number, &cell)), Some((number, cell)));
        }
    }
}
