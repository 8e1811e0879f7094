//! Images and snapshots of the runtime.

#![warn(missing_docs)]

mod error;
mod model;
mod store;

pub use error::{ImageError, ImageErrorKind};
pub use model::{ArchiveFormat, Collected, Config, ImageRecord, Rootfs, Usage};
pub use orlop_distribution::Credential;
pub use store::ImageStore;
