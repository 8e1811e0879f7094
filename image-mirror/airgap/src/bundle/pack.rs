//! Writes a bundle: one pass over what the images need, under a temporary name until it is whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufWriter, Read, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use orlop_distribution::archive::{Archive, Strictness};
use orlop_distribution::manifest::{Descriptor, MANIFEST_LIMIT, Manifest};
use orlop_types::{Digest, Digester};

use super::{Image, LIST, List, SIGNATURE, Sized, sign, spool};
use crate::layout;
use crate::sync::size;

/// Indexes in indexes.
const DEPTH: usize = 4;

/// What goes into a bundle.
struct Contents<'a> {
    archives: &'a [Archive],
    /// What need not go in.
    before: BTreeSet<Digest>,
    entries: BTreeMap<String, Descriptor>,
    blobs: BTreeMap<Digest, u64>,
    needs: BTreeMap<Digest, u64>,
}

/// Packs what archives of any form have names for.
pub(crate) fn pack(
    sources: &[PathBuf],
    output: &Path,
    key: Option<&Path>,
    since: Option<&Path>,
) -> anyhow::Result<()> {
    let open = |path: &PathBuf| Archive::open(path, &spool(), Strictness::Lenient);
    let archives = sources.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let mut contents = Contents {
        archives: &archives,
        before: since.map(before).transpose()?.unwrap_or_default(),
        entries: BTreeMap::new(),
        blobs: BTreeMap::new(),
        needs: BTreeMap::new(),
    };
    for archive in &archives {
        contents.add_all(archive)?;
    }
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(output.file_name().with_context(|| format!("{} is no file name", output.display()))?);
    temporary.push(".new");
    let temporary = output.with_file_name(temporary);
    let written = contents.write(&temporary, key);
    let written = written.with_context(|| format!("failed to write {}", output.display()));
    let placed = written.and_then(|()| Ok(std::fs::rename(&temporary, output)?));
    if let Err(error) = placed {
        // Half a bundle is of no use; the first error is the one to report.
        let _ = std::fs::remove_file(&temporary);
        return Err(error);
    }
    let parent = output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()?;
    let (count, bytes) = (contents.blobs.len(), contents.blobs.values().sum());
    writeln!(
        std::io::stdout(),
        "{}: {} images, {count} blobs ({}), {} more are needed from before",
        output.display(),
        contents.entries.len(),
        size(bytes),
        contents.needs.len(),
    )?;
    Ok(())
}

/// What an earlier bundle or archive brought, and what that one needed.
fn before(path: &Path) -> anyhow::Result<BTreeSet<Digest>> {
    let archive = Archive::open(path, &spool(), Strictness::Lenient)?;
    let mut known: BTreeSet<Digest> = archive.blobs().map(|(digest, _)| digest.clone()).collect();
    if let Some(list) = List::of(&archive)? {
        known.extend(list.needs.into_iter().map(|blob| blob.digest));
    }
    Ok(known)
}

impl Contents<'_> {
    fn add_all(&mut self, archive: &Archive) -> anyhow::Result<()> {
        for root in archive.roots() {
            let place = archive.path().display();
            let name = root.name_with(None).with_context(|| {
                format!("{place}: {} has no name: a bundle holds named images", root.descriptor.digest)
            })?;
            let plain = Descriptor::new(
                &root.descriptor.media_type,
                root.descriptor.digest.clone(),
                root.descriptor.size,
            );
            let entry = layout::named(plain, &name);
            if let Some(other) = self.entries.get(&name.to_string()).filter(|other| **other != entry) {
                anyhow::bail!("{place}: {name} is {} here and {} elsewhere", entry.digest, other.digest);
            }
            self.add(&root.descriptor.digest, 0).with_context(|| format!("{place}: {name}"))?;
            self.entries.insert(name.to_string(), entry);
        }
        Ok(())
    }

    /// A manifest and what it needs. Manifests go in whatever was before: they are small, and names need them.
    fn add(&mut self, digest: &Digest, depth: usize) -> anyhow::Result<()> {
        anyhow::ensure!(depth < DEPTH, "indexes are nested too deeply");
        if self.blobs.contains_key(digest) {
            return Ok(());
        }
        let archive = self.holder(digest).with_context(|| format!("manifest {digest} is missing"))?;
        let bytes = archive.read(digest, MANIFEST_LIMIT)?.context("a manifest that was there is gone")?;
        self.blobs.insert(digest.clone(), bytes.len() as u64);
        match Manifest::parse(&bytes, None).with_context(|| format!("manifest {digest}"))? {
            // Images of other platforms may have been left out.
            Manifest::Index(index) => {
                let here = index.manifests.iter().filter(|child| self.holder(&child.digest).is_some());
                let here: Vec<Digest> = here.map(|child| child.digest.clone()).collect();
                here.iter().try_for_each(|child| self.add(child, depth + 1))
            }
            Manifest::Image(image) => {
                let layers = image.layers.iter().filter(|layer| layer.urls.is_empty());
                for blob in std::iter::once(&image.config).chain(layers) {
                    self.add_blob(blob)?;
                }
                Ok(())
            }
        }
    }

    fn add_blob(&mut self, blob: &Descriptor) -> anyhow::Result<()> {
        if self.before.contains(&blob.digest) {
            self.needs.insert(blob.digest.clone(), blob.size);
            return Ok(());
        }
        let archive =
            self.holder(&blob.digest).with_context(|| format!("blob {} is missing", blob.digest))?;
        let size = archive.size(&blob.digest).unwrap_or(0);
        anyhow::ensure!(
            size == blob.size,
            "blob {} has {size} bytes, {} are announced",
            blob.digest,
            blob.size
        );
        self.blobs.insert(blob.digest.clone(), size);
        Ok(())
    }

    fn holder(&self, digest: &Digest) -> Option<&Archive> {
        self.archives.iter().find(|archive| archive.size(digest).is_some())
    }

    fn list(&self, index: &[u8]) -> List {
        let sized = |blobs: &BTreeMap<Digest, u64>| {
            blobs.iter().map(|(digest, size)| Sized { digest: digest.clone(), size: *size }).collect()
        };
        let images = self.entries.iter().map(|(reference, entry)| Image {
            reference: reference.clone(),
            digest: entry.digest.clone(),
            media_type: entry.media_type.clone(),
        });
        List {
            version: 1,
            index: Sized { digest: Digest::sha256(index), size: index.len() as u64 },
            images: images.collect(),
            blobs: sized(&self.blobs),
            needs: sized(&self.needs),
        }
    }

    fn write(&self, path: &Path, key: Option<&Path>) -> anyhow::Result<()> {
        let mut tar = tar::Builder::new(BufWriter::with_capacity(1 << 20, File::create(path)?));
        let index = layout::index(&self.entries);
        let list = serde_json::to_vec(&self.list(&index))?;
        append(&mut tar, "oci-layout", layout::VERSION_FILE.len() as u64, layout::VERSION_FILE)?;
        append(&mut tar, "index.json", index.len() as u64, &index[..])?;
        append(&mut tar, LIST, list.len() as u64, &list[..])?;
        if let Some(key) = key {
            let signature = sign::sign(&list, key)?;
            append(&mut tar, SIGNATURE, signature.len() as u64, &signature[..])?;
        }
        for (digest, size) in &self.blobs {
            let archive = self.holder(digest).context("a blob that was there is gone")?;
            let reader = archive.open_blob(digest)?.context("a blob that was there is gone")?;
            let mut hashed = Hashed { reader, digester: Digester::new(digest.algorithm()), count: 0 };
            let name = format!("blobs/{}/{}", digest.algorithm().name(), digest.hex());
            append(&mut tar, &name, *size, &mut hashed)?;
            anyhow::ensure!(hashed.count == *size, "blob {digest} has {} bytes and not {size}", hashed.count);
            hashed.digester.verify(digest).with_context(|| format!("in {}", archive.path().display()))?;
        }
        let file = tar.into_inner()?.into_inner()?;
        file.sync_all()?;
        Ok(())
    }
}

fn append(
    tar: &mut tar::Builder<BufWriter<File>>,
    name: &str,
    size: u64,
    content: impl Read,
) -> anyhow::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    tar.append_data(&mut header, name, content.take(size)).with_context(|| format!("entry {name}"))
}

struct Hashed<R> {
    reader: R,
    digester: Digester,
    count: u64,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.digester.update(&buffer[..count]);
        self.count += count as u64;
        Ok(count)
    }
}
