//! The redb file: how it is opened, its tables, and the layout of a value.

use std::fmt;
use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase as _, TableDefinition};

use crate::{Encoded, Record, Revision, StoreError};

/// Pages that redb keeps; everything is in the watch cache anyway, this only carries the inner pages of the tree.
const PAGE_CACHE_BYTES: usize = 4 << 20;
const FORMAT: u64 = 1;

pub(super) const OBJECTS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("objects");
pub(super) const COUNTERS: TableDefinition<'static, &str, u64> = TableDefinition::new("counters");
pub(super) const REVISION: &str = "revision";
const FORMAT_KEY: &str = "format";

type OpenFn = dyn Fn(&mut redb::Builder) -> Result<Database, redb::DatabaseError> + Send;

/// Opens the file, and opens it again after a fault.
pub(super) struct Opener {
    path: String,
    open: Box<OpenFn>,
}

impl fmt::Debug for Opener {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Opener").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Secrets are in it: for its owner only, also when it was made otherwise.
fn private_file(path: &Path) -> Result<FileBackend, redb::DatabaseError> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    FileBackend::new(file)
}

impl Opener {
    pub(super) fn file(path: &Path) -> Self {
        let owned = path.to_owned();
        let open = move |builder: &mut redb::Builder| builder.create_with_backend(private_file(&owned)?);
        Self { path: path.display().to_string(), open: Box::new(open) }
    }

    #[cfg(test)]
    pub(super) fn custom(
        path: &Path,
        open: impl Fn(&mut redb::Builder) -> Result<Database, redb::DatabaseError> + Send + 'static,
    ) -> Self {
        Self { path: path.display().to_string(), open: Box::new(open) }
    }

    /// Opens the file, makes the tables of a new one, and tells at which revision it is.
    pub(super) fn open(&self) -> Result<(Database, Revision), redb::Error> {
        let database = (self.open)(redb::Builder::new().set_cache_size(PAGE_CACHE_BYTES))?;
        let known = {
            let read = database.begin_read()?;
            match read.open_table(COUNTERS) {
                Ok(counters) => {
                    let format = counters.get(FORMAT_KEY)?.map(|value| value.value());
                    Some((format, counters.get(REVISION)?.map(|value| value.value()).unwrap_or_default()))
                }
                Err(redb::TableError::TableDoesNotExist(_)) => None,
                Err(error) => return Err(error.into()),
            }
        };
        match known {
            Some((Some(FORMAT), revision)) => Ok((database, revision)),
            Some((format, _)) => {
                Err(redb::Error::Corrupted(format!("its format is {format:?}, this version knows {FORMAT}")))
            }
            None => {
                let write = database.begin_write()?;
                write.open_table(OBJECTS)?;
                {
                    let mut counters = write.open_table(COUNTERS)?;
                    counters.insert(FORMAT_KEY, FORMAT)?;
                    // 1, so that no object or list ever has revision 0, which clients read as "any".
                    counters.insert(REVISION, 1)?;
                }
                write.commit()?;
                Ok((database, 1))
            }
        }
    }

    pub(super) fn open_error(&self, error: &redb::Error) -> StoreError {
        StoreError::Open { path: self.path.clone(), reason: error.to_string() }
    }
}

/// Sorts a fault: a full disk (the operator can fix it) or anything else.
pub(super) fn storage_error(error: &redb::Error) -> StoreError {
    use std::io::ErrorKind;
    match error {
        redb::Error::Io(io)
            if matches!(
                io.kind(),
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
            ) =>
        {
            StoreError::NoSpace { reason: io.to_string() }
        }
        other => StoreError::Io { reason: other.to_string() },
    }
}

const HEADER_BYTES: usize = 20;

/// `create_revision | mod_revision | revision_at | bytes`, little endian.
pub(super) fn encode(create_revision: Revision, mod_revision: Revision, object: &Encoded) -> Vec<u8> {
    let mut value = Vec::with_capacity(HEADER_BYTES + object.bytes.len());
    value.extend_from_slice(&create_revision.to_le_bytes());
    value.extend_from_slice(&mod_revision.to_le_bytes());
    value.extend_from_slice(&object.revision_at.to_le_bytes());
    value.extend_from_slice(&object.bytes);
    value
}

pub(super) fn decode(key: &str, value: &[u8]) -> Result<Record, redb::Error> {
    let (create_revision, mod_revision) = revisions(key, value)?;
    let at = value.get(16..HEADER_BYTES).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
    let bytes = value.get(HEADER_BYTES..).unwrap_or_default();
    match at {
        Some(revision_at) if revision_at as usize <= bytes.len() => Ok(Record {
            key: Arc::from(key),
            create_revision,
            mod_revision,
            object: Encoded { bytes: Bytes::copy_from_slice(bytes), revision_at },
            meta: None,
        }),
        _ => Err(damaged(key)),
    }
}

/// The create and mod revision of a stored value.
pub(super) fn revisions(key: &str, value: &[u8]) -> Result<(Revision, Revision), redb::Error> {
    let number = |range: std::ops::Range<usize>| {
        value.get(range).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes)
    };
    number(0..8).zip(number(8..16)).ok_or_else(|| damaged(key))
}

fn damaged(key: &str) -> redb::Error {
    redb::Error::Corrupted(format!("the value of {key} is cut off"))
}
