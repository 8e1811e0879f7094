//! A stream of chunks from an async task to a thread that reads.

use std::io::{self, Read};

use bytes::{Buf as _, Bytes};
use tokio::sync::mpsc;

/// Chunks on their way.
const DEPTH: usize = 8;
/// Most bytes of one; a connection may give larger ones.
const CHUNK: usize = 128 * 1024;

/// The sending end. Dropping it without [`Feed::end`] makes the reader fail instead of seeing a short stream.
pub(super) struct Feed {
    sender: mpsc::Sender<Option<Bytes>>,
}

/// The reading end; for threads that may block.
pub(super) struct FeedReader {
    receiver: mpsc::Receiver<Option<Bytes>>,
    current: Bytes,
    ended: bool,
}

pub(super) fn feed() -> (Feed, FeedReader) {
    let (sender, receiver) = mpsc::channel(DEPTH);
    (Feed { sender }, FeedReader { receiver, current: Bytes::new(), ended: false })
}

impl Feed {
    /// False when the reader is gone.
    pub(super) async fn send(&self, mut chunk: Bytes) -> bool {
        while chunk.len() > CHUNK {
            if self.sender.send(Some(chunk.split_to(CHUNK))).await.is_err() {
                return false;
            }
        }
        self.sender.send(Some(chunk)).await.is_ok()
    }

    /// The stream is whole.
    pub(super) async fn end(self) {
        // A reader that is gone has its own error.
        let _ = self.sender.send(None).await;
    }
}

impl FeedReader {
    /// The next bytes as they came; none at the end.
    pub(super) fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        while self.current.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Some(chunk)) => self.current = chunk,
                Some(None) => self.ended = true,
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the download ended early")),
            }
        }
        Ok(Some(std::mem::take(&mut self.current)).filter(|chunk| !chunk.is_empty()))
    }
}

impl Read for FeedReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.current.is_empty() {
            self.current = self.next_chunk()?.unwrap_or_default();
        }
        let count = self.current.len().min(buffer.len());
        self.current.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}
