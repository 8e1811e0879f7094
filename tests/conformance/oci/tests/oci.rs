//! The suite: one file per section. How to run it stands in the crate's documentation.
#![expect(clippy::unwrap_used, reason = "a test program")]

#[path = "oci/attributes.rs"]
mod attributes;
#[path = "oci/cgroups.rs"]
mod cgroups;
#[path = "oci/devices.rs"]
mod devices;
#[path = "oci/escapes.rs"]
mod escapes;
#[path = "oci/exec.rs"]
mod exec;
#[path = "oci/failures.rs"]
mod failures;
#[path = "oci/hooks.rs"]
mod hooks;
#[path = "oci/hostname.rs"]
mod hostname;
#[path = "oci/idmap.rs"]
mod idmap;
#[path = "oci/lifecycle.rs"]
mod lifecycle;
#[path = "oci/limits.rs"]
mod limits;
#[path = "oci/mounts.rs"]
mod mounts;
#[path = "oci/namespaces.rs"]
mod namespaces;
#[path = "oci/operations.rs"]
mod operations;
#[path = "oci/paths.rs"]
mod paths;
#[path = "oci/personality.rs"]
mod personality;
#[path = "oci/process.rs"]
mod process;
#[path = "oci/propagation.rs"]
mod propagation;
#[path = "oci/root.rs"]
mod root;
#[path = "oci/seccomp.rs"]
mod seccomp;
#[path = "oci/sysctl.rs"]
mod sysctl;
#[path = "oci/terminal.rs"]
mod terminal;
#[path = "oci/v2_groups.rs"]
mod v2_groups;
#[path = "oci/v2_limits.rs"]
mod v2_limits;
