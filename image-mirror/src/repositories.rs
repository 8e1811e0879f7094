//! Tags, manifests and referrers of repositories, as small files beside the blobs. Every method blocks on files.
//!
//! ```text
//!   repositories/NAME/_tags/TAG                     the digest, and "fetched" if an upstream gave it
//!   repositories/NAME/_manifests/ALGORITHM/HEX      the media type; the bytes are a blob
//!   repositories/NAME/_blobs/ALGORITHM/HEX          the size: the blob belongs to the repository; if fetched, maybe later
//!   repositories/NAME/_referrers/ALGORITHM/HEX/D    the descriptor of a manifest whose subject this is
//! ```
//!
//! Parts of a name never begin with `_`, so names and records cannot meet. Start time does not depend on how much is stored.

use std::io;
use std::path::{Path, PathBuf};

use orlop_distribution::manifest::Descriptor;
use orlop_types::Digest;

/// Behind the digest of a tag that an upstream gave.
const FETCHED: &str = "fetched";

/// The records of all repositories.
#[derive(Clone, Debug)]
pub(crate) struct Repositories {
    root: PathBuf,
}

impl Repositories {
    pub(crate) fn open(root: &Path) -> io::Result<Self> {
        let root = root.join("repositories");
        std::fs::create_dir_all(&root)?;
        Ok(Self { root })
    }

    fn file(&self, name: &str, kind: &str, digest: &Digest) -> PathBuf {
        self.root.join(name).join(kind).join(digest.algorithm().name()).join(digest.hex())
    }

    /// Whether anything was ever stored under a name.
    pub(crate) fn exists(&self, name: &str) -> bool {
        ["_manifests", "_blobs"].iter().any(|kind| self.root.join(name).join(kind).is_dir())
    }

    pub(crate) fn tag(&self, name: &str, tag: &str) -> io::Result<Option<Digest>> {
        Ok(self.tag_with_origin(name, tag)?.map(|(digest, _)| digest))
    }

    /// The digest, and whether an upstream gave it, so that the upstream knows better.
    pub(crate) fn tag_with_origin(&self, name: &str, tag: &str) -> io::Result<Option<(Digest, bool)>> {
        let Some(text) = read(&self.root.join(name).join("_tags").join(tag))? else {
            return Ok(None);
        };
        let (digest, origin) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        let digest = digest.parse().map_err(io::Error::other)?;
        Ok(Some((digest, origin == FETCHED)))
    }

    pub(crate) fn set_fetched_tag(&self, name: &str, tag: &str, digest: &Digest) -> io::Result<()> {
        write(&self.root.join(name).join("_tags").join(tag), format!("{digest} {FETCHED}").as_bytes())
    }

    pub(crate) fn set_tag(&self, name: &str, tag: &str, digest: &Digest) -> io::Result<()> {
        write(&self.root.join(name).join("_tags").join(tag), digest.to_string().as_bytes())
    }

    pub(crate) fn remove_tag(&self, name: &str, tag: &str) -> io::Result<bool> {
        remove(&self.root.join(name).join("_tags").join(tag))
    }

    /// All tags, in the order that the specification asks for.
    pub(crate) fn tags(&self, name: &str) -> io::Result<Vec<String>> {
        let mut tags = list(&self.root.join(name).join("_tags"))?;
        tags.sort();
        Ok(tags)
    }

    /// The media type of a manifest; none when the repository does not hold it.
    pub(crate) fn manifest(&self, name: &str, digest: &Digest) -> io::Result<Option<String>> {
        read(&self.file(name, "_manifests", digest))
    }

    pub(crate) fn set_manifest(&self, name: &str, digest: &Digest, media_type: &str) -> io::Result<()> {
        if self.manifest(name, digest)?.as_deref() == Some(media_type) {
            return Ok(());
        }
        write(&self.file(name, "_manifests", digest), media_type.as_bytes())
    }

    /// Removes a manifest and every tag that names it.
    pub(crate) fn remove_manifest(&self, name: &str, digest: &Digest) -> io::Result<bool> {
        for tag in self.tags(name)? {
            if self.tag(name, &tag)?.as_ref() == Some(digest) {
                self.remove_tag(name, &tag)?;
            }
        }
        remove(&self.file(name, "_manifests", digest))
    }

    pub(crate) fn has_blob(&self, name: &str, digest: &Digest) -> bool {
        self.file(name, "_blobs", digest).exists()
    }

    /// The size of a blob as it was recorded.
    pub(crate) fn blob_size(&self, name: &str, digest: &Digest) -> io::Result<Option<u64>> {
        let text = read(&self.file(name, "_blobs", digest))?;
        Ok(text.and_then(|text| text.trim().parse().ok()))
    }

    pub(crate) fn set_blob(&self, name: &str, digest: &Digest, size: u64) -> io::Result<()> {
        // Records are synced one by one: what is recorded already costs nothing.
        if self.blob_size(name, digest)? == Some(size) {
            return Ok(());
        }
        write(&self.file(name, "_blobs", digest), size.to_string().as_bytes())
    }

    pub(crate) fn remove_blob(&self, name: &str, digest: &Digest) -> io::Result<bool> {
        remove(&self.file(name, "_blobs", digest))
    }

    /// The descriptors of manifests whose subject is `subject`.
    pub(crate) fn referrers(&self, name: &str, subject: &Digest) -> io::Result<Vec<Descriptor>> {
        let directory = self.file(name, "_referrers", subject);
        let mut found = Vec::new();
        for file in list(&directory)? {
            if let Some(text) = read(&directory.join(file))? {
                found.push(serde_json::from_str(&text).map_err(io::Error::other)?);
            }
        }
        Ok(found)
    }

    pub(crate) fn set_referrer(
        &self,
        name: &str,
        subject: &Digest,
        descriptor: &Descriptor,
    ) -> io::Result<()> {
        let file =
            self.file(name, "_referrers", subject).join(descriptor.digest.to_string().replace(':', "-"));
        write(&file, &serde_json::to_vec(descriptor).map_err(io::Error::other)?)
    }

    pub(crate) fn remove_referrer(&self, name: &str, subject: &Digest, digest: &Digest) -> io::Result<bool> {
        remove(&self.file(name, "_referrers", subject).join(digest.to_string().replace(':', "-")))
    }
}

fn read(path: &Path) -> io::Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whole or not at all, also after a loss of power.
fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    use std::io::Write as _;
    let directory = path.parent().ok_or_else(|| io::Error::other("a record needs a directory"))?;
    std::fs::create_dir_all(directory)?;
    let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(directory)?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    std::fs::File::open(directory)?.sync_all()
}

fn remove(path: &Path) -> io::Result<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn list(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let names = entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
    // A file that a killed process did not finish is no record.
    names.filter(|name| !name.as_ref().is_ok_and(|name| name.starts_with(".new-"))).collect()
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
