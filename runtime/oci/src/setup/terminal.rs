//! A pseudo terminal of the container's own devpts, so that `tty` and `ps` inside name it.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;

const DEVPTS_MAGIC: i64 = 0x1cd1;

/// Opens a terminal, sends its master side over `console`, and returns its slave side.
pub(super) fn open(console: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty())?;
    verify_master(master.as_fd())?;
    rustix::pty::unlockpt(&master)?;
    // By descriptor, not by name: names in /dev/pts are the container's to replace.
    let slave = rustix::pty::ioctl_tiocgptpeer(
        &master,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )?;
    let descriptors = [master.as_raw_fd()];
    let message = [ControlMessage::ScmRights(&descriptors)];
    sendmsg::<()>(
        console.as_raw_fd(),
        &[IoSlice::new(b"/dev/pts/ptmx")],
        &message,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(slave)
}

/// The file must be the real ptmx of a real devpts (CVE-2025-52565).
fn verify_master(master: BorrowedFd<'_>) -> io::Result<()> {
    let file_system = rustix::fs::fstatfs(master)?;
    let node = rustix::fs::fstat(master)?;
    let is_ptmx = rustix::fs::FileType::from_raw_mode(node.st_mode).is_char_device()
        && (rustix::fs::major(node.st_rdev), rustix::fs::minor(node.st_rdev)) == (5, 2);
    #[allow(clippy::unnecessary_cast, reason = "the type differs between C libraries")]
    if file_system.f_type as i64 == DEVPTS_MAGIC && is_ptmx {
        return Ok(());
    }
    Err(io::Error::other("/dev/pts/ptmx of the container is not a terminal multiplexer"))
}
