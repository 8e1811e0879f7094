//! Image records: one file per name, `images/SHA256-OF-NAME.json`, so that moving a tag is one rename.
//!
//! Several processes share the directory. A writer holds the store's lock, removes `images/.generation`, changes records, and
//! writes a new generation. A reader that finds the same generation before and after reading may keep what it read for as long
//! as that generation stands: a change can only happen while there is none.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use orlop_distribution::blobs::BlobStore;
use orlop_distribution::manifest::CONFIG_LIMIT;
use orlop_types::{Digest, Reference};
use serde::{Deserialize, Serialize};

use crate::files::{
    Paths, StoreLock, children, read_json, remove_path, sync_directory, unique_name, write_json,
};
use crate::{ImageError, ImageRecord};

/// What one name stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NameRecord {
    pub(crate) version: u32,
    /// A normalised reference with a tag or a digest, or the image id of an image without a name.
    pub(crate) name: String,
    /// What the name stands for in a registry: an index or the manifest.
    pub(crate) target: Digest,
    /// Indexes from the target to the manifest.
    pub(crate) indexes: Vec<Digest>,
    pub(crate) manifest: Digest,
    pub(crate) config: Digest,
    /// Compressed layers, bottom first.
    pub(crate) layers: Vec<Digest>,
    /// Chain ids, bottom first.
    pub(crate) chain: Vec<Digest>,
    pub(crate) size: u64,
    pub(crate) pinned: bool,
}

impl NameRecord {
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Digest> {
        self.indexes.iter().chain([&self.target, &self.manifest, &self.config]).chain(&self.layers)
    }

    /// Whether the name is a reference with this digest, by any document on the way down to the manifest.
    fn answers_to(&self, reference: &Reference, digest: &Digest) -> bool {
        let named = Reference::parse(&self.name).is_ok_and(|own| own.name() == reference.name());
        named && (self.target == *digest || self.manifest == *digest || self.indexes.contains(digest))
    }
}

/// All records at one moment.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) names: Vec<NameRecord>,
    /// By image id.
    pub(crate) images: BTreeMap<String, ImageRecord>,
}

pub(crate) struct Catalog {
    paths: Paths,
    blobs: BlobStore,
    /// References, or beginnings of them that end with a star.
    pinned: Vec<String>,
    cached: Mutex<Option<(String, Arc<Snapshot>)>>,
}

impl Catalog {
    pub(crate) fn new(paths: Paths, blobs: BlobStore, pinned: &[String]) -> Self {
        let normalised = |text: &String| match Reference::parse(text) {
            Ok(reference) => reference.to_string(),
            Err(_) => text.clone(),
        };
        Self { paths, blobs, pinned: pinned.iter().map(normalised).collect(), cached: Mutex::default() }
    }

    fn is_pinned(&self, name: &str) -> bool {
        self.pinned.iter().any(|pinned| match pinned.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => name == pinned,
        })
    }

    /// The records as they are now.
    pub(crate) fn snapshot(&self) -> Result<Arc<Snapshot>, ImageError> {
        let before = self.generation();
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(before), Some((generation, snapshot))) = (&before, &*cached)
            && before == generation
        {
            return Ok(Arc::clone(snapshot));
        }
        let previous = cached.as_ref().map(|(_, snapshot)| Arc::clone(snapshot));
        let snapshot = Arc::new(self.load(previous.as_deref())?);
        *cached = before
            .filter(|before| self.generation().as_ref() == Some(before))
            .map(|before| (before, Arc::clone(&snapshot)));
        Ok(snapshot)
    }

    fn generation_path(&self) -> PathBuf {
        self.paths.images().join(".generation")
    }

    /// None while a change is under way, or after one was cut.
    pub(crate) fn generation(&self) -> Option<String> {
        read_json(&self.generation_path()).ok().flatten()
    }

    /// Runs `change` while nobody else reads from or writes to a cache. The caller proves that it holds the lock.
    pub(crate) fn change<T>(
        &self,
        _lock: &StoreLock,
        change: impl FnOnce() -> Result<T, ImageError>,
    ) -> Result<T, ImageError> {
        remove_path(&self.generation_path())?;
        let result = change();
        write_json(&self.generation_path(), &unique_name())?;
        // Names that went must be gone for good before what they needed is removed.
        sync_directory(&self.paths.images())?;
        result
    }

    /// Writes a record; to be called inside [`Catalog::change`].
    pub(crate) fn put(&self, record: &NameRecord) -> Result<(), ImageError> {
        write_json(&self.path(&record.name), record)
    }

    /// Removes a name; to be called inside [`Catalog::change`].
    pub(crate) fn delete(&self, name: &str) -> Result<(), ImageError> {
        remove_path(&self.path(name))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.paths.images().join(format!("{}.json", Digest::sha256(name.as_bytes()).hex()))
    }

    /// Every record from disk. A record that cannot be read is an error: to a garbage collection it must not look like none.
    pub(crate) fn read_names(&self) -> Result<Vec<NameRecord>, ImageError> {
        let mut names = Vec::new();
        for path in children(&self.paths.images())? {
            if path.extension().is_some_and(|extension| extension == "json") {
                names.extend(read_json::<NameRecord>(&path)?);
            }
        }
        names.sort_by(|left, right| left.name.cmp(&right.name));
        Ok(names)
    }

    fn load(&self, previous: Option<&Snapshot>) -> Result<Snapshot, ImageError> {
        let names = self.read_names()?;
        let mut images: BTreeMap<String, ImageRecord> = BTreeMap::new();
        for name in &names {
            let id = name.config.to_string();
            if !images.contains_key(&id) {
                let known = previous.and_then(|previous| previous.images.get(&id));
                let config = match known {
                    Some(known) => Arc::clone(&known.config),
                    None => match self.read_config(&name.config) {
                        Ok(config) => Arc::new(config),
                        Err(error) => {
                            tracing::warn!(image = %name.name, %error, "image is left out of the list");
                            continue;
                        }
                    },
                };
                images.insert(id.clone(), record(name, config));
            }
            let Some(image) = images.get_mut(&id) else { continue };
            image.pinned |= name.pinned || self.is_pinned(&name.name);
            match Reference::parse(&name.name) {
                Ok(reference) if reference.digest().is_some() => image.digests.push(name.name.clone()),
                Ok(_) => image.tags.push(name.name.clone()),
                Err(_) => {}
            }
        }
        Ok(Snapshot { names, images })
    }

    /// Parses an image configuration, verified.
    pub(crate) fn read_config(
        &self,
        digest: &Digest,
    ) -> Result<oci_spec::image::ImageConfiguration, ImageError> {
        let damaged = |reason: String| ImageError::Damaged { digest: digest.clone(), reason };
        let content =
            self.blobs.read(digest, CONFIG_LIMIT)?.ok_or_else(|| damaged("it is missing".to_owned()))?;
        serde_json::from_slice(&content).map_err(|error| damaged(error.to_string()))
    }
}

fn record(name: &NameRecord, config: Arc<oci_spec::image::ImageConfiguration>) -> ImageRecord {
    ImageRecord {
        id: name.config.to_string(),
        tags: Vec::new(),
        digests: Vec::new(),
        size: name.size,
        config,
        manifest: name.manifest.clone(),
        chain: name.chain.clone(),
        pinned: false,
    }
}

/// Shortest prefix of an id that is looked up.
const PREFIX_LIMIT: usize = 4;

impl Snapshot {
    /// The image that a text names; see [`crate::ImageStore::find`].
    pub(crate) fn find(&self, text: &str) -> Result<Option<&ImageRecord>, ImageError> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        if let Some(image) = self.images.get(&format!("sha256:{hex}")) {
            return Ok(Some(image));
        }
        if let Some(name) = self.find_name(text) {
            return Ok(self.images.get(&name.config.to_string()));
        }
        if hex.len() < PREFIX_LIMIT || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(None);
        }
        let mut matching =
            self.images.iter().filter(|(id, _)| id[7..].starts_with(hex)).map(|(_, image)| image);
        match (matching.next(), matching.next()) {
            (Some(_), Some(_)) => Err(ImageError::Invalid {
                what: "image id",
                text: text.to_owned(),
                reason: "several images start with it".to_owned(),
            }),
            (found, _) => Ok(found),
        }
    }

    /// The record of a reference. With tag and digest the digest alone decides, as in Kubernetes.
    pub(crate) fn find_name(&self, text: &str) -> Option<&NameRecord> {
        let reference = Reference::parse(text).ok()?;
        match reference.digest() {
            None => {
                let name = reference.to_string();
                self.names.iter().find(|record| record.name == name)
            }
            Some(digest) => self.names.iter().find(|record| record.answers_to(&reference, digest)),
        }
    }
}
