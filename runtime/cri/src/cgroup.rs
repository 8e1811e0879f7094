//! Control groups, where the daemon itself must act: killing and removing what a dead shim left, and limits in flight.
//! v1, v2 and hybrid machines: every mounted hierarchy is treated alike.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};

use crate::spec::resources::CgroupFeatures;

/// How deep below a container's cgroup others are looked for (nested container engines).
const DEPTH_LIMIT: usize = 16;
const RETRY_PAUSE: Duration = Duration::from_millis(1);

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// v1 controllers; empty for v2.
    pub controllers: Vec<String>,
}

/// All hierarchies of this mount namespace.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hierarchies(Vec<Hierarchy>);

impl Hierarchies {
    /// From `/proc/self/mountinfo`.
    pub(crate) fn detect() -> io::Result<Self> {
        Ok(Self(parse_mountinfo(&std::fs::read_to_string("/proc/self/mountinfo")?)))
    }

    /// What containers can be given.
    pub(crate) fn features(&self) -> CgroupFeatures {
        let unified = self.is_unified();
        let has = |name: &str| {
            self.0.iter().any(|hierarchy| hierarchy.controllers.iter().any(|known| known == name))
        };
        CgroupFeatures {
            unified,
            swap: if unified {
                Path::new("/proc/swaps").exists()
            } else {
                self.directory("memory", "/")
                    .is_some_and(|path| path.join("memory.memsw.limit_in_bytes").exists())
            },
            hugetlb: unified || has("hugetlb"),
            v1_names: self.v1_names(),
        }
    }

    /// Version 2 alone, not hybrid.
    pub(crate) fn is_unified(&self) -> bool {
        self.0.iter().all(|hierarchy| hierarchy.controllers.is_empty())
    }

    fn v1_names(&self) -> Vec<String> {
        let v1 = self.0.iter().filter(|hierarchy| !hierarchy.controllers.is_empty());
        v1.filter_map(|hierarchy| Some(hierarchy.mountpoint.file_name()?.to_string_lossy().into_owned()))
            .collect()
    }

    /// The directory of `cgroup` in the hierarchy that has a v1 controller, else in the v2 one.
    pub(crate) fn directory(&self, controller: &str, cgroup: &str) -> Option<PathBuf> {
        self.0
            .iter()
            .find(|hierarchy| hierarchy.controllers.iter().any(|known| known == controller))
            .or_else(|| self.0.iter().find(|hierarchy| hierarchy.controllers.is_empty()))
            .map(|hierarchy| join(&hierarchy.mountpoint, cgroup))
    }

    /// The directory of `cgroup` in the v2 hierarchy, also of a hybrid machine.
    pub(crate) fn unified_directory(&self, cgroup: &str) -> Option<PathBuf> {
        let unified = self.0.iter().find(|hierarchy| hierarchy.controllers.is_empty());
        unified.map(|hierarchy| join(&hierarchy.mountpoint, cgroup))
    }

    /// The directory of `cgroup` in every hierarchy.
    pub(crate) fn directories(&self, cgroup: &str) -> Vec<PathBuf> {
        self.0.iter().map(|hierarchy| join(&hierarchy.mountpoint, cgroup)).collect()
    }

    #[cfg(test)]
    pub(crate) fn at(mountpoints: &[PathBuf]) -> Self {
        let hierarchy =
            |mountpoint: &PathBuf| Hierarchy { mountpoint: mountpoint.clone(), controllers: Vec::new() };
        Self(mountpoints.iter().map(hierarchy).collect())
    }

    fn file(&self, cgroup: &str, controller: &str, file: &str) -> io::Result<PathBuf> {
        if file.is_empty() || file.contains('/') || file.starts_with('.') {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{file:?} is not a file name")));
        }
        let directory = self.directory(controller, cgroup).ok_or_else(|| {
            io::Error::new(io::ErrorKind::Unsupported, format!("no {controller} controller is mounted"))
        })?;
        Ok(directory.join(file))
    }

    /// Reads one file of a cgroup.
    pub(crate) fn read(&self, cgroup: &str, controller: &str, file: &str) -> io::Result<String> {
        let path = self.file(cgroup, controller, file)?;
        std::fs::read_to_string(&path)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    }

    /// Writes one file of a cgroup.
    pub(crate) fn write(&self, cgroup: &str, controller: &str, file: &str, value: &str) -> io::Result<()> {
        let path = self.file(cgroup, controller, file)?;
        std::fs::write(&path, value)
            .map_err(|error| io::Error::new(error.kind(), format!("{} = {value}: {error}", path.display())))
    }

    /// Kills every process below `cgroup` and waits until there is none; the cgroup stays.
    pub(crate) fn kill(&self, cgroup: &str, patience: Duration) -> io::Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let mut busy = false;
            for hierarchy in &self.0 {
                let directory = join(&hierarchy.mountpoint, cgroup);
                kill_below(&directory)?;
                busy |= !pids(&directory.join("cgroup.procs")).is_empty();
            }
            if !busy {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "processes survive SIGKILL"));
            }
            std::thread::sleep(RETRY_PAUSE);
        }
    }

    /// Kills every process below `cgroup` and removes it everywhere. What is not there is fine.
    pub(crate) fn destroy(&self, cgroup: &str, patience: Duration) -> io::Result<()> {
        if cgroup.trim_matches('/').is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the root cgroup is not removed"));
        }
        let deadline = Instant::now() + patience;
        loop {
            let mut busy = None;
            for hierarchy in &self.0 {
                let directory = join(&hierarchy.mountpoint, cgroup);
                if let Err(error) = kill_below(&directory).and_then(|()| remove_below(&directory, 0)) {
                    busy = Some(error);
                }
            }
            match busy {
                None => return Ok(()),
                Some(error) if Instant::now() >= deadline => return Err(error),
                Some(_) => std::thread::sleep(RETRY_PAUSE),
            }
        }
    }
}

/// Reads the lines of file system type `cgroup` and `cgroup2` (proc_pid_mountinfo(5)).
fn parse_mountinfo(text: &str) -> Vec<Hierarchy> {
    const NOT_CONTROLLERS: [&str; 3] = ["rw", "ro", "xattr"];
    let mut seen = BTreeSet::new();
    text.lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mut left = left.split(' ');
            let mountpoint = left.nth(4)?;
            let mut right = right.split(' ');
            let (kind, options) = (right.next()?, right.nth(1).unwrap_or_default());
            let controllers = match kind {
                "cgroup2" => Vec::new(),
                "cgroup" => options
                    .split(',')
                    .filter(|option| !NOT_CONTROLLERS.contains(option) && !option.contains('='))
                    .map(str::to_owned)
                    .collect(),
                _ => return None,
            };
            // A v1 hierarchy that only has a name (`name=systemd`) still holds processes; it is told apart by its mountpoint.
            let controllers = if kind == "cgroup" && controllers.is_empty() {
                vec![format!("named:{mountpoint}")]
            } else {
                controllers
            };
            seen.insert(controllers.clone())
                .then(|| Hierarchy { mountpoint: PathBuf::from(mountpoint), controllers })
        })
        .collect()
}

fn join(mountpoint: &Path, cgroup: &str) -> PathBuf {
    let inside = crate::spec::mounts::clean(Path::new(cgroup));
    mountpoint.join(inside.strip_prefix("/").unwrap_or(&inside))
}

fn kill_below(directory: &Path) -> io::Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    // v2 since Linux 5.14 kills a whole subtree at once.
    if std::fs::write(directory.join("cgroup.kill"), "1").is_ok() {
        return Ok(());
    }
    kill_each(directory, 0)
}

fn kill_each(directory: &Path, depth: usize) -> io::Result<()> {
    if depth < DEPTH_LIMIT {
        for child in children(directory) {
            kill_each(&child, depth + 1)?;
        }
    }
    let file = directory.join("cgroup.procs");
    for pid in pids(&file) {
        let Some(pid) = Pid::from_raw(pid) else { continue };
        let Ok(handle) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else {
            continue;
        };
        // Read again with the handle held: the pid now is the process that is listed.
        if pids(&file).contains(&pid.as_raw_nonzero().get()) {
            let _ = rustix::process::pidfd_send_signal(&handle, Signal::KILL);
        }
    }
    Ok(())
}

fn pids(file: &Path) -> Vec<i32> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().filter_map(|line| line.trim().parse().ok()).collect()
}

fn children(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn remove_below(directory: &Path, depth: usize) -> io::Result<()> {
    if depth < DEPTH_LIMIT {
        for child in children(directory) {
            remove_below(&child, depth + 1)?;
        }
    }
    match std::fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 25 0:26 / /sys/fs/cgroup rw,nosuid - tmpfs tmpfs rw
31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
34 30 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
";

    #[test]
    fn hierarchies_are_found() {
        let hybrid = Hierarchies(parse_mountinfo(HYBRID));
        assert_eq!(hybrid.0.len(), 4);
        assert!(!hybrid.features().unified && !hybrid.features().hugetlb);
        assert_eq!(hybrid.features().v1_names, ["systemd", "cpu,cpuacct", "memory"]);
        assert_eq!(hybrid.directory("cpuacct", "/a/b"), Some("/sys/fs/cgroup/cpu,cpuacct/a/b".into()));
        assert_eq!(hybrid.directory("hugetlb", "../x"), Some("/sys/fs/cgroup/unified/x".into()));
        let pure = Hierarchies(parse_mountinfo("31 30 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"));
        assert!(pure.features().unified && pure.features().v1_names.is_empty());
        assert_eq!(pure.directory("memory", "/k"), Some("/sys/fs/cgroup/k".into()));
    }

    #[test]
    fn the_root_is_never_destroyed() {
        assert!(Hierarchies::default().destroy("/", Duration::ZERO).is_err());
        assert!(Hierarchies::default().destroy("/x", Duration::ZERO).is_ok());
    }
}
