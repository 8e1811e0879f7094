//! What the members of an archive mean: one function per form.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, Read as _};
use std::sync::Arc;

use orlop_types::{Algorithm, Digest, Digester, Reference};
use serde::Deserialize;

use super::contents::{Files, Form, Place, Root};
use super::{ArchiveError, CONTAINERD_NAME, REF_NAME};
use crate::compression::Compression;
use crate::manifest::{
    Descriptor, ImageIndex, ImageManifest, MANIFEST_LIMIT, Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST,
    is_index, is_manifest,
};

/// zarf's place for the full name (elsewhere the name of the image that this one was built on, so it is looked at last).
const BASE_NAME: &str = "org.opencontainers.image.base.name";
/// hauler's annotation of what a descriptor is to the image of the same name.
const KIND: &str = "kind";
/// Longest file of a registry's tree that holds a digest.
const LINK_BYTES: u64 = 256;
/// Deepest place of an image layout.
const LAYOUT_DEPTH: usize = 4;

pub(super) struct Found {
    pub(super) form: Form,
    pub(super) roots: Vec<Root>,
    pub(super) blobs: HashMap<Digest, Place>,
}

/// `manifest.json` of `docker save`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

pub(super) fn find(files: &Files) -> Result<Found, ArchiveError> {
    let mut blobs = HashMap::new();
    for name in files.members.keys() {
        if let (Some(digest), Some(place)) = (blob_name(name), files.place(name)) {
            blobs.insert(digest, place.clone());
        }
    }
    let (form, roots) = if let Some(layouts) = layouts(files) {
        let mut roots = Vec::new();
        for index in layouts {
            roots.extend(layout(files, &blobs, &index)?);
        }
        (Form::Layout, roots)
    } else if let Some(saved) = saved(files)? {
        (Form::DockerSave, docker(files, &mut blobs, &saved)?)
    } else if let Some(links) = tree_links(files) {
        (Form::RegistryTree, tree(files, &blobs, &links)?)
    } else {
        let roots = skopeo_dirs(files, &mut blobs)?;
        if roots.is_empty() {
            let known = "an OCI image layout (index.json), docker-save (manifest.json), a registry's tree (repositories/ and blobs/) or skopeo's dir";
            return Err(files.format(format!("no images are found in it: it is not {known}")));
        }
        (Form::SkopeoDir, roots)
    };
    Ok(Found { form, roots, blobs })
}

/// The digest that a member's name says: `blobs/sha256/HEX`, `blobs/sha256/HE/HEX/data`, or the bare `HEX` of skopeo's `dir`.
fn blob_name(name: &str) -> Option<Digest> {
    let parts: Vec<&str> = name.rsplit('/').take(5).collect();
    match parts.as_slice() {
        ["data", hex, start, algorithm, "blobs", ..] if hex.starts_with(start) => {
            format!("{algorithm}:{hex}").parse().ok()
        }
        [hex, algorithm, "blobs", ..] => format!("{algorithm}:{hex}").parse().ok(),
        [hex, ..] => format!("sha256:{}", hex.strip_suffix(".manifest.json").unwrap_or(hex)).parse().ok(),
        [] => None,
    }
}

/// The `index.json` files that head an image layout.
fn layouts(files: &Files) -> Option<Vec<String>> {
    let heads = |name: &&String| {
        let Some(prefix) = name.strip_suffix("index.json") else { return false };
        if !(prefix.is_empty() || prefix.ends_with('/')) || prefix.matches('/').count() > LAYOUT_DEPTH {
            return false;
        }
        let blobs = format!("{prefix}blobs/");
        let has_blobs =
            files.members.range(blobs.clone()..).next().is_some_and(|(name, _)| name.starts_with(&blobs));
        has_blobs || files.members.contains_key(&format!("{prefix}oci-layout"))
    };
    let found: Vec<String> = files.members.keys().filter(heads).cloned().collect();
    (!found.is_empty()).then_some(found)
}

fn layout(files: &Files, blobs: &HashMap<Digest, Place>, index: &str) -> Result<Vec<Root>, ArchiveError> {
    let document = files.document(index, MANIFEST_LIMIT)?.unwrap_or_default();
    let parsed: ImageIndex = serde_json::from_slice(&document).map_err(|error| files.entry(index, error))?;
    // docker's own names of what it saved as a layout.
    let saved = saved(files)?.unwrap_or_default();
    let mut roots = Vec::new();
    for descriptor in parsed.manifests {
        if !is_manifest(&descriptor.media_type) && !is_index(&descriptor.media_type) {
            continue;
        }
        let text = [CONTAINERD_NAME, REF_NAME, BASE_NAME]
            .into_iter()
            .find_map(|key| descriptor.annotation(key).filter(|text| !text.is_empty()).map(str::to_owned));
        match text {
            Some(text) if text.contains(['/', ':', '@']) => {
                let name = name(files, index, &text)?;
                roots.push(Root { name: Some(name), label: None, descriptor });
            }
            Some(text) => roots.push(Root { name: None, label: Some(text), descriptor }),
            None => {
                let names = saved_names(files, blobs, &saved, &descriptor.digest)?;
                if names.is_empty() {
                    roots.push(Root { name: None, label: None, descriptor: descriptor.clone() });
                }
                let named = names.into_iter().map(|name| Root {
                    name: Some(name),
                    label: None,
                    descriptor: descriptor.clone(),
                });
                roots.extend(named);
            }
        }
    }
    name_signatures(&mut roots);
    Ok(roots)
}

/// What cosign calls the tag of something that belongs to an image; none for the image itself.
fn suffix(descriptor: &Descriptor) -> Option<&'static str> {
    match descriptor.annotation(KIND)?.rsplit('/').next() {
        Some("sigs") => Some("sig"),
        Some("atts") => Some("att"),
        Some("sboms") => Some("sbom"),
        _ => None,
    }
}

/// Whether hauler marked it as belonging to an image.
pub(super) fn is_signature(descriptor: &Descriptor) -> bool {
    suffix(descriptor).is_some()
}

/// hauler gives the signatures of an image the image's name; registries know them by a tag made of the image's digest.
fn name_signatures(roots: &mut [Root]) {
    let images: BTreeMap<String, Digest> = roots
        .iter()
        .filter(|root| !is_signature(&root.descriptor))
        .filter_map(|root| Some((root.name.as_ref()?.to_string(), root.descriptor.digest.clone())))
        .collect();
    for root in roots {
        let Some(suffix) = suffix(&root.descriptor) else { continue };
        let Some(name) = &root.name else { continue };
        let Some(image) = images.get(&name.to_string()) else { continue };
        let tag = format!("{}-{}.{suffix}", image.algorithm().name(), image.hex());
        if let Ok(tagged) = name.with_tag(&tag) {
            root.name = Some(tagged);
        }
    }
}

fn saved_names(
    files: &Files,
    blobs: &HashMap<Digest, Place>,
    saved: &[Saved],
    manifest: &Digest,
) -> Result<Vec<Reference>, ArchiveError> {
    let Some(place) = blobs.get(manifest).filter(|_| !saved.is_empty()) else { return Ok(Vec::new()) };
    let bytes = files.read(manifest.as_str(), place, MANIFEST_LIMIT)?;
    let Ok(Manifest::Image(image)) = Manifest::parse(&bytes, None) else { return Ok(Vec::new()) };
    let digest = &image.config.digest;
    let config = format!("blobs/{}/{}", digest.algorithm().name(), digest.hex());
    let entries = saved.iter().filter(|entry| entry.config == config);
    entries
        .flat_map(|entry| entry.repo_tags.iter().flatten())
        .map(|tag| name(files, "manifest.json", tag))
        .collect()
}

fn name(files: &Files, entry: &str, text: &str) -> Result<Reference, ArchiveError> {
    Reference::parse(text).map_err(|error| files.entry(entry, format!("image name {text:?}: {error}")))
}

/// `manifest.json` at the top, when it is docker's list and not an image's manifest.
fn saved(files: &Files) -> Result<Option<Vec<Saved>>, ArchiveError> {
    let Some(document) = files.document("manifest.json", MANIFEST_LIMIT)? else { return Ok(None) };
    if document.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'[') {
        return Ok(None);
    }
    serde_json::from_slice(&document).map(Some).map_err(|error| files.entry("manifest.json", error))
}

fn docker(
    files: &Files,
    blobs: &mut HashMap<Digest, Place>,
    saved: &[Saved],
) -> Result<Vec<Root>, ArchiveError> {
    let mut hashed: HashMap<String, Digest> = HashMap::new();
    let mut roots = Vec::new();
    for entry in saved {
        let (config, config_size) = saved_blob(files, blobs, &mut hashed, &entry.config)?;
        let mut layers = Vec::new();
        for path in entry.layers.iter().flatten() {
            let (digest, size) = saved_blob(files, blobs, &mut hashed, path)?;
            let mut start = Vec::new();
            if let Some(place) = blobs.get(&digest) {
                let reader = files.open(path, place)?;
                reader.take(8).read_to_end(&mut start).map_err(|error| files.entry(path, error))?;
            }
            let compression = Compression::detect(&start).map_err(|error| files.entry(path, error))?;
            layers.push(Descriptor::new(
                format!("{OCI_LAYER}{}", compression.media_type_suffix()),
                digest,
                size,
            ));
        }
        // As `stage` makes it: the same archive gives the same digest on every way.
        let manifest = ImageManifest {
            schema_version: 2,
            media_type: Some(OCI_MANIFEST.to_owned()),
            artifact_type: None,
            config: Descriptor::new(OCI_CONFIG, config, config_size),
            layers,
            subject: None,
            annotations: None,
        };
        let bytes = serde_json::to_vec(&manifest).expect("a manifest of strings and numbers is JSON");
        let digest = Digest::sha256(&bytes);
        let descriptor = Descriptor::new(OCI_MANIFEST, digest.clone(), bytes.len() as u64);
        blobs.insert(digest, Place::Made(Arc::from(bytes)));
        let names: Vec<Reference> = entry
            .repo_tags
            .iter()
            .flatten()
            .map(|tag| name(files, "manifest.json", tag))
            .collect::<Result<_, _>>()?;
        if names.is_empty() {
            roots.push(Root { name: None, label: None, descriptor: descriptor.clone() });
        }
        let named = names.into_iter().map(|name| Root {
            name: Some(name),
            label: None,
            descriptor: descriptor.clone(),
        });
        roots.extend(named);
    }
    Ok(roots)
}

/// Digest and size of a member; hashed once, unless its name says it, which whoever reads it checks.
fn saved_blob(
    files: &Files,
    blobs: &mut HashMap<Digest, Place>,
    hashed: &mut HashMap<String, Digest>,
    path: &str,
) -> Result<(Digest, u64), ArchiveError> {
    let place =
        files.place(path).ok_or_else(|| files.entry(path, "is missing: the archive is incomplete"))?;
    let size = place.size();
    if let Some(digest) = blob_name(path) {
        return Ok((digest, size));
    }
    if let Some(digest) = hashed.get(path) {
        return Ok((digest.clone(), size));
    }
    let mut digester = Digester::new(Algorithm::Sha256);
    let mut reader = files.open(path, place)?;
    io::copy(&mut reader, &mut digester).map_err(|error| files.entry(path, error))?;
    let digest = digester.finish();
    blobs.insert(digest.clone(), place.clone());
    hashed.insert(path.to_owned(), digest.clone());
    Ok((digest, size))
}

/// A link file of a registry's tree: repository, tag, file.
struct TreeLink {
    repository: String,
    tag: Option<String>,
    file: String,
}

fn tree_links(files: &Files) -> Option<Vec<TreeLink>> {
    let links: Vec<TreeLink> = files.members.keys().filter_map(|name| tree_link(name)).collect();
    (!links.is_empty()).then_some(links)
}

fn tree_link(file: &str) -> Option<TreeLink> {
    let (front, rest) = file.split_once("/_manifests/")?;
    let repository = match front.rfind("repositories/") {
        Some(at) if at == 0 || front[..at].ends_with('/') => &front[at + "repositories/".len()..],
        _ => return None,
    };
    let parts: Vec<&str> = rest.split('/').collect();
    let tag = match parts.as_slice() {
        ["tags", tag, "current", "link"] => Some((*tag).to_owned()),
        ["revisions", _, _, "link"] => None,
        _ => return None,
    };
    Some(TreeLink { repository: repository.to_owned(), tag, file: file.to_owned() })
}

fn tree(
    files: &Files,
    blobs: &HashMap<Digest, Place>,
    links: &[TreeLink],
) -> Result<Vec<Root>, ArchiveError> {
    let mut roots = Vec::new();
    let mut tagged: BTreeSet<(&str, Digest)> = BTreeSet::new();
    let (tags, revisions): (Vec<&TreeLink>, Vec<&TreeLink>) =
        links.iter().partition(|link| link.tag.is_some());
    for link in tags.into_iter().chain(revisions) {
        let content = files.document(&link.file, LINK_BYTES)?.unwrap_or_default();
        let text = String::from_utf8_lossy(&content);
        let digest: Digest = text.trim().parse().map_err(|error| files.entry(&*link.file, error))?;
        if !tagged.insert((&link.repository, digest.clone())) && link.tag.is_none() {
            continue;
        }
        let Some(place) = blobs.get(&digest) else {
            // A tree that holds only what is new has links to what is not there.
            match &link.tag {
                None => continue,
                Some(_) => return Err(files.entry(&*link.file, format!("names {digest}, which is missing"))),
            }
        };
        let bytes = files.read(digest.as_str(), place, MANIFEST_LIMIT)?;
        let manifest = Manifest::parse(&bytes, None).map_err(|error| files.entry(digest.as_str(), error))?;
        let text = match &link.tag {
            Some(tag) => format!("{}:{tag}", link.repository),
            None => format!("{}@{digest}", link.repository),
        };
        let descriptor = Descriptor::new(manifest.media_type(), digest, bytes.len() as u64);
        roots.push(Root { name: Some(name(files, &link.file, &text)?), label: None, descriptor });
    }
    Ok(roots)
}

/// skopeo's `dir`, and the many of them that `skopeo sync` writes, whose names are their paths.
fn skopeo_dirs(files: &Files, blobs: &mut HashMap<Digest, Place>) -> Result<Vec<Root>, ArchiveError> {
    let mut roots = Vec::new();
    for file in files.members.keys() {
        let Some(prefix) = file.strip_suffix("manifest.json") else { continue };
        if !(prefix.is_empty() || prefix.ends_with('/')) {
            continue;
        }
        let Some(place) = files.place(file) else { continue };
        let bytes = files.read(file, place, MANIFEST_LIMIT)?;
        let Ok(manifest) = Manifest::parse(&bytes, None) else { continue };
        let digest = Digest::sha256(&bytes);
        let descriptor = Descriptor::new(manifest.media_type(), digest.clone(), bytes.len() as u64);
        blobs.insert(digest, place.clone());
        let name = Some(prefix.trim_end_matches('/')).filter(|path| !path.is_empty());
        roots.push(Root { name: name.and_then(|path| Reference::parse(path).ok()), label: None, descriptor });
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_in_names() {
        let hex = "a".repeat(64);
        for name in [
            format!("blobs/sha256/{hex}"),
            format!("images/blobs/sha256/{hex}"),
            format!("docker/registry/v2/blobs/sha256/aa/{hex}/data"),
            hex.clone(),
            format!("{hex}.manifest.json"),
        ] {
            assert_eq!(
                blob_name(&name).map(|digest| digest.to_string()),
                Some(format!("sha256:{hex}")),
                "{name}"
            );
        }
        for name in [format!("blobs/sha256/bb/{hex}/data"), format!("{hex}/layer.tar"), String::new()] {
            assert_eq!(blob_name(&name), None, "{name}");
        }
    }

    #[test]
    fn links_of_a_tree() {
        let link = tree_link("docker/registry/v2/repositories/a/b/_manifests/tags/1/current/link").unwrap();
        assert_eq!((link.repository.as_str(), link.tag.as_deref()), ("a/b", Some("1")));
        assert!(tree_link("repositories/a/_manifests/revisions/sha256/00/link").unwrap().tag.is_none());
        assert!(tree_link("repositories/a/_layers/sha256/00/link").is_none());
        assert!(tree_link("xrepositories/a/_manifests/tags/1/current/link").is_none());
    }
}
