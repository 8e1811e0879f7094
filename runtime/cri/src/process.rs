//! Processes that are not our children: known by pid and start time, held by pidfd.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

use orlop_types::ProcessIdentity;

/// The start time of a process in clock ticks since boot, field 22 of `/proc/PID/stat`; zombies count as gone.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
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
pub(crate) fn open(identity: ProcessIdentity) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(identity.pid).ok()?)?;
    let handle = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?;
    // Compared after the handle is held: the pid cannot be reused any more.
    (start_time(identity.pid) == Some(identity.start_time)).then_some(handle)
}

/// Whether exactly this process lives.
pub(crate) fn is_alive(identity: ProcessIdentity) -> bool {
    start_time(identity.pid) == Some(identity.start_time)
}

/// Kills exactly this process and waits until it is gone, `patience` at most. True when it is gone.
pub(crate) async fn kill(identity: ProcessIdentity, patience: Duration) -> bool {
    let Some(handle) = open(identity) else { return true };
    // It may end by itself just now.
    let _ = rustix::process::pidfd_send_signal(handle.as_fd(), Signal::KILL);
    wait_gone(handle, patience).await || !is_alive(identity)
}

/// Waits for the end of a process: its pidfd becomes readable (pidfd_open(2)).
pub(crate) async fn wait_gone(handle: OwnedFd, patience: Duration) -> bool {
    let waited = tokio::task::spawn_blocking(move || {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
            let mut watched = [PollFd::new(&handle, PollFlags::IN)];
            match rustix::event::poll(&mut watched, Some(&timeout)) {
                Ok(0) | Err(rustix::io::Errno::INTR) if left.is_zero() => return false,
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return true,
                Err(_) => return false,
            }
        }
    });
    waited.await.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_is_its_start_time() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let identity = ProcessIdentity { pid: child.id(), start_time: start_time(child.id()).unwrap() };
        assert!(is_alive(identity));
        let stranger = ProcessIdentity { start_time: identity.start_time + 1, ..identity };
        assert!(open(stranger).is_none() && kill(stranger, Duration::from_secs(1)).await);
        assert!(is_alive(identity));
        assert!(kill(identity, Duration::from_secs(10)).await);
        assert!(!is_alive(identity));
        child.wait().unwrap();
    }
}
