//! CRI resource limits → OCI resources.

use std::collections::HashMap;

use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxHugepageLimitBuilder,
    LinuxMemoryBuilder, LinuxResources, LinuxResourcesBuilder, OciSpecError,
};
use orlop_cri::v1;

/// What the machine's cgroups can do.
#[derive(Clone, Copy, Debug, Default)]
pub struct CgroupFeatures {
    /// cgroup v2 alone (not hybrid).
    pub unified: bool,
    /// Swap use is accounted.
    pub swap: bool,
    /// The hugetlb controller is where the runtime looks for it.
    pub hugetlb: bool,
}

/// A device node of the host, to appear in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDevice {
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
pub fn plan_resources(
    wanted: &v1::LinuxContainerResources,
    features: CgroupFeatures,
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
        if features.swap && wanted.memory_swap_limit_in_bytes != 0 {
            memory = memory.swap(wanted.memory_swap_limit_in_bytes);
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

fn device_policy(privileged: bool, devices: &[HostDevice]) -> Result<Vec<LinuxDeviceCgroup>, OciSpecError> {
    let rule = |allow: bool, access: &str| LinuxDeviceCgroupBuilder::default().allow(allow).access(access.to_owned());
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

/// Takes over every value of `change` that is given, as UpdateContainerResources wants it.
pub fn merge(current: &mut v1::LinuxContainerResources, change: &v1::LinuxContainerResources) {
    let fields: [(&mut i64, i64); 6] = [
        (&mut current.cpu_period, change.cpu_period),
        (&mut current.cpu_quota, change.cpu_quota),
        (&mut current.cpu_shares, change.cpu_shares),
        (&mut current.memory_limit_in_bytes, change.memory_limit_in_bytes),
        (&mut current.memory_swap_limit_in_bytes, change.memory_swap_limit_in_bytes),
        (&mut current.oom_score_adj, change.oom_score_adj),
    ];
    for (field, value) in fields {
        if value != 0 {
            *field = value;
        }
    }
    for (field, value) in
        [(&mut current.cpuset_cpus, &change.cpuset_cpus), (&mut current.cpuset_mems, &change.cpuset_mems)]
    {
        if !value.is_empty() {
            field.clone_from(value);
        }
    }
    current.unified.extend(change.unified.iter().map(|(key, value)| (key.clone(), value.clone())));
    if !change.hugepage_limits.is_empty() {
        current.hugepage_limits.clone_from(&change.hugepage_limits);
    }
}
