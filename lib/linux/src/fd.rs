//! File descriptors that a parent left open for us by number.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Mutex;

/// Numbers handed out already; a second owner of one descriptor would close it under the first one's feet.
static TAKEN: Mutex<Vec<RawFd>> = Mutex::new(Vec::new());

/// Takes over an inherited descriptor, once, and marks it close-on-exec.
///
/// Meant for the first lines of a program: `number` must be one that the parent named, above standard error, and not one that this
/// program opened itself.
pub fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "standard streams are not handed over"));
    }
    let mut taken = TAKEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if taken.contains(&number) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("descriptor {number} was taken before"),
        ));
    }
    // SAFETY: F_GETFD has no memory effect; a closed number answers EBADF, which is returned.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags < 0 {
        return Err(crate::last_error());
    }
    if flags & libc::FD_CLOEXEC != 0 {
        // What came through execve cannot have had the flag, so this is somebody's own descriptor.
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("descriptor {number} was not inherited"),
        ));
    }
    // SAFETY: the descriptor is open (checked), came through execve (no close-on-exec flag), and is given out once (TAKEN).
    let owned = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&owned, rustix::io::FdFlags::CLOEXEC)?;
    taken.push(number);
    Ok(owned)
}

/// Closes what a careless parent left open above standard error. For the first line of a program that will live long.
pub fn close_inherited() -> io::Result<()> {
    // SAFETY: called before this program has opened anything (its documentation says so), so no owner loses a descriptor. rustix
    // and nix have no close_range(2).
    let answer = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32) };
    crate::check(answer).map(drop)
}

/// Closes every descriptor above standard error but those of `keep`. For a forked child ([`crate::process::clone`]) that uses nothing
/// else of what it got and ends without running destructors.
pub fn close_all_but(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut numbers: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(fd.as_raw_fd()).ok()).collect();
    numbers.sort_unstable();
    let mut first = 3_u32;
    for number in numbers.into_iter().chain([u32::MAX]) {
        if first < number {
            let last = if number == u32::MAX { number } else { number - 1 };
            // SAFETY: the child's owners of these descriptors are copies that nobody uses or drops (its documentation says so); the
            // parent's table is another one. rustix and nix have no close_range(2).
            let answer = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0_u32) };
            crate::check(answer)?;
        }
        first = first.max(number.saturating_add(1));
    }
    Ok(())
}

/// Marks every descriptor from `first` on close-on-exec (close_range(2), Linux 5.11).
pub fn close_from_on_exec(first: u32) -> io::Result<()> {
    // SAFETY: CLOSE_RANGE_CLOEXEC closes nothing now; no memory is passed. rustix and nix have no close_range(2).
    let answer = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    crate::check(answer).map(drop)
}

/// Lets a descriptor survive execve (or not). For single-threaded programs that are about to start a child.
pub fn set_inheritable(fd: BorrowedFd<'_>, inheritable: bool) -> io::Result<()> {
    let flags = if inheritable { rustix::io::FdFlags::empty() } else { rustix::io::FdFlags::CLOEXEC };
    rustix::io::fcntl_setfd(fd, flags).map_err(io::Error::from)
}
