//! Archives into the store and out of it.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use orlop_distribution::archive::{
    self, ArchiveError, ArchiveImage, ExportImage, ReadOptions, StagedArchive,
};
use orlop_distribution::blobs::BlobError;
use orlop_distribution::manifest::{MANIFEST_LIMIT, Manifest, Platform, chain_ids};
use orlop_types::{Digest, Reference};

use crate::catalog::NameRecord;
use crate::files::unique_name;
use crate::layers::StagedLayer;
use crate::lease::Lease;
use crate::store::Inner;
use crate::unpack::{Budget, LowerView};
use crate::{ArchiveFormat, ImageError, ImageRecord};

/// Layers that are unpacked but not committed, in the order in which they were.
#[derive(Default)]
struct Staged {
    layers: Vec<(Digest, StagedLayer)>,
    trees: HashMap<Digest, PathBuf>,
}

impl Inner {
    /// Verifies and unpacks everything in an archive, then commits all of it.
    pub(crate) fn import(
        &self,
        path: &Path,
        base_name: Option<Reference>,
    ) -> Result<Vec<ImageRecord>, ImageError> {
        let lease = Lease::new(&self.paths)?;
        let have = |digest: &Digest| -> Result<bool, BlobError> {
            // A failing lease shows up as a blob that cannot be kept, so it is not there.
            Ok(lease.keep_blob(digest).is_ok() && self.blobs.size(digest)?.is_some())
        };
        let options = ReadOptions { host: Platform::host(), base_name };
        let archive = archive::stage(path, &self.blobs, lease.session(), &have, &options)?;
        let mut staged = Staged::default();
        for image in &archive.images {
            for digest in image.needs() {
                lease.keep_blob(digest)?;
            }
            // Parsed in full now, so that nothing is stored that cannot be listed.
            self.check_config(path, &archive, image)?;
            self.stage_layers(&lease, &archive, image, &mut staged)?;
        }
        let StagedArchive { images, blobs } = archive;
        for blob in blobs.into_values() {
            blob.commit()?;
        }
        for (chain_id, layer) in staged.layers {
            self.layers.commit(layer, &chain_id)?;
        }
        let mut records = Vec::new();
        for image in &images {
            records.extend(name_records(image));
        }
        self.commit_records(&records)?;
        // The process that imports may end now.
        self.layers.settle()?;
        let snapshot = self.catalog.snapshot()?;
        let found = images.iter().filter_map(|image| {
            let mut record = snapshot.images.get(image.manifest.config.digest.as_str())?.clone();
            // The same image may have other names here, which this archive did not bring.
            let brought: Vec<String> = name_records(image).into_iter().map(|record| record.name).collect();
            record.tags.retain(|tag| brought.contains(tag));
            Some(record)
        });
        Ok(found.collect())
    }

    fn check_config(
        &self,
        path: &Path,
        archive: &StagedArchive,
        image: &ArchiveImage,
    ) -> Result<(), ImageError> {
        let digest = &image.manifest.config.digest;
        let limit = orlop_distribution::manifest::CONFIG_LIMIT;
        let content = match archive.blobs.get(digest) {
            Some(staged) => Some(staged.read(limit)?),
            None => self.blobs.read(digest, limit)?,
        };
        let parsed =
            serde_json::from_slice::<oci_spec::image::ImageConfiguration>(&content.unwrap_or_default());
        let entry = |error: serde_json::Error| ArchiveError::Entry {
            path: path.to_owned(),
            entry: digest.to_string(),
            reason: format!("image configuration: {error}"),
        };
        parsed.map(|_| ()).map_err(|error| entry(error).into())
    }

    fn stage_layers(
        &self,
        lease: &Lease,
        archive: &StagedArchive,
        image: &ArchiveImage,
        staged: &mut Staged,
    ) -> Result<(), ImageError> {
        let diff_ids = &image.config.rootfs.diff_ids;
        let mut below: Vec<PathBuf> = Vec::new();
        let budget = Budget::new(self.image_bytes);
        for ((chain_id, diff_id), layer) in
            chain_ids(diff_ids).iter().zip(diff_ids).zip(&image.manifest.layers)
        {
            lease.keep_layer(chain_id)?;
            let tree = match staged.trees.get(chain_id) {
                Some(tree) => tree.clone(),
                None if self.layers.exists(chain_id) => {
                    if let Some(blob) = archive.blobs.get(&layer.digest) {
                        let file = File::open(blob.path())
                            .map_err(|error| ImageError::io("open", blob.path(), error))?;
                        self.layers
                            .verify(file, diff_id)
                            .map_err(|source| ImageError::Unpack { digest: layer.digest.clone(), source })?;
                    }
                    self.layers.tree(chain_id)
                }
                None => {
                    let blob = archive.blobs.get(&layer.digest);
                    let source =
                        blob.map_or_else(|| self.blobs.path(&layer.digest), |blob| blob.path().to_owned());
                    let file = File::open(&source).map_err(|error| ImageError::io("open", &source, error))?;
                    let lower = LowerView::new(below.iter().rev().cloned().collect())
                        .map_err(|source| ImageError::io("read", &self.paths.layers(), source))?;
                    let unpacked = self.layers.stage(lease.session(), file, diff_id, Some(&lower), &budget);
                    let unpacked = unpacked
                        .map_err(|source| ImageError::Unpack { digest: layer.digest.clone(), source })?;
                    let tree = unpacked.tree();
                    staged.trees.insert(chain_id.clone(), tree.clone());
                    staged.layers.push((chain_id.clone(), unpacked));
                    tree
                }
            };
            below.push(tree);
        }
        Ok(())
    }

    /// Writes images to an archive file, under a temporary name first.
    pub(crate) fn export(
        &self,
        references: &[String],
        path: &Path,
        format: ArchiveFormat,
    ) -> Result<(), ImageError> {
        let lease = Lease::new(&self.paths)?;
        let snapshot = self.catalog.snapshot()?;
        let mut images: Vec<ExportImage> = Vec::new();
        for text in references {
            let image = snapshot.find(text)?.ok_or_else(|| ImageError::Unknown(text.clone()))?;
            let mut export = self.export_image(&lease, image)?;
            // A name chooses itself; an id or digest takes all names along.
            export.names = match Reference::parse(text).ok().filter(|name| name.digest().is_none()) {
                Some(name) if image.tags.contains(&name.to_string()) => vec![name],
                _ => image.tags.iter().filter_map(|tag| Reference::parse(tag).ok()).collect(),
            };
            match images.iter_mut().find(|other| other.manifest_digest == export.manifest_digest) {
                Some(other) => {
                    other.names.extend(export.names);
                    other.names.sort();
                    other.names.dedup();
                }
                None => images.push(export),
            }
        }
        let temporary = path.with_file_name(format!(".orlop-export.{}", unique_name()));
        let failed = |source| ImageError::io("write", path, source);
        let result = File::create(&temporary).map_err(failed).and_then(|mut file| {
            match format {
                ArchiveFormat::Oci => archive::write_oci(&self.blobs, &images, &mut file)?,
                ArchiveFormat::Docker => archive::write_docker(&self.blobs, &images, &mut file)?,
            }
            file.sync_all().and_then(|()| std::fs::rename(&temporary, path)).map_err(failed)
        });
        if result.is_err() {
            // Half an archive is of no use; the first error is the one to report.
            let _ = std::fs::remove_file(&temporary);
        }
        result
    }

    fn export_image(&self, lease: &Lease, image: &ImageRecord) -> Result<ExportImage, ImageError> {
        let damaged = |reason: String| ImageError::Damaged { digest: image.manifest.clone(), reason };
        lease.keep_blob(&image.manifest)?;
        let bytes = self
            .blobs
            .read(&image.manifest, MANIFEST_LIMIT)?
            .ok_or_else(|| damaged("it is missing".into()))?;
        let manifest = match Manifest::parse(&bytes, None) {
            Ok(Manifest::Image(manifest)) => *manifest,
            Ok(Manifest::Index(_)) => return Err(damaged("it is an index".into())),
            Err(error) => return Err(damaged(error.to_string())),
        };
        lease.keep_blob(&manifest.config.digest)?;
        for layer in &manifest.layers {
            lease.keep_blob(&layer.digest)?;
        }
        let diff_ids = image.config.rootfs().diff_ids();
        Ok(ExportImage {
            names: Vec::new(),
            manifest_digest: image.manifest.clone(),
            manifest_size: bytes.len() as u64,
            manifest,
            diff_ids: diff_ids.iter().filter_map(|text| text.parse().ok()).collect(),
        })
    }
}

/// One record per tag, one per repository and digest, and one by id for an image without any name. What an operator imported is
/// pinned: on a machine without a registry nobody could fetch it again after a collection by disk use.
fn name_records(image: &ArchiveImage) -> Vec<NameRecord> {
    let layers = &image.manifest.layers;
    let manifest_size = serde_json::to_vec(&image.manifest).map_or(0, |bytes| bytes.len() as u64);
    let record = |name: String| NameRecord {
        version: 1,
        name,
        target: image.target.clone(),
        indexes: image.indexes.clone(),
        manifest: image.manifest_digest.clone(),
        config: image.manifest.config.digest.clone(),
        layers: layers.iter().map(|layer| layer.digest.clone()).collect(),
        chain: chain_ids(&image.config.rootfs.diff_ids),
        size: manifest_size + image.manifest.size().unwrap_or(0),
        pinned: true,
    };
    let mut names: Vec<String> = Vec::new();
    for name in &image.names {
        if let Some(tag) = name.tag() {
            names.extend(name.with_tag(tag).ok().map(|name| name.to_string()));
        }
        names.push(name.with_digest(image.target.clone()).to_string());
    }
    if names.is_empty() {
        names.push(image.manifest.config.digest.to_string());
    }
    names.sort();
    names.dedup();
    names.into_iter().map(record).collect()
}
