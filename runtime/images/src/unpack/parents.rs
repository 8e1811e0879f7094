//! The directory that an entry goes into: links are resolved here, never by the kernel, and stay inside the layer.

use std::collections::VecDeque;
use std::rc::Rc;

use super::UnpackError;
use super::lower::Found;
use super::metadata::Attributes;
use super::path::{LayerPath, parent, show, steps};
use super::tree::{Node, Parent, Tree, failed, node, refused};

/// As many symbolic links as Linux follows in one path (path_resolution(7)).
const LINK_LIMIT: usize = 40;

impl Tree<'_> {
    /// Opens the directory of an entry, making what is missing.
    pub(super) fn parent(&mut self, path: &[u8], entry: &[u8]) -> Result<Parent, UnpackError> {
        if let Some((last, parent)) = &self.last_parent
            && *last == path
        {
            return Ok(parent.clone());
        }
        let parent = match self.open_plain(path) {
            Some(directory) => Parent { directory: Rc::new(directory), path: path.to_vec() },
            None => self.walk(path, entry)?,
        };
        self.last_parent = Some((path.to_vec(), parent.clone()));
        Ok(parent)
    }

    /// Step by step, with links clamped to the root of the layer.
    fn walk(&mut self, path: &[u8], entry: &[u8]) -> Result<Parent, UnpackError> {
        let mut queue: VecDeque<Vec<u8>> = steps(path);
        let root = || Parent { directory: Rc::clone(&self.root), path: LayerPath::new() };
        let (mut here, root) = (root(), root());
        let mut links = 0;
        while let Some(name) = queue.pop_front() {
            if name == b".." {
                let above = parent(&here.path).to_vec();
                let directory =
                    self.open_plain(&above).ok_or_else(|| refused(entry, "has a moving parent"))?;
                here = Parent { directory: Rc::new(directory), path: above };
                continue;
            }
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
                here = Parent { directory: Rc::new(directory), path };
                continue;
            };
            links += 1;
            if links > LINK_LIMIT {
                return Err(refused(entry, "too many symbolic links"));
            }
            if target.starts_with(b"/") {
                here = root.clone();
            }
            for step in steps(&target).into_iter().rev() {
                queue.push_front(step);
            }
        }
        Ok(here)
    }

    /// The layer deletes the directory and then puts something into it.
    fn replace_whiteout(&mut self, here: &Parent, name: &[u8]) -> Result<(), UnpackError> {
        let path = here.child(name);
        self.clear(here, name)?;
        let directory = self.open_or_make_directory(here, name)?;
        self.make_opaque(&directory, &path)?;
        self.implied.insert(path.clone(), false);
        Attributes::implied_directory().apply(&directory).map_err(failed("set attributes of", &path))
    }

    /// Makes a directory that the tar does not describe; in the end it gets the attributes that it has below. Returns the target when
    /// it is a link there.
    fn imply(&mut self, here: &Parent, name: &[u8]) -> Result<Option<Vec<u8>>, UnpackError> {
        let path = here.child(name);
        let shows = !self.is_hidden(&path);
        if let Some(lower) = self.lower.filter(|_| shows)
            && let Found::Symlink(below, _) = lower.lookup(&path).map_err(failed("look below for", &path))?
        {
            let target = std::fs::read_link(&below).map_err(failed("read", &path))?;
            return Ok(Some(std::os::unix::ffi::OsStringExt::into_vec(target.into_os_string())));
        }
        let directory = self.open_or_make_directory(here, name)?;
        Attributes::implied_directory().apply(&directory).map_err(failed("set attributes of", &path))?;
        self.remember(&path)?;
        self.implied.insert(path, shows);
        Ok(None)
    }
}
