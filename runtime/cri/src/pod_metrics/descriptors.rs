//! The metrics of pods and containers: cAdvisor's names and meanings (KEP-2371), with the labels that containerd gives them.

use orlop_cri::v1;

/// Labels of every metric, in this order.
pub(super) const LABELS: [&str; 5] = ["pod", "namespace", "container", "id", "image"];

/// What a metric is.
pub(super) struct Descriptor {
    pub(super) name: &'static str,
    help: &'static str,
    pub(super) kind: v1::MetricType,
    /// Labels beyond [`LABELS`].
    pub(super) labels: &'static [&'static str],
}

const fn counter(name: &'static str, help: &'static str) -> Descriptor {
    Descriptor { name, help, kind: v1::MetricType::Counter, labels: &[] }
}

const fn gauge(name: &'static str, help: &'static str) -> Descriptor {
    Descriptor { name, help, kind: v1::MetricType::Gauge, labels: &[] }
}

const fn with(descriptor: Descriptor, labels: &'static [&'static str]) -> Descriptor {
    Descriptor { labels, ..descriptor }
}

const DEVICE: &[&str] = &["device"];
const INTERFACE: &[&str] = &["interface"];

/// All of them. Seconds are whole: the CRI carries integers.
pub(super) const ALL: [Descriptor; 58] = [
    counter("container_cpu_usage_seconds_total", "CPU time consumed, in seconds."),
    counter("container_cpu_user_seconds_total", "CPU time consumed in user mode, in seconds."),
    counter("container_cpu_system_seconds_total", "CPU time consumed in the kernel, in seconds."),
    counter("container_cpu_cfs_periods_total", "Enforcement periods that have passed."),
    counter(
        "container_cpu_cfs_throttled_periods_total",
        "Enforcement periods in which the quota was used up.",
    ),
    counter(
        "container_cpu_cfs_throttled_seconds_total",
        "Time that the container was throttled, in seconds.",
    ),
    gauge("container_memory_cache", "Page cache, in bytes."),
    gauge("container_memory_rss", "Anonymous memory, in bytes."),
    gauge("container_memory_kernel_usage", "Memory of the kernel for the container, in bytes."),
    gauge("container_memory_mapped_file", "Mapped files in memory, in bytes."),
    gauge("container_memory_swap", "Swap in use, in bytes."),
    counter("container_memory_failcnt", "Times that memory usage hit its limit."),
    gauge("container_memory_usage_bytes", "Memory in use with everything that is charged, in bytes."),
    gauge("container_memory_max_usage_bytes", "Highest memory usage so far, in bytes."),
    gauge("container_memory_working_set_bytes", "Memory in use without inactive file pages, in bytes."),
    gauge("container_memory_total_active_file_bytes", "File pages used of late, in bytes."),
    gauge("container_memory_total_inactive_file_bytes", "File pages not used of late, in bytes."),
    with(counter("container_memory_failures_total", "Page faults."), &["failure_type", "scope"]),
    counter("container_oom_events_total", "Processes killed by the kernel for want of memory."),
    with(gauge("container_fs_usage_bytes", "Bytes used by the writable layer."), DEVICE),
    with(gauge("container_fs_limit_bytes", "Bytes of the file system of the writable layer."), DEVICE),
    with(gauge("container_fs_inodes_total", "Inodes of the file system of the writable layer."), DEVICE),
    with(gauge("container_fs_inodes_free", "Free inodes of the file system of the writable layer."), DEVICE),
    with(counter("container_fs_reads_bytes_total", "Bytes read from the device."), DEVICE),
    with(counter("container_fs_reads_total", "Reads from the device."), DEVICE),
    with(counter("container_fs_writes_bytes_total", "Bytes written to the device."), DEVICE),
    with(counter("container_fs_writes_total", "Writes to the device."), DEVICE),
    with(
        counter("container_blkio_device_usage_total", "Bytes moved to or from the device, by operation."),
        &["device", "major", "minor", "operation"],
    ),
    with(gauge("container_hugetlb_usage_bytes", "Huge pages in use, in bytes."), &["pagesize"]),
    with(
        gauge("container_hugetlb_max_usage_bytes", "Highest use of huge pages so far, in bytes."),
        &["pagesize"],
    ),
    with(counter("container_network_receive_bytes_total", "Bytes received."), INTERFACE),
    with(counter("container_network_receive_packets_total", "Packets received."), INTERFACE),
    with(
        counter("container_network_receive_packets_dropped_total", "Packets dropped on receiving."),
        INTERFACE,
    ),
    with(counter("container_network_receive_errors_total", "Errors on receiving."), INTERFACE),
    with(counter("container_network_transmit_bytes_total", "Bytes sent."), INTERFACE),
    with(counter("container_network_transmit_packets_total", "Packets sent."), INTERFACE),
    with(
        counter("container_network_transmit_packets_dropped_total", "Packets dropped on sending."),
        INTERFACE,
    ),
    with(counter("container_network_transmit_errors_total", "Errors on sending."), INTERFACE),
    counter(
        "container_pressure_cpu_stalled_seconds_total",
        "Time that all tasks waited for CPU, in seconds.",
    ),
    counter(
        "container_pressure_cpu_waiting_seconds_total",
        "Time that some task waited for CPU, in seconds.",
    ),
    counter(
        "container_pressure_memory_stalled_seconds_total",
        "Time that all tasks waited for memory, in seconds.",
    ),
    counter(
        "container_pressure_memory_waiting_seconds_total",
        "Time that some task waited for memory, in seconds.",
    ),
    counter("container_pressure_io_stalled_seconds_total", "Time that all tasks waited for I/O, in seconds."),
    counter("container_pressure_io_waiting_seconds_total", "Time that some task waited for I/O, in seconds."),
    gauge("container_processes", "Processes."),
    gauge("container_threads", "Threads."),
    gauge("container_threads_max", "Most threads; 0 is no limit."),
    gauge("container_file_descriptors", "Open file descriptors."),
    gauge("container_sockets", "Open sockets."),
    with(gauge("container_ulimits_soft", "Soft limits of the first process."), &["ulimit"]),
    gauge("container_last_seen", "When the container was last looked at, in seconds since the epoch."),
    gauge("container_start_time_seconds", "When the container started, in seconds since the epoch."),
    gauge("container_spec_cpu_period", "Enforcement period, in microseconds."),
    gauge("container_spec_cpu_quota", "Quota of an enforcement period, in microseconds."),
    gauge("container_spec_cpu_shares", "CPU shares."),
    gauge("container_spec_memory_limit_bytes", "Memory limit; 0 is none."),
    gauge("container_spec_memory_reservation_limit_bytes", "Memory reservation; 0 is none."),
    gauge("container_spec_memory_swap_limit_bytes", "Limit of memory and swap together; 0 is none."),
];

/// ListMetricDescriptors.
pub(crate) fn list() -> Vec<v1::MetricDescriptor> {
    ALL.iter()
        .map(|descriptor| v1::MetricDescriptor {
            name: descriptor.name.to_owned(),
            help: descriptor.help.to_owned(),
            label_keys: LABELS.iter().chain(descriptor.labels).map(|key| (*key).to_owned()).collect(),
        })
        .collect()
}
