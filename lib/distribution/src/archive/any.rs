//! Takes this machine's images into a store out of what [`Archive`] reads: layouts deep in an archive, registries' trees, skopeo's `dir`.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::Path;

use orlop_types::{Digest, Reference};

use super::contents::{Archive, Root, Strictness};
use super::{ArchiveError, ArchiveImage, ReadOptions, StagedArchive, merge};
use crate::blobs::{BlobError, BlobStore, StagedBlob};
use crate::manifest::{CONFIG_LIMIT, ConfigSummary, MANIFEST_LIMIT, Manifest, is_image_config, layer_kind};

/// Indexes in indexes.
const DEPTH: usize = 4;

struct Staging<'a> {
    archive: Archive,
    store: &'a BlobStore,
    session: &'a str,
    have: &'a dyn Fn(&Digest) -> Result<bool, BlobError>,
    blobs: HashMap<Digest, StagedBlob>,
}

pub(super) fn stage(
    path: &Path,
    store: &BlobStore,
    session: &str,
    have: &dyn Fn(&Digest) -> Result<bool, BlobError>,
    options: &ReadOptions,
) -> Result<StagedArchive, ArchiveError> {
    let archive = Archive::open(path, &store.ingest_dir(), Strictness::Lenient)?;
    let mut staging = Staging { archive, store, session, have, blobs: HashMap::new() };
    let mut images = Vec::new();
    for root in staging.archive.roots() {
        if let Some(mut image) = staging.resolve(root, options)? {
            image
                .names
                .extend(root.name_with(options.base_name.as_ref()).filter(|name| name.tag().is_some()));
            images.push(image);
        }
    }
    merge(&mut images);
    if images.is_empty() {
        let reason = "no container image in it".to_owned();
        return Err(ArchiveError::Format { path: path.to_owned(), reason });
    }
    for image in &images {
        for digest in image.needs() {
            staging.stage(digest)?;
        }
    }
    Ok(StagedArchive { images, blobs: staging.blobs })
}

impl Staging<'_> {
    fn entry(&self, entry: &str, reason: impl std::fmt::Display) -> ArchiveError {
        let (path, reason) = (self.archive.path().to_owned(), reason.to_string());
        ArchiveError::Entry { path, entry: entry.to_owned(), reason }
    }

    fn document(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, ArchiveError> {
        if let Some(bytes) = self.archive.read(digest, limit)? {
            return Ok(bytes);
        }
        let stored = if (self.have)(digest)? { self.store.read(digest, limit)? } else { None };
        stored.ok_or_else(|| self.entry(digest.as_str(), "is missing: the archive is incomplete"))
    }

    /// Follows a root down to this machine's manifest; none for signatures and other artifacts.
    fn resolve(&self, root: &Root, options: &ReadOptions) -> Result<Option<ArchiveImage>, ArchiveError> {
        let manifest_error = |digest: &Digest, source| ArchiveError::Manifest {
            path: self.archive.path().to_owned(),
            digest: digest.clone(),
            source,
        };
        let target = root.descriptor.digest.clone();
        let (mut digest, mut indexes) = (target.clone(), Vec::new());
        for _ in 0..DEPTH {
            let bytes = self.document(&digest, MANIFEST_LIMIT)?;
            let manifest =
                match Manifest::parse(&bytes, None).map_err(|error| manifest_error(&digest, error))? {
                    Manifest::Index(index) => {
                        let chosen =
                            index.choose(&options.host).map_err(|error| manifest_error(&digest, error))?;
                        let chosen = chosen.digest.clone();
                        indexes.push(std::mem::replace(&mut digest, chosen));
                        continue;
                    }
                    Manifest::Image(manifest) => *manifest,
                };
            let is_image = is_image_config(&manifest.config.media_type) && manifest.subject.is_none();
            // cosign keeps signatures as images whose layers are no layers.
            if !is_image || manifest.layers.iter().any(|layer| layer_kind(&layer.media_type).is_none()) {
                return Ok(None);
            }
            manifest.check_layers().map_err(|error| manifest_error(&digest, error))?;
            let config = self.document(&manifest.config.digest, CONFIG_LIMIT)?;
            let config = ConfigSummary::parse(&config, &manifest, &options.host)
                .map_err(|error| manifest_error(&manifest.config.digest, error))?;
            let names: Vec<Reference> = Vec::new();
            return Ok(Some(ArchiveImage {
                names,
                target,
                indexes,
                manifest_digest: digest,
                manifest,
                config,
            }));
        }
        Err(self.entry(target.as_str(), "indexes are nested too deeply"))
    }

    fn stage(&mut self, digest: &Digest) -> Result<(), ArchiveError> {
        if self.blobs.contains_key(digest) || (self.have)(digest)? {
            return Ok(());
        }
        let Some(mut reader) = self.archive.open_blob(digest)? else {
            return Err(self.entry(digest.as_str(), "is missing: the archive is incomplete"));
        };
        let mut writer = self.store.writer(self.session, digest.algorithm())?;
        let mut buffer = vec![0u8; 128 * 1024];
        loop {
            // Read and write apart: an error of the archive must not look like one of the store.
            match reader.read(&mut buffer).map_err(|error| self.entry(digest.as_str(), error))? {
                0 => break,
                count => writer.append(&buffer[..count])?,
            }
        }
        let staged = match writer.finish(Some(digest), None) {
            Err(error @ BlobError::Digest(_)) => return Err(self.entry(digest.as_str(), error)),
            result => result?,
        };
        self.blobs.insert(digest.clone(), staged);
        Ok(())
    }
}
