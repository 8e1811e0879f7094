//! `oci-setup reaper`: process 1 of a PID namespace that a pod's containers share. It does nothing but wait for orphans.

use std::io::Write;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

pub(super) fn main() -> i32 {
    let mut awaited = SigSet::empty();
    awaited.add(Signal::SIGCHLD);
    if let Err(error) = orlop_linux::process::reset_signals().and_then(|()| Ok(awaited.thread_block()?)) {
        let _ = writeln!(std::io::stderr(), "oci-setup reaper: {error}");
        return 1;
    }
    loop {
        // As process 1 no signal ends us but SIGKILL from outside of the namespace (pid_namespaces(7)).
        while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive)
        {
        }
        if awaited.wait().is_err() {
            return 1;
        }
    }
}
