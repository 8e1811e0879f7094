//! `orlop down`: removes a cluster from the machine, whatever state it is in. Idempotent.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use nix::mount::{MntFlags, umount2};

use crate::cgroup;
use crate::up::lab;
use crate::up::layout::{DEFAULT_DATA_DIR, Layout};
use crate::up::lock::Lock;
use crate::up::spec::ClusterSpec;

const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// Arguments of `orlop down`.
#[derive(Debug, Args)]
pub(crate) struct DownArgs {
    /// The cluster's data directory.
    #[arg(long, default_value = DEFAULT_DATA_DIR)]
    data_dir: PathBuf,
    /// Keeps the data directory: objects, images, certificates. Pods, daemons and network go.
    #[arg(long)]
    keep_data: bool,
}

/// Removes the cluster of a data directory: processes, cgroups, network, mounts, files.
///
/// Every step is tried; all that failed is reported.
pub(crate) fn run(args: &DownArgs) -> anyhow::Result<()> {
    crate::require_root("orlop down")?;
    orlop_daemon::init_command_tracing();
    let layout = Layout::existing(&args.data_dir)?;
    stop_supervisor(&layout);
    let mut problems = Vec::new();
    let mut step = |what: &str, result: anyhow::Result<()>| {
        if let Err(error) = result {
            problems.push(format!("{what}: {error:#}"));
        }
    };
    // Tolerates a damaged file: the directories name the nodes too.
    let spec = ClusterSpec::load(&layout.cluster_file()).unwrap_or_default();
    let names = node_names(&layout, spec.as_ref());
    step("processes and cgroups", cgroup::destroy(&layout.cgroup()));
    step("network", remove_network(&layout, spec.as_ref(), &names));
    step("mounts", unmount_below(&[layout.run(), layout.data().to_owned()]));
    step("run directory", remove_tree(&layout.run()));
    if !args.keep_data {
        step("data directory", remove_data(&layout));
    }
    if problems.is_empty() {
        let left = if args.keep_data { "only the data is left" } else { "nothing is left" };
        crate::println_stdout(&format!("Orlop is down: {left} of {}.", layout.data().display()));
        return Ok(());
    }
    anyhow::bail!("could not remove everything:\n  {}", problems.join("\n  "))
}

/// Asks a running `orlop up` to stop; the cgroup kill that follows takes what does not listen.
fn stop_supervisor(layout: &Layout) {
    let Some(holder) = Lock::holder(layout) else {
        return;
    };
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(holder), nix::sys::signal::Signal::SIGTERM);
    let deadline = Instant::now() + STOP_DEADLINE;
    while Lock::holder(layout).is_some() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn node_names(layout: &Layout, spec: Option<&ClusterSpec>) -> Vec<String> {
    // In the order of the spec, since links are numbered by it.
    let mut names: Vec<String> =
        spec.iter().flat_map(|spec| &spec.nodes).map(|node| node.name.clone()).collect();
    for name in layout.node_names().unwrap_or_default() {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn remove_network(layout: &Layout, spec: Option<&ClusterSpec>, names: &[String]) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let own_namespaces = names.iter().any(|name| lab::netns_path(&layout.netns(name)).exists());
        if spec.is_some_and(|spec| spec.lab.is_some()) || own_namespaces {
            return lab::remove(layout, names).await;
        }
        let Some(spec) = spec else { return Ok(()) };
        crate::network::cleanup(layout, spec).await
    })
}

/// Unmounts everything below the directories, innermost first.
fn unmount_below(directories: &[PathBuf]) -> anyhow::Result<()> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").context("failed to list mounts")?;
    let mounts: BTreeSet<PathBuf> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|path| PathBuf::from(unescape(path)))
        .filter(|path| directories.iter().any(|directory| path.starts_with(directory) && path != directory))
        .collect();
    for path in mounts.iter().rev() {
        umount2(path, MntFlags::MNT_DETACH)
            .with_context(|| format!("failed to unmount {}", path.display()))?;
    }
    Ok(())
}

/// mountinfo writes space, tab, newline and backslash as octal (proc_pid_mountinfo(5)).
fn unescape(path: &str) -> String {
    path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

fn remove_data(layout: &Layout) -> anyhow::Result<()> {
    // Only what Orlop made: the directory may be one that holds other things too.
    for name in ["nodes", "master", "pki", "log"] {
        remove_tree(&layout.data().join(name))?;
    }
    for name in ["cluster.json", "master.yaml", "admin.kubeconfig", "up.lock"] {
        match std::fs::remove_file(layout.data().join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("failed to remove {name}"));
            }
            _ => {}
        }
    }
    // Not empty means that somebody else's files are in it: they stay.
    let _ = std::fs::remove_dir(layout.data());
    Ok(())
}

fn remove_tree(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
