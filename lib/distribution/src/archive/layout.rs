//! OCI image layout (image-spec image-layout.md).

use orlop_types::{Digest, Reference};

use super::docker::repo_tags_by_config;
use super::forms;
use super::members::Members;
use super::{ArchiveError, ArchiveImage, CONTAINERD_NAME, REF_NAME, ReadOptions};
use crate::manifest::{
    CONFIG_LIMIT, ConfigSummary, Descriptor, ImageIndex, MANIFEST_LIMIT, Manifest, is_image_config, is_index,
    is_manifest,
};

/// Indexes may nest, but nobody nests deeper.
const DEPTH_LIMIT: usize = 4;
/// What the layers of signatures and attestations are.
const SIGNATURES: [&str; 2] = ["application/vnd.dev.cosign.", "application/vnd.dsse."];

pub(super) fn images(
    members: &mut Members<'_>,
    options: &ReadOptions,
) -> Result<Vec<ArchiveImage>, ArchiveError> {
    let document = members.document("index.json")?;
    let index: ImageIndex =
        serde_json::from_slice(&document).map_err(|error| members.entry("index.json", error))?;
    let candidates = index.manifests.iter().filter(|entry| {
        (is_manifest(&entry.media_type) || is_index(&entry.media_type)) && !forms::is_signature(entry)
    });
    let (named, unnamed): (Vec<&Descriptor>, Vec<&Descriptor>) =
        candidates.partition(|entry| name_annotation(entry).is_some());
    let mut images = Vec::new();
    for descriptor in named {
        let name = name_annotation(descriptor).unwrap_or_default();
        if let Some(mut image) = resolve(members, descriptor, options)? {
            image.names.push(reference(name, options).map_err(|reason| members.entry("index.json", reason))?);
            images.push(image);
        }
    }
    for descriptor in unnamed_images(&index, &unnamed, members, options)? {
        // The same image may stand there with a name, too.
        if images.iter().any(|image| image.target == descriptor.digest) {
            continue;
        }
        let Some(mut image) = resolve(members, descriptor, options)? else { continue };
        image.names = repo_tags_by_config(members, &image.manifest.config.digest)?;
        if image.names.is_empty() {
            image.names.extend(options.base_name.clone());
        }
        images.push(image);
    }
    Ok(images)
}

/// Descriptors without a name: one image per platform is one image, otherwise each is an image of its own.
fn unnamed_images<'a>(
    index: &'a ImageIndex,
    unnamed: &[&'a Descriptor],
    members: &Members<'_>,
    options: &ReadOptions,
) -> Result<Vec<&'a Descriptor>, ArchiveError> {
    let with_platform = unnamed.iter().filter(|entry| entry.platform.is_some()).count();
    if unnamed.is_empty() || with_platform < 2 || with_platform != unnamed.len() {
        return Ok(unnamed.to_vec());
    }
    let alike =
        ImageIndex { manifests: unnamed.iter().map(|entry| (*entry).clone()).collect(), ..index.clone() };
    let chosen = alike.choose(&options.host).map_err(|error| members.entry("index.json", error))?;
    Ok(unnamed.iter().filter(|entry| entry.digest == chosen.digest).take(1).copied().collect())
}

fn name_annotation(descriptor: &Descriptor) -> Option<&str> {
    [CONTAINERD_NAME, REF_NAME]
        .into_iter()
        .find_map(|key| descriptor.annotation(key))
        .filter(|name| !name.is_empty())
}

/// A name as written by tools: a full reference, a short one, or (with a base name) a tag alone.
fn reference(name: &str, options: &ReadOptions) -> Result<Reference, String> {
    let bare = !name.contains(['/', ':', '@']);
    match &options.base_name {
        Some(base) if bare => base.with_tag(name),
        _ => Reference::parse(name),
    }
    .map_err(|error| format!("image name {name:?}: {error}"))
}

/// Follows a descriptor down to this machine's manifest; none when it is no container image.
fn resolve(
    members: &mut Members<'_>,
    target: &Descriptor,
    options: &ReadOptions,
) -> Result<Option<ArchiveImage>, ArchiveError> {
    let mut descriptor = target.clone();
    let mut indexes: Vec<Digest> = Vec::new();
    for _ in 0..DEPTH_LIMIT {
        let digest = descriptor.digest.clone();
        check_size(members, &descriptor, "a manifest")?;
        let bytes = members.read(&digest, MANIFEST_LIMIT)?;
        let parsed = Manifest::parse(&bytes, Some(&descriptor.media_type));
        match parsed.map_err(|error| members.manifest_error(&digest, error))? {
            Manifest::Index(index) => {
                let chosen =
                    index.choose(&options.host).map_err(|error| members.manifest_error(&digest, error))?;
                descriptor = chosen.clone();
                indexes.push(digest);
            }
            Manifest::Image(manifest) => {
                // cosign keeps signatures as images whose layers are no layers.
                let is_signature =
                    |layer: &Descriptor| SIGNATURES.iter().any(|kind| layer.media_type.starts_with(kind));
                if !is_image_config(&manifest.config.media_type) || manifest.layers.iter().any(is_signature) {
                    return Ok(None);
                }
                manifest.check_layers().map_err(|error| members.manifest_error(&digest, error))?;
                check_size(members, &manifest.config, "the configuration of an image")?;
                for layer in &manifest.layers {
                    check_size(members, layer, "a layer of an image")?;
                }
                let config = members.read(&manifest.config.digest, CONFIG_LIMIT)?;
                let config = ConfigSummary::parse(&config, &manifest, &options.host)
                    .map_err(|error| members.manifest_error(&manifest.config.digest, error))?;
                return Ok(Some(ArchiveImage {
                    names: Vec::new(),
                    target: target.digest.clone(),
                    indexes,
                    manifest_digest: digest,
                    manifest: *manifest,
                    config,
                }));
            }
        }
    }
    Err(members.entry(target.digest.to_string(), "indexes are nested too deeply"))
}

fn check_size(members: &mut Members<'_>, descriptor: &Descriptor, what: &str) -> Result<(), ArchiveError> {
    let actual = members.blob(&descriptor.digest, what)?;
    if actual == descriptor.size {
        return Ok(());
    }
    let reason = format!("has {actual} bytes, its descriptor says {}", descriptor.size);
    Err(members.entry(descriptor.digest.to_string(), reason))
}
