//! CRI resource limits → OCI resources.

use std::collections::HashMap;

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxHugepageLimitBuilder,
    LinuxMemoryBuilder, LinuxResources, LinuxResourcesBuilder,
};
use orlop_cri::v1;

/// What the machine's cgroups can do.
#[derive(Clone, Debug, Default)]
pub(crate) struct CgroupFeatures {
    /// cgroup v2 alone (not hybrid).
    pub unified: bool,
    /// Swap use is accounted.
    pub swap: bool,
    /// The hugetlb controller is where the runtime looks for it.
    pub hugetlb: bool,
    /// Directory names below `/sys/fs/cgroup` of the v1 hierarchies.
    pub v1_names: Vec<String>,
}

/// A device node of the host, to appear in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostDevice {
    /// Path in the container.
    pub path: String,
    /// Block device, else character device.
    pub block: bool,
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// `r`, `w` and `m` that the cgroup allows.
    pub access: String,
}

/// Character devices that every container may use: null, zero, full, random, urandom, tty, console, ptmx, pts (OCI runtime
/// specification, "Default Devices").
const DEFAULT_DEVICES: [(i64, Option<i64>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

/// Limits and the device policy.
pub(crate) fn plan_resources(
    wanted: &v1::LinuxContainerResources,
    features: &CgroupFeatures,
    privileged: bool,
    devices: &[HostDevice],
) -> Result<LinuxResources, OciSpecError> {
    let mut cpu = LinuxCpuBuilder::default();
    if wanted.cpu_shares > 0 {
        cpu = cpu.shares(wanted.cpu_shares.unsigned_abs());
    }
    if wanted.cpu_quota != 0 {
        cpu = cpu.quota(wanted.cpu_quota);
    }
    if wanted.cpu_period > 0 {
        cpu = cpu.period(wanted.cpu_period.unsigned_abs());
    }
    if !wanted.cpuset_cpus.is_empty() {
        cpu = cpu.cpus(wanted.cpuset_cpus.clone());
    }
    if !wanted.cpuset_mems.is_empty() {
        cpu = cpu.mems(wanted.cpuset_mems.clone());
    }
    let mut memory = LinuxMemoryBuilder::default();
    if wanted.memory_limit_in_bytes != 0 {
        memory = memory.limit(wanted.memory_limit_in_bytes);
        if features.swap {
            memory = memory.swap(swap_limit(wanted));
        }
    }
    let mut resources = LinuxResourcesBuilder::default()
        .cpu(cpu.build()?)
        .memory(memory.build()?)
        .devices(device_policy(privileged, devices)?);
    if features.hugetlb && !wanted.hugepage_limits.is_empty() {
        let limits: Result<Vec<_>, _> = wanted
            .hugepage_limits
            .iter()
            .map(|limit| {
                let bytes = i64::try_from(limit.limit).unwrap_or(i64::MAX);
                LinuxHugepageLimitBuilder::default().page_size(limit.page_size.clone()).limit(bytes).build()
            })
            .collect();
        resources = resources.hugepage_limits(limits?);
    }
    if features.unified && !wanted.unified.is_empty() {
        let unified: HashMap<String, String> = wanted.unified.clone();
        resources = resources.unified(unified);
    }
    resources.build()
}

/// Limit of memory and swap together: without a wish the memory limit, so that a container does not swap its way around it (as containerd).
pub(crate) fn swap_limit(wanted: &v1::LinuxContainerResources) -> i64 {
    match wanted.memory_swap_limit_in_bytes {
        0 => wanted.memory_limit_in_bytes,
        limit => limit,
    }
}

fn device_policy(privileged: bool, devices: &[HostDevice]) -> Result<Vec<LinuxDeviceCgroup>, OciSpecError> {
    let rule = |allow: bool, access: &str| {
        LinuxDeviceCgroupBuilder::default().allow(allow).access(access.to_owned())
    };
    if privileged {
        return Ok(vec![rule(true, "rwm").typ(LinuxDeviceType::A).build()?]);
    }
    let mut policy = vec![rule(false, "rwm").typ(LinuxDeviceType::A).build()?];
    for kind in [LinuxDeviceType::C, LinuxDeviceType::B] {
        policy.push(rule(true, "m").typ(kind).build()?);
    }
    for (major, minor) in DEFAULT_DEVICES {
        let allowed = rule(true, "rwm").typ(LinuxDeviceType::C).major(major);
        policy.push(match minor {
            Some(minor) => allowed.minor(minor).build()?,
            None => allowed.build()?,
        });
    }
    for device in devices {
        let kind = if device.block { LinuxDeviceType::B } else { LinuxDeviceType::C };
        policy.push(rule(true, &device.access).typ(kind).major(device.major).minor(device.minor).build()?);
    }
    Ok(policy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unprivileged_container_may_use_only_named_devices() {
        let device = HostDevice {
            path: "/dev/x".into(),
            block: false,
            major: 10,
            minor: 200,
            mode: 0o600,
            uid: 0,
            gid: 0,
            access: "rw".into(),
        };
        let plan = |privileged| {
            let wanted = v1::LinuxContainerResources::default();
            plan_resources(&wanted, &CgroupFeatures::default(), privileged, std::slice::from_ref(&device))
                .unwrap()
        };
        let policy = plan(false).devices().clone().unwrap();
        assert!(!policy[0].allow() && policy.last().unwrap().major() == Some(10));
        assert_eq!(plan(true).devices().clone().unwrap().len(), 1);
    }
}
