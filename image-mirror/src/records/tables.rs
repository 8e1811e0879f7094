//! The redb file: its tables, and how it is opened.

use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase as _, TableDefinition};

/// Pages that redb keeps.
const PAGE_CACHE_BYTES: usize = 4 << 20;
const FORMAT: u64 = 1;

/// Row -> cell.
pub(super) const CELLS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("cells");
/// Number of a change -> its row; only the last change of a row is kept.
pub(super) const JOURNAL: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("journal");
/// `DIGEST 0 KIND NAME` -> 1 if pushed, 0 if fetched: who wants the bytes.
pub(super) const OWNERS: TableDefinition<'static, &[u8], u8> = TableDefinition::new("owners");
/// `NAME 0 PART 0 MANIFEST` -> size of the part: what a manifest needs.
pub(super) const PARTS: TableDefinition<'static, &[u8], u64> = TableDefinition::new("parts");
/// `NAME 0 SUBJECT 0 MANIFEST` -> nothing.
pub(super) const REFERRERS: TableDefinition<'static, &[u8], ()> = TableDefinition::new("referrers");
/// Digest -> size and milliseconds since 1970 of the last use: the bytes that are here.
pub(super) const CONTENTS: TableDefinition<'static, &str, (u64, u64)> = TableDefinition::new("contents");
/// Digest -> milliseconds since 1970: bytes that a peer's row names and no peer had when the row came.
pub(super) const OWED: TableDefinition<'static, &str, u64> = TableDefinition::new("owed");
/// [`FORMAT_KEY`] and the other names below.
pub(super) const NUMBERS: TableDefinition<'static, &str, u64> = TableDefinition::new("numbers");

const FORMAT_KEY: &str = "format";
/// Who this registry is: drawn once, so that a wiped one is another.
pub(super) const NODE: &str = "node";
/// Followed by a peer's identity: the last number of its journal that is applied here.
pub(super) const CURSOR: &str = "cursor/";
/// The clock's last stamp.
pub(super) const CLOCK: &str = "clock";
/// The journal's last number.
pub(super) const LAST: &str = "last";
/// Sum of the sizes in [`CONTENTS`].
pub(super) const BYTES: &str = "bytes";
/// Number of rows of [`CONTENTS`].
pub(super) const COUNT: &str = "count";

/// Opens the file and makes the tables of a new one.
pub(super) fn open(path: &Path) -> Result<Database, redb::Error> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    let database =
        redb::Builder::new().set_cache_size(PAGE_CACHE_BYTES).create_with_backend(FileBackend::new(file)?)?;
    let format = match database.begin_read()?.open_table(NUMBERS) {
        Ok(numbers) => numbers.get(FORMAT_KEY)?.map(|value| value.value()),
        Err(redb::TableError::TableDoesNotExist(_)) => {
            make(&database)?;
            Some(FORMAT)
        }
        Err(error) => return Err(error.into()),
    };
    if format != Some(FORMAT) {
        let reason = format!("its format is {format:?}, this version knows {FORMAT}");
        return Err(redb::Error::Corrupted(reason));
    }
    add_later_tables(&database)?;
    Ok(database)
}

/// Tables that older versions of the format did not have.
fn add_later_tables(database: &Database) -> Result<(), redb::Error> {
    if let Err(redb::TableError::TableDoesNotExist(_)) = database.begin_read()?.open_table(OWED) {
        let write = database.begin_write()?;
        write.open_table(OWED)?;
        write.commit()?;
    }
    Ok(())
}

fn make(database: &Database) -> Result<(), redb::Error> {
    let write = database.begin_write()?;
    write.open_table(CELLS)?;
    write.open_table(JOURNAL)?;
    write.open_table(OWNERS)?;
    write.open_table(PARTS)?;
    write.open_table(REFERRERS)?;
    write.open_table(CONTENTS)?;
    {
        let mut numbers = write.open_table(NUMBERS)?;
        numbers.insert(FORMAT_KEY, FORMAT)?;
        numbers.insert(NODE, rand::random::<u64>())?;
    }
    write.commit()?;
    Ok(())
}

/// `DIGEST 0 KIND NAME`
pub(super) fn owner_key(digest: &str, kind: u8, name: &str) -> Vec<u8> {
    [digest.as_bytes(), &[0, kind], name.as_bytes()].concat()
}

/// `NAME 0 FIRST 0 SECOND`; without the second what all of them begin with.
pub(super) fn pair_key(name: &str, first: &str, second: &str) -> Vec<u8> {
    [name.as_bytes(), &[0], first.as_bytes(), &[0], second.as_bytes()].concat()
}

/// The end of a range of keys that begin with `prefix`.
pub(super) fn after(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            break;
        }
    }
    end
}
