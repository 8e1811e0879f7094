//! What peers read: every row by its last change, in the order in which the changes came to this registry.

use std::time::Duration;

use redb::{ReadTransaction, ReadableDatabase as _};

use super::row::{Cell, Row, decode_cell};
use super::tables::{CELLS, CURSOR, JOURNAL, LAST, NODE, NUMBERS, OWED};
use super::writer::Shared;
use super::{Records, RecordsError, current};

/// A part of the journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Page {
    /// The journal's last number.
    pub last: u64,
    /// Up to here the page is complete.
    pub through: u64,
    pub changes: Vec<(Row, Cell)>,
}

/// Who this registry is, and the journal's last number.
pub(super) fn identity(shared: &Shared) -> Result<(u64, u64), RecordsError> {
    let database = current(shared)?;
    let read = database.begin_read().map_err(redb::Error::from)?;
    let numbers = read.open_table(NUMBERS).map_err(redb::Error::from)?;
    let number = |name: &str| Ok::<_, redb::Error>(numbers.get(name)?.map_or(0, |value| value.value()));
    Ok((number(NODE)?, number(LAST)?))
}

/// Changes after `since`: at most `rows`, and no further row once there are `bytes`.
pub(super) fn page(
    read: &ReadTransaction,
    since: u64,
    rows: usize,
    bytes: usize,
) -> Result<Page, redb::Error> {
    let last = read.open_table(NUMBERS)?.get(LAST)?.map_or(0, |value| value.value());
    let (journal, cells) = (read.open_table(JOURNAL)?, read.open_table(CELLS)?);
    let mut page = Page { last, through: since, changes: Vec::new() };
    let mut used = 0;
    for entry in journal.range(since.saturating_add(1)..)? {
        let (number, key) = entry?;
        if page.changes.len() >= rows || used >= bytes {
            return Ok(page);
        }
        page.through = number.value();
        let cell = cells.get(key.value())?;
        used += key.value().len() + cell.as_ref().map_or(0, |cell| cell.value().len());
        let cell = cell.and_then(|cell| decode_cell(cell.value()));
        match (Row::decode(key.value()), cell) {
            (Some(row), Some((_, cell))) => page.changes.push((row, cell)),
            // One damaged row must not hold up all others.
            _ => tracing::error!(number = page.through, "a row of the records is damaged"),
        }
    }
    page.through = last.max(since);
    Ok(page)
}

impl Records {
    /// This registry's identity: drawn when the records are made, so that a wiped registry is another one.
    pub(crate) fn node(&self) -> u64 {
        self.node
    }

    /// The number of the journal's last change.
    pub(crate) fn last(&self) -> u64 {
        *self.written.borrow()
    }

    /// Changes after `since`; see [`page`].
    pub(crate) fn changes(&self, since: u64, rows: usize, bytes: usize) -> Result<Page, RecordsError> {
        self.read(|read| page(read, since, rows, bytes))
    }

    /// Waits for a change after `since`, at most `patience`.
    pub(crate) async fn wait_past(&self, since: u64, patience: Duration) {
        let mut written = self.written.clone();
        // Too late, or the records are closed: the caller looks either way.
        let _ = tokio::time::timeout(patience, written.wait_for(|last| *last > since)).await;
    }

    /// The last number of a peer's journal that is applied here.
    pub(crate) fn cursor(&self, peer: u64) -> Result<u64, RecordsError> {
        self.number(&cursor_name(peer))
    }

    /// Bytes that were not to be had when their row came, from `after` on, at most `limit`.
    pub(crate) fn owed(&self, after: Option<&str>, limit: usize) -> Result<Vec<String>, RecordsError> {
        self.read(|read| {
            let owed = read.open_table(OWED)?;
            let from = after.map(|digest| format!("{digest}\0")).unwrap_or_default();
            let mut found = Vec::new();
            for entry in owed.range(from.as_str()..)?.take(limit) {
                found.push(entry?.0.value().to_owned());
            }
            Ok(found)
        })
    }
}

pub(super) fn cursor_name(peer: u64) -> String {
    format!("{CURSOR}{peer:016x}")
}
