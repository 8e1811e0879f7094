//! Reads that go through everything, a bounded part at a time: what a page finds is looked at again by the change that removes it.

use std::ops::Bound;

use orlop_types::Digest;
use redb::ReadTransaction;

use super::row::{Cell, Kind, Row, Value, decode_cell};
use super::tables::{CELLS, CONTENTS, OWNERS, PARTS, after, pair_key};
use super::{Records, RecordsError};

/// Rows that one page looks at.
const PAGE: usize = 1000;

/// What a part of a sweep found, and where the next one begins; none at the end.
pub(crate) struct Page<T> {
    pub found: Vec<T>,
    pub next: Option<Vec<u8>>,
}

/// A fetched manifest that may go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Candidate {
    /// Of the manifest or of an index that names it, whatever is later: a client that has the index may ask for the manifest.
    pub used_ms: u64,
    pub name: String,
    pub digest: Digest,
    /// The manifest, the indexes that name it, and its subject.
    pub related: Vec<Digest>,
}

impl Records {
    /// Fetched manifests that nobody used since `before_ms`.
    pub(crate) fn fetched_images(
        &self,
        from: &[u8],
        before_ms: u64,
    ) -> Result<Page<Candidate>, RecordsError> {
        self.rows_page(Kind::Manifest, from, |read, row, cell| {
            let Some(Value::Manifest(manifest)) = cell.value.filter(Value::is_fetched) else {
                return Ok(None);
            };
            let Ok(digest) = row.key.parse::<Digest>() else { return Ok(None) };
            let mut related = vec![digest.clone()];
            let prefix = pair_key(&row.name, &row.key, "");
            for entry in read.open_table(PARTS)?.range(prefix.as_slice()..after(&prefix).as_slice())? {
                let index = String::from_utf8_lossy(&entry?.0.value()[prefix.len()..]).parse();
                related.extend(index.ok());
            }
            let contents = read.open_table(CONTENTS)?;
            let mut used_ms = 0;
            for digest in &related {
                let used = contents.get(digest.as_str())?.map_or(0, |value| value.value().1);
                used_ms = used_ms.max(used);
            }
            related.extend(manifest.subject);
            Ok((used_ms < before_ms).then_some(Candidate { used_ms, name: row.name, digest, related }))
        })
    }

    /// Bytes that no row wants and that nobody used since `before_ms`.
    pub(crate) fn unowned(&self, from: &[u8], before_ms: u64) -> Result<Page<Digest>, RecordsError> {
        self.contents_page(from, |read, digest, (_, used_ms)| {
            if used_ms >= before_ms {
                return Ok(None);
            }
            let prefix = [digest.as_bytes(), &[0]].concat();
            let owners = read.open_table(OWNERS)?;
            let owned = owners.range(prefix.as_slice()..after(&prefix).as_slice())?.next().is_some();
            Ok(if owned { None } else { digest.parse().ok() })
        })
    }

    fn contents_page<T>(
        &self,
        from: &[u8],
        pick: impl Fn(&ReadTransaction, &str, (u64, u64)) -> Result<Option<T>, redb::Error>,
    ) -> Result<Page<T>, RecordsError> {
        let from = std::str::from_utf8(from).unwrap_or_default();
        self.read(|read| {
            let contents = read.open_table(CONTENTS)?;
            let mut page = Page { found: Vec::new(), next: None };
            let range = contents.range::<&str>((Bound::Excluded(from), Bound::Unbounded))?;
            for (number, entry) in range.enumerate() {
                let (digest, value) = entry?;
                page.found.extend(pick(read, digest.value(), value.value())?);
                if number + 1 >= PAGE {
                    page.next = Some(digest.value().as_bytes().to_vec());
                    break;
                }
            }
            Ok(page)
        })
    }

    /// Rows of blobs that no manifest of their repository names and that nobody used since `before_ms`.
    pub(crate) fn unnamed(&self, from: &[u8], before_ms: u64) -> Result<Page<Row>, RecordsError> {
        self.rows_page(Kind::Blob, from, |read, row, cell| {
            if !matches!(cell.value, Some(Value::Blob { .. })) || cell.stamp.ms() >= before_ms {
                return Ok(None);
            }
            let used_ms =
                read.open_table(CONTENTS)?.get(row.key.as_str())?.map_or(0, |value| value.value().1);
            let prefix = pair_key(&row.name, &row.key, "");
            let parts = read.open_table(PARTS)?;
            let named = parts.range(prefix.as_slice()..after(&prefix).as_slice())?.next().is_some();
            Ok((used_ms < before_ms && !named).then_some(row))
        })
    }

    /// The rows of one kind in all repositories.
    fn rows_page<T>(
        &self,
        kind: Kind,
        from: &[u8],
        pick: impl Fn(&ReadTransaction, Row, Cell) -> Result<Option<T>, redb::Error>,
    ) -> Result<Page<T>, RecordsError> {
        let (first, end) = ([kind.byte()], [kind.byte() + 1]);
        let begin = if from.is_empty() { Bound::Included(&first[..]) } else { Bound::Excluded(from) };
        self.read(|read| {
            let cells = read.open_table(CELLS)?;
            let mut page = Page { found: Vec::new(), next: None };
            for (number, entry) in cells.range::<&[u8]>((begin, Bound::Excluded(&end[..])))?.enumerate() {
                let (key, cell) = entry?;
                if let (Some(row), Some((_, cell))) = (Row::decode(key.value()), decode_cell(cell.value())) {
                    page.found.extend(pick(read, row, cell)?);
                }
                if number + 1 >= PAGE {
                    page.next = Some(key.value().to_vec());
                    break;
                }
            }
            Ok(page)
        })
    }

    /// The bytes that are here, with their sizes.
    pub(crate) fn contents(&self, from: &[u8]) -> Result<Page<(Digest, u64)>, RecordsError> {
        self.contents_page(from, |_, digest, (size, _)| Ok(digest.parse().ok().map(|digest| (digest, size))))
    }

    /// The manifests that need some bytes, as `REPOSITORY@DIGEST`, at most `limit`.
    pub(crate) fn needed_by(&self, digest: &Digest, limit: usize) -> Result<Vec<String>, RecordsError> {
        let mut needed_by = Vec::new();
        for (kind, name) in self.owners(digest)?.into_iter().take(limit) {
            if kind == Kind::Manifest {
                needed_by.push(format!("{name}@{digest}"));
                continue;
            }
            let prefix = pair_key(&name, digest.as_str(), "");
            needed_by.extend(self.read(|read| {
                let parts = read.open_table(PARTS)?;
                let range = parts.range(prefix.as_slice()..after(&prefix).as_slice())?.take(limit);
                let names = range.map(|entry| {
                    Ok(format!("{name}@{}", String::from_utf8_lossy(&entry?.0.value()[prefix.len()..])))
                });
                names.collect::<Result<Vec<_>, redb::Error>>()
            })?);
        }
        needed_by.truncate(limit);
        Ok(needed_by)
    }

    /// Those that the records do not count as here.
    pub(crate) fn unknown(&self, digests: Vec<(Digest, u64)>) -> Result<Vec<(Digest, u64)>, RecordsError> {
        self.read(|read| {
            let contents = read.open_table(CONTENTS)?;
            let mut unknown = Vec::new();
            for (digest, size) in digests {
                if contents.get(digest.as_str())?.is_none() {
                    unknown.push((digest, size));
                }
            }
            Ok(unknown)
        })
    }
}
