//! mount_setattr(2), which rustix lacks.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

/// `struct mount_attr`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear, before.
    pub clear: u64,
    /// `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE` or `MS_UNBINDABLE`; 0 leaves it.
    pub propagation: u64,
    user_namespace: u64,
}

const THIS_PROGRAM: &str = "/proc/self/exe";
const MOUNT_ATTR_RDONLY: u64 = 0x0000_0001;
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

impl Attributes {
    /// Of these attributes and none of the propagation types.
    pub fn new(set: u64, clear: u64) -> Self {
        Self { set, clear, ..Self::default() }
    }

    /// Of a propagation type alone.
    pub fn of_propagation(propagation: u64) -> Self {
        Self { propagation, ..Self::default() }
    }
}

/// Changes a mount, and with `recursive` all below it, at once or not at all.
pub fn set_attributes_of(mount: impl AsFd, recursive: bool, attributes: Attributes) -> io::Result<()> {
    set_attributes(mount.as_fd(), recursive, &mut { attributes })
}

/// A detached copy of what is mounted at `path` (open_tree(2)), with `recursive` of everything below too.
pub fn clone_tree(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    open_tree(CWD, path, flags).map_err(io::Error::from)
}

/// Attaches a detached mount at `path`.
pub fn attach(mount: impl AsFd, path: &Path) -> io::Result<()> {
    move_mount(mount, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(io::Error::from)
}

fn set_attributes(mount: BorrowedFd<'_>, recursive: bool, attributes: &mut Attributes) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a static empty C string, `attributes` a live `repr(C)` struct whose size is passed; the kernel only reads them.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_mut(attributes),
            size_of::<Attributes>(),
        )
    };
    crate::check(answer).map(drop)
}

/// Makes a mount (usually a detached one from `open_tree`) read-only.
pub fn set_read_only(mount: impl AsFd, recursive: bool) -> io::Result<()> {
    let mut attributes = Attributes { set: MOUNT_ATTR_RDONLY, ..Attributes::default() };
    set_attributes(mount.as_fd(), recursive, &mut attributes)
}

/// A detached read-only mount of a program, without a copy of its bytes: whoever gets hold of `/proc/PID/exe` of a process started
/// from it cannot write through it (CVE-2019-5736).
///
/// # Errors
/// Kernels before 5.12, and callers in a chroot.
pub fn read_only_file(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let copy = open_tree(CWD, path, flags)?;
    set_read_only(&copy, false)?;
    Ok(copy)
}

/// [`read_only_file`] of this program.
///
/// # Errors
/// As there; before Linux 6.15 also when this process was started from such a mount already, see [`is_program_read_only`].
pub fn read_only_program() -> io::Result<OwnedFd> {
    read_only_file(Path::new(THIS_PROGRAM))
}

/// Whether this process was started from a read-only mount.
pub fn is_program_read_only() -> bool {
    let found = rustix::fs::statvfs(THIS_PROGRAM);
    found.is_ok_and(|found| found.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
}

/// Maps the owners of a detached mount's files through a user namespace.
pub fn set_id_map(mount: impl AsFd, user_namespace: impl AsFd, recursive: bool) -> io::Result<()> {
    let number = user_namespace.as_fd().as_raw_fd();
    let mut attributes = Attributes {
        set: MOUNT_ATTR_IDMAP,
        user_namespace: u64::try_from(number).map_err(|_| io::ErrorKind::InvalidInput)?,
        ..Attributes::default()
    };
    set_attributes(mount.as_fd(), recursive, &mut attributes)
}
