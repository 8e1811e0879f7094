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
use std::sync::atomic::{AtomicU64, Ordering};

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

/// Bytes that the layers of one image may still unpack to, together.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: u64,
    left: AtomicU64,
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Self {
        Self { limit, left: AtomicU64::new(limit) }
    }

    /// False when there is not so much left.
    fn take(&self, bytes: u64) -> bool {
        let relaxed = Ordering::Relaxed;
        self.left.fetch_update(relaxed, relaxed, |left| left.checked_sub(bytes)).is_ok()
    }

    fn give_back(&self, bytes: u64) {
        self.left.fetch_add(bytes, Ordering::Relaxed);
    }
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
    budget: &Budget,
) -> Result<Unpacked, UnpackError> {
    let source = Decompressed::new(source).map_err(UnpackError::Stream)?;
    let mut hashing = Hashing::new(source, limits, Some(budget));
    let result = unpack_stream(&mut hashing, destination, lower, limits);
    let (spent, over) = (hashing.count, hashing.over);
    let failed = |error| match error {
        UnpackError::Stream(_) if over => match spent > limits.bytes {
            true => UnpackError::Limit { limit: limits.bytes, unit: "bytes" },
            false => UnpackError::Limit {
                limit: budget.limit,
                unit: "bytes, together with the image's other layers",
            },
        },
        other => other,
    };
    match result {
        Ok((usage, loose)) => Ok(Unpacked { diff_id: hashing.digester.finish(), usage, loose }),
        Err(error) => {
            budget.give_back(hashing.charged);
            Err(failed(error))
        }
    }
}

fn unpack_stream(
    source: &mut impl Read,
    destination: &Path,
    lower: Option<&LowerView>,
    limits: Limits,
) -> Result<(Usage, Loose), UnpackError> {
    let mut tar = TarReader::new(source);
    let mut tree = Tree::open(destination, lower, limits)?;
    let mut entries = 0u64;
    while let Some(entry) = tar.next_entry().map_err(UnpackError::Stream)? {
        entries += 1;
        if entries > limits.entries {
            return Err(UnpackError::Limit { limit: limits.entries, unit: "entries" });
        }
        if entry.size > limits.bytes {
            return Err(UnpackError::Limit { limit: limits.bytes, unit: "bytes" });
        }
        tree.apply(&entry, &mut tar).map_err(|error| match error {
            // On top of the layers below the same entry may make sense.
            UnpackError::Entry { .. } if lower.is_none() => UnpackError::NeedsLower,
            other => other,
        })?;
    }
    // The digest covers what follows the end marker, too.
    io::copy(tar.into_inner(), &mut io::sink()).map_err(UnpackError::Stream)?;
    tree.finish()
}

/// The digest of a tar compressed in any known way, read to its end.
pub(crate) fn digest(source: impl Read, limits: Limits) -> Result<Digest, UnpackError> {
    let source = Decompressed::new(source).map_err(UnpackError::Stream)?;
    let mut hashing = Hashing::new(source, limits, None);
    let copied = io::copy(&mut hashing, &mut io::sink());
    if hashing.over {
        return Err(UnpackError::Limit { limit: limits.bytes, unit: "bytes" });
    }
    copied.map_err(UnpackError::Stream)?;
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

/// Hashes and counts the uncompressed stream, and ends it at its bounds.
struct Hashing<'a, R> {
    source: R,
    digester: Digester,
    count: u64,
    limit: u64,
    budget: Option<&'a Budget>,
    /// Taken from the budget so far.
    charged: u64,
    /// A bound was met.
    over: bool,
}

impl<'a, R: Read> Hashing<'a, R> {
    fn new(source: R, limits: Limits, budget: Option<&'a Budget>) -> Self {
        let digester = Digester::new(Algorithm::Sha256);
        Self { source, digester, count: 0, limit: limits.bytes, budget, charged: 0, over: false }
    }
}

impl<R: Read> Read for Hashing<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.digester.update(&buffer[..count]);
        self.count += count as u64;
        let fits = self.budget.is_none_or(|budget| budget.take(count as u64));
        if fits {
            self.charged += count as u64;
        }
        if self.count > self.limit || !fits {
            self.over = true;
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        Ok(count)
    }
}
