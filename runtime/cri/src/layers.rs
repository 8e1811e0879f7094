//! Reads files of an image without mounting it: overlayfs' rules over the layers' directories, links resolved inside.
//!
//! Every step opens one name relative to held directories with O_NOFOLLOW, so no link can lead out.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};

const LINK_LIMIT: usize = 40;

/// A directory merged from the layers that have it, top first.
#[derive(Clone)]
struct Merged(Rc<Vec<OwnedFd>>);

enum Entry {
    Directory(Merged),
    File(OwnedFd),
    Link(PathBuf),
    Missing,
}

/// Reads a regular file of the image; `Ok(None)` when there is none. Larger than `limit` bytes is an error.
pub(crate) fn read_file(layers: &[PathBuf], path: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let mut roots = Vec::with_capacity(layers.len());
    for layer in layers {
        roots.push(rustix::fs::open(
            layer,
            OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
        )?);
    }
    let Some(file) = resolve(Merged(Rc::new(roots)), Path::new(path))? else {
        return Ok(None);
    };
    let mut content = Vec::new();
    std::fs::File::from(file).take(limit + 1).read_to_end(&mut content)?;
    if content.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{path} in the image is larger than {limit} bytes"),
        ));
    }
    Ok(Some(content))
}

fn resolve(root: Merged, path: &Path) -> io::Result<Option<OwnedFd>> {
    let mut stack = vec![root];
    let mut names = components(path);
    let mut links = 0;
    while let Some(name) = names.pop_front() {
        if name == ".." {
            if stack.len() > 1 {
                stack.pop();
            }
            continue;
        }
        let current = stack.last().expect("the root is never popped");
        match lookup(current, &name)? {
            Entry::Missing => return Ok(None),
            Entry::File(file) => return Ok(names.is_empty().then_some(file)),
            Entry::Directory(directory) => stack.push(directory),
            Entry::Link(target) => {
                links += 1;
                if links > LINK_LIMIT {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "too many links"));
                }
                if target.is_absolute() {
                    stack.truncate(1);
                }
                let mut target = components(&target);
                target.append(&mut names);
                names = target;
            }
        }
    }
    Ok(None)
}

fn components(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

fn lookup(parent: &Merged, name: &OsStr) -> io::Result<Entry> {
    let mut found = Vec::new();
    for directory in parent.0.iter() {
        let stat = match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(rustix::io::Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
                let child = rustix::fs::openat(directory, name, flags, Mode::empty())?;
                let opaque = is_opaque(&child);
                found.push(child);
                if opaque {
                    break;
                }
            }
            // Anything else hides what is below; below a directory it is itself hidden.
            _ if !found.is_empty() => break,
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(directory, name, Vec::new())?;
                return Ok(Entry::Link(PathBuf::from(OsStr::from_bytes(target.as_bytes()))));
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                return Ok(Entry::File(rustix::fs::openat(directory, name, flags, Mode::empty())?));
            }
            // Whiteouts (character device 0:0) and special files: nothing to read.
            _ => return Ok(Entry::Missing),
        }
    }
    Ok(if found.is_empty() { Entry::Missing } else { Entry::Directory(Merged(Rc::new(found))) })
}

fn is_opaque(directory: &OwnedFd) -> bool {
    let mut value = [0u8; 4];
    rustix::fs::fgetxattr(directory, "trusted.overlay.opaque", &mut value)
        .is_ok_and(|length| value[..length] == *b"y")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn layers(count: usize) -> (tempfile::TempDir, Vec<PathBuf>) {
        let directory = tempfile::tempdir().unwrap();
        let layers: Vec<PathBuf> = (0..count).map(|index| directory.path().join(index.to_string())).collect();
        for layer in &layers {
            std::fs::create_dir_all(layer.join("etc")).unwrap();
        }
        (directory, layers)
    }

    fn read(layers: &[PathBuf], path: &str) -> Option<String> {
        read_file(layers, path, 100).unwrap().map(|content| String::from_utf8(content).unwrap())
    }

    #[test]
    fn the_top_layer_wins_and_links_stay_inside() {
        let (_directory, layers) = layers(3);
        std::fs::write(layers[2].join("etc/passwd"), "bottom").unwrap();
        std::fs::write(layers[2].join("etc/group"), "group").unwrap();
        std::fs::write(layers[1].join("etc/passwd"), "middle").unwrap();
        symlink("/etc/passwd", layers[0].join("absolute")).unwrap();
        symlink("../../../etc/passwd", layers[0].join("etc/relative")).unwrap();
        symlink("loop", layers[0].join("loop")).unwrap();
        assert_eq!(read(&layers, "etc/passwd").as_deref(), Some("middle"));
        assert_eq!(read(&layers, "/etc/group").as_deref(), Some("group"));
        assert_eq!(read(&layers, "absolute").as_deref(), Some("middle"));
        assert_eq!(read(&layers, "etc/relative").as_deref(), Some("middle"));
        assert_eq!(read(&layers, "etc/shadow"), None);
        assert_eq!(read(&layers, "etc"), None);
        assert!(read_file(&layers, "loop", 10).is_err());
        assert!(read_file(&layers, "etc/passwd", 3).is_err());
    }

    #[test]
    fn a_link_or_file_hides_a_directory_below() {
        let (_directory, layers) = layers(2);
        std::fs::write(layers[1].join("etc/passwd"), "hidden").unwrap();
        std::fs::remove_dir(layers[0].join("etc")).unwrap();
        symlink("other", layers[0].join("etc")).unwrap();
        std::fs::create_dir(layers[0].join("other")).unwrap();
        std::fs::write(layers[0].join("other/passwd"), "seen").unwrap();
        assert_eq!(read(&layers, "etc/passwd").as_deref(), Some("seen"));
    }

    #[test]
    fn opaque_directories_hide_lower_layers() {
        let (_directory, layers) = layers(2);
        std::fs::write(layers[1].join("etc/passwd"), "hidden").unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(layers[0].join("etc"), "trusted.overlay.opaque", b"y", flags).unwrap();
        assert_eq!(read(&layers, "etc/passwd"), None);
    }
}
