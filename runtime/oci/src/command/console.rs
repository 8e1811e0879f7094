//! Unix sockets that carry a terminal's master side.

use std::fs::{self, File};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use anyhow::{Context, bail};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// In a container's directory.
pub(super) const SOCKET: &str = "console.sock";

/// Listens in a container's directory, by way of its descriptor: socket paths end at 107 bytes (unix(7)).
pub(super) fn listen(directory: &Path) -> anyhow::Result<UnixListener> {
    let opened = File::open(directory)?;
    UnixListener::bind(format!("/proc/self/fd/{}/{SOCKET}", opened.as_raw_fd()))
        .context("failed to listen for the terminal")
}

/// Connects to a caller's `--console-socket`.
pub(super) fn connect(path: &Path) -> anyhow::Result<UnixStream> {
    let connected = match fs::canonicalize(path) {
        Ok(path) => connect_by_directory(&path),
        Err(error) => Err(error),
    };
    connected.with_context(|| format!("failed to connect to the console socket {}", path.display()))
}

fn connect_by_directory(path: &Path) -> io::Result<UnixStream> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory = File::open(directory)?;
    UnixStream::connect(Path::new(&format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name))
}

/// The descriptor that comes over a connection.
pub(super) fn receive(connection: &UnixStream) -> anyhow::Result<OwnedFd> {
    let mut name = [0_u8; 64];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    recvmsg(connection, &mut [IoSliceMut::new(&mut name)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        .context("failed to receive the terminal")?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message
            && let Some(terminal) = descriptors.next()
        {
            return Ok(terminal);
        }
    }
    bail!("no terminal came over the console socket")
}
