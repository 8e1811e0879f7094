//! A pod for tests: a shim of its own, a busybox root, everything gone afterwards.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use orlop_oci::cgroup::Hierarchies;
use orlop_shim::client::{Client, ClientError};
use orlop_shim::protocol::{
    ContainerState, CreateContainer, ExecProcess, ExitStatus, Request, Response, RootfsMount, ShimConfig,
};

const BUSYBOX: &str = "/usr/bin/busybox";
const TOOLS: &str = "sh sleep echo cat true false id mkdir ls kill ps tty stty dd head seq nc wc trap touch grep hostname readlink test env pwd mknod";
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Why this machine cannot run the tests.
pub(crate) fn missing() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("root");
    }
    (!Path::new(BUSYBOX).exists()).then_some("busybox-static")
}

#[macro_export]
macro_rules! needs_root {
    () => {
        if let Some(feature) = rig::missing() {
            println!("SKIP: {feature} is missing");
            return;
        }
    };
}

pub(crate) struct Pod {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) cgroup: String,
    pub(crate) shim_pid: u32,
    ended: bool,
}

impl Pod {
    pub(crate) fn start() -> Self {
        Self::start_with(|_| {})
    }

    pub(crate) fn start_with(change: impl FnOnce(&mut ShimConfig)) -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_orlop-shim-test"));
        // As the daemon starts it.
        let sealed = orlop_linux::mount::read_only_file(program).unwrap();
        Self::start_from(format!("/proc/self/fd/{}", sealed.as_raw_fd()).as_ref(), change)
    }

    /// By its path, as a person would.
    pub(crate) fn start_by_path() -> Self {
        Self::start_from(env!("CARGO_BIN_EXE_orlop-shim-test").as_ref(), |_| {})
    }

    fn start_from(program: &Path, change: impl FnOnce(&mut ShimConfig)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let cgroup = format!("/orlop-shim-test-{}-{number}", std::process::id());
        let state_dir = directory.path().join("state");
        fs::create_dir(&state_dir).unwrap();
        make_root(&directory.path().join("root"));
        let mut config = ShimConfig {
            sandbox_id: "sandbox".into(),
            state_dir: state_dir.clone(),
            new_network_namespace: true,
            new_ipc_namespace: true,
            hostname: Some("pod-1".into()),
            shared_pid_namespace: false,
            sysctls: BTreeMap::from([("net.ipv4.ip_unprivileged_port_start".into(), "0".into())]),
            cgroup: format!("{cgroup}/shim"),
            scope: None,
            shm_bytes: 1 << 20,
            user_namespace: None,
        };
        change(&mut config);
        let file = directory.path().join("shim-config.json");
        fs::write(&file, serde_json::to_vec(&config).unwrap()).unwrap();
        let output = Command::new(program).args(["shim", "--config"]).arg(&file).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let identity: serde_json::Value =
            serde_json::from_slice(&fs::read(state_dir.join("shim.json")).unwrap()).unwrap();
        let shim_pid = u32::try_from(identity["pid"].as_u64().unwrap()).unwrap();
        Self { directory, cgroup, shim_pid, ended: false }
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.state_dir(), DEADLINE).unwrap()
    }

    pub(crate) fn call(&self, request: &Request) -> Result<Response, ClientError> {
        self.client().call(request)
    }

    /// A container's request; its configuration is written.
    pub(crate) fn container(
        &self,
        id: &str,
        arguments: &[&str],
        change: impl FnOnce(&mut serde_json::Value),
    ) -> CreateContainer {
        let bundle = self.directory.path().join("bundles").join(id);
        fs::create_dir_all(&bundle).unwrap();
        let mut config = serde_json::json!({
            "ociVersion": "1.1.0",
            "root": {"path": "rootfs"},
            "process": {
                "terminal": false, "user": {"uid": 0, "gid": 0}, "args": arguments, "cwd": "/",
                "env": ["PATH=/bin", "WHO=me"],
                "capabilities": {"bounding": ["CAP_KILL", "CAP_MKNOD"], "effective": ["CAP_KILL", "CAP_MKNOD"], "permitted": ["CAP_KILL", "CAP_MKNOD"]},
            },
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                 "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
                {"destination": "/dev/shm", "type": "bind", "source": self.state_dir().join("shm"), "options": ["rbind", "rprivate", "rw"]},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            ],
            "linux": {
                "cgroupsPath": format!("{}/{id}", self.cgroup),
                "resources": {"devices": [{"allow": false, "access": "rwm"}]},
                "maskedPaths": ["/proc/kcore", "/sys/firmware"], "readonlyPaths": ["/proc/sys"],
                "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "network", "path": "pod"},
                               {"type": "ipc", "path": "pod"}, {"type": "uts", "path": "pod"}],
            },
        });
        change(&mut config);
        fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        let data = self.directory.path().join("data").join(id);
        fs::create_dir_all(data.join("upper")).unwrap();
        fs::create_dir_all(data.join("work")).unwrap();
        CreateContainer {
            id: id.into(),
            bundle,
            rootfs: RootfsMount {
                lower: vec![self.directory.path().join("root")],
                upper: data.join("upper"),
                work: data.join("work"),
            },
            log_path: Some(self.log_path(id)),
            terminal: config["process"]["terminal"].as_bool().unwrap(),
            stdin: false,
            stdin_once: false,
            stop_signal: 15,
            mounts: Vec::new(),
        }
    }

    pub(crate) fn log_path(&self, id: &str) -> PathBuf {
        self.directory.path().join(format!("{id}.log"))
    }

    /// Lines of the log as `stream tag text`.
    pub(crate) fn log(&self, id: &str) -> Vec<String> {
        let text = fs::read_to_string(self.log_path(id)).unwrap_or_default();
        text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
    }

    pub(crate) fn create(&self, request: CreateContainer) -> Result<ContainerState, ClientError> {
        match self.call(&Request::Create(Box::new(request)))? {
            Response::Container(state) => Ok(state),
            other => panic!("{other:?}"),
        }
    }

    /// Creates and starts.
    pub(crate) fn run(&self, id: &str, arguments: &[&str]) -> ContainerState {
        self.run_with(id, arguments, |_| {})
    }

    pub(crate) fn run_with(
        &self,
        id: &str,
        arguments: &[&str],
        change: impl FnOnce(&mut serde_json::Value),
    ) -> ContainerState {
        self.create(self.container(id, arguments, change)).unwrap();
        self.start_container(id).unwrap()
    }

    pub(crate) fn start_container(&self, id: &str) -> Result<ContainerState, ClientError> {
        match self.call(&Request::Start { id: id.into() })? {
            Response::Container(state) => Ok(state),
            other => panic!("{other:?}"),
        }
    }

    /// Waits for the end, by events.
    pub(crate) fn wait(&self, id: &str) -> ExitStatus {
        let mut client = self.client();
        assert!(matches!(client.call(&Request::Events).unwrap(), Response::Ok));
        loop {
            let event = client.event().unwrap();
            if event.container.id == id
                && let Some(exit) = event.container.exit
            {
                let directory = self.state_dir().join("containers").join(id);
                assert_eq!(
                    orlop_shim::exit_file::read(&directory).unwrap().as_ref(),
                    Some(&exit),
                    "on disk before told"
                );
                return exit;
            }
        }
    }

    pub(crate) fn exec(
        &self,
        id: &str,
        arguments: &[&str],
        timeout_millis: u64,
    ) -> Result<(String, String, i32, bool), ClientError> {
        use base64::Engine as _;
        let process = process(arguments);
        let request = Request::ExecSync { id: id.into(), process, timeout_millis, stream: false };
        let decode = |text: &str| {
            String::from_utf8_lossy(&base64::engine::general_purpose::STANDARD.decode(text).unwrap())
                .into_owned()
        };
        match self.call(&request)? {
            Response::ExecSync { stdout, stderr, exit, timed_out } => {
                Ok((decode(&stdout), decode(&stderr), exit.code, timed_out))
            }
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn remove(&self, id: &str) {
        assert!(matches!(self.call(&Request::Remove { id: id.into() }).unwrap(), Response::Ok));
    }

    pub(crate) fn stop(&self, id: &str, grace_millis: u64) {
        assert!(matches!(self.call(&Request::Stop { id: id.into(), grace_millis }).unwrap(), Response::Ok));
    }

    pub(crate) fn shim_log(&self) -> String {
        fs::read_to_string(self.state_dir().join("shim.log")).unwrap_or_default()
    }

    /// Ends the shim and checks that nothing of the pod is left.
    pub(crate) fn end(mut self) {
        self.ended = true;
        assert!(matches!(self.call(&Request::Shutdown).unwrap(), Response::Ok));
        for _ in 0..200 {
            if !Path::new(&format!("/proc/{}", self.shim_pid)).exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(!Path::new(&format!("/proc/{}", self.shim_pid)).exists(), "the shim is still there");
        let hierarchies = Hierarchies::detect().unwrap();
        // As the daemon does: nobody can remove the group that it is in.
        hierarchies.cgroup(&format!("{}/shim", self.cgroup)).remove_empty(Duration::from_secs(5)).unwrap();
        let left: Vec<_> = leftovers(&hierarchies, &self.cgroup);
        assert!(left.is_empty(), "cgroups: {left:?}");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let path = self.directory.path().display().to_string();
        assert!(!mounts.contains(&path), "mounts of {path}");
    }
}

/// Control groups of the pod that are left; the pod's own, which the shim does not own, are removed first.
fn leftovers(hierarchies: &Hierarchies, cgroup: &str) -> Vec<PathBuf> {
    let directories = hierarchies.cgroup(cgroup).directories();
    for directory in &directories {
        let _ = fs::remove_dir(directory);
    }
    directories.into_iter().filter(|directory| directory.exists()).collect()
}

impl Drop for Pod {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("shim.log:\n{}", self.shim_log());
        }
        if !self.ended {
            let hierarchies = Hierarchies::detect().unwrap();
            let _ = self.client().call(&Request::Shutdown);
            let _ = hierarchies.cgroup(&self.cgroup).remove(Duration::from_secs(5));
        }
    }
}

pub(crate) fn process(arguments: &[&str]) -> ExecProcess {
    ExecProcess {
        args: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
        terminal: false,
        stdin: false,
        stdout: true,
        stderr: true,
    }
}

fn make_root(root: &Path) {
    for directory in ["bin", "etc", "proc", "dev", "sys", "tmp", "home/web"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).unwrap();
    for tool in TOOLS.split(' ') {
        symlink("busybox", root.join("bin").join(tool)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33:web:/home/web:/bin/sh\n")
        .unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nweb:x:33:\n").unwrap();
    fs::write(root.join("bin/not-executable"), "x").unwrap();
}
