//! `oci-setup reaper`: process 1 of a PID namespace that a pod's containers share. It does nothing but wait for orphans.

use std::io::Write;
use std::os::fd::{AsFd, RawFd};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use orlop_linux::process::{CloneOptions, Side, SingleThreaded, clone};

/// With the number of a user namespace's descriptor: makes the PID namespace that belongs to it, prints its first process's pid and ends.
/// That process is a child of our parent's.
pub(super) fn start_in(user: RawFd) -> i32 {
    match make(user) {
        Ok(Some(pid)) => i32::from(writeln!(std::io::stdout(), "{pid}").is_err()),
        // The new process.
        Ok(None) => main(),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "oci-setup reaper: {error:#}");
            1
        }
    }
}

/// The pid on our side; nothing on the new process's.
///
/// Its memory was made by an execve outside of the user namespace, so the kernel lets nobody inside look into it or trace it.
fn make(user: RawFd) -> anyhow::Result<Option<u32>> {
    let single = SingleThreaded::verify()?;
    let user = orlop_linux::fd::take_inherited(user)?;
    setns(user.as_fd(), CloneFlags::CLONE_NEWUSER)?;
    nix::unistd::setresgid(0.into(), 0.into(), 0.into())?;
    nix::unistd::setresuid(0.into(), 0.into(), 0.into())?;
    match clone(&single, CloneOptions { new_pid_namespace: true, sibling: true, ..CloneOptions::default() })?
    {
        Side::Parent(pid) => Ok(Some(pid)),
        Side::Child => {
            // Whoever reads the pid waits for the end of this stream.
            let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
            rustix::stdio::dup2_stdout(&null)?;
            Ok(None)
        }
    }
}

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
