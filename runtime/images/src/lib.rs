//! Images and snapshots of the runtime.

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
pub use store::ImageStore;
pub use unpack::UnpackError;
