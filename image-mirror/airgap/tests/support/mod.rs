//! Registries on loopback, images made here, and the command line.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use orlop_airgap::AirgapCommand;
use orlop_daemon::{Frame, Settings};
use orlop_mirror::Config;
use orlop_types::Digest;
use serde_json::{Value, json};

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

#[derive(Parser)]
struct Line {
    #[command(subcommand)]
    command: AirgapCommand,
}

/// Runs `image WORDS`, without a cluster.
pub(crate) fn image(words: &[&str]) -> anyhow::Result<()> {
    let line = Line::try_parse_from([&["image"], words].concat())?;
    orlop_airgap::run(&line.command, &|_, _, _| anyhow::bail!("there is no cluster"))
}

/// As [`image`], in a process of its own, which may be killed. The test binary calls itself: see `command_line` there.
pub(crate) fn spawn_image(words: &[&str]) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "command_line", "--nocapture"])
        .env("ORLOP_TEST_LINE", words.join("\n"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Our mirror in this process.
pub(crate) struct Mirror {
    pub(crate) address: SocketAddr,
    frame: Frame,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Mirror {
    pub(crate) fn start(root: &Path) -> Self {
        Self::with(Config { root: root.to_owned(), ..Config::default() })
    }

    pub(crate) fn with(config: Config) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = Config { listen: address, ..config };
        let (sender, receiver) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            orlop_daemon::run(Settings::new("mirror"), |frame| async move {
                orlop_mirror::start(&frame, config).await?;
                sender.send(frame)?;
                Ok(())
            })
            .unwrap();
        });
        let frame = receiver.recv_timeout(Duration::from_secs(20)).unwrap();
        Self { address, frame, thread: Some(thread) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.frame.shutdown();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// Debian's docker-registry.
pub(crate) struct DockerRegistry {
    pub(crate) address: SocketAddr,
    process: Child,
}

impl DockerRegistry {
    pub(crate) fn start(root: &Path) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let file = root.join("config.yml");
        let config = json!({
            "version": 0.1,
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": root.join("storage")}, "delete": {"enabled": true}},
            "http": {"addr": address.to_string()},
        });
        std::fs::write(&file, config.to_string()).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry");
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "docker-registry does not listen");
            std::thread::yield_now();
        }
        Self { address, process }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The body and status of a GET.
pub(crate) fn get(url: &str) -> (u16, Vec<u8>) {
    let accept = format!("Accept: {}", orlop_distribution::manifest::ACCEPT);
    let output = Command::new("curl")
        .args(["-s", "-m", "20", "-H", &accept, "-w", "%{stderr}%{http_code}", url])
        .output()
        .expect("curl");
    let status = String::from_utf8_lossy(&output.stderr).trim().parse().unwrap();
    (status, output.stdout)
}

pub(crate) fn skopeo(words: &[&str]) -> String {
    let output = Command::new("skopeo").args(words).output().expect("skopeo");
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs `mirror client-config WORDS`.
pub(crate) fn client_config(words: &[&str]) -> anyhow::Result<()> {
    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: orlop_airgap::ClientConfigArgs,
    }
    orlop_airgap::client_config(&Line::try_parse_from([&["client-config"], words].concat())?.args)
}

/// Debian's containerd.
pub(crate) struct Containerd {
    process: Child,
    socket: PathBuf,
}

impl Containerd {
    pub(crate) fn start(work: &Path) -> Self {
        let work = work.join("daemon");
        std::fs::create_dir(&work).unwrap();
        let socket = work.join("containerd.sock");
        let config = format!(
            "version = 2\nroot = \"{work}/root\"\nstate = \"{work}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n\
             [grpc]\naddress = \"{}\"\n[ttrpc]\naddress = \"{work}/ttrpc.sock\"\n",
            socket.display(),
            work = work.display()
        );
        std::fs::write(work.join("config.toml"), config).unwrap();
        let process = Command::new("containerd")
            .arg("--config")
            .arg(work.join("config.toml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("containerd");
        let containerd = Self { process, socket };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !containerd.run(&["version"]).0 {
            assert!(Instant::now() < deadline, "containerd does not answer");
        }
        containerd
    }

    fn run(&self, words: &[&str]) -> (bool, String) {
        let output =
            Command::new("ctr").arg("--address").arg(&self.socket).args(words).output().expect("ctr");
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    pub(crate) fn ctr(&self, words: &[&str]) -> String {
        let (done, text) = self.run(words);
        assert!(done, "{words:?}: {text}");
        text
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An image layout in memory.
#[derive(Default)]
pub(crate) struct Layout {
    pub(crate) blobs: BTreeMap<Digest, Vec<u8>>,
    pub(crate) entries: Vec<Value>,
}

impl Layout {
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Value {
        let digest = Digest::sha256(bytes);
        self.blobs.insert(digest.clone(), bytes.to_vec());
        json!({"digest": digest, "size": bytes.len()})
    }

    fn typed(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let mut descriptor = self.put(bytes);
        descriptor["mediaType"] = media_type.into();
        descriptor
    }

    /// An image for one machine, with these layers; gives its descriptor.
    pub(crate) fn image(&mut self, architecture: &str, layers: &[&[u8]]) -> Value {
        let layers: Vec<Value> =
            layers.iter().map(|layer| self.typed("application/vnd.oci.image.layer.v1.tar", layer)).collect();
        let diff_ids: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
        let config = json!({"architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = self.typed("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        let mut descriptor = self.typed(MANIFEST, manifest.to_string().as_bytes());
        descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
        descriptor
    }

    pub(crate) fn index(&mut self, images: &[Value]) -> Value {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": images});
        self.typed(INDEX, index.to_string().as_bytes())
    }

    /// A signature with a subject.
    pub(crate) fn signature(&mut self, subject: &Value) -> Value {
        let mut subject = subject.clone();
        subject.as_object_mut().unwrap().remove("platform");
        let empty = self.typed("application/vnd.oci.empty.v1+json", b"{}");
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/example",
            "config": empty, "layers": [empty], "subject": subject});
        self.typed(MANIFEST, manifest.to_string().as_bytes())
    }

    pub(crate) fn name(&mut self, name: &str, descriptor: &Value) {
        let mut entry = descriptor.clone();
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        self.entries.push(entry);
    }

    /// Writes it.
    pub(crate) fn write(&self, directory: &Path) -> PathBuf {
        std::fs::create_dir_all(directory.join("blobs/sha256")).unwrap();
        for (digest, bytes) in &self.blobs {
            std::fs::write(directory.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        }
        let index = json!({"schemaVersion": 2, "manifests": self.entries});
        std::fs::write(directory.join("index.json"), index.to_string()).unwrap();
        std::fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        directory.to_owned()
    }
}

/// Bytes that differ by `seed` and do not compress.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(length)
    .collect()
}
