//! The pod's namespaces: made once, held by the shim being in them.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use nix::sched::CloneFlags;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use crate::protocol::ShimConfig;

/// Moves the shim into new namespaces and sets them up.
pub(crate) fn isolate(config: &ShimConfig) -> anyhow::Result<()> {
    let mut flags = CloneFlags::CLONE_NEWNS;
    flags.set(CloneFlags::CLONE_NEWNET, config.new_network_namespace);
    flags.set(CloneFlags::CLONE_NEWIPC, config.new_ipc_namespace);
    flags.set(CloneFlags::CLONE_NEWUTS, config.hostname.is_some());
    nix::sched::unshare(flags).context("failed to make the pod's namespaces")?;
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
        fs::write(&path, value).with_context(|| format!("failed to set sysctl {name}={value}"))?;
    }
    if config.new_ipc_namespace {
        mount_shared_memory(config)?;
    }
    Ok(())
}

fn mount_shared_memory(config: &ShimConfig) -> anyhow::Result<()> {
    let target = config.state_dir.join("shm");
    fs::create_dir_all(&target).context("failed to make the pod's /dev/shm")?;
    let options = std::ffi::CString::new(format!("mode=1777,size={}", config.shm_bytes))?;
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
            shm_bytes: 0,
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
