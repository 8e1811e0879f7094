//! Owner, mode, attributes and times of what was made.

use std::fs::Metadata;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use orlop_distribution::tarball::TarEntry;
use rustix::fs::{Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};

use super::path::is_allowed_xattr;

/// The mark of a directory that hides what is below it (Linux Documentation/filesystems/overlayfs.rst).
pub(super) const OPAQUE: &str = "trusted.overlay.opaque";

/// What an entry's node shall look like.
#[derive(Clone, Debug)]
pub(crate) struct Attributes {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mode: u32,
    pub(super) mtime: (i64, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Attributes {
    /// Of a directory that nobody described.
    pub(super) fn implied_directory() -> Self {
        Self { uid: 0, gid: 0, mode: 0o755, mtime: (0, 0), xattrs: Vec::new() }
    }

    pub(super) fn of_entry(entry: &TarEntry) -> Result<Self, String> {
        let identity = |what: &str, value: u64| {
            // The highest number means "leave it as it is" to chown(2).
            u32::try_from(value)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| format!("{what} {value} is out of range"))
        };
        Ok(Self {
            uid: identity("owner", entry.uid)?,
            gid: identity("group", entry.gid)?,
            mode: entry.mode,
            mtime: entry.mtime,
            xattrs: entry.xattrs.iter().filter(|(name, _)| is_allowed_xattr(name)).cloned().collect(),
        })
    }

    /// As found in a layer below.
    pub(crate) fn of_path(path: &Path, metadata: &Metadata) -> io::Result<Self> {
        let mut xattrs = Vec::new();
        if !metadata.file_type().is_symlink() {
            for name in xattr::list(path)?.filter(|name| is_allowed_xattr(name.as_bytes())) {
                if let Some(value) = xattr::get(path, &name)? {
                    xattrs.push((name.as_bytes().to_vec(), value));
                }
            }
        }
        Ok(Self {
            uid: metadata.uid(),
            gid: metadata.gid(),
            mode: metadata.mode() & 0o7777,
            mtime: (metadata.mtime(), u32::try_from(metadata.mtime_nsec()).unwrap_or(0)),
            xattrs,
        })
    }

    /// Everything but the times. Owner first: chown clears set-id bits and capabilities.
    pub(crate) fn apply(&self, node: impl AsFd) -> io::Result<()> {
        let node = node.as_fd();
        rustix::fs::fchown(node, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))?;
        rustix::fs::fchmod(node, Mode::from_raw_mode(self.mode))?;
        for (name, value) in &self.xattrs {
            match rustix::fs::fsetxattr(node, name.as_slice(), value, XattrFlags::empty()) {
                // The file system has no such attributes: the image still works without.
                Err(rustix::io::Errno::OPNOTSUPP) if name != b"security.capability" => {
                    tracing::debug!(attribute = %String::from_utf8_lossy(name), "extended attribute is not supported");
                }
                result => result?,
            }
        }
        Ok(())
    }

    /// As [`Attributes::apply`], for a directory that may have others: what an earlier entry said does not count any more.
    pub(super) fn replace(&self, node: impl AsFd) -> io::Result<()> {
        let node = node.as_fd();
        let mut names = vec![0u8; 64 * 1024];
        let length = match rustix::fs::flistxattr(node, names.as_mut_slice()) {
            Err(rustix::io::Errno::OPNOTSUPP) => 0,
            result => result?,
        };
        for name in names[..length].split(|byte| *byte == 0).filter(|name| is_allowed_xattr(name)) {
            rustix::fs::fremovexattr(node, name)?;
        }
        self.apply(node)
    }

    pub(super) fn times(&self) -> Timestamps {
        let time = Timespec { tv_sec: self.mtime.0, tv_nsec: self.mtime.1.into() };
        Timestamps { last_access: time, last_modification: time }
    }
}

pub(super) fn set_opaque(directory: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::fs::fsetxattr(directory, OPAQUE, b"y", XattrFlags::empty())?)
}
