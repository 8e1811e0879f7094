//! Work inside another network namespace.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};

use crate::NetlinkError;

/// An open network namespace.
#[derive(Debug)]
pub struct Namespace {
    file: File,
}

impl Namespace {
    /// Opens a namespace by its path, for example `/proc/1234/ns/net` or `/run/netns/blue`.
    ///
    /// # Errors
    /// When the path cannot be opened; [`NetlinkError::is_missing`] when it is gone.
    pub fn open(path: &Path) -> Result<Self, NetlinkError> {
        let file = File::open(path).map_err(|error| {
            let source = Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
            NetlinkError::new(format!("open network namespace {}", path.display()), source)
        })?;
        Ok(Self { file })
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn current() -> Result<Self, NetlinkError> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// A new, empty namespace that lives as long as something refers to it: this value, an interface pair's end does not.
    ///
    /// # Errors
    /// When the right to make one is missing.
    pub fn create() -> Result<Self, NetlinkError> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET)
                    .map_err(|source| NetlinkError::new("make a network namespace", source))?;
                Self::current()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A path by which any process may open the namespace while this value lives.
    pub fn path(&self) -> PathBuf {
        use std::os::fd::AsRawFd as _;
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()))
    }

    /// The open file, to hand to the kernel.
    pub const fn file(&self) -> &File {
        &self.file
    }

    /// Device and inode: what makes two namespaces the same.
    pub fn identity(&self) -> Option<(u64, u64)> {
        use std::os::unix::fs::MetadataExt as _;
        let metadata = self.file.metadata().ok()?;
        Some((metadata.dev(), metadata.ino()))
    }
}

/// Runs `work` in the namespace, on a thread of its own that ends with it: the caller's thread never leaves its namespace, not even
/// when `work` panics (the panic goes on in the caller).
///
/// # Errors
/// When the namespace cannot be entered (the file is no network namespace, or rights are missing).
pub fn inside<R: Send>(namespace: &Namespace, work: impl FnOnce() -> R + Send) -> Result<R, NetlinkError> {
    let fd = namespace.file.as_fd();
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(fd, CloneFlags::CLONE_NEWNET)
                .map_err(|source| NetlinkError::new("enter the network namespace", source))?;
            Ok(work())
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
