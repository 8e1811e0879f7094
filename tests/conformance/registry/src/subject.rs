//! What is judged: `orlop mirror`, or Debian's docker-registry (`SUBJECT=docker-registry`).

use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

const READY: Duration = Duration::from_secs(30);
const STOP_PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(10);
/// Another process may take a port between its choice and its use.
const TRIES: usize = 5;

/// Whose registry it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `orlop mirror`.
    Orlop,
    /// Debian's docker-registry.
    DockerRegistry,
}

impl Kind {
    /// From `SUBJECT`; ours without it.
    ///
    /// # Errors
    /// An unknown name.
    pub fn chosen() -> anyhow::Result<Self> {
        match std::env::var("SUBJECT").unwrap_or_default().as_str() {
            "" | "orlop" => Ok(Self::Orlop),
            "docker-registry" => Ok(Self::DockerRegistry),
            other => anyhow::bail!("SUBJECT={other} is unknown: orlop or docker-registry"),
        }
    }
}

/// A running registry with a directory of its own; stopped on drop.
#[derive(Debug)]
pub struct Subject {
    process: Child,
    directory: tempfile::TempDir,
    /// Where it listens.
    pub address: SocketAddr,
    /// Whose it is.
    pub kind: Kind,
}

impl Subject {
    /// Starts it on a free port of the loopback; `stand_in` is ours where `ORLOP_BIN` names no other.
    ///
    /// # Errors
    /// A subject that ends, or is not ready in time; with what it said last.
    pub fn start(kind: Kind, stand_in: &Path) -> anyhow::Result<Self> {
        let mut last = None;
        for _ in 0..TRIES {
            match Self::try_start(kind, stand_in) {
                Ok(subject) => return Ok(subject),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("no try")?)
    }

    fn try_start(kind: Kind, stand_in: &Path) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("orlop-registry-").tempdir()?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut command = command(kind, stand_in, directory.path(), address)?;
        let log = File::create(directory.path().join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = command.spawn().with_context(|| format!("failed to start {command:?}"))?;
        let mut subject = Self { process, directory, address, kind };
        subject.wait_ready()?;
        Ok(subject)
    }

    fn wait_ready(&mut self) -> anyhow::Result<()> {
        let end = Instant::now() + READY;
        loop {
            if let Some(status) = self.process.try_wait()? {
                anyhow::bail!("the registry ended ({status}):\n{}", self.log());
            }
            if TcpStream::connect(self.address).is_ok() {
                return Ok(());
            }
            anyhow::ensure!(Instant::now() < end, "the registry does not listen:\n{}", self.log());
            std::thread::sleep(POLL);
        }
    }

    /// What it said last.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.directory.path().join("log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

fn command(kind: Kind, stand_in: &Path, directory: &Path, address: SocketAddr) -> anyhow::Result<Command> {
    let (root, file) = (directory.join("root"), directory.join("config"));
    std::fs::create_dir(&root)?;
    let (mut command, config) = match kind {
        Kind::Orlop => {
            let program = std::env::var_os("ORLOP_BIN").map_or(stand_in.to_owned(), PathBuf::from);
            let mut command = Command::new(program);
            command.arg("mirror").arg(format!("--config={}", file.display()));
            (command, json!({"listen": address, "root": root}))
        }
        Kind::DockerRegistry => {
            let mut command = Command::new("docker-registry");
            command.arg("serve").arg(&file);
            let config = json!({
                "version": "0.1",
                "log": {"level": "error", "accesslog": {"disabled": true}},
                "storage": {"filesystem": {"rootdirectory": root}, "delete": {"enabled": true}},
                "http": {"addr": address},
            });
            (command, config)
        }
    };
    // JSON is YAML.
    std::fs::write(&file, config.to_string())?;
    command.current_dir(directory);
    Ok(command)
}

impl Drop for Subject {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.process.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let end = Instant::now() + STOP_PATIENCE;
        while matches!(self.process.try_wait(), Ok(None)) {
            if Instant::now() > end {
                let _ = self.process.kill();
            }
            std::thread::sleep(POLL);
        }
    }
}
