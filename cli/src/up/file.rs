//! Files that are whole or absent.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;

/// Writes a file by way of a temporary neighbour; `mode` holds from its first byte.
pub(crate) fn write_atomic(path: &Path, content: &[u8], mode: u32) -> anyhow::Result<()> {
    let parent = path.parent().context("a file needs a directory")?;
    std::fs::create_dir_all(parent).with_context(|| format!("failed to create {}", parent.display()))?;
    let name = path.file_name().context("a file needs a name")?.to_string_lossy();
    let temporary = parent.join(format!(".{name}.new"));
    let written = (|| {
        // A leftover of a killed run may have another mode.
        let _ = std::fs::remove_file(&temporary);
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    })();
    written.with_context(|| format!("failed to write {}", path.display()))
}
