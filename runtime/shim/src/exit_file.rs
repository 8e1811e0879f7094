//! `containers/ID/exit.json`: how a container ended, on disk before anybody is told.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use crate::protocol::ExitStatus;

/// The file's name.
pub const NAME: &str = "exit.json";

/// Reads one; `None` when the container has not ended.
pub fn read(directory: &Path) -> io::Result<Option<ExitStatus>> {
    match fs::read(directory.join(NAME)) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes one, durably and at once.
pub fn write(directory: &Path, exit: &ExitStatus) -> io::Result<()> {
    write_json(&directory.join(NAME), &serde_json::to_vec(exit)?)
}

/// Writes a file so that it is there whole or not at all.
pub(crate) fn write_json(path: &Path, text: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read(directory.path()).unwrap(), None);
        let exit = ExitStatus { code: 137, finished_at: 5, oom_killed: true };
        write(directory.path(), &exit).unwrap();
        assert_eq!(read(directory.path()).unwrap(), Some(exit));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
