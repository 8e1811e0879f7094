//! New limits of a running container, as writes to files of its control groups. Pure: what is written, not how.
//!
//! libcontainer's own way of applying resources cannot be used: on v1 it sets the device policy anew each time, to one without rules.

use anyhow::{Context, bail};
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) controller: &'static str,
    pub(super) file: String,
    pub(super) value: String,
    /// A kernel may lack the file, and the limit means nothing then.
    pub(super) optional: bool,
}

fn write(controller: &'static str, file: impl Into<String>, value: impl ToString) -> Write {
    Write { controller, file: file.into(), value: value.to_string(), optional: false }
}

/// The writes for what is set in `resources`; `memory_now` is the present memory limit, for v2's limit of swap alone.
pub(super) fn plan(
    resources: &LinuxResources,
    unified: bool,
    memory_now: Option<i64>,
) -> anyhow::Result<Vec<Write>> {
    refuse_unknown(resources)?;
    let mut writes = Vec::new();
    if let Some(memory) = resources.memory() {
        writes.extend(if unified { memory_v2(memory, memory_now)? } else { memory_v1(memory) });
    }
    if let Some(cpu) = resources.cpu() {
        writes.extend(if unified { cpu_v2(cpu)? } else { cpu_v1(cpu) });
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
        let file = if unified { "max" } else { "limit_in_bytes" };
        writes.push(write("hugetlb", format!("hugetlb.{}.{file}", huge.page_size()), huge.limit()));
    }
    if let Some(block) = resources.block_io() {
        writes.extend(if unified { block_v2(block)? } else { block_v1(block)? });
    }
    for (file, value) in resources.unified().iter().flatten() {
        if !unified {
            bail!("linux.resources.unified needs cgroup v2");
        }
        if file.contains('/') || file.starts_with("cgroup.") {
            bail!("{file:?} is not a file of a controller");
        }
        // Any controller's directory is the same on v2.
        writes.push(write("memory", file.clone(), value));
    }
    Ok(writes)
}

/// Devices are left out silently, as runc does: callers hand over the whole section.
fn refuse_unknown(resources: &LinuxResources) -> anyhow::Result<()> {
    let network = resources.network().as_ref().is_some_and(|network| {
        network.class_id().is_some()
            || network.priorities().as_ref().is_some_and(|priorities| !priorities.is_empty())
    });
    if network {
        bail!("update of linux.resources.network is not supported");
    }
    if resources.rdma().as_ref().is_some_and(|rdma| !rdma.is_empty()) {
        bail!("update of linux.resources.rdma is not supported");
    }
    Ok(())
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
            writes.push(Write { optional: true, ..swap });
        }
        None => {}
    }
    writes
        .extend(set(memory.reservation()).map(|bytes| write("memory", "memory.soft_limit_in_bytes", bytes)));
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
        (Some(swap), _) if swap < 0 => writes.push(write("memory", "memory.swap.max", "max")),
        (Some(_), None | Some(-1)) => bail!("a limit of memory and swap needs one of memory"),
        (Some(swap), Some(limit)) if swap < limit => bail!("memory and swap limit is below the memory limit"),
        // On v2 swap is counted alone.
        (Some(swap), Some(limit)) => writes.push(write("memory", "memory.swap.max", swap - limit)),
        (None, _) if limit == Some(-1) => {
            writes.push(Write { optional: true, ..write("memory", "memory.swap.max", "max") });
        }
        (None, _) => {}
    }
    writes.extend(set(memory.reservation()).map(|bytes| write("memory", "memory.low", or_max(bytes))));
    Ok(writes)
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

fn cpu_v2(cpu: &LinuxCpu) -> anyhow::Result<Vec<Write>> {
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
        (None, Some(_)) => bail!("on cgroup v2 a CPU period needs a quota beside it"),
        (None, None) => {}
    }
    writes.extend(cpu.burst().map(|burst| write("cpu", "cpu.max.burst", burst)));
    writes.extend(cpu.idle().map(|idle| write("cpu", "cpu.idle", idle)));
    Ok(writes)
}

/// From 2..=262144 to 1..=10000, as everybody converts (KEP-2254).
fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
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

fn refuse_device_weights(block: &LinuxBlockIo) -> anyhow::Result<()> {
    if block.weight_device().as_ref().is_some_and(|devices| !devices.is_empty()) {
        bail!("update of linux.resources.blockIO.weightDevice is not supported");
    }
    if block.leaf_weight().is_some_and(|weight| weight != 0) {
        bail!("update of linux.resources.blockIO.leafWeight is not supported");
    }
    Ok(())
}

fn block_v1(block: &LinuxBlockIo) -> anyhow::Result<Vec<Write>> {
    refuse_device_weights(block)?;
    let mut writes = Vec::new();
    if let Some(weight) = block.weight().filter(|weight| *weight != 0) {
        writes.push(write("blkio", "blkio.weight", weight));
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
    refuse_device_weights(block)?;
    let mut writes = Vec::new();
    if let Some(weight) = block.weight().filter(|weight| *weight != 0) {
        // From 10..=1000 to 1..=10000, as runc converts.
        let weight = 1 + (u64::from(weight).clamp(10, 1000) - 10) * 9999 / 990;
        writes.push(write("io", "io.weight", weight));
    }
    for (_, key, devices) in throttles(block) {
        let line = |device: &LinuxThrottleDevice| {
            write("io", "io.max", format!("{}:{} {key}={}", device.major(), device.minor(), device.rate()))
        };
        writes.extend(devices.iter().flatten().map(line));
    }
    Ok(writes)
}

/// Bytes with an optional unit (as Docker's: k, m, g, t, each 1024 times the one before; a `b` behind it changes nothing).
pub(super) fn parse_bytes(text: &str) -> anyhow::Result<i64> {
    let lower = text.trim().to_ascii_lowercase();
    if lower == "-1" {
        return Ok(-1);
    }
    let short = lower.strip_suffix("ib").or_else(|| lower.strip_suffix('b')).unwrap_or(&lower);
    let units = [('k', 10), ('m', 20), ('g', 30), ('t', 40), ('p', 50)];
    let (digits, shift) = units
        .iter()
        .find_map(|(unit, shift)| Some((short.strip_suffix(*unit)?, *shift)))
        .unwrap_or((short, 0));
    let number: i64 = digits.trim().parse().with_context(|| format!("invalid size: {text:?}"))?;
    if number < 0 {
        bail!("invalid size: {text:?}");
    }
    number.checked_mul(1 << shift).with_context(|| format!("invalid size: {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(json: &str, unified: bool, memory_now: Option<i64>) -> Vec<String> {
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        let writes = plan(&resources, unified, memory_now).unwrap();
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
                "cpu.weight=39",
                "cpu.max=5000 10000",
                "cpuset.cpus=0",
                "pids.max=max",
                "hugetlb.2MB.max=9",
                "io.weight=4950",
                "io.max=8:0 rbps=7",
            ]
        );
        assert_eq!(lines(r#"{"memory":{"swap":300}}"#, true, Some(100)), ["memory.swap.max=200"]);
        assert_eq!(lines(r#"{"cpu":{"quota":-1}}"#, true, None), ["cpu.max=max"]);
        assert_eq!(lines(r#"{"unified":{"memory.high":"9"}}"#, true, None), ["memory.high=9"]);
    }

    #[test]
    fn refuses() {
        for (json, unified) in [
            (r#"{"network":{"classID":1}}"#, false),
            (r#"{"unified":{"memory.high":"9"}}"#, false),
            (r#"{"unified":{"../x":"9"}}"#, true),
            (r#"{"unified":{"cgroup.kill":"1"}}"#, true),
            (r#"{"memory":{"swap":300}}"#, true),
            (r#"{"cpu":{"realtimeRuntime":300}}"#, true),
        ] {
            let resources: LinuxResources = serde_json::from_str(json).unwrap();
            assert!(plan(&resources, unified, None).is_err(), "{json}");
        }
    }

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [("100", 100), ("64m", 64 << 20), ("1G", 1 << 30), ("2kb", 2048), ("-1", -1)] {
            assert_eq!(parse_bytes(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "x", "-2", "9999999999999g"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}
