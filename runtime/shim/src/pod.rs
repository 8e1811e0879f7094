//! The pod's namespaces: made once, held by the shim being in them.
//!
//! The user namespace is the exception: the shim holds a descriptor of it and stays the machine's root, or it could not mount the
//! containers' layers. The pod's network, IPC and UTS namespaces belong to it all the same, so that its containers rule over them.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, setns};
use orlop_linux::process::SingleThreaded;
use orlop_linux::user_namespace::{self, IdMaps, IdRange, outside_of};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use crate::protocol::{IdMapping, ShimConfig, UserNamespace};

/// The pod's own user namespace.
#[derive(Debug)]
pub(crate) struct PodUser {
    pub(crate) namespace: OwnedFd,
    /// User and group of its root on the machine.
    pub(crate) root: (u32, u32),
}

impl PodUser {
    fn create(given: &UserNamespace) -> anyhow::Result<Self> {
        let maps = IdMaps { users: ranges(&given.uid_mappings), groups: ranges(&given.gid_mappings) };
        let root = (outside_of(&maps.users, 0), outside_of(&maps.groups, 0));
        let (Some(uid), Some(gid)) = root else {
            bail!("the pod's user namespace maps nobody to its root (user and group 0)")
        };
        let namespace = user_namespace::create(&maps).context("failed to make the pod's user namespace")?;
        Ok(Self { namespace, root: (uid, gid) })
    }
}

/// Moves the shim into new namespaces and sets them up. Returns the pod's user namespace, if it has one of its own.
pub(crate) fn isolate(config: &ShimConfig, single: &SingleThreaded) -> anyhow::Result<Option<PodUser>> {
    let user = config.user_namespace.as_ref().map(PodUser::create).transpose()?;
    let mut flags = CloneFlags::empty();
    flags.set(CloneFlags::CLONE_NEWNET, config.new_network_namespace);
    flags.set(CloneFlags::CLONE_NEWIPC, config.new_ipc_namespace);
    flags.set(CloneFlags::CLONE_NEWUTS, config.hostname.is_some());
    if let Some(user) = &user {
        join_owned(&user.namespace, flags).context("failed to make the pod's namespaces")?;
        flags = CloneFlags::empty();
    }
    nix::sched::unshare(flags | CloneFlags::CLONE_NEWNS).context("failed to make the pod's namespaces")?;
    // Mounts of the host (volumes that the kubelet makes later) arrive here; ours never go there.
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", slave).context("failed to make mounts private to the pod")?;
    if config.new_network_namespace {
        orlop_linux::interface::set_loopback_up().context("failed to set lo up")?;
    }
    if let Some(hostname) = &config.hostname {
        nix::unistd::sethostname(hostname)
            .with_context(|| format!("failed to set the host name {hostname}"))?;
    }
    for (name, value) in &config.sysctls {
        let path = sysctl_path(name, config)?;
        let set = || fs::write(&path, value);
        match &user {
            // The kernel asks who owns an IPC namespace, not what the writer may do.
            Some(user) if !name.starts_with("net") && !name.ends_with("domainname") => {
                user_namespace::as_root(single, &user.namespace, set)
            }
            _ => set(),
        }
        .with_context(|| format!("failed to set sysctl {name}={value}"))?;
    }
    if config.new_ipc_namespace {
        mount_shared_memory(config, user.as_ref())?;
    }
    Ok(user)
}

/// Joins new namespaces that belong to a user namespace.
fn join_owned(user: &OwnedFd, flags: CloneFlags) -> anyhow::Result<()> {
    let kinds = [
        ("net", CloneFlags::CLONE_NEWNET),
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("uts", CloneFlags::CLONE_NEWUTS),
    ];
    let wanted = kinds.iter().filter(|(_, flag)| flags.contains(*flag));
    let (names, kinds): (Vec<&str>, Vec<CloneFlags>) = wanted.copied().unzip();
    let owned = user_namespace::create_owned(user, flags, &names)?;
    for (namespace, kind) in owned.iter().zip(kinds) {
        setns(namespace, kind)?;
    }
    Ok(())
}

fn ranges(mappings: &[IdMapping]) -> Vec<IdRange> {
    let range = |mapping: &IdMapping| IdRange {
        inside: mapping.container_id,
        outside: mapping.host_id,
        count: mapping.length,
    };
    mappings.iter().map(range).collect()
}

fn mount_shared_memory(config: &ShimConfig, user: Option<&PodUser>) -> anyhow::Result<()> {
    let target = config.state_dir.join("shm");
    fs::create_dir_all(&target).context("failed to make the pod's /dev/shm")?;
    let mut options = format!("mode=1777,size={}", config.shm_bytes);
    if let Some(PodUser { root: (uid, gid), .. }) = user {
        options += &format!(",uid={uid},gid={gid}");
    }
    let options = std::ffi::CString::new(options)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("shm", &target, "tmpfs", flags, Some(options.as_c_str()))
        .context("failed to mount the pod's /dev/shm")
}

/// Only settings that live in a namespace of the pod's own; anything else would be the machine's.
fn sysctl_path(name: &str, config: &ShimConfig) -> anyhow::Result<std::path::PathBuf> {
    const OF_IPC: [&str; 5] =
        ["kernel.shm", "kernel.msg", "kernel.sem", "kernel.shm_rmid_forced", "fs.mqueue."];
    let dotted = name.replace('/', ".");
    let own = if dotted.starts_with("net.") {
        config.new_network_namespace
    } else if OF_IPC.iter().any(|prefix| dotted.starts_with(prefix)) {
        config.new_ipc_namespace
    } else if dotted == "kernel.domainname" {
        config.hostname.is_some()
    } else {
        false
    };
    // With dots as separators a slash is part of a name (an interface `eth0.1`), as in sysctl(8).
    let path: String = name
        .chars()
        .map(|c| {
            if c == '.' {
                '/'
            } else if c == '/' {
                '.'
            } else {
                c
            }
        })
        .collect();
    if !own || path.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        bail!("sysctl {name} is not one of the pod's own namespaces");
    }
    Ok(Path::new("/proc/sys").join(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_stay_in_the_pod() {
        let mut config = ShimConfig {
            sandbox_id: String::new(),
            state_dir: "/x".into(),
            new_network_namespace: true,
            new_ipc_namespace: false,
            hostname: None,
            shared_pid_namespace: false,
            sysctls: std::collections::BTreeMap::new(),
            cgroup: String::new(),
            scope: None,
            shm_bytes: 0,
            user_namespace: None,
        };
        let path =
            |name: &str, config: &ShimConfig| sysctl_path(name, config).ok().map(|p| p.display().to_string());
        assert_eq!(path("net.ipv4.ip_forward", &config).unwrap(), "/proc/sys/net/ipv4/ip_forward");
        assert_eq!(
            path("net.ipv4.conf.eth0/1.arp_ignore", &config).unwrap(),
            "/proc/sys/net/ipv4/conf/eth0.1/arp_ignore"
        );
        for name in ["kernel.shmmax", "vm.swappiness", "kernel.panic", "net.//.kernel.panic", "net..x", ""] {
            assert_eq!(path(name, &config), None, "{name}");
        }
        config.new_ipc_namespace = true;
        assert!(path("kernel.shmmax", &config).is_some() && path("fs.mqueue.msg_max", &config).is_some());
        config.new_network_namespace = false;
        assert_eq!(path("net.ipv4.ip_forward", &config), None);
    }
}
