use crate::Revision;

/// Why the store did not do what was asked.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum StoreError {
    /// The key is taken.
    #[error("{key} exists already")]
    Exists {
        /// The key.
        key: String,
    },
    /// There is nothing under the key.
    #[error("{key} does not exist")]
    NotFound {
        /// The key.
        key: String,
    },
    /// The object has another revision than the write expects.
    #[error("{key} is at revision {current}, the write expects {expected}")]
    Conflict {
        /// The key.
        key: String,
        /// What the writer saw.
        expected: Revision,
        /// What is stored.
        current: Revision,
    },
    /// The disk is full. Nothing was written; reads go on; free space and try again.
    #[error("no space left for the store: {reason}")]
    NoSpace {
        /// The system's words.
        reason: String,
    },
    /// The disk does not do what it should. Whether the write took effect is not known.
    #[error("the store could not write: {reason}")]
    Io {
        /// The system's words.
        reason: String,
    },
    /// The file is not a store, or one of a newer version.
    #[error("failed to open the store {path}: {reason}")]
    Open {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// The process is ending.
    #[error("the store is closed")]
    Closed,
}
