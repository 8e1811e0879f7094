//! Blobs, images and indices to push.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256, Sha512};

/// Media types.
pub const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
/// Of an index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Of Docker's images.
pub const DOCKER_IMAGE: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Of Docker's indices.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Of a configuration.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Of a layer.
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Of `{}`.
pub const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// sha256.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// sha512.
pub fn digest_512(bytes: &[u8]) -> String {
    format!("sha512:{}", hex::encode(Sha512::digest(bytes)))
}

/// Bytes that nobody else has.
pub fn random(length: usize) -> Vec<u8> {
    let mut bytes = vec![0_u8; length];
    rand::fill(bytes.as_mut_slice());
    bytes
}

/// A descriptor of bytes.
pub fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

/// What belongs together.
#[derive(Clone, Debug)]
pub struct Image {
    /// The blobs: configuration and layers.
    pub blobs: Vec<Vec<u8>>,
    /// The document.
    pub manifest: Value,
}

impl Image {
    /// An image with two layers of its own.
    pub fn new() -> Self {
        Self::with_layers(2)
    }

    /// An image with that many layers.
    pub fn with_layers(count: usize) -> Self {
        let layers: Vec<Vec<u8>> = (0..count).map(|_| random(300)).collect();
        let identifiers: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "created": hex::encode(random(8)),
            "rootfs": {"type": "layers", "diff_ids": identifiers},
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": IMAGE,
            "config": descriptor(CONFIG, &config),
            "layers": layers.iter().map(|layer| descriptor(LAYER, layer)).collect::<Vec<_>>(),
        });
        Self { blobs: [vec![config], layers].concat(), manifest }
    }

    /// An artifact: an image with an empty configuration and one unknown layer.
    pub fn artifact(kind: &str) -> Self {
        let (config, layer) = (b"{}".to_vec(), random(100));
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": IMAGE,
            "artifactType": kind,
            "config": descriptor(EMPTY, &config),
            "layers": [descriptor("application/vnd.example.layer", &layer)],
        });
        Self { blobs: vec![config, layer], manifest }
    }

    /// With another field of the manifest.
    #[must_use]
    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.manifest[key] = value;
        self
    }

    /// The document's bytes.
    pub fn bytes(&self) -> Vec<u8> {
        self.manifest.to_string().into_bytes()
    }

    /// Its digest.
    pub fn digest(&self) -> String {
        digest(&self.bytes())
    }

    /// Its descriptor.
    pub fn descriptor(&self) -> Value {
        descriptor(IMAGE, &self.bytes())
    }
}

impl Default for Image {
    fn default() -> Self {
        Self::new()
    }
}

/// An index of those.
pub fn index(manifests: &[Value]) -> Value {
    json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests})
}
