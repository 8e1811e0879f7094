//! `SCMP_ACT_NOTIFY`: the descriptor on which an agent hears of system calls goes to the agent's socket, with the state of the process
//! (runtime-spec config-linux.md, "The Container Process State").
//!
//! Once the filter holds, any call of ours may be one that the agent shall answer, the sending of the descriptor too. So a child that has
//! one table of descriptors with us, and no filter, waits for the descriptor to appear and sends it.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::wait::{WaitStatus, waitpid};
use orlop_linux::process::{CloneOptions, Side, SingleThreaded};
use serde::Serialize;

use super::Filter;
use crate::hooks::HookState;

/// For the filter to be loaded, which is our next system call.
const LOAD_DEADLINE: Duration = Duration::from_secs(10);
const LOOK_PAUSE: Duration = Duration::from_micros(100);

/// `ContainerProcessState`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ProcessState<'s> {
    oci_version: &'s str,
    fds: [&'static str; 1],
    pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'s str>,
    state: &'s HookState,
}

/// An agent's open socket and what it will be told.
#[derive(Clone, Debug)]
pub(crate) struct Listener {
    socket: Arc<UnixStream>,
    /// The process's pid as the runtime sees it, once it is known.
    pid: Arc<OwnedFd>,
    metadata: Option<String>,
    state: HookState,
    single: Arc<SingleThreaded>,
}

/// Where the pid goes, when it is known.
pub(crate) struct PidTeller(OwnedFd);

impl PidTeller {
    pub(crate) fn tell(self, pid: u32) -> io::Result<()> {
        rustix::io::write(&self.0, &pid.to_ne_bytes())?;
        Ok(())
    }
}

impl Listener {
    /// Connects. On the runtime's side, where the path means what the configuration meant.
    pub(crate) fn connect(
        path: &Path,
        metadata: Option<String>,
        state: HookState,
    ) -> io::Result<(Self, PidTeller)> {
        // While `/proc` is the machine's.
        let single = Arc::new(SingleThreaded::verify()?);
        let socket = Arc::new(UnixStream::connect(path)?);
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        Ok((Self { socket, pid: Arc::new(reader), metadata, state, single }, PidTeller(writer)))
    }

    /// Loads a filter that notifies and hands its listener over.
    pub(crate) fn load(&self, filter: &Filter) -> io::Result<()> {
        // The kernel gives out the lowest free number, and nobody else opens anything here.
        let number = rustix::io::fcntl_dupfd_cloexec(self.socket.as_fd(), 3)?.as_raw_fd();
        let options = CloneOptions { shared_descriptors: true, ..CloneOptions::default() };
        let helper = match orlop_linux::process::clone(&self.single, options)? {
            Side::Child => {
                let sent = self.send(number);
                orlop_linux::process::exit_now(
                    sent.map_or_else(|error| error.raw_os_error().unwrap_or(1), |()| 0),
                )
            }
            Side::Parent(pid) => i32::try_from(pid).map_err(io::Error::other)?,
        };
        let flags = filter.flags | orlop_linux::seccomp::FLAG_NEW_LISTENER;
        if let Err(error) = orlop_linux::seccomp::load(&filter.instructions, flags) {
            let _ = orlop_linux::process::send_signal(helper, libc::SIGKILL);
            let _ = waitpid(nix::unistd::Pid::from_raw(helper), None);
            return Err(error);
        }
        // A filter that denies this leaves us without an answer. Without an agent the kernel answers ENOSYS to what it should hear of.
        match waitpid(nix::unistd::Pid::from_raw(helper), None) {
            Ok(WaitStatus::Exited(_, code)) if code != 0 => Err(io::Error::from_raw_os_error(code)),
            _ => Ok(()),
        }
    }

    /// In the helper.
    fn send(&self, number: RawFd) -> io::Result<()> {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        let mut pid = [0_u8; 4];
        // Nothing may be opened here: it would get the number that the listener is to have.
        if rustix::io::read(&self.pid, &mut pid)? != pid.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut state = self.state.clone();
        state.pid = u32::from_ne_bytes(pid);
        let text = serde_json::to_vec(&ProcessState {
            oci_version: crate::SPECIFICATION_VERSION,
            fds: ["seccompFd"],
            pid: state.pid,
            metadata: self.metadata.as_deref(),
            state: &state,
        })?;
        let end = Instant::now() + LOAD_DEADLINE;
        let descriptors = [number];
        let message = [ControlMessage::ScmRights(&descriptors)];
        loop {
            let parts = [IoSlice::new(&text)];
            // The one thing that the loading process can do without a system call that may be filtered is to have the descriptor.
            match sendmsg::<()>(self.socket.as_raw_fd(), &parts, &message, MsgFlags::MSG_NOSIGNAL, None) {
                Err(nix::errno::Errno::EBADF) if Instant::now() < end => std::thread::sleep(LOOK_PAUSE),
                Err(errno) => return Err(errno.into()),
                Ok(count) if count == text.len() => return Ok(()),
                Ok(count) => {
                    use io::Write as _;
                    return (&*self.socket).write_all(&text[count..]);
                }
            }
        }
    }
}
