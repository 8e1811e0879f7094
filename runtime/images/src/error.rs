use std::path::{Path, PathBuf};
use std::sync::Arc;

use orlop_distribution::archive::ArchiveError;
use orlop_distribution::blobs::BlobError;
use orlop_distribution::client::RegistryError;
use orlop_types::Digest;

use crate::unpack::UnpackError;

/// Why an image operation failed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file operation on the store failed.
    #[error("failed to {act} {path}: {source}")]
    Io {
        /// What was tried, for example `write`.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The store has no such image.
    #[error("image {0:?} is not in the store")]
    Unknown(String),
    /// A key or name that cannot be used.
    #[error("invalid {what} {text:?}: {reason}")]
    Invalid {
        /// What the text should have been.
        what: &'static str,
        /// The text.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Several callers waited for one pull, and it failed.
    #[error(transparent)]
    Joined(Arc<ImageError>),
    /// An archive was refused.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The blob directory failed, or content is not what its digest says.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The registry did not give the image.
    #[error("failed to pull image {reference:?}: {source}")]
    Registry {
        /// The image.
        reference: String,
        /// Why.
        source: RegistryError,
    },
    /// The policy file does not let the image in. The first word is what a kubelet knows such errors by.
    #[error("SignatureValidationFailed: image {image:?} is refused by the policy {path}: {reason}")]
    Policy {
        /// The image.
        image: String,
        /// The policy file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The program ends while the operation runs.
    #[error("interrupted: {0}")]
    Interrupted(String),
    /// A layer could not be unpacked.
    #[error("failed to unpack layer {digest}: {source}")]
    Unpack {
        /// The layer as it is in the manifest.
        digest: Digest,
        /// Why.
        source: UnpackError,
    },
    /// A layer that only its publisher holds.
    #[error(
        "layer {digest} is non-distributable and the registry does not hold it; URLs outside the registry are not followed: \
         push the image with its non-distributable layers to a registry of yours"
    )]
    Foreign {
        /// The layer.
        digest: Digest,
    },
    /// A blob that a record needs is gone or is not what its digest says.
    #[error("blob {digest} is damaged: {reason}; remove the image and pull or import it again")]
    Damaged {
        /// The blob.
        digest: Digest,
        /// What was found.
        reason: String,
    },
}

/// Who can do something about an [`ImageError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageErrorKind {
    /// No such image here or in the registry.
    NotFound,
    /// The registry wants other credentials.
    Unauthorized,
    /// A policy of this node forbids it.
    Refused,
    /// The caller's text or archive is wrong.
    Invalid,
    /// Network or registry trouble: a later attempt may succeed.
    Unavailable,
    /// The disk is full.
    NoSpace,
    /// Anything else.
    Internal,
}

impl ImageError {
    pub(crate) fn io(act: &'static str, path: &Path, source: std::io::Error) -> Self {
        ImageError::Io { act, path: path.to_owned(), source }
    }

    /// Who can do something about it.
    pub fn kind(&self) -> ImageErrorKind {
        match self {
            ImageError::Io { source, .. } => io_kind(source),
            ImageError::Damaged { .. } | ImageError::Interrupted(_) => ImageErrorKind::Internal,
            ImageError::Registry { source, .. } => registry_kind(source),
            ImageError::Unknown(_) => ImageErrorKind::NotFound,
            ImageError::Invalid { .. } | ImageError::Foreign { .. } => ImageErrorKind::Invalid,
            ImageError::Policy { .. } => ImageErrorKind::Refused,
            ImageError::Joined(error) => error.kind(),
            ImageError::Archive(ArchiveError::Store(error)) | ImageError::Blob(error) => blob_kind(error),
            ImageError::Archive(_) => ImageErrorKind::Invalid,
            ImageError::Unpack { source: UnpackError::Write { source, .. }, .. } => io_kind(source),
            ImageError::Unpack { .. } => ImageErrorKind::Invalid,
        }
    }
}

fn io_kind(error: &std::io::Error) -> ImageErrorKind {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ImageErrorKind::NoSpace,
        _ => ImageErrorKind::Internal,
    }
}

fn blob_kind(error: &BlobError) -> ImageErrorKind {
    match error {
        BlobError::Io { source, .. } => io_kind(source),
        BlobError::Digest(_) | BlobError::Size { .. } | BlobError::TooLarge { .. } => ImageErrorKind::Invalid,
    }
}

fn registry_kind(error: &RegistryError) -> ImageErrorKind {
    match error {
        RegistryError::NotFound { .. } => ImageErrorKind::NotFound,
        RegistryError::Unauthorized { .. } => ImageErrorKind::Unauthorized,
        RegistryError::Manifest(_) | RegistryError::Hosts(_) | RegistryError::NoHost { .. } => {
            ImageErrorKind::Invalid
        }
        RegistryError::RateLimited { .. }
        | RegistryError::Status { .. }
        | RegistryError::Connect { .. }
        | RegistryError::Timeout { .. }
        | RegistryError::Resting { .. }
        | RegistryError::Cut { .. }
        | RegistryError::Content { .. }
        | RegistryError::Protocol { .. } => ImageErrorKind::Unavailable,
    }
}
