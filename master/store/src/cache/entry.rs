use std::sync::Arc;

use bytes::Bytes;

use crate::model::{digits, splice};
use crate::{Meta, Record, Revision};

/// One object as lists and watches hand it out.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The key in the store.
    pub key: Arc<str>,
    /// The revision that created the object.
    pub create_revision: Revision,
    /// The revision of its last change.
    pub mod_revision: Revision,
    /// The encoding, with its revision in it.
    pub bytes: Bytes,
    /// What it is selected by.
    pub meta: Arc<Meta>,
    revision_at: u32,
}

impl Entry {
    pub(super) fn new(record: &Record, describe: impl FnOnce(&str, &[u8]) -> Meta) -> Self {
        let bytes = record.object.at(record.mod_revision);
        let meta = record.meta.clone().unwrap_or_else(|| Arc::new(describe(&record.key, &bytes)));
        Self {
            key: record.key.clone(),
            create_revision: record.create_revision,
            mod_revision: record.mod_revision,
            bytes,
            meta,
            revision_at: record.object.revision_at,
        }
    }

    /// The same object with another revision in it: what a watcher sees when the object leaves its selection.
    #[must_use]
    pub fn at_revision(&self, revision: Revision) -> Self {
        let bytes = splice(&self.bytes, self.revision_at as usize, digits(self.mod_revision), revision);
        Self { bytes, mod_revision: revision, ..self.clone() }
    }
}

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It is new.
    Created,
    /// It was there before.
    Updated,
    /// It is gone; the entry is its last state at the revision of the deletion.
    Deleted,
}

/// One committed change, shared by everybody who watches.
#[derive(Clone, Debug)]
pub struct Change {
    /// What happened.
    pub kind: ChangeKind,
    /// The object after it; when deleted, its last state.
    pub entry: Entry,
    /// The object before it.
    pub previous: Option<Arc<Entry>>,
}

impl Change {
    /// The revision of the change.
    pub fn revision(&self) -> Revision {
        self.entry.mod_revision
    }
}
