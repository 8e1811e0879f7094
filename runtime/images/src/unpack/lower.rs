//! The merged view of the layers below, as overlayfs would show it, without mounting anything.
//!
//! overlayfs looks at the mark of an opaque directory everywhere but at the root of a layer. A layer whose root is opaque hides all
//! layers below it, so [`visible`] cuts the stack there, for this view and for mounts.

use std::ffi::OsStr;
use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::path::split;

/// Directories of unpacked layers, top first.
#[derive(Clone, Debug, Default)]
pub(crate) struct LowerView {
    layers: Vec<PathBuf>,
}

/// What is at a path of the merged view.
pub(super) enum Found {
    Missing,
    Directory(PathBuf, Metadata),
    Symlink(PathBuf, Metadata),
    /// A file, device, pipe or socket.
    Other(PathBuf, Metadata),
}

/// Cuts a stack of layers, top first, below the first one whose root is opaque.
pub(crate) fn visible(mut top_first: Vec<PathBuf>) -> io::Result<Vec<PathBuf>> {
    for index in 0..top_first.len() {
        if is_opaque(&top_first[index])? {
            top_first.truncate(index + 1);
            break;
        }
    }
    Ok(top_first)
}

impl LowerView {
    /// Of trees of layers, top first.
    pub(crate) fn new(top_first: Vec<PathBuf>) -> io::Result<Self> {
        Ok(Self { layers: visible(top_first)? })
    }

    /// Looks up a path whose parents are directories; no link is followed.
    pub(super) fn lookup(&self, path: &[u8]) -> io::Result<Found> {
        let Some((above, last)) = split(path) else {
            return match self.layers.first() {
                Some(root) => Ok(Found::Directory(root.clone(), std::fs::symlink_metadata(root)?)),
                None => Ok(Found::Missing),
            };
        };
        // Paths of the same directory in those layers that take part in it, top first.
        let mut candidates: Vec<PathBuf> = self.layers.clone();
        for name in above.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
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
                Found::Symlink(path, metadata)
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
