//! The file that a fetched blob grows in.

use std::io::Write as _;

use bytes::Bytes;
use http::StatusCode;
use orlop_distribution::blobs::{BlobWriter, StagedBlob};
use orlop_types::Digest;
use tokio::sync::watch;

use crate::error::RegistryError;
use crate::flights::{Progress, blocking};
use crate::repositories::Repositories;

/// Bytes that are gathered before they are written.
const COPY_BYTES: usize = 1 << 20;

/// Bytes from one source after the other, and what is told of them.
pub(crate) struct Landing<'p> {
    /// None only while a write is under way, and after one that failed.
    writer: Option<BlobWriter>,
    size: Option<u64>,
    pieces: Vec<Bytes>,
    gathered: usize,
    written: u64,
    progress: &'p watch::Sender<Progress>,
}

fn lost() -> RegistryError {
    RegistryError::internal("write a fetched blob", "an earlier write failed")
}

impl<'p> Landing<'p> {
    pub(crate) fn new(writer: BlobWriter, size: Option<u64>, progress: &'p watch::Sender<Progress>) -> Self {
        Self { writer: Some(writer), size, pieces: Vec::new(), gathered: 0, written: 0, progress }
    }

    /// What is here, written or about to be.
    pub(crate) fn bytes(&self) -> u64 {
        self.written + self.gathered as u64
    }

    pub(crate) fn size(&self) -> Option<u64> {
        self.size
    }

    /// No peer has it: nobody is waited for but the upstream.
    pub(crate) fn commit_to_upstream(&self) {
        self.progress.send_if_modified(|progress| {
            let asking = matches!(progress, Progress::Asking);
            if asking {
                *progress = Progress::Committed;
            }
            asking
        });
    }

    /// A source says how long the blob is. Clients are told with the first bytes, so that a source without any is no answer yet.
    pub(crate) fn announce(&mut self, size: u64) -> Result<(), RegistryError> {
        match self.size.replace(size) {
            Some(known) if known != size => {
                self.size = Some(known);
                let message = format!("a blob of {size} bytes, {known} were announced");
                Err(RegistryError::new(StatusCode::BAD_GATEWAY, "UNKNOWN", message))
            }
            _ => Ok(()),
        }
    }

    pub(crate) async fn append(&mut self, chunk: Bytes) -> Result<(), RegistryError> {
        let size = self.size.unwrap_or(0);
        if self.bytes() + chunk.len() as u64 > size {
            let message = format!("more than the announced {size} bytes");
            return Err(RegistryError::new(StatusCode::BAD_GATEWAY, "UNKNOWN", message));
        }
        self.gathered += chunk.len();
        self.pieces.push(chunk);
        // The first bytes go on at once: a client may have a short timeout for them.
        if self.gathered >= COPY_BYTES || self.written == 0 {
            self.write().await?;
        }
        Ok(())
    }

    async fn write(&mut self) -> Result<(), RegistryError> {
        let mut writer = self.writer.take().ok_or_else(lost)?;
        let batch = std::mem::take(&mut self.pieces);
        let writer = blocking(move || {
            for piece in &batch {
                writer.append(piece)?;
            }
            writer.flush().map_err(|error| RegistryError::internal("write a fetched blob", error))?;
            Ok(writer)
        });
        let writer = writer.await?;
        self.written = writer.size();
        self.gathered = 0;
        self.writer = Some(writer);
        let size = self.size.unwrap_or(self.written);
        self.progress.send_replace(Progress::Running { size, bytes: self.written });
        Ok(())
    }

    /// Verifies what came and syncs it.
    pub(crate) async fn finish(mut self, digest: &Digest) -> Result<StagedBlob, RegistryError> {
        if self.gathered > 0 {
            self.write().await?;
        }
        let writer = self.writer.take().ok_or_else(lost)?;
        let (digest, size) = (digest.clone(), self.size);
        let staged = blocking(move || Ok(writer.finish(Some(&digest), size)?)).await?;
        self.progress.send_replace(Progress::Verified { size: staged.size() });
        let synced = blocking(move || {
            Repositories::sync(&staged)?;
            Ok(staged)
        });
        synced.await
    }
}
