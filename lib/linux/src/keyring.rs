//! keyctl(2), which rustix and nix lack.

use std::ffi::CString;
use std::io;

const JOIN_SESSION_KEYRING: libc::c_long = 1;
const SET_PERMISSIONS: libc::c_long = 5;
/// Everything for whoever has it; its user may view, read, search and link (keyctl_setperm(3)). Search is what joining by name takes.
const PERMISSIONS: libc::c_long = 0x3f1b_0000;

/// Gives the process the session keyring of this name, made if there is none, so that what it starts cannot read its caller's keys
/// (session-keyring(7)).
///
/// A kernel without keyrings has no keys to protect; that is no error.
pub fn join_session(name: &str) -> io::Result<()> {
    let name = CString::new(format!("_ses.{name}")).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the name is a live C string that the kernel copies; the call changes credentials and no memory of ours.
    let answer = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name.as_ptr()) };
    let keyring = match crate::check(answer) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => return Ok(()),
        other => other?,
    };
    // SAFETY: three integers, no memory.
    crate::check(unsafe { libc::syscall(libc::SYS_keyctl, SET_PERMISSIONS, keyring, PERMISSIONS) }).map(drop)
}
