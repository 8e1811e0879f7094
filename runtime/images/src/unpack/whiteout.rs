//! What a layer deletes of those below it (image-spec layer.md, "Whiteouts").
//!
//! A whiteout hides what is below, never what the same layer brings, in whatever order the tar names them.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, Mode};

use super::UnpackError;
use super::path::{LayerPath, below, split};
use super::tree::{Node, Parent, Tree, failed, node};

impl Tree<'_> {
    /// An opaque whiteout in this directory.
    pub(super) fn hide_below(&mut self, directory: &impl AsFd, path: &[u8]) -> Result<(), UnpackError> {
        self.prune(path)?;
        self.make_opaque(directory, path)
    }

    /// A whiteout of `hidden` in this directory.
    pub(super) fn white_out(&mut self, parent: &Parent, hidden: &[u8]) -> Result<(), UnpackError> {
        let path = parent.child(hidden);
        match node(&parent.directory, hidden).map_err(failed("look at", &path))? {
            Node::Missing => self.put_whiteout(parent, hidden),
            Node::Directory => {
                self.prune(&path)?;
                if self.implied.contains_key(&path) && self.remove_if_empty(&path)? {
                    return self.put_whiteout(parent, hidden);
                }
                let directory = self.open_or_make_directory(parent, hidden)?;
                self.make_opaque(&directory, &path)
            }
            Node::Symlink | Node::Other if self.copied_up.contains(&path) => {
                self.clear(parent, hidden)?;
                self.put_whiteout(parent, hidden)
            }
            Node::Whiteout | Node::Symlink | Node::Other => Ok(()),
        }
    }

    fn put_whiteout(&mut self, parent: &Parent, hidden: &[u8]) -> Result<(), UnpackError> {
        let path = parent.child(hidden);
        // In an opaque directory nothing has to be hidden, and overlayfs would list the mark.
        if self.is_hidden(&path) {
            return Ok(());
        }
        self.usage.inodes += 1;
        rustix::fs::mknodat(&parent.directory, hidden, FileType::CharacterDevice, Mode::empty(), 0)
            .map_err(|error| failed("make whiteout", &path)(error.into()))?;
        self.remember(&path)?;
        self.whiteouts.insert(path);
        Ok(())
    }

    /// Takes away what stands below `path` only for the sake of the layers below: whiteouts, copies of their files, directories that
    /// the tar implies and that are empty then.
    fn prune(&mut self, path: &[u8]) -> Result<(), UnpackError> {
        self.last_parent = None;
        let (first, past) = below(path);
        let inside =
            |other: &&LayerPath| **other >= first && past.as_ref().is_none_or(|past| **other < *past);
        let marks: Vec<LayerPath> =
            self.whiteouts.iter().chain(&self.copied_up).filter(inside).cloned().collect();
        for mark in marks {
            if let Some((above, name)) = split(&mark)
                && let Some(directory) = self.open_plain(above)
            {
                rustix::fs::unlinkat(&directory, name, AtFlags::empty())
                    .map_err(|error| failed("remove", &mark)(error.into()))?;
            }
            self.whiteouts.remove(&mark);
            self.copied_up.remove(&mark);
        }
        let directories: Vec<LayerPath> = self.implied.keys().filter(inside).cloned().collect();
        // Deepest first: what is below a path sorts after it.
        for directory in directories.iter().rev() {
            self.remove_if_empty(directory)?;
        }
        Ok(())
    }

    fn remove_if_empty(&mut self, path: &[u8]) -> Result<bool, UnpackError> {
        let Some((above, name)) = split(path) else { return Ok(false) };
        let Some(parent) = self.open_plain(above) else { return Ok(false) };
        match rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR) {
            Ok(()) => {
                self.forget(path);
                Ok(true)
            }
            Err(rustix::io::Errno::NOTEMPTY) => Ok(false),
            Err(error) => Err(failed("remove", path)(error.into())),
        }
    }
}
