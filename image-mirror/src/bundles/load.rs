//! One archive into the registry: bottom up, each blob compared with its digest, what is there passed over.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use orlop_airgap::bundle::{Bundle, Trust};
use orlop_distribution::archive::Archive;
use orlop_distribution::blobs::{BlobStore, StagedBlob};
use orlop_distribution::manifest::{Descriptor, MANIFEST_LIMIT, Manifest};
use orlop_types::{Digest, Reference};

use crate::registry::Registry;
use crate::repositories::{NewManifest, Repositories, manifest_row};

/// Indexes in indexes.
const DEPTH: usize = 4;
/// Read and written at one time.
const COPY_BYTES: usize = 256 << 10;

/// An archive on its way into one repository.
struct Load<'a> {
    repositories: &'a Repositories,
    blobs: &'a BlobStore,
    archive: Arc<Archive>,
    name: String,
}

/// Takes in what an archive has names for; gives their number.
pub(super) async fn load(registry: &Registry, path: &Path, trust: &Trust) -> anyhow::Result<usize> {
    let (path, trust, spool) = (path.to_owned(), trust.clone(), registry.blobs.ingest_dir());
    let opened = tokio::task::spawn_blocking(move || Bundle::open(&path, &spool, &trust)).await??;
    let archive = Arc::new(opened.archive);
    let mut names: Vec<(Reference, &Descriptor)> =
        archive.roots().iter().filter_map(|root| Some((root.name_with(None)?, &root.descriptor))).collect();
    anyhow::ensure!(!names.is_empty(), "no image in it has a name");
    // What refers to something is taken after it: names by digest come last.
    names.sort_by_key(|(name, _)| name.tag().is_none());
    let count = names.len();
    for (name, descriptor) in names {
        let load = Load {
            repositories: &registry.repositories,
            blobs: &registry.blobs,
            archive: archive.clone(),
            name: name.name(),
        };
        let tags = name.tag().map(str::to_owned).into_iter().collect();
        load.manifest(&descriptor.digest, tags, 0).await.with_context(|| name.to_string())?;
    }
    Ok(count)
}

impl Load<'_> {
    fn manifest<'a>(
        &'a self,
        digest: &'a Digest,
        tags: Vec<String>,
        depth: usize,
    ) -> BoxFuture<'a, anyhow::Result<()>> {
        async move {
            anyhow::ensure!(depth < DEPTH, "indexes are nested too deeply");
            let (archive, wanted) = (self.archive.clone(), digest.clone());
            let read = tokio::task::spawn_blocking(move || archive.read(&wanted, MANIFEST_LIMIT)).await??;
            let bytes = read.with_context(|| format!("manifest {digest} is missing"))?;
            let manifest = Manifest::parse(&bytes, None).with_context(|| format!("manifest {digest}"))?;
            let media_type = manifest.media_type().to_owned();
            let row = manifest_row(&manifest, &media_type, bytes.len() as u64, false);
            let mut needs = Vec::new();
            match &manifest {
                Manifest::Index(index) => {
                    // Images of other platforms may have been left out.
                    for child in
                        index.manifests.iter().filter(|child| self.archive.size(&child.digest).is_some())
                    {
                        self.manifest(&child.digest, Vec::new(), depth + 1).await?;
                    }
                }
                Manifest::Image(image) => {
                    let layers = image.layers.iter().filter(|layer| layer.urls.is_empty());
                    for blob in std::iter::once(&image.config).chain(layers) {
                        self.blob(blob).await.with_context(|| format!("blob {}", blob.digest))?;
                        needs.push(blob.digest.clone());
                    }
                }
            }
            let staged = self.stage(digest, Source::Bytes(bytes)).await?;
            let new = NewManifest { name: self.name.clone(), digest: digest.clone(), row, tags, staged };
            let stored = self.repositories.push_manifest(new, needs).await?;
            stored.map(drop).map_err(|missing| anyhow::anyhow!("blob {missing} was removed meanwhile"))
        }
        .boxed()
    }

    async fn blob(&self, descriptor: &Descriptor) -> anyhow::Result<()> {
        let digest = &descriptor.digest;
        if self.repositories.has_blob(&self.name, digest)? && self.blobs.size(digest)?.is_some() {
            return Ok(());
        }
        if self.blobs.size(digest)?.is_some()
            && let Some(holder) = self.repositories.holder(digest)?
            && self.repositories.mount_blob(&self.name, &holder, digest).await?
        {
            return Ok(());
        }
        let staged = self.stage(digest, Source::Archive(self.archive.clone())).await?;
        anyhow::ensure!(
            staged.size() == descriptor.size,
            "it has {} bytes, {} are announced",
            staged.size(),
            descriptor.size
        );
        self.repositories.keep_blob(&self.name, staged, false).await?;
        Ok(())
    }

    async fn stage(&self, digest: &Digest, source: Source) -> anyhow::Result<StagedBlob> {
        let (store, digest) = (self.blobs.clone(), digest.clone());
        tokio::task::spawn_blocking(move || stage(&store, &digest, source)).await?
    }
}

enum Source {
    Bytes(Vec<u8>),
    Archive(Arc<Archive>),
}

/// Writes and syncs.
fn stage(store: &BlobStore, digest: &Digest, source: Source) -> anyhow::Result<StagedBlob> {
    use std::io::Read as _;
    let mut writer = store.writer("bundle", digest.algorithm())?;
    match source {
        Source::Bytes(bytes) => writer.append(&bytes)?,
        Source::Archive(archive) => {
            let mut reader = archive.open_blob(digest)?.context("it is neither in the archive nor here")?;
            let mut buffer = vec![0; COPY_BYTES];
            loop {
                let count = reader.read(&mut buffer).context("failed to read the archive")?;
                if count == 0 {
                    break;
                }
                writer.append(&buffer[..count])?;
            }
        }
    }
    let staged = writer.finish(Some(digest), None)?;
    std::fs::File::open(staged.path()).and_then(|file| file.sync_all()).context("failed to sync")?;
    Ok(staged)
}
