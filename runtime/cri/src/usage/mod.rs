//! What a control group has used: read from the machine's hierarchies, v1, v2 and hybrid, as far as each tells.

mod parse;

use std::path::{Path, PathBuf};

use crate::cgroup::Hierarchies;
use crate::machine;

pub(crate) use parse::{DeviceIo, Pressure, PressureLine};

/// How deep below a container's group others are looked for.
const DEPTH_LIMIT: usize = 16;
/// Processes of one group that are looked at.
const PROCESS_LIMIT: usize = 4096;

/// One look at one control group. A value that this machine does not account is `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Usage {
    /// Nanoseconds since the epoch.
    pub timestamp: i64,
    /// Processor time.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// Tasks, threads included.
    pub tasks: Option<u64>,
    /// Most tasks; `None` is no limit.
    pub tasks_limit: Option<u64>,
    /// By block device.
    pub devices: Vec<DeviceIo>,
    /// Stalls on input and output.
    pub io_pressure: Option<Pressure>,
    /// By page size.
    pub hugepages: Vec<Hugepages>,
}

/// Processor time in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Cpu {
    /// All of it.
    pub total: Option<u64>,
    /// In user mode.
    pub user: u64,
    /// In the kernel.
    pub system: u64,
    /// Enforcement periods, when a quota is set.
    pub periods: u64,
    /// Periods that hit the quota.
    pub throttled_periods: u64,
    /// Time that was throttled away.
    pub throttled: u64,
    /// Stalls.
    pub pressure: Option<Pressure>,
}

/// Memory in bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Memory {
    /// Everything that is charged.
    pub usage: Option<u64>,
    /// Without file pages that can go at once.
    pub working_set: u64,
    /// Anonymous.
    pub rss: u64,
    /// File pages.
    pub cache: u64,
    /// The kernel's own.
    pub kernel: u64,
    /// Mapped files.
    pub mapped_file: u64,
    /// File pages used of late.
    pub active_file: u64,
    /// File pages not used of late.
    pub inactive_file: u64,
    /// Swapped out; `None` where swap is not accounted.
    pub swap: Option<u64>,
    /// Limit of swap alone.
    pub swap_limit: Option<u64>,
    /// Highest usage so far.
    pub peak: u64,
    /// Times the limit was hit.
    pub failures: u64,
    /// Page faults.
    pub page_faults: u64,
    /// Page faults that read a disk.
    pub major_page_faults: u64,
    /// Processes that the kernel killed for want of memory.
    pub oom_kills: u64,
    /// Stalls.
    pub pressure: Option<Pressure>,
}

/// Huge pages of one size, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hugepages {
    /// As the kernel writes it: `2MB`.
    pub size: String,
    /// In use.
    pub usage: u64,
    /// Highest usage so far.
    pub peak: u64,
}

/// Its directories by v1 controller, all the same on v2.
struct Group<'a> {
    hierarchies: &'a Hierarchies,
    path: &'a str,
}

impl Group<'_> {
    fn text(&self, controller: &str, file: &str) -> Option<String> {
        std::fs::read_to_string(self.hierarchies.directory(controller, self.path)?.join(file)).ok()
    }

    fn number(&self, controller: &str, file: &str) -> Option<u64> {
        self.text(controller, file)?.trim().parse().ok()
    }

    fn keyed(&self, controller: &str, file: &str) -> parse::Keyed {
        parse::Keyed::new(&self.text(controller, file).unwrap_or_default())
    }

    /// Only the unified hierarchy knows pressure, also on hybrid machines.
    fn pressure(&self, file: &str) -> Option<Pressure> {
        let directory = self.hierarchies.unified_directory(self.path)?;
        parse::pressure(&std::fs::read_to_string(directory.join(file)).ok()?)
    }
}

/// Looks at a control group; `None` when it is not there.
pub(crate) fn read(hierarchies: &Hierarchies, cgroup: &str) -> Option<Usage> {
    let group = Group { hierarchies, path: cgroup };
    let unified = hierarchies.is_unified();
    if !hierarchies.directory("memory", cgroup)?.exists() {
        return None;
    }
    let (cpu, memory, devices) = if unified {
        (cpu_unified(&group), memory_unified(&group), parse::io_stat(&group.text("io", "io.stat")?))
    } else {
        (cpu_legacy(&group), memory_legacy(&group), devices_legacy(&group))
    };
    Some(Usage {
        timestamp: machine::now(),
        cpu: Cpu { pressure: group.pressure("cpu.pressure"), ..cpu },
        memory: Memory { pressure: group.pressure("memory.pressure"), ..memory },
        tasks: group.number("pids", "pids.current"),
        tasks_limit: group.number("pids", "pids.max"),
        devices,
        io_pressure: group.pressure("io.pressure"),
        hugepages: hugepages(&group, unified),
    })
}

fn cpu_unified(group: &Group<'_>) -> Cpu {
    const NANOS: u64 = 1000;
    let stat = group.keyed("cpu", "cpu.stat");
    Cpu {
        total: stat.find("usage_usec").map(|micros| micros * NANOS),
        user: stat.get("user_usec") * NANOS,
        system: stat.get("system_usec") * NANOS,
        periods: stat.get("nr_periods"),
        throttled_periods: stat.get("nr_throttled"),
        throttled: stat.get("throttled_usec") * NANOS,
        pressure: None,
    }
}

fn cpu_legacy(group: &Group<'_>) -> Cpu {
    let stat = group.keyed("cpu", "cpu.stat");
    Cpu {
        total: group.number("cpuacct", "cpuacct.usage"),
        user: group.number("cpuacct", "cpuacct.usage_user").unwrap_or_default(),
        system: group.number("cpuacct", "cpuacct.usage_sys").unwrap_or_default(),
        periods: stat.get("nr_periods"),
        throttled_periods: stat.get("nr_throttled"),
        throttled: stat.get("throttled_time"),
        pressure: None,
    }
}

fn memory_unified(group: &Group<'_>) -> Memory {
    let stat = group.keyed("memory", "memory.stat");
    let events = group.keyed("memory", "memory.events");
    let usage = group.number("memory", "memory.current");
    Memory {
        usage,
        working_set: usage.unwrap_or_default().saturating_sub(stat.get("inactive_file")),
        rss: stat.get("anon"),
        cache: stat.get("file"),
        kernel: stat.get("kernel"),
        mapped_file: stat.get("file_mapped"),
        active_file: stat.get("active_file"),
        inactive_file: stat.get("inactive_file"),
        swap: group.number("memory", "memory.swap.current"),
        swap_limit: group.number("memory", "memory.swap.max"),
        peak: group.number("memory", "memory.peak").unwrap_or_default(),
        failures: events.get("max"),
        page_faults: stat.get("pgfault"),
        major_page_faults: stat.get("pgmajfault"),
        oom_kills: events.get("oom_kill"),
        pressure: None,
    }
}

fn memory_legacy(group: &Group<'_>) -> Memory {
    let stat = group.keyed("memory", "memory.stat");
    let number = |file| group.number("memory", file);
    let usage = number("memory.usage_in_bytes");
    // Swap is accounted together with memory; without a limit both say nearly the largest number.
    let both = number("memory.memsw.usage_in_bytes");
    let limits = (number("memory.limit_in_bytes"), number("memory.memsw.limit_in_bytes"));
    Memory {
        usage,
        working_set: usage.unwrap_or_default().saturating_sub(stat.get("total_inactive_file")),
        rss: stat.get("total_rss"),
        cache: stat.get("total_cache"),
        kernel: number("memory.kmem.usage_in_bytes").unwrap_or_default(),
        mapped_file: stat.get("total_mapped_file"),
        active_file: stat.get("total_active_file"),
        inactive_file: stat.get("total_inactive_file"),
        swap: both.map(|_| stat.get("total_swap")),
        swap_limit: match limits {
            (Some(memory), Some(both)) if both < parse::NO_LIMIT_BYTES => Some(both.saturating_sub(memory)),
            _ => None,
        },
        peak: number("memory.max_usage_in_bytes").unwrap_or_default(),
        failures: number("memory.failcnt").unwrap_or_default(),
        page_faults: stat.get("total_pgfault"),
        major_page_faults: stat.get("total_pgmajfault"),
        oom_kills: group.keyed("memory", "memory.oom_control").get("oom_kill"),
        pressure: None,
    }
}

fn devices_legacy(group: &Group<'_>) -> Vec<DeviceIo> {
    let text = |file| group.text("blkio", file).unwrap_or_default();
    parse::blkio(
        &text("blkio.throttle.io_service_bytes_recursive"),
        &text("blkio.throttle.io_serviced_recursive"),
    )
}

fn hugepages(group: &Group<'_>, unified: bool) -> Vec<Hugepages> {
    let Some(directory) = group.hierarchies.directory("hugetlb", group.path) else {
        return Vec::new();
    };
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let suffix = if unified { "current" } else { "usage_in_bytes" };
    let mut found: Vec<Hugepages> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let size = name.strip_prefix("hugetlb.")?.strip_suffix(suffix)?.strip_suffix('.')?;
            if size.contains('.') {
                return None;
            }
            let usage = group.number("hugetlb", &name)?;
            // v2 keeps no highest value.
            let peak =
                group.number("hugetlb", &format!("hugetlb.{size}.max_usage_in_bytes")).unwrap_or(usage);
            Some(Hugepages { size: size.to_owned(), usage, peak })
        })
        .collect();
    found.sort_by(|left, right| left.size.cmp(&right.size));
    found
}

/// The processes of a control group and of those below it.
pub(crate) fn processes(hierarchies: &Hierarchies, cgroup: &str) -> Vec<u32> {
    let mut pids = Vec::new();
    let mut pending: Vec<(PathBuf, usize)> =
        hierarchies.directory("memory", cgroup).into_iter().map(|directory| (directory, 0)).collect();
    while let Some((directory, depth)) = pending.pop() {
        let text = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
        if depth >= DEPTH_LIMIT || pids.len() >= PROCESS_LIMIT {
            break;
        }
        let children = std::fs::read_dir(&directory).into_iter().flatten().flatten();
        let children = children.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        pending.extend(children.map(|entry| (entry.path(), depth + 1)));
    }
    pids.truncate(PROCESS_LIMIT);
    pids
}

/// Open descriptors of a process, and how many of them are sockets. None when it has ended.
pub(crate) fn descriptors(pid: u32) -> (u64, u64) {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.fold((0, 0), |(open, sockets), entry| {
        let socket = std::fs::read_link(entry.path())
            .is_ok_and(|target| target.to_string_lossy().starts_with("socket:"));
        (open + 1, sockets + u64::from(socket))
    })
}

/// The soft limit of open files of a process; `None` is no limit.
pub(crate) fn open_file_limit(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// The device node of a block device, `MAJOR:MINOR` when it has none.
pub(crate) fn device_name(device: &DeviceIo) -> String {
    let numbers = format!("{}:{}", device.major, device.minor);
    let uevent = Path::new("/sys/dev/block").join(&numbers).join("uevent");
    let text = std::fs::read_to_string(uevent).unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    name.map_or(numbers, |name| format!("/dev/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_used_something() {
        let hierarchies = Hierarchies::detect().unwrap();
        let usage = read(&hierarchies, "/").unwrap();
        assert!(usage.timestamp > 0 && usage.cpu.total.is_some());
        let own = std::process::id();
        assert!(descriptors(own).0 > 2 && open_file_limit(own).is_some());
        assert!(read(&hierarchies, "/no/such/group").is_none());
    }
}
