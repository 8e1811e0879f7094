//! Resource use of containers and pods.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use orlop_cri::v1;
use orlop_shim::protocol::Phase;

use crate::error::CriError;
use crate::machine;
use crate::model::{Container, Sandbox, selects};
use crate::runtime::Runtime;
use crate::usage::{self, Pressure, PressureLine, Usage};

/// Counting a writable layer's files walks all of them.
const DISK_USAGE_AGE: Duration = Duration::from_secs(30);
/// Groups looked at at once.
const CONCURRENCY: usize = 16;
/// A rate over less time would show the clock's grain.
const RATE_SPAN_NANOS: i64 = 1_000_000_000;

/// Disk use of writable layers, with the time it was counted.
#[derive(Default)]
pub(crate) struct DiskUsage {
    counted: Mutex<HashMap<String, (Instant, orlop_images::Usage)>>,
}

impl DiskUsage {
    /// A container is gone.
    pub(crate) fn forget(&self, id: &str) {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    fn recent(&self, id: &str) -> Option<orlop_images::Usage> {
        let counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        counted.get(id).filter(|(when, _)| when.elapsed() < DISK_USAGE_AGE).map(|(_, usage)| *usage)
    }

    fn keep(&self, id: &str, usage: orlop_images::Usage) {
        self.counted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id.to_owned(), (Instant::now(), usage));
    }
}

/// Processor use over time: what a container or pod had used when it was last looked at.
#[derive(Default)]
pub(crate) struct Rates {
    seen: Mutex<HashMap<String, Rate>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    timestamp: i64,
    cpu_nanos: u64,
    nano_cores: Option<u64>,
}

impl Rates {
    /// A container or pod is gone.
    pub(crate) fn forget(&self, id: &str) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// Billionths of a processor used since the last look that was long enough ago; none at the first one.
    fn nano_cores(&self, id: &str, timestamp: i64, cpu_nanos: u64) -> Option<u64> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let rate = seen.entry(id.to_owned()).or_insert(Rate { timestamp, cpu_nanos, nano_cores: None });
        let elapsed = timestamp.saturating_sub(rate.timestamp);
        if elapsed >= RATE_SPAN_NANOS || cpu_nanos < rate.cpu_nanos {
            let used = u128::from(cpu_nanos.saturating_sub(rate.cpu_nanos)) * 1_000_000_000;
            let nano_cores = u64::try_from(used / u128::from(elapsed.max(1).unsigned_abs())).ok();
            *rate = Rate { timestamp, cpu_nanos, nano_cores };
        }
        rate.nano_cores
    }
}

pub(crate) fn value(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

impl Runtime {
    /// ContainerStats.
    pub(crate) async fn container_stats(self: &Arc<Self>, id: &str) -> Result<v1::ContainerStats, CriError> {
        let container = self.container(id)?;
        Ok(self.measure(container).await)
    }

    /// ListContainerStats.
    pub(crate) async fn list_container_stats(
        self: &Arc<Self>,
        filter: Option<v1::ContainerStatsFilter>,
    ) -> Vec<v1::ContainerStats> {
        let filter = filter.unwrap_or_default();
        let chosen: Vec<Container> = self
            .model()
            .containers
            .values()
            .filter(|container| {
                (filter.id.is_empty() || container.id.starts_with(&filter.id))
                    && (filter.pod_sandbox_id.is_empty()
                        || container.sandbox_id.starts_with(&filter.pod_sandbox_id))
                    && selects(&filter.label_selector, &container.config.labels)
                    && container.phase == Phase::Running
            })
            .cloned()
            .collect();
        futures::stream::iter(chosen)
            .map(|container| self.measure(container))
            .buffered(CONCURRENCY)
            .collect()
            .await
    }

    async fn measure(self: &Arc<Self>, container: Container) -> v1::ContainerStats {
        let mut stats = v1::ContainerStats { attributes: Some(container.attributes()), ..Default::default() };
        if container.phase == Phase::Running
            && let Some(used) = self.used(&container.cgroup).await
        {
            let limit = u64::try_from(container.resources.memory_limit_in_bytes).unwrap_or(0);
            stats.cpu = Some(self.cpu_usage(&container.id, &used));
            stats.memory = Some(memory_usage(&used, limit));
            stats.swap = swap_usage(&used);
            stats.io = io_usage(&used);
        }
        stats.writable_layer = self.disk_usage(&container.id).await;
        stats
    }

    /// What a control group has used, read where blocking is allowed.
    pub(crate) async fn used(self: &Arc<Self>, cgroup: &str) -> Option<Usage> {
        let (runtime, cgroup) = (self.clone(), cgroup.to_owned());
        tokio::task::spawn_blocking(move || usage::read(&runtime.hierarchies, &cgroup)).await.ok()?
    }

    fn cpu_usage(&self, id: &str, used: &Usage) -> v1::CpuUsage {
        let nano_cores = used.cpu.total.and_then(|total| self.rates.nano_cores(id, used.timestamp, total));
        v1::CpuUsage {
            timestamp: used.timestamp,
            usage_core_nano_seconds: used.cpu.total.and_then(value),
            usage_nano_cores: nano_cores.and_then(value),
            psi: used.cpu.pressure.map(psi),
        }
    }

    /// Disk use of a container's writable layer, counted at most every [`DISK_USAGE_AGE`].
    pub(crate) async fn disk_usage(self: &Arc<Self>, id: &str) -> Option<v1::FilesystemUsage> {
        let usage = match self.disk.recent(id) {
            Some(usage) => usage,
            None => {
                let (images, key) = (self.images.clone(), id.to_owned());
                let counted =
                    tokio::task::spawn_blocking(move || images.rootfs_usage(&key)).await.ok()?.ok()?;
                // A container that was removed meanwhile is not remembered again.
                if self.container(id).is_ok() {
                    self.disk.keep(id, counted);
                }
                counted
            }
        };
        Some(self.file_system(usage))
    }

    /// Use of the file system that holds images and containers.
    pub(crate) fn file_system(&self, usage: orlop_images::Usage) -> v1::FilesystemUsage {
        v1::FilesystemUsage {
            timestamp: machine::now(),
            fs_id: Some(v1::FilesystemIdentifier {
                mountpoint: self.config.root.to_string_lossy().into_owned(),
            }),
            used_bytes: value(usage.bytes),
            inodes_used: value(usage.inodes),
        }
    }

    /// PodSandboxStats.
    pub(crate) async fn pod_sandbox_stats(
        self: &Arc<Self>,
        id: &str,
    ) -> Result<v1::PodSandboxStats, CriError> {
        let sandbox = self.sandbox(id)?;
        Ok(self.measure_sandbox(sandbox).await)
    }

    /// ListPodSandboxStats.
    pub(crate) async fn list_pod_sandbox_stats(
        self: &Arc<Self>,
        filter: Option<v1::PodSandboxStatsFilter>,
    ) -> Vec<v1::PodSandboxStats> {
        let filter = filter.unwrap_or_default();
        let chosen: Vec<Sandbox> = self
            .model()
            .sandboxes
            .values()
            .filter(|sandbox| {
                (filter.id.is_empty() || sandbox.id.starts_with(&filter.id))
                    && selects(&filter.label_selector, &sandbox.config.labels)
                    && sandbox.is_ready()
            })
            .cloned()
            .collect();
        futures::stream::iter(chosen)
            .map(|sandbox| self.measure_sandbox(sandbox))
            .buffered(CONCURRENCY)
            .collect()
            .await
    }

    async fn measure_sandbox(self: &Arc<Self>, sandbox: Sandbox) -> v1::PodSandboxStats {
        let filter = v1::ContainerStatsFilter { pod_sandbox_id: sandbox.id.clone(), ..Default::default() };
        let containers = self.list_container_stats(Some(filter)).await;
        let own = match sandbox.own_cgroup() {
            Some(cgroup) => self.used(&cgroup).await,
            None => None,
        };
        let timestamp = machine::now();
        let mut linux = match own {
            Some(used) => v1::LinuxPodSandboxStats {
                cpu: Some(self.cpu_usage(&sandbox.id, &used)),
                memory: Some(memory_usage(&used, 0)),
                io: io_usage(&used),
                ..Default::default()
            },
            None => sum(&containers, timestamp),
        };
        linux.network = network_usage(&sandbox, timestamp);
        linux.process =
            Some(v1::ProcessUsage { timestamp, process_count: value(self.process_count(&sandbox).await) });
        linux.containers = containers;
        v1::PodSandboxStats { attributes: Some(sandbox.attributes()), linux: Some(linux), windows: None }
    }

    async fn process_count(self: &Arc<Self>, sandbox: &Sandbox) -> u64 {
        let cgroups: Vec<String> = match sandbox.own_cgroup() {
            Some(cgroup) => vec![cgroup],
            None => self.model().containers_of(&sandbox.id).map(|one| one.cgroup.clone()).collect(),
        };
        let runtime = self.clone();
        let counted = tokio::task::spawn_blocking(move || {
            cgroups.iter().map(|cgroup| usage::processes(&runtime.hierarchies, cgroup).len() as u64).sum()
        });
        counted.await.unwrap_or_default()
    }
}

/// Of a pod without a control group of its own: what its containers use.
fn sum(containers: &[v1::ContainerStats], timestamp: i64) -> v1::LinuxPodSandboxStats {
    let sum = |get: fn(&v1::ContainerStats) -> Option<u64>| value(containers.iter().filter_map(get).sum());
    v1::LinuxPodSandboxStats {
        cpu: Some(v1::CpuUsage {
            timestamp,
            usage_core_nano_seconds: sum(|stats| {
                stats.cpu.as_ref()?.usage_core_nano_seconds.map(|value| value.value)
            }),
            usage_nano_cores: sum(|stats| stats.cpu.as_ref()?.usage_nano_cores.map(|value| value.value)),
            psi: None,
        }),
        memory: Some(v1::MemoryUsage {
            timestamp,
            working_set_bytes: sum(|stats| stats.memory.as_ref()?.working_set_bytes.map(|value| value.value)),
            usage_bytes: sum(|stats| stats.memory.as_ref()?.usage_bytes.map(|value| value.value)),
            rss_bytes: sum(|stats| stats.memory.as_ref()?.rss_bytes.map(|value| value.value)),
            page_faults: sum(|stats| stats.memory.as_ref()?.page_faults.map(|value| value.value)),
            major_page_faults: sum(|stats| stats.memory.as_ref()?.major_page_faults.map(|value| value.value)),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn memory_usage(used: &Usage, limit: u64) -> v1::MemoryUsage {
    let memory = &used.memory;
    v1::MemoryUsage {
        timestamp: used.timestamp,
        working_set_bytes: value(memory.working_set),
        available_bytes: (limit > 0).then(|| limit.saturating_sub(memory.working_set)).and_then(value),
        usage_bytes: memory.usage.and_then(value),
        rss_bytes: value(memory.rss),
        page_faults: value(memory.page_faults),
        major_page_faults: value(memory.major_page_faults),
        psi: memory.pressure.map(psi),
    }
}

fn swap_usage(used: &Usage) -> Option<v1::SwapUsage> {
    let swap = used.memory.swap?;
    Some(v1::SwapUsage {
        timestamp: used.timestamp,
        swap_available_bytes: used.memory.swap_limit.and_then(|limit| value(limit.saturating_sub(swap))),
        swap_usage_bytes: value(swap),
    })
}

fn io_usage(used: &Usage) -> Option<v1::IoUsage> {
    used.io_pressure.map(|pressure| v1::IoUsage { timestamp: used.timestamp, psi: Some(psi(pressure)) })
}

fn psi(pressure: Pressure) -> v1::PsiStats {
    let data = |line: PressureLine| v1::PsiData {
        total: line.total,
        avg10: line.average_10,
        avg60: line.average_60,
        avg300: line.average_300,
    };
    v1::PsiStats { full: Some(data(pressure.full)), some: Some(data(pressure.some)) }
}

/// The shim is in the pod's network namespace, so its view of `/proc/net/dev` is the pod's.
fn network_usage(sandbox: &Sandbox, timestamp: i64) -> Option<v1::NetworkUsage> {
    if sandbox.host_network() {
        return None;
    }
    let text = std::fs::read_to_string(format!("/proc/{}/net/dev", sandbox.shim?.pid)).ok()?;
    let interfaces: Vec<v1::NetworkInterfaceUsage> = parse_net_dev(&text)
        .into_iter()
        .map(|interface| v1::NetworkInterfaceUsage {
            name: interface.name,
            rx_bytes: value(interface.received.bytes),
            rx_errors: value(interface.received.errors),
            tx_bytes: value(interface.sent.bytes),
            tx_errors: value(interface.sent.errors),
        })
        .collect();
    let (default, others): (Vec<_>, Vec<_>) =
        interfaces.into_iter().partition(|interface| interface.name == crate::cni::plan::INTERFACE);
    Some(v1::NetworkUsage { timestamp, default_interface: default.into_iter().next(), interfaces: others })
}

/// One direction of an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// Bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Packets with errors.
    pub errors: u64,
    /// Packets that were dropped.
    pub dropped: u64,
}

/// An interface of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interface {
    /// Name in the pod.
    pub name: String,
    /// To the pod.
    pub received: Traffic,
    /// From the pod.
    pub sent: Traffic,
}

/// `/proc/net/dev`, without the loopback.
pub(crate) fn parse_net_dev(text: &str) -> Vec<Interface> {
    text.lines()
        .filter_map(|line| {
            let (name, counters) = line.split_once(':')?;
            let counters: Vec<u64> =
                counters.split_ascii_whitespace().map_while(|field| field.parse().ok()).collect();
            // Eight columns of receiving, then eight of sending: bytes, packets, errs, drop, …
            let traffic = |at: usize| match counters.get(at..at + 4)? {
                [bytes, packets, errors, dropped] => {
                    Some(Traffic { bytes: *bytes, packets: *packets, errors: *errors, dropped: *dropped })
                }
                _ => None,
            };
            Some(Interface { name: name.trim().to_owned(), received: traffic(0)?, sent: traffic(8)? })
        })
        .filter(|interface| interface.name != "lo")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_counters_are_read() {
        let text = "Inter-|   Receive |  Transmit\n face |bytes packets errs\n    lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n  eth0: 100 2 3 4 0 0 0 0 200 10 11 12 0 0 0 0\n";
        let received = Traffic { bytes: 100, packets: 2, errors: 3, dropped: 4 };
        let sent = Traffic { bytes: 200, packets: 10, errors: 11, dropped: 12 };
        assert_eq!(parse_net_dev(text), [Interface { name: "eth0".into(), received, sent }]);
    }

    #[test]
    fn a_rate_needs_a_span() {
        let rates = Rates::default();
        let second = 1_000_000_000;
        for (seconds, used, wanted) in [
            (10, 5, None),
            (10, 6, None),
            (12, 6, Some(500_000_000)),
            (12, 7, Some(500_000_000)),
            (13, 1, Some(0)),
        ] {
            let found = rates.nano_cores("c", seconds * second, used * second.unsigned_abs());
            assert_eq!(found, wanted, "{seconds} {used}");
        }
        rates.forget("c");
        assert_eq!(rates.nano_cores("c", 20 * second, 9), None);
    }

    #[test]
    fn what_is_not_accounted_is_absent() {
        let used = Usage { timestamp: 5, ..Usage::default() };
        assert!(swap_usage(&used).is_none() && io_usage(&used).is_none());
        let memory = memory_usage(&used, 100);
        assert!(memory.usage_bytes.is_none() && memory.psi.is_none());
        assert_eq!(memory.available_bytes, value(100));
    }
}
