//! One SPDY connection, server side, over any byte stream.
//!
//! Tasks: a reader (frames in, to streams), a writer (frames out, compresses headers). Both end with the transport.
//! Bounds: streams open at once, bytes queued to all of them together, frames queued to the writer. A stream whose consumer is slow
//! stalls its connection, as the transport's back pressure is the only one that peers honour. A peer that takes nothing stalls it
//! too, which is a person's Ctrl-S as often as a fault: how long that may last is the owner's affair.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;

use super::frame::{self, Frame, reset};
use super::headers::{Deflater, Headers, Inflater};

const STREAM_LIMIT: usize = 256;
const QUEUE_LIMIT: usize = 32;
const DATA_LIMIT_BYTES: usize = 32 * 1024;
/// Bytes on their way to the streams' consumers, of one connection; more than the longest frame.
const QUEUE_LIMIT_BYTES: usize = 2 * frame::FRAME_LIMIT_BYTES;

/// A stream that the peer opened.
pub(crate) struct Stream {
    /// Its headers.
    pub headers: Headers,
    /// Its bytes; ends with the peer's FIN, a reset, or the connection.
    pub incoming: Incoming,
    /// The way back.
    pub outgoing: StreamWriter,
}

/// Bytes that the peer sent; they count against the connection until they are taken.
pub(crate) struct Incoming(mpsc::Receiver<(Bytes, OwnedSemaphorePermit)>);

impl Incoming {
    /// The next bytes; `None` at the end. Cancel safe.
    pub(crate) async fn recv(&mut self) -> Option<Bytes> {
        self.0.recv().await.map(|(data, _)| data)
    }
}

/// Writes to one stream.
#[derive(Clone)]
pub(crate) struct StreamWriter {
    id: u32,
    frames: mpsc::Sender<Out>,
}

enum Out {
    Frame(Frame),
    Reply(u32),
}

impl StreamWriter {
    /// Sends bytes.
    pub(crate) async fn write(&self, mut data: Bytes) -> io::Result<()> {
        while !data.is_empty() {
            let part = data.split_to(data.len().min(DATA_LIMIT_BYTES));
            self.send(Frame::Data { stream: self.id, fin: false, data: part }).await?;
        }
        Ok(())
    }

    /// Ends our half.
    pub(crate) async fn finish(&self) -> io::Result<()> {
        self.send(Frame::Data { stream: self.id, fin: true, data: Bytes::new() }).await
    }

    /// Refuses the stream.
    pub(crate) async fn reset(&self) -> io::Result<()> {
        self.send(Frame::RstStream { stream: self.id, status: reset::REFUSED_STREAM }).await
    }

    async fn send(&self, frame: Frame) -> io::Result<()> {
        self.frames.send(Out::Frame(frame)).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// A running connection; dropped, it ends at once.
pub(crate) struct Connection {
    /// Streams as the peer opens them; ends with the connection.
    pub streams: mpsc::Receiver<Stream>,
    frames: mpsc::Sender<Out>,
    reader: AbortOnDropHandle<()>,
    writer: AbortOnDropHandle<()>,
}

impl Connection {
    /// Starts serving.
    pub(crate) fn serve<T>(transport: T) -> Self
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (read, write) = tokio::io::split(transport);
        let (frames, out) = mpsc::channel(QUEUE_LIMIT);
        let (accepted, streams) = mpsc::channel(STREAM_LIMIT);
        let writer = AbortOnDropHandle::new(tokio::spawn(write_frames(write, out)));
        let reader = Reader {
            frames: frames.clone(),
            accepted,
            open: HashMap::new(),
            room: Arc::new(Semaphore::new(QUEUE_LIMIT_BYTES)),
            inflater: Inflater::new(),
            last: 0,
        };
        let reader = AbortOnDropHandle::new(tokio::spawn(async move {
            if let Err(error) = reader.run(read).await {
                tracing::debug!(%error, "a SPDY connection broke");
            }
        }));
        Self { streams, frames, reader, writer }
    }

    /// Says goodbye, lets everything queued go out, and waits a little for the peer to close: closing first would cut off
    /// what it has not read yet.
    pub(crate) async fn close(self, patience: Duration) {
        let Self { streams, frames, mut reader, writer } = self;
        drop(streams);
        // A peer that takes nothing leaves no room for it.
        let goodbye = frames.send(Out::Frame(Frame::GoAway { last: 0, status: 0 }));
        let _ = tokio::time::timeout(patience, goodbye).await;
        drop(frames);
        if tokio::time::timeout(patience, &mut reader).await.is_err() {
            drop(reader);
        }
        // The reader held the last sender: the writer flushes and ends.
        if tokio::time::timeout(patience, writer).await.is_err() {
            tracing::debug!("a SPDY peer took nothing more");
        }
    }
}

struct Reader {
    frames: mpsc::Sender<Out>,
    accepted: mpsc::Sender<Stream>,
    open: HashMap<u32, mpsc::Sender<(Bytes, OwnedSemaphorePermit)>>,
    room: Arc<Semaphore>,
    inflater: Inflater,
    last: u32,
}

impl Reader {
    async fn run(mut self, mut transport: impl AsyncRead + Unpin) -> io::Result<()> {
        let invalid = |error: frame::FrameError| io::Error::new(io::ErrorKind::InvalidData, error);
        let mut buffer = BytesMut::with_capacity(DATA_LIMIT_BYTES + 8);
        loop {
            while let Some(frame) = frame::decode(&mut buffer).map_err(invalid)? {
                self.take(frame).await?;
            }
            if transport.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
    }

    async fn take(&mut self, frame: Frame) -> io::Result<()> {
        match frame {
            Frame::Data { stream, fin, data } => self.take_data(stream, fin, data).await,
            Frame::SynStream { stream, fin, block } => {
                let headers = self
                    .inflater
                    .read(&block)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                self.open_stream(stream, fin, headers).await
            }
            Frame::SynReply { block, .. } => self.skip_headers(&block),
            Frame::Headers { stream, fin, block } => {
                self.skip_headers(&block)?;
                if fin {
                    self.open.remove(&stream);
                }
                Ok(())
            }
            Frame::RstStream { stream, .. } => {
                self.open.remove(&stream);
                Ok(())
            }
            // Ours would be even; the client's are answered.
            Frame::Ping(id) if id % 2 == 1 => self.send(Frame::Ping(id)).await,
            // No new streams will come; the open ones go on to their own ends.
            Frame::GoAway { .. }
            | Frame::Ping(_)
            | Frame::WindowUpdate { .. }
            | Frame::Settings
            | Frame::Unknown(_) => Ok(()),
        }
    }

    /// The block still has to pass the decompressor, whose state goes on.
    fn skip_headers(&mut self, block: &[u8]) -> io::Result<()> {
        self.inflater.read(block).map(drop).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    async fn open_stream(&mut self, id: u32, fin: bool, headers: Headers) -> io::Result<()> {
        // Stream numbers of a client are odd and grow (section 2.3.2).
        if id.is_multiple_of(2) || id <= self.last || self.open.len() >= STREAM_LIMIT {
            return self.send(Frame::RstStream { stream: id, status: reset::REFUSED_STREAM }).await;
        }
        self.last = id;
        let (sender, incoming) = mpsc::channel(QUEUE_LIMIT);
        if !fin {
            self.open.insert(id, sender);
        }
        self.frames.send(Out::Reply(id)).await.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        let incoming = Incoming(incoming);
        let stream = Stream { headers, incoming, outgoing: StreamWriter { id, frames: self.frames.clone() } };
        // Nobody accepts any more: the connection is being closed and the peer will notice.
        let _ = self.accepted.send(stream).await;
        Ok(())
    }

    async fn take_data(&mut self, stream: u32, fin: bool, data: Bytes) -> io::Result<()> {
        let Some(sender) = self.open.get(&stream) else {
            // Bytes that cross our end of the stream are normal; they are dropped.
            if stream > self.last {
                self.send(Frame::RstStream { stream, status: reset::INVALID_STREAM }).await?;
            }
            return Ok(());
        };
        let length = u32::try_from(data.len()).unwrap_or(0);
        if length > 0 {
            let room = self.room.clone().acquire_many_owned(length).await.map_err(io::Error::other)?;
            if sender.send((data, room)).await.is_ok() {
                self.send(Frame::WindowUpdate { stream, delta: length }).await?;
                self.send(Frame::WindowUpdate { stream: 0, delta: length }).await?;
            }
        }
        if fin {
            self.open.remove(&stream);
        }
        Ok(())
    }

    async fn send(&self, frame: Frame) -> io::Result<()> {
        self.frames.send(Out::Frame(frame)).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

async fn write_frames(mut transport: impl AsyncWrite + Unpin, mut frames: mpsc::Receiver<Out>) {
    let mut deflater = Deflater::new();
    let mut buffer = BytesMut::new();
    while let Some(first) = frames.recv().await {
        let mut next = Some(first);
        // What is queued already goes out in one write.
        while let Some(out) = next {
            match out {
                Out::Frame(frame) => frame::encode(&frame, &mut buffer),
                Out::Reply(stream) => {
                    let block = deflater.write(&Headers::default());
                    frame::encode(&Frame::SynReply { stream, fin: false, block }, &mut buffer);
                }
            }
            next = if buffer.len() < frame::FRAME_LIMIT_BYTES { frames.try_recv().ok() } else { None };
        }
        let written = async {
            transport.write_all(&buffer).await?;
            transport.flush().await
        };
        if written.await.is_err() {
            return;
        }
        buffer.clear();
    }
    let _ = transport.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Peer {
        transport: tokio::io::DuplexStream,
        deflater: Deflater,
        inflater: Inflater,
        buffer: BytesMut,
    }

    impl Peer {
        fn new() -> (Self, Connection) {
            let (transport, other) = tokio::io::duplex(64 * 1024);
            let peer = Self {
                transport,
                deflater: Deflater::new(),
                inflater: Inflater::new(),
                buffer: BytesMut::new(),
            };
            (peer, Connection::serve(other))
        }

        async fn send(&mut self, frame: Frame) {
            let mut bytes = BytesMut::new();
            frame::encode(&frame, &mut bytes);
            self.transport.write_all(&bytes).await.unwrap();
        }

        async fn open(&mut self, stream: u32, kind: &str) {
            let block = self.deflater.write(&Headers(vec![("streamtype".into(), kind.into())]));
            self.send(Frame::SynStream { stream, fin: false, block }).await;
        }

        /// The next frame that is not flow control.
        async fn next(&mut self) -> Option<Frame> {
            loop {
                match frame::decode(&mut self.buffer).unwrap() {
                    Some(Frame::WindowUpdate { .. }) => {}
                    Some(Frame::SynReply { stream, fin, block }) => {
                        self.inflater.read(&block).unwrap();
                        return Some(Frame::SynReply { stream, fin, block: Bytes::new() });
                    }
                    Some(frame) => return Some(frame),
                    None => {
                        if self.transport.read_buf(&mut self.buffer).await.unwrap() == 0 {
                            return None;
                        }
                    }
                }
            }
        }
    }

    #[tokio::test]
    async fn streams_open_carry_bytes_and_end() {
        let (mut peer, mut connection) = Peer::new();
        peer.open(1, "stdin").await;
        let mut stream = connection.streams.recv().await.unwrap();
        assert_eq!(stream.headers.get("streamtype"), Some("stdin"));
        assert_eq!(peer.next().await, Some(Frame::SynReply { stream: 1, fin: false, block: Bytes::new() }));
        peer.send(Frame::Data { stream: 1, fin: true, data: Bytes::from_static(b"hello") }).await;
        assert_eq!(stream.incoming.recv().await.as_deref(), Some(&b"hello"[..]));
        assert_eq!(stream.incoming.recv().await, None);
        stream.outgoing.write(Bytes::from_static(b"back")).await.unwrap();
        stream.outgoing.finish().await.unwrap();
        let data =
            |fin, data: &'static [u8]| Some(Frame::Data { stream: 1, fin, data: Bytes::from_static(data) });
        assert_eq!(peer.next().await, data(false, b"back"));
        assert_eq!(peer.next().await, data(true, b""));
        peer.send(Frame::Ping(3)).await;
        assert_eq!(peer.next().await, Some(Frame::Ping(3)));
        drop(stream);
        let closing = tokio::spawn(connection.close(Duration::from_secs(5)));
        assert_eq!(peer.next().await, Some(Frame::GoAway { last: 0, status: 0 }));
        peer.transport.shutdown().await.unwrap();
        assert_eq!(peer.next().await, None);
        closing.await.unwrap();
    }

    #[tokio::test]
    async fn wrong_numbers_are_reset_and_garbage_ends_the_connection() {
        let (mut peer, mut connection) = Peer::new();
        peer.open(2, "x").await;
        assert_eq!(peer.next().await, Some(Frame::RstStream { stream: 2, status: reset::REFUSED_STREAM }));
        peer.send(Frame::Data { stream: 9, fin: false, data: Bytes::from_static(b"?") }).await;
        assert_eq!(peer.next().await, Some(Frame::RstStream { stream: 9, status: reset::INVALID_STREAM }));
        peer.send(Frame::SynStream { stream: 3, fin: false, block: Bytes::from_static(b"garbage") }).await;
        assert!(connection.streams.recv().await.is_none());
    }
}
