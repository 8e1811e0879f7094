//! Where images are copied from: registries, or an archive.

use std::io::Read as _;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use orlop_distribution::archive::{Archive, BlobReader};
use orlop_distribution::client::{BlobDownload, RegistryClient, RegistryError};
use orlop_distribution::manifest::{Descriptor, MANIFEST_LIMIT, Manifest};
use orlop_types::{Digest, Reference};

/// Read from an archive at one time.
const READ_BYTES: usize = 1 << 20;

/// Where images are copied from.
pub(crate) enum Source {
    /// The registries that the names say, or what stands in for them.
    Registries(RegistryClient),
    /// An archive of any form.
    Archive(Arc<Archive>),
}

/// A manifest or index with its bytes.
pub(crate) struct Document {
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    pub(crate) bytes: Bytes,
    pub(crate) manifest: Manifest,
}

/// A blob on its way.
pub(crate) enum Blob {
    Download(Box<BlobDownload>),
    Archived(BlobReader),
}

impl Source {
    /// The manifest that a reference names.
    pub(crate) async fn manifest(&self, reference: &Reference) -> anyhow::Result<Document> {
        match self {
            Source::Registries(client) => {
                let found = client.manifest(reference, None).await?;
                let (digest, media_type) = (found.digest, found.media_type);
                Ok(Document { digest, media_type, bytes: found.bytes, manifest: found.manifest })
            }
            Source::Archive(archive) => {
                let digest = reference.digest().context("an archive is asked by digest")?;
                let bytes = archive.read(digest, MANIFEST_LIMIT)?.with_context(|| {
                    format!(
                        "manifest {digest} is not in {}, and the target has it not",
                        archive.path().display()
                    )
                })?;
                let manifest = Manifest::parse(&bytes, None).with_context(|| format!("manifest {digest}"))?;
                let media_type = manifest.media_type().to_owned();
                Ok(Document { digest: digest.clone(), media_type, bytes: bytes.into(), manifest })
            }
        }
    }

    /// As [`Source::manifest`], none when there is no such thing.
    pub(crate) async fn find(&self, reference: &Reference) -> anyhow::Result<Option<Document>> {
        match self.manifest(reference).await {
            Ok(document) => Ok(Some(document)),
            Err(error) => match error.downcast_ref() {
                // Registries say "denied" of tags that are not there, too.
                Some(RegistryError::NotFound { .. } | RegistryError::Unauthorized { .. }) => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// Whether everything has a name there, so that nothing needs to be looked for.
    pub(crate) fn names_everything(&self) -> bool {
        matches!(self, Source::Archive(_))
    }

    /// Whether a manifest can be had here; registries are believed to have what their indexes name.
    pub(crate) fn may_have(&self, digest: &Digest) -> bool {
        match self {
            Source::Registries(_) => true,
            Source::Archive(archive) => archive.size(digest).is_some(),
        }
    }

    /// What refers to a manifest.
    pub(crate) async fn referrers(
        &self,
        reference: &Reference,
        subject: &Digest,
    ) -> anyhow::Result<Vec<Descriptor>> {
        match self {
            Source::Registries(client) => Ok(client.referrers(reference, subject, None).await?),
            Source::Archive(_) => Ok(Vec::new()),
        }
    }

    /// Opens a blob.
    pub(crate) fn blob(&self, reference: &Reference, descriptor: &Descriptor) -> anyhow::Result<Blob> {
        match self {
            Source::Registries(client) => {
                let download = client.download(reference, descriptor, None, 0)?;
                Ok(Blob::Download(Box::new(download)))
            }
            Source::Archive(archive) => {
                let digest = &descriptor.digest;
                let opened = archive.open_blob(digest)?.with_context(|| {
                    format!("blob {digest} is not in {}, and the target has it not", archive.path().display())
                })?;
                Ok(Blob::Archived(opened))
            }
        }
    }
}

impl Blob {
    /// The next bytes; none at the end.
    pub(crate) async fn chunk(self) -> anyhow::Result<(Self, Option<Bytes>)> {
        match self {
            Blob::Download(mut download) => {
                let chunk = download.chunk().await?;
                Ok((Blob::Download(download), chunk))
            }
            Blob::Archived(mut reader) => {
                let read = move || {
                    let mut buffer = vec![0; READ_BYTES];
                    let count = reader.read(&mut buffer)?;
                    buffer.truncate(count);
                    anyhow::Ok((reader, buffer))
                };
                let (reader, buffer) = tokio::task::spawn_blocking(read).await??;
                let chunk = (!buffer.is_empty()).then(|| Bytes::from(buffer));
                Ok((Blob::Archived(reader), chunk))
            }
        }
    }
}
