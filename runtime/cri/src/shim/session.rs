//! An attach or exec session with a shim: frames of one channel byte, a big endian length and data.

use std::io;

use bytes::Bytes;
use orlop_shim::protocol::{ExecEnd, STREAM_FRAME_LIMIT_BYTES, SessionError, TerminalSize, channel};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// What a shim sends.
#[derive(Debug)]
pub(crate) enum Frame {
    /// Standard output.
    Stdout(Bytes),
    /// Standard error.
    Stderr(Bytes),
    /// The process ended; the last frame.
    Exit(ExecEnd),
    /// The session ended without an exit status; the last frame.
    Failed(String),
}

/// Both directions.
pub(crate) struct Session {
    /// From the shim.
    pub reader: SessionReader,
    /// To the shim.
    pub writer: SessionWriter,
}

impl Session {
    /// Over a connection that the shim has turned into a session.
    pub(crate) fn new(stream: UnixStream) -> Self {
        let (reader, writer) = stream.into_split();
        Self { reader: SessionReader(reader), writer: SessionWriter(writer) }
    }
}

/// From the shim.
pub(crate) struct SessionReader(OwnedReadHalf);

/// To the shim.
pub(crate) struct SessionWriter(OwnedWriteHalf);

impl SessionReader {
    /// The next frame; `None` when the shim closed. Not cancel safe.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Frame>> {
        let kind = match self.0.read_u8().await {
            Ok(kind) => kind,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        };
        let length = self.0.read_u32().await? as usize;
        if length > STREAM_FRAME_LIMIT_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a frame of {length} bytes is too large"),
            ));
        }
        let mut data = vec![0; length];
        self.0.read_exact(&mut data).await?;
        match kind {
            channel::STDOUT => Ok(Some(Frame::Stdout(data.into()))),
            channel::STDERR => Ok(Some(Frame::Stderr(data.into()))),
            channel::EXIT => Ok(Some(last_frame(&data))),
            other => Err(io::Error::new(io::ErrorKind::InvalidData, format!("unknown channel {other}"))),
        }
    }
}

fn last_frame(data: &[u8]) -> Frame {
    match serde_json::from_slice::<ExecEnd>(data) {
        Ok(end) => Frame::Exit(end),
        Err(_) => match serde_json::from_slice::<SessionError>(data) {
            Ok(failure) => Frame::Failed(failure.error),
            Err(error) => Frame::Failed(format!("unreadable end of the session: {error}")),
        },
    }
}

impl SessionWriter {
    /// Standard input.
    pub(crate) async fn stdin(&mut self, data: &[u8]) -> io::Result<()> {
        for part in data.chunks(STREAM_FRAME_LIMIT_BYTES) {
            self.write(channel::STDIN, part).await?;
        }
        Ok(())
    }

    /// No more standard input.
    pub(crate) async fn close_stdin(&mut self) -> io::Result<()> {
        self.write(channel::CLOSE_STDIN, &[]).await
    }

    /// A new size of the terminal.
    pub(crate) async fn resize(&mut self, size: TerminalSize) -> io::Result<()> {
        self.write(channel::RESIZE, &serde_json::to_vec(&size)?).await
    }

    async fn write(&mut self, kind: u8, data: &[u8]) -> io::Result<()> {
        let length = u32::try_from(data.len()).map_err(io::Error::other)?;
        let mut frame = Vec::with_capacity(data.len() + 5);
        frame.push(kind);
        frame.extend_from_slice(&length.to_be_bytes());
        frame.extend_from_slice(data);
        self.0.write_all(&frame).await
    }
}
