//! Tags, manifests, blobs and referrers of repositories: what the endpoints ask of the records and the blob store.
//!
//! Bytes are synced before they are handed over, put in their place by the records' thread, and visible when the row that names them
//! is on the disk.

use std::path::PathBuf;

use orlop_distribution::blobs::{BlobStore, StagedBlob};
use orlop_distribution::manifest::{Descriptor, Manifest};
use orlop_types::Digest;

use crate::error::RegistryError;
use crate::records::{Change, Kind, ManifestRow, Part, Records, RecordsError, Row, Value};

/// The records of all repositories, and their bytes.
#[derive(Clone)]
pub(crate) struct Repositories {
    pub(crate) records: Records,
    blobs: BlobStore,
    /// A blob that was stated longer ago is stated again with the manifest that names it: half the time after which a pair's other half
    /// may have forgotten it, so that their clocks may differ by as much.
    renew_ms: u64,
}

/// What a stored change is called; see [`Records::last`].
pub(crate) type Number = u64;

/// A manifest that is to be kept.
pub(crate) struct NewManifest {
    pub(crate) name: String,
    pub(crate) digest: Digest,
    pub(crate) row: ManifestRow,
    pub(crate) tags: Vec<String>,
    pub(crate) staged: StagedBlob,
}

impl Repositories {
    pub(crate) fn open(records: Records, blobs: BlobStore, lease_ms: u64) -> Self {
        Self { records, blobs, renew_ms: lease_ms / 2 }
    }

    /// Whether anything is stored under a name.
    pub(crate) fn exists(&self, name: &str) -> Result<bool, RecordsError> {
        self.records.exists(name)
    }

    /// Repositories that hold a manifest, in order, after `from`, at most `limit`.
    pub(crate) fn names(&self, from: Option<&str>, limit: usize) -> Result<Vec<String>, RecordsError> {
        self.records.names(from, limit)
    }

    /// A repository that a blob may be mounted from.
    pub(crate) fn holder(&self, digest: &Digest) -> Result<Option<String>, RecordsError> {
        let owners = self.records.owners(digest)?;
        Ok(owners.into_iter().find(|(kind, _)| *kind == Kind::Blob).map(|(_, name)| name))
    }

    /// The digest of a tag, and whether an upstream gave it, so that the upstream knows better.
    pub(crate) fn tag(&self, name: &str, tag: &str) -> Result<Option<(Digest, bool)>, RecordsError> {
        for (kind, fetched) in [(Kind::Tag, false), (Kind::FetchedTag, true)] {
            if let Some(Value::Tag(digest)) = self.records.value(&Row::new(kind, name, tag))? {
                return Ok(Some((digest, fetched)));
            }
        }
        Ok(None)
    }

    /// Tags after `from`, in the order that the specification asks for, at most `limit`.
    pub(crate) fn tags(
        &self,
        name: &str,
        from: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, RecordsError> {
        let mut tags = Vec::new();
        for kind in [Kind::Tag, Kind::FetchedTag] {
            tags.extend(self.records.rows(kind, name, from, limit)?.into_iter().map(|(tag, _)| tag));
        }
        tags.sort();
        tags.dedup();
        tags.truncate(limit);
        Ok(tags)
    }

    /// What is known of a manifest; none when the repository does not hold it.
    pub(crate) fn manifest(&self, name: &str, digest: &Digest) -> Result<Option<ManifestRow>, RecordsError> {
        match self.records.value(&Row::new(Kind::Manifest, name, digest.as_str()))? {
            Some(Value::Manifest(row)) => Ok(Some(row)),
            _ => Ok(None),
        }
    }

    /// Whether a blob belongs to a repository.
    pub(crate) fn has_blob(&self, name: &str, digest: &Digest) -> Result<bool, RecordsError> {
        Ok(self.records.value(&Row::new(Kind::Blob, name, digest.as_str()))?.is_some())
    }

    /// The size of a blob as the repository knows it, here or not.
    pub(crate) fn blob_size(&self, name: &str, digest: &Digest) -> Result<Option<u64>, RecordsError> {
        match self.records.value(&Row::new(Kind::Blob, name, digest.as_str()))? {
            Some(Value::Blob { size, .. }) => Ok(Some(size)),
            _ => self.records.announced_size(name, digest),
        }
    }

    /// The descriptors of manifests whose subject is `subject`.
    pub(crate) fn referrers(&self, name: &str, subject: &Digest) -> Result<Vec<Descriptor>, RecordsError> {
        let mut found = Vec::new();
        for digest in self.records.referrers(name, subject)? {
            let Ok(digest) = digest.parse::<Digest>() else { continue };
            if let Some(row) = self.manifest(name, &digest)? {
                let mut descriptor = Descriptor::new(&row.media_type, digest, row.size);
                descriptor.artifact_type = row.artifact_type;
                descriptor.annotations = row.annotations;
                found.push(descriptor);
            }
        }
        Ok(found)
    }

    /// Syncs bytes that wait for their place. Blocks.
    pub(crate) fn sync(staged: &StagedBlob) -> Result<(), RegistryError> {
        let synced = std::fs::File::open(staged.path()).and_then(|file| file.sync_all());
        synced.map_err(|error| RegistryError::from(RecordsError::from(redb::Error::Io(error))))
    }

    /// Stages a document that is in memory. Blocks.
    pub(crate) fn stage(&self, digest: &Digest, bytes: &[u8]) -> Result<StagedBlob, RegistryError> {
        let mut writer = self.blobs.writer("manifest", digest.algorithm())?;
        writer.append(bytes)?;
        let staged = writer.finish(Some(digest), Some(bytes.len() as u64))?;
        Self::sync(&staged)?;
        Ok(staged)
    }

    /// Where the bytes are or would be.
    pub(crate) fn path(&self, digest: &Digest) -> PathBuf {
        self.blobs.path(digest)
    }

    fn directory(&self, digest: &Digest) -> PathBuf {
        let path = self.path(digest);
        path.parent().map_or(path.clone(), std::path::Path::to_owned)
    }

    /// Keeps a pushed manifest and moves its tags. The inner error names the blob of it that is not in the repository.
    pub(crate) async fn push_manifest(
        &self,
        new: NewManifest,
        needs: Vec<Digest>,
    ) -> Result<Result<Number, Digest>, RecordsError> {
        let directory = self.directory(&new.digest);
        let renew_ms = self.renew_ms;
        let stored = self.records.write(move |change| {
            let renew_before_ms = change.now_ms().saturating_sub(renew_ms);
            for digest in &needs {
                let known = change.value(&Row::new(Kind::Blob, &new.name, digest.as_str()))?.is_some();
                if !known || change.used_ms(digest)?.is_none() {
                    return Ok(Err(digest.clone()));
                }
            }
            for digest in needs {
                change.renew_blob(&new.name, &digest, renew_before_ms)?;
            }
            keep_manifest(change, new, directory, Kind::Tag)?;
            Ok(Ok(change.last()))
        });
        stored.await
    }

    /// Keeps a manifest as an upstream gave it.
    pub(crate) async fn fetch_manifest(&self, new: NewManifest) -> Result<(), RecordsError> {
        let directory = self.directory(&new.digest);
        let stored =
            self.records.write(move |change| keep_manifest(change, new, directory, Kind::FetchedTag));
        stored.await
    }

    /// Points a fetched tag at a manifest that is here.
    pub(crate) async fn set_fetched_tag(
        &self,
        name: &str,
        tag: &str,
        digest: &Digest,
    ) -> Result<(), RecordsError> {
        let (row, value) = (Row::new(Kind::FetchedTag, name, tag), Value::Tag(digest.clone()));
        self.records.write(move |change| change.set(&row, Some(value)).map(drop)).await
    }

    /// Puts a synced blob in its place and makes it the repository's.
    pub(crate) async fn keep_blob(
        &self,
        name: &str,
        staged: StagedBlob,
        fetched: bool,
    ) -> Result<Number, RecordsError> {
        let row = Row::new(Kind::Blob, name, staged.digest().as_str());
        let directory = self.directory(staged.digest());
        let value = Value::Blob { size: staged.size(), fetched };
        let stored = self.records.write(move |change| {
            change.keep(staged, directory)?;
            change.set(&row, Some(value))?;
            Ok(change.last())
        });
        stored.await
    }

    /// Puts synced bytes in their place; nothing wants them yet.
    pub(crate) async fn keep_bytes(&self, staged: StagedBlob) -> Result<(), RecordsError> {
        let directory = self.directory(staged.digest());
        self.records.write(move |change| change.keep(staged, directory)).await
    }

    /// Whether bytes are here.
    pub(crate) fn holds(&self, digest: &Digest) -> Result<bool, RecordsError> {
        Ok(self.records.is_counted(digest)? && self.blobs.size(digest)?.is_some())
    }

    /// Makes a blob of one repository another one's too; false when it is not the first one's any more.
    pub(crate) async fn mount_blob(
        &self,
        name: &str,
        from: &str,
        digest: &Digest,
    ) -> Result<bool, RecordsError> {
        let source = Row::new(Kind::Blob, from, digest.as_str());
        let target = Row::new(Kind::Blob, name, digest.as_str());
        let digest = digest.clone();
        let stored = self.records.write(move |change| {
            let Some(Value::Blob { size, .. }) = change.value(&source)? else { return Ok(false) };
            if change.used_ms(&digest)?.is_none() {
                return Ok(false);
            }
            change.set(&target, Some(Value::Blob { size, fetched: false }))?;
            change.touch(digest.as_str(), change.now_ms())?;
            Ok(true)
        });
        stored.await
    }

    /// Removes a tag, pushed or fetched; false when there was none.
    pub(crate) async fn remove_tag(&self, name: &str, tag: &str) -> Result<bool, RecordsError> {
        let rows = [Kind::Tag, Kind::FetchedTag].map(|kind| Row::new(kind, name, tag));
        let stored = self.records.write(move |change| {
            let mut removed = false;
            for row in &rows {
                if change.value(row)?.is_some() {
                    removed |= change.set(row, None)?;
                }
            }
            Ok(removed)
        });
        stored.await
    }

    /// Removes a manifest and every tag that names it.
    pub(crate) async fn remove_manifest(&self, name: &str, digest: &Digest) -> Result<bool, RecordsError> {
        let (name, digest) = (name.to_owned(), digest.clone());
        let stored = self.records.write(move |change| {
            let row = Row::new(Kind::Manifest, &name, digest.as_str());
            if change.value(&row)?.is_none() {
                return Ok(false);
            }
            for kind in [Kind::Tag, Kind::FetchedTag] {
                for (tag, value) in change.rows(kind, &name)? {
                    if value == Value::Tag(digest.clone()) {
                        change.set(&tag, None)?;
                    }
                }
            }
            change.set(&row, None)
        });
        stored.await
    }

    /// Takes a blob out of a repository. The bytes may belong to others too.
    pub(crate) async fn remove_blob(&self, name: &str, digest: &Digest) -> Result<bool, RecordsError> {
        let row = Row::new(Kind::Blob, name, digest.as_str());
        let stored = self.records.write(move |change| match change.value(&row)? {
            Some(_) => change.set(&row, None),
            None => Ok(false),
        });
        stored.await
    }
}

/// The manifest before its tags, in which order peers read them.
fn keep_manifest(
    change: &mut Change<'_>,
    new: NewManifest,
    directory: PathBuf,
    tags: Kind,
) -> Result<(), RecordsError> {
    change.keep(new.staged, directory)?;
    let row = Row::new(Kind::Manifest, &new.name, new.digest.as_str());
    change.set(&row, Some(Value::Manifest(new.row)))?;
    for tag in &new.tags {
        change.set(&Row::new(tags, &new.name, tag), Some(Value::Tag(new.digest.clone())))?;
    }
    Ok(())
}

/// An empty type is none ("Listing Referrers").
fn stated(artifact_type: Option<&String>) -> Option<String> {
    artifact_type.filter(|text| !text.is_empty()).cloned()
}

/// What is remembered of a manifest.
pub(crate) fn manifest_row(manifest: &Manifest, media_type: &str, size: u64, fetched: bool) -> ManifestRow {
    let part = |descriptor: &Descriptor| Part { digest: descriptor.digest.clone(), size: descriptor.size };
    let (artifact_type, annotations, parts) = match manifest {
        Manifest::Image(image) => (
            stated(image.artifact_type.as_ref()).or_else(|| Some(image.config.media_type.clone())),
            image.annotations.clone(),
            // Layers with addresses of their own live elsewhere (image-spec, non-distributable layers).
            std::iter::once(&image.config)
                .chain(image.layers.iter().filter(|layer| layer.urls.is_empty()))
                .map(part)
                .collect(),
        ),
        Manifest::Index(index) => (
            stated(index.artifact_type.as_ref()),
            index.annotations.clone(),
            index.manifests.iter().map(part).collect(),
        ),
    };
    ManifestRow {
        media_type: media_type.to_owned(),
        size,
        fetched,
        subject: manifest.subject().map(|subject| subject.digest.clone()),
        artifact_type,
        annotations,
        parts,
    }
}
