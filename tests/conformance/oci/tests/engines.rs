//! Whole container engines of Debian on top of the subject: podman with conmon, and containerd with its shim, driven by `ctr`.
//!
//! Each has its own state directories, a mount namespace with a `/run` of its own, and a network namespace without any way out.
#![expect(clippy::unwrap_used, reason = "a test program")]

#[path = "engines/bench.rs"]
mod bench;
#[path = "engines/containerd.rs"]
mod containerd;
#[path = "engines/podman.rs"]
mod podman;
