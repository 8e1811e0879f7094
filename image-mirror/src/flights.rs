//! What is not here is fetched, once, however many clients ask: one flight per blob, and each client reads the growing file at its
//! own pace, from where it wants.
//!
//! ```text
//!   Asking (peers) -> Committed (upstream) -> Running (bytes arrive) -> Done
//!        \------------------\----------------------\---------> Failed
//! ```
//!
//! A source that breaks off is followed by the next one, from the byte where it was. A flight goes on when its clients leave: the blob is
//! wanted, and the next one finds it. It ends by the bounds of its sources.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use http::StatusCode;
use orlop_daemon::prometheus_client::metrics::counter::Counter;
use orlop_distribution::blobs::BlobStore;
use orlop_distribution::client::RegistryClient;
use orlop_distribution::manifest::Descriptor;
use orlop_types::{Digest, Reference};
use tokio::sync::watch;

use crate::error::RegistryError;
use crate::landing::Landing;
use crate::peers::{Node, PeerError, PeerSource};
use crate::repositories::Repositories;
use crate::upstream::{Upstream, refused};

/// Blobs that are fetched at the same time.
const FLIGHT_LIMIT: usize = 64;
/// A client's read of the growing file.
const READ_BYTES: u64 = 256 << 10;
/// How long a peer is kept waiting for the first bytes of a blob that we fetch; its own patience is a little longer.
const PEER_WAIT: Duration = Duration::from_secs(20);
/// Times that a peer that gave bytes and broke off is asked again.
const PEER_RESUMES: u32 = 2;
/// Blobs of which peers gave wrong content.
const SUSPECT_LIMIT: usize = 256;
/// How long only the upstream is asked for such a blob.
const SUSPICION: Duration = Duration::from_secs(600);

/// How far a flight is.
#[derive(Clone, Debug)]
pub(crate) enum Progress {
    Asking,
    Committed,
    Running {
        size: u64,
        bytes: u64,
    },
    /// All of it is here and right, but not on the disk yet.
    Verified {
        size: u64,
    },
    Done {
        size: u64,
    },
    Failed(RegistryError),
}

/// A blob that is to be had from somewhere.
pub(crate) struct Wanted {
    pub(crate) digest: Digest,
    pub(crate) size: Option<u64>,
    /// The repository that it becomes a fetched blob of; without one only the bytes are kept.
    pub(crate) name: Option<String>,
    /// Asked first, in order.
    pub(crate) peers: Vec<PeerSource>,
    pub(crate) upstream: Option<Reference>,
}

/// A blob on its way.
#[derive(Clone)]
pub(crate) struct Flight {
    file: Arc<File>,
    progress: watch::Receiver<Progress>,
    goes_upstream: bool,
    /// A peer that asked for it was told to go on alone.
    yielded: Arc<AtomicBool>,
}

/// A blob whose first bytes are here.
pub(crate) struct Growing {
    file: Arc<File>,
    size: u64,
    progress: watch::Receiver<Progress>,
}

/// The blobs on their way.
pub(crate) struct Flights {
    client: RegistryClient,
    upstream: Upstream,
    blobs: BlobStore,
    repositories: Repositories,
    running: Mutex<HashMap<Digest, Flight>>,
    /// When peers gave wrong content.
    suspects: Mutex<HashMap<Digest, Instant>>,
    pub(crate) fetches: Counter,
}

impl Flights {
    pub(crate) fn new(
        client: RegistryClient,
        upstream: Upstream,
        blobs: BlobStore,
        repositories: Repositories,
    ) -> Self {
        let (running, suspects, fetches) = Default::default();
        Self { client, upstream, blobs, repositories, running, suspects, fetches }
    }

    pub(crate) fn count(&self) -> usize {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    pub(crate) fn is_running(&self, digest: &Digest) -> bool {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).contains_key(digest)
    }

    /// Size of a blob that nobody described.
    pub(crate) async fn blob_size(
        &self,
        reference: &Reference,
        digest: &Digest,
    ) -> Result<u64, RegistryError> {
        let size = self.upstream.blob_size(reference, digest).await;
        size.map_err(|error| refused(&error, || RegistryError::blob_unknown(digest.as_str())))
    }

    /// Joins or starts the fetching of a blob.
    pub(crate) fn blob(self: &Arc<Self>, wanted: Wanted) -> Result<Flight, RegistryError> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = running.get(&wanted.digest) {
            return Ok(flight.clone());
        }
        if running.len() >= FLIGHT_LIMIT {
            let message = format!("{FLIGHT_LIMIT} blobs are fetched already: try again later");
            return Err(RegistryError::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", message));
        }
        let writer = self.blobs.writer("fetch", wanted.digest.algorithm())?;
        let file = File::open(writer.path())
            .map_err(|error| RegistryError::internal("read a fetched blob", error))?;
        let (sender, progress) = watch::channel(Progress::Asking);
        let flight = Flight {
            file: Arc::new(file),
            progress,
            goes_upstream: wanted.upstream.is_some(),
            yielded: Arc::default(),
        };
        running.insert(wanted.digest.clone(), flight.clone());
        drop(running);
        let (flights, yielded) = (self.clone(), flight.yielded.clone());
        // Bounded by FLIGHT_LIMIT.
        tokio::spawn(async move {
            let digest = wanted.digest.clone();
            let landing = Landing::new(writer, wanted.size, &sender);
            let outcome = flights.fly(wanted, landing, &yielded).await;
            // First out of the map: whoever comes now finds the blob, or starts again.
            flights.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&digest);
            sender.send_replace(match outcome {
                Ok(size) => Progress::Done { size },
                Err(error) => {
                    tracing::debug!(%digest, error = error.message, "blob was not fetched");
                    Progress::Failed(error)
                }
            });
        });
        Ok(flight)
    }

    /// A blob on its way, for a peer that asks for it: waits for the first bytes where that peer cannot be what we wait for ourselves.
    pub(crate) async fn peek(&self, digest: &Digest, own: Node, asker: Option<Node>) -> Option<Growing> {
        let flight = self.running.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned()?;
        let asking = matches!(*flight.progress.borrow(), Progress::Asking);
        if asking && !(flight.goes_upstream && asker.is_some_and(|asker| own < asker)) {
            flight.yielded.store(true, Ordering::Relaxed);
            return None;
        }
        tokio::time::timeout(PEER_WAIT, flight.ready()).await.ok()?.ok()
    }

    async fn fly(
        &self,
        wanted: Wanted,
        mut landing: Landing<'_>,
        yielded: &AtomicBool,
    ) -> Result<u64, RegistryError> {
        let Wanted { digest, size: _, name, peers, upstream } = wanted;
        let mut told = RegistryError::blob_unknown(digest.as_str());
        // Where nobody else has it the peers are asked all the same: nothing wrong is kept or completed.
        let trusted = upstream.is_none() || !self.is_suspect(&digest);
        let mut from_peers = false;
        let mut whole = false;
        // Twice when a peer was told meanwhile that it should go on alone: now that one has it on its way.
        for _ in 0..2 {
            yielded.store(false, Ordering::Relaxed);
            for peer in peers.iter().filter(|_| trusted) {
                match from_peer(peer, &mut landing).await {
                    Ok(()) => whole = true,
                    Err(Break::Ours(error)) => return Err(error),
                    Err(Break::Peer(PeerError::Missing { .. })) => continue,
                    Err(Break::Peer(error)) => {
                        tracing::debug!(%digest, %error, "a peer did not give a blob");
                        let message = error.to_string();
                        told = RegistryError::new(StatusCode::BAD_GATEWAY, "UNKNOWN", message);
                    }
                }
                from_peers |= landing.bytes() > 0;
                if whole {
                    break;
                }
            }
            if whole || !yielded.load(Ordering::Relaxed) {
                break;
            }
        }
        if !whole {
            let upstream = upstream.ok_or(told)?;
            landing.commit_to_upstream();
            self.take_from_upstream(&upstream, &digest, &mut landing).await?;
        }
        self.land(&digest, name, landing, from_peers).await
    }

    fn is_suspect(&self, digest: &Digest) -> bool {
        let suspects = self.suspects.lock().unwrap_or_else(PoisonError::into_inner);
        suspects.get(digest).is_some_and(|since| since.elapsed() < SUSPICION)
    }

    async fn take_from_upstream(
        &self,
        reference: &Reference,
        digest: &Digest,
        landing: &mut Landing<'_>,
    ) -> Result<(), RegistryError> {
        let size = match landing.size() {
            Some(size) => size,
            None => self.blob_size(reference, digest).await?,
        };
        landing.announce(size)?;
        let descriptor = Descriptor::new("application/octet-stream", digest.clone(), size);
        let unknown = || RegistryError::blob_unknown(digest.as_str());
        let download = self.client.download(reference, &descriptor, None, 0);
        let mut download = download.map_err(|error| refused(&error, unknown))?.starting_at(landing.bytes());
        self.fetches.inc();
        while let Some(chunk) = download.chunk().await.map_err(|error| refused(&error, unknown))? {
            landing.append(chunk).await?;
        }
        Ok(())
    }

    async fn land(
        &self,
        digest: &Digest,
        name: Option<String>,
        landing: Landing<'_>,
        from_peers: bool,
    ) -> Result<u64, RegistryError> {
        let staged = match landing.finish(digest).await {
            Ok(staged) => staged,
            Err(error) => {
                if from_peers {
                    tracing::warn!(%digest, "peers gave wrong content: the upstream alone is asked for a while");
                    let mut suspects = self.suspects.lock().unwrap_or_else(PoisonError::into_inner);
                    if suspects.len() >= SUSPECT_LIMIT {
                        suspects.clear();
                    }
                    suspects.insert(digest.clone(), Instant::now());
                }
                return Err(error);
            }
        };
        let size = staged.size();
        match &name {
            Some(name) => self.repositories.keep_blob(name, staged, true).await.map(drop)?,
            None => self.repositories.keep_bytes(staged).await?,
        }
        tracing::info!(repository = name, %digest, bytes = size, from_peers, "blob fetched");
        Ok(size)
    }
}

/// Why a source was left.
enum Break {
    Peer(PeerError),
    /// The disk, or content that cannot be: no other source helps.
    Ours(RegistryError),
}

async fn from_peer(peer: &PeerSource, landing: &mut Landing<'_>) -> Result<(), Break> {
    let mut resumes = 0;
    loop {
        let before = landing.bytes();
        let Err(error) = stream_from_peer(peer, landing).await else { return Ok(()) };
        let progress = landing.bytes() > before;
        match error {
            Break::Peer(PeerError::Unreachable { .. } | PeerError::Silent { .. })
                if progress && resumes < PEER_RESUMES =>
            {
                resumes += 1;
            }
            error => return Err(error),
        }
    }
}

async fn stream_from_peer(peer: &PeerSource, landing: &mut Landing<'_>) -> Result<(), Break> {
    let mut blob = peer.open(landing.bytes(), landing.size()).await.map_err(Break::Peer)?;
    landing.announce(blob.size()).map_err(Break::Ours)?;
    while let Some(chunk) = blob.chunk().await.map_err(Break::Peer)? {
        landing.append(chunk).await.map_err(Break::Ours)?;
    }
    Ok(())
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RegistryError> + Send + 'static,
) -> Result<T, RegistryError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(RegistryError::internal("store a fetched blob", error)))
}

fn gone<E>(_: E) -> RegistryError {
    RegistryError::internal("fetch a blob", "its task is gone")
}

impl Flight {
    /// Waits for the first bytes, or for what the last source said. Bounded as the sources are.
    pub(crate) async fn ready(mut self) -> Result<Growing, RegistryError> {
        let started = |progress: &Progress| !matches!(progress, Progress::Asking | Progress::Committed);
        let size = match &*self.progress.wait_for(started).await.map_err(gone)? {
            Progress::Running { size, .. } | Progress::Verified { size } | Progress::Done { size } => *size,
            Progress::Failed(error) => return Err(error.clone()),
            Progress::Asking | Progress::Committed => return Err(gone(())),
        };
        Ok(Growing { file: self.file, size, progress: self.progress })
    }

    /// Waits for the end.
    pub(crate) async fn landed(mut self) -> Result<(), RegistryError> {
        let ended = |progress: &Progress| matches!(progress, Progress::Done { .. } | Progress::Failed(_));
        match &*self.progress.wait_for(ended).await.map_err(gone)? {
            Progress::Failed(error) => Err(error.clone()),
            Progress::Asking
            | Progress::Committed
            | Progress::Running { .. }
            | Progress::Verified { .. }
            | Progress::Done { .. } => Ok(()),
        }
    }
}

impl Growing {
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// A part of the blob, as its bytes arrive. What a source gave may turn out wrong at its end; the client sees a cut then, and
    /// it verifies the digest, as every registry client does.
    pub(crate) fn body(self, begin: u64, length: u64) -> Body {
        let chunks = stream::unfold(Some((self, begin, length)), |state| async move {
            let (mut growing, offset, left) = state.filter(|(_, _, left)| *left > 0)?;
            match growing.next(offset, left).await {
                Ok(data) => {
                    let count = data.len() as u64;
                    Some((Ok(data), Some((growing, offset + count, left - count))))
                }
                Err(error) => Some((Err(error), None)),
            }
        });
        Body::from_stream(chunks)
    }

    async fn next(&mut self, offset: u64, left: u64) -> io::Result<Bytes> {
        // The last byte waits for the digest, though not for the disk: a client must not take wrong content for whole.
        let last = self.size.saturating_sub(1);
        let ready = |progress: &Progress| match progress {
            Progress::Asking | Progress::Committed => false,
            Progress::Running { bytes, .. } => *bytes > offset && offset < last,
            Progress::Verified { .. } | Progress::Done { .. } | Progress::Failed(_) => true,
        };
        let available = match &*self.progress.wait_for(ready).await.map_err(io::Error::other)? {
            Progress::Running { bytes, .. } => (*bytes).min(last),
            Progress::Verified { .. } | Progress::Done { .. } | Progress::Asking | Progress::Committed => {
                self.size
            }
            Progress::Failed(error) => return Err(io::Error::other(error.message.clone())),
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
