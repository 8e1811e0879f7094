//! Starting `oci-setup`: this binary again, from a copy of its mount that nobody can write to; or, for what has to be quick, a fork.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use orlop_linux::process::{CloneOptions, Side, SingleThreaded};
use orlop_oci::setup::ExecRequest;
use orlop_oci::systemd::ADDRESS_VARIABLE;
use rustix::fs::OFlags;
use rustix::pipe::PipeFlags;
use serde::Serialize;

use crate::say;

/// This binary.
pub(crate) struct Program {
    /// This process was started from a read-only mount of it, so forks and new starts of it are safe as they are.
    read_only: bool,
    /// A read-only mount of it, if this process was not.
    sealed: Option<OwnedFd>,
    path: PathBuf,
}

impl Program {
    /// Before the mount namespace changes.
    pub(crate) fn seal() -> Self {
        let path = PathBuf::from("/proc/self/exe");
        if orlop_linux::mount::is_program_read_only() {
            return Self { read_only: true, sealed: None, path };
        }
        let sealed = orlop_linux::mount::read_only_program();
        let sealed = sealed.inspect_err(|error| say(&format!("the program is not sealed: {error}"))).ok();
        Self { read_only: false, sealed, path }
    }

    fn path(&self) -> PathBuf {
        match &self.sealed {
            Some(sealed) => PathBuf::from(format!("/proc/self/fd/{}", sealed.as_raw_fd())),
            None => self.path.clone(),
        }
    }

    /// Starts `oci-setup VERB`; it inherits `keep` and its request, and nothing else. Returns its pid.
    pub(crate) fn start(
        &self,
        verb: &str,
        request: &impl Serialize,
        keep: &[BorrowedFd<'_>],
    ) -> io::Result<u32> {
        let mut command = Command::new(self.path());
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        command.envs(std::env::var_os(ADDRESS_VARIABLE).map(|bus| (ADDRESS_VARIABLE, bus)));
        let started = orlop_oci::start_setup(command, verb, request, keep);
        // Reaped by the loop, with everything else.
        started.map(|child| child.id())
    }

    /// `oci-setup exec`, as [`Program::start`]. A fork where that is safe: probes run every few seconds in every container, and most of what
    /// a new start costs is relocating a large program that does little.
    pub(crate) fn start_exec(
        &self,
        single: &SingleThreaded,
        request: &ExecRequest,
        keep: &[BorrowedFd<'_>],
    ) -> io::Result<u32> {
        if !self.read_only {
            return self.start("exec", request, keep);
        }
        match orlop_linux::process::clone(single, CloneOptions::default())? {
            Side::Parent(pid) => Ok(pid),
            Side::Child => {
                // A panic must not unwind into the loop of the shim that this process is a copy of.
                let work = std::panic::AssertUnwindSafe(|| exec_in_fork(request, keep));
                orlop_linux::process::exit_now(std::panic::catch_unwind(work).unwrap_or(1))
            }
        }
    }

    /// As [`Program::start_reaper`], for a PID namespace that belongs to the pod's user namespace.
    pub(crate) fn start_reaper_of(&self, user: &OwnedFd) -> anyhow::Result<u32> {
        let mut command = Command::new(self.path());
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        orlop_linux::fd::set_inheritable(user.as_fd(), true)?;
        let started = command.args(["oci-setup", "reaper", &user.as_raw_fd().to_string()]).output();
        orlop_linux::fd::set_inheritable(user.as_fd(), false)?;
        let said = String::from_utf8(started?.stdout)?;
        said.trim()
            .parse()
            .map_err(|_| anyhow::anyhow!("the reaper of the shared PID namespace did not start"))
    }

    /// Starts process 1 of the pod's shared PID namespace; returns its pid as we see it.
    pub(crate) fn start_reaper(&self, single: &SingleThreaded) -> anyhow::Result<u32> {
        let path = std::ffi::CString::new(self.path().into_os_string().into_encoded_bytes())?;
        let options = CloneOptions { new_pid_namespace: true, ..CloneOptions::default() };
        match orlop_linux::process::clone(single, options)? {
            Side::Parent(pid) => Ok(pid),
            Side::Child => {
                let arguments = [c"orlop", c"oci-setup", c"reaper"];
                let Err(errno) = nix::unistd::execve(&path, &arguments, &[] as &[&std::ffi::CStr]);
                say(&format!("failed to start the reaper: {errno}"));
                orlop_linux::process::exit_now(1)
            }
        }
    }
}

/// Keeps of the shim's descriptors only those of the request: nothing of other containers and sessions goes near this one.
fn exec_in_fork(request: &ExecRequest, keep: &[BorrowedFd<'_>]) -> i32 {
    let prepared = orlop_linux::fd::close_all_but(keep)
        .and_then(|()| keep.iter().try_for_each(|fd| orlop_linux::fd::set_inheritable(*fd, true)));
    if let Err(error) = prepared {
        say(&format!("failed to close descriptors: {error}"));
        return 1;
    }
    orlop_oci::setup::exec_in_fork(request)
}

/// A pipe; our side does not block.
pub(crate) struct Pipe {
    pub(crate) ours: OwnedFd,
    pub(crate) theirs: OwnedFd,
}

impl Pipe {
    /// We read.
    pub(crate) fn reading() -> io::Result<Self> {
        let (ours, theirs) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        set_nonblocking(&ours)?;
        Ok(Self { ours, theirs })
    }

    /// We write.
    pub(crate) fn writing() -> io::Result<Self> {
        let (theirs, ours) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        set_nonblocking(&ours)?;
        Ok(Self { ours, theirs })
    }

    pub(crate) fn number(&self) -> RawFd {
        self.theirs.as_raw_fd()
    }
}

pub(crate) fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd.as_fd())?;
    Ok(rustix::fs::fcntl_setfl(fd.as_fd(), flags | OFlags::NONBLOCK)?)
}
