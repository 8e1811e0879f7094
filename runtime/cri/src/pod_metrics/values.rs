//! What was measured, as samples of the metrics in [`super::descriptors`]. Pure, but for the names of devices.

use orlop_cri::v1;

use super::descriptors::{ALL, Descriptor};
use crate::machine;
use crate::model::{Container, Sandbox};
use crate::stats::{Interface, value};
use crate::usage::{self, Pressure, Usage};

const NANOS: u64 = 1_000_000_000;
/// What the kernel takes where nothing was asked for (cgroup-v1/cpu, sched-bwc.rst).
const DEFAULT_PERIOD_MICROS: i64 = 100_000;
const DEFAULT_SHARES: i64 = 1024;

/// Processes of a container.
pub(super) struct Processes {
    pub(super) count: u64,
    pub(super) descriptors: u64,
    pub(super) sockets: u64,
    /// Soft limit of the first process; `None` is unlimited or unknown.
    pub(super) open_files: Option<u64>,
}

/// The file system of a container's writable layer.
pub(super) struct Disk {
    pub(super) used_bytes: u64,
    pub(super) total_bytes: u64,
    pub(super) inodes: u64,
    pub(super) inodes_free: u64,
}

/// Samples of one pod or container.
pub(super) struct Samples {
    labels: Vec<String>,
    timestamp: i64,
    metrics: Vec<v1::Metric>,
}

impl Samples {
    /// Of a container, or of the pod as a whole.
    pub(super) fn new(sandbox: &Sandbox, container: Option<&Container>) -> Self {
        let metadata = sandbox.config.metadata.clone().unwrap_or_default();
        let (name, id, image) = match container {
            Some(container) => {
                let name = container.config.metadata.as_ref().map(|metadata| metadata.name.clone());
                (name.unwrap_or_default(), container.id.clone(), container.image_name.clone())
            }
            None => (String::new(), sandbox.id.clone(), String::new()),
        };
        let labels = vec![metadata.name, metadata.namespace, name, id, image];
        Self { labels, timestamp: machine::now(), metrics: Vec::new() }
    }

    pub(super) fn done(self) -> Vec<v1::Metric> {
        self.metrics
    }

    fn add(&mut self, name: &str, measured: u64) {
        self.add_labelled(name, &[], measured);
    }

    fn add_labelled(&mut self, name: &str, labels: &[&str], measured: u64) {
        let descriptor: &Descriptor =
            ALL.iter().find(|known| known.name == name).expect("every sample has a descriptor");
        debug_assert_eq!(descriptor.labels.len(), labels.len(), "{name}");
        let labels = labels.iter().map(|label| (*label).to_owned());
        self.metrics.push(v1::Metric {
            name: name.to_owned(),
            timestamp: self.timestamp,
            metric_type: descriptor.kind as i32,
            label_values: self.labels.iter().cloned().chain(labels).collect(),
            value: value(measured),
        });
    }

    pub(super) fn add_usage(&mut self, used: &Usage) {
        self.timestamp = used.timestamp;
        let cpu = &used.cpu;
        if let Some(total) = cpu.total {
            self.add("container_cpu_usage_seconds_total", total / NANOS);
            self.add("container_cpu_user_seconds_total", cpu.user / NANOS);
            self.add("container_cpu_system_seconds_total", cpu.system / NANOS);
        }
        self.add("container_cpu_cfs_periods_total", cpu.periods);
        self.add("container_cpu_cfs_throttled_periods_total", cpu.throttled_periods);
        self.add("container_cpu_cfs_throttled_seconds_total", cpu.throttled / NANOS);
        self.add_memory(used);
        for (resource, pressure) in
            [("cpu", cpu.pressure), ("memory", used.memory.pressure), ("io", used.io_pressure)]
        {
            if let Some(Pressure { some, full }) = pressure {
                self.add(&format!("container_pressure_{resource}_waiting_seconds_total"), some.total / NANOS);
                self.add(&format!("container_pressure_{resource}_stalled_seconds_total"), full.total / NANOS);
            }
        }
        if let Some(tasks) = used.tasks {
            self.add("container_threads", tasks);
            self.add("container_threads_max", used.tasks_limit.unwrap_or_default());
        }
        self.add_devices(used);
        for pages in &used.hugepages {
            self.add_labelled("container_hugetlb_usage_bytes", &[&pages.size], pages.usage);
            self.add_labelled("container_hugetlb_max_usage_bytes", &[&pages.size], pages.peak);
        }
    }

    fn add_memory(&mut self, used: &Usage) {
        let memory = &used.memory;
        let Some(usage) = memory.usage else { return };
        for (name, measured) in [
            ("container_memory_usage_bytes", usage),
            ("container_memory_working_set_bytes", memory.working_set),
            ("container_memory_cache", memory.cache),
            ("container_memory_rss", memory.rss),
            ("container_memory_kernel_usage", memory.kernel),
            ("container_memory_mapped_file", memory.mapped_file),
            ("container_memory_swap", memory.swap.unwrap_or_default()),
            ("container_memory_failcnt", memory.failures),
            ("container_memory_max_usage_bytes", memory.peak),
            ("container_memory_total_active_file_bytes", memory.active_file),
            ("container_memory_total_inactive_file_bytes", memory.inactive_file),
            ("container_oom_events_total", memory.oom_kills),
        ] {
            self.add(name, measured);
        }
        let faults = "container_memory_failures_total";
        for scope in ["container", "hierarchy"] {
            self.add_labelled(faults, &["pgfault", scope], memory.page_faults);
            self.add_labelled(faults, &["pgmajfault", scope], memory.major_page_faults);
        }
    }

    fn add_devices(&mut self, used: &Usage) {
        for device in &used.devices {
            let name = usage::device_name(device);
            self.add_labelled("container_fs_reads_bytes_total", &[&name], device.read_bytes);
            self.add_labelled("container_fs_reads_total", &[&name], device.reads);
            self.add_labelled("container_fs_writes_bytes_total", &[&name], device.write_bytes);
            self.add_labelled("container_fs_writes_total", &[&name], device.writes);
            let (major, minor) = (device.major.to_string(), device.minor.to_string());
            for (operation, bytes) in [("Read", device.read_bytes), ("Write", device.write_bytes)] {
                let labels = [name.as_str(), &major, &minor, operation];
                self.add_labelled("container_blkio_device_usage_total", &labels, bytes);
            }
        }
    }

    pub(super) fn add_processes(&mut self, processes: &Processes) {
        self.add("container_processes", processes.count);
        self.add("container_file_descriptors", processes.descriptors);
        self.add("container_sockets", processes.sockets);
        if let Some(limit) = processes.open_files {
            self.add_labelled("container_ulimits_soft", &["max_open_files"], limit);
        }
    }

    pub(super) fn add_disk(&mut self, disk: &Disk) {
        for (name, measured) in [
            ("container_fs_usage_bytes", disk.used_bytes),
            ("container_fs_limit_bytes", disk.total_bytes),
            ("container_fs_inodes_total", disk.inodes),
            ("container_fs_inodes_free", disk.inodes_free),
        ] {
            self.add_labelled(name, &["/"], measured);
        }
    }

    pub(super) fn add_network(&mut self, interfaces: &[Interface]) {
        for interface in interfaces {
            for (direction, traffic) in [("receive", interface.received), ("transmit", interface.sent)] {
                for (what, measured) in [
                    ("bytes", traffic.bytes),
                    ("packets", traffic.packets),
                    ("packets_dropped", traffic.dropped),
                    ("errors", traffic.errors),
                ] {
                    let name = format!("container_network_{direction}_{what}_total");
                    self.add_labelled(&name, &[&interface.name], measured);
                }
            }
        }
    }

    /// What was asked for, and when it began.
    pub(super) fn add_wishes(&mut self, container: &Container) {
        let seconds = |nanos: i64| u64::try_from(nanos).unwrap_or_default() / NANOS;
        self.add("container_last_seen", seconds(self.timestamp));
        self.add("container_start_time_seconds", seconds(container.started_at));
        let wanted = &container.resources;
        let or = |given: i64, default: i64| {
            u64::try_from(if given > 0 { given } else { default }).unwrap_or_default()
        };
        self.add("container_spec_cpu_period", or(wanted.cpu_period, DEFAULT_PERIOD_MICROS));
        if wanted.cpu_quota > 0 {
            self.add("container_spec_cpu_quota", or(wanted.cpu_quota, 0));
        }
        self.add("container_spec_cpu_shares", or(wanted.cpu_shares, DEFAULT_SHARES));
        self.add("container_spec_memory_limit_bytes", or(wanted.memory_limit_in_bytes, 0));
        let reserved = wanted.unified.get("memory.low").and_then(|text| text.parse().ok());
        self.add("container_spec_memory_reservation_limit_bytes", reserved.unwrap_or_default());
        self.add("container_spec_memory_swap_limit_bytes", or(wanted.memory_swap_limit_in_bytes, 0));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::descriptors;
    use super::*;
    use crate::model::tests::{container, sandbox};
    use crate::stats::Traffic;
    use crate::usage::{DeviceIo, Hugepages};

    #[test]
    fn every_descriptor_has_samples_with_its_labels() {
        let pressure = Some(Pressure::default());
        let mut used = Usage {
            timestamp: 7 * 1_000_000_000,
            tasks: Some(3),
            devices: vec![DeviceIo { major: 4095, minor: 1, read_bytes: 5, ..DeviceIo::default() }],
            io_pressure: pressure,
            hugepages: vec![Hugepages { size: "2MB".into(), usage: 1, peak: 2 }],
            ..Usage::default()
        };
        used.cpu.total = Some(2_500_000_000);
        used.cpu.pressure = pressure;
        used.memory.usage = Some(1);
        used.memory.pressure = pressure;
        let mut one = container("c", "s");
        one.resources.cpu_quota = 5;
        let mut samples = Samples::new(&sandbox("s"), Some(&one));
        samples.add_usage(&used);
        samples.add_wishes(&one);
        samples.add_processes(&Processes { count: 1, descriptors: 2, sockets: 3, open_files: Some(4) });
        samples.add_disk(&Disk { used_bytes: 1, total_bytes: 2, inodes: 3, inodes_free: 4 });
        let interface =
            Interface { name: "eth0".into(), received: Traffic::default(), sent: Traffic::default() };
        samples.add_network(&[interface]);
        let metrics = samples.done();
        let known = descriptors();
        for metric in &metrics {
            let descriptor = known.iter().find(|descriptor| descriptor.name == metric.name).unwrap();
            assert_eq!(metric.label_values.len(), descriptor.label_keys.len(), "{}", metric.name);
            assert!(!descriptor.help.is_empty());
        }
        let sampled: BTreeSet<&str> = metrics.iter().map(|metric| metric.name.as_str()).collect();
        let listed: BTreeSet<&str> = known.iter().map(|descriptor| descriptor.name.as_str()).collect();
        assert_eq!(sampled, listed);
        assert_eq!(listed.len(), known.len());
        let find = |name: &str| metrics.iter().find(|metric| metric.name == name).unwrap();
        let cpu = find("container_cpu_usage_seconds_total");
        assert_eq!(cpu.value.unwrap().value, 2);
        assert_eq!(cpu.label_values, ["pod-s", "default", "c", "c", "docker.io/library/busybox:latest"]);
        assert_eq!(
            find("container_blkio_device_usage_total").label_values[5..],
            ["4095:1", "4095", "1", "Read"]
        );
    }
}
