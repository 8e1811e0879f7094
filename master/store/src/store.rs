//! The seam between the API server and whatever keeps its objects.

use std::sync::Arc;

use async_trait::async_trait;

use crate::{Encoded, Meta, Revision, StoreError};

/// What must hold for a write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// There is nothing under the key.
    Absent,
    /// The object is at this revision.
    At(Revision),
}

/// One write.
#[derive(Clone, Debug)]
pub struct Write {
    /// The key, for example `/registry/pods/default/web`.
    pub key: Arc<str>,
    /// What must hold.
    pub condition: Condition,
    /// The new object; none deletes.
    pub object: Option<(Encoded, Arc<Meta>)>,
}

/// A stored object.
#[derive(Clone, Debug)]
pub struct Record {
    /// The key.
    pub key: Arc<str>,
    /// The revision that created the object.
    pub create_revision: Revision,
    /// The revision of its last change.
    pub mod_revision: Revision,
    /// The object without its revision.
    pub object: Encoded,
    /// What the writer extracted; none when the record comes from disk.
    pub meta: Option<Arc<Meta>>,
}

/// One committed change.
#[derive(Clone, Debug)]
pub enum Event {
    /// Created or updated.
    Put(Record),
    /// Deleted by this revision.
    Delete {
        /// The key.
        key: Arc<str>,
        /// The revision of the deletion.
        revision: Revision,
    },
}

impl Event {
    /// The revision of the change.
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put(record) => record.mod_revision,
            Self::Delete { revision, .. } => *revision,
        }
    }
}

/// Receives everything stored, then every change, in the order of revisions, from one thread. Must not block.
pub trait Sink: Send {
    /// One object of the first state.
    fn load(&mut self, record: Record);
    /// The first state is complete as of this revision.
    fn loaded(&mut self, revision: Revision);
    /// Changes after it, committed together.
    fn apply(&mut self, events: Vec<Event>);
}

/// Durable objects with one revision counter.
#[async_trait]
pub trait Store: Send + Sync {
    /// Commits one write and returns its revision. When this returns `Ok`, the write is durable and every sink has seen it.
    ///
    /// # Errors
    /// [`StoreError::Exists`], [`StoreError::NotFound`] and [`StoreError::Conflict`] say that the condition does not hold; the others
    /// that the store could not write.
    async fn write(&self, write: Write) -> Result<Revision, StoreError>;

    /// Reads one object from the store itself, not from a cache.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Closed`].
    async fn get(&self, key: &str) -> Result<Option<Record>, StoreError>;

    /// Hands the sink all objects whose keys start with `prefix`, then all later changes of such keys, without a gap.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Closed`].
    async fn follow(&self, prefix: &str, sink: Box<dyn Sink>) -> Result<Revision, StoreError>;
}
