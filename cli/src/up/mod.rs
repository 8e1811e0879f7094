//! `orlop up`: a whole cluster on this machine, with embedded defaults.
//!
//! ```text
//!   lock -> spec (new or remembered) -> lab network -> certificates, kubeconfigs, configuration files -> cgroup
//!        -> supervise master and nodes -> wait until every node is Ready -> print -> until a signal: drain, stop
//! ```
//!
//! Every step is idempotent: a second `up` on the same data directory resumes, and pods that survived are adopted by their
//! node's runtime. Pods outlive `up`; `orlop down` removes them.

mod configs;
pub(crate) mod file;
mod kubeconfig;
pub(crate) mod lab;
pub(crate) mod layout;
pub(crate) mod lock;
mod machine;
mod pki;
mod prepare;
pub(crate) mod spec;
mod wait;

use std::net::IpAddr;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use ipnet::Ipv4Net;
use orlop_daemon::{Frame, Settings};

use crate::cgroup;
use crate::supervise::{self, Process};
use layout::{DEFAULT_DATA_DIR, Layout};
use lock::Lock;
use spec::{ClusterSpec, Wish};

/// Arguments of `orlop up`.
#[derive(Clone, Debug, Args)]
pub(crate) struct UpArgs {
    /// Where the cluster keeps everything; a second `up` on it resumes.
    #[arg(long, default_value = DEFAULT_DATA_DIR)]
    data_dir: PathBuf,
    /// Returns once every node is Ready and leaves the cluster running in the background.
    #[arg(long)]
    detach: bool,
    /// Starts this many nodes, each in a network namespace of its own.
    #[arg(long, value_name = "N")]
    nodes: Option<u32>,
    /// Range of pod addresses (default 10.244.0.0/16).
    #[arg(long, value_name = "CIDR")]
    pod_cidr: Option<Ipv4Net>,
    /// Range of Service addresses (default 10.96.0.0/16).
    #[arg(long, value_name = "CIDR")]
    service_cidr: Option<Ipv4Net>,
    /// Network that joins the nodes of --nodes (default 10.89.0.0/24).
    #[arg(long, value_name = "CIDR")]
    node_network: Option<Ipv4Net>,
    /// This machine's address in the cluster (default: the address of its default route).
    #[arg(long, value_name = "ADDRESS")]
    node_ip: Option<IpAddr>,
    /// This machine's node name (default: its hostname).
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// HTTPS port of the API server (default 6443).
    #[arg(long, value_name = "PORT")]
    api_port: Option<u16>,
    /// Plain HTTP port of the API server on 127.0.0.1, without authentication; 0 is off (default).
    #[arg(long, value_name = "PORT")]
    insecure_port: Option<u16>,
    /// How long the nodes may take to become Ready.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    ready_seconds: u64,
}

impl UpArgs {
    fn wish(&self) -> Wish {
        Wish {
            pod_cidr: self.pod_cidr,
            service_cidr: self.service_cidr,
            api_port: self.api_port,
            insecure_port: self.insecure_port,
            node_ip: self.node_ip,
            node_name: self.node_name.clone(),
            nodes: self.nodes,
            node_network: self.node_network,
        }
    }
}

/// Runs the cluster in the foreground, or with `--detach` until it is Ready.
pub(crate) fn run(args: &UpArgs) -> anyhow::Result<()> {
    crate::require_root("orlop up")?;
    let started = Instant::now();
    let layout = Layout::create(&args.data_dir)
        .with_context(|| format!("failed to create the data directory {}", args.data_dir.display()))?;
    if args.detach {
        return detach(args, &layout, started);
    }
    orlop_daemon::init_tracing();
    let _lock = Lock::take(&layout)?;
    let spec = prepare::cluster(&layout, &args.wish())?;
    cgroup::enter(&format!("{}/daemons", layout.cgroup()))?;
    let mut settings = Settings::new("up");
    settings.drain_deadline = Duration::from_secs(40);
    settings.worker_threads = 1;
    let deadline = Duration::from_secs(args.ready_seconds);
    orlop_daemon::run(settings, |frame| async move { start(&frame, layout, spec, deadline, started) })
}

fn start(
    frame: &Frame,
    layout: Layout,
    spec: ClusterSpec,
    deadline: Duration,
    started: Instant,
) -> anyhow::Result<()> {
    for process in processes(&layout, &spec) {
        let drain = frame.drain();
        frame.spawn(format!("supervise-{}", process.name), supervise::keep(process, drain));
    }
    let drain = frame.drain();
    frame.spawn("wait-ready", async move {
        tokio::select! {
            () = drain.wait() => Ok(()),
            ready = wait::until_ready(&layout, &spec, deadline) => {
                ready?;
                wait::announce(&layout, &spec, started)
            }
        }
    });
    Ok(())
}

fn processes(layout: &Layout, spec: &ClusterSpec) -> Vec<Process> {
    let process = |name: &str, command: &str, config: PathBuf| Process {
        name: name.to_owned(),
        arguments: vec![command.to_owned(), format!("--config={}", config.display())],
        log: layout.logs().join(format!("{name}.log")),
    };
    let master = process("master", "master", layout.data().join("master.yaml"));
    let nodes =
        spec.nodes.iter().map(|node| process(&node.name, "node", layout.node(&node.name).join("node.yaml")));
    std::iter::once(master).chain(nodes).collect()
}

/// Starts the same command without `--detach` in a session of its own and waits until the nodes are Ready.
fn detach(args: &UpArgs, layout: &Layout, started: Instant) -> anyhow::Result<()> {
    // Fails early and here when another `up` runs or the wishes do not fit.
    drop(Lock::take(layout)?);
    let log = layout.logs().join("up.log");
    std::fs::create_dir_all(layout.logs())?;
    let output =
        std::fs::File::create(&log).with_context(|| format!("failed to create {}", log.display()))?;
    let arguments = std::env::args_os().skip(1).filter(|argument| argument != "--detach");
    let mut child = Command::new(std::env::current_exe()?)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .process_group(0)
        .spawn()
        .context("failed to start the background process")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let spec = wait::for_spec(layout, &mut child, &log).await?;
        wait::until_ready_or_ended(layout, &spec, Duration::from_secs(args.ready_seconds), &mut child, &log)
            .await?;
        wait::announce(layout, &spec, started)
    });
    if result.is_err() {
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(i32::try_from(child.id())?),
            nix::sys::signal::Signal::SIGTERM,
        );
        let _ = child.wait();
    }
    result
}
