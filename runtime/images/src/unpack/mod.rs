//! Unpacks one layer into a directory that overlayfs can use as a lower layer.
//!
//! A layer is hostile input. Invariants: nothing outside the destination is read or written, whatever paths, links and
//! whiteouts the tar holds; no link of the tar is ever followed by the kernel; bytes and entries are bounded; the digest of the
//! uncompressed stream is computed on the way.
//!
//! A layer can be unpacked before the layers below it are there. Then directories that the tar only implies get default
//! metadata and are remembered, and [`adopt_lower`] gives them the metadata of the layers below, or finds that the layer has to be
//! unpacked again on top of them ([`UnpackError::NeedsLower`]): an implied directory may be a symbolic link below (`lib` in images with a
//! merged `/usr`), and a hard link may point to a file below. Both ways give the same tree: the same entries in the same order, on
//! top of the same layers.

mod fit;
mod lower;
mod metadata;
mod parents;
mod path;
mod tree;
mod whiteout;
mod writing;

pub(crate) use lower::{LowerView, visible};
pub(crate) use metadata::Attributes;

use std::io::{self, Read};
use std::path::Path;

use orlop_distribution::compression::Decompressed;
use orlop_distribution::tarball::TarReader;
use orlop_types::{Algorithm, Digest, Digester};

use crate::Usage;
use tree::{Loose, Tree};

/// Why a layer could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The stream is cut, or no tar, or wrongly compressed.
    #[error("layer is damaged: {0}")]
    Stream(#[source] io::Error),
    /// An entry is refused.
    #[error("layer entry {path:?}: {reason}")]
    Entry {
        /// The entry.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The disk refused.
    #[error("failed to {act} {path:?}: {source}")]
    Write {
        /// What was tried.
        act: &'static str,
        /// On which entry.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// More than the configured bound.
    #[error("layer unpacks to more than {limit} {unit}")]
    Limit {
        /// The bound.
        limit: u64,
        /// Of what.
        unit: &'static str,
    },
    /// The layer means something else on top of the layers below: unpack it again with them.
    #[error("layer depends on the layers below it")]
    NeedsLower,
}

/// Bounds of one layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
}

/// What was unpacked.
#[derive(Debug)]
pub(crate) struct Unpacked {
    /// Digest of the uncompressed tar.
    pub(crate) diff_id: Digest,
    pub(crate) usage: Usage,
    /// What could not be looked up below.
    loose: Loose,
}

/// Unpacks `source`, a tar compressed in any known way, into the existing empty directory `destination`.
///
/// With `lower`, what the tar only implies is looked up there at once.
pub(crate) fn unpack(
    source: impl Read,
    destination: &Path,
    lower: Option<&LowerView>,
    limits: Limits,
) -> Result<Unpacked, UnpackError> {
    let source = Decompressed::new(source).map_err(UnpackError::Stream)?;
    let hashing =
        Hashing { source, digester: Digester::new(Algorithm::Sha256), count: 0, limit: limits.bytes };
    let mut tar = TarReader::new(hashing);
    let mut tree = Tree::open(destination, lower, limits)?;
    let mut entries = 0u64;
    while let Some(entry) = tar.next_entry().map_err(|error| stream_error(error, limits))? {
        entries += 1;
        if entries > limits.entries {
            return Err(UnpackError::Limit { limit: limits.entries, unit: "entries" });
        }
        if entry.size > limits.bytes {
            return Err(UnpackError::Limit { limit: limits.bytes, unit: "bytes" });
        }
        tree.apply(&entry, &mut tar).map_err(|error| match error {
            UnpackError::Stream(error) => stream_error(error, limits),
            // On top of the layers below the same entry may make sense.
            UnpackError::Entry { .. } if lower.is_none() => UnpackError::NeedsLower,
            other => other,
        })?;
    }
    let mut hashing = tar.into_inner();
    // The digest covers what follows the end marker, too.
    io::copy(&mut hashing, &mut io::sink()).map_err(|error| stream_error(error, limits))?;
    let (usage, loose) = tree.finish()?;
    Ok(Unpacked { diff_id: hashing.digester.finish(), usage, loose })
}

/// The digest of a tar compressed in any known way, read to its end.
pub(crate) fn digest(source: impl Read, limits: Limits) -> Result<Digest, UnpackError> {
    let source = Decompressed::new(source).map_err(UnpackError::Stream)?;
    let mut hashing =
        Hashing { source, digester: Digester::new(Algorithm::Sha256), count: 0, limit: limits.bytes };
    io::copy(&mut hashing, &mut io::sink()).map_err(|error| stream_error(error, limits))?;
    Ok(hashing.digester.finish())
}

/// Gives directories that the tar only implied the metadata they have below. A no-op for layers unpacked with `lower`.
pub(crate) fn adopt_lower(
    unpacked: &Unpacked,
    destination: &Path,
    lower: &LowerView,
    limits: Limits,
) -> Result<(), UnpackError> {
    fit::adopt_lower(&unpacked.loose, destination, lower, limits)
}

fn stream_error(error: io::Error, limits: Limits) -> UnpackError {
    if error.kind() == io::ErrorKind::QuotaExceeded {
        return UnpackError::Limit { limit: limits.bytes, unit: "bytes" };
    }
    UnpackError::Stream(error)
}

/// Hashes and counts the uncompressed stream. Reports the bound as `QuotaExceeded`, which no stream gives by itself.
struct Hashing<R> {
    source: R,
    digester: Digester,
    count: u64,
    limit: u64,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.digester.update(&buffer[..count]);
        self.count += count as u64;
        if self.count > self.limit {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        Ok(count)
    }
}
