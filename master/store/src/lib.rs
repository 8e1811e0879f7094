//! The object store of the master: durable objects under string keys, one revision counter, and the watch cache above.
//!
//! Two halves that meet in the traits of [`store`]:
//!
//! - [`Store`] keeps objects durably: create, update and delete with compare-and-swap on the object's revision, and
//!   [`Store::follow`], which hands a [`Sink`] everything stored and then every change in the order of revisions. Embedded here
//!   ([`EmbeddedStore`], on redb); etcd speaks the same interface.
//! - [`Cache`] is the sink that the API server reads from: encoded objects with their extracted keys, a history per
//!   prefix, lists at a revision, watches.
//!
//! ```text
//!   request --Write--> queue (bounded) --> writer thread: one transaction per batch, fsync --> sinks in revision order --> answers
//!                                             |  IO error: answers say so, file closed
//!                                             '--> reopened at a later write, at most twice a second
//! ```
//!
//! Invariants:
//! - A write is answered only after it is on disk and in the cache: read your own writes.
//! - Revisions are assigned and published at one point, the writer thread; they grow over restarts.
//! - An object is encoded once. Only the digits of its revision are put in, once, when it is committed or loaded.
//! - A full disk refuses writes ([`StoreError::NoSpace`]); reads are served from memory and go on.
//! - A watcher that does not keep up is cut off, never waited for.
//!
//! It deliberately knows no Kubernetes: keys, labels and fields come from the caller.
//!
//! Tasks: one thread, `store-writer`. Read next: [`store`], `embedded/writer.rs`, `cache/mod.rs`.

mod cache;
mod embedded;
mod error;
pub mod model;
pub mod store;

pub use cache::{At, Cache, Change, ChangeKind, Entry, Expired, Page, PageRequest, Watch, WatchFilter};
pub use embedded::EmbeddedStore;
pub use error::StoreError;
pub use model::{Encoded, Meta, Revision};
pub use store::{Condition, Event, Record, Sink, Store, Write};
