//! Child processes that are kept alive: restarted with backoff, stopped in order, their output in bounded log files.
//!
//! ```text
//!   starting --spawned--> running --exited--> waiting (backoff) --> starting
//!                            \--drain: SIGTERM, deadline, SIGKILL--> stopped
//! ```

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use orlop_daemon::Drain;
use orlop_daemon::backoff::Backoff;
use tokio::process::{Child, Command};

const RESTART_FIRST: Duration = Duration::from_millis(100);
const RESTART_CAP: Duration = Duration::from_secs(10);
/// A child that lived this long starts again without a long pause.
const HEALTHY_AFTER: Duration = Duration::from_secs(30);
const STOP_DEADLINE: Duration = Duration::from_secs(15);
const LOG_LIMIT_BYTES: u64 = 16 * 1024 * 1024;
const LOG_CHECK: Duration = Duration::from_secs(30);

/// One child process.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    /// For logs: `master`, `node-1`, `kubelet`.
    pub(crate) name: String,
    /// Arguments of this same binary.
    pub(crate) arguments: Vec<String>,
    /// Where its standard error goes.
    pub(crate) log: PathBuf,
}

/// Keeps `process` running until the drain, then stops it.
pub(crate) async fn keep(process: Process, drain: Drain) -> anyhow::Result<()> {
    let mut backoff = Backoff::new(RESTART_FIRST, RESTART_CAP);
    while !drain.is_draining() {
        let started = Instant::now();
        let mut child = spawn(&process)?;
        tracing::info!(process = %process.name, pid = child.id(), "started");
        tokio::select! {
            status = watch(&mut child, &process.log) => {
                let status = status.with_context(|| format!("failed to wait for {}", process.name))?;
                tracing::warn!(process = %process.name, %status, log = %process.log.display(), "ended, starting it again");
            }
            () = drain.wait() => {
                stop(&process.name, &mut child).await;
                return Ok(());
            }
        }
        if started.elapsed() > HEALTHY_AFTER {
            backoff.reset();
        }
        drain.sleep(backoff.pause()).await;
    }
    Ok(())
}

fn spawn(process: &Process) -> anyhow::Result<Child> {
    let log = open_log(&process.log).with_context(|| format!("failed to open {}", process.log.display()))?;
    // The path, not /proc/self/exe: a binary replaced by an upgrade is picked up by the next start.
    let program = std::env::current_exe().context("failed to find the orlop binary")?;
    Command::new(program)
        .args(&process.arguments)
        .arg(format!("--supervisor={}", std::process::id()))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("failed to start {}", process.name))
}

async fn watch(child: &mut Child, log: &Path) -> io::Result<std::process::ExitStatus> {
    loop {
        match tokio::time::timeout(LOG_CHECK, child.wait()).await {
            Ok(status) => return status,
            Err(_) => {
                if let Err(error) = rotate(log) {
                    tracing::warn!(log = %log.display(), %error, "could not rotate");
                }
            }
        }
    }
}

async fn stop(name: &str, child: &mut Child) {
    let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) else {
        return;
    };
    // The child is ours and not yet waited for: its pid cannot have been reused.
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
    if tokio::time::timeout(STOP_DEADLINE, child.wait()).await.is_err() {
        tracing::warn!(process = name, "did not stop in time, killing it");
        let _ = child.kill().await;
    }
    tracing::info!(process = name, "stopped");
}

fn open_log(path: &Path) -> io::Result<File> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    rotate(path)?;
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// Keeps one predecessor. The writer appends to the same file, so it is copied and cut, not renamed.
fn rotate(path: &Path) -> io::Result<()> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() > LOG_LIMIT_BYTES => {
            std::fs::copy(path, path.with_extension("log.1"))?;
            OpenOptions::new().write(true).open(path)?.set_len(0)
        }
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Ties this process to the supervisor that started it: it gets SIGTERM when the supervisor dies, however that happens.
///
/// # Errors
/// The supervisor is gone already.
pub(crate) fn follow_supervisor(pid: Option<i32>) -> anyhow::Result<()> {
    let Some(pid) = pid else { return Ok(()) };
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
    let parent = rustix::process::getppid().map_or(0, rustix::process::Pid::as_raw_pid);
    anyhow::ensure!(parent == pid, "the supervisor (process {pid}) is gone");
    Ok(())
}
