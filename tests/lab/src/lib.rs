//! The lab: real kernel, real binary, real kubectl; every machine is a network namespace without an uplink.
//!
//! ```text
//!   Machine (netns, address 192.0.2.10/24, nothing leaves) -> Cluster::up(..) -> kubectl -> down -> Leftovers::none
//! ```
//!
//! Invariant: the network namespace, routes and firewall of the machine that runs the tests stay as they are.
//!
//! The binary under test is `$ORLOP_BIN`, else the release build, else the debug build of this workspace.

mod cluster;
mod command;
pub mod image;
mod leftovers;
mod machine;

pub use cluster::Cluster;
pub use command::{Output, run, try_run};
pub use leftovers::Leftovers;
pub use machine::Machine;

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The `orlop` binary under test.
///
/// # Panics
/// Without a binary: build it first.
pub fn orlop_binary() -> PathBuf {
    if let Some(path) = std::env::var_os("ORLOP_BIN") {
        return PathBuf::from(path);
    }
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let built = ["release", "debug"]
        .iter()
        .map(|profile| target.join("x86_64-unknown-linux-gnu").join(profile).join("orlop"))
        .find(|path| path.exists());
    built.expect("no orlop binary: run `cargo build --release` or set ORLOP_BIN")
}

/// Polls `check` every 50 ms until it gives a value.
///
/// # Panics
/// After `seconds`, with `what` and the last reason.
pub fn eventually<T>(what: &str, seconds: u64, mut check: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        match check() {
            Ok(value) => return value,
            Err(reason) if Instant::now() > end => panic!("not within {seconds} s: {what}: {reason}"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
