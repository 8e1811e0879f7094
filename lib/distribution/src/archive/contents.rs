//! Whatever holds images, read by content: one look at it tells what is in it and where each blob lies.
//!
//! ```text
//!   directory --walk--------------------------\
//!   tar -------one pass over the headers-------> members --forms.rs--> roots (names, descriptors), blobs (digest -> place)
//!   tar.gz, tar.zst --spooled without a name--/
//! ```
//!
//! Invariants: nothing outside the archive is opened, whatever links and names say; memory is bounded by the number of members; bytes are
//! compared with their digest before they are handed over whole, and by whoever streams them otherwise.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use orlop_types::{Digest, Digester, Reference};

use super::members::{link_target, normalise};
use super::{ArchiveError, forms};
use crate::compression::{Compression, Decompressed};
use crate::manifest::Descriptor;
use crate::tarball::{EntryKind, TarReader};

/// Most members: a registry's tree has several files per layer.
const MEMBER_LIMIT: usize = 1_000_000;
/// Deepest directory that is looked into.
const DEPTH_LIMIT: usize = 24;
/// A compressed archive may grow to so many times its size, and [`SPOOL_BASE`] more.
const SPOOL_RATIO: u64 = 200;
const SPOOL_BASE: u64 = 1 << 30;
/// Links that are followed from one name.
const LINK_LIMIT: usize = 8;

/// What an archive turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// An OCI image layout, wherever in the archive it is: hauler's, zarf's, skopeo's `oci-archive`, a bundle of ours.
    Layout,
    /// What `docker save` writes, and k3s's air-gap images.
    DockerSave,
    /// The storage tree of a registry (distribution), as oc-mirror packs it.
    RegistryTree,
    /// skopeo's `dir`.
    SkopeoDir,
}

/// How strictly an archive is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strictness {
    /// As tools write archives: links and repeated members are put up with.
    Lenient,
    /// Every member is a file or directory with a clean name and stands there once.
    Strict,
}

/// Something that an archive has a name for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// The name: with a tag, or by digest alone; none where the archive has none.
    pub name: Option<Reference>,
    /// What stands there instead of a name, usually a tag.
    pub label: Option<String>,
    /// The manifest or index.
    pub descriptor: Descriptor,
}

impl Root {
    /// The name, made of `base` where the archive has only a tag or nothing.
    pub fn name_with(&self, base: Option<&Reference>) -> Option<Reference> {
        match (&self.name, base, &self.label) {
            (Some(name), _, _) => Some(name.clone()),
            (None, Some(base), Some(label)) => base.with_tag(label).ok().or_else(|| Some(base.clone())),
            (None, Some(base), None) => Some(base.clone()),
            (None, None, Some(label)) => Reference::parse(label).ok(),
            (None, None, None) => None,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) enum Place {
    /// In the tar.
    Span { offset: u64, size: u64 },
    /// A file of the directory.
    File { path: PathBuf, size: u64 },
    /// Made here.
    Made(Arc<[u8]>),
}

impl Place {
    pub(super) fn size(&self) -> u64 {
        match self {
            Place::Span { size, .. } | Place::File { size, .. } => *size,
            Place::Made(bytes) => bytes.len() as u64,
        }
    }
}

pub(super) enum Member {
    Content(Place),
    Link(String),
}

/// An opened archive.
pub struct Archive {
    path: PathBuf,
    form: Form,
    roots: Vec<Root>,
    blobs: HashMap<Digest, Place>,
    files: Files,
}

/// The members of an archive by clean name, and how their bytes are had.
pub(super) struct Files {
    path: PathBuf,
    tar: Option<Arc<File>>,
    pub(super) members: BTreeMap<String, Member>,
}

impl Archive {
    /// Looks at a file or directory. A compressed one is spooled to a file without a name in `spool`.
    ///
    /// # Errors
    /// [`ArchiveError`]: unreadable, damaged, or no form that is known.
    pub fn open(path: &Path, spool: &Path, strictness: Strictness) -> Result<Self, ArchiveError> {
        let read = |source| ArchiveError::Read { path: path.to_owned(), source };
        let metadata = std::fs::metadata(path).map_err(read)?;
        let mut files = Files { path: path.to_owned(), tar: None, members: BTreeMap::new() };
        if metadata.is_dir() {
            files.walk(path, "", 0)?;
        } else {
            let file = File::open(path).map_err(read)?;
            let tar = uncompressed(file, spool).map_err(read)?;
            files.scan(&tar, strictness)?;
            files.tar = Some(Arc::new(tar));
        }
        let found = forms::find(&files)?;
        Ok(Self { path: path.to_owned(), form: found.form, roots: found.roots, blobs: found.blobs, files })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is.
    pub fn form(&self) -> Form {
        self.form
    }

    /// What it has names for, in its own order.
    pub fn roots(&self) -> &[Root] {
        &self.roots
    }

    /// Every blob in it by its name, and its size.
    pub fn blobs(&self) -> impl Iterator<Item = (&Digest, u64)> {
        self.blobs.iter().map(|(digest, place)| (digest, place.size()))
    }

    /// Size of a blob; none when it is not in here.
    pub fn size(&self, digest: &Digest) -> Option<u64> {
        self.blobs.get(digest).map(Place::size)
    }

    /// Names of all members.
    pub fn members(&self) -> impl Iterator<Item = &str> {
        self.files.members.keys().map(String::as_str)
    }

    /// Reads a small member by its name; none when there is no such file.
    ///
    /// # Errors
    /// Above `limit`, or unreadable.
    pub fn document(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, ArchiveError> {
        self.files.document(name, limit)
    }

    /// Reads a small blob whole and verifies it; none when it is not in here.
    ///
    /// # Errors
    /// Not what its digest says, above `limit`, or unreadable.
    pub fn read(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, ArchiveError> {
        let Some(place) = self.blobs.get(digest) else { return Ok(None) };
        let content = self.files.read(digest.as_str(), place, limit)?;
        digest.verify(&content).map_err(|error| self.files.entry(digest.as_str(), error))?;
        Ok(Some(content))
    }

    /// Opens a blob for streaming; the content is not verified. None when it is not in here.
    ///
    /// # Errors
    /// Unreadable.
    pub fn open_blob(&self, digest: &Digest) -> Result<Option<BlobReader>, ArchiveError> {
        let Some(place) = self.blobs.get(digest) else { return Ok(None) };
        self.files.open(digest.as_str(), place).map(Some)
    }

    /// Hashes a blob. None when it is not in here.
    ///
    /// # Errors
    /// Not what its digest says, or unreadable.
    pub fn verify(&self, digest: &Digest) -> Result<Option<()>, ArchiveError> {
        let Some(mut reader) = self.open_blob(digest)? else { return Ok(None) };
        let mut digester = Digester::new(digest.algorithm());
        io::copy(&mut reader, &mut digester).map_err(|error| self.files.entry(digest.as_str(), error))?;
        digester.verify(digest).map_err(|error| self.files.entry(digest.as_str(), error))?;
        Ok(Some(()))
    }
}

/// The bytes of a blob.
pub enum BlobReader {
    /// Out of a tar.
    Span {
        /// The tar.
        tar: Arc<File>,
        /// Where the next byte is.
        offset: u64,
        /// Bytes that are left.
        left: u64,
    },
    /// A file of its own.
    File(File),
    /// In memory.
    Made(io::Cursor<Arc<[u8]>>),
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            BlobReader::Span { tar, offset, left } => {
                let want = buffer.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                if want == 0 {
                    return Ok(0);
                }
                let count = tar.read_at(&mut buffer[..want], *offset)?;
                if count == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                *offset += count as u64;
                *left -= count as u64;
                Ok(count)
            }
            BlobReader::File(file) => file.read(buffer),
            BlobReader::Made(bytes) => bytes.read(buffer),
        }
    }
}

impl Files {
    pub(super) fn entry(&self, entry: impl Into<String>, reason: impl std::fmt::Display) -> ArchiveError {
        ArchiveError::Entry { path: self.path.clone(), entry: entry.into(), reason: reason.to_string() }
    }

    pub(super) fn format(&self, reason: impl Into<String>) -> ArchiveError {
        ArchiveError::Format { path: self.path.clone(), reason: reason.into() }
    }

    /// Where a member's bytes are, links inside the archive followed.
    pub(super) fn place(&self, name: &str) -> Option<&Place> {
        let mut name = name;
        for _ in 0..LINK_LIMIT {
            match self.members.get(name)? {
                Member::Content(place) => return Some(place),
                Member::Link(target) => name = target,
            }
        }
        None
    }

    pub(super) fn document(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, ArchiveError> {
        let Some(place) = self.place(name) else { return Ok(None) };
        self.read(name, place, limit).map(Some)
    }

    pub(super) fn read(&self, name: &str, place: &Place, limit: u64) -> Result<Vec<u8>, ArchiveError> {
        if place.size() > limit {
            return Err(self.entry(name, format!("has {} bytes, at most {limit} are read", place.size())));
        }
        let mut content = Vec::new();
        let reader = self.open(name, place)?;
        reader.take(limit + 1).read_to_end(&mut content).map_err(|error| self.entry(name, error))?;
        if content.len() as u64 != place.size() {
            return Err(self.entry(name, "changes while it is read"));
        }
        Ok(content)
    }

    pub(super) fn open(&self, name: &str, place: &Place) -> Result<BlobReader, ArchiveError> {
        match place {
            Place::Span { offset, size } => {
                let tar = self.tar.clone().ok_or_else(|| self.entry(name, "is in no tar"))?;
                Ok(BlobReader::Span { tar, offset: *offset, left: *size })
            }
            Place::File { path, .. } => {
                File::open(path).map(BlobReader::File).map_err(|error| self.entry(name, error))
            }
            Place::Made(bytes) => Ok(BlobReader::Made(io::Cursor::new(bytes.clone()))),
        }
    }

    fn add(&mut self, name: String, member: Member) -> Result<(), ArchiveError> {
        if self.members.len() >= MEMBER_LIMIT {
            return Err(self.format(format!("more than {MEMBER_LIMIT} entries")));
        }
        self.members.insert(name, member);
        Ok(())
    }

    /// Regular files alone: a link in a directory may lead anywhere.
    fn walk(&mut self, directory: &Path, prefix: &str, depth: usize) -> Result<(), ArchiveError> {
        if depth > DEPTH_LIMIT {
            return Err(self.entry(prefix, "directories are nested too deeply"));
        }
        let read = |source| ArchiveError::Read { path: directory.to_owned(), source };
        for entry in std::fs::read_dir(directory).map_err(read)? {
            let entry = entry.map_err(read)?;
            // Names that are no text are nobody's blobs or documents.
            let Ok(name) = entry.file_name().into_string() else { continue };
            let name = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
            let metadata = std::fs::symlink_metadata(entry.path()).map_err(read)?;
            if metadata.is_dir() {
                self.walk(&entry.path(), &name, depth + 1)?;
            } else if metadata.is_file() {
                let place = Place::File { path: entry.path(), size: metadata.len() };
                self.add(name, Member::Content(place))?;
            }
        }
        Ok(())
    }

    fn scan(&mut self, file: &File, strictness: Strictness) -> Result<(), ArchiveError> {
        let length = file.metadata().map_err(|error| self.format(error.to_string()))?.len();
        let mut tar = TarReader::new(At { file, position: 0 });
        let mut last = "the start".to_owned();
        let strict = strictness == Strictness::Strict;
        loop {
            let entry = match tar.pass_over().and_then(|()| tar.next_entry()) {
                Ok(Some(entry)) => entry,
                Ok(None) if tar.data_position() > length => {
                    return Err(self.format(format!("ends inside {last}")));
                }
                Ok(None) => return Ok(()),
                Err(error) => return Err(self.format(format!("after {last}: {error}"))),
            };
            if tar.data_position().saturating_add(entry.size) > length {
                return Err(self.format(format!("after {last}: the archive ends inside an entry")));
            }
            let name = normalise(&entry.path);
            if strict {
                self.check_strict(&entry.path, name.as_deref(), &entry.kind)?;
            }
            let Some(name) = name else { continue };
            match entry.kind {
                EntryKind::File if entry.sparse.is_none() => {
                    let (offset, size) = (tar.data_position(), entry.size);
                    self.add(name.clone(), Member::Content(Place::Span { offset, size }))?;
                }
                EntryKind::Symlink | EntryKind::HardLink => {
                    let symbolic = entry.kind == EntryKind::Symlink;
                    let target = link_target(&name, &entry.link, symbolic)
                        .ok_or_else(|| self.entry(&*name, "links out of the archive"))?;
                    self.add(name.clone(), Member::Link(target))?;
                }
                _ => {}
            }
            last = format!("entry {name}");
        }
    }

    fn check_strict(&self, path: &[u8], name: Option<&str>, kind: &EntryKind) -> Result<(), ArchiveError> {
        let shown = String::from_utf8_lossy(path).into_owned();
        let trimmed = path.strip_suffix(b"/").unwrap_or(path);
        if name.is_none_or(|name| name.as_bytes() != trimmed) {
            return Err(self.entry(shown, "has a name that is not plain"));
        }
        if !matches!(kind, EntryKind::File | EntryKind::Directory) {
            return Err(self.entry(shown, "is neither a file nor a directory"));
        }
        if name.is_some_and(|name| self.members.contains_key(name)) {
            return Err(self.entry(shown, "stands there twice"));
        }
        Ok(())
    }
}

/// Reads a file from its start, whoever else reads it.
struct At<'a> {
    file: &'a File,
    position: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for At<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(step) => self.position.checked_add_signed(step),
            SeekFrom::End(_) => None,
        };
        self.position = target.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

/// The file itself when it is not compressed, else its content in a file that nobody else can name.
fn uncompressed(file: File, spool: &Path) -> io::Result<File> {
    let size = file.metadata()?.len();
    let limit = size.saturating_mul(SPOOL_RATIO).saturating_add(SPOOL_BASE);
    let mut source = Decompressed::new(file.try_clone()?)?;
    if source.compression() == Compression::None {
        return Ok(file);
    }
    let (path, mut target) = spool_file(spool)?;
    std::fs::remove_file(path)?;
    let copied = io::copy(&mut (&mut source).take(limit + 1), &mut target)?;
    if copied > limit {
        let text = format!("unpacks to more than {limit} bytes: it is taken for a bomb");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    target.flush()?;
    Ok(target)
}

fn spool_file(directory: &Path) -> io::Result<(PathBuf, File)> {
    let path = directory.join(format!("orlop-spool.{:016x}", rand::random::<u64>()));
    let file = File::options().read(true).write(true).create_new(true).open(&path);
    let file = file.map_err(|error| {
        io::Error::new(error.kind(), format!("failed to spool to {}: {error}", directory.display()))
    })?;
    Ok((path, file))
}
