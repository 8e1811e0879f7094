//! The registries that are compared: `orlop mirror`, and Debian's docker-registry; on loopback, each with a directory of its own.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::memory::Resident;
use crate::mirror::load::Connection;

const READY: Duration = Duration::from_secs(60);
const STOP_PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_micros(200);
/// Of `/proc/PID/stat` (proc(5)): Linux has a hundred of them in a second for programs.
const TICKS_PER_SECOND: f64 = 100.0;

/// Which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Ours,
    Docker,
}

/// Ended on drop.
pub(crate) struct Server {
    process: Child,
    pub address: SocketAddr,
    /// From the start of the process to the first answer.
    pub started_in: Duration,
}

impl Server {
    /// Starts one on what is in a directory; ours fetches from `upstream` what is asked for with `ns=up.example`.
    pub(crate) fn start(kind: Kind, directory: &Path, upstream: Option<SocketAddr>) -> anyhow::Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let (root, file) = (directory.join("root"), directory.join("config"));
        std::fs::create_dir_all(&root)?;
        let (mut command, config) = match kind {
            Kind::Ours => {
                let mut config = json!({"listen": address, "root": root});
                if let Some(upstream) = upstream {
                    config["upstreams"] = json!({"up.example": format!("http://{upstream}")});
                }
                let mut command = Command::new(orlop_tests::orlop_binary());
                command.arg("mirror").arg(format!("--config={}", file.display()));
                (command, config)
            }
            Kind::Docker => {
                let mut command = Command::new("docker-registry");
                command.arg("serve").arg(&file);
                let config = json!({
                    "version": "0.1",
                    "log": {"level": "error", "accesslog": {"disabled": true}},
                    "storage": {"filesystem": {"rootdirectory": root}},
                    "http": {"addr": address},
                });
                (command, config)
            }
        };
        std::fs::write(&file, config.to_string())?;
        let log = std::fs::File::create(directory.join("log"))?;
        command.current_dir(directory).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let started = Instant::now();
        let process = command.spawn().with_context(|| format!("failed to start {command:?}"))?;
        let mut server = Self { process, address, started_in: Duration::ZERO };
        server.wait(&directory.join("log"))?;
        server.started_in = started.elapsed();
        Ok(server)
    }

    fn wait(&mut self, log: &Path) -> anyhow::Result<()> {
        let end = Instant::now() + READY;
        loop {
            if TcpStream::connect(self.address).is_ok() {
                let answer = Connection::open(self.address)?.ask("GET", "/v2/", "", b"")?;
                anyhow::ensure!(answer.status() == "200", "{}", answer.head);
                return Ok(());
            }
            let text = || std::fs::read_to_string(log).unwrap_or_default();
            if let Some(status) = self.process.try_wait()? {
                anyhow::bail!("it ended ({status}): {}", text());
            }
            anyhow::ensure!(Instant::now() < end, "it does not listen: {}", text());
            std::thread::sleep(POLL);
        }
    }

    /// CPU time since its start.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        // After the name, which may hold anything.
        let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks: f64 =
            fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
        Ok(Duration::from_secs_f64(ticks / TICKS_PER_SECOND))
    }

    pub(crate) fn memory(&self) -> anyhow::Result<Resident> {
        Resident::of(&[self.process.id()])
    }

    /// Pushes a blob: where it went, and how long the PUT took.
    pub(crate) fn push_blob(&self, digest: &str, content: &[u8]) -> anyhow::Result<Duration> {
        let mut connection = Connection::open(self.address)?;
        let begun = connection.ask("POST", "/v2/perf/blobs/uploads/", "", b"")?;
        let location = begun.header("location").context("no location")?.to_owned();
        let path = location
            .split_once("://")
            .map_or(location.as_str(), |(_, rest)| rest.find('/').map_or(rest, |at| &rest[at..]));
        let separator = if path.contains('?') { '&' } else { '?' };
        let target = format!("{path}{separator}digest={digest}");
        let started = Instant::now();
        let done = connection.ask("PUT", &target, "Content-Type: application/octet-stream\r\n", content)?;
        anyhow::ensure!(done.status() == "201", "{}", done.head);
        Ok(started.elapsed())
    }

    pub(crate) fn push_manifest(&self, tag: &str, content: &[u8]) -> anyhow::Result<()> {
        let target = format!("/v2/perf/manifests/{tag}");
        let kind = "Content-Type: application/vnd.oci.image.manifest.v1+json\r\n";
        let done = Connection::open(self.address)?.ask("PUT", &target, kind, content)?;
        anyhow::ensure!(done.status() == "201", "{}", done.head);
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.process.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let end = Instant::now() + STOP_PATIENCE;
        while matches!(self.process.try_wait(), Ok(None)) {
            if Instant::now() > end {
                let _ = self.process.kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
