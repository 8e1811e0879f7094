//! Metrics of pods and containers for a kubelet that takes them from the runtime (`PodAndContainerStatsFromCRI`).

mod descriptors;
mod values;

use std::sync::Arc;

use futures::StreamExt as _;
use orlop_cri::v1;
use orlop_shim::protocol::Phase;

use crate::model::{Container, Sandbox};
use crate::runtime::Runtime;
use crate::stats::{Interface, parse_net_dev};
use crate::usage;

pub(crate) use descriptors::list as descriptors;
use values::{Disk, Processes, Samples};

/// Pods looked at at once.
const CONCURRENCY: usize = 16;

impl Runtime {
    /// ListPodSandboxMetrics: of every ready pod.
    pub(crate) async fn list_pod_metrics(self: &Arc<Self>) -> Vec<v1::PodSandboxMetrics> {
        let ready: Vec<Sandbox> =
            self.model().sandboxes.values().filter(|sandbox| sandbox.is_ready()).cloned().collect();
        let measured = futures::stream::iter(ready).map(|sandbox| self.pod_metrics(sandbox));
        measured.buffered(CONCURRENCY).collect().await
    }

    async fn pod_metrics(self: &Arc<Self>, sandbox: Sandbox) -> v1::PodSandboxMetrics {
        let mut samples = Samples::new(&sandbox, None);
        if let Some(cgroup) = sandbox.own_cgroup()
            && let Some(used) = self.used(&cgroup).await
        {
            samples.add_usage(&used);
        }
        samples.add_network(&network(&sandbox));
        let running: Vec<Container> = {
            let model = self.model();
            let containers = model.containers_of(&sandbox.id);
            containers.filter(|container| container.phase == Phase::Running).cloned().collect()
        };
        let mut container_metrics = Vec::with_capacity(running.len());
        for container in running {
            container_metrics.push(self.container_metrics(&sandbox, container).await);
        }
        v1::PodSandboxMetrics {
            pod_sandbox_id: sandbox.id.clone(),
            metrics: samples.done(),
            container_metrics,
        }
    }

    async fn container_metrics(
        self: &Arc<Self>,
        sandbox: &Sandbox,
        container: Container,
    ) -> v1::ContainerMetrics {
        let mut samples = Samples::new(sandbox, Some(&container));
        if let Some(used) = self.used(&container.cgroup).await {
            samples.add_usage(&used);
        }
        samples.add_wishes(&container);
        let used = self.disk_usage(&container.id).await.and_then(|usage| usage.used_bytes);
        let (runtime, cgroup) = (self.clone(), container.cgroup.clone());
        let looked = tokio::task::spawn_blocking(move || {
            (processes(&runtime, &cgroup), rustix::fs::statvfs(&runtime.config.root).ok())
        });
        if let Ok((processes, file_system)) = looked.await {
            samples.add_processes(&processes);
            if let Some(file_system) = file_system {
                samples.add_disk(&Disk {
                    used_bytes: used.map(|used| used.value).unwrap_or_default(),
                    total_bytes: file_system.f_blocks.saturating_mul(file_system.f_frsize),
                    inodes: file_system.f_files,
                    inodes_free: file_system.f_ffree,
                });
            }
        }
        v1::ContainerMetrics { container_id: container.id, metrics: samples.done() }
    }
}

/// The shim is in the pod's network namespace.
fn network(sandbox: &Sandbox) -> Vec<Interface> {
    let shim = sandbox.shim.filter(|_| !sandbox.host_network());
    let text = shim.and_then(|shim| std::fs::read_to_string(format!("/proc/{}/net/dev", shim.pid)).ok());
    parse_net_dev(&text.unwrap_or_default())
}

fn processes(runtime: &Runtime, cgroup: &str) -> Processes {
    let pids = usage::processes(&runtime.hierarchies, cgroup);
    let open = pids.iter().map(|pid| usage::descriptors(*pid));
    let (descriptors, sockets) = open.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    let open_files = pids.first().and_then(|pid| usage::open_file_limit(*pid));
    Processes { count: pids.len() as u64, descriptors, sockets, open_files }
}
