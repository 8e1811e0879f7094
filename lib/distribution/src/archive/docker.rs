//! What `docker save` writes: `manifest.json` naming a configuration and layers by path (moby image/spec/v1.2).

use orlop_types::{Digest, Reference};
use serde::Deserialize;

use super::members::Members;
use super::{ArchiveError, ArchiveImage, ReadOptions};
use crate::compression::Compression;
use crate::manifest::{
    CONFIG_LIMIT, ConfigSummary, Descriptor, ImageManifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST,
};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// Whether there is docker's list: skopeo's `dir` has a manifest under the same name.
pub(super) fn is_saved(members: &Members<'_>) -> Result<bool, ArchiveError> {
    if !members.contains("manifest.json") {
        return Ok(false);
    }
    let document = members.document("manifest.json")?;
    Ok(document.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'['))
}

pub(super) fn images(
    members: &mut Members<'_>,
    options: &ReadOptions,
) -> Result<Vec<ArchiveImage>, ArchiveError> {
    let mut images = Vec::new();
    for entry in entries(members)? {
        images.push(image(members, &entry, options)?);
    }
    Ok(images)
}

/// The tags that the `manifest.json` beside an OCI layout gives to the image with this configuration (docker 25 and later).
pub(super) fn repo_tags_by_config(
    members: &Members<'_>,
    config: &Digest,
) -> Result<Vec<Reference>, ArchiveError> {
    if !members.contains("manifest.json") {
        return Ok(Vec::new());
    }
    let path = format!("blobs/{}/{}", config.algorithm().name(), config.hex());
    let mut names = Vec::new();
    for entry in entries(members)?.iter().filter(|entry| entry.config == path) {
        names.extend(tags(members, entry)?);
    }
    Ok(names)
}

fn entries(members: &Members<'_>) -> Result<Vec<Entry>, ArchiveError> {
    let document = members.document("manifest.json")?;
    serde_json::from_slice(&document).map_err(|error| members.entry("manifest.json", error))
}

fn tags(members: &Members<'_>, entry: &Entry) -> Result<Vec<Reference>, ArchiveError> {
    let parse = |tag: &String| {
        Reference::parse(tag)
            .map_err(|error| members.entry("manifest.json", format!("image name {tag:?}: {error}")))
    };
    entry.repo_tags.iter().flatten().map(parse).collect()
}

fn image(
    members: &mut Members<'_>,
    entry: &Entry,
    options: &ReadOptions,
) -> Result<ArchiveImage, ArchiveError> {
    let (config_digest, config_size) = members.member(&entry.config)?;
    let mut layers = Vec::new();
    for path in entry.layers.iter().flatten() {
        let (digest, size) = members.member(path)?;
        let start = members.start(&digest)?;
        let compression = Compression::detect(&start).map_err(|error| members.entry(path, error))?;
        layers.push(Descriptor::new(format!("{OCI_LAYER}{}", compression.media_type_suffix()), digest, size));
    }
    // The archive has no manifest: this one is made so that the same archive always gives the same digest.
    let manifest = ImageManifest {
        schema_version: 2,
        media_type: Some(OCI_MANIFEST.to_owned()),
        artifact_type: None,
        config: Descriptor::new(OCI_CONFIG, config_digest.clone(), config_size),
        layers,
        subject: None,
        annotations: None,
    };
    let config = members.read(&config_digest, CONFIG_LIMIT)?;
    let config = ConfigSummary::parse(&config, &manifest, &options.host)
        .map_err(|error| members.manifest_error(&config_digest, error))?;
    let bytes = serde_json::to_vec(&manifest).expect("a manifest of strings and numbers is JSON");
    let manifest_digest = members.add(&bytes)?;
    let mut names = tags(members, entry)?;
    if names.is_empty() {
        names.extend(options.base_name.clone());
    }
    let target = manifest_digest.clone();
    Ok(ArchiveImage { names, target, indexes: Vec::new(), manifest_digest, manifest, config })
}
