//! What libcontainer 0.7 does not do with mounts: owners mapped by a user namespace, tmpfs with the content of what it covers, propagation
//! types, and anything by a path that the container's root user may not walk.
//!
//! Such mounts are made before, in a mount namespace of this process's own ([`stage`]), and libcontainer is given a bind of each. What has to
//! happen at the place itself, the propagation types, is done from inside of the container ([`Later`]).

mod copy_up;
pub(crate) mod options;
mod stage;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use oci_spec::runtime::{Mount, Spec};
use orlop_linux::mount::{Attributes, attach, clone_tree, set_attributes_of, set_id_map, set_read_only};
use orlop_linux::user_namespace::{self, IdMaps};
use rustix::fs::{Mode, OFlags};

use super::user_namespace::{UserNamespace, ranges};
use options::{Options, Propagation};
use stage::Stage;

/// Work for the container's first process, once its root is its own.
#[derive(Clone, Debug, Default)]
pub(super) struct Later {
    propagation: Vec<(PathBuf, Vec<Propagation>)>,
    /// libcontainer leaves the v1 hierarchies below a read-only mount of control groups writable.
    read_only: Vec<PathBuf>,
}

impl Later {
    /// Changes propagation types, and what is read-only. In the container: paths are its own.
    pub(super) fn apply(&self) -> anyhow::Result<()> {
        let open = |destination: &Path| {
            rustix::fs::open(destination, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                .with_context(|| format!("failed to open {}", destination.display()))
        };
        for destination in &self.read_only {
            set_read_only(open(destination)?, true)
                .with_context(|| format!("failed to make {} read-only", destination.display()))?;
        }
        for (destination, kinds) in &self.propagation {
            let place = open(destination)?;
            for kind in kinds {
                set_attributes_of(&place, kind.recursive, Attributes::of_propagation(kind.kind))
                    .with_context(|| format!("failed to set the propagation of {}", destination.display()))?;
            }
        }
        Ok(())
    }
}

/// What came of a configuration's mounts.
pub(super) struct Prepared {
    pub(super) later: Later,
    /// The root file system's place in this process's mount namespace.
    pub(super) rootfs: PathBuf,
    /// This process left its starter's mount namespace.
    pub(super) moved: bool,
}

/// Makes what libcontainer would not, and puts binds of it into `derived`. `rootfs` is the real one.
pub(super) fn prepare(
    derived: &mut Spec,
    rootfs: &Path,
    user: Option<&UserNamespace>,
) -> anyhow::Result<Prepared> {
    let mut mounts = derived.mounts().clone().unwrap_or_default();
    let all: Vec<Options> = mounts.iter().map(Options::of).collect();
    for (mount, options) in mounts.iter_mut().zip(&all) {
        check(mount, options)?;
        mount.set_uid_mappings(None).set_gid_mappings(None);
        mount.set_options(Some(options.kept.clone()));
    }
    let given = derived.mounts().clone().unwrap_or_default();
    let with_user = user.is_some();
    let needs_stage = with_user || all.iter().any(|options| options.idmap.is_some() || options.copy_up);
    let mut place = rootfs.to_path_buf();
    if needs_stage {
        let propagation = derived.linux().as_ref().and_then(|linux| linux.rootfs_propagation().clone());
        let mut stage = Stage::default();
        // Trees are copied while every path still means what the caller meant.
        for (at, options) in all.iter().enumerate() {
            if options.bind && (with_user || options.idmap.is_some()) {
                let tree = bind(&given[at], options, user).with_context(|| {
                    format!("failed to prepare the mount at {}", given[at].destination().display())
                })?;
                mounts[at].set_source(Some(stage.add(tree)?)).set_options(Some(options.plain_bind()));
            } else if options.copy_up {
                let tree = copy_up::tmpfs(&given[at], options, rootfs, user).with_context(|| {
                    format!("failed to prepare the tmpfs at {}", given[at].destination().display())
                })?;
                mounts[at].set_typ(Some("bind".to_owned())).set_options(Some(vec!["rbind".to_owned()]));
                mounts[at].set_source(Some(stage.add(tree)?));
            }
        }
        if with_user {
            let tree = clone_tree(rootfs, true).context("failed to copy the root file system's mount")?;
            place = stage.add(tree)?;
        }
        stage.set_up(propagation.as_deref()).context("failed to prepare the mounts")?;
    }
    derived.set_mounts(Some(mounts));
    let propagation = given.iter().zip(all).filter(|(_, options)| !options.propagation.is_empty());
    let propagation = propagation
        .map(|(mount, options)| (Path::new("/").join(mount.destination()), options.propagation))
        .collect();
    let is_read_only = |mount: &&Mount| {
        let options = mount.options().as_deref().unwrap_or_default();
        mount.typ().as_deref() == Some("cgroup") && options.iter().any(|option| option == "ro")
    };
    let read_only = given.iter().filter(is_read_only).map(|mount| mount.destination().clone()).collect();
    Ok(Prepared { later: Later { propagation, read_only }, rootfs: place, moved: needs_stage })
}

fn check(mount: &Mount, options: &Options) -> anyhow::Result<()> {
    let place = mount.destination().display();
    if options.remount {
        bail!(
            "mount at {place}: option remount is not supported; name the wanted options on the mount itself"
        );
    }
    if options.idmap.is_some() && !options.bind {
        bail!("mount at {place}: only bind mounts can be idmapped");
    }
    if options.copy_up && mount.typ().as_deref() != Some("tmpfs") {
        bail!("mount at {place}: tmpcopyup is only allowed for tmpfs");
    }
    Ok(())
}

/// A detached copy of a bind's source with everything that was asked of it.
fn bind(mount: &Mount, options: &Options, user: Option<&UserNamespace>) -> anyhow::Result<OwnedFd> {
    let source = mount.source().as_deref().context("the mount has no source")?;
    let tree = clone_tree(source, options.recursive)
        .with_context(|| format!("failed to copy the mount of {}", source.display()))?;
    if let Some(recursive) = options.idmap {
        map_owners(&tree, mount, recursive, user)?;
    }
    for (attributes, recursive) in [(options.own, false), (options.all, true)] {
        if !attributes.is_empty() {
            set_attributes_of(&tree, recursive, Attributes::new(attributes.set, attributes.clear))
                .context("failed to set the mount's attributes")?;
        }
    }
    Ok(tree)
}

fn map_owners(
    tree: &OwnedFd,
    mount: &Mount,
    recursive: bool,
    user: Option<&UserNamespace>,
) -> anyhow::Result<()> {
    let list = |given: &Option<Vec<_>>| ranges(given.as_deref().unwrap_or_default());
    let maps = IdMaps { users: list(mount.uid_mappings()), groups: list(mount.gid_mappings()) };
    let own: OwnedFd;
    let namespace = match (maps.users.is_empty(), maps.groups.is_empty(), user) {
        (false, false, _) => {
            own = user_namespace::create(&maps).context("failed to make the mapping")?;
            own.as_fd()
        }
        (true, true, Some(user)) => user.as_fd(),
        (true, true, None) => {
            bail!("idmap without uidMappings and gidMappings needs a container with a user namespace")
        }
        _ => bail!("uidMappings and gidMappings must be given together"),
    };
    let mapped = set_id_map(tree, namespace, recursive);
    mapped.map_err(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => anyhow::anyhow!("its file system does not support idmapped mounts"),
        _ => anyhow::Error::new(error).context("failed to map the owners of its files"),
    })
}

/// A place for a tree: a directory, or a file for a file.
fn make_place(path: &Path, tree: &OwnedFd) -> std::io::Result<()> {
    let found = rustix::fs::fstat(tree)?;
    match rustix::fs::FileType::from_raw_mode(found.st_mode).is_dir() {
        true => std::fs::create_dir(path),
        false => File::create_new(path).map(drop),
    }?;
    attach(tree, path)
}
