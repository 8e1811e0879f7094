//! Black-box tests for OCI runtimes with runc's command line, filed by section of the runtime specification.
//!
//! ```text
//!   SUBJECT  a path, a name on PATH (runc, crun), or "orlop" ($ORLOP_BIN oci); absent: this crate's own build of ours
//!   BUSYBOX  a static busybox that becomes every container's root file system; absent: /bin/busybox
//!   ORLOP_SKIPS  a file that gets one line per test, or part of one, that was not run and why
//! ```
//!
//! All of it must pass on ours and on Debian's runc and crun, else the test is wrong. What a peer lacks stands by name and with its reason in
//! [`subject::DIFFERENCES`]. A test runs in a mount namespace of its own; nothing of it reaches the machine's mount table.
//!
//! The test program (`cargo nextest list` names it, `target/…/deps/oci-*`) is one static file. In a guest without Rust it needs `/proc`,
//! `/sys` with control groups, a writable `/tmp`, `BUSYBOX`, `SUBJECT`, and a root that pivot_root(2) takes (not the initramfs itself):
//! `SUBJECT=/orlop-oci BUSYBOX=/bin/busybox ./oci --test-threads=2`.
#![expect(clippy::unwrap_used, reason = "a test program")]

mod rig;
pub mod subject;

pub use rig::{
    Called, Child, Rig, busybox, cgroup_hierarchies, has_limits, is_unified, script, skip, wait_for,
};
pub use subject::{Kind, Subject, differs, is_ours};
