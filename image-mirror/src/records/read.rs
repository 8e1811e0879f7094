//! Reads of the last commit.

use redb::{ReadTransaction, ReadableDatabase as _};

use orlop_types::Digest;

use super::row::{Cell, Kind, Row, Value, decode_cell};
use super::tables::{BYTES, CELLS, CONTENTS, COUNT, NUMBERS, OWNERS, PARTS, REFERRERS, after, pair_key};
use super::{Records, RecordsError, current};

/// What is here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Blobs and manifests.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Records {
    pub(super) fn read<T>(
        &self,
        work: impl FnOnce(&ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, RecordsError> {
        let database = current(&self.shared)?;
        let read = database.begin_read().map_err(redb::Error::from)?;
        Ok(work(&read)?)
    }

    pub(super) fn number(&self, name: &str) -> Result<u64, RecordsError> {
        self.read(|read| Ok(read.open_table(NUMBERS)?.get(name)?.map_or(0, |value| value.value())))
    }

    pub(crate) fn totals(&self) -> Result<Totals, RecordsError> {
        Ok(Totals { count: self.number(COUNT)?, bytes: self.number(BYTES)? })
    }

    /// Whether bytes are here, as far as the records know.
    pub(crate) fn is_counted(&self, digest: &Digest) -> Result<bool, RecordsError> {
        self.read(|read| Ok(read.open_table(CONTENTS)?.get(digest.as_str())?.is_some()))
    }

    pub(crate) fn cell(&self, row: &Row) -> Result<Option<Cell>, RecordsError> {
        let bytes = self.read(|read| {
            Ok(read.open_table(CELLS)?.get(row.encode().as_slice())?.map(|value| decode_cell(value.value())))
        })?;
        match bytes {
            None => Ok(None),
            Some(Some((_, cell))) => Ok(Some(cell)),
            Some(None) => Err(RecordsError::damaged(row)),
        }
    }

    /// What a row says.
    pub(crate) fn value(&self, row: &Row) -> Result<Option<Value>, RecordsError> {
        Ok(self.cell(row)?.and_then(|cell| cell.value))
    }

    /// Rows of one kind from a key on, at most `limit`, with their values; rows that were removed are left out unless `removed`.
    pub(crate) fn rows(
        &self,
        kind: Kind,
        name: &str,
        from: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Value)>, RecordsError> {
        let prefix = Row::prefix(kind, name);
        let end = after(&prefix);
        let begin = match from {
            // The byte after it: greater than the key, less than every longer one.
            Some(key) => [prefix.as_slice(), key.as_bytes(), &[0]].concat(),
            None => prefix.clone(),
        };
        self.read(|read| {
            let cells = read.open_table(CELLS)?;
            let mut found = Vec::new();
            for entry in cells.range(begin.as_slice()..end.as_slice())? {
                let (key, cell) = entry?;
                if let (Some(row), Some((_, Cell { value: Some(value), .. }))) =
                    (Row::decode(key.value()), decode_cell(cell.value()))
                {
                    found.push((row.key, value));
                    if found.len() >= limit {
                        break;
                    }
                }
            }
            Ok(found)
        })
    }

    /// Whether a repository holds any manifest, blob or tag.
    pub(crate) fn exists(&self, name: &str) -> Result<bool, RecordsError> {
        for kind in [Kind::Manifest, Kind::Blob, Kind::Tag, Kind::FetchedTag] {
            if !self.rows(kind, name, None, 1)?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Repositories that hold a manifest, in order, after `from`.
    pub(crate) fn names(&self, from: Option<&str>, limit: usize) -> Result<Vec<String>, RecordsError> {
        self.read(|read| {
            let cells = read.open_table(CELLS)?;
            let mut found: Vec<String> = Vec::new();
            let mut begin = match from {
                Some(name) => after(&Row::prefix(Kind::Manifest, name)),
                None => vec![Kind::Manifest.byte()],
            };
            let end = [Kind::Manifest.byte() + 1];
            while found.len() < limit {
                // Up to the first row of a repository that says something, then past the repository.
                let mut next = None;
                for entry in cells.range(begin.as_slice()..end.as_slice())? {
                    let (key, cell) = entry?;
                    let live = decode_cell(cell.value()).is_some_and(|(_, cell)| cell.value.is_some());
                    if let (true, Some(row)) = (live, Row::decode(key.value())) {
                        next = Some(row.name);
                        break;
                    }
                }
                let Some(name) = next else { break };
                begin = after(&Row::prefix(Kind::Manifest, &name));
                found.push(name);
            }
            Ok(found)
        })
    }

    /// The size of a blob as a manifest of the repository announces it.
    pub(crate) fn announced_size(&self, name: &str, digest: &Digest) -> Result<Option<u64>, RecordsError> {
        let prefix = pair_key(name, digest.as_str(), "");
        self.read(|read| {
            let parts = read.open_table(PARTS)?;
            let first = parts.range(prefix.as_slice()..after(&prefix).as_slice())?.next().transpose()?;
            Ok(first.map(|(_, size)| size.value()))
        })
    }

    /// Manifests whose subject this is.
    pub(crate) fn referrers(&self, name: &str, subject: &Digest) -> Result<Vec<String>, RecordsError> {
        let prefix = pair_key(name, subject.as_str(), "");
        self.read(|read| {
            let referrers = read.open_table(REFERRERS)?;
            let mut found = Vec::new();
            for entry in referrers.range(prefix.as_slice()..after(&prefix).as_slice())? {
                found.push(String::from_utf8_lossy(&entry?.0.value()[prefix.len()..]).into_owned());
            }
            Ok(found)
        })
    }

    /// The repositories that hold these bytes, as kind and name.
    pub(crate) fn owners(&self, digest: &Digest) -> Result<Vec<(Kind, String)>, RecordsError> {
        let prefix = [digest.as_str().as_bytes(), &[0]].concat();
        self.read(|read| {
            let owners = read.open_table(OWNERS)?;
            let mut found = Vec::new();
            for entry in owners.range(prefix.as_slice()..after(&prefix).as_slice())? {
                let (key, _) = entry?;
                let rest = &key.value()[prefix.len()..];
                if let Some((kind, name)) = rest.split_first()
                    && let Some(kind) = Kind::of_byte(*kind)
                {
                    found.push((kind, String::from_utf8_lossy(name).into_owned()));
                }
            }
            Ok(found)
        })
    }
}
