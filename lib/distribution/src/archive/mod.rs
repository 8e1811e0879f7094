//! Image archives: `docker save` tars, OCI image layouts, registries' trees, as tar or directory, plain or compressed.
//!
//! [`Archive`] finds what is there and gives any of it; [`stage`] takes this machine's images into a store. It stages everything under `ingest/` and verifies every digest before the caller sees an image, so that a damaged archive
//! stores nothing. Invariant: an [`ArchiveImage`] is complete: each blob it needs is staged here or was in the store before.

mod any;
mod contents;
mod docker;
mod forms;
mod layout;
mod members;
mod write;

pub use contents::{Archive, BlobReader, Form, Root, Strictness};
pub use write::{ExportImage, write_docker, write_oci};

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use orlop_types::{Digest, Reference};

use crate::blobs::{BlobError, BlobStore, StagedBlob};
use crate::manifest::{ConfigSummary, ImageManifest, ManifestError, Platform};
use members::Members;

/// containerd's annotation: the full image name.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// OCI's annotation: a tag or a name (image-spec annotations.md).
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Why an archive was refused.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The archive could not be opened or read at all.
    #[error("failed to read archive {path}: {source}")]
    Read {
        /// The archive.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// One entry is damaged, missing or makes no sense.
    #[error("archive {path}: entry {entry}: {reason}")]
    Entry {
        /// The archive.
        path: PathBuf,
        /// The entry's name.
        entry: String,
        /// What is wrong.
        reason: String,
    },
    /// The whole is not an image archive.
    #[error("archive {path}: {reason}")]
    Format {
        /// The archive.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A manifest or configuration in it was refused.
    #[error("archive {path}: {digest}: {source}")]
    Manifest {
        /// The archive.
        path: PathBuf,
        /// The document.
        digest: Digest,
        /// Why.
        source: ManifestError,
    },
    /// The store failed, not the archive.
    #[error(transparent)]
    Store(#[from] BlobError),
}

/// How an archive is read.
#[derive(Clone, Debug)]
pub struct ReadOptions {
    /// The machine whose images are taken out of indexes.
    pub host: Platform,
    /// Name for images that carry none, and repository for those that carry only a tag.
    pub base_name: Option<Reference>,
}

/// One image of an archive.
#[derive(Clone, Debug)]
pub struct ArchiveImage {
    /// Tagged names, normalised.
    pub names: Vec<Reference>,
    /// What a name stands for: the index where there is one, else the manifest.
    pub target: Digest,
    /// Indexes from the target down to the manifest.
    pub indexes: Vec<Digest>,
    /// Digest of the manifest.
    pub manifest_digest: Digest,
    /// The manifest for this machine.
    pub manifest: ImageManifest,
    /// Its configuration.
    pub config: ConfigSummary,
}

/// An archive that was read and verified, but not stored.
#[derive(Debug)]
pub struct StagedArchive {
    /// Its images.
    pub images: Vec<ArchiveImage>,
    /// The blobs they need that the store did not have.
    pub blobs: HashMap<Digest, StagedBlob>,
}

/// Reads an archive. `have` tells whether a blob is in the store, and must keep it there from then on.
///
/// # Errors
/// [`ArchiveError`]; nothing is left in the store then.
pub fn stage(
    path: &Path,
    store: &BlobStore,
    session: &str,
    have: &dyn Fn(&Digest) -> Result<bool, BlobError>,
    options: &ReadOptions,
) -> Result<StagedArchive, ArchiveError> {
    let mut members = Members::open(path, store, session, have)?;
    let mut images = if members.contains("index.json") {
        layout::images(&mut members, options)?
    } else if docker::is_saved(&members)? {
        docker::images(&mut members, options)?
    } else {
        drop(members);
        return any::stage(path, store, session, have, options);
    };
    merge(&mut images);
    if images.is_empty() {
        return Err(members.format("no container image in it"));
    }
    let blobs = members.into_blobs(&images);
    Ok(StagedArchive { images, blobs })
}

/// The same image under several names is one image.
fn merge(images: &mut Vec<ArchiveImage>) {
    let mut merged: Vec<ArchiveImage> = Vec::new();
    for image in images.drain(..) {
        match merged.iter_mut().find(|other| other.target == image.target) {
            Some(other) => other.names.extend(image.names),
            None => merged.push(image),
        }
    }
    for image in &mut merged {
        image.names.sort();
        image.names.dedup();
    }
    *images = merged;
}

impl ArchiveImage {
    /// Every blob the image needs.
    pub fn needs(&self) -> impl Iterator<Item = &Digest> {
        let layers = self.manifest.layers.iter().map(|layer| &layer.digest);
        self.indexes.iter().chain([&self.manifest_digest, &self.manifest.config.digest]).chain(layers)
    }
}
