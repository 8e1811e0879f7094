use std::sync::Arc;

use orlop_distribution::blobs::{BlobError, BlobWriter};
use orlop_distribution::client::{BlobDownload, RegistryError};
use orlop_distribution::manifest::{Descriptor, LayerKind, layer_kind};
use orlop_types::{Digest, DigestError};

use super::feed::{Feed, FeedReader, feed};
use super::{Pull, blocking};
use crate::ImageError;
use crate::layers::StagedLayer;
use crate::lease::Lease;
use crate::store::Inner;
use crate::unpack::{Budget, UnpackError};

/// One layer of an image.
pub(super) struct LayerPlan {
    pub(super) layer: Descriptor,
    pub(super) diff_id: Digest,
    /// Chain ids from the bottom to this layer.
    pub(super) chain: Vec<Digest>,
}

impl LayerPlan {
    fn chain_id(&self) -> &Digest {
        self.chain.last().expect("the chain holds at least the layer itself")
    }
}

pub(super) fn wrong_content(download: &BlobDownload, digest: &Digest, error: &DigestError) -> RegistryError {
    RegistryError::Content {
        host: download.host_name().to_owned(),
        digest: digest.clone(),
        reason: error.to_string(),
    }
}

/// A registry need not hold such a layer. The URLs that its descriptor may name are not followed: whoever writes a manifest must not
/// choose whom this machine talks to.
fn foreign(plan: &LayerPlan, error: ImageError) -> ImageError {
    let missing = matches!(&error, ImageError::Registry { source: RegistryError::NotFound { .. }, .. });
    if missing && layer_kind(&plan.layer.media_type) == Some(LayerKind::Foreign) {
        return ImageError::Foreign { digest: plan.layer.digest.clone() };
    }
    error
}

/// What came out of one attempt.
enum Attempt {
    Done(Option<StagedLayer>),
    WrongContent(DigestError),
}

impl Pull<'_> {
    /// Makes sure that the blob is stored, and unpacks it on the way if the layer is not there. None when the layer is there, or has to
    /// be unpacked in order from the stored blob.
    pub(super) async fn fetch_layer(&self, plan: &LayerPlan) -> Result<Option<StagedLayer>, ImageError> {
        let lock = self.inner.puller.lock_of(&plan.layer.digest);
        let _lock = lock.lock().await;
        let (inner, lease) = (Arc::clone(self.inner), Arc::clone(&self.lease));
        let (layer, chain_id) = (plan.layer.clone(), plan.chain_id().clone());
        let (has_blob, has_layer) = blocking(move || {
            lease.keep_blob(&layer.digest)?;
            lease.keep_layer(&chain_id)?;
            let size = inner.blobs.size(&layer.digest)?;
            if let Some(actual) = size.filter(|size| *size != layer.size) {
                return Err(BlobError::Size { digest: layer.digest, expected: layer.size, actual }.into());
            }
            Ok((size.is_some(), inner.layers.exists(&chain_id)))
        })
        .await?;
        if has_blob {
            return Ok(None);
        }
        self.progress.expect(plan.layer.size);
        let _permit = self.inner.puller.downloads.acquire().await.expect("the semaphore is never closed");
        if self.cancelled.is_cancelled() {
            return Err(ImageError::Interrupted("another layer failed".to_owned()));
        }
        let mut skip = 0;
        loop {
            let client = &self.inner.puller.client;
            let download = client.download(self.reference, &plan.layer, self.credential, skip);
            let mut download = download.map_err(|error| self.failed(error))?;
            let attempt =
                self.attempt(plan, &mut download, !has_layer).await.map_err(|error| foreign(plan, error))?;
            match attempt {
                Attempt::Done(staged) => return Ok(staged),
                Attempt::WrongContent(error) if download.host_index() + 1 < download.host_count() => {
                    tracing::warn!(host = download.host_name(), %error, "wrong content, the next host is asked");
                    skip = download.host_index() + 1;
                }
                Attempt::WrongContent(error) => {
                    return Err(self.failed(wrong_content(&download, &plan.layer.digest, &error)));
                }
            }
        }
    }

    /// Downloads, stores and unpacks in one pass. Whatever happens, its threads have ended when it returns.
    async fn attempt(
        &self,
        plan: &LayerPlan,
        download: &mut BlobDownload,
        unpack: bool,
    ) -> Result<Attempt, ImageError> {
        let (write_feed, write_reader) = feed();
        let (inner, lease, layer) = (Arc::clone(self.inner), Arc::clone(&self.lease), plan.layer.clone());
        let writing = tokio::task::spawn_blocking(move || {
            let writer = inner.blobs.writer(lease.session(), layer.digest.algorithm())?;
            write(writer, write_reader, &layer)
        });
        let unpacking = unpack.then(|| {
            let (unpack_feed, reader) = feed();
            let (inner, lease) = (Arc::clone(self.inner), Arc::clone(&self.lease));
            let (budget, diff_id) = (Arc::clone(&self.budget), plan.diff_id.clone());
            let task = tokio::task::spawn_blocking(move || {
                inner.layers.stage(lease.session(), reader, &diff_id, None, &budget)
            });
            (unpack_feed, task)
        });
        let (unpack_feed, unpack_task) = unpacking.unzip();
        let pumped = tokio::select! {
            pumped = self.pump(download, write_feed, unpack_feed) => pumped,
            () = self.cancelled.cancelled() => Err(ImageError::Interrupted("another layer failed".to_owned())),
        };
        let interrupted = |error: tokio::task::JoinError| ImageError::Interrupted(error.to_string());
        let unpacked = match unpack_task {
            Some(task) => Some(task.await.map_err(interrupted)?),
            None => None,
        };
        let written = writing.await.map_err(interrupted)?;
        if let Some(Err(source)) = unpacked.as_ref().map(Result::as_ref)
            && is_final(source)
        {
            let Some(Err(source)) = unpacked else { unreachable!("it was looked at a line above") };
            return Err(ImageError::Unpack { digest: plan.layer.digest.clone(), source });
        }
        pumped?;
        match written {
            Ok(()) => {}
            Err(BlobError::Digest(error)) => return Ok(Attempt::WrongContent(error)),
            Err(error) => return Err(error.into()),
        }
        match unpacked {
            None | Some(Err(UnpackError::NeedsLower)) => Ok(Attempt::Done(None)),
            Some(Ok(staged)) => Ok(Attempt::Done(Some(staged))),
            Some(Err(source)) => Err(ImageError::Unpack { digest: plan.layer.digest.clone(), source }),
        }
    }

    /// Moves chunks from the network to those who want them, at the pace of the slowest.
    async fn pump(
        &self,
        download: &mut BlobDownload,
        write: Feed,
        mut unpack: Option<Feed>,
    ) -> Result<(), ImageError> {
        while let Some(chunk) = download.chunk().await.map_err(|error| self.failed(error))? {
            self.progress.add(chunk.len());
            if let Some(feed) = &unpack
                && !feed.send(chunk.clone()).await
            {
                // It has an error, or read all it wanted; the blob is still of use.
                unpack = None;
            }
            if !write.send(chunk).await {
                // The writer's own error is reported by its task.
                return Ok(());
            }
        }
        write.end().await;
        if let Some(feed) = unpack {
            feed.end().await;
        }
        Ok(())
    }
}

/// Whether the bytes that came so far are enough to refuse the layer: a stream that is cut or corrupt may be right from another host.
fn is_final(error: &UnpackError) -> bool {
    match error {
        UnpackError::Limit { .. } | UnpackError::Write { .. } => true,
        UnpackError::Stream(_) | UnpackError::Entry { .. } | UnpackError::NeedsLower => false,
    }
}

/// Writes the stream into a blob and commits it once it has the right digest.
fn write(mut writer: BlobWriter, mut reader: FeedReader, layer: &Descriptor) -> Result<(), BlobError> {
    let failed = |source| BlobError::Io { act: "receive", path: layer.digest.to_string().into(), source };
    while let Some(chunk) = reader.next_chunk().map_err(failed)? {
        writer.append(&chunk)?;
    }
    writer.finish(Some(&layer.digest), Some(layer.size))?.commit()
}

impl Inner {
    /// Gives a layer its place on top of those below, which have theirs already.
    pub(super) fn settle_layer(
        &self,
        lease: &Lease,
        plan: &LayerPlan,
        staged: Option<StagedLayer>,
        budget: &Budget,
    ) -> Result<(), ImageError> {
        let chain_id = plan.chain_id();
        if self.layers.exists(chain_id) {
            return Ok(());
        }
        let digest = &plan.layer.digest;
        if let Some(staged) = staged {
            let lower = self.layers.lower_view(&plan.chain[..plan.chain.len() - 1])?;
            match self.layers.adopt_lower(&staged, &lower) {
                Ok(()) => return self.layers.commit(staged, chain_id),
                Err(UnpackError::NeedsLower) => {
                    tracing::debug!(%digest, "layer is unpacked again on top of the layers below");
                }
                Err(source) => return Err(ImageError::Unpack { digest: digest.clone(), source }),
            }
        }
        self.unpack_stored(lease, digest, &plan.diff_id, &plan.chain, budget)
    }
}
