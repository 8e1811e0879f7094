//! One `orlop up` per data directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Write as _};
use std::path::PathBuf;

use anyhow::{Context as _, bail};

use super::layout::Layout;

/// Held for the life of `orlop up`; the kernel lets go of it when the process dies.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

fn path(layout: &Layout) -> PathBuf {
    layout.data().join("up.lock")
}

impl Lock {
    /// Takes the lock, or names the process that has it.
    pub(crate) fn take(layout: &Layout) -> anyhow::Result<Self> {
        let path = path(layout);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("failed to open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let holder = Self::holder(layout)
                    .map_or_else(|| "another process".into(), |pid| format!("process {pid}"));
                bail!("{holder} runs the cluster of {} already: stop it first", layout.data().display());
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).context("failed to lock the data directory");
            }
        }
        file.set_len(0)?;
        file.write_all(std::process::id().to_string().as_bytes())?;
        Ok(Self { _file: file })
    }

    /// The process that holds the lock now, if one does.
    pub(crate) fn holder(layout: &Layout) -> Option<i32> {
        let mut file = File::open(path(layout)).ok()?;
        if file.try_lock_shared().is_ok() {
            return None;
        }
        let mut text = String::new();
        file.read_to_string(&mut text).ok()?;
        text.trim().parse().ok()
    }
}
