//! Two runtimes driven by CRI alone, each on a machine of its own with the same CNI plugins: containerd with runc, and
//! `orlop runtime`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use orlop_tests::{Machine, image, orlop_binary, run};
use serde_json::json;

use crate::cgroup::TestCgroup;
use crate::cri::{Cri, IMAGE, PodOrder};
use crate::daemon::Daemon;

const READY: Duration = Duration::from_secs(30);
/// Where Debian's containernetworking-plugins are.
pub(crate) const CNI_PLUGINS: &str = "/usr/lib/cni";
/// containerd's infra container: busybox sleeping under this name.
pub(crate) const PAUSE_IMAGE: &str = "docker.io/library/pause:latest";

/// A running runtime; dropped from top to bottom.
#[derive(Debug)]
pub(crate) struct Peer {
    daemon: Daemon,
    cgroup: TestCgroup,
    /// Its pods, by CRI.
    pub cri: Cri,
    log: PathBuf,
    directory: tempfile::TempDir,
    machine: Machine,
}

impl Peer {
    /// Debian's containerd with runc.
    pub(crate) async fn containerd() -> anyhow::Result<Self> {
        let directory = prepare("containerd")?;
        let path = directory.path();
        let socket = path.join("cri.sock");
        std::fs::write(path.join("config.toml"), containerd_config(path, &socket))?;
        let config = path.join("config.toml").to_string_lossy().into_owned();
        let mut peer = Self::start(directory, "containerd", &["containerd", "--config", &config])?;
        peer.wait_ready().await?;
        for archive in [image::busybox(), image::pause()] {
            let mut import = peer.machine.command("ctr");
            import
                .arg("--address")
                .arg(&socket)
                .args(["--namespace", "k8s.io", "images", "import"])
                .arg(archive);
            run(&mut import);
        }
        peer.wait_images(&[IMAGE, PAUSE_IMAGE]).await?;
        Ok(peer)
    }

    /// `orlop runtime` without kubelet and API server.
    pub(crate) async fn orlop() -> anyhow::Result<Self> {
        let directory = prepare("runtime")?;
        let path = directory.path();
        // Laid out as a node of a cluster: `orlop image` then finds it.
        let (data, node) = (path.join("data"), path.join("data/nodes/alone"));
        std::fs::create_dir_all(&node)?;
        let config = json!({
            "listen": format!("unix://{}", path.join("cri.sock").display()),
            "root": node.join("runtime"),
            "state": "/run/state",
            "cniConfDir": path.join("net.d"),
            "cniBinDirs": [CNI_PLUGINS],
        });
        let file = node.join("runtime.yaml");
        std::fs::write(&file, config.to_string())?;
        let binary = orlop_binary().to_string_lossy().into_owned();
        let argument = format!("--config={}", file.display());
        let mut peer = Self::start(directory, "runtime", &[&binary, "runtime", &argument])?;
        peer.wait_ready().await?;
        let mut import = peer.machine.command(&binary);
        run(import.arg("image").arg("--data-dir").arg(data).arg("import").arg(image::busybox()));
        peer.wait_images(&[IMAGE]).await?;
        Ok(peer)
    }

    fn start(directory: tempfile::TempDir, label: &str, words: &[&str]) -> anyhow::Result<Self> {
        let (machine, cgroup) = (Machine::new(), TestCgroup::new(label)?);
        let log = directory.path().join("daemon.log");
        let daemon = Daemon::start_isolated(&machine, &cgroup.daemon(), words, &log)?;
        cgroup.account(daemon.pid())?;
        let socket = directory.path().join("cri.sock");
        let cri = Cri::new(&format!("unix://{}", socket.display()), directory.path().join("logs"))?;
        Ok(Self { daemon, cgroup, cri, log, directory, machine })
    }

    async fn wait_ready(&mut self) -> anyhow::Result<()> {
        let end = Instant::now() + READY;
        loop {
            self.daemon.ensure_runs(&self.log)?;
            match self.cri.ready().await {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > end => return Err(error).context("the runtime is not ready"),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn wait_images(&self, images: &[&str]) -> anyhow::Result<()> {
        let end = Instant::now() + READY;
        for image in images {
            while let Err(error) = self.cri.has_image(image).await {
                anyhow::ensure!(Instant::now() < end, "{image}: {error:#}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// `count` pods with names that begin with `name`.
    pub(crate) fn orders(&self, name: &str, count: usize) -> Vec<PodOrder> {
        let names = (0..count).map(|number| format!("{name}-{number}"));
        names.map(|name| PodOrder { cgroup: self.cgroup.pod(&name), name, host_network: false }).collect()
    }

    /// The daemon's process.
    pub(crate) fn daemon_pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// CPU time of the daemon, its helpers, shims and containers since the start.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        self.cgroup.cpu()
    }

    /// What a pod costs beside its own containers: shims, and the infra container where there is one.
    pub(crate) fn pod_overhead_pids(&self) -> anyhow::Result<Vec<u32>> {
        let all = crate::memory::processes(|line| !line.is_empty() && !line.starts_with("sleep 1000"))?;
        let mine = self.cgroup.pids();
        Ok(all.into_iter().filter(|pid| mine.contains(pid) && *pid != self.daemon_pid()).collect())
    }

    /// Its directory, to see afterwards that it is gone.
    pub(crate) fn directory(&self) -> PathBuf {
        self.directory.path().to_owned()
    }
}

/// A directory with the network configuration that both runtimes get.
fn prepare(label: &str) -> anyhow::Result<tempfile::TempDir> {
    let directory = tempfile::Builder::new().prefix(&format!("orlop-perf-{label}-")).tempdir()?;
    let path = directory.path();
    std::fs::create_dir(path.join("net.d"))?;
    let list = json!({
        "cniVersion": "0.4.0",
        "name": "perf",
        "plugins": [{
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "ipam": {
                "type": "host-local",
                "dataDir": path.join("ipam"),
                "ranges": [[{"subnet": "10.88.0.0/16"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    });
    std::fs::write(path.join("net.d/10-perf.conflist"), list.to_string())?;
    Ok(directory)
}

/// What this needs that is not containerd's default: its own directories, and no `oom_score_adj` below zero where
/// CAP_SYS_RESOURCE is missing.
fn containerd_config(path: &Path, socket: &Path) -> String {
    format!(
        r#"version = 2
root = "{root}"
state = "/run/containerd-state"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_IMAGE}"
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{CNI_PLUGINS}"
conf_dir = "{net}"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"#,
        root = path.join("root").display(),
        socket = socket.display(),
        net = path.join("net.d").display(),
    )
}
