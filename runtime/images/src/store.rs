use std::path::Path;
use std::sync::Arc;

use orlop_distribution::Credential;
use orlop_types::Reference;

use crate::{ArchiveFormat, Collected, Config, ImageError, ImageRecord, Rootfs, Usage};

/// Handle to the images of one node; cheap to clone. Methods that are not `async` do file work and must run where blocking is
/// allowed (`tokio::task::spawn_blocking`).
#[derive(Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
}

impl ImageStore {
    /// Opens or makes the store and repairs what a kill left behind.
    pub fn open(config: Config) -> Result<Self, ImageError> {
        Ok(Self { inner: Arc::new(Inner { config }) })
    }

    fn pending(&self) -> ImageError {
        ImageError::Unknown(self.inner.config.root.display().to_string())
    }

    /// Fetches an image from its registry (or a mirror) and unpacks it.
    pub async fn pull(
        &self,
        _reference: &Reference,
        _auth: Option<Credential>,
    ) -> Result<ImageRecord, ImageError> {
        Err(self.pending())
    }

    /// Every image, sorted by id.
    pub fn list(&self) -> Result<Vec<ImageRecord>, ImageError> {
        Err(self.pending())
    }

    /// The image that `text` names: a reference, an id, a prefix of an id (at least 4 hex digits), or a reference with digest.
    pub fn find(&self, _text: &str) -> Result<Option<ImageRecord>, ImageError> {
        Err(self.pending())
    }

    /// Removes the tag, or the whole image where `text` is an id or its last tag. What is unknown is removed already: Ok.
    pub fn remove(&self, _text: &str) -> Result<(), ImageError> {
        Err(self.pending())
    }

    /// Removes every blob and layer that neither an image, nor a container, nor a running operation needs.
    pub fn collect_garbage(&self) -> Result<Collected, ImageError> {
        Err(self.pending())
    }

    /// Disk use of blobs and layers, without the containers' writable layers.
    pub fn usage(&self) -> Result<Usage, ImageError> {
        Err(self.pending())
    }

    /// Makes the writable directories of container `key` over image `image_id`. Idempotent for the same image. Mounts nothing.
    pub fn prepare_rootfs(&self, _key: &str, _image_id: &str) -> Result<Rootfs, ImageError> {
        Err(self.pending())
    }

    /// Removes a container's directories. What is unknown is removed already: Ok.
    pub fn remove_rootfs(&self, _key: &str) -> Result<(), ImageError> {
        Err(self.pending())
    }

    /// The keys that have directories.
    pub fn rootfs_keys(&self) -> Result<Vec<String>, ImageError> {
        Err(self.pending())
    }

    /// Disk use of a container's writable layer.
    pub fn rootfs_usage(&self, _key: &str) -> Result<Usage, ImageError> {
        Err(self.pending())
    }

    /// Imports every image of an archive or OCI layout directory; all or nothing.
    pub fn import(&self, _path: &Path) -> Result<Vec<ImageRecord>, ImageError> {
        Err(self.pending())
    }

    /// Writes images to an archive.
    pub fn export(&self, _references: &[String], _path: &Path, _format: ArchiveFormat) -> Result<(), ImageError> {
        Err(self.pending())
    }
}
