//! Images and snapshots of the runtime: pull, import, unpack, writable directories of containers, garbage collection.
//!
//! It mounts nothing: overlayfs gets its directories from here, and shims mount them.
//!
//! ```text
//!   pull / import:  lease → blobs (hashed while written, synced) and layers (unpacked while downloaded) → records
//!   container:      record → directories over the layers (layers.json)      remove: record away → collect
//!   collect:        roots (records, containers, live leases) → the rest to trash/, under the store's lock
//! ```
//!
//! Files below `root`: `content/blobs/` (by digest) and `content/ingest/` (unfinished), `snapshots/layers/CHAINID/{fs,layer.json}`,
//! `snapshots/containers/KEY/{fs,work,layers.json}`, `images/` (a record per name), `leases/`, `trash/`, `lock`.
//!
//! Invariants. A name under `blobs/` or `layers/` was whole and verified when it was renamed there. **Nothing is trusted that a loss
//! of power could have left half written:** a blob is synced before it gets its name, and so is a record, which comes after all blobs
//! that it needs. A layer is not waited for: it carries the boot that it was unpacked in until the file system was synced, and is
//! unpacked again from its blob when that boot is over. What nothing names is removed when the store is opened. A name is gone for
//! good before what it needed is removed. Whatever is made or looked at by a running operation stands in its lease first; a lease
//! dies with its process, and so does everything that carries its name.
//! Several processes share a store.
//!
//! Read next: `pull/mod.rs`, `unpack/mod.rs`, `garbage.rs`, `catalog.rs`.

#![warn(missing_docs)]

mod catalog;
pub mod command;
mod error;
mod files;
mod garbage;
mod import;
mod layers;
mod lease;
mod model;
mod pull;
mod rootfs;
mod store;
mod unpack;

pub use error::{ImageError, ImageErrorKind};
pub use model::{ArchiveFormat, Collected, Config, ImageRecord, Rootfs, Usage};
pub use orlop_distribution::Credential;
pub use pull::PullProgress;
pub use store::ImageStore;
pub use unpack::UnpackError;
