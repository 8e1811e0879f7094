//! Processes that are not our children: known by pid and start time, held by pidfd.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::io::unix::AsyncFd;

use crate::model::ShimIdentity;

/// The start time of a process in clock ticks since boot, field 22 of `/proc/PID/stat`; zombies count as gone.
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command in parentheses may hold anything, also parentheses.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// A handle to exactly this process; `None` when it is gone.
pub fn open(identity: ShimIdentity) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(identity.pid).ok()?)?;
    let handle = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK).ok()?;
    // Compared after the handle is held: the pid cannot be reused any more.
    (start_time(identity.pid) == Some(identity.start_time)).then_some(handle)
}

/// Whether exactly this process lives.
pub fn is_alive(identity: ShimIdentity) -> bool {
    start_time(identity.pid) == Some(identity.start_time)
}

/// Kills exactly this process and waits until it is gone, `patience` at most. True when it is gone.
pub async fn kill(identity: ShimIdentity, patience: Duration) -> bool {
    let Some(handle) = open(identity) else { return true };
    // It may end by itself just now.
    let _ = rustix::process::pidfd_send_signal(handle.as_fd(), Signal::KILL);
    wait_gone(handle, patience).await || !is_alive(identity)
}

/// Waits for the end of a process.
pub async fn wait_gone(handle: OwnedFd, patience: Duration) -> bool {
    let Ok(handle) = AsyncFd::with_interest(handle, tokio::io::Interest::READABLE) else { return false };
    tokio::time::timeout(patience, handle.readable()).await.is_ok_and(|ready| ready.is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_is_its_start_time() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let identity = ShimIdentity { pid: child.id(), start_time: start_time(child.id()).unwrap() };
        assert!(is_alive(identity));
        let stranger = ShimIdentity { start_time: identity.start_time + 1, ..identity };
        assert!(open(stranger).is_none() && kill(stranger, Duration::from_secs(1)).await);
        assert!(is_alive(identity));
        assert!(kill(identity, Duration::from_secs(10)).await);
        assert!(!is_alive(identity));
        child.wait().unwrap();
    }
}
