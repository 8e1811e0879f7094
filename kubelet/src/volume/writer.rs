//! The atomic writer: a volume's files change all at once (upstream: pkg/volume/util/atomic_writer.go).
//!
//! ```text
//!   DIR/name -> ..data/name      DIR/..data -> ..2026_01_02_03_04_05.12345      DIR/..2026_…/name
//! ```
//! A reader that holds `..data` open sees the old files whole; the rename of `..data` is the one moment of change.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::Path;

use super::payload::Files;

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// Owner of the files; absent parts stay root's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) user: Option<u32>,
    pub(crate) group: Option<u32>,
}

/// Makes `dir` hold exactly `files`; false when it already did. May be cut at any line: the next call repairs.
pub(crate) fn write(dir: &Path, files: &Files, owner: Owner) -> io::Result<bool> {
    fs::create_dir_all(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o777))?;
    let current = fs::read_link(dir.join(DATA)).ok();
    let unchanged = current.as_ref().is_some_and(|current| holds(&dir.join(current), files, owner));
    let keep = match current.filter(|_| unchanged) {
        Some(current) => current,
        None => {
            let fresh = fresh_name();
            fill(&dir.join(&fresh), files, owner)?;
            let _ = fs::remove_file(dir.join(DATA_NEW));
            symlink(&fresh, dir.join(DATA_NEW))?;
            fs::rename(dir.join(DATA_NEW), dir.join(DATA))?;
            fresh.into()
        }
    };
    link(dir, files)?;
    sweep(dir, &keep, files)?;
    Ok(!unchanged)
}

fn fresh_name() -> String {
    let now = jiff::Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S");
    format!("..{now}.{}", rand::random::<u32>())
}

fn holds(dir: &Path, files: &Files, owner: Owner) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let mut found = Vec::new();
    if list(dir, "", &mut found).is_err() || found.len() != files.len() {
        return false;
    }
    files.iter().all(|(path, file)| {
        let path = dir.join(path);
        let same_attributes = fs::metadata(&path).is_ok_and(|metadata| {
            metadata.mode() & 0o777 == file.mode
                && owner.user.is_none_or(|user| user == metadata.uid())
                && owner.group.is_none_or(|group| group == metadata.gid())
        });
        same_attributes && fs::read(&path).is_ok_and(|bytes| bytes == file.bytes)
    })
}

fn list(dir: &Path, prefix: &str, found: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            list(&entry.path(), &format!("{name}/"), found)?;
        } else {
            found.push(name);
        }
    }
    Ok(())
}

fn fill(dir: &Path, files: &Files, owner: Owner) -> io::Result<()> {
    fs::create_dir(dir)?;
    let mut dirs = BTreeSet::from([dir.to_owned()]);
    for (path, file) in files {
        let target = dir.join(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
            dirs.extend(
                parent.ancestors().take_while(|ancestor| ancestor.starts_with(dir)).map(Path::to_owned),
            );
        }
        fs::write(&target, &file.bytes)?;
        chown(&target, owner.user, owner.group)?;
        fs::set_permissions(&target, fs::Permissions::from_mode(file.mode))?;
    }
    for made in dirs {
        chown(&made, None, owner.group)?;
        fs::set_permissions(&made, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

fn tops(files: &Files) -> BTreeSet<&str> {
    files.keys().filter_map(|path| path.split('/').next()).collect()
}

fn link(dir: &Path, files: &Files) -> io::Result<()> {
    for top in tops(files) {
        let path = dir.join(top);
        if fs::symlink_metadata(&path).is_err() {
            symlink(Path::new(DATA).join(top), &path)?;
        }
    }
    Ok(())
}

fn sweep(dir: &Path, keep: &Path, files: &Files) -> io::Result<()> {
    let tops = tops(files);
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let text = name.to_string_lossy();
        if text == DATA || Path::new(&name) == keep {
            continue;
        }
        if text.starts_with("..") {
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?
            } else {
                fs::remove_file(entry.path())?
            }
        } else if entry.file_type()?.is_symlink() && !tops.contains(text.as_ref()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::payload::File;
    use super::*;

    fn files(list: &[(&str, &str)]) -> Files {
        list.iter()
            .map(|(path, text)| ((*path).to_owned(), File { bytes: text.as_bytes().to_vec(), mode: 0o640 }))
            .collect()
    }

    #[test]
    fn content_is_swapped_whole_and_leftovers_go() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        assert!(write(root, &files(&[("a", "1"), ("d/b", "2")]), Owner::default()).unwrap());
        assert!(!write(root, &files(&[("a", "1"), ("d/b", "2")]), Owner::default()).unwrap());
        let before = fs::read_link(root.join(DATA)).unwrap();
        fs::create_dir(root.join("..2000_left_by_a_crash")).unwrap();
        assert!(write(root, &files(&[("d/b", "3")]), Owner::default()).unwrap());
        assert_eq!(fs::read_to_string(root.join("d/b")).unwrap(), "3");
        assert!(fs::symlink_metadata(root.join("a")).is_err());
        assert!(!root.join(before).exists());
        assert!(!root.join("..2000_left_by_a_crash").exists());
        assert_eq!(fs::metadata(root.join("d/b")).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(root).unwrap().count(), 3);
    }
}
