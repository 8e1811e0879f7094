//! Bundles, calls, and a look at what is left.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;
use orlop_oci::cgroup::{Cgroup, Hierarchies};
use serde_json::{Value, json};

use crate::subject::{Kind, Subject};

/// What is asked of busybox.
const PROGRAMS: &str = "sh sleep cat id mkdir echo true false tty stty grep pwd kill env hostname ls stat readlink mount umount touch \
    rm rmdir ln dd head tail sed awk cut wc chmod chown mknod ip od sort tr test ps ionice taskset nproc find setpriv sysctl date cp mv df";
const DEADLINE: Duration = Duration::from_secs(20);

/// A directory of one test's own: state root, one bundle, one container id and control group.
pub struct Rig {
    directory: tempfile::TempDir,
    /// The container.
    pub id: String,
    /// Its control group, below each hierarchy's root.
    pub cgroup: String,
    /// Who is tested.
    pub subject: Subject,
}

/// What a call did.
pub struct Called {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub error: String,
    /// Who did it.
    pub kind: Kind,
}

impl Called {
    /// Succeeded; its output.
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "stdout {:?} stderr {:?}", self.out, self.error);
        self.out
    }

    /// Failed with this text, which callers of runc match on; crun's texts are its own.
    pub fn fails(self, text: &str) {
        assert_ne!(self.code, 0, "no failure: {:?}", self.out);
        if self.kind == Kind::Crun {
            assert!(!self.error.is_empty() || !self.out.is_empty(), "no reason");
            return;
        }
        assert!(self.error.contains(text), "{:?} is not in {:?}", text, self.error);
    }
}

/// The busybox of every container, and of scripts on the caller's side.
pub fn busybox() -> PathBuf {
    std::env::var_os("BUSYBOX").map_or_else(|| "/bin/busybox".into(), PathBuf::from)
}

/// The build of ours that lies beside the running test program.
pub(crate) fn default_subject() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let built = test.parent().and_then(Path::parent).unwrap().join("orlop-oci");
    assert!(built.exists(), "{} is not built: name a SUBJECT", built.display());
    built
}

impl Rig {
    /// None without root.
    pub fn new() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() {
            skip("needs root");
            return None;
        }
        let subject = Subject::from_environment();
        own_mount_namespace(subject.kind);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let id = format!("orlop-oci-test-{}-{number}", std::process::id());
        let rig = Self { directory: tempfile::tempdir().unwrap(), cgroup: format!("/{id}"), id, subject };
        let rootfs = rig.bundle().join("rootfs");
        fs::create_dir_all(rootfs.join("bin")).unwrap();
        for directory in ["tmp", "etc"] {
            fs::create_dir(rootfs.join(directory)).unwrap();
        }
        fs::copy(busybox(), rootfs.join("bin/busybox")).unwrap();
        for program in PROGRAMS.split_whitespace() {
            std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(program)).unwrap();
        }
        rig.configure(|_| {});
        Some(rig)
    }

    /// The bundle.
    pub fn bundle(&self) -> PathBuf {
        self.directory.path().join("bundle")
    }

    /// The container's root file system.
    pub fn rootfs(&self) -> PathBuf {
        self.bundle().join("rootfs")
    }

    /// A path for the test's own use.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Lets other users come as far as the bundle.
    pub fn open_to_all(&self) {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(self.directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::chown(self.rootfs(), Some(100_000), Some(100_000)).unwrap();
    }

    /// `--root`.
    pub fn root(&self) -> PathBuf {
        self.path("root")
    }

    /// Writes config.json: a sleeping shell, changed as wanted.
    pub fn configure(&self, change: impl FnOnce(&mut Value)) {
        let capabilities = json!(["CAP_KILL", "CAP_CHOWN", "CAP_SETUID", "CAP_SETGID"]);
        let quiet = json!(["nosuid", "noexec", "nodev"]);
        let mut config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": ["sleep", "1000"],
                "env": ["PATH=/bin", "FROM=config"],
                "cwd": "/",
                "capabilities": {
                    "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
                },
                "noNewPrivileges": true,
            },
            "root": {"path": "rootfs"},
            "annotations": {"org.example.key": "value"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                    "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": quiet},
            ],
            "linux": {
                "cgroupsPath": self.cgroup,
                "resources": {"devices": [{"allow": false, "access": "rwm"}]},
                "namespaces": [
                    {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"},
                ],
            },
        });
        change(&mut config);
        fs::write(self.bundle().join("config.json"), serde_json::to_vec_pretty(&config).unwrap()).unwrap();
    }

    /// The same with another program.
    pub fn configure_program(&self, arguments: &[&str]) {
        self.configure(|config| config["process"]["args"] = json!(arguments));
    }

    /// Runs a shell line to its end as the program of a container that is changed so.
    pub fn shell(&self, line: &str, change: impl FnOnce(&mut Value)) -> Called {
        self.configure(|config| {
            config["process"]["args"] = json!(["sh", "-c", line]);
            change(config);
        });
        self.run()
    }

    /// A call, not made yet.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = self.subject.command();
        command.arg("--root").arg(self.root()).args(arguments);
        command.stdin(Stdio::null());
        command
    }

    /// Calls, with files as output: a container that was started holds the streams and would keep pipes open.
    pub fn call<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Called {
        self.finish(self.command(arguments))
    }

    /// With a text as standard input.
    pub fn call_with_input(&self, arguments: &[&str], input: &str) -> Called {
        let path = self.path("input");
        fs::write(&path, input).unwrap();
        let mut command = self.command(arguments);
        command.stdin(fs::File::open(path).unwrap());
        self.finish(command)
    }

    /// Makes a call.
    pub fn finish(&self, mut command: Command) -> Called {
        let out = tempfile::NamedTempFile::new().unwrap();
        let error = tempfile::NamedTempFile::new().unwrap();
        let status = command
            .stdout(out.reopen().unwrap())
            .stderr(error.reopen().unwrap())
            .status()
            .expect("the subject starts");
        Called {
            code: status.code().expect("the subject exits by itself"),
            out: fs::read_to_string(out.path()).unwrap(),
            error: fs::read_to_string(error.path()).unwrap(),
            kind: self.subject.kind,
        }
    }

    /// `create`.
    pub fn create(&self) -> Called {
        let bundle = self.bundle();
        self.call(&["create".as_ref(), "--bundle".as_ref(), bundle.as_os_str(), self.id.as_ref()])
    }

    /// `run` in the foreground.
    pub fn run(&self) -> Called {
        let bundle = self.bundle();
        self.call(&["run".as_ref(), "-b".as_ref(), bundle.as_os_str(), self.id.as_ref()])
    }

    /// A running container.
    pub fn up(&self) {
        self.create().ok();
        self.verb("start").ok();
    }

    /// `VERB ID`.
    pub fn verb(&self, verb: &str) -> Called {
        self.call(&[verb, &self.id])
    }

    /// What `state` prints.
    pub fn state(&self) -> Value {
        serde_json::from_str(&self.verb("state").ok()).unwrap()
    }

    /// Its status.
    pub fn status(&self) -> String {
        self.state()["status"].as_str().unwrap().to_owned()
    }

    /// The first process.
    pub fn pid(&self) -> u32 {
        self.state()["pid"].as_u64().unwrap().try_into().unwrap()
    }

    /// Until it is that.
    pub fn wait_for_status(&self, status: &str) {
        wait_for(status, || self.status() == status);
    }

    /// Runs a program in the container.
    pub fn exec(&self, options: &[&str], program: &[&str]) -> Called {
        let mut arguments = vec!["exec"];
        arguments.extend(options);
        arguments.push(&self.id);
        arguments.extend(program);
        self.call(&arguments)
    }

    /// The container's control group.
    pub fn group(&self) -> Cgroup {
        cgroup_hierarchies().cgroup(&self.cgroup)
    }

    /// Directories of the container's control group.
    pub fn cgroup_directories(&self) -> Vec<PathBuf> {
        self.group().directories()
    }

    /// A file of the container's group: (controller, file) on v1, or the file on v2.
    pub fn cgroup_file(&self, v1: (&str, &str), v2: &str) -> String {
        let group = self.group();
        let (directory, unified) = group.controller_directory(v1.0).unwrap();
        let file = if unified { v2 } else { v1.1 };
        fs::read_to_string(directory.join(file)).unwrap().trim().to_owned()
    }

    /// Whether the kernel has that file.
    pub fn has_cgroup_file(&self, v1: (&str, &str), v2: &str) -> bool {
        let (directory, unified) = self.group().controller_directory(v1.0).unwrap();
        directory.join(if unified { v2 } else { v1.1 }).exists()
    }

    /// No state, no control group, no mount, no process, no socket.
    pub fn assert_nothing_left(&self) {
        let state = fs::read_dir(self.root()).into_iter().flatten().flatten();
        assert_eq!(state.map(|entry| entry.path()).collect::<Vec<_>>(), Vec::<PathBuf>::new());
        assert_eq!(self.cgroup_directories(), Vec::<PathBuf>::new());
        let mounts = mount_table();
        assert!(!mounts.contains(self.directory.path().to_str().unwrap()), "{mounts}");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.command(&["delete", "--force", &self.id]).stderr(Stdio::null()).status();
        let group = self.group();
        let _ = group.remove(DEADLINE);
    }
}

/// Once per thread: its mounts are its own from then on, and those of the containers it makes.
fn own_mount_namespace(kind: Kind) {
    thread_local! {
        static DONE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    }
    if DONE.replace(true) {
        return;
    }
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    nix::mount::mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).unwrap();
    // crun refuses machines that have both kinds; what it sees is then a v1 machine.
    let hierarchies = cgroup_hierarchies();
    if kind == Kind::Crun && !hierarchies.is_unified() {
        for hierarchy in hierarchies.0.iter().filter(|hierarchy| hierarchy.unified) {
            nix::mount::umount2(&hierarchy.mount, MntFlags::MNT_DETACH).unwrap();
        }
    }
}

/// Of this thread's mount namespace.
fn mount_table() -> String {
    fs::read_to_string("/proc/thread-self/mountinfo").unwrap()
}

/// As this thread sees them.
pub fn cgroup_hierarchies() -> Hierarchies {
    Hierarchies::parse(&mount_table())
}

/// Only version 2.
pub fn is_unified() -> bool {
    cgroup_hierarchies().is_unified()
}

/// The machine limits memory, CPU and pids (a v2 tree beside v1 has no such controllers).
pub fn has_limits() -> bool {
    let hierarchies = cgroup_hierarchies();
    let available = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let has = !hierarchies.is_unified() || available.contains("memory");
    if !has {
        skip("needs controllers");
    }
    has
}

/// Never silent: on standard error, and in the file that `ORLOP_SKIPS` names.
pub fn skip(why: &str) {
    let thread = std::thread::current();
    let line = format!("SKIP {}: {why}\n", thread.name().unwrap_or("main"));
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(path) = std::env::var_os("ORLOP_SKIPS") {
        let file = fs::OpenOptions::new().append(true).create(true).open(path);
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}

/// Asks again and again.
///
/// # Panics
/// When it never becomes true.
pub fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A child that is killed and waited for at the end.
pub struct Child(pub std::process::Child);

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program for the caller's side, such as a hook.
pub fn script(path: &Path, body: &str) {
    use std::os::unix::fs::PermissionsExt;
    let mut file = fs::File::create(path).unwrap();
    write!(file, "#!{} sh\n{body}\n", busybox().display()).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// All that the tests' containers may hold; what the caller lacks is left out by every runtime's rules.
pub fn grant(config: &mut Value, names: &[&str]) {
    for set in ["bounding", "effective", "permitted"] {
        config["process"]["capabilities"][set] = json!(names);
    }
}

/// One more mount.
pub fn add_mount(config: &mut Value, mount: Value) {
    config["mounts"].as_array_mut().unwrap().push(mount);
}

/// One more namespace, or another path for it.
pub fn set_namespace(config: &mut Value, namespace: Value) {
    drop_namespace(config, namespace["type"].as_str().unwrap());
    config["linux"]["namespaces"].as_array_mut().unwrap().push(namespace);
}

/// Without a namespace of that type.
pub fn drop_namespace(config: &mut Value, kind: &str) {
    config["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != kind);
}

/// This thread's.
pub fn own_namespace(kind: &str) -> String {
    fs::read_link(format!("/proc/thread-self/ns/{kind}")).unwrap().to_string_lossy().into_owned()
}
