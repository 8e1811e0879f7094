//! The numbers of SPECIFICATION.md, ours beside a reference's from the same run: `./test --perf`.
//!
//! ```text
//!   start (up, master / etcd, in turn) -> peers (containerd + runc, `orlop runtime`) -> idle memory
//!         -> one pod at a time, ours / theirs in turn -> ten idle pods' shims -> fifty pods at once -> take down, look for leftovers
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
mod idle;
mod interrupt;
mod memory;
mod peer;
mod pods;
mod report;
mod sample;
mod start;

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;

use etcd::Etcd;
use peer::Peer;
use pods::Subjects;
use report::Row;

/// Before idle memory is measured.
pub(crate) const SETTLE: Duration = Duration::from_secs(10);

/// How often each is repeated.
#[derive(Clone, Copy, Debug)]
struct Rounds {
    starts: usize,
    pods: usize,
    many: usize,
}

fn main() -> anyhow::Result<()> {
    let rounds = match std::env::args().nth(1).as_deref() {
        None => Rounds { starts: 5, pods: 15, many: 5 },
        Some("--quick") => Rounds { starts: 1, pods: 3, many: 1 },
        Some(other) => anyhow::bail!("unknown argument {other:?}: only --quick is known"),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    interrupt::watch(&runtime)?;
    let mut rows = Vec::new();
    start::size(&mut rows)?;
    let (result, left) = measure(&runtime, rounds, &mut rows);
    let mut out = std::io::stdout().lock();
    write!(out, "{}\n{}\n{}\n", report::plain(&rows), memory::DEFINITION, machine())?;
    writeln!(out, "Ratio: ours / reference, below 1 is better. (least–most) of all runs.\n")?;
    write!(out, "{}", report::markdown(&rows))?;
    out.flush()?;
    result?;
    anyhow::ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

/// Fills the rows as far as it comes, and gives what is left on the machine after all subjects are gone.
fn measure(
    runtime: &tokio::runtime::Runtime,
    rounds: Rounds,
    rows: &mut Vec<Row>,
) -> (anyhow::Result<()>, Vec<PathBuf>) {
    let mut directories = Vec::new();
    let result = (|| {
        let mut etcd = Etcd::new()?;
        let cluster = start::measure(rounds.starts, &mut etcd, rows)?;
        let containerd = runtime.block_on(Peer::containerd()).context("containerd")?;
        let orlop = runtime.block_on(Peer::orlop()).context("orlop runtime")?;
        directories.extend([containerd.directory(), orlop.directory()]);
        cluster.import(&orlop_tests::image::busybox());
        std::thread::sleep(SETTLE);
        let pid = etcd.pid().context("etcd runs")?;
        idle::measure(&cluster, containerd.daemon_pid(), pid, rows)?;
        let subjects = Subjects { runtime, cluster: &cluster, containerd: &containerd, orlop: &orlop };
        pods::one(subjects, rounds.pods, rows)?;
        pods::memory(subjects, rows)?;
        pods::many(subjects, rounds.many, rows)?;
        cluster.down_clean();
        Ok(())
    })();
    (result, directories.into_iter().filter(|path| path.exists()).collect())
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
