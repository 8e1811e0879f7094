//! One client: what it sent, what it has not read yet, and what its connection has become.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use serde::Serialize;

use crate::frame::{encode, write_stream_frame};
use crate::port_forward::Forward;
use crate::protocol::{ErrorKind, Response, STREAM_FRAME_LIMIT_BYTES};

/// A client that lets this much pile up is cut: events and attach sessions do not wait.
const CUT_BYTES: usize = 1024 * 1024;
/// An exec session's process is not read while this much waits for its client.
const PAUSE_BYTES: usize = 256 * 1024;
/// Read at once.
const CHUNK_BYTES: usize = 16 * 1024;

/// What a connection is for.
#[derive(Debug)]
pub(crate) enum Mode {
    /// Requests, one at a time.
    Requests,
    /// Only listens to events.
    Events,
    /// Follows a container's first process.
    Attach { container: String, stdin: bool, stdout: bool, stderr: bool },
    /// Owns an exec'd process.
    Exec { process: u64 },
    /// Is a TCP connection.
    Forward(Forward),
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) stream: UnixStream,
    pub(crate) mode: Mode,
    pub(crate) input: Vec<u8>,
    pub(crate) output: Vec<u8>,
    /// A request is being worked on; the next one waits.
    pub(crate) busy: bool,
    /// The client will send nothing more.
    pub(crate) ended: bool,
    /// Close when everything is sent.
    pub(crate) last: bool,
    /// Close now.
    pub(crate) broken: bool,
}

impl Connection {
    pub(crate) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            mode: Mode::Requests,
            input: Vec::new(),
            output: Vec::new(),
            busy: false,
            ended: false,
            last: false,
            broken: false,
        })
    }

    /// Takes what has arrived. False when nothing more will.
    pub(crate) fn fill(&mut self) {
        let mut chunk = [0; CHUNK_BYTES];
        match self.stream.read(&mut chunk) {
            Ok(0) => self.ended = true,
            Ok(count) => self.input.extend_from_slice(&chunk[..count]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.broken = true,
        }
    }

    /// Sends what the client takes.
    pub(crate) fn flush(&mut self) {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => break,
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.broken = true;
                    return;
                }
            }
        }
        // A burst must not keep its memory.
        self.output.shrink_to(CHUNK_BYTES);
        self.broken |= self.last;
    }

    pub(crate) fn answer(&mut self, response: &Response) {
        self.busy = false;
        self.push(response);
    }

    pub(crate) fn push(&mut self, value: &impl Serialize) {
        match encode(value) {
            Ok(frame) => self.output.extend_from_slice(&frame),
            Err(error) => {
                let refusal = Response::Error { kind: ErrorKind::Failed, message: error.to_string() };
                self.output.extend(encode(&refusal).unwrap_or_default());
            }
        }
    }

    /// Sends on a session's channel.
    pub(crate) fn push_stream(&mut self, channel: u8, data: &[u8]) {
        for part in data.chunks(STREAM_FRAME_LIMIT_BYTES) {
            // Writing to memory cannot fail.
            let _ = write_stream_frame(&mut self.output, channel, part);
        }
    }

    /// Cuts a client that does not read. For streams that must not wait for anyone.
    pub(crate) fn cut_if_slow(&mut self) {
        if self.output.len() > CUT_BYTES {
            crate::say("a client was cut: it does not read");
            self.broken = true;
        }
    }

    pub(crate) fn is_congested(&self) -> bool {
        self.output.len() > PAUSE_BYTES
    }
}
