//! A connection that has become a TCP connection to the pod's loopback.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, connect, shutdown, socket_with};

/// Bytes under way in each direction.
const BUFFER_BYTES: usize = 64 * 1024;
const CHUNK_BYTES: usize = 16 * 1024;

#[derive(Debug)]
pub(crate) struct Forward {
    pub(crate) socket: OwnedFd,
    port: u16,
    /// Addresses still to be tried.
    remaining: Vec<SocketAddr>,
    pub(crate) connecting: bool,
    /// From the client, for the pod.
    pub(crate) to_pod: Vec<u8>,
    pub(crate) pod_ended: bool,
    shut: bool,
}

impl Forward {
    /// Starts to connect: 127.0.0.1, then ::1.
    pub(crate) fn open(port: u16) -> io::Result<Self> {
        let remaining = vec![SocketAddr::from((Ipv6Addr::LOCALHOST, port))];
        match begin(SocketAddr::from((Ipv4Addr::LOCALHOST, port))) {
            Ok((socket, connecting)) => Ok(Self {
                socket,
                port,
                remaining,
                connecting,
                to_pod: Vec::new(),
                pod_ended: false,
                shut: false,
            }),
            Err(_) => {
                let (socket, connecting) = begin(remaining[0]).map_err(|errno| refused(port, errno))?;
                Ok(Self {
                    socket,
                    port,
                    remaining: Vec::new(),
                    connecting,
                    to_pod: Vec::new(),
                    pod_ended: false,
                    shut: false,
                })
            }
        }
    }

    /// The socket became writable while connecting. True when it is connected, false when another address is being tried.
    pub(crate) fn advance(&mut self) -> io::Result<bool> {
        let outcome = rustix::net::sockopt::socket_error(&self.socket)?;
        let Err(mut errno) = outcome else {
            self.connecting = false;
            return Ok(true);
        };
        while let Some(address) = self.remaining.pop() {
            match begin(address) {
                Ok((socket, connecting)) => {
                    self.socket = socket;
                    self.connecting = connecting;
                    return Ok(!connecting);
                }
                Err(other) => errno = other,
            }
        }
        Err(refused(self.port, errno))
    }

    pub(crate) fn has_room(&self) -> bool {
        self.to_pod.len() < BUFFER_BYTES
    }

    /// Reads from the pod into `output`; false when the connection broke.
    pub(crate) fn read(&mut self, output: &mut Vec<u8>) -> bool {
        let mut chunk = [0; CHUNK_BYTES];
        match rustix::io::read(&self.socket, &mut chunk) {
            Ok(0) => self.pod_ended = true,
            Ok(count) => output.extend_from_slice(&chunk[..count]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => return false,
        }
        true
    }

    /// Writes to the pod; ends that direction when the client has ended and all is written. False when the connection broke.
    pub(crate) fn write(&mut self, client_ended: bool) -> bool {
        while !self.to_pod.is_empty() {
            match rustix::io::write(&self.socket, &self.to_pod) {
                Ok(count) => drop(self.to_pod.drain(..count)),
                Err(Errno::AGAIN) => return true,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        if client_ended && !self.shut {
            self.shut = true;
            // Half a close; the pod may still answer.
            let _ = shutdown(&self.socket, Shutdown::Write);
        }
        true
    }
}

fn refused(port: u16, errno: Errno) -> io::Error {
    let error = io::Error::from(errno);
    io::Error::new(error.kind(), format!("failed to connect to port {port} of the pod: {error}"))
}

/// A socket and whether it is still connecting.
fn begin(address: SocketAddr) -> Result<(OwnedFd, bool), Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    match connect(&socket, &address) {
        Ok(()) => Ok((socket, false)),
        Err(Errno::INPROGRESS) => Ok((socket, true)),
        Err(errno) => Err(errno),
    }
}
