//! Capability sets of a container's first process.

use std::collections::{BTreeSet, HashSet};

use oci_spec::runtime::{Capability, LinuxCapabilities, LinuxCapabilitiesBuilder};
use orlop_cri::v1;

use crate::error::CriError;

/// What an unprivileged container starts with: the set that containerd and Docker give.
pub(crate) const DEFAULT: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// By bit number (capabilities(7), `include/uapi/linux/capability.h`).
pub(crate) const BY_BIT: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The names of the bits set in a `Cap…` line of `/proc/PID/status`.
pub(crate) fn from_mask(mask: u64) -> BTreeSet<String> {
    (0..).zip(BY_BIT).filter(|(bit, _)| mask & (1u64 << bit) != 0).map(|(_, name)| name.to_owned()).collect()
}

/// What a container gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Granted {
    /// Bounding, permitted and effective.
    pub all: BTreeSet<String>,
    /// Ambient and inheritable.
    pub ambient: BTreeSet<String>,
}

/// Adds and drops as the security context says, `ALL` included; nothing that the daemon itself lacks (`available`).
///
/// # Errors
/// [`CriError::Invalid`] names a capability that does not exist.
pub(crate) fn grant(
    context: &v1::LinuxContainerSecurityContext,
    available: &BTreeSet<String>,
) -> Result<Granted, CriError> {
    let wanted = context.capabilities.clone().unwrap_or_default();
    let add = names(&wanted.add_capabilities)?;
    let drop = names(&wanted.drop_capabilities)?;
    let ambient = names(&wanted.add_ambient_capabilities)?;
    let mut all: BTreeSet<String> = if context.privileged || add.contains("ALL") {
        BY_BIT.iter().map(|name| (*name).to_owned()).collect()
    } else if drop.contains("ALL") {
        BTreeSet::new()
    } else {
        DEFAULT.iter().map(|name| (*name).to_owned()).collect()
    };
    if !context.privileged {
        all.extend(add.iter().filter(|name| *name != "ALL").cloned());
        all.extend(ambient.iter().filter(|name| *name != "ALL").cloned());
        all.retain(|name| !drop.contains(name) || add.contains(name));
    }
    all.retain(|name| available.contains(name));
    let ambient = if ambient.contains("ALL") {
        all.clone()
    } else {
        ambient.into_iter().filter(|name| all.contains(name)).collect()
    };
    Ok(Granted { all, ambient })
}

fn names(given: &[String]) -> Result<BTreeSet<String>, CriError> {
    given.iter().map(|name| canonical(name)).collect()
}

fn canonical(name: &str) -> Result<String, CriError> {
    let upper = name.to_ascii_uppercase();
    if upper == "ALL" || upper == "CAP_ALL" {
        return Ok("ALL".to_owned());
    }
    let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
    if BY_BIT.contains(&full.as_str()) {
        Ok(full)
    } else {
        Err(CriError::Invalid(format!("unknown capability {name:?}")))
    }
}

/// As the OCI specification writes them.
pub(crate) fn to_oci(granted: &Granted) -> Result<LinuxCapabilities, CriError> {
    let all = to_set(&granted.all)?;
    let ambient = to_set(&granted.ambient)?;
    LinuxCapabilitiesBuilder::default()
        .bounding(all.clone())
        .effective(all.clone())
        .permitted(all)
        .inheritable(ambient.clone())
        .ambient(ambient)
        .build()
        .map_err(|error| CriError::failed("failed to write capabilities", error))
}

fn to_set(names: &BTreeSet<String>) -> Result<HashSet<Capability>, CriError> {
    names
        .iter()
        .map(|name| {
            serde_json::from_value(serde_json::Value::String(name.clone()))
                .map_err(|error| CriError::failed(format!("failed to write capability {name}"), error))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(add: &[&str], drop: &[&str], privileged: bool) -> v1::LinuxContainerSecurityContext {
        let strings = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        v1::LinuxContainerSecurityContext {
            privileged,
            capabilities: Some(v1::Capability {
                add_capabilities: strings(add),
                drop_capabilities: strings(drop),
                add_ambient_capabilities: Vec::new(),
            }),
            ..Default::default()
        }
    }

    #[test]
    fn adding_and_dropping() {
        let every = from_mask(u64::MAX);
        assert_eq!(every.len(), BY_BIT.len());
        let count = |add: &[&str], drop: &[&str], privileged| {
            grant(&context(add, drop, privileged), &every).unwrap().all.len()
        };
        for (add, drop, privileged, wanted) in [
            (&[][..], &[][..], false, 14),
            (&["NET_ADMIN"], &[], false, 15),
            (&["cap_sys_time"], &["CHOWN", "KILL"], false, 13),
            (&[], &["ALL"], false, 0),
            (&["NET_BIND_SERVICE"], &["ALL"], false, 1),
            (&["ALL"], &[], false, 41),
            (&["ALL"], &["SYS_ADMIN"], false, 40),
            (&[], &["ALL"], true, 41),
        ] {
            assert_eq!(count(add, drop, privileged), wanted, "+{add:?} -{drop:?} privileged {privileged}");
        }
        let error = grant(&context(&["FLY"], &[], false), &every).unwrap_err();
        assert!(error.to_string().contains("FLY"), "{error}");
    }

    #[test]
    fn what_the_daemon_lacks_is_not_promised() {
        let available = from_mask(1 << 12);
        let granted = grant(&context(&["NET_ADMIN", "SYS_RESOURCE"], &[], false), &available).unwrap();
        assert_eq!(granted.all.into_iter().collect::<Vec<_>>(), ["CAP_NET_ADMIN"]);
    }

    #[test]
    fn every_name_is_known_to_the_specification() {
        let granted = Granted { all: from_mask(u64::MAX), ambient: BTreeSet::new() };
        assert_eq!(to_oci(&granted).unwrap().bounding().as_ref().unwrap().len(), BY_BIT.len());
    }
}
