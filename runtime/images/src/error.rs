use std::path::{Path, PathBuf};
use std::sync::Arc;

use orlop_types::Digest;

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
    /// The disk is full.
    #[error("no space left while {act}")]
    NoSpace {
        /// What was going on.
        act: String,
    },
    /// Several callers waited for one pull, and it failed.
    #[error(transparent)]
    Joined(Arc<ImageError>),
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
        if matches!(source.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded) {
            return ImageError::NoSpace { act: format!("trying to {act} {}", path.display()) };
        }
        ImageError::Io { act, path: path.to_owned(), source }
    }

    /// Who can do something about it.
    pub fn kind(&self) -> ImageErrorKind {
        match self {
            ImageError::Io { .. } | ImageError::Damaged { .. } => ImageErrorKind::Internal,
            ImageError::Unknown(_) => ImageErrorKind::NotFound,
            ImageError::Invalid { .. } => ImageErrorKind::Invalid,
            ImageError::NoSpace { .. } => ImageErrorKind::NoSpace,
            ImageError::Joined(error) => error.kind(),
        }
    }
}
