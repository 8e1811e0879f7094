//! Makes nodes below one directory, one name at a time, so that the kernel never follows a link.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use orlop_distribution::tarball::{EntryKind, TarEntry};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timestamps, Uid};
use rustix::io::Errno;

use super::lower::{Found, LowerView};
use super::metadata::{Attributes, set_opaque};
use super::path::{LayerPath, Marker, ancestors, below, child, clean, depth, marker, show, split};
use super::writing::write_content;
use super::{Limits, UnpackError};
use crate::Usage;

/// PATH_MAX of Linux.
const PATH_LIMIT: usize = 4096;
/// Directories above each other. Removing a tree keeps one file open per level.
const DEPTH_LIMIT: usize = 400;
/// What is kept in memory about directories and whiteouts until the end, names included.
const MEMORY_LIMIT: usize = 32 << 20;
/// Accounted for one of them beside its name.
const MEMORY_OF_NODE: usize = 96;
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Accounted for a directory.
const DIRECTORY_BYTES: u64 = 4096;

pub(super) struct Tree<'a> {
    pub(super) root: Rc<OwnedFd>,
    pub(super) lower: Option<&'a LowerView>,
    limits: Limits,
    /// The last parent: entries of a directory come together.
    pub(super) last_parent: Option<(LayerPath, Parent)>,
    /// Times of directories are set at the end, when nothing changes them any more.
    directory_times: BTreeMap<LayerPath, Timestamps>,
    /// Directories that the tar does not describe. True: what is below shows through.
    pub(super) implied: BTreeMap<LayerPath, bool>,
    /// Directories that were implied and went: when one is a link below, what was put into it is elsewhere.
    assumed: BTreeSet<LayerPath>,
    pub(super) opaque: BTreeSet<LayerPath>,
    pub(super) whiteouts: BTreeSet<LayerPath>,
    /// Targets of hard links that came from below: to a whiteout they are still what is below.
    pub(super) copied_up: BTreeSet<LayerPath>,
    is_root_described: bool,
    remembered: usize,
    pub(super) usage: Usage,
}

/// What has to be fitted onto the layers below.
#[derive(Debug, Default)]
pub(super) struct Loose {
    /// Directories, the root among them, that shall look as they do below.
    pub(super) implied: Vec<LayerPath>,
    /// Directories that must not be links below.
    pub(super) assumed: Vec<LayerPath>,
    /// Whiteouts, which must stand only where there is something to hide.
    pub(super) whiteouts: Vec<LayerPath>,
}

/// A directory of the layer, with its path after all links were resolved.
#[derive(Clone)]
pub(super) struct Parent {
    pub(super) directory: Rc<OwnedFd>,
    pub(super) path: LayerPath,
}

impl Parent {
    pub(super) fn child(&self, name: &[u8]) -> LayerPath {
        child(&self.path, name)
    }
}

pub(super) enum Node {
    Missing,
    Directory,
    Symlink,
    Whiteout,
    Other,
}

pub(super) fn node(directory: &impl AsFd, name: &[u8]) -> io::Result<Node> {
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Node::Directory,
            FileType::Symlink => Node::Symlink,
            FileType::CharacterDevice if stat.st_rdev == 0 => Node::Whiteout,
            _ => Node::Other,
        }),
        Err(Errno::NOENT) => Ok(Node::Missing),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn failed(act: &'static str, path: &[u8]) -> impl FnOnce(io::Error) -> UnpackError {
    let path = show(path);
    move |source| UnpackError::Write { act, path, source }
}

pub(super) fn refused(path: &[u8], reason: impl Into<String>) -> UnpackError {
    UnpackError::Entry { path: String::from_utf8_lossy(path).into_owned(), reason: reason.into() }
}

fn open_root(destination: &Path) -> Result<OwnedFd, UnpackError> {
    rustix::fs::open(destination, DIRECTORY, Mode::empty()).map_err(|error| failed("open", &[])(error.into()))
}

impl<'a> Tree<'a> {
    pub(super) fn open(
        destination: &Path,
        lower: Option<&'a LowerView>,
        limits: Limits,
    ) -> Result<Self, UnpackError> {
        Ok(Self {
            root: Rc::new(open_root(destination)?),
            lower,
            limits,
            last_parent: None,
            directory_times: BTreeMap::new(),
            implied: BTreeMap::new(),
            assumed: BTreeSet::new(),
            opaque: BTreeSet::new(),
            whiteouts: BTreeSet::new(),
            copied_up: BTreeSet::new(),
            is_root_described: false,
            remembered: 0,
            usage: Usage::default(),
        })
    }

    /// Makes what one entry says; `content` gives its data.
    pub(super) fn apply(&mut self, entry: &TarEntry, content: &mut impl Read) -> Result<(), UnpackError> {
        if entry.path.len() > PATH_LIMIT || entry.link.len() > PATH_LIMIT {
            return Err(refused(&entry.path[..entry.path.len().min(64)], "path is too long"));
        }
        let path = clean(&entry.path).ok_or_else(|| refused(&entry.path, "leads out of the layer"))?;
        match entry.kind {
            // The name of the archive (GNU tar --label).
            EntryKind::Other(b'V') => return Ok(()),
            EntryKind::Other(flag) => {
                let reason = format!("has the unknown type {:?}", char::from(flag));
                return Err(refused(&entry.path, reason));
            }
            _ => {}
        }
        let Some((above, name)) = split(&path) else {
            return self.describe_root(entry);
        };
        match marker(name) {
            Marker::Ignored => {}
            Marker::Opaque => {
                let parent = self.parent(above, &entry.path)?;
                self.hide_below(&parent.directory, &parent.path)?;
            }
            Marker::Whiteout(hidden) => {
                let parent = self.parent(above, &entry.path)?;
                self.white_out(&parent, hidden)?;
            }
            Marker::None => {
                let parent = self.parent(above, &entry.path)?;
                self.make(entry, &parent, name, content)?;
            }
        }
        // Directories that are only implied and files from below count, too: an entry may bring many of them.
        if self.usage.inodes > self.limits.entries {
            return Err(UnpackError::Limit { limit: self.limits.entries, unit: "entries" });
        }
        if self.usage.bytes > self.limits.bytes {
            return Err(UnpackError::Limit { limit: self.limits.bytes, unit: "bytes" });
        }
        Ok(())
    }

    fn make(
        &mut self,
        entry: &TarEntry,
        parent: &Parent,
        name: &[u8],
        content: &mut impl Read,
    ) -> Result<(), UnpackError> {
        let attributes = Attributes::of_entry(entry).map_err(|reason| refused(&entry.path, reason))?;
        match entry.kind {
            EntryKind::Directory => self.make_directory(parent, name, &attributes),
            EntryKind::HardLink => self.make_hard_link(entry, parent, name),
            EntryKind::File => {
                let file = self.create(parent, name)?;
                let content = (content, entry.size, entry.sparse.as_deref());
                self.fill(&file, &parent.child(name), content, &attributes)
            }
            EntryKind::Symlink | EntryKind::CharacterDevice | EntryKind::BlockDevice | EntryKind::Fifo => {
                self.clear(parent, name)?;
                self.usage.inodes += 1;
                let made = match entry.kind {
                    EntryKind::Symlink => Special::Symlink(&entry.link),
                    EntryKind::CharacterDevice => Special::Node(FileType::CharacterDevice, device_of(entry)),
                    EntryKind::BlockDevice => Special::Node(FileType::BlockDevice, device_of(entry)),
                    _ => Special::Node(FileType::Fifo, 0),
                };
                if matches!(made, Special::Node(FileType::CharacterDevice, 0)) {
                    // To overlayfs that would be a whiteout.
                    return Err(refused(&entry.path, "is the character device 0, 0"));
                }
                make_special(&made, parent, name, &attributes).map_err(failed("make", &parent.child(name)))
            }
            EntryKind::Other(_) => Ok(()),
        }
    }

    /// Writes a file's content and attributes.
    fn fill(
        &mut self,
        file: &File,
        path: &[u8],
        (content, size, segments): (&mut impl Read, u64, Option<&[orlop_distribution::tarball::Segment]>),
        attributes: &Attributes,
    ) -> Result<(), UnpackError> {
        let written = write_content(file, content, size, segments);
        self.usage.bytes += written.map_err(|error| error.of(&show(path)))?;
        self.usage.inodes += 1;
        attributes.apply(file).map_err(failed("set attributes of", path))?;
        rustix::fs::futimens(file, &attributes.times())
            .map_err(|error| failed("set times of", path)(error.into()))
    }

    fn describe_root(&mut self, entry: &TarEntry) -> Result<(), UnpackError> {
        if entry.kind != EntryKind::Directory {
            return Err(refused(&entry.path, "replaces the root directory"));
        }
        let attributes = Attributes::of_entry(entry).map_err(|reason| refused(&entry.path, reason))?;
        attributes.replace(&*self.root).map_err(failed("set attributes of", &[]))?;
        self.is_root_described = true;
        self.directory_times.insert(LayerPath::new(), attributes.times());
        Ok(())
    }

    fn make_directory(
        &mut self,
        parent: &Parent,
        name: &[u8],
        attributes: &Attributes,
    ) -> Result<(), UnpackError> {
        let path = parent.child(name);
        let hides = match node(&parent.directory, name).map_err(failed("look at", &path))? {
            Node::Directory | Node::Missing => false,
            // It stood for "nothing of below here": the directory has to say the same.
            Node::Whiteout | Node::Symlink | Node::Other => {
                self.clear(parent, name)?;
                true
            }
        };
        self.last_parent = None;
        let directory = self.open_or_make_directory(parent, name)?;
        if hides {
            self.make_opaque(&directory, &path)?;
        }
        attributes.replace(&directory).map_err(failed("set attributes of", &path))?;
        if self.implied.remove(&path) == Some(true) {
            self.assumed.insert(path.clone());
        }
        self.remember(&path)?;
        self.directory_times.insert(path, attributes.times());
        Ok(())
    }

    pub(super) fn open_or_make_directory(
        &mut self,
        parent: &Parent,
        name: &[u8],
    ) -> Result<OwnedFd, UnpackError> {
        let path = parent.child(name);
        if path.len() > PATH_LIMIT || depth(&path) > DEPTH_LIMIT {
            let reason = format!("lies deeper than {DEPTH_LIMIT} directories or {PATH_LIMIT} bytes");
            return Err(refused(&path[..path.len().min(64)], reason));
        }
        match rustix::fs::mkdirat(&parent.directory, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {
                self.usage.inodes += 1;
                self.usage.bytes += DIRECTORY_BYTES;
            }
            Err(Errno::EXIST) => {}
            Err(error) => return Err(failed("make directory", &path)(error.into())),
        }
        rustix::fs::openat(&parent.directory, name, DIRECTORY, Mode::empty())
            .map_err(|error| failed("open", &path)(error.into()))
    }

    pub(super) fn make_opaque(&mut self, directory: &impl AsFd, path: &[u8]) -> Result<(), UnpackError> {
        set_opaque(directory.as_fd()).map_err(failed("mark opaque", path))?;
        self.remember(path)?;
        self.opaque.insert(path.to_vec());
        Ok(())
    }

    fn make_hard_link(&mut self, entry: &TarEntry, parent: &Parent, name: &[u8]) -> Result<(), UnpackError> {
        let target = clean(&entry.link).ok_or_else(|| refused(&entry.path, "links out of the layer"))?;
        let Some((target_above, target_name)) = split(&target) else {
            return Err(refused(&entry.path, "links to the root directory"));
        };
        let source = self.parent(target_above, &entry.path)?;
        if source.path == parent.path && target_name == name {
            return Ok(());
        }
        let target = source.child(target_name);
        match node(&source.directory, target_name).map_err(failed("look at", &target))? {
            Node::Symlink | Node::Other => {}
            Node::Directory => return Err(refused(&entry.path, "links to a directory")),
            Node::Missing => self.copy_up(entry, &source, target_name)?,
            Node::Whiteout => return Err(refused(&entry.path, "links to a file that the layer deletes")),
        }
        self.clear(parent, name)?;
        rustix::fs::linkat(&source.directory, target_name, &parent.directory, name, AtFlags::empty())
            .map_err(|error| failed("link", &parent.child(name))(error.into()))
    }

    /// The target of a hard link is in a layer below: it has to become part of this layer, as overlayfs would do.
    fn copy_up(&mut self, entry: &TarEntry, source: &Parent, name: &[u8]) -> Result<(), UnpackError> {
        let Some(lower) = self.lower else { return Err(UnpackError::NeedsLower) };
        let path = source.child(name);
        let missing = || refused(&entry.path, format!("links to {:?}, which does not exist", show(&path)));
        if self.is_hidden(&path) {
            return Err(missing());
        }
        let read = || failed("read", &path);
        let found = lower.lookup(&path).map_err(failed("look below for", &path))?;
        let (below, metadata) = match found {
            Found::Missing => return Err(missing()),
            Found::Directory(..) => return Err(refused(&entry.path, "links to a directory")),
            Found::Symlink(below, metadata) | Found::Other(below, metadata) => (below, metadata),
        };
        let attributes = Attributes::of_path(&below, &metadata).map_err(read())?;
        self.remember(&path)?;
        if metadata.is_file() {
            let mut content = File::open(&below).map_err(read())?;
            let file = self.create(source, name)?;
            self.fill(&file, &path, (&mut content, metadata.len(), None), &attributes)?;
        } else {
            let link = std::fs::read_link(&below).unwrap_or_default();
            let link = std::os::unix::ffi::OsStrExt::as_bytes(link.as_os_str());
            let made = match FileType::from_raw_mode(std::os::unix::fs::MetadataExt::mode(&metadata)) {
                FileType::Symlink => Special::Symlink(link),
                kind => Special::Node(kind, std::os::unix::fs::MetadataExt::rdev(&metadata)),
            };
            self.usage.inodes += 1;
            make_special(&made, source, name, &attributes).map_err(failed("make", &path))?;
        }
        self.copied_up.insert(path);
        Ok(())
    }

    /// A new file; what the same layer put there before makes room.
    fn create(&mut self, parent: &Parent, name: &[u8]) -> Result<File, UnpackError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(&parent.directory, name, flags, Mode::from_raw_mode(0o600));
        let opened = match open() {
            Err(Errno::EXIST) => {
                self.clear(parent, name)?;
                open()
            }
            result => result,
        };
        opened.map(File::from).map_err(|error| failed("create", &parent.child(name))(error.into()))
    }

    /// Removes what the same layer put there before: the last entry of a name wins.
    pub(super) fn clear(&mut self, parent: &Parent, name: &[u8]) -> Result<(), UnpackError> {
        let path = parent.child(name);
        match rustix::fs::unlinkat(&parent.directory, name, AtFlags::empty()) {
            Err(Errno::NOENT) => return Ok(()),
            Ok(()) => {}
            Err(Errno::ISDIR | Errno::PERM) => {
                self.last_parent = None;
                remove_tree(&parent.directory, name).map_err(failed("replace", &path))?;
            }
            Err(error) => return Err(failed("replace", &path)(error.into())),
        }
        self.forget(&path);
        Ok(())
    }

    /// Nothing is known any more about a path and what is below it.
    pub(super) fn forget(&mut self, path: &[u8]) {
        let (first, past) = below(path);
        let gone = |other: &[u8]| {
            other == path || (other >= &first[..] && past.as_ref().is_none_or(|past| other < &past[..]))
        };
        let assumed = &mut self.assumed;
        self.implied.retain(|other, shows| {
            let stays = !gone(other);
            if !stays && *shows {
                assumed.insert(other.clone());
            }
            stays
        });
        self.directory_times.retain(|other, _| !gone(other));
        for set in [&mut self.opaque, &mut self.whiteouts, &mut self.copied_up] {
            set.retain(|other| !gone(other));
        }
    }

    /// Bounds the memory that names take.
    pub(super) fn remember(&mut self, path: &[u8]) -> Result<(), UnpackError> {
        self.remembered += path.len() + MEMORY_OF_NODE;
        if self.remembered > MEMORY_LIMIT {
            let limit = MEMORY_LIMIT as u64;
            return Err(UnpackError::Limit { limit, unit: "bytes of names of directories and whiteouts" });
        }
        Ok(())
    }

    /// The usual case in one system call: every step is a directory of this layer. Anything else is for [`Tree::parent`].
    pub(super) fn open_plain(&self, path: &[u8]) -> Option<OwnedFd> {
        if path.is_empty() {
            return self.root.try_clone().ok();
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&*self.root, path, DIRECTORY, Mode::empty(), resolve).ok()
    }

    /// Whether a directory above is opaque, so that nothing of below shows here.
    pub(super) fn is_hidden(&self, path: &[u8]) -> bool {
        !self.opaque.is_empty() && ancestors(path).any(|above| self.opaque.contains(above))
    }

    /// Ends the layer: fits it onto those below if they are known, and sets the times of directories.
    pub(super) fn finish(mut self) -> Result<(Usage, Loose), UnpackError> {
        let mut loose = Loose {
            implied: std::mem::take(&mut self.implied)
                .into_iter()
                .filter_map(|(path, shows)| shows.then_some(path))
                .collect(),
            assumed: std::mem::take(&mut self.assumed).into_iter().collect(),
            whiteouts: std::mem::take(&mut self.whiteouts).into_iter().collect(),
        };
        if !self.is_root_described {
            loose.implied.insert(0, LayerPath::new());
        }
        for (path, times) in &self.directory_times {
            if let Some(directory) = self.open_plain(path) {
                rustix::fs::futimens(&directory, times)
                    .map_err(|error| failed("set times of", path)(error.into()))?;
            }
        }
        if let Some(lower) = self.lower {
            self.fit(&loose, lower, false)?;
            loose = Loose::default();
        }
        Ok((self.usage, loose))
    }
}

fn device_of(entry: &TarEntry) -> u64 {
    rustix::fs::makedev(entry.device.0, entry.device.1)
}

/// What is neither a file nor a directory.
enum Special<'a> {
    Symlink(&'a [u8]),
    Node(FileType, u64),
}

fn make_special(
    special: &Special<'_>,
    parent: &Parent,
    name: &[u8],
    attributes: &Attributes,
) -> io::Result<()> {
    let directory = &parent.directory;
    let mode = Mode::from_raw_mode(attributes.mode);
    match special {
        Special::Symlink(target) => rustix::fs::symlinkat(*target, directory, name)?,
        Special::Node(kind, device) => rustix::fs::mknodat(directory, name, *kind, mode, *device)?,
    }
    let (owner, group) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
    rustix::fs::chownat(directory, name, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
    if matches!(special, Special::Node(..)) {
        // The node was made a moment ago by this process, so it is no link.
        rustix::fs::chmodat(directory, name, mode, AtFlags::empty())?;
    }
    Ok(rustix::fs::utimensat(directory, name, &attributes.times(), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Removes a directory tree without following links; [`DEPTH_LIMIT`] bounds the recursion.
fn remove_tree(parent: &impl AsFd, name: &[u8]) -> io::Result<()> {
    let directory = rustix::fs::openat(parent, name, DIRECTORY, Mode::empty())?;
    for entry in rustix::fs::Dir::read_from(&directory)? {
        let entry = entry?;
        let child = entry.file_name();
        if matches!(child.to_bytes(), b"." | b"..") {
            continue;
        }
        match rustix::fs::unlinkat(&directory, child, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::ISDIR | Errno::PERM) => remove_tree(&directory, child.to_bytes())?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}
