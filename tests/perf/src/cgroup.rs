//! A cgroup that a peer and all its containers live below: whoever is in it can be found by pid and ended.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const ROOT: &str = "/sys/fs/cgroup";
const PATIENCE: Duration = Duration::from_secs(20);

/// Removed on drop, with every process below it.
#[derive(Debug)]
pub(crate) struct TestCgroup {
    name: String,
}

impl TestCgroup {
    /// A cgroup of this process's name and `label`, with a child for the daemon.
    pub(crate) fn new(label: &str) -> anyhow::Result<Self> {
        let cgroup = Self { name: format!("orlop-perf-{}-{label}", std::process::id()) };
        std::fs::create_dir_all(cgroup.daemon())?;
        std::fs::create_dir_all(cgroup.accounting().join("daemon"))?;
        Ok(cgroup)
    }

    /// Counts this process and its later children; those of the pods are counted where the runtime puts them.
    pub(crate) fn account(&self, pid: u32) -> anyhow::Result<()> {
        std::fs::write(self.accounting().join("daemon/cgroup.procs"), pid.to_string())?;
        Ok(())
    }

    /// CPU time of everything below it.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        let directory = self.accounting();
        if let Ok(text) = std::fs::read_to_string(directory.join("cpuacct.usage")) {
            return Ok(Duration::from_nanos(text.trim().parse()?));
        }
        let text = std::fs::read_to_string(directory.join("cpu.stat"))?;
        let microseconds = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
        Ok(Duration::from_micros(microseconds.context("cpu.stat has no usage_usec")?.trim().parse()?))
    }

    /// Where CPU time is counted: v1's own hierarchy, or the only one.
    fn accounting(&self) -> PathBuf {
        let counted = Path::new(ROOT).join("cpuacct");
        if counted.exists() { counted.join(&self.name) } else { Path::new(ROOT).join(&self.name) }
    }

    /// The directory whose `cgroup.procs` the daemon writes itself into: one hierarchy is enough to find it again.
    pub(crate) fn daemon(&self) -> PathBuf {
        let pids = Path::new(ROOT).join("pids");
        let hierarchy = if pids.exists() { pids } else { PathBuf::from(ROOT) };
        hierarchy.join(&self.name).join("daemon")
    }

    /// The cgroup parent of a pod, as CRI wants it.
    pub(crate) fn pod(&self, pod: &str) -> String {
        format!("/{}/{pod}", self.name)
    }

    /// Every process below it.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let mut found: Vec<u32> = self.directories().iter().flat_map(|path| pids_below(path)).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// In each hierarchy.
    fn directories(&self) -> Vec<PathBuf> {
        let hierarchies = std::fs::read_dir(ROOT).into_iter().flatten().flatten().map(|entry| entry.path());
        std::iter::once(PathBuf::from(ROOT))
            .chain(hierarchies)
            .map(|hierarchy| hierarchy.join(&self.name))
            .filter(|path| path.is_dir())
            .collect()
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        let end = Instant::now() + PATIENCE;
        loop {
            for pid in self.pids() {
                if let Ok(pid) = i32::try_from(pid) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
            self.directories().iter().for_each(|path| remove_below(path));
            if self.directories().is_empty() {
                return;
            }
            if Instant::now() > end {
                eprintln!("left behind: {:?}", self.directories());
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn children(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

fn pids_below(directory: &Path) -> Vec<u32> {
    let text = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    let own = text.lines().filter_map(|line| line.parse().ok());
    own.chain(children(directory).iter().flat_map(|child| pids_below(child))).collect()
}

fn remove_below(directory: &Path) {
    children(directory).iter().for_each(|child| remove_below(child));
    let _ = std::fs::remove_dir(directory);
}
