//! orlop-oci: the OCI runtime over libcontainer.

pub mod cgroup;
pub mod devices;
pub mod last_mile;
pub mod seccomp;
pub mod setup;

use std::ffi::OsString;

/// The entry of `oci-setup`: arguments after the subcommand, exit code out.
pub fn setup_main(arguments: Vec<OsString>) -> i32 {
    setup::main(&arguments)
}
