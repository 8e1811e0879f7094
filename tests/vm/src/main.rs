//! A machine of its own for tests: Debian's kernel under qemu's software emulation, with cgroup v2 alone.
//!
//! ```text
//!   host                                        guest
//!   cargo test --no-run ── executables ─┐
//!   kernel package ── modules ──────────┼─ initramfs ──▶ this program as process 1
//!   task list (JSON) ───────────────────┘                  │ mounts, modules
//!   verdict ◀── one JSON line per event ── second serial ──┤ runner: each test a process
//!                                                          └ power off
//! ```
//!
//! The guest holds each file at the path that it has outside, so paths that tests were compiled with are true there too. It has no network
//! device. Invariant: the guest's answer alone counts; a guest that falls silent, panics or leaves something behind has failed.
//!
//! Next: [`host::main`], [`guest::main`], and [`task`] for what one says to the other.

mod guest;
mod host;
mod task;

use std::process::ExitCode;

fn main() -> ExitCode {
    let result = if rustix::process::getpid().is_init() {
        guest::main()
    } else if std::env::var_os(guest::RUNNER).is_some() {
        guest::run()
    } else {
        host::main()
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
