use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};

use orlop_types::{Digest, Reference};
use serde::Serialize;

use super::{CONTAINERD_NAME, REF_NAME};
use crate::blobs::{BlobError, BlobStore};
use crate::compression::Decompressed;
use crate::manifest::{Descriptor, ImageIndex, ImageManifest, OCI_INDEX, OCI_MANIFEST};

/// An image to export.
#[derive(Clone, Debug)]
pub struct ExportImage {
    /// Names it gets in the archive; none is allowed.
    pub names: Vec<Reference>,
    /// Digest of the manifest.
    pub manifest_digest: Digest,
    /// Size of the manifest's document.
    pub manifest_size: u64,
    /// The manifest.
    pub manifest: ImageManifest,
    /// Digests of the uncompressed layers.
    pub diff_ids: Vec<Digest>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

/// Writes an OCI image layout as tar, with a `manifest.json` for tools that know only docker's form.
///
/// # Errors
/// A blob that is missing or unreadable, or the output's own error.
pub fn write_oci(store: &BlobStore, images: &[ExportImage], output: &mut dyn Write) -> Result<(), BlobError> {
    let mut tar = Output::new(output);
    tar.document("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let index = ImageIndex {
        schema_version: 2,
        media_type: Some(OCI_INDEX.to_owned()),
        artifact_type: None,
        manifests: images.iter().flat_map(descriptors).collect(),
        subject: None,
        annotations: None,
    };
    tar.json("index.json", &index)?;
    let blob_path = |digest: &Digest| format!("blobs/{}/{}", digest.algorithm().name(), digest.hex());
    let entries: Vec<DockerEntry> = images
        .iter()
        .map(|image| DockerEntry {
            config: blob_path(&image.manifest.config.digest),
            repo_tags: repo_tags(image),
            layers: image.manifest.layers.iter().map(|layer| blob_path(&layer.digest)).collect(),
        })
        .collect();
    tar.json("manifest.json", &entries)?;
    let mut blobs: BTreeSet<&Digest> = BTreeSet::new();
    for image in images {
        blobs.extend([&image.manifest_digest, &image.manifest.config.digest]);
        blobs.extend(image.manifest.layers.iter().map(|layer| &layer.digest));
    }
    for digest in blobs {
        let (file, size) = open(store, digest)?;
        tar.member(&blob_path(digest), size, file)?;
    }
    tar.finish()
}

/// Writes what `docker save` wrote before version 25: layers are uncompressed tars named by their digests.
///
/// # Errors
/// As [`write_oci`].
pub fn write_docker(
    store: &BlobStore,
    images: &[ExportImage],
    output: &mut dyn Write,
) -> Result<(), BlobError> {
    let mut tar = Output::new(output);
    let mut written: BTreeSet<Digest> = BTreeSet::new();
    let mut entries = Vec::new();
    for image in images {
        let mut layers = Vec::new();
        for (layer, diff_id) in image.manifest.layers.iter().zip(&image.diff_ids) {
            let name = format!("{}.tar", diff_id.hex());
            if written.insert(diff_id.clone()) {
                tar.uncompressed(store, &layer.digest, &name)?;
            }
            layers.push(name);
        }
        let config = &image.manifest.config.digest;
        let name = format!("{}.json", config.hex());
        if written.insert(config.clone()) {
            let (file, size) = open(store, config)?;
            tar.member(&name, size, file)?;
        }
        entries.push(DockerEntry { config: name, repo_tags: repo_tags(image), layers });
    }
    tar.json("manifest.json", &entries)?;
    tar.finish()
}

fn repo_tags(image: &ExportImage) -> Vec<String> {
    image.names.iter().filter(|name| name.tag().is_some()).map(Reference::to_string).collect()
}

fn descriptors(image: &ExportImage) -> Vec<Descriptor> {
    let media_type = image.manifest.media_type.as_deref().unwrap_or(OCI_MANIFEST);
    let plain = Descriptor::new(media_type, image.manifest_digest.clone(), image.manifest_size);
    if image.names.is_empty() {
        return vec![plain];
    }
    let named = |name: &Reference| {
        let mut annotations = BTreeMap::from([(CONTAINERD_NAME.to_owned(), name.to_string())]);
        // OCI's annotation is the tag alone; the full name is containerd's.
        if let Some(tag) = name.tag() {
            annotations.insert(REF_NAME.to_owned(), tag.to_owned());
        }
        Descriptor { annotations: Some(annotations), ..plain.clone() }
    };
    image.names.iter().map(named).collect()
}

fn open(store: &BlobStore, digest: &Digest) -> Result<(File, u64), BlobError> {
    let missing = || BlobError::io("open", &store.path(digest), io::ErrorKind::NotFound.into());
    let size = store.size(digest)?.ok_or_else(missing)?;
    Ok((store.open_blob(digest)?.ok_or_else(missing)?, size))
}

struct Output<'a> {
    tar: tar::Builder<BufWriter<&'a mut dyn Write>>,
}

impl<'a> Output<'a> {
    fn new(output: &'a mut dyn Write) -> Self {
        Self { tar: tar::Builder::new(BufWriter::with_capacity(256 * 1024, output)) }
    }

    fn member(&mut self, name: &str, size: u64, content: impl Read) -> Result<(), BlobError> {
        let mut header = tar::Header::new_ustar();
        header.set_size(size);
        header.set_mode(0o444);
        header.set_mtime(0);
        // A blob that is shorter than its size would shift everything after it.
        let mut content = Counted { source: content.take(size), count: 0 };
        let result = self.tar.append_data(&mut header, name, &mut content);
        let result = result.and_then(|()| {
            if content.count == size { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
        });
        result.map_err(|source| BlobError::io("write archive entry", name.as_ref(), source))
    }

    fn document(&mut self, name: &str, content: &[u8]) -> Result<(), BlobError> {
        self.member(name, content.len() as u64, content)
    }

    fn json(&mut self, name: &str, value: &impl Serialize) -> Result<(), BlobError> {
        let content = serde_json::to_vec(value).expect("documents of strings and numbers are JSON");
        self.document(name, &content)
    }

    /// A tar header needs the size first, so a compressed layer is read twice.
    fn uncompressed(&mut self, store: &BlobStore, digest: &Digest, name: &str) -> Result<(), BlobError> {
        let unreadable = |source| BlobError::io("read", &store.path(digest), source);
        let mut first = Decompressed::new(open(store, digest)?.0).map_err(unreadable)?;
        let size = io::copy(&mut first, &mut io::sink()).map_err(unreadable)?;
        let second = Decompressed::new(open(store, digest)?.0).map_err(unreadable)?;
        self.member(name, size, second)
    }

    fn finish(mut self) -> Result<(), BlobError> {
        let result = self.tar.finish().and_then(|()| self.tar.get_mut().flush());
        result.map_err(|source| BlobError::io("write", "archive".as_ref(), source))
    }
}

struct Counted<R> {
    source: R,
    count: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.count += count as u64;
        Ok(count)
    }
}
