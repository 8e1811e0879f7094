//! Mounts made in the pod's mount namespace for a container's configuration to bind: trees shared with the host, images.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::Context;
use orlop_linux::mount::{attach, clone_tree, set_read_only};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, open_tree, unmount,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::pod::PodUser;
use crate::protocol::{StagedMount, StagedSource};
use crate::rootfs::{map_layer, map_layers, mount_layers, mount_scratch};

/// The mount namespace that the shim was started in. In the pod's own every mount is a slave of the host's, so a tree whose mounts
/// are to reach the host can only be copied from here.
pub(crate) struct HostMounts {
    host: File,
}

impl HostMounts {
    /// To be called before the shim leaves it.
    pub(crate) fn current() -> io::Result<Self> {
        Ok(Self { host: File::open("/proc/self/ns/mnt")? })
    }

    /// Makes the mounts; those already made stay for [`unstage`] when one fails.
    pub(crate) fn stage(&self, mounts: &[StagedMount], user: Option<&PodUser>) -> anyhow::Result<()> {
        for mount in mounts {
            fs::create_dir_all(mount.target.parent().unwrap_or(Path::new("/")))
                .with_context(|| format!("failed to make the parent of {}", mount.target.display()))?;
            match &mount.source {
                StagedSource::Host { path } => self
                    .stage_host(path, &mount.target)
                    .with_context(|| format!("failed to mount {} of the host", path.display()))?,
                StagedSource::Image { lower, sub_path } => {
                    // The word that a kubelet knows this failure by.
                    stage_image(lower, sub_path, &mount.target, user).context("ImageVolumeMountFailed")?;
                }
            }
        }
        Ok(())
    }

    fn stage_host(&self, path: &Path, target: &Path) -> io::Result<()> {
        let tree = self.copy_tree(path)?;
        let found = rustix::fs::fstat(&tree)?;
        match rustix::fs::FileType::from_raw_mode(found.st_mode).is_dir() {
            true => make_directory(target)?,
            false => File::create(target).map(drop)?,
        }
        attach(&tree, target)
    }

    /// Copies the mounts at and below `path` of the host; the copy is a peer of each that is shared (mount_namespaces(7)).
    fn copy_tree(&self, path: &Path) -> io::Result<OwnedFd> {
        let pod = File::open("/proc/self/ns/mnt")?;
        let mount_namespace = Some(LinkNameSpaceType::Mount);
        move_into_link_name_space(self.host.as_fd(), mount_namespace)?;
        let tree = clone_tree(path, true);
        if let Err(error) = move_into_link_name_space(pod.as_fd(), mount_namespace) {
            // Whatever this process did next would happen to the host's mounts.
            crate::say(&format!("failed to return to the pod's mount namespace: {error}"));
            orlop_linux::process::exit_now(1);
        }
        tree
    }
}

fn make_directory(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn stage_image(
    lower: &[PathBuf],
    sub_path: &Path,
    target: &Path,
    user: Option<&PodUser>,
) -> anyhow::Result<()> {
    make_directory(target).with_context(|| format!("failed to make {}", target.display()))?;
    let whole = image_tree(lower, target, user).context("failed to mount the image")?;
    if sub_path.as_os_str().is_empty() {
        return attach(&whole, target).context("failed to mount the image");
    }
    // Only what is attached can be copied in part before Linux 6.15.
    attach(&whole, target).context("failed to mount the image")?;
    let part = sub_tree(target, sub_path);
    unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
        .with_context(|| format!("failed to unmount {}", target.display()))?;
    let part =
        part.with_context(|| format!("failed to ensure image subpath {:?}", sub_path.display().to_string()))?;
    attach(&part, target).context("failed to mount the image")
}

/// The image's layers as one detached read-only tree, its owners mapped through the pod's user namespace.
fn image_tree(lower: &[PathBuf], scratch: &Path, user: Option<&PodUser>) -> io::Result<OwnedFd> {
    match (lower, user) {
        ([layer], _) => {
            let tree = match user {
                Some(user) => map_layer(layer, user)?,
                None => clone_tree(layer, false)?,
            };
            set_read_only(&tree, false)?;
            Ok(tree)
        }
        (_, None) => overlay(lower, scratch),
        (_, Some(user)) => {
            mount_scratch(scratch)?;
            let overlay = map_layers(lower, scratch, user).and_then(|mapped| overlay(&mapped, scratch));
            // The overlay keeps its layers by itself.
            unmount(scratch, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
            overlay
        }
    }
}

fn overlay(lower: &[PathBuf], scratch: &Path) -> io::Result<OwnedFd> {
    match overlay_by_steps(lower) {
        // Before Linux 6.7 there is no `lowerdir+`; before 6.5 it is the whole file system that is refused for it.
        Err(Errno::INVAL) => overlay_at_once(lower, scratch),
        other => Ok(other?),
    }
}

fn overlay_by_steps(lower: &[PathBuf]) -> Result<OwnedFd, Errno> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "overlay")?;
    for layer in lower {
        fsconfig_set_string(&context, "lowerdir+", layer.as_path())?;
    }
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)
}

/// By mount(2), whose options may be longer than a value of fsconfig(2): attached, copied, and detached again.
fn overlay_at_once(lower: &[PathBuf], scratch: &Path) -> io::Result<OwnedFd> {
    mount_layers(lower, scratch)?;
    let tree = clone_tree(scratch, false);
    unmount(scratch, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
    let tree = tree?;
    set_read_only(&tree, false)?;
    Ok(tree)
}

/// A copy of one directory of a mounted image. Links are followed, and refused when they lead out of it, as Go's `os.OpenInRoot` does for
/// containerd.
fn sub_tree(root: &Path, sub_path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let directory = openat2(&root, sub_path, flags, Mode::empty(), resolve).map_err(|errno| match errno {
        Errno::XDEV => io::Error::other("path escapes from parent"),
        Errno::NOTDIR => io::Error::other("only directory subpath is supported"),
        other => other.into(),
    })?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(open_tree(&directory, "", flags | OpenTreeFlags::AT_EMPTY_PATH)?)
}

/// Unmounts what [`HostMounts::stage`] made. Nothing mounted is fine.
pub(crate) fn unstage(mounts: &[StagedMount]) -> io::Result<()> {
    for mount in mounts.iter().rev() {
        // A detached peer would take the host's mounts below it along (mount_namespaces(7), "unmount event").
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        match mount_change(&mount.target, private) {
            Ok(()) => unmount(&mount.target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?,
            Err(Errno::INVAL | Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        let removed = match fs::symlink_metadata(&mount.target) {
            Ok(found) if found.is_dir() => fs::remove_dir(&mount.target),
            Ok(_) => fs::remove_file(&mount.target),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
