//! Removals that are this registry's own affair: what nobody needs here, or what an upstream gives again.
//!
//! They leave no stamp and nothing in the journal: another half of a pair decides for itself what it keeps, and a removal that
//! travelled could overtake the manifest that needs the blob there. A half that still has an evicted row gives it again only when
//! the row changes.

use std::path::PathBuf;

use orlop_types::Digest;
use redb::ReadableTable as _;

use super::{Change, RecordsError};
use crate::records::row::{Cell, Kind, ManifestRow, Row, Value};
use crate::records::tables::{BYTES, COUNT, after, pair_key};

/// The file of dropped bytes, and where it waits for its removal.
#[derive(Clone, Debug)]
pub(crate) struct Burial {
    pub from: PathBuf,
    pub to: PathBuf,
}

/// What went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Evicted {
    pub images: u64,
    pub bytes: u64,
}

impl Change<'_> {
    /// Whether a manifest of the repository names it.
    pub(crate) fn is_named(&self, name: &str, digest: &str) -> Result<bool, RecordsError> {
        let prefix = pair_key(name, digest, "");
        Ok(self.parts.range(prefix.as_slice()..after(&prefix).as_slice())?.next().transpose()?.is_some())
    }

    fn is_owned(&self, digest: &Digest) -> Result<bool, RecordsError> {
        let prefix = [digest.as_str().as_bytes(), &[0]].concat();
        Ok(self.owners.range(prefix.as_slice()..after(&prefix).as_slice())?.next().transpose()?.is_some())
    }

    /// Forgets a row without a trace.
    fn evict(&mut self, row: &Row) -> Result<(), RecordsError> {
        let Some((number, cell)) = self.numbered(row)? else { return Ok(()) };
        self.journal.remove(number)?;
        if let Some(value) = &cell.value {
            self.derive(row, value, false)?;
        }
        self.cells.remove(row.encode().as_slice())?;
        Ok(())
    }

    /// Forgets a blob's row that no manifest of its repository names and that nobody used since `before_ms`; false when it stays.
    pub(crate) fn evict_unnamed(&mut self, row: &Row, before_ms: u64) -> Result<bool, RecordsError> {
        let Some(Cell { stamp, value: Some(Value::Blob { .. }) }) = self.cell(row)? else { return Ok(false) };
        let used_ms = self.contents.get(row.key.as_str())?.map_or(0, |value| value.value().1);
        if stamp.ms().max(used_ms) >= before_ms || self.is_named(&row.name, &row.key)? {
            return Ok(false);
        }
        self.evict(row)?;
        Ok(true)
    }

    /// Forgets a fetched manifest with its tags, and what it alone named. None when it stays: it was pushed, or it or a blob of it was
    /// used since `before_ms`; else the bytes that went. `burial` is none for what is in use.
    pub(crate) fn evict_image(
        &mut self,
        name: &str,
        digest: &Digest,
        before_ms: u64,
        burial: &dyn Fn(&Digest) -> Option<Burial>,
    ) -> Result<Option<u64>, RecordsError> {
        let row = Row::new(Kind::Manifest, name, digest.as_str());
        let Some(Value::Manifest(ManifestRow { fetched: true, parts, .. })) = self.value(&row)? else {
            return Ok(None);
        };
        let digests: Vec<Digest> =
            std::iter::once(digest.clone()).chain(parts.into_iter().map(|part| part.digest)).collect();
        for digest in &digests {
            if self.used_ms(digest)?.is_some_and(|used_ms| used_ms >= before_ms) || burial(digest).is_none() {
                return Ok(None);
            }
        }
        self.evict(&row)?;
        for (tag, value) in self.rows(Kind::FetchedTag, name)? {
            if value == Value::Tag(digest.clone()) {
                self.evict(&tag)?;
            }
        }
        let mut bytes = 0;
        for digest in &digests {
            let blob = Row::new(Kind::Blob, name, digest.as_str());
            if matches!(self.value(&blob)?, Some(Value::Blob { fetched: true, .. }))
                && !self.is_named(name, digest.as_str())?
            {
                self.evict(&blob)?;
            }
            if let Some(burial) = burial(digest) {
                bytes += self.drop_unowned(digest, before_ms, burial)?.unwrap_or(0);
            }
        }
        Ok(Some(bytes))
    }

    /// Drops bytes that no row wants and that nobody used since `before_ms`; their number, none when they stay. The file goes after
    /// the commit.
    pub(crate) fn drop_unowned(
        &mut self,
        digest: &Digest,
        before_ms: u64,
        burial: Burial,
    ) -> Result<Option<u64>, RecordsError> {
        let known = self.contents.get(digest.as_str())?.map(|value| value.value());
        let Some((size, used_ms)) = known else { return Ok(None) };
        if used_ms >= before_ms || self.is_owned(digest)? {
            return Ok(None);
        }
        self.forget_bytes(digest)?;
        self.effects.burials.insert(digest.clone(), burial);
        Ok(Some(size))
    }

    /// Notes that bytes are not here.
    pub(crate) fn forget_bytes(&mut self, digest: &Digest) -> Result<(), RecordsError> {
        let old = self.contents.remove(digest.as_str())?.map(|value| value.value().0);
        if let Some(size) = old {
            self.add(BYTES, -i128::from(size))?;
            self.add(COUNT, -1)?;
        }
        Ok(())
    }

    /// Bytes that were here are lost; where they were pushed, another registry owes them.
    pub(crate) fn lose(&mut self, digest: &Digest) -> Result<(), RecordsError> {
        self.forget_bytes(digest)?;
        let prefix = [digest.as_str().as_bytes(), &[0]].concat();
        let mut pushed = false;
        for entry in self.owners.range(prefix.as_slice()..after(&prefix).as_slice())? {
            pushed |= entry?.1.value() == 1;
        }
        if pushed { self.owe(digest.as_str()) } else { Ok(()) }
    }

    /// What was deleted is not owed any more.
    pub(crate) fn prune_owed(&mut self) -> Result<(), RecordsError> {
        let owed = self.owed.iter()?.map(|entry| entry.map(|(digest, _)| digest.value().to_owned()));
        for text in owed.collect::<Result<Vec<_>, _>>()? {
            let wanted = match text.parse() {
                Ok(digest) => self.is_owned(&digest)?,
                Err(_) => false,
            };
            if !wanted {
                self.owe_no_more(&text)?;
            }
        }
        Ok(())
    }

    /// A file that the records do not know: counted when a row wants it, else it goes after the commit; true then.
    pub(crate) fn settle_stray(
        &mut self,
        digest: &Digest,
        size: u64,
        burial: Burial,
    ) -> Result<bool, RecordsError> {
        if self.used_ms(digest)?.is_some() {
            return Ok(false);
        }
        if self.is_owned(digest)? {
            self.count(digest, size)?;
            return Ok(false);
        }
        self.effects.burials.insert(digest.clone(), burial);
        Ok(true)
    }

    /// States a blob's row again as pushed when it is fetched or was last stated before `before_ms`: the other half of a pair may have
    /// forgotten it as unnamed, and must hear of it before the manifest that names it.
    pub(crate) fn renew_blob(
        &mut self,
        name: &str,
        digest: &Digest,
        before_ms: u64,
    ) -> Result<(), RecordsError> {
        let row = Row::new(Kind::Blob, name, digest.as_str());
        let Some((number, Cell { stamp, value: Some(Value::Blob { size, fetched }) })) =
            self.numbered(&row)?
        else {
            return Ok(());
        };
        if fetched || stamp.ms() < before_ms {
            let value = Value::Blob { size, fetched };
            let stamp_now = self.clock.tick(self.now_ms, stamp);
            let cell = Cell { stamp: stamp_now, value: Some(Value::Blob { size, fetched: false }) };
            self.store(&row, Some((number, Cell { stamp, value: Some(value) })), cell)?;
        }
        Ok(())
    }
}
