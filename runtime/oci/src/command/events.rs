//! `events`: what a container uses, and when the OOM killer struck.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use libcgroups::common::{CgroupConfig, CgroupManager, create_cgroup_manager};
use libcgroups::stats::{BlkioDeviceStat, MemoryData, Stats};
use serde_json::{Value, json};

use super::Call;
use super::arguments::Events;
use super::container::{Container, Status, has_ended};
use crate::cgroup::Cgroup;

/// How often the OOM counter is looked at, and the longest that the end of the container goes unnoticed.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

pub(super) fn main(call: &Call, options: &Events) -> anyhow::Result<()> {
    let interval = parse_interval(&options.interval)?;
    let container = Container::load(&call.store, &options.id)?;
    if container.status()? == Status::Stopped {
        bail!("container with id {} is not running", options.id);
    }
    if options.stats {
        return print_statistics(&container);
    }
    let Some(init) = container.init() else { return Ok(()) };
    let cgroup = container.cgroup()?;
    let mut known_kills = cgroup.oom_kills();
    let mut next = Instant::now();
    loop {
        if Instant::now() >= next {
            print_statistics(&container)?;
            next += interval;
        }
        let wait = next.saturating_duration_since(Instant::now()).min(LOOK_INTERVAL);
        let ended = has_ended(&init, wait);
        let kills = cgroup.oom_kills();
        if kills > known_kills {
            known_kills = kills;
            print_event(&json!({"type": "oom", "id": container.record.id}))?;
        }
        if ended {
            return Ok(());
        }
    }
}

fn print_event(event: &Value) -> anyhow::Result<()> {
    super::print(&format!("{event}\n"))
}

fn print_statistics(container: &Container) -> anyhow::Result<()> {
    let manager = create_cgroup_manager(CgroupConfig {
        cgroup_path: container.record.cgroup.clone(),
        systemd_cgroup: false,
        container_name: container.record.id.clone(),
    })
    .context("failed to find the control groups")?;
    let is_unified =
        crate::cgroup::Hierarchies::detect_once().context("failed to find the control groups")?.is_unified();
    // CPU times are nanoseconds in runc's events; v2 counts microseconds.
    let (statistics, cpu_scale) = match manager.stats() {
        Ok(statistics) => (statistics, if is_unified { 1000 } else { 1 }),
        // libcgroups wants every file of every controller; a machine may lack some.
        Err(_) => (basic_statistics(&container.cgroup()?), 1),
    };
    let data = show(&statistics, cpu_scale);
    print_event(&json!({"type": "stats", "id": container.record.id, "data": data}))
}

/// What there is.
fn basic_statistics(cgroup: &Cgroup) -> Stats {
    let usage = cgroup.usage();
    let mut statistics = Stats::default();
    statistics.cpu.usage.usage_total = usage.cpu_nanos;
    statistics.memory.memory.usage = usage.memory_bytes;
    statistics.pids.current = usage.pids;
    statistics
}

/// In runc's shape (its `events` documentation).
fn show(statistics: &Stats, scale: u64) -> Value {
    let cpu = &statistics.cpu;
    let memory = &statistics.memory;
    let per_core = |times: &Vec<u64>| if times.is_empty() { Value::Null } else { json!(times) };
    json!({
        "cpu": {
            "usage": {
                "total": cpu.usage.usage_total.saturating_mul(scale),
                "percpu": per_core(&cpu.usage.per_core_usage_total),
                "kernel": cpu.usage.usage_kernel.saturating_mul(scale),
                "user": cpu.usage.usage_user.saturating_mul(scale),
            },
            "throttling": {
                "periods": cpu.throttling.periods,
                "throttledPeriods": cpu.throttling.throttled_periods,
                "throttledTime": cpu.throttling.throttled_time.saturating_mul(scale),
            },
        },
        "memory": {
            "cache": memory.cache,
            "usage": memory_data(&memory.memory),
            "swap": memory_data(&memory.memswap),
            "kernel": memory_data(&memory.kernel),
            "kernelTCP": memory_data(&memory.kernel_tcp),
            "raw": memory.stats,
        },
        "pids": {"current": statistics.pids.current, "limit": statistics.pids.limit},
        "blkio": {
            "ioServiceBytesRecursive": devices(&statistics.blkio.service_bytes),
            "ioServicedRecursive": devices(&statistics.blkio.serviced),
            "ioQueueRecursive": devices(&statistics.blkio.queued),
            "ioServiceTimeRecursive": devices(&statistics.blkio.service_time),
            "ioWaitTimeRecursive": devices(&statistics.blkio.wait_time),
            "ioMergedRecursive": devices(&statistics.blkio.merged),
            "ioTimeRecursive": devices(&statistics.blkio.time),
            "sectorsRecursive": devices(&statistics.blkio.sectors),
        },
        "hugetlb": statistics.hugetlb.iter().map(|(size, used)| {
            (size.clone(), json!({"usage": used.usage, "max": used.max_usage, "failcnt": used.fail_count}))
        }).collect::<serde_json::Map<_, _>>(),
        "intel_rdt": {},
        "network_interfaces": Value::Null,
    })
}

fn memory_data(data: &MemoryData) -> Value {
    json!({"limit": data.limit, "usage": data.usage, "max": data.max_usage, "failcnt": data.fail_count})
}

fn devices(all: &[BlkioDeviceStat]) -> Value {
    let show = |one: &BlkioDeviceStat| json!({"major": one.major, "minor": one.minor, "op": one.op_type.clone().unwrap_or_default(), "value": one.value});
    all.iter().map(show).collect()
}

/// A whole number with a unit, or of seconds.
fn parse_interval(text: &str) -> anyhow::Result<Duration> {
    let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("", 1000)];
    let parsed = units.iter().find_map(|(unit, milliseconds)| {
        let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
        number.checked_mul(*milliseconds)
    });
    match parsed {
        Some(milliseconds) if milliseconds > 0 => Ok(Duration::from_millis(milliseconds)),
        _ => bail!("duration interval must be greater than 0, not {text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_have_units() {
        assert_eq!(parse_interval("5s").unwrap(), Duration::from_secs(5));
        assert_eq!(parse_interval("100ms").unwrap(), Duration::from_millis(100));
        assert_eq!(parse_interval("2m").unwrap(), Duration::from_secs(120));
        for text in ["", "0s", "-1s", "x"] {
            assert!(parse_interval(text).is_err(), "{text}");
        }
    }
}
