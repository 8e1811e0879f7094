//! What is judged: `orlop runtime`, or Debian's containerd with runc (`SUBJECT=containerd`).

use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::client::Cri;
use crate::host::Host;
use crate::images;
use crate::registry::{ADDRESS, Registry};

const READY: Duration = Duration::from_secs(60);
const STOP_PATIENCE: Duration = Duration::from_secs(20);
const CNI_PLUGINS: &str = "/usr/lib/cni";
/// The first of the machine's pod range: the bridge.
pub const GATEWAY: &str = "10.88.0.1";

/// Whose runtime it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `orlop runtime` with `orlop-cni`.
    Orlop,
    /// containerd, runc and containernetworking-plugins as Debian has them.
    Containerd,
}

impl Kind {
    /// From `SUBJECT`; ours without it.
    ///
    /// # Errors
    /// An unknown name.
    pub fn chosen() -> anyhow::Result<Self> {
        match std::env::var("SUBJECT").unwrap_or_default().as_str() {
            "" | "orlop" => Ok(Self::Orlop),
            "containerd" => Ok(Self::Containerd),
            other => anyhow::bail!("SUBJECT={other} is unknown: orlop or containerd"),
        }
    }
}

/// A running subject on a machine of its own; dropped from top to bottom.
#[derive(Debug)]
pub struct Subject {
    daemon: Option<Child>,
    _registry: Registry,
    /// Its machine.
    pub host: Host,
    /// Whose it is.
    pub kind: Kind,
    program: PathBuf,
}

impl Subject {
    /// Starts the machine, the registry and the daemon. The calling task's threads must be in the machine's network namespace.
    ///
    /// # Errors
    /// What could not be started.
    pub async fn start(kind: Kind, host: Host, program: PathBuf) -> anyhow::Result<Self> {
        for name in ["net.d", "bin", "seccomp"] {
            std::fs::create_dir(host.path(name))?;
        }
        let registry = Registry::start(&host, &images::all()?).await?;
        let mut subject = Self { daemon: None, _registry: registry, host, kind, program };
        subject.configure()?;
        subject.launch().await?;
        Ok(subject)
    }

    /// A client.
    ///
    /// # Errors
    /// Never in practice: the address is well formed.
    pub fn client(&self) -> anyhow::Result<Cri> {
        Cri::new(&format!("unix://{}", self.host.path("cri.sock").display()))
    }

    /// The daemon's process.
    pub fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }

    /// What the daemon said.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.host.path("daemon.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self) {
        let Some(mut daemon) = self.daemon.take() else { return };
        if let Ok(pid) = i32::try_from(daemon.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let end = Instant::now() + STOP_PATIENCE;
        while matches!(daemon.try_wait(), Ok(None)) {
            if Instant::now() > end {
                let _ = daemon.kill();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts the daemon and waits until it is ready.
    ///
    /// # Errors
    /// A daemon that ends, or is not ready in time; with what it said last.
    pub async fn launch(&mut self) -> anyhow::Result<()> {
        let config = self.host.path("config").to_string_lossy().into_owned();
        let program = self.program.to_string_lossy().into_owned();
        let (config_argument, words) = match self.kind {
            Kind::Orlop => (format!("--config={config}"), [program.as_str(), "runtime"]),
            Kind::Containerd => (config, [program.as_str(), "--config"]),
        };
        let words = [words[0], words[1], &config_argument];
        self.daemon = Some(self.host.start(&words, &self.host.path("daemon.log"))?);
        let cri = self.client()?;
        let end = Instant::now() + READY;
        loop {
            let ended = match &mut self.daemon {
                Some(daemon) => daemon.try_wait()?,
                None => None,
            };
            if let Some(status) = ended {
                anyhow::bail!("the daemon ended ({status}):\n{}", tail(&self.log()));
            }
            match cri.ready().await {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > end => {
                    return Err(error.context(format!("not ready:\n{}", tail(&self.log()))));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    fn configure(&self) -> anyhow::Result<()> {
        let host = &self.host;
        let ipam = host.path("ipam");
        let (config, list) = match self.kind {
            Kind::Orlop => {
                std::os::unix::fs::symlink(&self.program, host.path("bin/orlop-cni"))?;
                let config = json!({
                    "listen": format!("unix://{}", host.path("cri.sock").display()),
                    "root": host.path("root"),
                    "state": "/run/state",
                    "cniConfDir": host.path("net.d"),
                    "cniBinDirs": [host.path("bin")],
                    "seccompProfileRoot": host.path("seccomp"),
                });
                let list = json!({"cniVersion": "1.0.0", "name": "suite", "plugins": [{
                    "type": "orlop-cni", "bridge": "cni0", "subnets": ["10.88.0.0/16"], "ipam": {"dataDir": ipam},
                    "capabilities": {"portMappings": true},
                }]});
                (config.to_string(), list)
            }
            Kind::Containerd => {
                let list = json!({"cniVersion": "0.4.0", "name": "suite", "plugins": [
                    {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true, "ipam": {
                        "type": "host-local", "dataDir": ipam,
                        "ranges": [[{"subnet": "10.88.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}],
                    }},
                    {"type": "portmap", "capabilities": {"portMappings": true}},
                ]});
                (containerd_config(host), list)
            }
        };
        std::fs::write(host.path("config"), config)?;
        std::fs::write(host.path("net.d/10-suite.conflist"), list.to_string())?;
        Ok(())
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        self.stop();
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

/// What this needs that is not containerd's default: its own directories, and no `oom_score_adj` below zero where
/// CAP_SYS_RESOURCE is missing.
fn containerd_config(host: &Host) -> String {
    format!(
        r#"version = 2
root = "{root}"
state = "/run/containerd-state"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{ADDRESS}/pause:latest"
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
        root = host.path("root").display(),
        socket = host.path("cri.sock").display(),
        net = host.path("net.d").display(),
    )
}
