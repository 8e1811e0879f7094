//! What is not here is fetched, once, however many clients ask: one flight per blob, and each client reads the growing file at its
//! own pace, from where it wants.
//!
//! A flight goes on when its clients leave: the blob is wanted, and the next one finds it. It ends by the client's own bounds.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use http::StatusCode;
use orlop_daemon::prometheus_client::metrics::counter::Counter;
use orlop_distribution::blobs::{BlobStore, BlobWriter};
use orlop_distribution::client::{BlobDownload, RegistryClient};
use orlop_distribution::manifest::Descriptor;
use orlop_types::{Digest, Reference};
use tokio::sync::watch;

use crate::error::RegistryError;
use crate::repositories::Repositories;
use crate::upstream::refused;

/// Blobs that are fetched at the same time.
const FLIGHT_LIMIT: usize = 64;
/// Bytes that are gathered before they are written.
const COPY_BYTES: usize = 1 << 20;
/// A client's read of the growing file.
const READ_BYTES: u64 = 256 << 10;

/// How far a flight is.
#[derive(Clone, Debug)]
enum Progress {
    Running(u64),
    Done,
    Failed(String),
}

/// A blob on its way.
#[derive(Clone)]
pub(crate) struct Flight {
    file: Arc<File>,
    size: u64,
    progress: watch::Receiver<Progress>,
}

/// The blobs on their way.
pub(crate) struct Flights {
    client: RegistryClient,
    blobs: BlobStore,
    repositories: Repositories,
    running: Mutex<HashMap<Digest, Flight>>,
    pub(crate) fetches: Counter,
}

impl Flights {
    pub(crate) fn new(client: RegistryClient, blobs: BlobStore, repositories: Repositories) -> Self {
        Self { client, blobs, repositories, running: Mutex::default(), fetches: Counter::default() }
    }

    pub(crate) fn count(&self) -> usize {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Size of a blob that nobody described.
    pub(crate) async fn blob_size(
        &self,
        reference: &Reference,
        digest: &Digest,
    ) -> Result<u64, RegistryError> {
        let size = self.client.blob_size(reference, digest, None).await;
        size.map_err(|error| refused(&error, || RegistryError::blob_unknown(digest.as_str())))
    }

    /// Joins or starts the fetching of a blob.
    pub(crate) async fn blob(
        self: &Arc<Self>,
        name: &str,
        reference: &Reference,
        digest: &Digest,
        size: Option<u64>,
    ) -> Result<Flight, RegistryError> {
        if let Some(flight) = self.running(digest) {
            return Ok(flight);
        }
        let size = match size {
            Some(size) => size,
            None => self.blob_size(reference, digest).await?,
        };
        let descriptor = Descriptor::new("application/octet-stream", digest.clone(), size);
        let download = self.client.download(reference, &descriptor, None, 0);
        let download =
            download.map_err(|error| refused(&error, || RegistryError::blob_unknown(digest.as_str())))?;
        self.take_off(name, descriptor, download)
    }

    pub(crate) fn is_running(&self, digest: &Digest) -> bool {
        self.running(digest).is_some()
    }

    fn running(&self, digest: &Digest) -> Option<Flight> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned()
    }

    fn take_off(
        self: &Arc<Self>,
        name: &str,
        descriptor: Descriptor,
        download: BlobDownload,
    ) -> Result<Flight, RegistryError> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = running.get(&descriptor.digest) {
            return Ok(flight.clone());
        }
        if running.len() >= FLIGHT_LIMIT {
            let message = format!("{FLIGHT_LIMIT} blobs are fetched already: try again later");
            return Err(RegistryError::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", message));
        }
        let writer = self.blobs.writer("fetch", descriptor.digest.algorithm())?;
        let file = File::open(writer.path())
            .map_err(|error| RegistryError::internal("read a fetched blob", error))?;
        let (sender, progress) = watch::channel(Progress::Running(0));
        let flight = Flight { file: Arc::new(file), size: descriptor.size, progress };
        running.insert(descriptor.digest.clone(), flight.clone());
        drop(running);
        self.fetches.inc();
        let (flights, name) = (self.clone(), name.to_owned());
        // Bounded by FLIGHT_LIMIT.
        tokio::spawn(async move {
            let digest = descriptor.digest.clone();
            let outcome = flights.fetch(&name, descriptor, download, writer, &sender).await;
            // First out of the map: whoever comes now finds the blob, or starts again.
            flights.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&digest);
            sender.send_replace(match outcome {
                Ok(()) => Progress::Done,
                Err(error) => {
                    tracing::warn!(%digest, error = error.message, "blob was not fetched");
                    Progress::Failed(error.message)
                }
            });
        });
        Ok(flight)
    }

    async fn fetch(
        &self,
        name: &str,
        descriptor: Descriptor,
        mut download: BlobDownload,
        mut writer: BlobWriter,
        progress: &watch::Sender<Progress>,
    ) -> Result<(), RegistryError> {
        let mut pieces: Vec<Bytes> = Vec::new();
        let mut gathered = 0;
        loop {
            let chunk = download.chunk().await;
            let chunk = chunk.map_err(|error| {
                refused(&error, || RegistryError::blob_unknown(descriptor.digest.as_str()))
            })?;
            let ended = chunk.is_none();
            gathered += chunk.as_ref().map_or(0, Bytes::len);
            pieces.extend(chunk);
            // The first bytes go on at once: a client may have a short timeout for them.
            if ended || gathered >= COPY_BYTES || writer.size() == 0 {
                let batch = std::mem::take(&mut pieces);
                gathered = 0;
                writer = blocking(move || {
                    for piece in &batch {
                        writer.append(piece)?;
                    }
                    writer.flush().map_err(|error| RegistryError::internal("write a fetched blob", error))?;
                    Ok(writer)
                })
                .await?;
                progress.send_replace(Progress::Running(writer.size()));
            }
            if ended {
                break;
            }
        }
        let (digest, size) = (descriptor.digest.clone(), descriptor.size);
        let staged = blocking(move || {
            let staged = writer.finish(Some(&digest), Some(size))?;
            Repositories::sync(&staged)?;
            Ok(staged)
        })
        .await?;
        self.repositories.keep_blob(name, staged, true).await?;
        tracing::info!(repository = name, digest = %descriptor.digest, bytes = descriptor.size, "blob fetched");
        Ok(())
    }
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RegistryError> + Send + 'static,
) -> Result<T, RegistryError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(RegistryError::internal("store a fetched blob", error)))
}

impl Flight {
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// A part of the blob, as its bytes arrive. What the upstream gave may turn out wrong at its end; the client sees a cut then, and
    /// it verifies the digest, as every registry client does.
    pub(crate) fn body(self, begin: u64, length: u64) -> Body {
        let chunks = stream::unfold(Some((self, begin, length)), |state| async move {
            let (mut flight, offset, left) = state.filter(|(_, _, left)| *left > 0)?;
            match flight.next(offset, left).await {
                Ok(data) => {
                    let count = data.len() as u64;
                    Some((Ok(data), Some((flight, offset + count, left - count))))
                }
                Err(error) => Some((Err(error), None)),
            }
        });
        Body::from_stream(chunks)
    }

    async fn next(&mut self, offset: u64, left: u64) -> io::Result<Bytes> {
        // The last byte waits for the end: a client must not take wrong content for whole.
        let last = self.size.saturating_sub(1);
        let ready = |progress: &Progress| match progress {
            Progress::Running(bytes) => *bytes > offset && offset < last,
            Progress::Done | Progress::Failed(_) => true,
        };
        let available = match &*self.progress.wait_for(ready).await.map_err(io::Error::other)? {
            Progress::Running(bytes) => (*bytes).min(last),
            Progress::Done => self.size,
            Progress::Failed(error) => return Err(io::Error::other(error.clone())),
        };
        let want = left.min(available.saturating_sub(offset)).min(READ_BYTES);
        let file = self.file.clone();
        let read = tokio::task::spawn_blocking(move || {
            let mut buffer = vec![0_u8; usize::try_from(want).unwrap_or(0)];
            file.read_exact_at(&mut buffer, offset)?;
            Ok(Bytes::from(buffer))
        });
        read.await.map_err(io::Error::other)?
    }
}
