use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use orlop_types::{Algorithm, Digest};

use super::{ArchiveError, ArchiveImage};
use crate::blobs::{BlobError, BlobStore, StagedBlob};
use crate::compression::Decompressed;
use crate::manifest::MANIFEST_LIMIT;
use crate::tarball::{EntryKind, TarReader};

/// Most members of an archive.
const MEMBER_LIMIT: usize = 100_000;
/// Documents that are kept in memory.
const DOCUMENTS: [&str; 4] = ["index.json", "manifest.json", "oci-layout", "repositories"];

enum Member {
    Document(Vec<u8>),
    /// Content that the store did not have.
    Staged(Digest),
    /// Content that the store had, with its size.
    Stored(Digest, u64),
    Link(String),
}

/// The members of an archive by normalised name.
pub(super) struct Members<'a> {
    path: PathBuf,
    directory: bool,
    store: &'a BlobStore,
    session: &'a str,
    have: &'a dyn Fn(&Digest) -> Result<bool, BlobError>,
    members: HashMap<String, Member>,
    staged: HashMap<Digest, StagedBlob>,
}

impl<'a> Members<'a> {
    /// Opens a directory, or reads a whole tar and stages its content.
    pub(super) fn open(
        path: &Path,
        store: &'a BlobStore,
        session: &'a str,
        have: &'a dyn Fn(&Digest) -> Result<bool, BlobError>,
    ) -> Result<Self, ArchiveError> {
        let read = |source| ArchiveError::Read { path: path.to_owned(), source };
        let metadata = std::fs::metadata(path).map_err(read)?;
        let mut members = Members {
            path: path.to_owned(),
            directory: metadata.is_dir(),
            store,
            session,
            have,
            members: HashMap::new(),
            staged: HashMap::new(),
        };
        if !members.directory {
            let file = File::open(path).map_err(read)?;
            let source = Decompressed::new(file).map_err(read)?;
            members.read_tar(source)?;
        }
        Ok(members)
    }

    pub(super) fn format(&self, reason: impl Into<String>) -> ArchiveError {
        ArchiveError::Format { path: self.path.clone(), reason: reason.into() }
    }

    pub(super) fn entry(&self, entry: impl Into<String>, reason: impl std::fmt::Display) -> ArchiveError {
        ArchiveError::Entry { path: self.path.clone(), entry: entry.into(), reason: reason.to_string() }
    }

    pub(super) fn manifest_error(
        &self,
        digest: &Digest,
        source: crate::manifest::ManifestError,
    ) -> ArchiveError {
        ArchiveError::Manifest { path: self.path.clone(), digest: digest.clone(), source }
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        if self.directory { self.path.join(name).is_file() } else { self.members.contains_key(name) }
    }

    /// One of the small documents at the top.
    pub(super) fn document(&self, name: &str) -> Result<Vec<u8>, ArchiveError> {
        if self.directory {
            let mut content = Vec::new();
            File::open(self.path.join(name))
                .and_then(|file| file.take(MANIFEST_LIMIT + 1).read_to_end(&mut content))
                .map_err(|source| self.entry(name, source))?;
            if content.len() as u64 > MANIFEST_LIMIT {
                return Err(self.entry(name, format!("longer than {MANIFEST_LIMIT} bytes")));
            }
            return Ok(content);
        }
        match self.members.get(name) {
            Some(Member::Document(content)) => Ok(content.clone()),
            _ => Err(self.entry(name, "is missing")),
        }
    }

    /// Digest and size of the content that `digest` names, staged or stored by now.
    pub(super) fn blob(&mut self, digest: &Digest, what: &str) -> Result<u64, ArchiveError> {
        let name = format!("blobs/{}/{}", digest.algorithm().name(), digest.hex());
        if let Some(staged) = self.staged.get(digest) {
            return Ok(staged.size());
        }
        if (self.have)(digest)?
            && let Some(size) = self.store.size(digest)?
        {
            return Ok(size);
        }
        if self.directory && self.path.join(&name).is_file() {
            return self.member(&name).map(|(_, size)| size);
        }
        Err(self.entry(name, format!("is missing, but it is {what}: the archive is incomplete")))
    }

    /// Digest and size of a member, staged or stored by now. Follows links inside the archive.
    pub(super) fn member(&mut self, name: &str) -> Result<(Digest, u64), ArchiveError> {
        if self.directory {
            if normalise(name.as_bytes()).as_deref() != Some(name) {
                return Err(self.entry(name, "leads out of the directory"));
            }
            let path = self.path.join(name);
            let file = File::open(&path).map_err(|source| self.entry(name, source))?;
            let mut file = io::BufReader::with_capacity(128 * 1024, file);
            self.stage_content(name, &mut file)?;
        }
        let mut name = name.to_owned();
        for _ in 0..8 {
            match self.members.get(&name) {
                Some(Member::Staged(digest)) => {
                    let size = self.staged.get(digest).map_or(0, StagedBlob::size);
                    return Ok((digest.clone(), size));
                }
                Some(Member::Stored(digest, size)) => return Ok((digest.clone(), *size)),
                Some(Member::Link(target)) => name.clone_from(target),
                Some(Member::Document(_)) => return Err(self.entry(name, "is not a blob")),
                None => return Err(self.entry(name, "is missing: the archive is incomplete")),
            }
        }
        Err(self.entry(name, "links go in a circle"))
    }

    /// Reads a small staged or stored blob.
    pub(super) fn read(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, ArchiveError> {
        let content = match self.staged.get(digest) {
            Some(staged) => Some(staged.read(limit)?),
            None => self.store.read(digest, limit)?,
        };
        content.ok_or_else(|| self.entry(digest.to_string(), "is missing"))
    }

    /// The first bytes of a blob.
    pub(super) fn start(&self, digest: &Digest) -> Result<Vec<u8>, ArchiveError> {
        let path = match self.staged.get(digest) {
            Some(staged) => staged.path().to_owned(),
            None => self.store.path(digest),
        };
        let mut start = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(8).read_to_end(&mut start))
            .map_err(|source| BlobError::io("read", &path, source))?;
        Ok(start)
    }

    /// Adds a document that was made here.
    pub(super) fn add(&mut self, content: &[u8]) -> Result<Digest, ArchiveError> {
        let mut writer = self.store.writer(self.session, Algorithm::Sha256)?;
        writer.append(content)?;
        let staged = writer.finish(None, None)?;
        let digest = staged.digest().clone();
        self.staged.insert(digest.clone(), staged);
        Ok(digest)
    }

    /// What the images need of the staged blobs; the rest is dropped, and with that removed.
    pub(super) fn into_blobs(mut self, images: &[ArchiveImage]) -> HashMap<Digest, StagedBlob> {
        let mut kept = HashMap::new();
        for digest in images.iter().flat_map(ArchiveImage::needs) {
            if let Some(staged) = self.staged.remove(digest) {
                kept.insert(digest.clone(), staged);
            }
        }
        kept
    }

    fn read_tar(&mut self, source: impl Read) -> Result<(), ArchiveError> {
        let mut tar = TarReader::new(source);
        let mut last = "the start".to_owned();
        loop {
            let entry = match tar.next_entry() {
                Ok(Some(entry)) => entry,
                Ok(None) => break,
                Err(error) => return Err(self.format(format!("after {last}: {error}"))),
            };
            let Some(name) = normalise(&entry.path) else { continue };
            if self.members.len() >= MEMBER_LIMIT {
                return Err(self.format(format!("more than {MEMBER_LIMIT} entries")));
            }
            match entry.kind {
                EntryKind::File if DOCUMENTS.contains(&name.as_str()) => {
                    if entry.size > MANIFEST_LIMIT {
                        return Err(self.entry(name, format!("longer than {MANIFEST_LIMIT} bytes")));
                    }
                    let mut content = Vec::new();
                    tar.read_to_end(&mut content).map_err(|error| self.entry(&*name, error))?;
                    self.members.insert(name.clone(), Member::Document(content));
                }
                EntryKind::File => self.stage_content(&name, &mut tar)?,
                EntryKind::Symlink | EntryKind::HardLink => {
                    let target = link_target(&name, &entry.link, entry.kind == EntryKind::Symlink);
                    let target = target.ok_or_else(|| self.entry(&*name, "links out of the archive"))?;
                    self.members.insert(name.clone(), Member::Link(target));
                }
                _ => {}
            }
            last = format!("entry {name}");
        }
        // What follows the end marker is read too: a compressed stream proves only at its end that it is whole.
        let mut rest = tar.into_inner();
        io::copy(&mut rest, &mut io::sink())
            .map_err(|error| self.format(format!("after {last}: {error}")))?;
        Ok(())
    }

    /// Hashes a member and stages it, unless the store has that content; a blob's name is its expected digest.
    fn stage_content(&mut self, name: &str, source: &mut impl Read) -> Result<(), ArchiveError> {
        let expected = expected_digest(name);
        let algorithm = expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        if let Some(expected) = &expected
            && (self.have)(expected)?
        {
            let mut digester = orlop_types::Digester::new(algorithm);
            let size = io::copy(source, &mut digester).map_err(|error| self.entry(name, error))?;
            digester.verify(expected).map_err(|error| self.entry(name, error))?;
            self.members.insert(name.to_owned(), Member::Stored(expected.clone(), size));
            return Ok(());
        }
        let mut writer = self.store.writer(self.session, algorithm)?;
        let mut buffer = vec![0u8; 128 * 1024];
        loop {
            // Read and write apart: an error of the archive must not look like one of the store.
            let count = match source.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.entry(name, error)),
            };
            writer.append(&buffer[..count])?;
        }
        let staged = match writer.finish(expected.as_ref(), None) {
            Err(error @ (BlobError::Digest(_) | BlobError::Size { .. })) => {
                return Err(self.entry(name, error));
            }
            result => result?,
        };
        self.members.insert(name.to_owned(), Member::Staged(staged.digest().clone()));
        self.staged.insert(staged.digest().clone(), staged);
        Ok(())
    }
}

/// `blobs/ALGORITHM/HEX`, or the `HEX.json` of a docker archive, whose name is its digest too.
fn expected_digest(name: &str) -> Option<Digest> {
    if let Some(rest) = name.strip_prefix("blobs/") {
        return rest.replacen('/', ":", 1).parse().ok();
    }
    format!("sha256:{}", name.strip_suffix(".json")?).parse().ok()
}

/// `a/b/c` without leading or doubled slashes and dots; none for names that leave the archive or are no text.
pub(super) fn normalise(path: &[u8]) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in std::str::from_utf8(path).ok()?.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

pub(super) fn link_target(name: &str, link: &[u8], relative: bool) -> Option<String> {
    if !relative || link.starts_with(b"/") {
        return normalise(link);
    }
    let directory = name.rsplit_once('/').map_or("", |(directory, _)| directory);
    normalise(&[directory.as_bytes(), b"/", link].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(normalise(b"./a//b/").as_deref(), Some("a/b"));
        assert_eq!(normalise(b"/a/../b").as_deref(), Some("b"));
        assert_eq!(normalise(b"../b"), None);
        assert_eq!(link_target("x/layer.tar", b"../y/layer.tar", true).as_deref(), Some("y/layer.tar"));
        assert_eq!(link_target("x/layer.tar", b"../../etc/passwd", true), None);
        assert_eq!(link_target("x/layer.tar", b"y/layer.tar", false).as_deref(), Some("y/layer.tar"));
    }
}
