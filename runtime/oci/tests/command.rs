//! runc's command line from outside: what callers see, what the kernel shows, and that nothing stays.
//!
//! The subject is this crate's test program, or whatever `SUBJECT` names: with `SUBJECT=runc` the tests themselves are tried. Needs root;
//! containers are busybox from `/bin/busybox`.
#![expect(clippy::unwrap_used, reason = "a test program")]

#[path = "command/exec.rs"]
mod exec;
#[path = "command/failures.rs"]
mod failures;
#[path = "command/hooks.rs"]
mod hooks;
#[path = "command/lifecycle.rs"]
mod lifecycle;
#[path = "command/limits.rs"]
mod limits;
#[path = "command/rig.rs"]
mod rig;
#[path = "command/terminal.rs"]
mod terminal;
