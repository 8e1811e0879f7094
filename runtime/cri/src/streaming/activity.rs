//! A connection that knows when it last moved a byte.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// When a connection last moved a byte, in either direction.
#[derive(Debug)]
pub(super) struct Activity {
    opened: Instant,
    /// Milliseconds after `opened`.
    last: AtomicU64,
}

impl Activity {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { opened: Instant::now(), last: AtomicU64::new(0) })
    }

    fn touch(&self) {
        let millis = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(millis, Ordering::Relaxed);
    }

    /// Returns when nothing has moved for `limit`.
    pub(super) async fn idle(&self, limit: Duration) {
        loop {
            let until = self.moved_at() + limit;
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }

    fn moved_at(&self) -> Instant {
        self.opened + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }
}

/// A transport that reports to an [`Activity`].
pub(super) struct Watched<T> {
    inner: T,
    activity: Arc<Activity>,
}

impl<T> Watched<T> {
    pub(super) fn new(inner: T, activity: Arc<Activity>) -> Self {
        Self { inner, activity }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_read(context, buffer);
        if polled.is_ready() {
            self.activity.touch();
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(context, bytes);
        if polled.is_ready() {
            self.activity.touch();
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn every_byte_in_either_direction_counts() {
        let activity = Activity::new();
        let (near, mut far) = tokio::io::duplex(64);
        let mut watched = Watched::new(near, activity.clone());
        // As if it had been silent since long ago.
        let silent = || activity.last.store(0, Ordering::Relaxed);
        while activity.opened.elapsed() < Duration::from_millis(1) {
            tokio::task::yield_now().await;
        }
        watched.write_all(b"x").await.unwrap();
        assert!(activity.moved_at() > activity.opened);
        silent();
        far.write_all(b"y").await.unwrap();
        assert_eq!(activity.moved_at(), activity.opened);
        assert_eq!(watched.read_u8().await.unwrap(), b'y');
        assert!(activity.moved_at() > activity.opened);
        // Ends at once when that was long enough ago, and not before.
        activity.idle(Duration::ZERO).await;
        assert!(futures::poll!(std::pin::pin!(activity.idle(Duration::from_secs(3600)))).is_pending());
    }
}
