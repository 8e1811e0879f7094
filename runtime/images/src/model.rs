//! Values of the image store.

use std::path::PathBuf;
use std::sync::Arc;

use orlop_types::Digest;
use serde::{Deserialize, Serialize};

/// How an [`ImageStore`](crate::ImageStore) is opened.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Config {
    /// Directory of the store; made if missing. Must be on a file system that overlayfs takes as upper directory.
    pub root: PathBuf,
    /// Directory in containerd's `certs.d` layout (`HOST/hosts.toml`); none when absent.
    pub hosts_dir: Option<PathBuf>,
    /// Base URL of a mirror that is asked first for every registry, with `?ns=`.
    pub mirror: Option<String>,
    /// Blobs downloaded at the same time, over all pulls.
    pub max_concurrent_downloads: usize,
    /// Most bytes one layer may unpack to.
    pub max_unpacked_bytes: u64,
    /// Most files, directories and links one layer may unpack to.
    pub max_unpacked_entries: u64,
    /// Most bytes all layers of one image may unpack to.
    pub max_unpacked_image_bytes: u64,
    /// A download without a byte for so long is taken up again, and given up when that does not help.
    pub pull_progress_timeout_seconds: u64,
    /// Policy file in the format of containers-policy.json(5), asked before anything is pulled; without one everything may be. Imports
    /// are the operator's own doing and are not asked about.
    pub signature_policy: Option<PathBuf>,
    /// Images that a collection by age or disk use must leave alone: references, or beginnings of normalised ones that end with `*`.
    pub pinned: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/var/lib/orlop/images"),
            hosts_dir: None,
            mirror: None,
            max_concurrent_downloads: 6,
            max_unpacked_bytes: 64 << 30,
            max_unpacked_entries: 4_000_000,
            max_unpacked_image_bytes: 128 << 30,
            pull_progress_timeout_seconds: 60,
            signature_policy: None,
            pinned: Vec::new(),
        }
    }
}

/// An image that is complete in the store.
#[derive(Clone, Debug)]
pub struct ImageRecord {
    /// `sha256:…` of the image configuration: what Kubernetes calls the image id.
    pub id: String,
    /// References with a tag, normalised, sorted: `docker.io/library/nginx:latest`.
    pub tags: Vec<String>,
    /// References with a digest, normalised, sorted: `docker.io/library/nginx@sha256:…`.
    pub digests: Vec<String>,
    /// Bytes of manifest, configuration and layers as stored (compressed).
    pub size: u64,
    /// The image configuration.
    pub config: Arc<oci_spec::image::ImageConfiguration>,
    /// The platform manifest.
    pub manifest: Digest,
    /// Chain ids of the unpacked layers, bottom first (image-spec config.md, "Layer ChainID").
    pub chain: Vec<Digest>,
    /// Whether an image garbage collection by age or disk use must leave it alone.
    pub pinned: bool,
}

impl ImageRecord {
    /// A name to show: the first tag, else the first digest reference, else the id.
    pub fn display_name(&self) -> &str {
        self.tags.first().or_else(|| self.digests.first()).unwrap_or(&self.id)
    }
}

/// Directories of a container's root file system, for an overlay mount that somebody else makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rootfs {
    /// Read-only layers, **top first**, as overlayfs wants them. At least one.
    pub lower: Vec<PathBuf>,
    /// Writable layer.
    pub upper: PathBuf,
    /// overlayfs' work directory.
    pub work: PathBuf,
}

/// Disk use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes on disk.
    pub bytes: u64,
    /// Files, directories and links.
    pub inodes: u64,
}

/// What a garbage collection removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Collected {
    /// Blobs.
    pub blobs: u64,
    /// Unpacked layers.
    pub layers: u64,
    /// Left-overs of cut operations.
    pub leftovers: u64,
    /// Bytes given back.
    pub bytes: u64,
}

/// The form of an exported archive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ArchiveFormat {
    /// OCI image layout in a tar.
    #[default]
    Oci,
    /// What `docker save` writes.
    Docker,
}
