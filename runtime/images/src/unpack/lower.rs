//! The merged view of the layers below, as overlayfs would show it, without mounting anything.

use std::ffi::OsStr;
use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// Directories of unpacked layers, top first.
#[derive(Clone, Debug, Default)]
pub(crate) struct LowerView {
    layers: Vec<PathBuf>,
}

/// What is at a path of the merged view.
pub(super) enum Found {
    Missing,
    Directory(PathBuf, Metadata),
    Symlink(Vec<u8>),
    Other(PathBuf, Metadata),
}

impl LowerView {
    pub(crate) fn new(top_first: Vec<PathBuf>) -> Self {
        Self { layers: top_first }
    }

    /// Looks up a path whose parents are directories; no link is followed.
    pub(super) fn lookup(&self, names: &[Vec<u8>]) -> io::Result<Found> {
        // Paths of the same directory in those layers that take part in it, top first.
        let mut candidates: Vec<PathBuf> = self.layers.clone();
        let Some((last, parents)) = names.split_last() else {
            return match candidates.first() {
                Some(root) => Ok(Found::Directory(root.clone(), std::fs::symlink_metadata(root)?)),
                None => Ok(Found::Missing),
            };
        };
        for name in parents {
            let mut next = Vec::new();
            for candidate in candidates {
                let path = candidate.join(OsStr::from_bytes(name));
                let Some(metadata) = look(&path)? else { continue };
                if !metadata.is_dir() {
                    break;
                }
                let opaque = is_opaque(&path)?;
                next.push(path);
                if opaque {
                    break;
                }
            }
            candidates = next;
        }
        for candidate in candidates {
            let path = candidate.join(OsStr::from_bytes(last));
            let Some(metadata) = look(&path)? else { continue };
            let kind = metadata.file_type();
            return Ok(if kind.is_dir() {
                Found::Directory(path, metadata)
            } else if kind.is_symlink() {
                Found::Symlink(std::fs::read_link(&path)?.as_os_str().as_bytes().to_vec())
            } else if kind.is_char_device() && metadata.rdev() == 0 {
                Found::Missing
            } else {
                Found::Other(path, metadata)
            });
        }
        Ok(Found::Missing)
    }
}

fn look(path: &Path) -> io::Result<Option<Metadata>> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn is_opaque(path: &Path) -> io::Result<bool> {
    match xattr::get(path, super::metadata::OPAQUE) {
        Ok(value) => Ok(value.as_deref() == Some(b"y")),
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(false),
        Err(error) => Err(error),
    }
}
