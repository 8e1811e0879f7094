//! `orlop node`: supervises the three daemons of one node where no service manager does.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use orlop_daemon::Settings;
use orlop_daemon::config::{self, Validate};
use serde::{Deserialize, Serialize};

use crate::supervise::{self, Process};
use crate::up::lab;

/// Arguments of every daemon.
#[derive(Clone, Debug, Args)]
pub(crate) struct DaemonArgs {
    /// The daemon's configuration file.
    #[arg(long)]
    pub(crate) config: PathBuf,
    /// The process that supervises this one; it ends when that one does.
    #[arg(long, hide = true)]
    pub(crate) supervisor: Option<i32>,
}

/// `node.yaml`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct NodeConfig {
    /// A network namespace of `/run/netns` to live in; the machine's own without one.
    pub(crate) network_namespace: Option<String>,
    /// A hostname of its own; the machine's without one.
    pub(crate) hostname: Option<String>,
    /// Directory with `runtime.yaml`, `kubelet.yaml` and `network.yaml`.
    pub(crate) directory: PathBuf,
    /// Directory for the daemons' logs.
    pub(crate) log_directory: PathBuf,
}

impl Validate for NodeConfig {
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (key, path) in [("directory", &self.directory), ("logDirectory", &self.log_directory)] {
            if !path.is_absolute() {
                problems.push(format!("{key} is {:?}: give an absolute path", path.display()));
            }
        }
        problems
    }
}

/// Runs a node until it is told to stop.
pub(crate) fn run(args: &DaemonArgs) -> anyhow::Result<()> {
    supervise::follow_supervisor(args.supervisor)?;
    let config: NodeConfig = config::load(&args.config)?;
    enter(&config)?;
    let mut settings = Settings::new("node");
    settings.worker_threads = 1;
    settings.drain_deadline = std::time::Duration::from_secs(30);
    orlop_daemon::run(settings, |frame| async move {
        for name in ["runtime", "network", "kubelet"] {
            let process = process(name, &config.directory, &config.log_directory);
            frame.spawn(format!("supervise-{name}"), supervise::keep(process, frame.drain()));
        }
        Ok(())
    })
}

/// Takes on the node's network namespace and hostname. The process is still single-threaded.
fn enter(config: &NodeConfig) -> anyhow::Result<()> {
    if let Some(name) = &config.network_namespace {
        lab::enter(name)?;
    }
    if let Some(hostname) = &config.hostname {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUTS)
            .context("failed to make a UTS namespace")?;
        rustix::system::sethostname(hostname.as_bytes()).context("failed to set the hostname")?;
    }
    Ok(())
}

fn process(name: &str, directory: &Path, logs: &Path) -> Process {
    Process {
        name: name.to_owned(),
        arguments: vec![
            name.to_owned(),
            format!("--config={}", directory.join(format!("{name}.yaml")).display()),
        ],
        log: logs.join(format!("{name}.log")),
    }
}
