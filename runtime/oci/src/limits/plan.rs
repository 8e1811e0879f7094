//! Limits as writes to files of control groups. Pure: what is written, not how.

use anyhow::bail;
use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxInterfacePriority, LinuxMemory, LinuxRdma, LinuxResources,
    LinuxThrottleDevice, LinuxWeightDevice,
};

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) controller: &'static str,
    pub(super) file: String,
    pub(super) value: String,
    /// When the kernel lacks the file.
    pub(super) without: Without,
}

/// What is done where the kernel lacks a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Without {
    /// The limit cannot be had.
    Fail,
    /// There is nothing to limit.
    Skip,
    /// This file and value say the same.
    Instead(String, String),
}

/// What a group has already, where one file of v2 holds what the specification has apart.
#[derive(Clone, Debug, Default)]
pub(super) struct Present {
    /// `memory.max` in bytes; none without a limit.
    pub(super) memory: Option<i64>,
    /// The quota in `cpu.max`; none without a limit.
    pub(super) quota: Option<String>,
}

fn write(controller: &'static str, file: impl Into<String>, value: impl ToString) -> Write {
    Write { controller, file: file.into(), value: value.to_string(), without: Without::Fail }
}

/// The writes for what is set in `resources`.
pub(super) fn plan(
    resources: &LinuxResources,
    unified: bool,
    present: &Present,
) -> anyhow::Result<Vec<Write>> {
    let mut writes = network(resources, unified)?;
    if let Some(memory) = resources.memory() {
        writes.extend(if unified { memory_v2(memory, present.memory)? } else { memory_v1(memory) });
    }
    if let Some(cpu) = resources.cpu() {
        writes.extend(if unified { cpu_v2(cpu, present)? } else { cpu_v1(cpu) });
        writes.extend(cpu.cpus().iter().map(|cpus| write("cpuset", "cpuset.cpus", cpus)));
        writes.extend(cpu.mems().iter().map(|mems| write("cpuset", "cpuset.mems", mems)));
    }
    if let Some(limit) = resources.pids().as_ref().map(|pids| pids.limit())
        && limit != 0
    {
        let limit = if limit > 0 { limit.to_string() } else { "max".to_owned() };
        writes.push(write("pids", "pids.max", limit));
    }
    for huge in resources.hugepage_limits().iter().flatten() {
        let (size, limit) = (huge.page_size(), huge.limit());
        if !size.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            bail!("{size:?} is not a size of huge pages");
        }
        let file = if unified { "max" } else { "limit_in_bytes" };
        writes.push(write("hugetlb", format!("hugetlb.{size}.{file}"), limit));
        // Also what is reserved counts, or a program that reserves too much dies when it touches the pages (hugetlb in cgroup-v2.rst).
        let reserved = write("hugetlb", format!("hugetlb.{size}.rsvd.{file}"), limit);
        writes.push(Write { without: Without::Skip, ..reserved });
    }
    if let Some(devices) = resources.rdma() {
        writes.extend(devices.iter().map(|(device, limits)| write("rdma", "rdma.max", rdma(device, limits))));
    }
    if let Some(block) = resources.block_io() {
        writes.extend(if unified { block_v2(block)? } else { block_v1(block)? });
    }
    writes.extend(unified_map(resources, unified)?);
    Ok(writes)
}

/// Last, since it is to overrule what is converted; in the order of names, since a map has none.
fn unified_map(resources: &LinuxResources, unified: bool) -> anyhow::Result<Vec<Write>> {
    let mut files: Vec<(&String, &String)> = resources.unified().iter().flatten().collect();
    files.sort();
    if !unified && !files.is_empty() {
        bail!("linux.resources.unified needs cgroup v2");
    }
    let mut writes = Vec::new();
    for (file, value) in files {
        let is_core = file.starts_with("cgroup.") && !file.starts_with("cgroup.max.");
        if file.contains('/') || is_core || !file.contains('.') {
            bail!("linux.resources.unified: {file:?} is not a file of a controller");
        }
        // Any controller's directory is the same on v2.
        writes.push(write("memory", file.clone(), value));
    }
    Ok(writes)
}

/// A line of `rdma.max` (cgroup-v1/rdma.rst, and the same on v2).
fn rdma(device: &str, limits: &LinuxRdma) -> String {
    let mut line = device.to_owned();
    for (key, limit) in [("hca_handle", limits.hca_handles()), ("hca_object", limits.hca_objects())] {
        if let Some(limit) = limit {
            line.push_str(&format!(" {key}={limit}"));
        }
    }
    line
}

/// Classes and priorities of packets exist on v1 alone.
fn network(resources: &LinuxResources, unified: bool) -> anyhow::Result<Vec<Write>> {
    let Some(network) = resources.network() else { return Ok(Vec::new()) };
    let class = network.class_id().map(|class| write("net_cls", "net_cls.classid", class));
    let priority = |priority: &LinuxInterfacePriority| {
        write("net_prio", "net_prio.ifpriomap", format!("{} {}", priority.name(), priority.priority()))
    };
    let writes: Vec<Write> =
        class.into_iter().chain(network.priorities().iter().flatten().map(priority)).collect();
    if unified && !writes.is_empty() {
        bail!("linux.resources.network does not exist on cgroup v2");
    }
    Ok(writes)
}

/// 0 is "not set" wherever runc's callers write numbers without an option.
fn set(value: Option<i64>) -> Option<i64> {
    value.filter(|value| *value != 0)
}

fn memory_v1(memory: &LinuxMemory) -> Vec<Write> {
    let limit = set(memory.limit());
    let mut writes: Vec<Write> =
        limit.iter().map(|limit| write("memory", "memory.limit_in_bytes", limit)).collect();
    match set(memory.swap()) {
        Some(swap) => writes.push(write("memory", "memory.memsw.limit_in_bytes", swap)),
        // No limit on memory with the old one on memory and swap together would not be none.
        None if limit == Some(-1) => {
            let swap = write("memory", "memory.memsw.limit_in_bytes", -1);
            writes.push(Write { without: Without::Skip, ..swap });
        }
        None => {}
    }
    writes
        .extend(set(memory.reservation()).map(|bytes| write("memory", "memory.soft_limit_in_bytes", bytes)));
    if memory.disable_oom_killer() == Some(true) {
        writes.push(write("memory", "memory.oom_control", 1));
    }
    writes
}

fn memory_v2(memory: &LinuxMemory, memory_now: Option<i64>) -> anyhow::Result<Vec<Write>> {
    let or_max = |bytes: i64| if bytes < 0 { "max".to_owned() } else { bytes.to_string() };
    let mut writes = Vec::new();
    let limit = set(memory.limit());
    if let Some(limit) = limit {
        writes.push(write("memory", "memory.max", or_max(limit)));
    }
    match (set(memory.swap()), limit.or(memory_now)) {
        (Some(swap), _) if swap < 0 => writes.push(swap_max("max")),
        (Some(_), None | Some(-1)) => bail!("a limit of memory and swap needs one of memory"),
        (Some(swap), Some(limit)) if swap < limit => bail!("memory and swap limit is below the memory limit"),
        // On v2 swap is counted alone; the same limit for both is none at all.
        (Some(swap), Some(limit)) => writes.push(swap_max(&(swap - limit).to_string())),
        (None, _) if limit == Some(-1) => writes.push(swap_max("max")),
        (None, _) => {}
    }
    writes.extend(set(memory.reservation()).map(|bytes| write("memory", "memory.low", or_max(bytes))));
    Ok(writes)
}

/// A kernel without swap has nothing to forbid.
fn swap_max(value: &str) -> Write {
    let without = if matches!(value, "0" | "max") { Without::Skip } else { Without::Fail };
    Write { without, ..write("memory", "memory.swap.max", value) }
}

fn cpu_v1(cpu: &LinuxCpu) -> Vec<Write> {
    let mut writes = Vec::new();
    let mut add = |file: &str, value: Option<String>| {
        writes.extend(value.map(|value| write("cpu", file, value)));
    };
    let text = |value: Option<u64>| value.filter(|value| *value != 0).map(|value| value.to_string());
    add("cpu.shares", text(cpu.shares()));
    add("cpu.cfs_period_us", text(cpu.period()));
    add("cpu.cfs_quota_us", set(cpu.quota()).map(|quota| quota.max(-1).to_string()));
    add("cpu.cfs_burst_us", cpu.burst().map(|burst| burst.to_string()));
    add("cpu.rt_period_us", text(cpu.realtime_period()));
    add("cpu.rt_runtime_us", set(cpu.realtime_runtime()).map(|runtime| runtime.to_string()));
    add("cpu.idle", cpu.idle().map(|idle| idle.to_string()));
    writes
}

fn cpu_v2(cpu: &LinuxCpu, present: &Present) -> anyhow::Result<Vec<Write>> {
    if cpu.realtime_period().is_some_and(|period| period != 0) || set(cpu.realtime_runtime()).is_some() {
        bail!("realtime CPU limits do not exist on cgroup v2");
    }
    let mut writes = Vec::new();
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        writes.push(write("cpu", "cpu.weight", weight_of_shares(shares)));
    }
    let period = cpu.period().filter(|period| *period != 0);
    let quota = set(cpu.quota()).map(|quota| if quota < 0 { "max".to_owned() } else { quota.to_string() });
    match (quota, period) {
        (Some(quota), Some(period)) => writes.push(write("cpu", "cpu.max", format!("{quota} {period}"))),
        // The kernel keeps the old period.
        (Some(quota), None) => writes.push(write("cpu", "cpu.max", quota)),
        (None, Some(period)) => {
            let quota = present.quota.as_deref().unwrap_or("max");
            writes.push(write("cpu", "cpu.max", format!("{quota} {period}")));
        }
        (None, None) => {}
    }
    writes.extend(cpu.burst().map(|burst| write("cpu", "cpu.max.burst", burst)));
    writes.extend(cpu.idle().map(|idle| write("cpu", "cpu.idle", idle)));
    Ok(writes)
}

/// From 2..=262144 to 1..=10000 such that the smallest, the default (1024 to 100) and the largest meet, as runc since 1.3.2 and crun since
/// 1.23 (opencontainers/cgroups, ConvertCPUSharesToCgroupV2Value): `10^((log2(s)^2 + 125 log2(s)) / 612 - 7/34)`, rounded up.
pub fn weight_of_shares(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        shares => {
            let shares = u32::try_from(shares).expect("less than 2^18");
            let logarithm = f64::from(shares).log2();
            let exponent = (logarithm * logarithm + 125.0 * logarithm) / 612.0 - 7.0 / 34.0;
            let weight = 10_f64.powf(exponent).ceil();
            (1..=10_000_u32).find(|whole| f64::from(*whole) >= weight).map_or(10_000, u64::from)
        }
    }
}

/// v1 files of the four kinds of throttle, and v2's keys of `io.max`.
fn throttles(block: &LinuxBlockIo) -> [(&'static str, &'static str, &Option<Vec<LinuxThrottleDevice>>); 4] {
    [
        ("blkio.throttle.read_bps_device", "rbps", block.throttle_read_bps_device()),
        ("blkio.throttle.write_bps_device", "wbps", block.throttle_write_bps_device()),
        ("blkio.throttle.read_iops_device", "riops", block.throttle_read_iops_device()),
        ("blkio.throttle.write_iops_device", "wiops", block.throttle_write_iops_device()),
    ]
}

fn refuse_leaf_weights(block: &LinuxBlockIo) -> anyhow::Result<()> {
    let devices = block.weight_device().as_deref().unwrap_or_default();
    let is_leaf = |device: &LinuxWeightDevice| device.leaf_weight().is_some_and(|weight| weight != 0);
    if block.leaf_weight().is_some_and(|weight| weight != 0) || devices.iter().any(is_leaf) {
        bail!("linux.resources.blockIO: leaf weights do not exist on cgroup v2");
    }
    Ok(())
}

/// CFQ's files, gone since Linux 5.0, and BFQ's.
fn block_v1(block: &LinuxBlockIo) -> anyhow::Result<Vec<Write>> {
    let of_scheduler = |file: &str, value: String| Write {
        without: Without::Instead(file.replace("blkio.", "blkio.bfq."), value.clone()),
        ..write("blkio", file, value)
    };
    let mut writes = Vec::new();
    if let Some(weight) = block.weight().filter(|weight| *weight != 0) {
        writes.push(of_scheduler("blkio.weight", weight.to_string()));
    }
    if let Some(weight) = block.leaf_weight().filter(|weight| *weight != 0) {
        writes.push(write("blkio", "blkio.leaf_weight", weight));
    }
    for device in block.weight_device().iter().flatten() {
        let line = |weight: u16| format!("{}:{} {weight}", device.major(), device.minor());
        if let Some(weight) = device.weight().filter(|weight| *weight != 0) {
            writes.push(of_scheduler("blkio.weight_device", line(weight)));
        }
        if let Some(weight) = device.leaf_weight().filter(|weight| *weight != 0) {
            writes.push(write("blkio", "blkio.leaf_weight_device", line(weight)));
        }
    }
    for (file, _, devices) in throttles(block) {
        let line = |device: &LinuxThrottleDevice| {
            write("blkio", file, format!("{}:{} {}", device.major(), device.minor(), device.rate()))
        };
        writes.extend(devices.iter().flatten().map(line));
    }
    Ok(writes)
}

fn block_v2(block: &LinuxBlockIo) -> anyhow::Result<Vec<Write>> {
    refuse_leaf_weights(block)?;
    let mut writes = Vec::new();
    if let Some(weight) = block.weight().filter(|weight| *weight != 0) {
        writes.push(weight_v2("", weight));
    }
    for device in block.weight_device().iter().flatten() {
        if let Some(weight) = device.weight() {
            writes.push(weight_v2(&format!("{}:{} ", device.major(), device.minor()), weight));
        }
    }
    for (_, key, devices) in throttles(block) {
        let line = |device: &LinuxThrottleDevice| {
            write("io", "io.max", format!("{}:{} {key}={}", device.major(), device.minor(), device.rate()))
        };
        writes.extend(devices.iter().flatten().map(line));
    }
    Ok(writes)
}

/// BFQ has a file of its own, with the specification's scale; io.weight goes from 1 to 10000 (runc converts the same way).
fn weight_v2(device: &str, weight: u16) -> Write {
    let converted = 1 + (u64::from(weight).clamp(10, 1000) - 10) * 9999 / 990;
    let instead = Without::Instead("io.weight".to_owned(), format!("{device}{converted}"));
    Write { without: instead, ..write("io", "io.bfq.weight", format!("{device}{weight}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(json: &str, unified: bool, memory: Option<i64>) -> Vec<String> {
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        let writes = plan(&resources, unified, &Present { memory, quota: None }).unwrap();
        writes.into_iter().map(|write| format!("{}={}", write.file, write.value)).collect()
    }

    const ALL: &str = r#"{"memory":{"limit":1000,"swap":3000,"reservation":500},
        "cpu":{"shares":1024,"quota":5000,"period":10000,"cpus":"0"},"pids":{"limit":-1},
        "blockIO":{"weight":500,"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":7}]},
        "devices":[{"allow":false}],"hugepageLimits":[{"pageSize":"2MB","limit":9}]}"#;

    #[test]
    fn version_1() {
        assert_eq!(
            lines(ALL, false, None),
            [
                "memory.limit_in_bytes=1000",
                "memory.memsw.limit_in_bytes=3000",
                "memory.soft_limit_in_bytes=500",
                "cpu.shares=1024",
                "cpu.cfs_period_us=10000",
                "cpu.cfs_quota_us=5000",
                "cpuset.cpus=0",
                "pids.max=max",
                "hugetlb.2MB.limit_in_bytes=9",
                "hugetlb.2MB.rsvd.limit_in_bytes=9",
                "blkio.weight=500",
                "blkio.throttle.read_bps_device=8:0 7",
            ]
        );
        let unlimited = lines(r#"{"memory":{"limit":-1}}"#, false, None);
        assert_eq!(unlimited, ["memory.limit_in_bytes=-1", "memory.memsw.limit_in_bytes=-1"]);
        assert!(
            lines(r#"{"memory":{"limit":0},"cpu":{"shares":0},"pids":{"limit":0}}"#, false, None).is_empty()
        );
    }

    #[test]
    fn version_2() {
        assert_eq!(
            lines(ALL, true, None),
            [
                "memory.max=1000",
                "memory.swap.max=2000",
                "memory.low=500",
                "cpu.weight=100",
                "cpu.max=5000 10000",
                "cpuset.cpus=0",
                "pids.max=max",
                "hugetlb.2MB.max=9",
                "hugetlb.2MB.rsvd.max=9",
                "io.bfq.weight=500",
                "io.max=8:0 rbps=7",
            ]
        );
        assert_eq!(lines(r#"{"memory":{"swap":300}}"#, true, Some(100)), ["memory.swap.max=200"]);
        assert_eq!(lines(r#"{"cpu":{"quota":-1}}"#, true, None), ["cpu.max=max"]);
        assert_eq!(lines(r#"{"cpu":{"period":50000}}"#, true, None), ["cpu.max=max 50000"]);
        assert_eq!(
            lines(r#"{"memory":{"limit":5,"swap":5}}"#, true, None),
            ["memory.max=5", "memory.swap.max=0"]
        );
        assert_eq!(
            lines(r#"{"rdma":{"mlx5_1":{"hcaHandles":3,"hcaObjects":10}}}"#, true, None),
            ["rdma.max=mlx5_1 hca_handle=3 hca_object=10"]
        );
        assert_eq!(
            lines(r#"{"unified":{"pids.max":"7","memory.high":"9","cgroup.max.depth":"2"}}"#, true, None),
            ["cgroup.max.depth=2", "memory.high=9", "pids.max=7"]
        );
    }

    #[test]
    fn a_new_period_keeps_the_quota() {
        let resources: LinuxResources = serde_json::from_str(r#"{"cpu":{"period":50000}}"#).unwrap();
        let present = Present { memory: None, quota: Some("20000".to_owned()) };
        assert_eq!(plan(&resources, true, &present).unwrap()[0].value, "20000 50000");
    }

    #[test]
    fn weights_are_those_of_other_runtimes() {
        for (shares, weight) in
            [(0, 1), (2, 1), (3, 2), (512, 59), (1024, 100), (2048, 174), (262_144, 10_000)]
        {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
        let block: LinuxResources = serde_json::from_str(
            r#"{"blockIO":{"weight":500,"weightDevice":[{"major":8,"minor":0,"weight":10}]}}"#,
        )
        .unwrap();
        let writes = plan(&block, true, &Present::default()).unwrap();
        let instead: Vec<_> = writes.iter().map(|write| write.without.clone()).collect();
        let weight = |value: &str| Without::Instead("io.weight".to_owned(), value.to_owned());
        assert_eq!(instead, [weight("4950"), weight("8:0 1")]);
    }

    #[test]
    fn what_few_machines_have() {
        let json = r#"{"network":{"classID":9,"priorities":[{"name":"lo","priority":3}]},
            "blockIO":{"leafWeight":20,"weightDevice":[{"major":8,"minor":0,"weight":500,"leafWeight":300}]}}"#;
        assert_eq!(
            lines(json, false, None),
            [
                "net_cls.classid=9",
                "net_prio.ifpriomap=lo 3",
                "blkio.leaf_weight=20",
                "blkio.weight_device=8:0 500",
                "blkio.leaf_weight_device=8:0 300",
            ]
        );
    }

    #[test]
    fn refuses() {
        for (json, unified) in [
            (r#"{"network":{"classID":1}}"#, true),
            (r#"{"unified":{"memory.high":"9"}}"#, false),
            (r#"{"unified":{"../x":"9"}}"#, true),
            (r#"{"unified":{"cgroup.kill":"1"}}"#, true),
            (r#"{"hugepageLimits":[{"pageSize":"2MB/../x","limit":9}]}"#, true),
            (r#"{"blockIO":{"leafWeight":10}}"#, true),
            (r#"{"memory":{"swap":300}}"#, true),
            (r#"{"cpu":{"realtimeRuntime":300}}"#, true),
        ] {
            let resources: LinuxResources = serde_json::from_str(json).unwrap();
            assert!(plan(&resources, unified, &Present::default()).is_err(), "{json}");
        }
    }
}
