//! Fits a layer onto those below it.

use std::path::Path;

use rustix::fs::{AtFlags, Timespec, Timestamps};

use super::lower::{Found, LowerView};
use super::metadata::Attributes;
use super::path::{ancestors, split};
use super::tree::{Loose, Tree, failed};
use super::{Limits, UnpackError};

/// For a layer that was unpacked alone.
pub(super) fn adopt_lower(
    loose: &Loose,
    destination: &Path,
    lower: &LowerView,
    limits: Limits,
) -> Result<(), UnpackError> {
    Tree::open(destination, None, limits)?.fit(loose, lower, true)
}

impl Tree<'_> {
    /// Gives implied directories the attributes they have below, and takes away whiteouts of what is not there: overlayfs lists them
    /// in a directory that no other layer takes part in. With `alone`, what cannot be fitted is [`UnpackError::NeedsLower`].
    pub(super) fn fit(&self, loose: &Loose, lower: &LowerView, alone: bool) -> Result<(), UnpackError> {
        if alone {
            for path in &loose.assumed {
                if matches!(through_links(lower, path)?, Found::Symlink(..) | Found::Other(..)) {
                    return Err(UnpackError::NeedsLower);
                }
            }
        }
        for path in &loose.implied {
            let look = failed("look below for", path);
            let found = if alone { through_links(lower, path)? } else { lower.lookup(path).map_err(look)? };
            match found {
                Found::Symlink(..) | Found::Other(..) if alone => return Err(UnpackError::NeedsLower),
                Found::Symlink(..) | Found::Other(..) | Found::Missing => {}
                Found::Directory(below, metadata) => {
                    let attributes = Attributes::of_path(&below, &metadata).map_err(failed("read", path))?;
                    let Some(directory) = self.open_plain(path) else { continue };
                    attributes.apply(&directory).map_err(failed("set attributes of", path))?;
                    rustix::fs::futimens(&directory, &attributes.times())
                        .map_err(|error| failed("set times of", path)(error.into()))?;
                }
            }
        }
        for path in &loose.whiteouts {
            if matches!(lower.lookup(path).map_err(failed("look below for", path))?, Found::Missing) {
                self.take_whiteout_away(path)?;
            }
        }
        Ok(())
    }

    fn take_whiteout_away(&self, path: &[u8]) -> Result<(), UnpackError> {
        let Some((above, name)) = split(path) else { return Ok(()) };
        let Some(directory) = self.open_plain(above) else { return Ok(()) };
        let work = || -> Result<(), rustix::io::Errno> {
            let before = rustix::fs::fstat(&directory)?;
            rustix::fs::unlinkat(&directory, name, AtFlags::empty())?;
            let time = |tv_sec: i64, nanoseconds: u64| Timespec {
                tv_sec,
                tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
            };
            let times = Timestamps {
                last_access: time(before.st_atime, before.st_atime_nsec),
                last_modification: time(before.st_mtime, before.st_mtime_nsec),
            };
            rustix::fs::futimens(&directory, &times)
        };
        work().map_err(|error| failed("remove whiteout", path)(error.into()))
    }
}

/// A link anywhere on the way makes the whole layer mean something else.
fn through_links(lower: &LowerView, path: &[u8]) -> Result<Found, UnpackError> {
    for above in ancestors(path).skip(1) {
        match lower.lookup(above).map_err(failed("look below for", path))? {
            found @ (Found::Symlink(..) | Found::Missing) => return Ok(found),
            Found::Directory(..) | Found::Other(..) => {}
        }
    }
    lower.lookup(path).map_err(failed("look below for", path))
}
