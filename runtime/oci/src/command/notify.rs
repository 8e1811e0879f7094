//! sd_notify(3) of a container's program, passed on to who started us (as runc does): with `NOTIFY_SOCKET` in our environment the
//! container gets a socket of its own, and the first `READY=` that comes there goes on, with the main process's pid.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};

use anyhow::Context;
use oci_spec::runtime::Mount;
use orlop_linux::process::{CloneOptions, Side, SingleThreaded};
use rustix::event::{PollFd, PollFlags, poll};

use super::container::Container;

/// In the container's directory, and its place in the container.
const DIRECTORY: &str = "notify";
const PLACE: &str = "/run/notify";
const SOCKET: &str = "notify.sock";
/// Longest message; service managers take one page.
const MESSAGE_LIMIT_BYTES: usize = 4096;

/// Where the service manager listens, if there is one.
fn manager() -> Option<PathBuf> {
    std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// At create: the mount and the entry of the environment for a container whose starter waits to hear of it.
pub(super) fn prepare(container: &Container) -> anyhow::Result<Option<(Mount, String)>> {
    if manager().is_none() {
        return Ok(None);
    }
    let directory = container.directory.join(DIRECTORY);
    fs::create_dir(&directory).context("failed to make the directory of the notification socket")?;
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
    let mut mount = Mount::default();
    let options = ["bind", "nosuid", "noexec", "nodev", "ro"].map(str::to_owned).to_vec();
    mount.set_destination(PLACE.into()).set_typ(Some("bind".to_owned()));
    mount.set_source(Some(directory)).set_options(Some(options));
    Ok(Some((mount, format!("NOTIFY_SOCKET={PLACE}/{SOCKET}"))))
}

/// The container's socket, open before its program starts.
pub(super) struct Relay {
    socket: UnixDatagram,
    manager: PathBuf,
}

impl Relay {
    /// Nothing for containers that were made without, and callers that do not wait.
    pub(super) fn open(container: &Container) -> anyhow::Result<Option<Self>> {
        let directory = container.directory.join(DIRECTORY);
        let (Some(manager), true) = (manager(), directory.is_dir()) else { return Ok(None) };
        // By descriptor: socket paths end at 107 bytes (unix(7)).
        let opened = fs::File::open(&directory)?;
        let path = directory.join(SOCKET);
        let _ = fs::remove_file(&path);
        let socket = UnixDatagram::bind(format!("/proc/self/fd/{}/{SOCKET}", opened.as_raw_fd()))
            .context("failed to make the notification socket")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
        Ok(Some(Self { socket, manager }))
    }

    /// Until the program is ready, or over. `main` is what the service manager shall take for its main process.
    pub(super) fn pass_on(&self, init: &OwnedFd, main: u32) -> anyhow::Result<()> {
        let Some(ready) = self.wait(init)? else { return Ok(()) };
        let socket = UnixDatagram::unbound()?;
        match self.manager.as_os_str().as_bytes().strip_prefix(b"@") {
            Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?),
            None => socket.connect(&self.manager),
        }
        .with_context(|| format!("failed to reach {}", self.manager.display()))?;
        socket.send(&ready)?;
        socket.send(format!("MAINPID={main}").as_bytes())?;
        Ok(())
    }

    /// The same beside us, in a process that ends with the work.
    pub(super) fn pass_on_beside(&self, init: &OwnedFd, main: u32) -> anyhow::Result<()> {
        match orlop_linux::process::clone(&SingleThreaded::verify()?, CloneOptions::default())? {
            Side::Parent(_) => Ok(()),
            Side::Child => {
                let signal = rustix::process::Signal::KILL;
                let _ = rustix::process::set_parent_process_death_signal(Some(signal));
                orlop_linux::process::exit_now(i32::from(self.pass_on(init, main).is_err()))
            }
        }
    }

    /// The line that says so.
    fn wait(&self, init: &OwnedFd) -> anyhow::Result<Option<Vec<u8>>> {
        let mut message = [0_u8; MESSAGE_LIMIT_BYTES];
        loop {
            let mut wanted = [
                PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::IN),
                PollFd::new(init, PollFlags::IN),
            ];
            match poll(&mut wanted, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno).context("failed to wait for the container"),
            }
            if wanted[0].revents().contains(PollFlags::IN) {
                let count = self.socket.recv(&mut message)?;
                let mut lines = message[..count].split(|byte| *byte == b'\n');
                if let Some(line) = lines.find(|line| line.starts_with(b"READY=")) {
                    return Ok(Some(line.to_vec()));
                }
            } else if !wanted[1].revents().is_empty() {
                return Ok(None);
            }
        }
    }
}

/// Sends a pidfd over the socket at `path` (`--pidfd-socket`).
pub(super) fn send_pidfd(path: &Path, pid: u32) -> anyhow::Result<()> {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let process = orlop_linux::process::open_pid(pid).context("the process is gone")?;
    let socket = super::console::connect(path).context("--pidfd-socket")?;
    let descriptors = [process.as_raw_fd()];
    let message = [ControlMessage::ScmRights(&descriptors)];
    sendmsg::<()>(socket.as_raw_fd(), &[io::IoSlice::new(b"pidfd")], &message, MsgFlags::MSG_NOSIGNAL, None)
        .context("failed to send the pidfd")?;
    Ok(())
}
