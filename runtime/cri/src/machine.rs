//! What is read from the machine for a container's plan: own capabilities, devices, seccomp profiles.

use std::collections::BTreeSet;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxSeccomp;
use orlop_cri::v1;

use crate::error::CriError;
use crate::spec::capabilities;
use crate::spec::mounts;
use crate::spec::plan;
use crate::spec::resources::HostDevice;

const PROFILE_LIMIT_BYTES: u64 = 1024 * 1024;
/// Device directories are walked this deep, and this many devices at most are handed to one container.
const DEVICE_DEPTH_LIMIT: usize = 8;
const DEVICE_LIMIT: usize = 4096;
/// Of the host's `/dev`, what a privileged container gets from its own mounts instead.
const OWN_DEV_ENTRIES: [&str; 8] = ["pts", "shm", "fd", "mqueue", "console", ".lxc", ".lxd-mounts", ".udev"];

/// Capabilities this process holds effectively.
pub(crate) fn own_capabilities() -> std::io::Result<BTreeSet<String>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|text| u64::from_str_radix(text.trim(), 16).ok())
        .ok_or_else(|| {
            std::io::Error::new(std::io::ErrorKind::InvalidData, "/proc/self/status has no CapEff")
        })?;
    Ok(capabilities::from_mask(mask))
}

/// Whether the kernel makes user namespaces here.
pub(crate) fn has_user_namespaces() -> bool {
    let limit = std::fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    limit.trim().parse::<u64>().is_ok_and(|limit| limit > 0)
}

/// Looks up the kubelet's devices, or all of the host's for a privileged container.
pub(crate) fn resolve_devices(wanted: &[v1::Device], privileged: bool) -> Result<Vec<HostDevice>, CriError> {
    let mut devices = Vec::new();
    if privileged {
        collect(Path::new("/dev"), Path::new("/dev"), "rwm", 0, &mut devices);
        return Ok(devices);
    }
    for device in wanted {
        let host = Path::new(&device.host_path);
        let inside = Path::new(if device.container_path.is_empty() {
            &device.host_path
        } else {
            &device.container_path
        });
        let access = if device.permissions.is_empty() { "rwm" } else { &device.permissions };
        if !access.chars().all(|kind| "rwm".contains(kind)) {
            return Err(CriError::Invalid(format!(
                "device {}: unknown permissions {access:?}",
                device.host_path
            )));
        }
        let failed =
            |error| CriError::failed(format!("failed to look up device {}", device.host_path), error);
        let host = std::fs::canonicalize(host).map_err(failed)?;
        let before = devices.len();
        if host.is_dir() {
            collect(&host, inside, access, 0, &mut devices);
        } else if let Some(found) = look_up_device(&host, inside, access) {
            devices.push(found);
        }
        if devices.len() == before {
            return Err(CriError::Invalid(format!("{} is not a device", device.host_path)));
        }
    }
    Ok(devices)
}

fn collect(directory: &Path, inside: &Path, access: &str, depth: usize, devices: &mut Vec<HostDevice>) {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let own = depth == 0
            && directory == Path::new("/dev")
            && OWN_DEV_ENTRIES.iter().any(|known| name == *known);
        if own || devices.len() >= DEVICE_LIMIT {
            continue;
        }
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && depth < DEVICE_DEPTH_LIMIT => {
                collect(&entry.path(), &inside.join(name), access, depth + 1, devices);
            }
            Ok(kind) if kind.is_char_device() || kind.is_block_device() => {
                devices.extend(look_up_device(&entry.path(), &inside.join(name), access));
            }
            _ => {}
        }
    }
}

/// The device node at `host`, as it is to appear at `inside`; none when it is no device.
pub(crate) fn look_up_device(host: &Path, inside: &Path, access: &str) -> Option<HostDevice> {
    let metadata = std::fs::symlink_metadata(host).ok()?;
    let kind = metadata.file_type();
    if !kind.is_char_device() && !kind.is_block_device() {
        return None;
    }
    Some(HostDevice {
        path: mounts::clean(inside).to_string_lossy().into_owned(),
        block: kind.is_block_device(),
        major: i64::from(rustix::fs::major(metadata.rdev())),
        minor: i64::from(rustix::fs::minor(metadata.rdev())),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        access: access.to_owned(),
    })
}

/// Reads a `Localhost` profile: absolute (as a kubelet sends it) or below `root`.
pub(crate) fn localhost_seccomp(
    context: &v1::LinuxContainerSecurityContext,
    root: &Path,
) -> Result<Option<LinuxSeccomp>, CriError> {
    let Some(profile) = plan::seccomp_profile(context)?.filter(|_| !context.privileged) else {
        return Ok(None);
    };
    if profile.profile_type() != v1::security_profile::ProfileType::Localhost {
        return Ok(None);
    }
    let reference = profile.localhost_ref.strip_prefix("localhost/").unwrap_or(&profile.localhost_ref);
    let path = if reference.starts_with('/') {
        PathBuf::from(reference)
    } else {
        root.join(mounts::clean(Path::new(reference)).strip_prefix("/").unwrap_or(Path::new("")))
    };
    let failed = |cause: String| CriError::Failed {
        act: format!("failed to load seccomp profile {}", path.display()),
        cause: cause.into(),
    };
    let size = std::fs::metadata(&path).map_err(|error| failed(error.to_string()))?.len();
    if size > PROFILE_LIMIT_BYTES {
        return Err(failed(format!("{size} bytes are too many")));
    }
    let text = std::fs::read(&path).map_err(|error| failed(error.to_string()))?;
    serde_json::from_slice(&text).map(Some).map_err(|error| failed(error.to_string()))
}

/// Nanoseconds since the epoch.
pub(crate) fn now() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

/// A random id of this many hexadecimal digits.
pub(crate) fn random_id(digits: usize) -> String {
    let mut id = String::with_capacity(digits + 16);
    while id.len() < digits {
        id.push_str(&format!("{:016x}", rand::random::<u64>()));
    }
    id.truncate(digits);
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_capabilities_and_devices_are_read() {
        assert!(own_capabilities().unwrap().contains("CAP_SYS_ADMIN"));
        let null = v1::Device {
            container_path: "/dev/x".into(),
            host_path: "/dev/null".into(),
            permissions: "r".into(),
        };
        let found = resolve_devices(std::slice::from_ref(&null), false).unwrap();
        assert_eq!((found[0].path.as_str(), found[0].major, found[0].minor), ("/dev/x", 1, 3));
        let file = v1::Device { host_path: "/etc/passwd".into(), ..null };
        assert!(resolve_devices(&[file], false).is_err());
        assert!(resolve_devices(&[], true).unwrap().iter().any(|device| device.path == "/dev/null"));
    }

    #[test]
    fn ids_have_their_length() {
        for digits in [32, 64] {
            assert_eq!(random_id(digits).len(), digits);
        }
    }
}
