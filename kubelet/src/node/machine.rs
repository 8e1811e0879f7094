//! What the machine is: processors, memory, disks, names.

use std::path::Path;

/// Facts that hold until the next start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) cpus: i64,
    pub(crate) memory_bytes: i64,
    pub(crate) disk_bytes: i64,
    /// Size name (`2Mi`) and bytes reserved.
    pub(crate) hugepages: Vec<(String, i64)>,
    pub(crate) machine_id: String,
    pub(crate) system_uuid: String,
    pub(crate) boot_id: String,
    pub(crate) kernel: String,
    pub(crate) os_image: String,
    pub(crate) hostname: String,
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// Go's name of this architecture.
pub(crate) const fn architecture() -> &'static str {
    if cfg!(target_arch = "x86_64") {
        "amd64"
    } else if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        std::env::consts::ARCH
    }
}

/// Bytes of a file system: `(size, available)`.
pub(crate) fn disk(path: &Path) -> Option<(u64, u64)> {
    let status = rustix::fs::statvfs(path).ok()?;
    Some((status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize))
}

/// A line of /proc/meminfo in bytes.
pub(crate) fn meminfo(key: &str) -> Option<i64> {
    let table = read("/proc/meminfo");
    let line = table.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let kibibytes: i64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024)
}

fn hugepages() -> Vec<(String, i64)> {
    let entries = std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let mut sizes: Vec<(String, i64)> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let kibibytes: i64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let count: i64 = read(&entry.path().join("nr_hugepages").to_string_lossy()).parse().ok()?;
            let size = if kibibytes >= 1 << 20 {
                format!("{}Gi", kibibytes >> 20)
            } else if kibibytes >= 1 << 10 {
                format!("{}Mi", kibibytes >> 10)
            } else {
                format!("{kibibytes}Ki")
            };
            Some((size, count * kibibytes * 1024))
        })
        .collect();
    sizes.sort();
    sizes
}

fn os_image() -> String {
    let text = std::fs::read_to_string("/etc/os-release")
        .or_else(|_| std::fs::read_to_string("/usr/lib/os-release"))
        .unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    line.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned())
}

impl Machine {
    /// Looks. `root` is on the disk that pods use.
    pub(crate) fn detect(root: &Path) -> Self {
        let cpus =
            std::thread::available_parallelism().map_or(1, |count| i64::try_from(count.get()).unwrap_or(1));
        let machine_id = read("/etc/machine-id");
        let uuid = read("/sys/class/dmi/id/product_uuid");
        Self {
            cpus,
            memory_bytes: meminfo("MemTotal").unwrap_or(0),
            disk_bytes: disk(root).and_then(|(size, _)| i64::try_from(size).ok()).unwrap_or(0),
            hugepages: hugepages(),
            system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
            machine_id,
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            kernel: read("/proc/sys/kernel/osrelease"),
            os_image: os_image(),
            hostname: read("/proc/sys/kernel/hostname"),
        }
    }
}
