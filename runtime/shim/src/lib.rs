//! `orlop shim`: one per pod, parent of the pod's containers, holder of its namespaces, streams, logs and exit codes.
//!
//! ```text
//!   runtime daemon ──shim.sock──▶ shim ──starts──▶ oci-setup create|exec (ends at once)
//!                                  │ parent of         └─▶ container's process
//!                                  ├── pipes/terminal ──▶ log file, attach and exec sessions
//!                                  └── containers/ID/exit.json, then the event
//! ```
//!
//! Deliberately not here: images, CNI, CRI, Kubernetes, retries. The shim does what one request says and tells what happened. It outlives the
//! daemon; when the shim itself dies, the daemon kills the pod's control groups.
//!
//! Invariant: it runs from a read-only mount of its program (the daemon starts it so), as do the set-up children, which are it or forks of it.
//! Invariant: one thread, one poll(2) loop ([`server`]). Nothing in it blocks on a container, a client or a disk that hangs; what
//! takes time is a child process, a descriptor in the poll set, or a deadline.
//! Invariant: an exit is on disk before it is announced; whoever connects later gets it again ([`protocol::Request::Events`]).
//! Invariant: no pod mount is in the host's mount table: all are made in the shim's own mount namespace. Only what a container itself mounts in a
//! volume that is shared with the host (`staged.rs`) reaches it, because its owner asked for that.
//! Invariant: buffers are bounded: a slow exec client stops the process it started, a slow attach client is cut, a full disk loses log lines.
//!
//! A container: `Created ─start▶ Running ─exit▶ Exited ─remove▶ gone`. A process (first or exec):
//! `Preparing (set-up child works) ▶ Waiting (first only, until start) ▶ Starting (execve pending) ▶ Running ▶ exited, streams drain ▶ done`.
//!
//! Where to read next: [`protocol`], then `start.rs` (becoming a shim), `server.rs` (the loop), `requests.rs`, `lifecycle.rs`, `sessions.rs`.

pub mod client;
mod connection;
mod container;
pub mod exit_file;
pub mod frame;
mod lifecycle;
mod log;
mod pod;
mod port_forward;
pub mod protocol;
mod requests;
mod rootfs;
mod running;
pub mod server;
mod sessions;
mod spawn;
mod staged;
mod start;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most bytes that a shim writes to its log in its life.
const LOG_LIMIT_BYTES: usize = 256 * 1024;

static LOGGED_BYTES: AtomicUsize = AtomicUsize::new(0);

/// One line in the shim's log, `shim.log`, while its bound lasts.
pub(crate) fn say(message: &str) {
    if LOGGED_BYTES.fetch_add(message.len() + 32, Ordering::Relaxed) < LOG_LIMIT_BYTES {
        // A log that cannot be written is no reason to stop.
        let _ = writeln!(std::io::stderr(), "{:.3} {message}", jiff::Timestamp::now());
    }
}

/// Nanoseconds since the epoch.
pub(crate) fn now_nanos() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

/// The entry of `orlop shim --config FILE`; arguments after the subcommand. Returns when the shim runs (0) or could not start (1).
pub fn main(arguments: Vec<OsString>) -> i32 {
    let config = match arguments.as_slice() {
        [flag, path] if flag == "--config" => PathBuf::from(path),
        _ => {
            let _ = writeln!(std::io::stderr(), "usage: orlop shim --config FILE");
            return 2;
        }
    };
    start::main(&config)
}
