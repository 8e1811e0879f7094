//! CDI specifications as written in files (Container Device Interface 0.3.0 to 1.0.0, `SPEC.md` of that project).

use std::collections::BTreeMap;

use oci_spec::runtime::LinuxIntelRdt;
use serde::Deserialize;

/// Versions whose fields are all known here.
const VERSIONS: [&str; 9] = ["0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0"];

/// One file.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Specification {
    cdi_version: String,
    /// `vendor/class`.
    pub kind: String,
    #[serde(default)]
    #[expect(dead_code, reason = "part of the format, without a meaning to runtimes")]
    annotations: BTreeMap<String, String>,
    /// The devices.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// Made once for a container that gets any of the devices.
    #[serde(default)]
    pub container_edits: Edits,
}

/// One device.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Device {
    /// Name within the kind.
    pub name: String,
    #[serde(default)]
    #[expect(dead_code, reason = "part of the format, without a meaning to runtimes")]
    annotations: BTreeMap<String, String>,
    /// What it does to a container.
    #[serde(default)]
    pub container_edits: Edits,
}

/// Changes of a container's configuration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Edits {
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Device nodes.
    pub device_nodes: Vec<DeviceNode>,
    /// Hooks by stage.
    pub hooks: Vec<Hook>,
    /// Mounts.
    pub mounts: Vec<Mount>,
    /// Cache and memory bandwidth of Intel processors.
    pub intel_rdt: Option<LinuxIntelRdt>,
    /// Supplementary groups.
    #[serde(rename = "additionalGids")]
    pub additional_gids: Vec<u32>,
}

/// A device node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct DeviceNode {
    /// In the container.
    pub path: String,
    /// On the host; the same when absent.
    pub host_path: Option<String>,
    /// `b`, `c`, `u` or `p`; as the host's when absent.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Major number; as the host's when absent.
    pub major: Option<i64>,
    /// Minor number.
    pub minor: Option<i64>,
    /// Permission bits.
    pub file_mode: Option<u32>,
    /// What the cgroup allows: `r`, `w`, `m`.
    pub permissions: Option<String>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
}

/// A program to run.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Hook {
    /// OCI's name of the stage.
    pub hook_name: String,
    /// Program.
    pub path: String,
    /// Its arguments, the zeroth included.
    #[serde(default)]
    pub args: Vec<String>,
    /// Its environment.
    #[serde(default)]
    pub env: Vec<String>,
    /// Seconds.
    pub timeout: Option<i64>,
}

/// A mount.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Mount {
    /// Source.
    pub host_path: String,
    /// Destination.
    pub container_path: String,
    /// File system; a bind mount when absent.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Options.
    #[serde(default)]
    pub options: Vec<String>,
}

impl Specification {
    /// Checks what the format cannot say by itself.
    ///
    /// # Errors
    /// What is wrong, for the log.
    pub(crate) fn check(&self) -> Result<(), String> {
        if !VERSIONS.contains(&self.cdi_version.as_str()) {
            return Err(format!("cdiVersion {:?} is not one of {}", self.cdi_version, VERSIONS.join(", ")));
        }
        let (vendor, class) =
            self.kind.split_once('/').ok_or_else(|| format!("kind {:?} is not vendor/class", self.kind))?;
        check_name("vendor", vendor, "_-.", false)?;
        check_name("class", class, "_-.", false)?;
        if self.devices.is_empty() {
            return Err("it has no devices".to_owned());
        }
        for (at, device) in self.devices.iter().enumerate() {
            check_name("device name", &device.name, "_-.:", true)?;
            if self.devices[..at].iter().any(|other| other.name == device.name) {
                return Err(format!("device {:?} is in it twice", device.name));
            }
        }
        Ok(())
    }
}

/// A letter (devices: or a digit) first, a letter or digit last, letters, digits and `others` between.
pub(super) fn check_name(what: &str, name: &str, others: &str, digit_first: bool) -> Result<(), String> {
    let wrong = || format!("{what} {name:?} is not well formed");
    let first = name.chars().next().ok_or_else(wrong)?;
    let last = name.chars().next_back().ok_or_else(wrong)?;
    let good = (first.is_ascii_alphabetic() || (digit_first && first.is_ascii_digit()))
        && last.is_ascii_alphanumeric()
        && name.chars().all(|letter| letter.is_ascii_alphanumeric() || others.contains(letter));
    if good { Ok(()) } else { Err(wrong()) }
}
