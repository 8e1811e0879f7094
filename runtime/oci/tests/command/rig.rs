//! Bundles, calls, and a look at what is left.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// What is asked of busybox.
const PROGRAMS: [&str; 14] = [
    "sh", "sleep", "cat", "id", "mkdir", "echo", "true", "false", "tty", "stty", "grep", "pwd", "kill", "env",
];
const DEADLINE: Duration = Duration::from_secs(20);

/// A directory of one test's own: state root, one bundle, one container id and control group.
pub(crate) struct Rig {
    directory: tempfile::TempDir,
    pub(crate) id: String,
    pub(crate) cgroup: String,
}

/// What a call did.
pub(crate) struct Called {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) error: String,
}

impl Called {
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "stdout {:?} stderr {:?}", self.out, self.error);
        self.out
    }

    /// Failed with this text.
    pub(crate) fn fails(self, text: &str) {
        assert_ne!(self.code, 0, "no failure: {:?}", self.out);
        assert!(self.error.contains(text), "{:?} is not in {:?}", text, self.error);
    }
}

pub(crate) fn subject() -> PathBuf {
    std::env::var_os("SUBJECT").map_or_else(|| env!("CARGO_BIN_EXE_orlop-oci-test").into(), PathBuf::from)
}

/// Not some other runtime.
pub(crate) fn is_ours() -> bool {
    subject().file_name().is_none_or(|name| name.to_string_lossy().starts_with("orlop"))
}

impl Rig {
    /// None without root.
    pub(crate) fn new() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() {
            skip("needs root");
            return None;
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let id = format!("orlop-oci-test-{}-{number}", std::process::id());
        let rig = Self { directory: tempfile::tempdir().unwrap(), cgroup: format!("/{id}"), id };
        let rootfs = rig.bundle().join("rootfs");
        fs::create_dir_all(rootfs.join("bin")).unwrap();
        for directory in ["tmp", "etc"] {
            fs::create_dir(rootfs.join(directory)).unwrap();
        }
        fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
        for program in PROGRAMS {
            std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(program)).unwrap();
        }
        rig.configure(|_| {});
        Some(rig)
    }

    pub(crate) fn bundle(&self) -> PathBuf {
        self.directory.path().join("bundle")
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.bundle().join("rootfs")
    }

    /// A path for the test's own use.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Lets other users come as far as the bundle.
    pub(crate) fn open_to_all(&self) {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(self.directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::chown(self.rootfs(), Some(100_000), Some(100_000)).unwrap();
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.path("root")
    }

    /// Writes config.json: a sleeping shell, changed as wanted.
    pub(crate) fn configure(&self, change: impl FnOnce(&mut Value)) {
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
    pub(crate) fn configure_program(&self, arguments: &[&str]) {
        self.configure(|config| config["process"]["args"] = json!(arguments));
    }

    pub(crate) fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(subject());
        command.arg("--root").arg(self.root()).args(arguments);
        command.stdin(Stdio::null());
        command
    }

    /// Calls, with files as output: a container that was started holds the streams and would keep pipes open.
    pub(crate) fn call<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Called {
        self.finish(self.command(arguments))
    }

    pub(crate) fn call_with_input(&self, arguments: &[&str], input: &str) -> Called {
        let path = self.path("input");
        fs::write(&path, input).unwrap();
        let mut command = self.command(arguments);
        command.stdin(fs::File::open(path).unwrap());
        self.finish(command)
    }

    pub(crate) fn finish(&self, mut command: Command) -> Called {
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
        }
    }

    pub(crate) fn create(&self) -> Called {
        let bundle = self.bundle();
        self.call(&["create".as_ref(), "--bundle".as_ref(), bundle.as_os_str(), self.id.as_ref()])
    }

    pub(crate) fn run(&self) -> Called {
        let bundle = self.bundle();
        self.call(&["run".as_ref(), "-b".as_ref(), bundle.as_os_str(), self.id.as_ref()])
    }

    /// A running container.
    pub(crate) fn up(&self) {
        self.create().ok();
        self.verb("start").ok();
    }

    /// `VERB ID`.
    pub(crate) fn verb(&self, verb: &str) -> Called {
        self.call(&[verb, &self.id])
    }

    pub(crate) fn state(&self) -> Value {
        serde_json::from_str(&self.verb("state").ok()).unwrap()
    }

    pub(crate) fn status(&self) -> String {
        self.state()["status"].as_str().unwrap().to_owned()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.state()["pid"].as_u64().unwrap().try_into().unwrap()
    }

    pub(crate) fn wait_for_status(&self, status: &str) {
        wait_for(status, || self.status() == status);
    }

    /// Runs a program in the container.
    pub(crate) fn exec(&self, options: &[&str], program: &[&str]) -> Called {
        let mut arguments = vec!["exec"];
        arguments.extend(options);
        arguments.push(&self.id);
        arguments.extend(program);
        self.call(&arguments)
    }

    /// Directories of the container's control group.
    pub(crate) fn cgroup_directories(&self) -> Vec<PathBuf> {
        orlop_oci::cgroup::Hierarchies::detect().unwrap().cgroup(&self.cgroup).directories()
    }

    pub(crate) fn cgroup_file(&self, v1: (&str, &str), v2: &str) -> String {
        let group = orlop_oci::cgroup::Hierarchies::detect().unwrap().cgroup(&self.cgroup);
        let (directory, unified) = group.controller_directory(v1.0).unwrap();
        let file = if unified { v2 } else { v1.1 };
        fs::read_to_string(directory.join(file)).unwrap().trim().to_owned()
    }

    /// No state, no control group, no mount, no process, no socket.
    pub(crate) fn assert_nothing_left(&self) {
        let state = fs::read_dir(self.root()).into_iter().flatten().flatten();
        assert_eq!(state.map(|entry| entry.path()).collect::<Vec<_>>(), Vec::<PathBuf>::new());
        assert_eq!(self.cgroup_directories(), Vec::<PathBuf>::new());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.directory.path().to_str().unwrap()), "{mounts}");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.command(&["delete", "--force", &self.id]).stderr(Stdio::null()).status();
        let group = orlop_oci::cgroup::Hierarchies::detect().unwrap().cgroup(&self.cgroup);
        let _ = group.remove(DEADLINE);
    }
}

/// The machine limits memory, CPU and pids (a v2 tree beside v1 has no such controllers).
pub(crate) fn has_limits() -> bool {
    let hierarchies = orlop_oci::cgroup::Hierarchies::detect().unwrap();
    let available = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let has = !hierarchies.is_unified() || available.contains("memory");
    if !has {
        skip("needs controllers");
    }
    has
}

fn skip(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIP: {why}");
}

pub(crate) fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A child that is killed and waited for at the end.
pub(crate) struct Child(pub(crate) std::process::Child);

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program for the caller's side, such as a hook.
pub(crate) fn script(path: &Path, body: &str) {
    use std::os::unix::fs::PermissionsExt;
    let mut file = fs::File::create(path).unwrap();
    write!(file, "#!/bin/sh\n{body}\n").unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}
