//! Resource use of containers and pods.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use orlop_cri::v1;
use orlop_shim::protocol::{self, Phase, Request, Response};

use crate::error::CriError;
use crate::machine;
use crate::model::{Container, Sandbox, selects};
use crate::runtime::{QUESTION_DEADLINE, Runtime};

/// Counting a writable layer's files walks all of them.
const DISK_USAGE_AGE: Duration = Duration::from_secs(30);
/// Shims asked at once.
const CONCURRENCY: usize = 16;

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

fn value(value: u64) -> Option<v1::UInt64Value> {
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
        if container.phase == Phase::Running {
            let request = Request::Stats { id: container.id.clone() };
            match self.shim(&container.sandbox_id).call(&request, QUESTION_DEADLINE).await {
                Ok(Response::Stats(used)) => fill(&mut stats, &container, &used),
                Ok(_) => {}
                Err(error) => tracing::debug!(container = container.id, %error, "no statistics"),
            }
        }
        stats.writable_layer = self.disk_usage(&container.id).await;
        stats
    }

    async fn disk_usage(self: &Arc<Self>, id: &str) -> Option<v1::FilesystemUsage> {
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
        let sum =
            |get: fn(&v1::ContainerStats) -> Option<u64>| value(containers.iter().filter_map(get).sum());
        let timestamp = machine::now();
        let linux = v1::LinuxPodSandboxStats {
            cpu: Some(v1::CpuUsage {
                timestamp,
                usage_core_nano_seconds: sum(|stats| {
                    stats.cpu.as_ref()?.usage_core_nano_seconds.map(|value| value.value)
                }),
                ..Default::default()
            }),
            memory: Some(v1::MemoryUsage {
                timestamp,
                working_set_bytes: sum(|stats| {
                    stats.memory.as_ref()?.working_set_bytes.map(|value| value.value)
                }),
                usage_bytes: sum(|stats| stats.memory.as_ref()?.usage_bytes.map(|value| value.value)),
                rss_bytes: sum(|stats| stats.memory.as_ref()?.rss_bytes.map(|value| value.value)),
                ..Default::default()
            }),
            network: network_usage(&sandbox, timestamp),
            containers,
            ..Default::default()
        };
        v1::PodSandboxStats { attributes: Some(sandbox.attributes()), linux: Some(linux), windows: None }
    }
}

fn fill(stats: &mut v1::ContainerStats, container: &Container, used: &protocol::ContainerStats) {
    let limit = u64::try_from(container.resources.memory_limit_in_bytes).unwrap_or(0);
    let available = (limit > 0).then(|| limit.saturating_sub(used.memory_working_set_bytes)).and_then(value);
    stats.cpu = Some(v1::CpuUsage {
        timestamp: used.timestamp,
        usage_core_nano_seconds: value(used.cpu_nanos),
        ..Default::default()
    });
    stats.memory = Some(v1::MemoryUsage {
        timestamp: used.timestamp,
        working_set_bytes: value(used.memory_working_set_bytes),
        available_bytes: available,
        usage_bytes: value(used.memory_bytes),
        rss_bytes: value(used.memory_rss_bytes),
        ..Default::default()
    });
}

/// The shim is in the pod's network namespace, so its view of `/proc/net/dev` is the pod's.
fn network_usage(sandbox: &Sandbox, timestamp: i64) -> Option<v1::NetworkUsage> {
    if sandbox.host_network() {
        return None;
    }
    let text = std::fs::read_to_string(format!("/proc/{}/net/dev", sandbox.shim?.pid)).ok()?;
    let interfaces = parse_net_dev(&text);
    let (default, others): (Vec<_>, Vec<_>) =
        interfaces.into_iter().partition(|interface| interface.name == crate::cni::plan::INTERFACE);
    Some(v1::NetworkUsage { timestamp, default_interface: default.into_iter().next(), interfaces: others })
}

fn parse_net_dev(text: &str) -> Vec<v1::NetworkInterfaceUsage> {
    text.lines()
        .filter_map(|line| {
            let (name, counters) = line.split_once(':')?;
            let counters: Vec<u64> =
                counters.split_ascii_whitespace().map_while(|field| field.parse().ok()).collect();
            // Eight columns of receiving, then eight of sending: bytes, packets, errs, …
            Some(v1::NetworkInterfaceUsage {
                name: name.trim().to_owned(),
                rx_bytes: value(*counters.first()?),
                rx_errors: value(*counters.get(2)?),
                tx_bytes: value(*counters.get(8)?),
                tx_errors: value(*counters.get(10)?),
            })
        })
        .filter(|interface| interface.name != "lo")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_counters_are_read() {
        let text = "Inter-|   Receive |  Transmit\n face |bytes packets errs\n    lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n  eth0: 100 2 3 0 0 0 0 0 200 10 11 0 0 0 0 0\n";
        let found = parse_net_dev(text);
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].rx_bytes, found[0].tx_bytes, found[0].tx_errors),
            (value(100), value(200), value(11))
        );
    }
}
