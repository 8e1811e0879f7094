//! A blocking client, for tests and for people. The runtime daemon has an asynchronous one of its own.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::frame::{read_frame, read_stream_frame, write_frame, write_stream_frame};
use crate::protocol::{ErrorKind, Event, Request, Response, VERSION, is_spoken};

/// What a call may end in.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection.
    #[error("failed to talk to the shim")]
    Connection(#[from] io::Error),
    /// The shim said no.
    #[error("{message}")]
    Refused {
        /// Kind.
        kind: ErrorKind,
        /// For people.
        message: String,
    },
    /// An answer to another question.
    #[error("unexpected answer {0:?}")]
    Unexpected(Box<Response>),
}

/// One connection.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
}

impl Client {
    /// Connects to the shim of this state directory. Every read and write is bounded by `deadline`.
    pub fn connect(state_directory: &Path, deadline: Duration) -> Result<Self, ClientError> {
        // By way of the directory's descriptor: socket paths end at 107 bytes (unix(7)).
        let directory = std::fs::File::open(state_directory)?;
        let stream = UnixStream::connect(format!("/proc/self/fd/{}/shim.sock", directory.as_raw_fd()))?;
        stream.set_read_timeout(Some(deadline))?;
        stream.set_write_timeout(Some(deadline))?;
        let mut client = Self { stream };
        match client.call(&Request::Hello { version: VERSION })? {
            Response::Hello { version, .. } if is_spoken(version) => Ok(client),
            other => Err(ClientError::Unexpected(Box::new(other))),
        }
    }

    /// One request, one answer; a refusal is an error.
    pub fn call(&mut self, request: &Request) -> Result<Response, ClientError> {
        write_frame(&mut self.stream, request)?;
        match read_frame(&mut self.stream)? {
            Response::Error { kind, message } => Err(ClientError::Refused { kind, message }),
            response => Ok(response),
        }
    }

    /// The next event, after [`Request::Events`].
    pub fn event(&mut self) -> Result<Event, ClientError> {
        Ok(read_frame(&mut self.stream)?)
    }

    /// Sends on a session's channel.
    pub fn send(&mut self, channel: u8, data: &[u8]) -> Result<(), ClientError> {
        Ok(write_stream_frame(&mut self.stream, channel, data)?)
    }

    /// The next data of a session.
    pub fn receive(&mut self) -> Result<(u8, Vec<u8>), ClientError> {
        Ok(read_stream_frame(&mut self.stream)?)
    }

    /// The connection itself, for what carries raw bytes.
    pub fn into_stream(self) -> UnixStream {
        self.stream
    }
}
