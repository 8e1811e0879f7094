//! Control groups, v1 and v2, as far as libcontainer leaves them to us: find, join, kill, remove, measure.
//!
//! A [`Cgroup`] is one path below every hierarchy's root. Each hierarchy is looked at alone, so a hybrid machine needs no case of its own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Rounds of SIGKILL while processes go on forking (v1 has no cgroup.kill).
const KILL_ROUNDS: u32 = 50;
/// Deepest and widest tree of nested groups that is walked.
const NESTED_LIMIT: usize = 4096;

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// Controllers of a v1 hierarchy (`name=systemd` too); empty on v2.
    pub controllers: Vec<String>,
    /// The unified hierarchy.
    pub unified: bool,
}

/// Every hierarchy of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hierarchies(pub Vec<Hierarchy>);

impl Hierarchies {
    /// From the caller's mount table.
    pub fn detect() -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/self/mountinfo")?))
    }

    /// The same, looked for once: for processes that end before the machine's mounts change.
    pub fn detect_once() -> io::Result<Self> {
        static FOUND: std::sync::OnceLock<Hierarchies> = std::sync::OnceLock::new();
        match FOUND.get() {
            Some(found) => Ok(found.clone()),
            None => Self::detect().map(|found| FOUND.get_or_init(|| found).clone()),
        }
    }

    /// From the text of a mount table (proc(5), mountinfo). Only mounts of a hierarchy's whole tree count.
    pub fn parse(mount_table: &str) -> Self {
        let mut found: Vec<Hierarchy> = Vec::new();
        for line in mount_table.lines() {
            let Some((before, after)) = line.split_once(" - ") else {
                continue;
            };
            let mut before = before.split(' ').skip(3);
            let (Some(root), Some(mount)) = (before.next(), before.next()) else {
                continue;
            };
            let mut after = after.split(' ');
            let (Some(kind), _, Some(options)) = (after.next(), after.next(), after.next()) else {
                continue;
            };
            let unified = kind == "cgroup2";
            if root != "/" || !(unified || kind == "cgroup") {
                continue;
            }
            let is_controller =
                |option: &&str| !matches!(*option, "rw" | "ro" | "xattr" | "clone_children" | "noprefix");
            let controllers: Vec<String> = if unified {
                Vec::new()
            } else {
                options.split(',').filter(is_controller).map(str::to_owned).collect()
            };
            let hierarchy = Hierarchy { mount: PathBuf::from(mount), controllers, unified };
            let known =
                |other: &Hierarchy| other.unified == unified && other.controllers == hierarchy.controllers;
            if !found.iter().any(known) {
                found.push(hierarchy);
            }
        }
        Self(found)
    }

    /// Only the unified hierarchy is there.
    pub fn is_unified(&self) -> bool {
        !self.0.is_empty() && self.0.iter().all(|hierarchy| hierarchy.unified)
    }

    /// The group at `path` (absolute, below each root).
    pub fn cgroup(&self, path: &str) -> Cgroup {
        let clean: PathBuf = Path::new(path)
            .components()
            .filter(|component| matches!(component, std::path::Component::Normal(_)))
            .collect();
        Cgroup { hierarchies: self.0.clone(), path: clean }
    }
}

/// One group.
#[derive(Clone, Debug)]
pub struct Cgroup {
    hierarchies: Vec<Hierarchy>,
    path: PathBuf,
}

/// What a group used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time.
    pub cpu_nanos: u64,
    /// All memory.
    pub memory_bytes: u64,
    /// Memory without inactive file pages.
    pub working_set_bytes: u64,
    /// Anonymous memory.
    pub rss_bytes: u64,
    /// Tasks.
    pub pids: u64,
}

impl Cgroup {
    /// Its directories, those that exist.
    pub fn directories(&self) -> Vec<PathBuf> {
        self.all_directories().into_iter().filter(|directory| directory.is_dir()).collect()
    }

    fn all_directories(&self) -> Vec<PathBuf> {
        if self.path.as_os_str().is_empty() {
            // Never the root: everything below would kill and remove the machine.
            return Vec::new();
        }
        self.hierarchies.iter().map(|hierarchy| hierarchy.mount.join(&self.path)).collect()
    }

    pub(crate) fn of_controller(&self, controller: &str) -> Option<(PathBuf, bool)> {
        let v1 =
            self.hierarchies.iter().find(|hierarchy| hierarchy.controllers.iter().any(|c| c == controller));
        let hierarchy = v1.or_else(|| self.hierarchies.iter().find(|hierarchy| hierarchy.unified))?;
        Some((hierarchy.mount.join(&self.path), hierarchy.unified))
    }

    /// Its directory on the unified hierarchy.
    pub fn unified_directory(&self) -> Option<PathBuf> {
        let hierarchy = self.hierarchies.iter().find(|hierarchy| hierarchy.unified)?;
        Some(hierarchy.mount.join(&self.path))
    }

    /// Gives its directory and the files that the kernel says go with it to a user (cgroup-v2.rst, "Model of Delegation").
    pub fn delegate(&self, uid: u32, gid: u32) -> io::Result<()> {
        const KERNEL_LIST: &str = "/sys/kernel/cgroup/delegate";
        let Some(directory) = self.unified_directory() else { return Ok(()) };
        let listed = fs::read_to_string(KERNEL_LIST);
        // As the kernel had it before it kept a list (4.15).
        let listed =
            listed.unwrap_or_else(|_| "cgroup.procs\ncgroup.subtree_control\ncgroup.threads\n".to_owned());
        std::os::unix::fs::chown(&directory, Some(uid), Some(gid))?;
        for file in listed.lines() {
            match std::os::unix::fs::chown(directory.join(file), Some(uid), Some(gid)) {
                // Files of controllers that are not on here.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Makes it in every hierarchy and moves the caller in.
    pub fn enter_new(&self) -> io::Result<()> {
        for (hierarchy, directory) in self.hierarchies.iter().zip(self.all_directories()) {
            fs::create_dir_all(&directory)?;
            if hierarchy.controllers.iter().any(|controller| controller == "cpuset") {
                inherit_cpuset(&hierarchy.mount, &self.path)?;
            }
            fs::write(directory.join("cgroup.procs"), "0")?;
        }
        Ok(())
    }

    /// Makes it in the v1 hierarchies without a controller (`name=systemd`) and moves the caller in.
    ///
    /// libcontainer leaves these out; a container would be in their root group, and see it where control groups are mounted for it.
    pub fn enter_named(&self) -> io::Result<()> {
        for (hierarchy, directory) in self.hierarchies.iter().zip(self.all_directories()) {
            let is_named = |controller: &String| controller.starts_with("name=");
            if !hierarchy.unified && hierarchy.controllers.iter().all(is_named) {
                fs::create_dir_all(&directory)?;
                fs::write(directory.join("cgroup.procs"), "0")?;
            }
        }
        Ok(())
    }

    /// Moves the caller into it where it exists.
    ///
    /// On v2 a group with children may hold no processes (cgroup-v2.rst, "No Internal Process Constraint"); then the caller goes where `beside` is.
    pub fn enter(&self, beside: Option<u32>) -> io::Result<()> {
        for (hierarchy, directory) in self.hierarchies.iter().zip(self.all_directories()) {
            match fs::write(directory.join("cgroup.procs"), "0") {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if hierarchy.unified && error.raw_os_error() == Some(libc::EBUSY) => {
                    let neighbour = beside.and_then(unified_path_of).ok_or(error)?;
                    let neighbour = neighbour.trim_start_matches('/');
                    fs::write(hierarchy.mount.join(neighbour).join("cgroup.procs"), "0")?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Pids in the group and below.
    pub fn processes(&self) -> Vec<u32> {
        let mut pids: Vec<u32> = Vec::new();
        for directory in self.directories() {
            for nested in nested_directories(&directory) {
                let text = fs::read_to_string(nested.join("cgroup.procs")).unwrap_or_default();
                pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|pid| *pid != 0));
            }
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Sends a signal to every process once.
    pub fn signal(&self, signal: i32) {
        for pid in self.processes() {
            if let Ok(pid) = i32::try_from(pid) {
                // Gone in between is fine.
                let _ = orlop_linux::process::send_signal(pid, signal);
            }
        }
    }

    /// SIGKILL for all, also for what they fork meanwhile. Does not wait for the deaths.
    pub fn kill(&self) {
        if let Some(directory) = self.unified_directory()
            && self.hierarchies.len() == 1
            && fs::write(directory.join("cgroup.kill"), "1").is_ok()
        {
            return;
        }
        let own = std::process::id();
        let mut known: Vec<u32> = Vec::new();
        for _ in 0..KILL_ROUNDS {
            let pids: Vec<u32> = self.processes().into_iter().filter(|pid| *pid != own).collect();
            if pids.iter().all(|pid| known.contains(pid)) {
                return;
            }
            for pid in &pids {
                if let Some(pid) = i32::try_from(*pid).ok().and_then(rustix::process::Pid::from_raw) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
            known = pids;
        }
    }

    /// Removes it, nested groups first. True when nothing is left; false when something is still busy.
    pub fn try_remove(&self) -> bool {
        let mut gone = true;
        for directory in self.directories() {
            for nested in nested_directories(&directory).iter().rev() {
                match fs::remove_dir(nested) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(_) => gone = false,
                }
            }
        }
        gone
    }

    /// Kills and removes, waiting up to `deadline` for the dying. For callers that may block.
    pub fn remove(&self, deadline: Duration) -> io::Result<()> {
        self.remove_with(deadline, || self.kill())
    }

    /// Removes it, waiting up to `deadline` for what is dying already.
    pub fn remove_empty(&self, deadline: Duration) -> io::Result<()> {
        self.remove_with(deadline, || {})
    }

    fn remove_with(&self, deadline: Duration, kill: impl Fn()) -> io::Result<()> {
        let end = std::time::Instant::now() + deadline;
        let mut pause = Duration::from_millis(1);
        while !self.try_remove() {
            if std::time::Instant::now() >= end {
                let left = self.directories();
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("control groups stay busy: {left:?}"),
                ));
            }
            kill();
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
        Ok(())
    }

    /// How often the OOM killer struck inside.
    pub fn oom_kills(&self) -> u64 {
        let Some((directory, unified)) = self.of_controller("memory") else {
            return 0;
        };
        let file = if unified { "memory.events" } else { "memory.oom_control" };
        keyed(&directory.join(file), "oom_kill").unwrap_or(0)
    }

    /// What it uses now.
    pub fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        if let Some((directory, unified)) = self.of_controller("cpuacct") {
            usage.cpu_nanos = if unified {
                keyed(&directory.join("cpu.stat"), "usage_usec").unwrap_or(0).saturating_mul(1000)
            } else {
                number(&directory.join("cpuacct.usage")).unwrap_or(0)
            };
        }
        if let Some((directory, unified)) = self.of_controller("memory") {
            let names = if unified {
                ("memory.current", "inactive_file", "anon")
            } else {
                ("memory.usage_in_bytes", "total_inactive_file", "total_rss")
            };
            let statistics = directory.join("memory.stat");
            usage.memory_bytes = number(&directory.join(names.0)).unwrap_or(0);
            usage.working_set_bytes =
                usage.memory_bytes.saturating_sub(keyed(&statistics, names.1).unwrap_or(0));
            usage.rss_bytes = keyed(&statistics, names.2).unwrap_or(0);
        }
        if let Some((directory, _)) = self.of_controller("pids") {
            usage.pids = number(&directory.join("pids.current")).unwrap_or(0);
        }
        usage
    }
}

/// A v1 cpuset starts empty and then takes no process; each level copies its parent's.
fn inherit_cpuset(mount: &Path, path: &Path) -> io::Result<()> {
    let mut directory = mount.to_path_buf();
    for part in path.components() {
        let parent = directory.clone();
        directory.push(part);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if fs::read_to_string(directory.join(file))?.trim().is_empty() {
                fs::write(directory.join(file), fs::read_to_string(parent.join(file))?.trim())?;
            }
        }
    }
    Ok(())
}

/// The directory and everything below, parents first; bounded.
fn nested_directories(top: &Path) -> Vec<PathBuf> {
    let mut found = vec![top.to_path_buf()];
    let mut at = 0;
    while at < found.len() && found.len() < NESTED_LIMIT {
        if let Ok(entries) = fs::read_dir(&found[at]) {
            let directories =
                entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            found.extend(directories.map(|entry| entry.path()));
        }
        at += 1;
    }
    found
}

fn unified_path_of(pid: u32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The number behind `key ` in a flat keyed file.
fn keyed(file: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_kinds_of_mount_table() {
        let hybrid = "30 24 0:26 / /sys/fs/cgroup rw - tmpfs cgroup rw\n\
            31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
            32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
            33 30 0:29 / /sys/fs/cgroup/unified rw shared:4 - cgroup2 cgroup2 rw\n\
            34 30 0:29 /sub /mnt rw - cgroup2 cgroup2 rw\n";
        let found = Hierarchies::parse(hybrid);
        assert_eq!(found.0.len(), 3);
        assert_eq!(found.0[0].controllers, ["cpu", "cpuacct"]);
        assert_eq!(found.0[1].controllers, ["name=systemd"]);
        assert!(found.0[2].unified && !found.is_unified());
        let pure =
            Hierarchies::parse("30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n");
        assert!(pure.is_unified());
        assert_eq!(pure.cgroup("/a/../b").unified_directory(), Some("/sys/fs/cgroup/a/b".into()));
    }

    #[test]
    fn the_root_is_never_touched() {
        for path in ["", "/", ".."] {
            assert!(Hierarchies::detect().unwrap().cgroup(path).directories().is_empty());
        }
    }

    #[test]
    fn kills_and_removes_nested_groups() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIP: needs root");
            return;
        }
        let hierarchies = Hierarchies::detect().unwrap();
        let name = format!("/orlop-test-{}", std::process::id());
        let group = hierarchies.cgroup(&name);
        let inner = hierarchies.cgroup(&format!("{name}/inner"));
        for directory in inner.all_directories() {
            fs::create_dir_all(directory).unwrap();
        }
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        for (hierarchy, directory) in hierarchies.0.iter().zip(inner.all_directories()) {
            if hierarchy.controllers.iter().any(|controller| controller == "cpuset") {
                inherit_cpuset(&hierarchy.mount, &inner.path).unwrap();
            }
            fs::write(directory.join("cgroup.procs"), child.id().to_string()).unwrap();
        }
        assert_eq!(group.processes(), [child.id()]);
        assert!(!group.try_remove());
        let waiter = std::thread::spawn(move || child.wait());
        group.remove(Duration::from_secs(5)).unwrap();
        assert!(!waiter.join().unwrap().unwrap().success());
        assert!(group.directories().is_empty());
    }
}
