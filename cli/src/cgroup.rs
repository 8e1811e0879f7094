//! The cluster's cgroup: every daemon and every pod is below it, in each hierarchy, so `orlop down` finds them all.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

const MOUNT: &str = "/sys/fs/cgroup";
const KILL_DEADLINE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(20);

/// The roots of all mounted hierarchies: one on cgroup v2, one per controller set on v1.
fn hierarchies() -> io::Result<Vec<PathBuf>> {
    let mount = Path::new(MOUNT);
    if mount.join("cgroup.controllers").exists() {
        return Ok(vec![mount.to_owned()]);
    }
    let mut roots = BTreeSet::new();
    for entry in std::fs::read_dir(mount)? {
        // "cpu" is a link to "cpu,cpuacct": the set keeps one of them.
        let path = std::fs::canonicalize(entry?.path())?;
        if path.join("cgroup.procs").exists() {
            roots.insert(path);
        }
    }
    Ok(roots.into_iter().collect())
}

fn below(root: &Path, cgroup: &str) -> PathBuf {
    root.join(cgroup.trim_start_matches('/'))
}

/// Moves this process (and so its future children) into `cgroup`.
pub(crate) fn enter(cgroup: &str) -> anyhow::Result<()> {
    for root in hierarchies().context("failed to list the cgroup hierarchies")? {
        let directory = below(&root, cgroup);
        let entered = std::fs::create_dir_all(&directory).and_then(|()| {
            inherit_cpuset(&root, &directory)?;
            std::fs::write(directory.join("cgroup.procs"), std::process::id().to_string())
        });
        entered.with_context(|| format!("failed to enter cgroup {}", directory.display()))?;
    }
    Ok(())
}

/// A new v1 cpuset is empty and takes no process until its cpus and mems are set, from the top down.
fn inherit_cpuset(root: &Path, directory: &Path) -> io::Result<()> {
    if !root.join("cpuset.cpus").exists() || root.join("cgroup.controllers").exists() {
        return Ok(());
    }
    let mut path = root.to_owned();
    for part in directory.strip_prefix(root).into_iter().flatten() {
        let parent = path.clone();
        path.push(part);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if std::fs::read_to_string(path.join(file))?.trim().is_empty() {
                std::fs::write(path.join(file), std::fs::read(parent.join(file))?)?;
            }
        }
    }
    Ok(())
}

/// Kills every process at or below `cgroup` and removes it from all hierarchies. A cgroup that is gone is fine.
pub(crate) fn destroy(cgroup: &str) -> anyhow::Result<()> {
    let roots = hierarchies().context("failed to list the cgroup hierarchies")?;
    let deadline = Instant::now() + KILL_DEADLINE;
    loop {
        let mut pids = BTreeSet::new();
        let mut directories = Vec::new();
        for root in &roots {
            collect(&below(root, cgroup), &mut pids, &mut directories)?;
        }
        pids.remove(&i32::try_from(std::process::id()).unwrap_or(0));
        for pid in &pids {
            kill_in(*pid, cgroup);
        }
        if pids.is_empty() {
            // Children come before their parents.
            let left: Vec<_> = directories.iter().filter(|path| !remove(path)).collect();
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("cgroup {} could not be removed: it is still in use", left[0].display());
            }
        } else if Instant::now() > deadline {
            bail!("processes {pids:?} of cgroup {cgroup} did not die within {KILL_DEADLINE:?}");
        }
        std::thread::sleep(PAUSE);
    }
}

fn collect(directory: &Path, pids: &mut BTreeSet<i32>, directories: &mut Vec<PathBuf>) -> io::Result<()> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), pids, directories)?;
        }
    }
    // The cgroup may vanish while it is read.
    if let Ok(text) = std::fs::read_to_string(directory.join("cgroup.procs")) {
        pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    }
    directories.push(directory.to_owned());
    Ok(())
}

/// Kills a process only while it is still in the cgroup: the pidfd pins it before that is asked.
fn kill_in(pid: i32, cgroup: &str) {
    let Some(pid) = Pid::from_raw(pid) else { return };
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else {
        return;
    };
    let Ok(text) = std::fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_pid())) else {
        return;
    };
    let inside = text
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .any(|path| path.strip_prefix(cgroup).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')));
    if inside {
        let _ = pidfd_send_signal(&handle, Signal::KILL);
    }
}

fn remove(directory: &Path) -> bool {
    match std::fs::remove_dir(directory) {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}
