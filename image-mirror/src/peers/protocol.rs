//! What mirrors say to each other, below `/_orlop/v1/`.
//!
//! ```text
//!   GET changes?node=ASKER&epoch=PEER&since=N   waits for a change after N, at most 30 s; says that the asker has all up to N
//!   GET peek/blobs/DIGEST                       bytes that are here or on their way; never asks anybody else
//!   GET fetch/v2/NAME/blobs/DIGEST?hop=N        a pull as of a client's, for a node; NAME has the registry in front
//!   GET fetch/v2/NAME/manifests/REFERENCE?hop=N
//! ```

use std::fmt;
use std::str::FromStr;

use orlop_types::Digest;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::records::{Cell, Kind, Row, Stamp, Value};
use crate::route::is_tag;

pub(crate) const PREFIX: &str = "/_orlop/v1/";
/// Names the asking mirror.
pub(crate) const NODE_HEADER: &str = "orlop-node";
/// Longest wait for a change.
pub(crate) const POLL_SECONDS: u64 = 30;
/// Rows in one answer.
pub(crate) const PAGE_ROWS: usize = 1000;
/// Bytes after which no further row is added to an answer.
pub(crate) const PAGE_BYTES: usize = 1 << 20;
/// Longest answer that is read: a page, and one row with the annotations of the longest manifest.
pub(crate) const ANSWER_LIMIT: usize = 16 << 20;
/// Longest name of a repository, the registry in front of it included.
const NAME_LIMIT: usize = 512;
/// Later than any clock shows.
const TIME_LIMIT: u64 = 1 << 63;

/// Who a mirror is: as long as it has its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Node(pub(crate) u64);

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Node {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = digits.then(|| u64::from_str_radix(text, 16).ok()).flatten();
        number.map(Node).ok_or_else(|| format!("{text:?} is no identity of a mirror (16 hexadecimal digits)"))
    }
}

impl Serialize for Node {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A part of a mirror's journal.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Changes {
    pub node: Node,
    /// The journal's last number.
    pub last: u64,
    /// Up to here the changes are complete; 0 for an asker who took this mirror for another.
    pub through: u64,
    pub changes: Vec<Entry>,
}

/// A row as it is at the peer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub row: Row,
    pub cell: Cell,
}

impl Entry {
    /// Whether the row can be one: what is not could break the order of the records' keys.
    pub(crate) fn is_sound(&self) -> bool {
        let Row { kind, name, key } = &self.row;
        let Stamp { time, .. } = self.cell.stamp;
        let named =
            !name.is_empty() && name.len() <= NAME_LIMIT && name.bytes().all(|byte| byte.is_ascii_graphic());
        let keyed = match kind {
            Kind::Tag | Kind::FetchedTag => is_tag(key),
            Kind::Manifest | Kind::Blob => key.parse::<Digest>().is_ok(),
        };
        let fits = matches!(
            (kind, &self.cell.value),
            (_, None)
                | (Kind::Tag | Kind::FetchedTag, Some(Value::Tag(_)))
                | (Kind::Manifest, Some(Value::Manifest(_)))
                | (Kind::Blob, Some(Value::Blob { .. }))
        );
        named && keyed && fits && time < TIME_LIMIT
    }

    /// The bytes that belong to the row, and their size.
    pub(crate) fn content(&self) -> Option<(Digest, u64)> {
        let size = match self.cell.value.as_ref()? {
            Value::Tag(_) => return None,
            Value::Manifest(manifest) => manifest.size,
            Value::Blob { size, .. } => *size,
        };
        Some((self.row.key.parse().ok()?, size))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(kind: Kind, name: &str, key: &str, value: Option<Value>) -> Entry {
        Entry { row: Row::new(kind, name, key), cell: Cell { stamp: Stamp { time: 1, node: 1 }, value } }
    }

    #[test]
    fn rows_that_cannot_be_are_refused() {
        let digest = Digest::sha256(b"x");
        let blob = || Some(Value::Blob { size: 1, fetched: false });
        assert!(entry(Kind::Blob, "docker.io/library/nginx", digest.as_str(), blob()).is_sound());
        assert!(entry(Kind::Tag, "r:5000/a", "latest", Some(Value::Tag(digest.clone()))).is_sound());
        assert!(entry(Kind::Tag, "a", "latest", None).is_sound());
        for wrong in [
            entry(Kind::Blob, "a\0b", digest.as_str(), blob()),
            entry(Kind::Blob, "", digest.as_str(), blob()),
            entry(Kind::Blob, "a", "latest", blob()),
            entry(Kind::Blob, "a", digest.as_str(), Some(Value::Tag(digest.clone()))),
            entry(Kind::Tag, "a", "../x", Some(Value::Tag(digest.clone()))),
        ] {
            assert!(!wrong.is_sound(), "{wrong:?}");
        }
        let mut late = entry(Kind::Tag, "a", "latest", None);
        late.cell.stamp.time = u64::MAX;
        assert!(!late.is_sound());
    }

    proptest! {
        #[test]
        fn identities_survive(number in any::<u64>(), text in ".{0,20}") {
            prop_assert_eq!(Node(number).to_string().parse(), Ok(Node(number)));
            let _ = text.parse::<Node>();
        }

        #[test]
        fn nonsense_is_no_page(text in "[\\[\\]{}:,\"a-z0-9]{0,80}") {
            if let Ok(changes) = serde_json::from_str::<Changes>(&text) {
                let _ = changes.changes.iter().map(Entry::is_sound).count();
            }
        }
    }
}
