//! orlop-oci: the OCI runtime over libcontainer.
//!
//! Two doors: [`setup_main`], the short-lived programs that a shim starts, and [`main`], runc's command line (`orlop oci`, `orlop-oci`),
//! which starts the same programs. Invariant: every process here has one thread, and only `oci-setup` calls libcontainer.
//!
//! Where to read next: `setup/` (a container's making), `last_mile.rs` (its program's start), `command/` (the command line).

mod attributes;
pub mod cgroup;
mod command;
mod configuration;
pub mod devices;
pub mod freezer;
pub mod hooks;
pub mod last_mile;
pub mod limits;
mod program;
pub mod seccomp;
pub mod setup;
pub mod systemd;

use std::ffi::OsString;

pub use program::start_setup;

/// The runtime-spec that states, hooks and `features` speak (SPECIFICATION.md). Configurations of any 1.x are taken.
pub const SPECIFICATION_VERSION: &str = "1.2.0";

/// The entry of `oci-setup`: arguments after the subcommand, exit code out.
pub fn setup_main(arguments: Vec<OsString>) -> i32 {
    setup::main(&arguments)
}

/// The entry of the command line: arguments after the program's name (or `oci`), exit code out.
pub fn main(arguments: Vec<OsString>) -> i32 {
    command::main(&arguments)
}
