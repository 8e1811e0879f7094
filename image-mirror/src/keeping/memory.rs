//! What the keeper remembers across restarts, in `keeping.json`: small, replaced whole.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::Keeper;
use super::mode::Mode;
use super::scrub::Progress;

/// Unknown fields are a later version's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Memory {
    /// Chosen at run time; it wins over the configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mode: Option<Mode>,
    pub(super) scrub: Progress,
}

impl Memory {
    /// What cannot be read is forgotten: it is small, and nothing depends on it.
    pub(super) fn load(root: &Path) -> Self {
        let path = root.join("keeping.json");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::default(),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "forgotten: it cannot be read");
                return Self::default();
            }
        };
        serde_json::from_slice(&text).unwrap_or_else(|error| {
            tracing::warn!(%error, path = %path.display(), "forgotten: it is damaged");
            Self::default()
        })
    }

    fn store(&self, root: &Path) -> io::Result<()> {
        let (path, new) = (root.join("keeping.json"), root.join("keeping.json.new"));
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        serde_json::to_writer(&mut file, self)?;
        file.flush()?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        fs::File::open(root)?.sync_all()
    }
}

impl Keeper {
    pub(super) fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is remembered, here and on the disk. Blocks for a moment.
    pub(super) fn remember(&self, change: impl FnOnce(&mut Memory)) -> io::Result<()> {
        // One at a time: the file says what the last one said.
        let _one = self.remembering.lock().unwrap_or_else(PoisonError::into_inner);
        let new = {
            let mut memory = self.memory();
            change(&mut memory);
            memory.clone()
        };
        new.store(&self.root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_file_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let memory = Memory { mode: Some(Mode::ReadOnly), ..Memory::default() };
        assert_eq!(Memory::load(directory.path()), Memory::default());
        memory.store(directory.path()).unwrap();
        assert_eq!(Memory::load(directory.path()), memory);
        fs::write(directory.path().join("keeping.json"), "{\"mode\":").unwrap();
        assert_eq!(Memory::load(directory.path()), Memory::default());
    }
}
