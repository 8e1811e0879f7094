//! The numbers of SPECIFICATION.md, ours beside a reference's from the same run: `./test --perf`.
//!
//! ```text
//!   start (up, master / etcd, in turn) -> peers (containerd + runc, `orlop runtime`) -> idle memory
//!         -> CRI's verbs one by one -> one pod at a time, ours / theirs in turn -> ten idle pods' shims -> fifty pods at once
//!         -> a hundred pods by CRI -> the OCI runtimes alone (ours / crun / runc in turn) -> the mirror (ours / docker-registry in turn)
//!         -> take down, look for leftovers
//! ```
//!
//! Upstream's kubelet and kube-apiserver are not in Debian. The references are parts of what they need: a lower bound, named in
//! each line. Every subject is on a machine of the lab; timings are medians with their range, and nothing is asserted.
//!
//! Invariant: whatever is started here is ended by its pid, also after a failure or Ctrl-C.

mod api;
mod cgroup;
mod cri;
mod daemon;
mod etcd;
mod hundred;
mod idle;
mod interrupt;
mod memory;
mod mirror;
mod oci;
mod peer;
mod pods;
mod report;
mod sample;
mod start;
mod verbs;

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;

use etcd::Etcd;
use peer::Peer;
use pods::{Runtimes, Subjects};
use report::Row;

/// Before idle memory is measured.
pub(crate) const SETTLE: Duration = Duration::from_secs(10);

/// How often each is repeated.
#[derive(Clone, Copy, Debug)]
struct Rounds {
    starts: usize,
    pods: usize,
    many: usize,
    /// How long a registry is asked the same.
    flood: Duration,
}

fn main() -> anyhow::Result<()> {
    let mut rounds = Rounds { starts: 5, pods: 15, many: 5, flood: Duration::from_secs(4) };
    let (mut cri_only, mut oci_only, mut mirror_only) = (false, false, false);
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--quick" => rounds = Rounds { starts: 1, pods: 3, many: 1, flood: Duration::from_secs(1) },
            "--cri" => cri_only = true,
            "--oci" => oci_only = true,
            "--mirror" => mirror_only = true,
            other => {
                anyhow::bail!("unknown argument {other:?}: --quick, --cri, --oci and --mirror are known")
            }
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    interrupt::watch(&runtime)?;
    let (mut rows, mut directories) = (Vec::new(), Vec::new());
    start::size(&mut rows)?;
    let result = if oci_only {
        oci::measure(rounds.pods, &mut rows)
    } else if mirror_only {
        mirror::measure(rounds.pods.min(5), rounds.flood, &mut rows)
    } else if cri_only {
        measure_cri(&runtime, rounds, &mut rows, &mut directories)
    } else {
        measure(&runtime, rounds, &mut rows, &mut directories)
    };
    let mut out = std::io::stdout().lock();
    write!(out, "{}\n{}\n{}\n", report::plain(&rows), memory::DEFINITION, machine())?;
    writeln!(out, "Ratio: ours / reference, below 1 is better. (least–most) of all runs.\n")?;
    write!(out, "{}", report::markdown(&rows))?;
    out.flush()?;
    result?;
    directories.retain(|path| path.exists());
    anyhow::ensure!(directories.is_empty(), "left behind: {directories:?}");
    Ok(())
}

/// Everything. Fills the rows as far as it comes; `directories` must be gone once all subjects are.
fn measure(
    runtime: &tokio::runtime::Runtime,
    rounds: Rounds,
    rows: &mut Vec<Row>,
    directories: &mut Vec<PathBuf>,
) -> anyhow::Result<()> {
    let mut etcd = Etcd::new()?;
    let cluster = start::measure(rounds.starts, &mut etcd, rows)?;
    let (containerd, orlop) = start_peers(runtime, directories)?;
    cluster.import(&orlop_tests::image::busybox());
    std::thread::sleep(SETTLE);
    let pid = etcd.pid().context("etcd runs")?;
    idle::measure(&cluster, containerd.daemon_pid(), pid, rows)?;
    let runtimes = Runtimes { runtime, containerd: &containerd, orlop: &orlop };
    let subjects = Subjects { cluster: &cluster, runtimes };
    verbs::measure(runtimes, rounds.pods, rows)?;
    pods::one(subjects, rounds.pods, rows)?;
    pods::memory(subjects, rows)?;
    pods::many(subjects, rounds.many, rows)?;
    hundred::measure(runtimes, rows)?;
    oci::measure(rounds.pods, rows)?;
    cluster.down_clean();
    mirror::measure(rounds.pods.min(5), rounds.flood, rows)
}

/// The runtimes alone.
fn measure_cri(
    runtime: &tokio::runtime::Runtime,
    rounds: Rounds,
    rows: &mut Vec<Row>,
    directories: &mut Vec<PathBuf>,
) -> anyhow::Result<()> {
    let (containerd, orlop) = start_peers(runtime, directories)?;
    let runtimes = Runtimes { runtime, containerd: &containerd, orlop: &orlop };
    verbs::measure(runtimes, rounds.pods, rows)?;
    hundred::measure(runtimes, rows)
}

fn start_peers(
    runtime: &tokio::runtime::Runtime,
    directories: &mut Vec<PathBuf>,
) -> anyhow::Result<(Peer, Peer)> {
    let containerd = runtime.block_on(Peer::containerd()).context("containerd")?;
    let orlop = runtime.block_on(Peer::orlop()).context("orlop runtime")?;
    directories.extend([containerd.directory(), orlop.directory()]);
    Ok((containerd, orlop))
}

/// What it ran on.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let processors = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let kernel = read("/proc/sys/kernel/osrelease");
    let load = read("/proc/loadavg");
    let load = load.split_whitespace().next().unwrap_or("?");
    format!("Machine: {processors} processors, Linux {}, load {load} at the end.", kernel.trim())
}
