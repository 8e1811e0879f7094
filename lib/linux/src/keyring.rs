//! keyctl(2), which rustix and nix lack.

use std::ffi::CString;
use std::io;

const JOIN_SESSION_KEYRING: libc::c_long = 1;

/// Gives the process a session keyring of this name, so that what it starts cannot read its caller's keys (session-keyring(7)).
///
/// A kernel without keyrings has no keys to protect; that is no error.
pub fn join_session(name: &str) -> io::Result<()> {
    let name = CString::new(format!("_ses.{name}")).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the name is a live C string that the kernel copies; the call changes credentials and no memory of ours.
    let answer = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name.as_ptr()) };
    match crate::check(answer) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        other => other.map(drop),
    }
}
