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

/// Takes over every value of `change` that is given, as UpdateContainerResources wants it.
pub(crate) fn merge(current: &mut v1::LinuxContainerResources, change: &v1::LinuxContainerResources) {
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

/// One file of a cgroup to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Write {
    /// v1 controller whose hierarchy holds the file.
    pub controller: &'static str,
    /// File name.
    pub file: String,
    /// Content.
    pub value: String,
}

/// What to write for `change`, in an order that the kernel takes; `wanted` holds the values that go together with it.
pub(crate) fn plan_update(
    change: &v1::LinuxContainerResources,
    wanted: &v1::LinuxContainerResources,
    unified: bool,
) -> Vec<Write> {
    let mut writes = Vec::new();
    let mut write = |controller, file: &str, value: String| {
        writes.push(Write { controller, file: file.to_owned(), value });
    };
    if change.cpu_shares > 0 {
        if unified {
            write("cpu", "cpu.weight", weight(change.cpu_shares).to_string());
        } else {
            write("cpu", "cpu.shares", change.cpu_shares.to_string());
        }
    }
    if change.cpu_quota != 0 || change.cpu_period != 0 {
        let period = if wanted.cpu_period > 0 { wanted.cpu_period } else { 100_000 };
        if unified {
            let quota = if wanted.cpu_quota > 0 { wanted.cpu_quota.to_string() } else { "max".to_owned() };
            write("cpu", "cpu.max", format!("{quota} {period}"));
        } else {
            write("cpu", "cpu.cfs_period_us", period.to_string());
            if wanted.cpu_quota != 0 {
                write("cpu", "cpu.cfs_quota_us", wanted.cpu_quota.to_string());
            }
        }
    }
    if change.memory_limit_in_bytes != 0 {
        let limit = change.memory_limit_in_bytes;
        match (unified, limit > 0) {
            (true, true) => write("memory", "memory.max", limit.to_string()),
            (true, false) => write("memory", "memory.max", "max".to_owned()),
            (false, _) => write("memory", "memory.limit_in_bytes", limit.to_string()),
        }
    }
    for (file, value) in [("cpuset.mems", &change.cpuset_mems), ("cpuset.cpus", &change.cpuset_cpus)] {
        if !value.is_empty() {
            write("cpuset", file, value.clone());
        }
    }
    if unified {
        for (file, value) in &change.unified {
            write("unified", file, value.clone());
        }
    }
    writes
}

/// cgroup v1 shares (2..262144) as v2 weight (1..10000), as runc converts them.
fn weight(shares: i64) -> i64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn updates_write_only_what_changed() {
        let change = v1::LinuxContainerResources {
            cpu_quota: 50_000,
            memory_limit_in_bytes: 1 << 20,
            ..Default::default()
        };
        let mut wanted =
            v1::LinuxContainerResources { cpu_period: 200_000, cpu_shares: 512, ..Default::default() };
        merge(&mut wanted, &change);
        assert_eq!((wanted.cpu_quota, wanted.cpu_shares), (50_000, 512));
        let files = |unified| -> Vec<String> {
            plan_update(&change, &wanted, unified)
                .iter()
                .map(|write| format!("{}={}", write.file, write.value))
                .collect()
        };
        assert_eq!(files(true), ["cpu.max=50000 200000", "memory.max=1048576"]);
        assert_eq!(
            files(false),
            ["cpu.cfs_period_us=200000", "cpu.cfs_quota_us=50000", "memory.limit_in_bytes=1048576"]
        );
        assert_eq!((weight(2), weight(1024), weight(262_144)), (1, 39, 10_000));
    }

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
