//! The only unsafe code of the workspace: system calls that rustix and nix lack, each behind a safe function.
//!
//! What is here is thin on purpose: a function makes one system call, checks its arguments, and says in a SAFETY comment why the
//! call cannot break memory. Decisions belong to the callers.
//!
//! Invariant: no function keeps state, starts a thread that outlives its call, or changes the calling thread's namespaces
//! behind its back (see [`netns`]).
//!
//! - [`bpf`]: device policy of a cgroup v2 (bpf(2)).
//! - [`fd`]: file descriptors that a parent left open for us.
//! - [`interface`]: `lo` up.
//! - [`keyring`]: a session keyring (keyctl(2)).
//! - [`mount`]: attributes of mounts (mount_setattr(2)).
//! - [`netns`]: a closure inside a network namespace.
//! - [`process`]: clone(2) for single-threaded programs, start times, signal dispositions.
//! - [`seccomp`]: seccomp(2) filters.
//! - [`user_namespace`]: user namespaces and what belongs to them, as descriptors.

pub mod bpf;
pub mod fd;
pub mod interface;
pub mod keyring;
pub mod mount;
pub mod netns;
pub mod process;
pub mod seccomp;
pub mod user_namespace;

/// The error of the last system call.
fn last_error() -> std::io::Error {
    std::io::Error::last_os_error()
}

/// Turns a raw system call's answer into a result.
fn check(answer: libc::c_long) -> std::io::Result<libc::c_long> {
    if answer < 0 { Err(last_error()) } else { Ok(answer) }
}
