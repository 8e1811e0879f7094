//! The `orlop` binary: one file, many commands.
//!
//! Dispatch: by the name it was called with (`orlop-oci`, `orlop-cni`), then by subcommand. What must stay small and
//! single-threaded (`shim`, `oci`, `oci-setup`, `cni`) or small (`streamer`) is reached before any argument parser or runtime starts.
//!
//! Where to read next: `up/` (a whole cluster), `node.rs` (one node's daemons), `network.rs` (the network process).

mod cgroup;
mod down;
mod image;
mod mirror;
mod network;
mod node;
mod runtime;
mod supervise;
mod up;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use orlop_daemon::config::{self, Validate};
use orlop_daemon::{Frame, Settings};
use serde::Serialize;
use serde::de::DeserializeOwned;

use node::DaemonArgs;

/// The Kubernetes release whose API the kubelet and the master speak.
const KUBERNETES_VERSION: &str = "v1.36.0";

#[derive(Parser)]
#[command(
    name = "orlop",
    version,
    about = "Everything below the Kubernetes API on a node, and a small master"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Starts a whole cluster on this machine.
    Up(up::UpArgs),
    /// Removes a cluster from this machine.
    Down(down::DownArgs),
    /// Imports, lists, removes and exports images without a registry.
    Image(image::ImageArgs),
    /// API server, scheduler and controllers.
    Master(DaemonArgs),
    /// Supervises the daemons of one node.
    Node(DaemonArgs),
    /// The container runtime (CRI).
    Runtime(runtime::RuntimeArgs),
    /// The node agent.
    Kubelet(DaemonArgs),
    /// Overlay, Service rules and DNS of a node.
    Network(DaemonArgs),
    /// The registry mirror.
    Mirror(mirror::MirrorArgs),
    /// The OCI runtime, with runc's command line.
    #[command(disable_help_flag = true)]
    Oci(Passed),
    /// The CNI plugin.
    #[command(disable_help_flag = true)]
    Cni(Passed),
}

/// Arguments of commands that are dispatched before this parser; listed for `--help` alone.
#[derive(clap::Args)]
struct Passed {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    _arguments: Vec<OsString>,
}

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    if let Some(code) = dispatch_small(&arguments) {
        return code;
    }
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orlop: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The programs that must not start a runtime, threads or a large parser.
fn dispatch_small(arguments: &[OsString]) -> Option<ExitCode> {
    let name =
        arguments.first().map(|argument| Path::new(argument).file_name().unwrap_or_default().to_owned());
    let rest = |from: usize| arguments.get(from..).unwrap_or_default().to_vec();
    match name.as_ref().and_then(|name| name.to_str()) {
        // Started for a container's set-up by the same name, if that is what the caller uses.
        Some("orlop-oci") if arguments.get(1).is_none_or(|argument| argument != "oci-setup") => {
            return Some(exit(orlop_oci::main(rest(1))));
        }
        Some("orlop-cni") => return Some(orlop_cni::main_plugin()),
        _ => {}
    }
    match arguments.get(1).and_then(|argument| argument.to_str()) {
        Some("oci") => Some(exit(orlop_oci::main(rest(2)))),
        Some("cni") => Some(orlop_cni::main_plugin()),
        Some("shim") => Some(exit(orlop_shim::main(rest(2)))),
        Some("streamer") => Some(exit(orlop_runtime::streamer_main(rest(2)))),
        Some("oci-setup") => Some(exit(orlop_oci::setup_main(rest(2)))),
        Some("kubelet") if arguments.get(2).is_some_and(|argument| argument == "--version") => {
            // kubeadm's preflight reads exactly this form.
            println_stdout(&format!("Kubernetes {KUBERNETES_VERSION}"));
            Some(ExitCode::SUCCESS)
        }
        _ => None,
    }
}

fn exit(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

fn println_stdout(line: &str) {
    use std::io::Write as _;
    // A reader that went away is no error of ours.
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.command {
        Command::Up(args) => up::run(&args),
        Command::Down(args) => down::run(&args),
        Command::Image(args) => image::run(&args),
        Command::Node(args) => node::run(&args),
        Command::Master(args) => master(&args),
        Command::Runtime(args) => runtime::run(&args),
        Command::Kubelet(args) => {
            daemon(
                "kubelet",
                &args,
                |frame, config| async move { orlop_kubelet::start(&frame, config).await },
            )
        }
        Command::Network(args) => {
            daemon("network", &args, |frame, config| async move { network::start(&frame, config).await })
        }
        Command::Mirror(args) => mirror::run(&args),
        Command::Oci(_) | Command::Cni(_) => unreachable!("dispatched before the parser"),
    }
}

/// Configuration of `orlop master`.
#[derive(Clone, Debug, Default, Serialize, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct MasterConfig {
    /// The API server.
    api: orlop_api::Config,
    /// Scheduler and controllers.
    control: orlop_control::Config,
}

impl Validate for MasterConfig {
    fn problems(&self) -> Vec<String> {
        let mut problems = self.api.problems();
        problems.extend(self.control.problems());
        problems
    }
}

fn master(args: &DaemonArgs) -> anyhow::Result<()> {
    daemon("master", args, |frame, config: MasterConfig| async move {
        let server = orlop_api::start(&frame, &config.api).await?;
        // In process: the same requests and checks as over the network, without TLS.
        let client = server.client("system:kube-controller-manager", ["system:masters".to_owned()]);
        orlop_control::start(&frame, client, config.control).await
    })
}

/// Runs one daemon: supervisor, configuration, frame.
fn daemon<C, S, F>(name: &'static str, args: &DaemonArgs, start: S) -> anyhow::Result<()>
where
    C: DeserializeOwned + Serialize + Default + Validate,
    S: FnOnce(Frame, C) -> F,
    F: Future<Output = anyhow::Result<()>>,
{
    supervise::follow_supervisor(args.supervisor)?;
    orlop_daemon::init_tracing();
    let config: C = config::load(&args.config)?;
    let socket = admin_socket(name, &args.config)?;
    run_daemon(name, config, socket, start)
}

/// The part of [`daemon`] after the configuration is known.
fn run_daemon<C, S, F>(name: &'static str, config: C, admin_socket: PathBuf, start: S) -> anyhow::Result<()>
where
    C: Serialize,
    S: FnOnce(Frame, C) -> F,
    F: Future<Output = anyhow::Result<()>>,
{
    tracing::info!(daemon = name, config = %serde_json::to_string(&config)?, "configuration");
    let mut settings = Settings::new(name);
    settings.admin_socket = Some(admin_socket);
    orlop_daemon::run(settings, |frame| start(frame, config))
}

/// The admin socket lives on tmpfs, beside the daemon's other run state.
fn admin_socket(name: &str, config: &Path) -> anyhow::Result<PathBuf> {
    Ok(node_admin_socket(name, config)?
        .unwrap_or_else(|| Path::new("/run/orlop").join(name).join("admin.sock")))
}

/// The admin socket of a daemon whose configuration lies in a node's or a cluster's data directory.
fn node_admin_socket(name: &str, config: &Path) -> anyhow::Result<Option<PathBuf>> {
    let data = std::path::absolute(config)?;
    let layout =
        data.ancestors().find(|path| path.join("cluster.json").exists() || path.join("pki").exists());
    let node = data
        .parent()
        .and_then(Path::file_name)
        .filter(|_| data.ancestors().any(|path| path.ends_with("nodes")));
    let run = match (layout, node) {
        (Some(path), _) => up::layout::Layout::existing(path)?.run(),
        (None, Some(_)) => PathBuf::from("/run/orlop"),
        (None, None) => return Ok(None),
    };
    Ok(Some(match node {
        Some(node) => run.join(node).join(format!("{name}-admin.sock")),
        None => run.join(name).join("admin.sock"),
    }))
}

/// Most of what Orlop does needs root; says so instead of failing somewhere later.
fn require_root(what: &str) -> anyhow::Result<()> {
    anyhow::ensure!(rustix::process::geteuid().is_root(), "{what} needs root: run it with sudo");
    Ok(())
}
