//! The machine that a subject runs on: a network namespace, a mount namespace with empty `/run` and `/var/lib`, a cgroup.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orlop_tests::{Machine, Output, try_run};

const CGROUP_ROOT: &str = "/sys/fs/cgroup";
const PATIENCE: Duration = Duration::from_secs(20);
/// Holds the mount namespace until its standard input ends, which it does with this process.
const ANCHOR: &str = "mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/lib && mkdir -p /run/netns && echo ready && exec cat";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Removed on drop, with every process in its cgroup.
#[derive(Debug)]
pub struct Host {
    anchor: Child,
    cgroup: String,
    /// Files that the suite, the subject and the containers share; at the same place for all of them.
    directory: tempfile::TempDir,
    machine: Machine,
}

impl Host {
    /// A new one.
    ///
    /// # Errors
    /// A namespace, cgroup or directory that cannot be made.
    pub fn new(label: &str) -> anyhow::Result<Self> {
        let machine = Machine::new();
        let directory = tempfile::Builder::new().prefix(&format!("cri-{label}-")).tempdir()?;
        let mut anchor = machine
            .command("unshare")
            .args(["--mount", "--propagation", "private", "--", "sh", "-c", ANCHOR])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("failed to start unshare(1)")?;
        let mut line = String::new();
        let said = anchor.stdout.take().context("its output is piped")?;
        std::io::BufRead::read_line(&mut std::io::BufReader::new(said), &mut line)?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let cgroup = format!("orlop-cri-{}-{number}", std::process::id());
        let host = Self { anchor, cgroup, directory, machine };
        anyhow::ensure!(line == "ready\n", "the mount namespace could not be made");
        std::fs::create_dir_all(host.daemon_cgroup())?;
        Ok(host)
    }

    /// The directory that everybody sees.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `/run/NAME` of the machine, as this process reaches it.
    pub fn run_path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root/run", self.anchor.id())).join(name)
    }

    /// A command on the machine: in its network and mount namespaces.
    pub fn command(&self, program: &str) -> Command {
        let mut command = self.machine.command("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.anchor.id())).arg("--").arg(program);
        command
    }

    /// Runs a command on the machine to its end.
    pub fn run(&self, words: &[&str]) -> Output {
        try_run(self.command(words[0]).args(&words[1..]), "")
    }

    /// As [`Host::run`]; the command must succeed.
    ///
    /// # Errors
    /// What it said.
    pub fn must(&self, words: &[&str]) -> anyhow::Result<String> {
        let output = self.run(words);
        anyhow::ensure!(output.code == 0, "{words:?} ended with {}: {}", output.code, output.stderr);
        Ok(output.stdout)
    }

    /// Moves the calling thread into the machine's network namespace, for good.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enter_network(&self) -> std::io::Result<()> {
        self.machine.enter()
    }

    /// The `cgroup_parent` of a pod, as CRI wants it.
    pub fn pod_cgroup(&self, pod: &str) -> String {
        format!("/{}/{pod}", self.cgroup)
    }

    /// Starts a process of the subject in the machine's namespaces and cgroup; its output is added to `log`.
    ///
    /// # Errors
    /// A program that cannot be started.
    pub fn start(&self, words: &[&str], log: &Path) -> anyhow::Result<Child> {
        let output = std::fs::File::options().create(true).append(true).open(log)?;
        let mut command = self.command("sh");
        command.args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""]).arg(self.daemon_cgroup());
        command.args(words).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        command.spawn().with_context(|| format!("failed to start {words:?}"))
    }

    /// Every process of the subject and its containers.
    pub fn pids(&self) -> BTreeSet<u32> {
        self.cgroups().iter().flat_map(|path| pids_below(path)).collect()
    }

    /// What there is: to be compared with what there was.
    pub fn inventory(&self) -> Inventory {
        let mounts = read(&format!("/proc/{}/mountinfo", self.anchor.id()));
        let mount_point = |line: &str| line.split(' ').nth(4).unwrap_or_default().to_owned();
        let links = self.run(&["ls", "/sys/class/net"]).stdout;
        // sysfs shows the namespace that mounted it; what `ip` says is always about its own.
        let own_links = self.run(&["ip", "-oneline", "link"]).stdout;
        debug_assert!(!links.is_empty());
        let pids = self.pids();
        let mut cgroups = BTreeSet::new();
        for path in self.cgroups() {
            directories_below(&path, &mut cgroups);
        }
        let mut files = BTreeSet::new();
        for root in [self.directory.path().to_owned(), self.run_path("")] {
            files_below(&root, &mut files);
        }
        Inventory {
            mounts: sorted(mounts.lines().map(mount_point)),
            interfaces: sorted(
                own_links.lines().filter_map(|line| line.split(": ").nth(1)).map(str::to_owned),
            ),
            network_namespaces: pids
                .iter()
                .filter_map(|pid| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok())
                .map(|link| link.to_string_lossy().into_owned())
                .collect(),
            processes: pids.iter().map(|pid| (*pid, command_line(*pid))).collect(),
            cgroups,
            files,
        }
    }

    /// Makes a pod's cgroup, as a kubelet does before it calls the runtime; where the machine has one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn make_pod_cgroup(&self, pod: &str) -> std::io::Result<()> {
        self.cgroups().iter().try_for_each(|path| std::fs::create_dir(path.join(pod)))
    }

    /// Directories of a cgroup in all hierarchies, given from their roots.
    pub fn directories_of(&self, cgroup: &str) -> Vec<PathBuf> {
        let roots = std::iter::once(PathBuf::from(CGROUP_ROOT)).chain(children(Path::new(CGROUP_ROOT)));
        roots.map(|root| root.join(cgroup.trim_start_matches('/'))).filter(|path| path.is_dir()).collect()
    }

    /// Removes the cgroups of pods that are gone, for runtimes that leave those that they made without a kubelet.
    pub fn remove_pod_cgroups(&self) {
        for pod in self.cgroups().iter().flat_map(|path| children(path)) {
            // One with something in it stays, and is found.
            let _ = std::fs::remove_dir(pod);
        }
    }

    fn daemon_cgroup(&self) -> PathBuf {
        let pids = Path::new(CGROUP_ROOT).join("pids");
        let hierarchy = if pids.exists() { pids } else { PathBuf::from(CGROUP_ROOT) };
        hierarchy.join(&self.cgroup).join("daemon")
    }

    /// The machine's cgroup in each hierarchy.
    fn cgroups(&self) -> Vec<PathBuf> {
        let hierarchies =
            std::fs::read_dir(CGROUP_ROOT).into_iter().flatten().flatten().map(|entry| entry.path());
        std::iter::once(PathBuf::from(CGROUP_ROOT))
            .chain(hierarchies)
            .map(|hierarchy| hierarchy.join(&self.cgroup))
            .filter(|path| path.is_dir())
            .collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let end = Instant::now() + PATIENCE;
        loop {
            for pid in self.pids() {
                if let Ok(pid) = i32::try_from(pid) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
            self.cgroups().iter().for_each(|path| remove_below(path));
            if self.cgroups().is_empty() {
                break;
            }
            if Instant::now() > end {
                eprintln!("left behind: {:?}", self.cgroups());
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.anchor.kill();
        let _ = self.anchor.wait();
    }
}

/// Everything that a pod can leave on a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Mount points of the machine's table, each as often as it is there.
    pub mounts: Vec<String>,
    /// Network interfaces.
    pub interfaces: Vec<String>,
    /// Network namespaces that a process is in.
    pub network_namespaces: BTreeSet<String>,
    /// Processes of the subject.
    pub processes: BTreeSet<(u32, String)>,
    /// Control groups below the machine's.
    pub cgroups: BTreeSet<PathBuf>,
    /// Files and directories of the subject.
    pub files: BTreeSet<PathBuf>,
}

impl Inventory {
    /// What is here and was not there `before`.
    pub fn since(&self, before: &Self) -> Vec<String> {
        fn new<'a, T: PartialEq + 'a>(
            now: impl IntoIterator<Item = &'a T>,
            then: impl IntoIterator<Item = &'a T>,
        ) -> Vec<&'a T> {
            let mut then: Vec<&T> = then.into_iter().collect();
            let is_new = |item: &&T| match then.iter().position(|other| other == item) {
                Some(at) => {
                    then.swap_remove(at);
                    false
                }
                None => true,
            };
            now.into_iter().filter(is_new).collect()
        }
        let mut found = Vec::new();
        found.extend(new(&self.mounts, &before.mounts).into_iter().map(|at| format!("mount {at}")));
        found.extend(
            new(&self.interfaces, &before.interfaces).into_iter().map(|name| format!("interface {name}")),
        );
        found.extend(
            new(&self.network_namespaces, &before.network_namespaces)
                .into_iter()
                .map(|name| format!("network namespace {name}")),
        );
        found.extend(
            new(&self.processes, &before.processes)
                .into_iter()
                .map(|(pid, line)| format!("process {pid} {line}")),
        );
        found.extend(
            new(&self.cgroups, &before.cgroups).into_iter().map(|path| format!("cgroup {}", path.display())),
        );
        found.extend(
            new(&self.files, &before.files).into_iter().map(|path| format!("file {}", path.display())),
        );
        found
    }
}

fn sorted(items: impl Iterator<Item = String>) -> Vec<String> {
    let mut items: Vec<String> = items.collect();
    items.sort();
    items
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// A process's arguments with spaces between them.
pub fn command_line(pid: u32) -> String {
    read(&format!("/proc/{pid}/cmdline")).replace('\0', " ").trim_end().to_owned()
}

fn children(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn pids_below(directory: &Path) -> Vec<u32> {
    let text = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    let own = text.lines().filter_map(|line| line.parse().ok());
    own.chain(children(directory).iter().flat_map(|child| pids_below(child))).collect()
}

fn directories_below(directory: &Path, found: &mut BTreeSet<PathBuf>) {
    for child in children(directory) {
        directories_below(&child, found);
        found.insert(child);
    }
}

fn files_below(directory: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files_below(&entry.path(), found);
        }
        found.insert(entry.path());
    }
}

fn remove_below(directory: &Path) {
    children(directory).iter().for_each(|child| remove_below(child));
    let _ = std::fs::remove_dir(directory);
}
