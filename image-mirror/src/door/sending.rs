//! Files that go from the page cache to a socket without passing through this process (sendfile(2)).
//!
//! hyper knows only bytes in memory. A body of a file therefore gives it pieces of [`BLANK`], which nobody ever reads, and notes here
//! which part of the file each of them stands for; on its way to the socket a piece is known by its address.
//!
//! Invariant: pieces and parts come in the same order and have the same lengths: a part is noted when its piece is handed out, and a
//! connection that loses one is closed.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use rustix::io::ReadWriteFlags;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// Handed to the kernel at one time.
const PIECE: usize = 1 << 20;
/// Below this a file is read: a copy costs less than the detour. Also more than any head: memory of that length that is written while
/// parts wait would be a piece that was copied.
pub(crate) const WORTH_BYTES: u64 = 256 << 10;

static BLANK: [u8; PIECE] = [0; PIECE];

/// A part of a file that is to be sent.
struct Part {
    file: Arc<File>,
    offset: u64,
    left: usize,
}

/// The parts that a connection is to send; cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Outbox(Arc<Mutex<VecDeque<Part>>>);

impl Outbox {
    fn parts(&self) -> MutexGuard<'_, VecDeque<Part>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A body that only the connection of this outbox may send.
    pub(crate) fn body(&self, file: File, begin: u64, length: u64) -> Body {
        let state = (self.clone(), Arc::new(file), begin, length);
        Body::from_stream(stream::unfold(state, |(outbox, file, offset, left)| async move {
            let length = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            if length == 0 {
                return None;
            }
            outbox.parts().push_back(Part { file: file.clone(), offset, left: length });
            let piece = Bytes::from_static(&BLANK[..length]);
            Some((Ok::<_, io::Error>(piece), (outbox, file, offset + length as u64, left - length as u64)))
        }))
    }
}

fn is_blank(bytes: &[u8]) -> bool {
    !bytes.is_empty() && BLANK.as_ptr_range().contains(&bytes.as_ptr())
}

/// A socket with its outbox.
pub(super) struct Sending {
    stream: TcpStream,
    outbox: Outbox,
}

impl Sending {
    pub(super) fn new(stream: TcpStream, outbox: Outbox) -> Self {
        Self { stream, outbox }
    }

    fn poll_part(&self, context: &mut Context<'_>, length: usize) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(context))?;
            let mut parts = self.outbox.parts();
            let Some(part) = parts.front_mut() else {
                return Poll::Ready(Err(io::Error::other("a piece stands for no part of a file")));
            };
            let length = length.min(part.left);
            match self.stream.try_io(Interest::WRITABLE, || send(&self.stream, part, length)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Ok(sent) => {
                    part.left -= sent;
                    if part.left == 0 {
                        parts.pop_front();
                    }
                    return Poll::Ready(Ok(sent));
                }
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn check(&self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() as u64 >= WORTH_BYTES && !self.outbox.parts().is_empty() {
            return Err(io::Error::other("a piece was copied on its way"));
        }
        Ok(())
    }
}

fn send(stream: &TcpStream, part: &mut Part, length: usize) -> io::Result<usize> {
    let Part { file, offset, .. } = part;
    let mut byte = [0];
    let looked =
        rustix::io::preadv2(&**file, &mut [IoSliceMut::new(&mut byte)], *offset, ReadWriteFlags::NOWAIT);
    let mut act = || rustix::fs::sendfile(stream, &**file, Some(offset), length);
    // What is not in memory waits for the disk, which other connections must not.
    let sent = if looked == Ok(1) { act() } else { tokio::task::block_in_place(act) };
    Ok(sent?)
}

impl AsyncWrite for Sending {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if is_blank(bytes) {
            return self.poll_part(context, bytes.len());
        }
        self.check(bytes)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let slices = &slices[slices.iter().position(|slice| !slice.is_empty()).unwrap_or(0)..];
        if let Some(piece) = slices.first().filter(|slice| is_blank(slice)) {
            return self.poll_part(context, piece.len());
        }
        let plain = slices.iter().position(|slice| is_blank(slice)).unwrap_or(slices.len());
        slices[..plain].iter().try_for_each(|slice| self.check(slice))?;
        Pin::new(&mut self.stream).poll_write_vectored(context, &slices[..plain])
    }

    fn is_write_vectored(&self) -> bool {
        // Otherwise hyper would copy the pieces.
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl AsyncRead for Sending {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}
