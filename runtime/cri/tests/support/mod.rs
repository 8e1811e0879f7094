//! A daemon in this process, over a fake shim (or a real one: `ORLOP_TEST_SHIM`), a script as CNI plugin and one image.
#![allow(clippy::print_stdout, dead_code, reason = "each test program uses its own part")]

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use orlop_cri::v1;
use orlop_cri::v1::image_service_client::ImageServiceClient;
use orlop_cri::v1::runtime_service_client::RuntimeServiceClient;
use orlop_daemon::{Frame, Settings};
use orlop_runtime::Config;
use sha2::Digest as _;
use tonic::transport::Channel;

pub(crate) const IMAGE: &str = "docker.io/library/busybox:test";

/// Whether a real shim runs the containers.
pub(crate) fn real_shim() -> Option<Vec<String>> {
    let command = std::env::var("ORLOP_TEST_SHIM").ok()?;
    Some(command.split_whitespace().map(str::to_owned).collect())
}

fn shim_command() -> Vec<String> {
    real_shim().unwrap_or_else(|| vec![example("fake_shim")])
}

/// A program that is built with the tests.
fn example(name: &str) -> String {
    let this = std::env::current_exe().unwrap();
    let path = this.parent().unwrap().parent().unwrap().join("examples").join(name);
    assert!(path.exists(), "{} is built with the tests", path.display());
    path.to_string_lossy().into_owned()
}

/// A subcommand of the program that stands for the real binary.
pub(crate) fn real(subcommand: &str) -> Vec<String> {
    vec![example("runtime_process"), subcommand.to_owned()]
}

/// One node's directories; everything of it is killed and removed when it is dropped.
pub(crate) struct Node {
    pub directory: tempfile::TempDir,
    daemon: Option<(Frame, std::thread::JoinHandle<anyhow::Result<()>>)>,
}

impl Node {
    pub(crate) fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("cri").tempdir_in("/tmp").unwrap();
        for name in ["net.d", "bin", "root", "state", "logs"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        let node = Self { directory, daemon: None };
        node.write_plugin();
        node
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write_plugin(&self) {
        let log = self.path("cni.log");
        let script = format!(
            "#!/bin/sh\necho \"$CNI_COMMAND $CNI_CONTAINERID\" >> {}\n[ \"$CNI_COMMAND\" = ADD ] && echo '{{\"cniVersion\":\"1.0.0\",\"ips\":[{{\"address\":\"10.9.8.7/24\"}}]}}'\ntrue\n",
            log.display()
        );
        let path = self.path("bin/test-net");
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub(crate) fn write_network(&self) {
        let list = r#"{"cniVersion":"1.0.0","name":"test","plugins":[{"type":"test-net"}]}"#;
        std::fs::write(self.path("net.d/10-test.conflist"), list).unwrap();
    }

    pub(crate) fn cni_calls(&self) -> Vec<String> {
        std::fs::read_to_string(self.path("cni.log")).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    pub(crate) fn config(&self) -> Config {
        Config {
            listen: format!("unix://{}", self.path("cri.sock").display()),
            root: self.path("root"),
            state: self.path("state"),
            cni_conf_dir: self.path("net.d"),
            cni_bin_dirs: vec![self.path("bin")],
            shim_command: shim_command(),
            streamer_command: real("streamer"),
            ..Config::default()
        }
    }

    /// Imports the image, as `orlop image import` would.
    pub(crate) fn import_image(&self) {
        let config = orlop_images::Config { root: self.path("root"), ..orlop_images::Config::default() };
        let store = orlop_images::ImageStore::open(config).unwrap();
        let archive = self.path("busybox.tar");
        std::fs::write(&archive, busybox_archive()).unwrap();
        store.import(&archive).unwrap();
    }

    /// Starts the daemon and waits until it answers.
    pub(crate) async fn start(&mut self) -> Client {
        self.start_with(self.config()).await
    }

    pub(crate) async fn start_with(&mut self, config: Config) -> Client {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            orlop_daemon::run(Settings::new("runtime"), |frame| async move {
                orlop_runtime::start(&frame, config).await?;
                let _ = sender.send(frame);
                Ok(())
            })
        });
        let Ok(frame) = receiver.await else { panic!("{:#}", thread.join().unwrap().unwrap_err()) };
        self.daemon = Some((frame, thread));
        Client::new(&self.path("cri.sock"))
    }

    /// Starts the daemon as a process of its own, which a test may kill, and waits until it answers.
    pub(crate) async fn spawn(&mut self, config: Config) -> (Daemon, Client) {
        self.spawn_with(config, &[]).await
    }

    /// The same with more in its environment.
    pub(crate) async fn spawn_with(
        &mut self,
        config: Config,
        environment: &[(&str, &str)],
    ) -> (Daemon, Client) {
        let file = self.path("runtime.json");
        std::fs::write(&file, serde_json::to_vec(&config).unwrap()).unwrap();
        let command = real("runtime");
        let mut command_line = std::process::Command::new(&command[0]);
        command_line.arg(&command[1]).arg(&file).envs(environment.iter().copied());
        let child = command_line.spawn().unwrap();
        let daemon = Daemon(child);
        let mut client = Client::new(&self.path("cri.sock"));
        let deadline = Instant::now() + Duration::from_secs(30);
        while client.runtime.version(v1::VersionRequest::default()).await.is_err() {
            assert!(Instant::now() < deadline, "the daemon does not answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
            client = Client::new(&self.path("cri.sock"));
        }
        (daemon, client)
    }

    /// Every streamer of this node that lives, retired ones too.
    pub(crate) fn streamers(&self) -> Vec<i32> {
        let file = self.path("state/streamer-config.json").to_string_lossy().into_owned();
        let pids = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok());
        let serves = |pid: &i32| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            command.split(|byte| *byte == 0).any(|word| word == file.as_bytes())
        };
        pids.filter(serves).collect()
    }

    /// Ends the daemon; its shims go on.
    pub(crate) async fn stop(&mut self) {
        if let Some((frame, thread)) = self.daemon.take() {
            frame.shutdown();
            tokio::task::spawn_blocking(move || thread.join().unwrap().unwrap()).await.unwrap();
        }
    }

    /// The shim of a sandbox.
    pub(crate) fn shim_pid(&self, sandbox: &str) -> i32 {
        let path = self.path("state/sandboxes").join(sandbox).join("shim.json");
        let identity: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        i32::try_from(identity["pid"].as_i64().unwrap()).unwrap()
    }

    /// Cgroups of pods and containers, in any hierarchy.
    pub(crate) fn cgroups(&self) -> Vec<PathBuf> {
        let hierarchies = std::fs::read_dir("/sys/fs/cgroup").unwrap();
        let parents = hierarchies.map(|entry| entry.unwrap().path().join(cgroup_parent(self)));
        let entries = parents.filter_map(|parent| std::fs::read_dir(parent).ok()).flatten();
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect()
    }

    pub(crate) fn entries(&self, name: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path(name)) else {
            return Vec::new();
        };
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for sandbox in self.entries("state/sandboxes") {
            if self.path("state/sandboxes").join(&sandbox).join("shim.json").exists() {
                let pid = nix::unistd::Pid::from_raw(self.shim_pid(&sandbox));
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
        }
        if let Some((frame, thread)) = self.daemon.take() {
            frame.shutdown();
            let _ = thread.join();
        }
        for pid in self.streamers() {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        destroy_cgroup(&cgroup_parent(self));
    }
}

/// A daemon that is a process of its own.
pub(crate) struct Daemon(std::process::Child);

impl Daemon {
    /// kill -9.
    pub(crate) fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One per node: tests may share a process.
fn cgroup_parent(node: &Node) -> String {
    let name = node.directory.path().file_name().unwrap().to_string_lossy().into_owned();
    format!("orlop-test-{}", name.trim_matches('.'))
}

/// Kills and removes what a failed test left of real containers.
fn destroy_cgroup(name: &str) {
    let Ok(hierarchies) = std::fs::read_dir("/sys/fs/cgroup") else { return };
    let mut roots: Vec<PathBuf> = hierarchies.flatten().map(|entry| entry.path()).collect();
    roots.push(PathBuf::from("/sys/fs/cgroup"));
    for root in roots {
        let parent = root.join(name);
        for _ in 0..100 {
            let children: Vec<PathBuf> = std::fs::read_dir(&parent)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path())
                .collect();
            for child in children.iter().filter(|path| path.is_dir()) {
                let pids = std::fs::read_to_string(child.join("cgroup.procs")).unwrap_or_default();
                for pid in pids.lines().filter_map(|line| line.parse().ok()) {
                    let _ = nix::sys::signal::kill(
                        nix::unistd::Pid::from_raw(pid),
                        nix::sys::signal::Signal::SIGKILL,
                    );
                }
                let _ = std::fs::remove_dir(child);
            }
            if !parent.exists() || std::fs::remove_dir(&parent).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// How the real shim of the same build is started; `None` (SKIP) when that was not built.
pub(crate) fn built_shim() -> Option<Vec<String>> {
    let shim = real_shim().or_else(|| {
        let this = std::env::current_exe().unwrap();
        let built = this.ancestors().nth(2)?.join("orlop-shim-test");
        built.exists().then(|| vec![built.to_string_lossy().into_owned(), "shim".to_owned()])
    });
    if shim.is_none() {
        println!("SKIP orlop-shim-test is not built");
    }
    shim
}

/// A node with the real shim of the same build, and its client; `None` (SKIP) when that was not built.
pub(crate) async fn real_node(change: impl FnOnce(&mut Config)) -> Option<(Node, Client)> {
    let shim = built_shim()?;
    let mut node = Node::new();
    node.write_network();
    node.import_image();
    let mut config = node.config();
    config.shim_command = shim;
    change(&mut config);
    let client = node.start_with(config).await;
    Some((node, client))
}

/// A container that runs a busybox script.
pub(crate) fn shell(name: &str, script: &str) -> v1::ContainerConfig {
    container(name, &["/bin/busybox", "sh", "-c", script])
}

/// Its security context.
pub(crate) fn context(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap()
}

/// What a busybox command in a container says; its output when it fails, too.
pub(crate) async fn say(client: &mut Client, container: &str, script: &str) -> String {
    let answer = client.exec_sync(container, &["/bin/busybox", "sh", "-c", script]).await.unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
    format!("{}{}", text(&answer.stdout), text(&answer.stderr))
}

/// Adds an image of layers (bottom first) of files; a name that starts with `.wh.` removes what is below.
pub(crate) fn import_files(node: &Node, name: &str, layers: &[&[(&str, &str)]]) {
    let layers: Vec<Vec<u8>> = layers
        .iter()
        .map(|files| {
            let mut layer = tar::Builder::new(Vec::new());
            for (path, content) in *files {
                match content.strip_prefix("-> ") {
                    Some(target) => {
                        let mut header = tar::Header::new_gnu();
                        header.set_entry_type(tar::EntryType::Symlink);
                        header.set_size(0);
                        layer.append_link(&mut header, path, target).unwrap();
                    }
                    None => append(&mut layer, path, content.as_bytes(), 0o644, tar::EntryType::Regular),
                }
            }
            layer.into_inner().unwrap()
        })
        .collect();
    let digests: Vec<String> =
        layers.iter().map(|layer| format!("sha256:{}", hex::encode(sha2::Sha256::digest(layer)))).collect();
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux", "config": {}, "rootfs": { "type": "layers", "diff_ids": digests },
    });
    let names: Vec<String> = (0..layers.len()).map(|at| format!("{at}.tar")).collect();
    let manifest = serde_json::json!([{ "Config": "config.json", "RepoTags": [name], "Layers": names }]);
    let mut archive = tar::Builder::new(Vec::new());
    for (name, layer) in names.iter().zip(&layers) {
        append(&mut archive, name, layer, 0o644, tar::EntryType::Regular);
    }
    append(&mut archive, "config.json", config.to_string().as_bytes(), 0o644, tar::EntryType::Regular);
    append(&mut archive, "manifest.json", manifest.to_string().as_bytes(), 0o644, tar::EntryType::Regular);
    let path = node.path("files.tar");
    std::fs::write(&path, archive.into_inner().unwrap()).unwrap();
    let config = orlop_images::Config { root: node.path("root"), ..orlop_images::Config::default() };
    orlop_images::ImageStore::open(config).unwrap().import(&path).unwrap();
}

/// A docker-save archive with busybox and a user.
fn busybox_archive() -> Vec<u8> {
    let busybox = std::fs::read("/usr/bin/busybox").expect("busybox-static is installed");
    let mut layer = tar::Builder::new(Vec::new());
    for directory in ["bin/", "etc/", "tmp/", "proc/", "sys/", "dev/"] {
        append(&mut layer, directory, &[], 0o755, tar::EntryType::Directory);
    }
    append(&mut layer, "bin/busybox", &busybox, 0o755, tar::EntryType::Regular);
    for applet in ["sh", "sleep", "cat", "true", "id"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        layer.append_link(&mut header, format!("bin/{applet}"), "busybox").unwrap();
    }
    append(
        &mut layer,
        "etc/passwd",
        b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv:/bin/sh\n",
        0o644,
        tar::EntryType::Regular,
    );
    append(&mut layer, "etc/group", b"root:x:0:\nweb:x:34:\nmore:x:50:web\n", 0o644, tar::EntryType::Regular);
    let layer = layer.into_inner().unwrap();
    let digest = hex::encode(sha2::Sha256::digest(&layer));
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Cmd": ["/bin/busybox", "sleep", "600"], "Env": ["FROM_IMAGE=yes"], "StopSignal": "SIGTERM" },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    })
    .to_string();
    let name = format!("{}.json", hex::encode(sha2::Sha256::digest(config.as_bytes())));
    let manifest =
        serde_json::json!([{ "Config": name, "RepoTags": ["busybox:test"], "Layers": ["layer.tar"] }])
            .to_string();
    let mut archive = tar::Builder::new(Vec::new());
    append(&mut archive, "layer.tar", &layer, 0o644, tar::EntryType::Regular);
    append(&mut archive, &name, config.as_bytes(), 0o644, tar::EntryType::Regular);
    append(&mut archive, "manifest.json", manifest.as_bytes(), 0o644, tar::EntryType::Regular);
    archive.into_inner().unwrap()
}

fn append(archive: &mut tar::Builder<Vec<u8>>, path: &str, content: &[u8], mode: u32, kind: tar::EntryType) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, path, content).unwrap();
}

/// A kubelet.
#[derive(Clone)]
pub(crate) struct Client {
    pub runtime: RuntimeServiceClient<Channel>,
    pub images: ImageServiceClient<Channel>,
}

impl Client {
    fn new(socket: &Path) -> Self {
        let channel = orlop_cri::connect(socket.to_str().unwrap()).unwrap();
        Self { runtime: RuntimeServiceClient::new(channel.clone()), images: ImageServiceClient::new(channel) }
    }

    pub(crate) async fn run_pod(&mut self, config: &v1::PodSandboxConfig) -> Result<String, tonic::Status> {
        let request =
            v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        Ok(self.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    pub(crate) async fn create(
        &mut self,
        sandbox: &str,
        config: v1::ContainerConfig,
    ) -> Result<String, tonic::Status> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: None,
        };
        Ok(self.runtime.create_container(request).await?.into_inner().container_id)
    }

    pub(crate) async fn start(&mut self, container: &str) -> Result<(), tonic::Status> {
        let request = v1::StartContainerRequest { container_id: container.to_owned() };
        self.runtime.start_container(request).await.map(drop)
    }

    pub(crate) async fn stop(&mut self, container: &str, timeout: i64) -> Result<(), tonic::Status> {
        let request = v1::StopContainerRequest { container_id: container.to_owned(), timeout };
        self.runtime.stop_container(request).await.map(drop)
    }

    pub(crate) async fn remove(&mut self, container: &str) -> Result<(), tonic::Status> {
        let request = v1::RemoveContainerRequest { container_id: container.to_owned() };
        self.runtime.remove_container(request).await.map(drop)
    }

    pub(crate) async fn stop_pod(&mut self, sandbox: &str) -> Result<(), tonic::Status> {
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: sandbox.to_owned() };
        self.runtime.stop_pod_sandbox(request).await.map(drop)
    }

    pub(crate) async fn remove_pod(&mut self, sandbox: &str) -> Result<(), tonic::Status> {
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: sandbox.to_owned() };
        self.runtime.remove_pod_sandbox(request).await.map(drop)
    }

    pub(crate) async fn status(&mut self, container: &str) -> v1::ContainerStatus {
        let request = v1::ContainerStatusRequest { container_id: container.to_owned(), verbose: false };
        self.runtime.container_status(request).await.unwrap().into_inner().status.unwrap()
    }

    pub(crate) async fn pod_status(&mut self, sandbox: &str) -> v1::PodSandboxStatus {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: sandbox.to_owned(), verbose: false };
        self.runtime.pod_sandbox_status(request).await.unwrap().into_inner().status.unwrap()
    }

    pub(crate) async fn exec_sync(
        &mut self,
        container: &str,
        command: &[&str],
    ) -> Result<v1::ExecSyncResponse, tonic::Status> {
        let cmd = command.iter().map(|word| (*word).to_owned()).collect();
        let request = v1::ExecSyncRequest { container_id: container.to_owned(), cmd, timeout: 20 };
        Ok(self.runtime.exec_sync(request).await?.into_inner())
    }

    /// Waits for a container's state.
    pub(crate) async fn wait_state(
        &mut self,
        container: &str,
        state: v1::ContainerState,
    ) -> v1::ContainerStatus {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let status = self.status(container).await;
            if status.state() == state {
                return status;
            }
            assert!(Instant::now() < deadline, "still {status:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

pub(crate) fn pod(node: &Node, name: &str) -> v1::PodSandboxConfig {
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            namespace: "default".to_owned(),
            attempt: 0,
        }),
        hostname: name.to_owned(),
        log_directory: node.path("logs").to_string_lossy().into_owned(),
        labels: HashMap::from([("app".to_owned(), name.to_owned())]),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: format!("/{}", cgroup_parent(node)),
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(v1::NamespaceOption {
                    pid: v1::NamespaceMode::Container as i32,
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// One that was announced as privileged: its containers may be.
pub(crate) fn privileged_pod(node: &Node, name: &str) -> v1::PodSandboxConfig {
    let mut config = pod(node, name);
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = true;
    config
}

pub(crate) fn container(name: &str, command: &[&str]) -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: IMAGE.to_owned(), ..Default::default() }),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        log_path: format!("{name}.log"),
        linux: Some(v1::LinuxContainerConfig {
            security_context: Some(v1::LinuxContainerSecurityContext {
                namespace_options: Some(v1::NamespaceOption {
                    pid: v1::NamespaceMode::Container as i32,
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}
