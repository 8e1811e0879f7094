//! The documents of an OCI image layout as they are written here: sorted, so that the same images make the same bytes.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use orlop_distribution::manifest::{Descriptor, ImageIndex, OCI_INDEX};
use orlop_types::Reference;

/// `oci-layout`.
pub(crate) const VERSION_FILE: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// The full name, where skopeo and others look for it.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The full name, where containerd looks for it.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// A descriptor with its name.
pub(crate) fn named(descriptor: Descriptor, reference: &Reference) -> Descriptor {
    let name = reference.to_string();
    let annotations =
        BTreeMap::from([(REF_NAME.to_owned(), name.clone()), (CONTAINERD_NAME.to_owned(), name)]);
    Descriptor { annotations: Some(annotations), ..descriptor }
}

/// `index.json`.
pub(crate) fn index(entries: &BTreeMap<String, Descriptor>) -> Vec<u8> {
    let index = ImageIndex {
        schema_version: 2,
        media_type: Some(OCI_INDEX.to_owned()),
        artifact_type: None,
        manifests: entries.values().cloned().collect(),
        subject: None,
        annotations: None,
    };
    serde_json::to_vec(&index).expect("an index of strings and numbers is JSON")
}

/// The named entries of a directory's `index.json`, if there is one.
pub(crate) fn read_index(directory: &Path) -> anyhow::Result<BTreeMap<String, Descriptor>> {
    let path = directory.join("index.json");
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error).with_context(|| format!("failed to read {}", path.display())),
    };
    let index: ImageIndex =
        serde_json::from_slice(&bytes).with_context(|| format!("{} is no image index", path.display()))?;
    let named = index.manifests.into_iter().map(|entry| {
        let name = entry.annotation(REF_NAME).unwrap_or(entry.digest.as_str()).to_owned();
        (name, entry)
    });
    Ok(named.collect())
}

/// Replaces a file so that a kill leaves the old one or the new one.
pub(crate) fn replace(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let failed = || format!("failed to write {}", path.display());
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = path.with_file_name(name);
    let mut file = std::fs::File::create(&temporary).with_context(failed)?;
    file.write_all(content).and_then(|()| file.sync_all()).with_context(failed)?;
    std::fs::rename(&temporary, path).with_context(failed)?;
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::File::open(parent).and_then(|directory| directory.sync_all()).with_context(failed)?;
    }
    Ok(())
}
