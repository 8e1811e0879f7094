//! The suite: one file per section. How to run it stands in the crate's documentation.
#![expect(clippy::unwrap_used, reason = "a test program")]

#[path = "oci/exec.rs"]
mod exec;
#[path = "oci/failures.rs"]
mod failures;
#[path = "oci/hooks.rs"]
mod hooks;
#[path = "oci/idmap.rs"]
mod idmap;
#[path = "oci/lifecycle.rs"]
mod lifecycle;
#[path = "oci/limits.rs"]
mod limits;
#[path = "oci/terminal.rs"]
mod terminal;
#[path = "oci/v2_groups.rs"]
mod v2_groups;
#[path = "oci/v2_limits.rs"]
mod v2_limits;
