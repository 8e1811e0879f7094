//! One write transaction: rows and what is derived from them, changed together.

mod removal;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use orlop_distribution::blobs::{BlobError, StagedBlob};
use orlop_types::Digest;
use redb::{ReadableTable as _, Table, WriteTransaction};

use super::RecordsError;
use super::row::{Cell, Kind, ManifestRow, Row, Value, decode_cell, encode_cell};
use super::stamp::Clock;
use super::tables::{
    BYTES, CELLS, CLOCK, CONTENTS, COUNT, JOURNAL, LAST, NODE, NUMBERS, OWED, OWNERS, PARTS, REFERRERS,
    after, owner_key, pair_key,
};

pub(crate) use removal::{Burial, Evicted};

/// Everything that a change may touch. Nothing of it is visible before the whole batch is on the disk.
pub(crate) struct Change<'t> {
    pub(super) cells: Table<'t, &'static [u8], &'static [u8]>,
    pub(super) journal: Table<'t, u64, &'static [u8]>,
    owners: Table<'t, &'static [u8], u8>,
    parts: Table<'t, &'static [u8], u64>,
    referrers: Table<'t, &'static [u8], ()>,
    pub(super) contents: Table<'t, &'static str, (u64, u64)>,
    pub(super) numbers: Table<'t, &'static str, u64>,
    pub(super) owed: Table<'t, &'static str, u64>,
    pub(super) clock: Clock,
    last: u64,
    pub(super) now_ms: u64,
    effects: Effects,
}

/// What goes with a transaction on the file system.
#[derive(Debug, Default)]
pub(super) struct Effects {
    /// Directories to sync before the commit: blobs were renamed into them.
    pub(super) renamed: BTreeSet<PathBuf>,
    /// Files that go after the commit. The same thread puts files in their place, so that none comes back in between.
    pub(super) burials: BTreeMap<Digest, Burial>,
    /// The journal's last number.
    pub(super) last: u64,
}

impl<'t> Change<'t> {
    pub(super) fn begin(write: &'t WriteTransaction, now_ms: u64) -> Result<Self, redb::Error> {
        let numbers = write.open_table(NUMBERS)?;
        let number = |name: &str| Ok::<_, redb::Error>(numbers.get(name)?.map_or(0, |value| value.value()));
        let (clock, last) = (Clock::new(number(CLOCK)?, number(NODE)?), number(LAST)?);
        Ok(Self {
            cells: write.open_table(CELLS)?,
            journal: write.open_table(JOURNAL)?,
            owners: write.open_table(OWNERS)?,
            parts: write.open_table(PARTS)?,
            referrers: write.open_table(REFERRERS)?,
            contents: write.open_table(CONTENTS)?,
            numbers,
            owed: write.open_table(OWED)?,
            clock,
            last,
            now_ms,
            effects: Effects::default(),
        })
    }

    pub(super) fn finish(mut self) -> Result<Effects, redb::Error> {
        self.numbers.insert(CLOCK, self.clock.last())?;
        self.numbers.insert(LAST, self.last)?;
        Ok(Effects { last: self.last, ..self.effects })
    }

    /// Milliseconds since 1970 at the start of the transaction.
    pub(crate) fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// The number of the last change, this one included.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    pub(crate) fn cell(&self, row: &Row) -> Result<Option<Cell>, RecordsError> {
        Ok(self.numbered(row)?.map(|(_, cell)| cell))
    }

    /// What a row says now.
    pub(crate) fn value(&self, row: &Row) -> Result<Option<Value>, RecordsError> {
        Ok(self.cell(row)?.and_then(|cell| cell.value))
    }

    pub(super) fn numbered(&self, row: &Row) -> Result<Option<(u64, Cell)>, RecordsError> {
        let Some(bytes) = self.cells.get(row.encode().as_slice())? else { return Ok(None) };
        decode_cell(bytes.value()).map(Some).ok_or_else(|| RecordsError::damaged(row))
    }

    /// Changes a row here and now; false when it says that already.
    pub(crate) fn set(&mut self, row: &Row, value: Option<Value>) -> Result<bool, RecordsError> {
        let old = self.numbered(row)?;
        let said = old.as_ref().and_then(|(_, cell)| cell.value.as_ref());
        if said == value.as_ref() {
            return Ok(false);
        }
        // What was pushed stays so when an upstream has it too.
        if said.is_some_and(|said| !said.is_fetched()) && value.as_ref().is_some_and(Value::is_fetched) {
            return Ok(false);
        }
        let before = old.as_ref().map(|(_, cell)| cell.stamp).unwrap_or_default();
        let stamp = self.clock.tick(self.now_ms, before);
        self.store(row, old, Cell { stamp, value })?;
        Ok(true)
    }

    pub(super) fn store(
        &mut self,
        row: &Row,
        old: Option<(u64, Cell)>,
        cell: Cell,
    ) -> Result<(), RecordsError> {
        if let Some((number, old)) = old {
            self.journal.remove(number)?;
            if let Some(value) = &old.value {
                self.derive(row, value, false)?;
            }
        }
        if let Some(value) = &cell.value {
            self.derive(row, value, true)?;
        }
        self.last += 1;
        let key = row.encode();
        self.journal.insert(self.last, key.as_slice())?;
        self.cells.insert(key.as_slice(), encode_cell(self.last, &cell).as_slice())?;
        Ok(())
    }

    fn derive(&mut self, row: &Row, value: &Value, present: bool) -> Result<(), RecordsError> {
        if matches!(value, Value::Tag(_)) {
            return Ok(());
        }
        let owner = owner_key(&row.key, row.kind.byte(), &row.name);
        if present {
            self.owners.insert(owner.as_slice(), u8::from(!value.is_fetched()))?;
        } else {
            self.owners.remove(owner.as_slice())?;
        }
        if let Value::Manifest(manifest) = value {
            self.derive_manifest(row, manifest, present)?;
        }
        Ok(())
    }

    fn derive_manifest(
        &mut self,
        row: &Row,
        manifest: &ManifestRow,
        present: bool,
    ) -> Result<(), RecordsError> {
        for part in &manifest.parts {
            let key = pair_key(&row.name, part.digest.as_str(), &row.key);
            if present {
                self.parts.insert(key.as_slice(), part.size)?;
            } else {
                self.parts.remove(key.as_slice())?;
            }
        }
        if let Some(subject) = &manifest.subject {
            let key = pair_key(&row.name, subject.as_str(), &row.key);
            if present {
                self.referrers.insert(key.as_slice(), ())?;
            } else {
                self.referrers.remove(key.as_slice())?;
            }
        }
        Ok(())
    }

    /// The rows of one kind in one repository that say something.
    pub(crate) fn rows(&self, kind: Kind, name: &str) -> Result<Vec<(Row, Value)>, RecordsError> {
        let prefix = Row::prefix(kind, name);
        let mut found = Vec::new();
        for entry in self.cells.range(prefix.as_slice()..after(&prefix).as_slice())? {
            let (key, cell) = entry?;
            if let (Some(row), Some((_, Cell { value: Some(value), .. }))) =
                (Row::decode(key.value()), decode_cell(cell.value()))
            {
                found.push((row, value));
            }
        }
        Ok(found)
    }

    /// Puts a whole, synced blob in its place and counts its bytes.
    pub(crate) fn keep(&mut self, staged: StagedBlob, directory: PathBuf) -> Result<(), RecordsError> {
        let (digest, size) = (staged.digest().clone(), staged.size());
        staged.commit()?;
        self.effects.renamed.insert(directory);
        self.count(&digest, size)
    }

    /// Counts bytes that are in their place.
    pub(crate) fn count(&mut self, digest: &Digest, size: u64) -> Result<(), RecordsError> {
        self.effects.burials.remove(digest);
        let old = self.contents.insert(digest.as_str(), (size, self.now_ms))?.map(|value| value.value().0);
        self.add(BYTES, i128::from(size) - i128::from(old.unwrap_or(0)))?;
        if old.is_none() {
            self.add(COUNT, 1)?;
            self.owed.remove(digest.as_str())?;
        }
        Ok(())
    }

    /// When bytes were used last.
    pub(crate) fn used_ms(&self, digest: &Digest) -> Result<Option<u64>, RecordsError> {
        Ok(self.contents.get(digest.as_str())?.map(|value| value.value().1))
    }

    /// Notes a use.
    pub(crate) fn touch(&mut self, digest: &str, used_ms: u64) -> Result<(), RecordsError> {
        let known = self.contents.get(digest)?.map(|value| value.value());
        if let Some((size, before)) = known
            && before < used_ms
        {
            self.contents.insert(digest, (size, used_ms))?;
        }
        Ok(())
    }

    fn add(&mut self, name: &str, difference: i128) -> Result<(), RecordsError> {
        let old = self.numbers.get(name)?.map_or(0, |value| value.value());
        let sum = (i128::from(old) + difference).max(0);
        self.numbers.insert(name, u64::try_from(sum).unwrap_or(u64::MAX))?;
        Ok(())
    }
}

impl From<BlobError> for RecordsError {
    fn from(error: BlobError) -> Self {
        if error.is_no_space() { RecordsError::NoSpace } else { RecordsError::Storage(error.to_string()) }
    }
}
