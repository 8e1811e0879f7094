//! Uploads under way: in memory, bounded, dropped after an hour without a byte.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt as _;
use http::StatusCode;
use orlop_distribution::blobs::{BlobStore, BlobWriter, StagedBlob};
use orlop_types::{Algorithm, Digest};

use crate::error::RegistryError;

const IDLE: Duration = Duration::from_secs(3600);
/// Bytes handed to the disk at one time.
const COPY_BYTES: usize = 1 << 20;
/// And pieces: the buffer behind a small one may be large.
const COPY_PIECES: usize = 32;

/// One upload; its lock is held while a chunk of it is written.
pub(crate) struct Upload {
    name: String,
    writer: tokio::sync::Mutex<Option<BlobWriter>>,
    touched: Mutex<Instant>,
}

/// All uploads.
pub(crate) struct Uploads {
    store: BlobStore,
    limit: usize,
    sessions: Mutex<HashMap<String, Arc<Upload>>>,
}

impl Uploads {
    /// Also removes what a killed predecessor left unfinished.
    pub(crate) fn open(store: BlobStore, limit: usize) -> anyhow::Result<Self> {
        for (_, path) in store.unfinished()? {
            std::fs::remove_file(path)?;
        }
        Ok(Self { store, limit, sessions: Mutex::default() })
    }

    pub(crate) fn count(&self) -> usize {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Starts an upload and gives its session.
    pub(crate) fn start(&self, name: &str, algorithm: Algorithm) -> Result<String, RegistryError> {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, upload| {
            upload.touched.lock().unwrap_or_else(PoisonError::into_inner).elapsed() < IDLE
        });
        if sessions.len() >= self.limit {
            let message = format!("{} uploads are under way already: try again later", self.limit);
            return Err(RegistryError::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", message));
        }
        let session = uuid::Uuid::new_v4().to_string();
        let writer = self.store.writer(&session, algorithm)?;
        let upload = Upload {
            name: name.to_owned(),
            writer: tokio::sync::Mutex::new(Some(writer)),
            touched: Mutex::new(Instant::now()),
        };
        sessions.insert(session.clone(), Arc::new(upload));
        Ok(session)
    }

    /// An upload of this repository.
    pub(crate) fn find(&self, name: &str, session: &str) -> Result<Arc<Upload>, RegistryError> {
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let upload = sessions.get(session).filter(|upload| upload.name == name).cloned();
        upload.ok_or_else(|| RegistryError::upload_unknown(session))
    }

    /// Forgets an upload; its file goes with it.
    pub(crate) fn cancel(&self, session: &str) {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(session);
    }

    /// Ends an upload: verifies it and syncs its bytes.
    pub(crate) async fn finish(
        &self,
        upload: &Upload,
        session: &str,
        expected: &Digest,
    ) -> Result<StagedBlob, RegistryError> {
        let writer =
            upload.writer.lock().await.take().ok_or_else(|| RegistryError::upload_unknown(session))?;
        self.cancel(session);
        let (store, expected, session) = (self.store.clone(), expected.clone(), session.to_owned());
        let committed = tokio::task::spawn_blocking(move || verify(&store, &session, writer, &expected));
        committed.await.map_err(|error| RegistryError::internal("store a blob", error))?
    }
}

fn verify(
    store: &BlobStore,
    session: &str,
    writer: BlobWriter,
    expected: &Digest,
) -> Result<StagedBlob, RegistryError> {
    // Hashed with the algorithm that the upload was started with; the digest may name another one.
    let staged = writer.finish(None, None)?;
    let staged = if staged.digest().algorithm() == expected.algorithm() {
        staged
    } else {
        rehash(store, session, &staged, expected.algorithm())?
    };
    if staged.digest() != expected {
        return Err(RegistryError::digest_invalid(format!(
            "the content has digest {}, not {expected}",
            staged.digest()
        )));
    }
    crate::repositories::Repositories::sync(&staged)?;
    Ok(staged)
}

fn rehash(
    store: &BlobStore,
    session: &str,
    staged: &StagedBlob,
    algorithm: Algorithm,
) -> Result<StagedBlob, RegistryError> {
    let mut writer = store.writer(session, algorithm)?;
    let copied =
        std::fs::File::open(staged.path()).and_then(|mut file| std::io::copy(&mut file, &mut writer));
    copied.map_err(|error| RegistryError::internal("hash a blob", error))?;
    Ok(writer.finish(None, None)?)
}

impl Upload {
    /// Bytes so far.
    pub(crate) async fn size(&self, session: &str) -> Result<u64, RegistryError> {
        let writer = self.writer.lock().await;
        writer.as_ref().map(BlobWriter::size).ok_or_else(|| RegistryError::upload_unknown(session))
    }

    /// Adds a body. `range` is where the client says it begins and ends.
    ///
    /// A body that is cut leaves what arrived: the client asks how much that is and goes on from there.
    pub(crate) async fn append(
        &self,
        session: &str,
        range: Option<(u64, u64)>,
        body: Body,
    ) -> Result<u64, RegistryError> {
        let mut held = self.writer.lock().await;
        let writer = held.as_mut().ok_or_else(|| RegistryError::upload_unknown(session))?;
        if let Some((begin, _)) = range
            && begin != writer.size()
        {
            let message = format!("the chunk begins at {begin}, but {} bytes are here", writer.size());
            return Err(RegistryError::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                "BLOB_UPLOAD_INVALID",
                message,
            ));
        }
        let outcome = self.receive(writer, body).await;
        outcome.map(|()| writer.size())
    }

    async fn receive(&self, writer: &mut BlobWriter, body: Body) -> Result<(), RegistryError> {
        let mut stream = body.into_data_stream();
        let (mut pieces, mut gathered) = (Vec::new(), 0);
        let outcome = loop {
            let chunk = match stream.next().await {
                Some(Ok(chunk)) => chunk,
                Some(Err(error)) => {
                    let message = format!("the body was cut: {error}");
                    break Err(RegistryError::new(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", message));
                }
                None => break Ok(()),
            };
            gathered += chunk.len();
            pieces.push(chunk);
            if gathered >= COPY_BYTES || pieces.len() >= COPY_PIECES {
                self.write(writer, &mut pieces)?;
                gathered = 0;
            }
        };
        // Before a cut, too.
        self.write(writer, &mut pieces)?;
        outcome
    }

    fn write(&self, writer: &mut BlobWriter, pieces: &mut Vec<Bytes>) -> Result<(), RegistryError> {
        // A megabyte to the page cache: short enough for the async thread pool's blocking section.
        tokio::task::block_in_place(|| pieces.drain(..).try_for_each(|piece| writer.append(&piece)))?;
        *self.touched.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        Ok(())
    }
}
