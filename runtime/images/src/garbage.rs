//! Mark and sweep. Roots: image records, containers, live leases.
//!
//! Under the store's exclusive lock nothing can become needed that was not: operations write their needs into a lease first. What
//! is swept is moved to `trash/` under the lock and removed after it, so that the lock is held for moments.

use std::collections::HashSet;
use std::fs;

use orlop_types::Digest;

use crate::catalog::Catalog;
use crate::files::{Paths, children, remove_path};
use crate::layers::LayerStore;
use crate::lease::{self, Protected};
use crate::rootfs;
use crate::{Collected, ImageError};
use orlop_distribution::blobs::BlobStore;

pub(crate) fn collect(
    paths: &Paths,
    blobs: &BlobStore,
    layers: &LayerStore,
    catalog: &Catalog,
) -> Result<Collected, ImageError> {
    let mut collected = Collected::default();
    {
        let lock = paths.lock_exclusive()?;
        // A change that was cut left readers without a cache.
        if catalog.generation().is_none() {
            catalog.change(&lock, || Ok(()))?;
        }
        let protected = lease::protected(paths)?;
        let names = catalog.read_names()?;
        let mut needed_layers: HashSet<Digest> = protected.layers.clone();
        needed_layers.extend(names.iter().flat_map(|name| name.chain.iter().cloned()));
        needed_layers.extend(rootfs::chains(paths)?);
        for layer in layers.list()? {
            // A doubtful layer is unpacked again from its blob when it is needed.
            if !needed_layers.contains(&layer.chain_id) || layers.is_doubtful(&layer) {
                layers.discard(&layer.chain_id)?;
                collected.layers += 1;
                collected.bytes += layer.usage.bytes;
            }
        }
        let mut needed_blobs: HashSet<&Digest> = protected.blobs.iter().collect();
        needed_blobs.extend(names.iter().flat_map(|name| name.blobs()));
        for (digest, size) in blobs.list()? {
            if !needed_blobs.contains(&digest) && blobs.remove(&digest)? {
                collected.blobs += 1;
                collected.bytes += size;
            }
        }
        collected.leftovers = sweep_unfinished(paths, blobs, layers, &protected)?;
    }
    paths.empty_trash()?;
    if collected != Collected::default() {
        let Collected { blobs, layers, leftovers, bytes } = collected;
        tracing::info!(blobs, layers, leftovers, bytes, "images collected");
    }
    Ok(collected)
}

/// What operations left behind whose process is gone.
fn sweep_unfinished(
    paths: &Paths,
    blobs: &BlobStore,
    layers: &LayerStore,
    protected: &Protected,
) -> Result<u64, ImageError> {
    let mut swept = 0;
    for (session, path) in blobs.unfinished()?.into_iter().chain(layers.unfinished()?) {
        if !protected.sessions.contains(&session) {
            paths.discard(&path)?;
            swept += 1;
        }
    }
    for path in children(&paths.containers())? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let session = name.strip_prefix('.').and_then(|rest| rest.split('.').next());
        if session.is_some_and(|session| !protected.sessions.contains(session)) {
            paths.discard(&path)?;
            swept += 1;
        }
    }
    // Temporary records; their writers hold the lock that is held here.
    for path in children(&paths.images())? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with('.')
            && name != ".generation"
            && fs::symlink_metadata(&path).is_ok_and(|file| file.is_file())
        {
            remove_path(&path)?;
            swept += 1;
        }
    }
    Ok(swept)
}
