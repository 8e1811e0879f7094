//! A blocking netlink socket: one request, its answers.

use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sockopt,
};
use nix::sys::time::TimeVal;
use orlop_nft::wire;

use crate::NetlinkError;

/// The kernel answers a request within its system call; a longer silence is a fault.
const ANSWER_SECONDS: i64 = 10;
/// Larger than any single datagram of the kernel (32 KiB in dumps, 64 KiB echoed in errors).
const RECEIVE_BYTES: usize = 256 * 1024;
/// A dump that is interrupted by changes is asked for again this often.
const DUMP_TRIES: usize = 8;

/// One answer of a dump.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) kind: u16,
    pub(crate) payload: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    pub(crate) fn open(protocol: SockProtocol) -> Result<Self, NetlinkError> {
        let failed = |source| NetlinkError::new("open a netlink socket", source);
        let fd = socket::socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
            .map_err(failed)?;
        socket::bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(failed)?;
        let timeout = TimeVal::new(ANSWER_SECONDS, 0);
        socket::setsockopt(&fd, sockopt::ReceiveTimeout, &timeout).map_err(failed)?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; RECEIVE_BYTES] })
    }

    pub(crate) const fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    pub(crate) const fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Reserves `count` sequence numbers and returns the first.
    pub(crate) const fn reserve_sequences(&mut self, count: u32) -> u32 {
        let first = self.sequence.wrapping_add(1);
        self.sequence = self.sequence.wrapping_add(count);
        first
    }

    pub(crate) fn send(&self, bytes: &[u8]) -> Result<(), Errno> {
        let sent = socket::send(self.fd.as_raw_fd(), bytes, MsgFlags::empty())?;
        if sent == bytes.len() { Ok(()) } else { Err(Errno::EMSGSIZE) }
    }

    pub(crate) fn receive(&mut self) -> Result<&[u8], Errno> {
        loop {
            match socket::recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Ok(length) => return Ok(&self.buffer[..length]),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(Errno::ETIMEDOUT),
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends one request and waits for its acknowledgement.
    pub(crate) fn request(
        &mut self,
        act: impl Fn() -> String,
        kind: u16,
        flags: u16,
        body: impl FnOnce(&mut wire::Encoder),
    ) -> Result<(), NetlinkError> {
        let sequence = self.next_sequence();
        let mut encoder = wire::Encoder::new();
        encoder.message(kind, wire::FLAG_REQUEST | wire::FLAG_ACK | flags, sequence, body);
        self.exchange(encoder.bytes(), sequence, |_| {}).map_err(|source| NetlinkError::new(act(), source))
    }

    /// Asks for a whole table.
    pub(crate) fn dump(
        &mut self,
        act: &str,
        kind: u16,
        body: impl Fn(&mut wire::Encoder),
    ) -> Result<Vec<Answer>, NetlinkError> {
        for _ in 0..DUMP_TRIES {
            let sequence = self.next_sequence();
            let mut encoder = wire::Encoder::new();
            encoder.message(kind, wire::FLAG_REQUEST | wire::FLAG_DUMP, sequence, &body);
            let mut answers = Vec::new();
            match self.exchange(encoder.bytes(), sequence, |answer| answers.push(answer)) {
                Ok(()) => return Ok(answers),
                Err(Errno::EINTR) => {}
                Err(source) => return Err(NetlinkError::new(act, source)),
            }
        }
        Err(NetlinkError::new(act, Errno::EINTR))
    }

    /// Sends and takes answers until the end of the request's answer: an acknowledgement, an error or the end of the dump.
    fn exchange(&mut self, bytes: &[u8], sequence: u32, mut take: impl FnMut(Answer)) -> Result<(), Errno> {
        self.send(bytes)?;
        let mut interrupted = false;
        loop {
            let received = self.receive()?;
            for message in wire::messages(received).filter(|message| message.sequence == sequence) {
                interrupted |= message.flags & wire::FLAG_DUMP_INTERRUPTED != 0;
                match message.kind {
                    wire::MESSAGE_ERROR | wire::MESSAGE_DONE => {
                        let code = wire::read_u32(message.payload, 0).unwrap_or(0).cast_signed();
                        return match code {
                            0 if interrupted => Err(Errno::EINTR),
                            0 => Ok(()),
                            code => Err(Errno::from_raw(code.wrapping_neg())),
                        };
                    }
                    kind => take(Answer { kind, payload: message.payload.to_vec() }),
                }
            }
        }
    }
}
