//! The user namespace of a container: made from `linux.uidMappings`, or opened by its path.
//!
//! It is always handed to libcontainer as one that exists already, so that mounts can be mapped through it before there is a container.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Spec};
use orlop_linux::user_namespace::{self, IdMaps, IdRange, outside_of};

use super::rules;

/// One that a container shall run in.
#[derive(Debug)]
pub(super) struct UserNamespace {
    descriptor: OwnedFd,
    maps: IdMaps,
}

impl UserNamespace {
    /// As the configuration wants it; nothing when the container stays in ours.
    pub(super) fn of(spec: &Spec, pod: &BTreeMap<String, PathBuf>) -> anyhow::Result<Option<Self>> {
        let Some(linux) = spec.linux() else { return Ok(None) };
        let mut all = linux.namespaces().iter().flatten();
        let Some(namespace) = all.find(|namespace| namespace.typ() == LinuxNamespaceType::User) else {
            return Ok(None);
        };
        let users = ranges(linux.uid_mappings().as_deref().unwrap_or_default());
        let groups = ranges(linux.gid_mappings().as_deref().unwrap_or_default());
        let given = IdMaps { users, groups };
        let Some(path) = namespace.path().as_deref().filter(|path| !path.as_os_str().is_empty()) else {
            return Self::create(given).map(Some);
        };
        let path = match path == Path::new(rules::POD) {
            true => pod.get("user").ok_or_else(|| rules::DeriveError::NoPodNamespace("user".to_owned()))?,
            false => path,
        };
        let descriptor: OwnedFd = File::open(path)
            .with_context(|| format!("failed to open the user namespace {}", path.display()))?
            .into();
        if is_own(&descriptor)? {
            // Joining one's own is an error (setns(2)), and it would change nothing.
            return Ok(None);
        }
        let maps = user_namespace::maps(&descriptor)
            .with_context(|| format!("failed to read the maps of the user namespace {}", path.display()))?;
        if !(given.users.is_empty() && given.groups.is_empty()) && given != maps {
            bail!(
                "linux.uidMappings and gidMappings differ from those of the user namespace {}",
                path.display()
            );
        }
        Ok(Some(Self { descriptor, maps }))
    }

    fn create(maps: IdMaps) -> anyhow::Result<Self> {
        if maps.users.is_empty() || maps.groups.is_empty() {
            bail!("a new user namespace needs linux.uidMappings and linux.gidMappings");
        }
        let descriptor = user_namespace::create(&maps).context("failed to make the user namespace")?;
        Ok(Self { descriptor, maps })
    }

    /// That of a running process.
    pub(super) fn of_process(pid: u32) -> std::io::Result<Self> {
        let descriptor = File::open(format!("/proc/{pid}/ns/user"))?.into();
        Ok(Self { descriptor, maps: user_namespace::maps_of_process(pid)? })
    }

    /// Where a process of ours finds it.
    pub(super) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.descriptor.as_raw_fd()).into()
    }

    /// What a user and a group of the container are called on the machine.
    pub(super) fn outside(&self, uid: u32, gid: u32) -> anyhow::Result<(u32, u32)> {
        let uid = outside_of(&self.maps.users, uid)
            .with_context(|| format!("user {uid} is not mapped in the container's user namespace"))?;
        let gid = outside_of(&self.maps.groups, gid)
            .with_context(|| format!("group {gid} is not mapped in the container's user namespace"))?;
        Ok((uid, gid))
    }

    /// Streams made outside belong to a user that the container does not know, and could not be opened anew as `/dev/stdout`.
    pub(super) fn own_streams<'f>(
        &self,
        streams: impl IntoIterator<Item = BorrowedFd<'f>>,
        uid: u32,
        gid: u32,
    ) -> anyhow::Result<()> {
        let (uid, gid) = self.outside(uid, gid)?;
        for stream in streams {
            let Ok(found) = rustix::fs::fstat(stream) else { continue };
            let is_pipe = rustix::fs::FileType::from_raw_mode(found.st_mode).is_fifo();
            if is_pipe && found.st_uid != uid {
                let owner = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
                // What cannot be given away stays as it is.
                let _ = rustix::fs::fchown(stream, Some(owner.0), Some(owner.1));
            }
        }
        Ok(())
    }
}

/// Opens every namespace that the container joins: inside of its user namespace, where libcontainer opens them, `/proc` of other
/// processes is closed. The descriptors must outlive the making.
pub(super) fn hold_others(derived: &mut Spec) -> anyhow::Result<Vec<OwnedFd>> {
    let mut held = Vec::new();
    let Some(linux) = derived.linux_mut() else { return Ok(held) };
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    for namespace in &mut namespaces {
        let Some(path) = namespace.path().clone() else { continue };
        let name = rules::namespace_name(namespace.typ());
        let file = File::open(&path)
            .with_context(|| format!("failed to open the {name} namespace {}", path.display()))?;
        namespace.set_path(Some(format!("/proc/self/fd/{}", file.as_raw_fd()).into()));
        held.push(OwnedFd::from(file));
    }
    linux.set_namespaces(Some(namespaces));
    Ok(held)
}

impl AsFd for UserNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

fn is_own(namespace: &OwnedFd) -> anyhow::Result<bool> {
    let (own, other) = (std::fs::metadata("/proc/self/ns/user")?, rustix::fs::fstat(namespace)?);
    use std::os::unix::fs::MetadataExt;
    Ok((own.dev(), own.ino()) == (other.st_dev, other.st_ino))
}

/// The kernel's order: inside, outside, count.
pub(super) fn ranges(mappings: &[LinuxIdMapping]) -> Vec<IdRange> {
    let range = |mapping: &LinuxIdMapping| IdRange {
        inside: mapping.container_id(),
        outside: mapping.host_id(),
        count: mapping.size(),
    };
    mappings.iter().map(range).collect()
}
