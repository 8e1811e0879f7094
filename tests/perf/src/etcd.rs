//! Debian's etcd: what an API server of upstream needs at least, and waits for at least.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use orlop_tests::Machine;

use crate::daemon::Daemon;

const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(2);

/// A data directory and a machine; etcd itself is started and stopped.
#[derive(Debug)]
pub(crate) struct Etcd {
    daemon: Option<Daemon>,
    directory: tempfile::TempDir,
    machine: Machine,
}

impl Etcd {
    /// With an empty data directory.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("orlop-perf-etcd-").tempdir()?;
        Ok(Self { daemon: None, directory, machine: Machine::new() })
    }

    /// Starts it; how long until the first answer that needed a leader.
    pub(crate) fn start(&mut self) -> anyhow::Result<Duration> {
        let (data, log) = (self.directory.path().join("data"), self.log());
        let data = format!("--data-dir={}", data.display());
        let started = Instant::now();
        let daemon = self.daemon.insert(Daemon::start(&self.machine, &["etcd", &data], &log)?);
        let machine = &self.machine;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                machine.enter().context("failed to enter the machine's network namespace")?;
                while !is_healthy() {
                    daemon.ensure_runs(&log)?;
                    anyhow::ensure!(started.elapsed() < PATIENCE, "etcd does not answer");
                    std::thread::sleep(POLL);
                }
                Ok(started.elapsed())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Ends it; the data stay.
    pub(crate) fn stop(&mut self) {
        self.daemon = None;
    }

    /// Its process.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Daemon::pid)
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("etcd.log")
    }
}

/// `GET /health` reads through the leader (etcd 3.4, etcdserver/api/etcdhttp).
fn is_healthy() -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], 2379)))?;
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.contains("\"true\""))
}
