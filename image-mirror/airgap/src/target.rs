//! Where images are copied to: a registry, or an image layout in a directory.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
use orlop_distribution::Credential;
use orlop_distribution::blobs::{BlobStore, Durability};
use orlop_distribution::client::{RegistryClient, Started};
use orlop_distribution::manifest::{Descriptor, ImageIndex, MANIFEST_LIMIT, Manifest, OCI_INDEX};
use orlop_types::{Digest, Reference};

use crate::layout;
use crate::source::{Blob, Document};

/// Where images are copied to.
pub(crate) enum Target {
    Registry(RegistryTarget),
    Layout(LayoutTarget),
}

/// What became of a blob.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Came {
    /// It was there.
    Had,
    /// The registry took it over from another repository.
    Mounted,
    /// It was copied.
    Copied,
}

/// A registry. An image keeps its name there: `docker.io/library/x` becomes `REGISTRY/PREFIX/docker.io/library/x`. A registry with a
/// port cannot stand in a path; such an image is pushed under its own name with `?ns=`, as mirrors are asked for it.
pub(crate) struct RegistryTarget {
    client: RegistryClient,
    credential: Option<Credential>,
    authority: String,
    prefix: String,
    flat: bool,
    /// Where a blob is known to be.
    holders: Mutex<HashMap<Digest, String>>,
}

/// An image layout in a directory.
pub(crate) struct LayoutTarget {
    directory: PathBuf,
    blobs: BlobStore,
    entries: Mutex<BTreeMap<String, Descriptor>>,
    _lock: std::fs::File,
}

impl RegistryTarget {
    pub(crate) fn new(client: RegistryClient, credential: Option<Credential>, at: &Address) -> Self {
        let credential =
            credential.map(|credential| Credential { server_address: at.authority.clone(), ..credential });
        let (authority, prefix) = (at.authority.clone(), at.prefix.clone());
        Self { client, credential, authority, prefix, flat: at.flat, holders: Mutex::default() }
    }

    fn name(&self, source: &Reference) -> anyhow::Result<Reference> {
        let identifier = match (source.tag(), source.digest()) {
            (Some(tag), _) => format!(":{tag}"),
            (None, Some(digest)) => format!("@{digest}"),
            (None, None) => String::new(),
        };
        let path = match (self.flat, source.registry().contains(':')) {
            (true, _) => source.repository().to_owned(),
            (false, true) if self.prefix.is_empty() => {
                let name = format!("{}{identifier}", source.name());
                return Reference::parse(&name).context("image name");
            }
            (false, _) => {
                format!("{}/{}", source.registry().replace([':', '[', ']'], "_"), source.repository())
            }
        };
        let name = format!("{}/{}{path}{identifier}", self.authority, self.prefix);
        Reference::parse(&name).with_context(|| format!("{source} has no name at the target"))
    }

    fn credential(&self) -> Option<&Credential> {
        self.credential.as_ref()
    }

    async fn blob(
        &self,
        name: &Reference,
        descriptor: &Descriptor,
        open: impl FnOnce() -> anyhow::Result<Blob>,
    ) -> anyhow::Result<Came> {
        let digest = &descriptor.digest;
        if self.client.has_blob(name, digest, self.credential()).await? {
            self.hold(digest, name);
            return Ok(Came::Had);
        }
        let holder = self.holders.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned();
        let mount = Some((digest, holder.as_deref()));
        let mut upload = match self.client.start_upload(name, mount, self.credential()).await? {
            Started::Mounted => return Ok(Came::Mounted),
            Started::Upload(upload) => upload,
        };
        let mut blob = open()?;
        let mut waiting = BytesMut::new();
        loop {
            let (rest, chunk) = blob.chunk().await?;
            blob = rest;
            let Some(chunk) = chunk else { break };
            waiting.extend_from_slice(&chunk);
            // The last piece travels with the closing request, so that a small blob costs two requests.
            while waiting.len() > upload.chunk_bytes() {
                let piece = waiting.split_to(upload.chunk_bytes()).freeze();
                upload.append(piece).await?;
            }
        }
        upload.finish(waiting.freeze(), digest).await?;
        self.hold(digest, name);
        Ok(Came::Copied)
    }

    fn hold(&self, digest: &Digest, name: &Reference) {
        let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        holders.entry(digest.clone()).or_insert_with(|| name.repository().to_owned());
    }

    /// Adds to the index under the tag that stands in for the referrers API (distribution-spec, "Pushing Manifests with Subject").
    async fn add_referrer(
        &self,
        name: &Reference,
        subject: &Digest,
        descriptor: Descriptor,
    ) -> anyhow::Result<()> {
        let tag = name.with_tag(&format!("{}-{}", subject.algorithm().name(), subject.hex()))?;
        let known = match self.client.stored_manifest(&tag, self.credential()).await? {
            None => None,
            Some(_) => match self.client.manifest(&tag, self.credential()).await?.manifest {
                Manifest::Index(index) => Some(*index),
                Manifest::Image(_) => None,
            },
        };
        let mut index = known.unwrap_or_else(empty_index);
        if index.manifests.iter().any(|entry| entry.digest == descriptor.digest) {
            return Ok(());
        }
        index.manifests.push(descriptor);
        let bytes = serde_json::to_vec(&index)?;
        let digest = Digest::sha256(&bytes);
        self.client.put_manifest(&tag, &digest, OCI_INDEX, bytes.into(), self.credential()).await?;
        Ok(())
    }
}

fn empty_index() -> ImageIndex {
    ImageIndex {
        schema_version: 2,
        media_type: Some(OCI_INDEX.to_owned()),
        artifact_type: None,
        manifests: Vec::new(),
        subject: None,
        annotations: None,
    }
}

impl LayoutTarget {
    /// Opens or makes the directory; what an earlier run left unfinished goes.
    pub(crate) fn open(directory: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("failed to make {}", directory.display()))?;
        let path = directory.join("oci-layout");
        let lock = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("failed to open {}", path.display()))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .with_context(|| format!("{} is being written by another process", directory.display()))?;
        let blobs = BlobStore::open(directory, Durability::Caller)?;
        for (_, path) in blobs.unfinished()? {
            std::fs::remove_file(&path).with_context(|| format!("failed to remove {}", path.display()))?;
        }
        let entries = layout::read_index(directory)?;
        if lock.metadata()?.len() == 0 {
            layout::replace(&path, layout::VERSION_FILE)?;
        }
        Ok(Self { directory: directory.to_owned(), blobs, entries: Mutex::new(entries), _lock: lock })
    }

    async fn blob(
        &self,
        descriptor: &Descriptor,
        open: impl FnOnce() -> anyhow::Result<Blob>,
    ) -> anyhow::Result<Came> {
        if self.blobs.size(&descriptor.digest)? == Some(descriptor.size) {
            return Ok(Came::Had);
        }
        let mut blob = open()?;
        let mut writer = self.blobs.writer("sync", descriptor.digest.algorithm())?;
        loop {
            let (rest, chunk) = blob.chunk().await?;
            blob = rest;
            let Some(chunk) = chunk else { break };
            writer = tokio::task::spawn_blocking(move || writer.append(&chunk).map(|()| writer)).await??;
        }
        writer.finish(Some(&descriptor.digest), Some(descriptor.size))?.commit()?;
        Ok(Came::Copied)
    }

    fn put(&self, document: &Document) -> anyhow::Result<()> {
        if !matches!(self.blobs.read(&document.digest, MANIFEST_LIMIT), Ok(Some(_))) {
            self.blobs.put("sync", &document.digest, &document.bytes)?;
        }
        Ok(())
    }

    /// Names a manifest; an image's bytes are on the disk before.
    fn name(&self, reference: &Reference, document: &Document) -> anyhow::Result<()> {
        let reference = &match reference.tag() {
            Some(tag) => reference.with_tag(tag)?,
            None => reference.clone(),
        };
        let size = document.bytes.len() as u64;
        let descriptor = Descriptor::new(&document.media_type, document.digest.clone(), size);
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let descriptor = layout::named(descriptor, reference);
        if entries.get(&reference.to_string()) == Some(&descriptor) {
            return Ok(());
        }
        entries.insert(reference.to_string(), descriptor);
        let directory = std::fs::File::open(&self.directory)?;
        rustix::fs::syncfs(&directory).context("failed to sync the layout")?;
        layout::replace(&self.directory.join("index.json"), &layout::index(&entries))
    }
}

/// A registry's address: `http[s]://HOST[:PORT][/PREFIX]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) url: String,
    pub(crate) authority: String,
    prefix: String,
    flat: bool,
}

impl Address {
    pub(crate) fn parse(text: &str, flat: bool) -> anyhow::Result<Self> {
        let uri: http::Uri = text.parse().with_context(|| format!("{text:?} is no URL"))?;
        let scheme = uri.scheme_str().unwrap_or_default();
        let authority = uri.authority().map(|authority| authority.as_str().to_owned()).unwrap_or_default();
        anyhow::ensure!(
            matches!(scheme, "http" | "https") && !authority.is_empty() && !authority.contains('@'),
            "{text:?} is no registry's URL such as https://mirror.example:5000"
        );
        let prefix = uri.path().trim_matches('/');
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Self { url: format!("{scheme}://{authority}"), authority, prefix, flat })
    }
}

impl Target {
    /// Whether a manifest is there, by digest, with everything below it.
    pub(crate) async fn has(&self, reference: &Reference, digest: &Digest) -> anyhow::Result<bool> {
        match self {
            Target::Registry(target) => {
                let name = target.name(&reference.with_digest(digest.clone()))?;
                Ok(target.client.stored_manifest(&name, target.credential()).await?.is_some())
            }
            // After a loss of power a file may have its name and no content.
            Target::Layout(target) => Ok(matches!(target.blobs.read(digest, MANIFEST_LIMIT), Ok(Some(_)))),
        }
    }

    /// Reads a manifest that is there.
    pub(crate) async fn manifest(&self, reference: &Reference, digest: &Digest) -> anyhow::Result<Document> {
        let (media_type, bytes, manifest) = match self {
            Target::Registry(target) => {
                let name = target.name(&reference.with_digest(digest.clone()))?;
                let found = target.client.manifest(&name, target.credential()).await?;
                (found.media_type, found.bytes, found.manifest)
            }
            Target::Layout(target) => {
                let bytes = target.blobs.read(digest, MANIFEST_LIMIT)?;
                let bytes = Bytes::from(bytes.with_context(|| format!("manifest {digest} is gone"))?);
                let manifest = Manifest::parse(&bytes, None)?;
                (manifest.media_type().to_owned(), bytes, manifest)
            }
        };
        Ok(Document { digest: digest.clone(), media_type, bytes, manifest })
    }

    /// Brings a blob, unless it is there; `open` is called only when it is needed.
    pub(crate) async fn blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        open: impl FnOnce() -> anyhow::Result<Blob>,
    ) -> anyhow::Result<Came> {
        match self {
            Target::Registry(target) => {
                let name = target.name(&reference.with_digest(descriptor.digest.clone()))?;
                target.blob(&name, descriptor, open).await
            }
            Target::Layout(target) => target.blob(descriptor, open).await,
        }
    }

    /// Stores a manifest by its digest. What it needs is there.
    pub(crate) async fn put(&self, reference: &Reference, document: &Document) -> anyhow::Result<()> {
        match self {
            Target::Registry(target) => {
                let name = target.name(&reference.with_digest(document.digest.clone()))?;
                self.push(target, &name, document).await
            }
            Target::Layout(target) => target.put(document),
        }
    }

    /// Stores a manifest under its name. What it needs is there.
    pub(crate) async fn put_named(&self, reference: &Reference, document: &Document) -> anyhow::Result<()> {
        match self {
            Target::Registry(target) => {
                let name = target.name(reference)?;
                let there = target.client.stored_manifest(&name, target.credential()).await?;
                if there.as_ref() == Some(&document.digest) {
                    return Ok(());
                }
                self.push(target, &name, document).await
            }
            Target::Layout(target) => {
                target.put(document)?;
                target.name(reference, document)
            }
        }
    }

    async fn push(
        &self,
        target: &RegistryTarget,
        name: &Reference,
        document: &Document,
    ) -> anyhow::Result<()> {
        let (media_type, bytes) = (&document.media_type, document.bytes.clone());
        let stored =
            target.client.put_manifest(name, &document.digest, media_type, bytes, target.credential());
        let noted = stored.await.map_err(|error| match &document.manifest {
            Manifest::Index(_) => anyhow::Error::from(error).context(
                "the index was refused: some registries want every image of an index, see --platform all",
            ),
            Manifest::Image(_) => error.into(),
        })?;
        if let (Some(subject), false) = (document.manifest.subject(), noted) {
            let mut descriptor =
                Descriptor::new(media_type, document.digest.clone(), document.bytes.len() as u64);
            if let Manifest::Image(image) = &document.manifest {
                descriptor.artifact_type =
                    image.artifact_type.clone().or_else(|| Some(image.config.media_type.clone()));
                descriptor.annotations.clone_from(&image.annotations);
            }
            target.add_referrer(name, &subject.digest, descriptor).await?;
        }
        Ok(())
    }

    /// Ends a copy.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        if let Target::Layout(target) = self {
            // Only our own store needs it.
            let _ = std::fs::remove_dir(target.blobs.ingest_dir());
            let _ = std::fs::remove_dir(target.directory.join("blobs/sha512"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_at_a_registry() {
        let digest = Digest::sha256(b"x");
        for (url, flat, source, expected) in [
            ("http://m:5000", false, "nginx:1", "m:5000/docker.io/library/nginx:1".to_owned()),
            ("http://m:5000/a/b/", false, "quay.io/x", "m:5000/a/b/quay.io/x:latest".into()),
            ("http://m:5000", false, "r:1/x:2", "r:1/x:2".into()),
            ("http://m:5000/p", false, "r:1/x:2", "m:5000/p/r_1/x:2".into()),
            ("http://m:5000", true, "r:1/x:2", "m:5000/x:2".into()),
            ("http://m:5000", false, &format!("quay.io/x@{digest}"), format!("m:5000/quay.io/x@{digest}")),
        ] {
            let address = Address::parse(url, flat).unwrap();
            let client = RegistryClient::new(orlop_distribution::client::ClientConfig::default());
            let target = RegistryTarget::new(client, None, &address);
            let name = target.name(&Reference::parse(source).unwrap()).unwrap();
            assert_eq!(name.to_string(), expected);
        }
        for text in ["m:5000", "ftp://m", "http://", "http://a@b"] {
            assert!(Address::parse(text, false).is_err(), "{text}");
        }
    }
}
