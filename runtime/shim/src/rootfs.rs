//! A container's root: an overlay, mounted in the shim's own mount namespace.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use orlop_linux::mount::{attach, clone_tree, set_id_map};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, mount, move_mount, unmount,
};

use crate::pod::PodUser;
use crate::protocol::RootfsMount;

/// mount(2) takes one page of options.
const OPTIONS_LIMIT_BYTES: usize = 4096;

/// Mounts the overlay at `target`, which is made if missing. With a user namespace, the layers' files belong to whom it maps their owners
/// to, so that every pod shares one copy of them; the writable part is the pod's alone and keeps the machine's ids.
pub(crate) fn mount_overlay(rootfs: &RootfsMount, target: &Path, user: Option<&PodUser>) -> io::Result<()> {
    let Some(user) = user else { return mount_plain(rootfs, target) };
    std::fs::create_dir_all(target)?;
    mount_scratch(target)?;
    let overlay = give_root(&rootfs.upper, user).and_then(|()| mapped_overlay(rootfs, target, user));
    // An overlay keeps its layers by itself (kernel: overlayfs.rst), so the places that they needed go with this.
    unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
    attach(overlay?, target)
}

/// A place for mounts that are needed until an overlay stands.
pub(crate) fn mount_scratch(target: &Path) -> io::Result<()> {
    let quiet = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount("layers", target, "tmpfs", quiet, Some(c"mode=0700,size=1m"))?)
}

/// The overlay's own root is its writable directory's.
fn give_root(upper: &Path, user: &PodUser) -> io::Result<()> {
    let found = std::fs::metadata(upper)?;
    if (found.uid(), found.gid()) == (0, 0) {
        std::os::unix::fs::chown(upper, Some(user.root.0), Some(user.root.1))?;
    }
    Ok(())
}

/// The overlay, detached, of idmapped copies of its layers that are mounted in the directory `scratch`.
fn mapped_overlay(rootfs: &RootfsMount, scratch: &Path, user: &PodUser) -> io::Result<OwnedFd> {
    let lower = map_layers(&rootfs.lower, scratch, user)?;
    // Not the writable part: overlayfs works there as the machine's root, whom the map does not know.
    let mapped = RootfsMount { lower, ..rootfs.clone() };
    let merged = scratch.join("merged");
    mount_plain(&mapped, &merged)?;
    clone_tree(&merged, false)
}

/// Idmapped copies of layers, mounted in the directory `scratch` by their number.
pub(crate) fn map_layers(layers: &[PathBuf], scratch: &Path, user: &PodUser) -> io::Result<Vec<PathBuf>> {
    let map = |(at, layer): (usize, &PathBuf)| -> io::Result<PathBuf> {
        let place = scratch.join(at.to_string());
        std::fs::create_dir(&place)?;
        attach(map_layer(layer, user)?, &place)?;
        Ok(place)
    };
    layers.iter().enumerate().map(map).collect()
}

/// A detached idmapped copy of a layer.
pub(crate) fn map_layer(layer: &Path, user: &PodUser) -> io::Result<OwnedFd> {
    let tree = clone_tree(layer, false)?;
    set_id_map(&tree, &user.namespace, false).map_err(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => io::Error::other(format!(
            "the file system of {} does not support idmapped mounts, which pods with a user namespace need",
            layer.display()
        )),
        _ => error,
    })?;
    Ok(tree)
}

fn mount_plain(rootfs: &RootfsMount, target: &Path) -> io::Result<()> {
    if rootfs.lower.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a root file system needs a layer"));
    }
    std::fs::create_dir_all(target)?;
    match mount_by_steps(rootfs, target) {
        // Before Linux 6.7 there is no `lowerdir+`, and a value of fsconfig(2) is at most 255 bytes.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NAMETOOLONG | Errno::TOOBIG) => {
            mount_at_once(rootfs, target)
        }
        other => other.map_err(io::Error::from),
    }
}

/// One layer per call: no limit on the number of layers but the kernel's own (500).
fn mount_by_steps(rootfs: &RootfsMount, target: &Path) -> Result<(), Errno> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let context = context.as_fd();
    fsconfig_set_string(context, "source", "overlay")?;
    for lower in &rootfs.lower {
        fsconfig_set_string(context, "lowerdir+", lower.as_path())?;
    }
    fsconfig_set_string(context, "upperdir", rootfs.upper.as_path())?;
    fsconfig_set_string(context, "workdir", rootfs.work.as_path())?;
    fsconfig_create(context)?;
    let overlay = fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    move_mount(&overlay, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// All in one string; with relative names if it would be too long otherwise.
fn mount_at_once(rootfs: &RootfsMount, target: &Path) -> io::Result<()> {
    let full = options(&rootfs.lower, rootfs);
    if full.len() < OPTIONS_LIMIT_BYTES {
        return mount_with(&full, target);
    }
    let parent = common_parent(&rootfs.lower);
    let relative: Vec<PathBuf> =
        rootfs.lower.iter().map(|lower| lower.strip_prefix(&parent).unwrap_or(lower).to_path_buf()).collect();
    let short = options(&relative, rootfs);
    if short.len() >= OPTIONS_LIMIT_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} layers do not fit into mount options", relative.len()),
        ));
    }
    // The shim has one thread and everything else in it uses absolute paths.
    std::env::set_current_dir(&parent)?;
    let mounted = mount_with(&short, target);
    std::env::set_current_dir("/")?;
    mounted
}

fn mount_with(options: &[u8], target: &Path) -> io::Result<()> {
    let options = std::ffi::CString::new(options).map_err(io::Error::other)?;
    mount("overlay", target, "overlay", MountFlags::empty(), Some(options.as_c_str()))
        .map_err(io::Error::from)
}

/// Layers alone, without a writable one; for kernels without `lowerdir+`.
pub(crate) fn mount_layers(lower: &[PathBuf], target: &Path) -> io::Result<()> {
    let text = lower_option(lower);
    if text.len() >= OPTIONS_LIMIT_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} layers do not fit into mount options", lower.len()),
        ));
    }
    mount_with(&text, target)
}

fn lower_option(lower: &[PathBuf]) -> Vec<u8> {
    let mut text = b"lowerdir=".to_vec();
    for (at, layer) in lower.iter().enumerate() {
        if at > 0 {
            text.push(b':');
        }
        escape(layer, &mut text);
    }
    text
}

fn options(lower: &[PathBuf], rootfs: &RootfsMount) -> Vec<u8> {
    let mut text = lower_option(lower);
    text.extend_from_slice(b",upperdir=");
    escape(&rootfs.upper, &mut text);
    text.extend_from_slice(b",workdir=");
    escape(&rootfs.work, &mut text);
    text
}

/// Colons separate layers and commas options; a backslash takes the meaning away (kernel: overlayfs.rst).
fn escape(path: &Path, out: &mut Vec<u8>) {
    for byte in path.as_os_str().as_bytes() {
        if matches!(byte, b':' | b',' | b'\\') {
            out.push(b'\\');
        }
        out.push(*byte);
    }
}

fn common_parent(paths: &[PathBuf]) -> PathBuf {
    let mut parent = paths.first().and_then(|path| path.parent()).unwrap_or(Path::new("/")).to_path_buf();
    while !paths.iter().all(|path| path.starts_with(&parent)) && parent.pop() {}
    parent
}

/// Unmounts, even while in use. Nothing mounted is fine.
pub(crate) fn unmount_overlay(target: &Path) -> io::Result<()> {
    match unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    match std::fs::remove_dir(target) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_escaped_and_shortened() {
        let rootfs = RootfsMount {
            lower: vec!["/a/x:1".into(), "/a/y".into()],
            upper: "/u,".into(),
            work: "/w".into(),
        };
        assert_eq!(options(&rootfs.lower, &rootfs), b"lowerdir=/a/x\\:1:/a/y,upperdir=/u\\,,workdir=/w");
        assert_eq!(common_parent(&rootfs.lower), Path::new("/a"));
        assert_eq!(common_parent(&["/a/b/c".into(), "/d".into()]), Path::new("/"));
    }
}
