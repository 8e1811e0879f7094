//! Where prepared mounts wait for libcontainer: a mount namespace of this process's own with one tmpfs in it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::sched::CloneFlags;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use super::make_place;

/// The kernel makes this directory for somebody to mount on, so it is empty, and everybody may walk there: every user that a container's
/// root is on the machine. Nobody sees what we mount but we and the container, until its root changes.
const PLACE: &str = "/proc/fs/nfsd";

/// Detached trees and where they will be.
#[derive(Default)]
pub(super) struct Stage {
    trees: Vec<OwnedFd>,
}

impl Stage {
    /// Returns the path that the tree has after [`Stage::set_up`].
    pub(super) fn add(&mut self, tree: OwnedFd) -> anyhow::Result<PathBuf> {
        self.trees.push(tree);
        Ok(Path::new(PLACE).join(self.trees.len().to_string()))
    }

    /// Leaves the starter's mount namespace and attaches every tree. Single-threaded processes only.
    ///
    /// `propagation` is the root's wanted one: with `shared` the rest of the new namespace stays a peer of the machine's, as it would
    /// without a stage.
    pub(super) fn set_up(self, propagation: Option<&str>) -> anyhow::Result<()> {
        nix::sched::unshare(CloneFlags::CLONE_NEWNS).context("failed to make a mount namespace")?;
        if propagation != Some("shared") {
            let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
            mount_change("/", slave).context("failed to keep mounts to ourselves")?;
        }
        mount_change("/proc", MountPropagationFlags::PRIVATE).context("failed to make /proc private")?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("stage", PLACE, "tmpfs", flags, Some(c"mode=0755,size=1m"))
            .with_context(|| format!("failed to mount on {PLACE}"))?;
        for (at, tree) in self.trees.iter().enumerate() {
            let path = Path::new(PLACE).join((at + 1).to_string());
            make_place(&path, tree).with_context(|| format!("failed to attach {}", path.display()))?;
        }
        Ok(())
    }
}
