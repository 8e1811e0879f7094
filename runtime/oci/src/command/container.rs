//! One recorded container and what it is doing, as the kernel says and not as somebody once wrote down.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags};

use super::store::{Record, Store};
use crate::cgroup::{Cgroup, Hierarchies};
use crate::hooks::HookState;

/// How long the dying may take (runc waits as long).
pub(super) const DEATH_DEADLINE: Duration = Duration::from_secs(10);

/// runtime-spec runtime.md, "State", and runc's `paused`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub(super) fn name(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        }
    }
}

/// A container's record with the means to look at it.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) record: Record,
    pub(super) directory: PathBuf,
}

impl Container {
    pub(super) fn load(store: &Store, id: &str) -> anyhow::Result<Self> {
        Ok(Self { record: store.load(id)?, directory: store.directory(id)? })
    }

    /// The first process, if it has not ended; held, its pid cannot become somebody else's unnoticed.
    pub(super) fn init(&self) -> Option<OwnedFd> {
        let process = orlop_linux::process::open(self.record.init?).ok()?;
        // A zombie that its parent has not waited for is as dead as any.
        (!has_ended(&process, Duration::ZERO)).then_some(process)
    }

    pub(super) fn status(&self) -> anyhow::Result<Status> {
        if self.record.init.is_none() {
            return Ok(Status::Creating);
        }
        if self.init().is_none() {
            return Ok(Status::Stopped);
        }
        if self.start_socket().exists() {
            return Ok(Status::Created);
        }
        Ok(if self.cgroup()?.is_frozen() { Status::Paused } else { Status::Running })
    }

    /// Pid as `state` prints it: 0 for what no longer runs.
    pub(super) fn pid(&self) -> u32 {
        match (self.record.init, self.init()) {
            (Some(identity), Some(_)) => identity.pid,
            _ => 0,
        }
    }

    pub(super) fn cgroup(&self) -> anyhow::Result<Cgroup> {
        let hierarchies = Hierarchies::detect_once().context("failed to find the control groups")?;
        Ok(hierarchies.cgroup(&self.record.cgroup.to_string_lossy()))
    }

    /// The configuration as it was at create.
    pub(super) fn spec(&self) -> anyhow::Result<Spec> {
        let path = self.directory.join("config.json");
        crate::configuration::load(&path).context("failed to read the container's configuration")
    }

    pub(super) fn work(&self) -> PathBuf {
        self.directory.join("work")
    }

    /// Where libcontainer's first process waits. There until the container was started.
    pub(super) fn start_socket(&self) -> PathBuf {
        self.work().join("state").join(&self.record.id).join("notify.sock")
    }

    /// Lets the first process go on to its program.
    pub(super) fn send_start(&self) -> std::io::Result<()> {
        use std::io::Write as _;
        let path = self.start_socket();
        // By descriptor: socket paths end at 107 bytes (unix(7)).
        let socket = rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let mut stream = UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd()))?;
        stream.write_all(b"start")?;
        drop(stream);
        std::fs::remove_file(path)
    }

    pub(super) fn hook_state(&self, status: &str) -> HookState {
        HookState {
            oci_version: crate::SPECIFICATION_VERSION.to_owned(),
            id: self.record.id.clone(),
            status: status.to_owned(),
            pid: self.pid(),
            bundle: self.record.bundle.clone(),
            annotations: self.record.annotations.clone(),
        }
    }

    /// SIGKILL for everything in it, thawed if need be. Does not fail: whoever waits sees what is left.
    pub(super) fn kill_everything(&self) -> anyhow::Result<()> {
        let cgroup = self.cgroup()?;
        if let Some(process) = self.init() {
            let _ = orlop_linux::process::send_signal_to(process.as_fd(), libc::SIGKILL);
        }
        cgroup.kill();
        if cgroup.is_frozen() {
            // On v1 the frozen do not die before they are thawed.
            cgroup.set_frozen(false).context("failed to thaw the container")?;
        }
        Ok(())
    }

    /// Kills, and waits for the first process's end.
    pub(super) fn kill_and_wait(&self) -> anyhow::Result<()> {
        let init = self.init();
        self.kill_everything()?;
        if let Some(init) = init
            && !has_ended(&init, DEATH_DEADLINE)
        {
            bail!("container init still running");
        }
        Ok(())
    }

    /// The first process has ended and every other one with it.
    pub(super) fn is_known_dead(&self) -> bool {
        self.record.init.is_some() && self.init().is_none() && self.has_own_pid_namespace()
    }

    /// Whether its processes die with the first one.
    pub(super) fn has_own_pid_namespace(&self) -> bool {
        let Ok(spec) = self.spec() else { return false };
        let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().clone());
        namespaces
            .iter()
            .flatten()
            .any(|namespace| namespace.typ() == LinuxNamespaceType::Pid && namespace.path().is_none())
    }
}

/// Waits up to `deadline` for a process to end.
pub(super) fn has_ended(process: &OwnedFd, deadline: Duration) -> bool {
    let end = Instant::now() + deadline;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok();
        let mut wanted = [PollFd::new(process, PollFlags::IN)];
        match poll(&mut wanted, timeout.as_ref()) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(rustix::io::Errno::INTR) => {}
            // Cannot happen with a pidfd; "it lives" is the careful answer.
            Err(_) => return false,
        }
    }
}

/// A FIFO that keeps what the last mile says until `start` reads it.
pub(super) fn make_status_fifo(path: &std::path::Path) -> std::io::Result<OwnedFd> {
    rustix::fs::mknodat(CWD, path, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
    // For reading too: opening for writing alone would wait for a reader.
    Ok(rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}
