//! Manifests and indexes as values: media types, descriptors, platform choice. Pure.
//!
//! OCI image-spec (manifest.md, image-index.md) and Docker's schema 2; both families are kept as they are, because rewriting a
//! manifest changes its digest.

use std::collections::BTreeMap;

use orlop_types::Digest;
use serde::{Deserialize, Serialize};

/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Docker image manifest, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// OCI image configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Uncompressed OCI layer.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// What a client that takes every manifest sends as `Accept`.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";
/// Most bytes of a manifest or index; distribution-spec asks registries to take at least 4 MiB.
pub const MANIFEST_LIMIT: u64 = 8 << 20;
/// Most bytes of an image configuration.
pub const CONFIG_LIMIT: u64 = 8 << 20;

/// Most layers of an image: overlayfs stacks 500 lower ones.
pub const LAYER_LIMIT: usize = 500;

/// Why a manifest was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or a field is missing or wrong.
    #[error("manifest is malformed: {0}")]
    Malformed(String),
    /// Docker's schema 1, which no registry has served for years.
    #[error(
        "manifest has Docker's schema 1, which is not supported: push the image again with a current tool"
    )]
    SchemaOne,
    /// The index has nothing for this machine.
    #[error("no image for {wanted} in the index, it has {}", if .offered.is_empty() { "nothing".to_owned() } else { .offered.join(", ") })]
    NoPlatform {
        /// This machine.
        wanted: Platform,
        /// What the index offers.
        offered: Vec<String>,
    },
    /// A layer that is no tar, or one that nobody here can read.
    #[error("layer {digest} has the unknown media type {media_type:?}")]
    UnknownLayer {
        /// The layer.
        digest: Digest,
        /// Its media type.
        media_type: String,
    },
    /// overlayfs stacks no more (OVL_MAX_STACK of Linux).
    #[error("image has {0} layers, at most {LAYER_LIMIT} can be mounted")]
    TooManyLayers(usize),
    /// The manifest is an artifact without an image in it.
    #[error("{0} is not a container image")]
    NotAnImage(String),
}

/// Operating system and processor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// GOARCH name: `amd64`, `arm64`.
    #[serde(default)]
    pub architecture: String,
    /// GOOS name: `linux`.
    #[serde(default)]
    pub os: String,
    /// Such as `v8` for arm64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Version of the operating system; of no meaning on Linux.
    #[serde(default, rename = "os.version", skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// Features of the operating system; of no meaning on Linux.
    #[serde(default, rename = "os.features", skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
}

impl Platform {
    /// A Linux machine.
    pub fn linux(architecture: &str, variant: Option<&str>) -> Self {
        Self {
            architecture: architecture.to_owned(),
            os: "linux".to_owned(),
            variant: variant.map(str::to_owned),
            ..Self::default()
        }
    }

    /// The machine this runs on.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "powerpc64" => "ppc64",
            "loongarch64" => "loong64",
            other => other,
        };
        Self::linux(architecture, None)
    }

    /// How well `self` runs on `host`: none when not at all, smaller is better. The rules are containerd's: a 64-bit processor also
    /// runs the 32-bit images of its family, when there is nothing better.
    fn rank(&self, host: &Platform) -> Option<u8> {
        if self.os != host.os {
            return None;
        }
        let variant = self.variant.as_deref().unwrap_or_default();
        let arm = |first: u8| match variant {
            "v8" => Some(first),
            "" | "v7" => Some(first + 1),
            "v6" => Some(first + 2),
            "v5" => Some(first + 3),
            _ => None,
        };
        match (host.architecture.as_str(), self.architecture.as_str()) {
            // Higher feature levels may use instructions that this processor has not.
            ("amd64", "amd64") => matches!(variant, "" | "v1").then_some(0),
            ("amd64", "386") => Some(10),
            ("arm64", "arm64") => matches!(variant, "" | "v8" | "v8.0").then_some(0),
            ("arm64", "arm") => arm(10),
            ("arm", "arm") => arm(0).filter(|rank| *rank > 0),
            (host, own) => (host == own).then_some(u8::from(!variant.is_empty())),
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match self.variant.as_deref() {
            None | Some("") => Ok(()),
            Some(variant) => write!(f, "/{variant}"),
        }
    }
}

/// What is known about a blob before it is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type of the content.
    pub media_type: String,
    /// Digest of the content.
    pub digest: Digest,
    /// Bytes of the content.
    pub size: u64,
    /// Where else the content may be had.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// Free annotations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// For what machine, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Kind of artifact, in a referrers list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

impl Descriptor {
    /// A descriptor of three fields.
    pub fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Self {
        let media_type = media_type.into();
        Self {
            media_type,
            digest,
            size,
            urls: Vec::new(),
            annotations: None,
            platform: None,
            artifact_type: None,
        }
    }

    /// An annotation's value.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }
}

/// An image of one platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageManifest {
    /// Always 2.
    pub schema_version: u32,
    /// Optional in OCI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Kind of artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The image configuration.
    pub config: Descriptor,
    /// Layers, bottom first.
    #[serde(default)]
    pub layers: Vec<Descriptor>,
    /// The manifest that this one is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free annotations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// A list of manifests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageIndex {
    /// Always 2.
    pub schema_version: u32,
    /// Optional in OCI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Kind of artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The manifests.
    #[serde(default)]
    pub manifests: Vec<Descriptor>,
    /// The manifest that this one is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free annotations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

impl ImageIndex {
    /// The manifest or nested index that fits `host` best. Attestations (`unknown/unknown`) never do. Entries without a platform
    /// are taken when nothing else fits.
    ///
    /// # Errors
    /// [`ManifestError::NoPlatform`] names what is offered.
    pub fn choose(&self, host: &Platform) -> Result<&Descriptor, ManifestError> {
        let images = || {
            self.manifests
                .iter()
                .filter(|entry| is_manifest(&entry.media_type) || is_index(&entry.media_type))
        };
        let ranked = images().filter_map(|entry| Some((entry.platform.as_ref()?.rank(host)?, entry)));
        // min_by_key keeps the first of equals: the index's order is its author's preference.
        if let Some((_, best)) = ranked.min_by_key(|(rank, _)| *rank) {
            return Ok(best);
        }
        images().find(|entry| entry.platform.is_none()).ok_or_else(|| ManifestError::NoPlatform {
            wanted: host.clone(),
            offered: self
                .manifests
                .iter()
                .filter_map(|entry| Some(entry.platform.as_ref()?.to_string()))
                .collect(),
        })
    }
}

/// What a manifest document turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Manifest {
    /// One platform.
    Image(Box<ImageManifest>),
    /// Several.
    Index(Box<ImageIndex>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    schema_version: Option<u32>,
    media_type: Option<String>,
    config: Option<serde::de::IgnoredAny>,
    manifests: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

impl Manifest {
    /// Parses a manifest or index. `media_type` is what the outside said about it (a header, a descriptor), if it said anything.
    ///
    /// A document that is both (`manifests` beside `config` or `layers`) is refused: two readers would see two images
    /// (CVE-2021-41190).
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn parse(bytes: &[u8], media_type: Option<&str>) -> Result<Self, ManifestError> {
        let malformed = |error: serde_json::Error| ManifestError::Malformed(error.to_string());
        let probe: Probe = serde_json::from_slice(bytes).map_err(malformed)?;
        if probe.schema_version == Some(1) || probe.fs_layers.is_some() {
            return Err(ManifestError::SchemaOne);
        }
        if probe.schema_version != Some(2) {
            return Err(ManifestError::Malformed("schemaVersion is not 2".to_owned()));
        }
        if probe.manifests.is_some() && (probe.config.is_some() || probe.layers.is_some()) {
            return Err(ManifestError::Malformed("it is a manifest and an index at once".to_owned()));
        }
        let said = media_type.filter(|said| is_manifest(said) || is_index(said));
        if let (Some(said), Some(own)) = (said, probe.media_type.as_deref())
            && said != own
        {
            return Err(ManifestError::Malformed(format!("it says {own:?} but was announced as {said:?}")));
        }
        let stated = probe.media_type.as_deref().or(said);
        let index = stated.map_or(probe.manifests.is_some(), is_index);
        if index {
            serde_json::from_slice(bytes).map(Manifest::Index).map_err(malformed)
        } else {
            serde_json::from_slice(bytes).map(Manifest::Image).map_err(malformed)
        }
    }

    /// The media type the document has, by its own word or by its shape.
    pub fn media_type(&self) -> &str {
        match self {
            Manifest::Image(image) => image.media_type.as_deref().unwrap_or(OCI_MANIFEST),
            Manifest::Index(index) => index.media_type.as_deref().unwrap_or(OCI_INDEX),
        }
    }

    /// The manifest that this one is about.
    pub fn subject(&self) -> Option<&Descriptor> {
        match self {
            Manifest::Image(image) => image.subject.as_ref(),
            Manifest::Index(index) => index.subject.as_ref(),
        }
    }
}

/// The parts of an image configuration that decide how its layers are used.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ConfigSummary {
    /// The machine it is for.
    #[serde(flatten)]
    pub platform: Platform,
    /// Digests of the uncompressed layers.
    pub rootfs: RootFs,
}

/// `rootfs` of an image configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct RootFs {
    /// Digests of the uncompressed layers, bottom first.
    #[serde(default)]
    pub diff_ids: Vec<Digest>,
}

impl ConfigSummary {
    /// Parses a configuration and checks it against its manifest and the machine.
    ///
    /// # Errors
    /// [`ManifestError`]; an image for another machine is [`ManifestError::NoPlatform`].
    pub fn parse(bytes: &[u8], manifest: &ImageManifest, host: &Platform) -> Result<Self, ManifestError> {
        let config: ConfigSummary = serde_json::from_slice(bytes)
            .map_err(|error| ManifestError::Malformed(format!("image configuration: {error}")))?;
        let layers = manifest.layers.len();
        let diff_ids = config.rootfs.diff_ids.len();
        if layers != diff_ids {
            let reason = format!("{layers} layers but the image configuration names {diff_ids}");
            return Err(ManifestError::Malformed(reason));
        }
        // Some builders leave the fields empty; then nothing is known against the image.
        let platform = &config.platform;
        let stated = Platform {
            architecture: if platform.architecture.is_empty() {
                &host.architecture
            } else {
                &platform.architecture
            }
            .clone(),
            os: if platform.os.is_empty() { &host.os } else { &platform.os }.clone(),
            ..Platform::default()
        };
        if stated.rank(host).is_none() {
            return Err(ManifestError::NoPlatform {
                wanted: host.clone(),
                offered: vec![stated.to_string()],
            });
        }
        Ok(config)
    }
}

/// Whether this is the media type of an image configuration, and not that of some other artifact.
pub fn is_image_config(media_type: &str) -> bool {
    matches!(
        media_type,
        OCI_CONFIG | "application/vnd.docker.container.image.v1+json" | "application/octet-stream"
    )
}

/// What a layer's media type says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind {
    /// A tar, compressed or not.
    Ordinary,
    /// A tar that a registry need not hold (image-spec layer.md, "Non-Distributable Layers").
    Foreign,
}

/// The kind of a layer by its media type; none for what is not known. How a layer is compressed is told by its content.
pub fn layer_kind(media_type: &str) -> Option<LayerKind> {
    let (base, compression) = match media_type.strip_prefix("application/vnd.docker.image.rootfs.") {
        Some(rest) => match rest.split_once(".tar") {
            Some((base, compression)) => (base, compression.strip_prefix('.').unwrap_or(compression)),
            None => return None,
        },
        None => {
            let (base, compression) =
                media_type.strip_prefix("application/vnd.oci.image.layer.")?.split_once(".tar")?;
            (base, compression.strip_prefix('+').unwrap_or(compression))
        }
    };
    if !matches!(compression, "" | "gzip" | "zstd") {
        return None;
    }
    match base {
        "v1" | "diff" => Some(LayerKind::Ordinary),
        "nondistributable.v1" | "foreign.diff" => Some(LayerKind::Foreign),
        _ => None,
    }
}

impl ImageManifest {
    /// Checks that every layer can be read here.
    ///
    /// # Errors
    /// [`ManifestError::UnknownLayer`], [`ManifestError::TooManyLayers`], or sizes that cannot be.
    pub fn check_layers(&self) -> Result<(), ManifestError> {
        if self.layers.len() > LAYER_LIMIT {
            return Err(ManifestError::TooManyLayers(self.layers.len()));
        }
        for layer in &self.layers {
            if layer_kind(&layer.media_type).is_none() {
                let (digest, media_type) = (layer.digest.clone(), layer.media_type.clone());
                return Err(ManifestError::UnknownLayer { digest, media_type });
            }
        }
        self.size().map(|_| ())
    }

    /// Bytes of configuration and layers as announced.
    ///
    /// # Errors
    /// More than any disk holds.
    pub fn size(&self) -> Result<u64, ManifestError> {
        let mut sizes = self.layers.iter().map(|layer| layer.size);
        sizes
            .try_fold(self.config.size, u64::checked_add)
            .filter(|sum| *sum < 1 << 60)
            .ok_or_else(|| ManifestError::Malformed("its layers have impossible sizes".to_owned()))
    }
}

/// Whether this media type is an image manifest.
pub fn is_manifest(media_type: &str) -> bool {
    matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST)
}

/// Whether this media type is an index.
pub fn is_index(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_LIST)
}

/// The chain ids of layers with these diff ids, bottom first (image-spec config.md, "Layer ChainID").
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = match chain.last() {
            None => diff_id.clone(),
            Some(below) => Digest::sha256(format!("{below} {diff_id}").as_bytes()),
        };
        chain.push(next);
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

    fn entry(architecture: &str, os: &str, variant: Option<&str>) -> Descriptor {
        let mut descriptor =
            Descriptor::new(OCI_MANIFEST, Digest::sha256(format!("{architecture}{variant:?}").as_bytes()), 1);
        descriptor.platform = Some(Platform { os: os.into(), ..Platform::linux(architecture, variant) });
        descriptor
    }

    fn index(manifests: Vec<Descriptor>) -> ImageIndex {
        ImageIndex {
            schema_version: 2,
            media_type: None,
            artifact_type: None,
            manifests,
            subject: None,
            annotations: None,
        }
    }

    fn amd64() -> Platform {
        Platform::linux("amd64", None)
    }

    #[test]
    fn platform_choice() {
        let all = index(vec![
            entry("amd64", "windows", None),
            entry("amd64", "linux", Some("v3")),
            entry("arm64", "linux", Some("v8")),
            entry("amd64", "linux", None),
            entry("unknown", "unknown", None),
        ]);
        assert_eq!(all.choose(&amd64()).unwrap(), &all.manifests[3]);
        let arm = Platform { architecture: "arm64".into(), ..amd64() };
        assert_eq!(all.choose(&arm).unwrap(), &all.manifests[2]);
        let none = index(vec![entry("arm64", "linux", None), entry("unknown", "unknown", None)]);
        let error = none.choose(&amd64()).unwrap_err().to_string();
        assert_eq!(error, "no image for linux/amd64 in the index, it has linux/arm64, unknown/unknown");
    }

    #[test]
    fn variants() {
        let offered = [
            ("arm", "v5"),
            ("arm", "v7"),
            ("arm64", "v8"),
            ("386", ""),
            ("amd64", "v2"),
            ("amd64", "v1"),
            ("s390x", ""),
        ];
        let all = index(
            offered.map(|(architecture, variant)| entry(architecture, "linux", Some(variant))).to_vec(),
        );
        let without = |best: &str| {
            index(
                all.manifests
                    .iter()
                    .filter(|entry| entry.platform.as_ref().unwrap().architecture != best)
                    .cloned()
                    .collect(),
            )
        };
        let chosen = |index: &ImageIndex, host: &str| {
            index
                .choose(&Platform::linux(host, None))
                .ok()
                .and_then(|entry| entry.platform.clone())
                .map(|platform| platform.to_string())
        };
        for (host, best, next) in [
            ("amd64", Some("linux/amd64/v1"), Some("linux/386")),
            ("arm64", Some("linux/arm64/v8"), Some("linux/arm/v7")),
            ("arm", Some("linux/arm/v7"), None),
            ("s390x", Some("linux/s390x"), None),
            ("riscv64", None, None),
        ] {
            assert_eq!(chosen(&all, host).as_deref(), best, "{host}");
            assert_eq!(chosen(&without(host), host).as_deref(), next, "{host}");
        }
        let text =
            r#"{"architecture":"amd64","os":"windows","os.version":"10.0.1","os.features":["win32k"]}"#;
        let platform: Platform = serde_json::from_str(text).unwrap();
        assert_eq!(platform.os_version.as_deref(), Some("10.0.1"));
        assert_eq!(serde_json::to_string(&platform).unwrap(), text);
    }

    #[test]
    fn kinds_of_layers() {
        for (media_type, kind) in [
            ("application/vnd.oci.image.layer.v1.tar", Some(LayerKind::Ordinary)),
            ("application/vnd.oci.image.layer.v1.tar+gzip", Some(LayerKind::Ordinary)),
            ("application/vnd.oci.image.layer.v1.tar+zstd", Some(LayerKind::Ordinary)),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", Some(LayerKind::Ordinary)),
            ("application/vnd.docker.image.rootfs.diff.tar", Some(LayerKind::Ordinary)),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", Some(LayerKind::Foreign)),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Some(LayerKind::Foreign)),
            ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", None),
            ("application/vnd.oci.image.layer.v1.tar.gzip2", None),
            ("application/vnd.cncf.helm.chart.content.v1.tar+gzip", None),
            ("application/vnd.oci.empty.v1+json", None),
            ("", None),
        ] {
            assert_eq!(layer_kind(media_type), kind, "{media_type}");
        }
    }

    #[test]
    fn sizes_that_lie() {
        let manifest = |sizes: &[&str]| {
            let layers: Vec<String> = sizes
                .iter()
                .map(|size| format!(r#"{{"mediaType":"{OCI_LAYER}","digest":"{HEX}","size":{size}}}"#))
                .collect();
            let text = format!(
                r#"{{"schemaVersion":2,"config":{{"mediaType":"{OCI_CONFIG}","digest":"{HEX}","size":2}},"layers":[{}]}}"#,
                layers.join(",")
            );
            match Manifest::parse(text.as_bytes(), None)? {
                Manifest::Image(image) => image.check_layers(),
                Manifest::Index(_) => unreachable!(),
            }
        };
        assert_eq!(manifest(&["1", "2"]), Ok(()));
        for sizes in [
            &["-1"][..],
            &["18446744073709551615", "5"],
            &["18446744073709551616"],
            &["1.5"],
            &["1152921504606846976"],
        ] {
            assert!(manifest(sizes).is_err(), "{sizes:?}");
        }
        assert!(matches!(manifest(&["1"; 501]), Err(ManifestError::TooManyLayers(501))));
    }

    proptest::proptest! {
        #[test]
        fn no_document_makes_it_panic(
            keys in proptest::collection::vec((proptest::sample::select(vec!["schemaVersion", "mediaType", "config", "layers", "manifests",
                "fsLayers", "digest", "size", "platform", "os", "architecture", "rootfs", "diff_ids", "urls", "annotations"]), 0..12usize), 0..12),
            noise in ".{0,40}",
        ) {
            let values = ["2", "1", "null", "[]", "{}", "-1", "1e999", "\"x\"", "[[[[{}]]]]", "[{\"digest\":\"sha256:..\"}]",
                "{\"diff_ids\":[1]}", "{\"mediaType\":\"a\",\"size\":2}"];
            let members: Vec<String> = keys.iter().map(|(key, value)| format!("\"{key}\":{}", values[*value])).collect();
            let text = format!("{{{}}}{}", members.join(","), if keys.len() % 3 == 0 { noise.as_str() } else { "" });
            let parsed = Manifest::parse(text.as_bytes(), Some(OCI_MANIFEST));
            if let Ok(Manifest::Image(image)) = &parsed {
                let _ = (image.check_layers(), ConfigSummary::parse(text.as_bytes(), image, &amd64()));
            }
            let _ = Manifest::parse(noise.as_bytes(), None);
        }
    }

    #[test]
    fn deep_documents_are_refused() {
        let text = format!("{{\"schemaVersion\":2,\"annotations\":{}", "[".repeat(100_000));
        assert!(Manifest::parse(text.as_bytes(), None).is_err());
    }

    #[test]
    fn a_document_is_one_thing() {
        let descriptor = format!(r#"{{"mediaType":"a","digest":"{HEX}","size":2}}"#);
        let image = format!(r#"{{"schemaVersion":2,"config":{descriptor},"layers":[]}}"#);
        assert!(matches!(Manifest::parse(image.as_bytes(), None), Ok(Manifest::Image(_))));
        assert!(matches!(
            Manifest::parse(br#"{"schemaVersion":2,"manifests":[]}"#, None),
            Ok(Manifest::Index(_))
        ));
        for (bad, said) in [
            (format!(r#"{{"schemaVersion":2,"config":{descriptor},"layers":[],"manifests":[]}}"#), None),
            (
                format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[]}}"#),
                Some(OCI_MANIFEST),
            ),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(), None),
            (r#"{"schemaVersion":2}"#.to_owned(), None),
            ("[]".to_owned(), None),
            (
                r#"{"schemaVersion":2,"config":{"mediaType":"a","digest":"sha256:../..","size":2}}"#
                    .to_owned(),
                None,
            ),
        ] {
            assert!(Manifest::parse(bad.as_bytes(), said).is_err(), "{bad}");
        }
    }

    #[test]
    fn chain_ids_of_the_specification() {
        let (a, b) = (Digest::sha256(b"a"), Digest::sha256(b"b"));
        let chain = chain_ids(&[a.clone(), b.clone()]);
        assert_eq!(chain, vec![a.clone(), Digest::sha256(format!("{a} {b}").as_bytes())]);
    }
}
