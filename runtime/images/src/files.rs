//! Paths of the store, atomic small files, the store's lock.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::Serialize;

use crate::ImageError;

/// Where things are; see the map in `lib.rs`.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    pub(crate) root: PathBuf,
}

impl Paths {
    pub(crate) fn content(&self) -> PathBuf {
        self.root.join("content")
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("snapshots/layers")
    }

    pub(crate) fn containers(&self) -> PathBuf {
        self.root.join("snapshots/containers")
    }

    pub(crate) fn leases(&self) -> PathBuf {
        self.root.join("leases")
    }

    pub(crate) fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    pub(crate) fn make_all(&self) -> Result<(), ImageError> {
        for path in [self.images(), self.layers(), self.containers(), self.leases(), self.trash()] {
            fs::create_dir_all(&path).map_err(|source| ImageError::io("create", &path, source))?;
        }
        Ok(())
    }

    /// Excludes garbage collection and changes of records, not other shared holders. Held for moments only.
    pub(crate) fn lock_shared(&self) -> Result<StoreLock, ImageError> {
        self.lock(FlockOperation::LockShared)
    }

    /// Excludes everybody.
    pub(crate) fn lock_exclusive(&self) -> Result<StoreLock, ImageError> {
        self.lock(FlockOperation::LockExclusive)
    }

    fn lock(&self, operation: FlockOperation) -> Result<StoreLock, ImageError> {
        let path = self.root.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|source| ImageError::io("open", &path, source))?;
        retry_flock(&file, operation).map_err(|source| ImageError::io("lock", &path, source))?;
        Ok(StoreLock { _file: file })
    }

    /// Everything written so far survives a loss of power.
    pub(crate) fn sync(&self) -> Result<(), ImageError> {
        let synced = File::open(&self.root).and_then(|root| Ok(rustix::fs::syncfs(&root)?));
        synced.map_err(|source| ImageError::io("sync", &self.root, source))
    }

    /// Moves a path out of sight at once; [`Paths::empty_trash`] removes it.
    pub(crate) fn discard(&self, path: &Path) -> Result<(), ImageError> {
        let target = self.trash().join(format!("{:016x}{:016x}", nanoseconds(), unique()));
        match fs::rename(path, &target) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(ImageError::io("move to trash", path, source)),
        }
    }

    /// Removes what was discarded, also by processes that are gone. Nobody needs it any more, so what cannot be removed now (perhaps
    /// because another process removes it, too) does not fail anything and is tried again the next time.
    pub(crate) fn empty_trash(&self) -> Result<(), ImageError> {
        for path in children(&self.trash())? {
            if let Err(error) = remove_path(&path) {
                tracing::debug!(%error, "trash stays for now");
            }
        }
        Ok(())
    }
}

/// The lock is released when this is dropped, or the process dies.
pub(crate) struct StoreLock {
    _file: File,
}

pub(crate) fn retry_flock(file: &File, operation: FlockOperation) -> io::Result<()> {
    loop {
        match rustix::fs::flock(file, operation) {
            Err(rustix::io::Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

fn nanoseconds() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos() & u128::from(u64::MAX)).unwrap_or(0)
}

/// Differs between threads and processes at the same instant.
pub(crate) fn unique() -> u64 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    (u64::from(std::process::id()) << 32) | u64::from(COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// A name that no other operation uses, now or after a restart.
pub(crate) fn unique_name() -> String {
    format!("{:016x}{:016x}", nanoseconds(), unique())
}

/// Paths in a directory, in no order.
pub(crate) fn children(directory: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let list = |source| ImageError::io("list", directory, source);
    match fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path()).map_err(list)).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(list(source)),
    }
}

/// Removes a file or tree; gone already is fine.
pub(crate) fn remove_path(path: &Path) -> Result<(), ImageError> {
    let result = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ImageError::io("remove", path, error)),
        _ => Ok(()),
    }
}

/// Writes a small JSON document: temporary file beside it (name starts with a dot), sync, rename.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), ImageError> {
    let temporary = path.with_file_name(format!(".{}", unique_name()));
    let content = serde_json::to_vec(value).expect("records of strings and numbers are JSON");
    let written = File::create(&temporary)
        .and_then(|mut file| {
            file.write_all(&content)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&temporary, path));
    written.map_err(|source| {
        // The error that matters is the first one.
        let _ = fs::remove_file(&temporary);
        ImageError::io("write", path, source)
    })
}

/// Renames and removals in a directory survive a loss of power.
pub(crate) fn sync_directory(path: &Path) -> Result<(), ImageError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| ImageError::io("sync", path, source))
}

/// Reads a small JSON document; none when there is no file.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, ImageError> {
    let content = match fs::read(path) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(ImageError::io("read", path, source)),
    };
    let parsed = serde_json::from_slice(&content);
    parsed
        .map(Some)
        .map_err(|error| ImageError::io("parse", path, io::Error::new(io::ErrorKind::InvalidData, error)))
}
