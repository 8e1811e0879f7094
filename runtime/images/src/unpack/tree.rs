//! Makes nodes below one directory, one name at a time, so that the kernel never follows a link.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use orlop_distribution::tarball::{EntryKind, TarEntry};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timestamps, Uid};
use rustix::io::Errno;

use super::UnpackError;
use super::lower::{Found, LowerView};
use super::metadata::{Attributes, set_opaque};
use super::path::{Marker, Names, clean, join, marker, show, steps};
use super::writing::write_content;
use crate::Usage;

/// As many symbolic links as Linux follows in one path (path_resolution(7)).
const LINK_LIMIT: usize = 40;
/// PATH_MAX of Linux; also bounds how deep a tree gets.
const PATH_LIMIT: usize = 4096;
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Accounted for a directory.
const DIRECTORY_BYTES: u64 = 4096;

pub(super) struct Tree<'a> {
    root: Rc<OwnedFd>,
    lower: Option<&'a LowerView>,
    /// The last parent: entries of a directory come together.
    last_parent: Option<(Vec<u8>, Parent)>,
    /// Times of directories are set at the end, when nothing changes them any more.
    directory_times: Vec<(Names, Timestamps)>,
    implied: BTreeSet<Names>,
    opaque: BTreeSet<Names>,
    usage: Usage,
}

/// A directory of the layer, with its path after all links were resolved.
#[derive(Clone)]
struct Parent {
    directory: Rc<OwnedFd>,
    names: Names,
}

impl Parent {
    fn child(&self, name: &[u8]) -> Names {
        let mut names = self.names.clone();
        names.push(name.to_vec());
        names
    }
}

enum Node {
    Missing,
    Directory,
    Symlink,
    Whiteout,
    Other,
}

fn node(directory: &impl AsFd, name: &[u8]) -> io::Result<Node> {
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

fn failed(act: &'static str, names: &[Vec<u8>]) -> impl FnOnce(io::Error) -> UnpackError {
    let path = show(names);
    move |source| UnpackError::Write { act, path, source }
}

fn refused(path: &[u8], reason: impl Into<String>) -> UnpackError {
    UnpackError::Entry { path: String::from_utf8_lossy(path).into_owned(), reason: reason.into() }
}

fn open_root(destination: &Path) -> Result<OwnedFd, UnpackError> {
    rustix::fs::open(destination, DIRECTORY, Mode::empty()).map_err(|error| failed("open", &[])(error.into()))
}

impl<'a> Tree<'a> {
    pub(super) fn open(destination: &Path, lower: Option<&'a LowerView>) -> Result<Self, UnpackError> {
        Ok(Self {
            root: Rc::new(open_root(destination)?),
            lower,
            last_parent: None,
            directory_times: Vec::new(),
            implied: BTreeSet::new(),
            opaque: BTreeSet::new(),
            usage: Usage::default(),
        })
    }

    /// Makes what one entry says; `content` gives its data.
    pub(super) fn apply(&mut self, entry: &TarEntry, content: &mut impl Read) -> Result<(), UnpackError> {
        if entry.path.len() > PATH_LIMIT || entry.link.len() > PATH_LIMIT {
            return Err(refused(&entry.path[..entry.path.len().min(64)], "path is too long"));
        }
        let names = clean(&entry.path).ok_or_else(|| refused(&entry.path, "leads out of the layer"))?;
        let Some((name, parents)) = names.split_last() else {
            return self.describe_root(entry);
        };
        if let EntryKind::Other(flag) = entry.kind {
            tracing::debug!(flag, path = %show(&names), "entry of unknown type skipped");
            return Ok(());
        }
        match marker(name) {
            Marker::Ignored => Ok(()),
            Marker::Opaque => {
                let parent = self.parent(parents, &entry.path)?;
                self.make_opaque(&parent.directory, &parent.names)
            }
            Marker::Whiteout(hidden) => {
                let parent = self.parent(parents, &entry.path)?;
                self.white_out(&parent, hidden)
            }
            Marker::None => {
                let parent = self.parent(parents, &entry.path)?;
                self.make(entry, &parent, name, content)
            }
        }
    }

    fn make(
        &mut self,
        entry: &TarEntry,
        parent: &Parent,
        name: &[u8],
        content: &mut impl Read,
    ) -> Result<(), UnpackError> {
        let attributes = Attributes::of_entry(entry).map_err(|reason| refused(&entry.path, reason))?;
        let names = parent.child(name);
        match entry.kind {
            EntryKind::Directory => self.make_directory(parent, name, &attributes),
            EntryKind::HardLink => self.make_hard_link(entry, parent, name),
            EntryKind::File => {
                self.clear(parent, name)?;
                let file = create(parent, name)?;
                let written = write_content(&file, content, entry.size, entry.sparse.as_deref());
                self.usage.bytes += written.map_err(|error| error.of(&show(&names)))?;
                self.usage.inodes += 1;
                attributes.apply(&file).map_err(failed("set attributes of", &names))?;
                rustix::fs::futimens(&file, &attributes.times())
                    .map_err(|error| failed("set times of", &names)(error.into()))
            }
            EntryKind::Symlink | EntryKind::CharacterDevice | EntryKind::BlockDevice | EntryKind::Fifo => {
                self.clear(parent, name)?;
                self.usage.inodes += 1;
                make_special(entry, parent, name, &attributes).map_err(failed("make", &names))
            }
            EntryKind::Other(_) => Ok(()),
        }
    }

    fn describe_root(&mut self, entry: &TarEntry) -> Result<(), UnpackError> {
        if entry.kind != EntryKind::Directory {
            return Err(refused(&entry.path, "replaces the root directory"));
        }
        let attributes = Attributes::of_entry(entry).map_err(|reason| refused(&entry.path, reason))?;
        attributes.apply(&*self.root).map_err(failed("set attributes of", &[]))?;
        self.directory_times.push((Names::new(), attributes.times()));
        Ok(())
    }

    fn make_directory(
        &mut self,
        parent: &Parent,
        name: &[u8],
        attributes: &Attributes,
    ) -> Result<(), UnpackError> {
        let names = parent.child(name);
        let hides = match node(&parent.directory, name).map_err(failed("look at", &names))? {
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
            self.make_opaque(&directory, &names)?;
        }
        attributes.apply(&directory).map_err(failed("set attributes of", &names))?;
        self.implied.remove(&names);
        self.directory_times.push((names, attributes.times()));
        Ok(())
    }

    fn open_or_make_directory(&mut self, parent: &Parent, name: &[u8]) -> Result<OwnedFd, UnpackError> {
        let names = parent.child(name);
        match rustix::fs::mkdirat(&parent.directory, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {
                self.usage.inodes += 1;
                self.usage.bytes += DIRECTORY_BYTES;
            }
            Err(Errno::EXIST) => {}
            Err(error) => return Err(failed("make directory", &names)(error.into())),
        }
        rustix::fs::openat(&parent.directory, name, DIRECTORY, Mode::empty())
            .map_err(|error| failed("open", &names)(error.into()))
    }

    fn make_opaque(&mut self, directory: &impl AsFd, names: &[Vec<u8>]) -> Result<(), UnpackError> {
        set_opaque(directory.as_fd()).map_err(failed("mark opaque", names))?;
        self.opaque.insert(names.to_vec());
        Ok(())
    }

    /// A whiteout hides what is below, never what the same layer brings (image-spec layer.md, "Whiteouts").
    fn white_out(&mut self, parent: &Parent, hidden: &[u8]) -> Result<(), UnpackError> {
        let names = parent.child(hidden);
        match node(&parent.directory, hidden).map_err(failed("look at", &names))? {
            Node::Missing => {
                self.usage.inodes += 1;
                let kind = FileType::CharacterDevice;
                rustix::fs::mknodat(&parent.directory, hidden, kind, Mode::empty(), 0)
                    .map_err(|error| failed("make whiteout", &names)(error.into()))
            }
            Node::Directory => {
                let directory = self.open_or_make_directory(parent, hidden)?;
                self.make_opaque(&directory, &names)
            }
            Node::Whiteout | Node::Symlink | Node::Other => Ok(()),
        }
    }

    fn make_hard_link(&mut self, entry: &TarEntry, parent: &Parent, name: &[u8]) -> Result<(), UnpackError> {
        let target = clean(&entry.link).ok_or_else(|| refused(&entry.path, "links out of the layer"))?;
        let Some((target_name, target_parents)) = target.split_last() else {
            return Err(refused(&entry.path, "links to the root directory"));
        };
        let source = self.parent(target_parents, &entry.path)?;
        if source.names == parent.names && target_name == name {
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
        let names = source.child(name);
        let missing = || refused(&entry.path, format!("links to {:?}, which does not exist", show(&names)));
        if self.is_hidden(&names) {
            return Err(missing());
        }
        match lower.lookup(&names).map_err(failed("look below for", &names))? {
            Found::Other(path, metadata) if metadata.is_file() => {
                let attributes = Attributes::of_path(&path, &metadata).map_err(failed("read", &names))?;
                let mut content = File::open(&path).map_err(failed("read", &names))?;
                let file = create(source, name)?;
                let written = write_content(&file, &mut content, metadata.len(), None);
                self.usage.bytes += written.map_err(|error| error.of(&show(&names)))?;
                self.usage.inodes += 1;
                attributes.apply(&file).map_err(failed("set attributes of", &names))?;
                rustix::fs::futimens(&file, &attributes.times())
                    .map_err(|error| failed("set times of", &names)(error.into()))
            }
            Found::Symlink(target) => rustix::fs::symlinkat(target, &source.directory, name)
                .map_err(|error| failed("link", &names)(error.into())),
            Found::Missing => Err(missing()),
            Found::Directory(..) | Found::Other(..) => Err(refused(&entry.path, "links to what is no file")),
        }
    }

    /// Removes what the same layer put there before: the last entry of a name wins.
    fn clear(&mut self, parent: &Parent, name: &[u8]) -> Result<(), UnpackError> {
        match rustix::fs::unlinkat(&parent.directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => {
                self.last_parent = None;
                let names = parent.child(name);
                let below = |path: &Names| path.starts_with(&names);
                self.implied.retain(|path| !below(path));
                self.opaque.retain(|path| !below(path));
                self.directory_times.retain(|(path, _)| !below(path));
                remove_tree(&parent.directory, name).map_err(failed("replace", &names))
            }
            Err(error) => Err(failed("replace", &parent.child(name))(error.into())),
        }
    }

    /// Opens the directory of an entry, making what is missing.
    fn parent(&mut self, names: &[Vec<u8>], entry: &[u8]) -> Result<Parent, UnpackError> {
        let path = join(names);
        if let Some((last, parent)) = &self.last_parent
            && *last == path
        {
            return Ok(parent.clone());
        }
        let parent = match self.open_plain(&path) {
            Some(directory) => Parent { directory: Rc::new(directory), names: names.to_vec() },
            None => self.walk(names, entry)?,
        };
        self.last_parent = Some((path, parent.clone()));
        Ok(parent)
    }

    /// The usual case in one system call: every step is a directory of this layer. Anything else is for [`Tree::walk`].
    fn open_plain(&self, path: &[u8]) -> Option<OwnedFd> {
        if path.is_empty() {
            return self.root.try_clone().ok();
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&*self.root, path, DIRECTORY, Mode::empty(), resolve).ok()
    }

    /// Step by step, with links resolved here and clamped to the root of the layer.
    fn walk(&mut self, names: &[Vec<u8>], entry: &[u8]) -> Result<Parent, UnpackError> {
        let mut queue: VecDeque<Vec<u8>> = names.iter().cloned().collect();
        let mut stack: Vec<Parent> = vec![Parent { directory: Rc::clone(&self.root), names: Names::new() }];
        let mut links = 0;
        while let Some(name) = queue.pop_front() {
            if name == b".." {
                if stack.len() > 1 {
                    stack.pop();
                }
                continue;
            }
            let here = stack.last().expect("the root is never popped").clone();
            let path = here.child(&name);
            let target = match node(&here.directory, &name).map_err(failed("look at", &path))? {
                Node::Directory => None,
                Node::Symlink => {
                    let target = rustix::fs::readlinkat(&here.directory, name.as_slice(), Vec::new())
                        .map_err(|error| failed("read link", &path)(error.into()))?;
                    Some(target.into_bytes())
                }
                Node::Whiteout => {
                    self.replace_whiteout(&here, &name)?;
                    None
                }
                Node::Other => return Err(refused(entry, format!("{:?} is not a directory", show(&path)))),
                Node::Missing => self.imply(&here, &name)?,
            };
            let Some(target) = target else {
                let directory = self.open_or_make_directory(&here, &name)?;
                stack.push(Parent { directory: Rc::new(directory), names: path });
                continue;
            };
            links += 1;
            if links > LINK_LIMIT {
                return Err(refused(entry, "too many symbolic links"));
            }
            if target.starts_with(b"/") {
                stack.truncate(1);
            }
            for step in steps(&target).into_iter().rev() {
                queue.push_front(step);
            }
        }
        Ok(stack.pop().expect("the root is never popped"))
    }

    /// The layer deletes the directory and then puts something into it.
    fn replace_whiteout(&mut self, here: &Parent, name: &[u8]) -> Result<(), UnpackError> {
        self.clear(here, name)?;
        let directory = self.open_or_make_directory(here, name)?;
        self.make_opaque(&directory, &here.child(name))
    }

    /// Makes a directory that the tar does not describe, as it is below. Returns the target when it is a link there.
    fn imply(&mut self, here: &Parent, name: &[u8]) -> Result<Option<Vec<u8>>, UnpackError> {
        let names = here.child(name);
        let mut attributes = Attributes::implied_directory();
        if self.is_hidden(&names) {
            // Nothing of below shows here.
        } else if let Some(lower) = self.lower {
            match lower.lookup(&names).map_err(failed("look below for", &names))? {
                Found::Symlink(target) => return Ok(Some(target)),
                Found::Directory(path, metadata) => {
                    attributes = Attributes::of_path(&path, &metadata).map_err(failed("read", &names))?;
                    self.directory_times.push((names.clone(), attributes.times()));
                }
                Found::Missing | Found::Other(..) => {}
            }
        } else {
            self.implied.insert(names.clone());
        }
        let directory = self.open_or_make_directory(here, name)?;
        attributes.apply(&directory).map_err(failed("set attributes of", &names))?;
        Ok(None)
    }

    fn is_hidden(&self, names: &[Vec<u8>]) -> bool {
        (0..names.len()).any(|length| self.opaque.contains(&names[..length]))
    }

    /// Sets the times of directories. Returns what was made and which directories were only implied.
    pub(super) fn finish(self) -> Result<(Usage, Vec<Vec<u8>>), UnpackError> {
        for (names, times) in self.directory_times.iter().rev() {
            if let Some(directory) = self.open_plain(&join(names)) {
                rustix::fs::futimens(&directory, times)
                    .map_err(|error| failed("set times of", names)(error.into()))?;
            }
        }
        let implied =
            self.implied.iter().filter(|names| !self.is_hidden(names)).map(|names| join(names)).collect();
        Ok((self.usage, implied))
    }
}

fn create(parent: &Parent, name: &[u8]) -> Result<File, UnpackError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(&parent.directory, name, flags, Mode::from_raw_mode(0o600))
        .map(File::from)
        .map_err(|error| failed("create", &parent.child(name))(error.into()))
}

fn make_special(entry: &TarEntry, parent: &Parent, name: &[u8], attributes: &Attributes) -> io::Result<()> {
    let directory = &parent.directory;
    let mode = Mode::from_raw_mode(attributes.mode);
    let device = rustix::fs::makedev(entry.device.0, entry.device.1);
    match entry.kind {
        EntryKind::Symlink => rustix::fs::symlinkat(entry.link.as_slice(), directory, name)?,
        EntryKind::CharacterDevice => {
            rustix::fs::mknodat(directory, name, FileType::CharacterDevice, mode, device)?
        }
        EntryKind::BlockDevice => rustix::fs::mknodat(directory, name, FileType::BlockDevice, mode, device)?,
        _ => rustix::fs::mkfifoat(directory, name, mode)?,
    }
    let (owner, group) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
    rustix::fs::chownat(directory, name, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
    if entry.kind != EntryKind::Symlink {
        // The node was made a moment ago by this process, so it is no link.
        rustix::fs::chmodat(directory, name, mode, AtFlags::empty())?;
    }
    Ok(rustix::fs::utimensat(directory, name, &attributes.times(), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Removes a directory tree without following links and without recursion deeper than the tree itself.
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

pub(super) fn adopt_lower(
    implied: &[Vec<u8>],
    destination: &Path,
    lower: &LowerView,
) -> Result<(), UnpackError> {
    let tree = Tree::open(destination, None)?;
    // Deepest first: setting attributes changes no parent, but keeps times simple to reason about.
    for path in implied.iter().rev() {
        let names: Names = path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect();
        // A later entry of the tar may have replaced the directory.
        let Some(directory) = tree.open_plain(path) else { continue };
        match lower_through_links(lower, &names)? {
            Found::Missing => {}
            Found::Symlink(_) | Found::Other(..) => return Err(UnpackError::NeedsLower),
            Found::Directory(path, metadata) => {
                let attributes = Attributes::of_path(&path, &metadata).map_err(failed("read", &names))?;
                attributes.apply(&directory).map_err(failed("set attributes of", &names))?;
                rustix::fs::futimens(&directory, &attributes.times())
                    .map_err(|error| failed("set times of", &names)(error.into()))?;
            }
        }
    }
    Ok(())
}

/// A link anywhere on the way makes the whole layer mean something else.
fn lower_through_links(lower: &LowerView, names: &[Vec<u8>]) -> Result<Found, UnpackError> {
    for length in 1..names.len() {
        match lower.lookup(&names[..length]).map_err(failed("look below for", names))? {
            Found::Symlink(target) => return Ok(Found::Symlink(target)),
            Found::Missing => return Ok(Found::Missing),
            Found::Directory(..) | Found::Other(..) => {}
        }
    }
    lower.lookup(names).map_err(failed("look below for", names))
}
