//! Starting and ending shims.

use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use orlop_shim::protocol::{Request, ShimConfig};
use tokio::process::Command;
use tokio::time::Instant;

use super::ShimClient;
use crate::error::{CriError, chain};
use crate::files::{self, SandboxDir};
use crate::process;
use orlop_types::ProcessIdentity;

/// A shim that is not ready by then never will be.
const READY_DEADLINE: Duration = Duration::from_secs(10);
/// A polite end: signals, unmounting, cgroup removal.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(10);
const KILL_DEADLINE: Duration = Duration::from_secs(5);
const FIRST_POLL: Duration = Duration::from_millis(1);
const SLOWEST_POLL: Duration = Duration::from_millis(20);
const START_LOG_TAIL_BYTES: usize = 2048;

/// How shims are started.
#[derive(Clone, Debug)]
pub(crate) struct Launcher {
    command: Vec<String>,
    /// The command is this program, not a configured one, which may be a script that has to be read by its name.
    own: bool,
}

impl Launcher {
    /// With a configured command; an empty one is this program with the argument `shim`.
    pub(crate) fn new(command: &[String]) -> std::io::Result<Self> {
        Ok(Self { command: crate::streaming::program(command, "shim")?, own: command.is_empty() })
    }

    /// With this command, which is not empty.
    pub(crate) fn with(command: &[String]) -> Self {
        Self { command: command.to_vec(), own: false }
    }

    /// Starts a shim and waits until it is ready.
    pub(crate) async fn launch(
        &self,
        directory: &SandboxDir,
        config: &ShimConfig,
    ) -> Result<ProcessIdentity, CriError> {
        let write = |error| CriError::failed("failed to write the shim's configuration", error);
        files::write_json(&directory.shim_config(), config).map_err(write)?;
        let log = std::fs::File::create(directory.shim_start_log()).map_err(write)?;
        let mut child = self.spawn(directory, log)?;
        let deadline = Instant::now() + READY_DEADLINE;
        let mut pause = FIRST_POLL;
        let mut running = true;
        loop {
            if let Ok(identity) = files::read_json::<ProcessIdentity>(&directory.shim_identity()) {
                return Ok(identity);
            }
            // The first process ends well when it has become a daemon, and badly when it could not.
            if running && let Ok(Some(status)) = child.try_wait() {
                running = false;
                if !status.success() {
                    return Err(start_failure(directory, &format!("it ended with {status}")));
                }
            }
            if Instant::now() >= deadline {
                if running {
                    let _ = child.start_kill();
                }
                return Err(start_failure(directory, &format!("it was not ready within {READY_DEADLINE:?}")));
            }
            // The end of the first process is the sign; polling is for a command that stays in the foreground.
            if running {
                let _ = tokio::time::timeout(pause, child.wait()).await;
            } else {
                tokio::time::sleep(pause).await;
            }
            pause = (pause * 2).min(SLOWEST_POLL);
        }
    }

    /// From a read-only mount of the program, so that no container can write to it (CVE-2019-5736).
    fn spawn(&self, directory: &SandboxDir, log: std::fs::File) -> Result<tokio::process::Child, CriError> {
        let (program, arguments) = self.command.split_first().expect("the command is never empty, see new");
        let sealed = self.own.then(|| orlop_linux::mount::read_only_file(Path::new(program)));
        let path = match &sealed {
            Some(Ok(sealed)) => format!("/proc/self/fd/{}", sealed.as_raw_fd()),
            Some(Err(error)) => {
                tracing::warn!(program, %error, "the shim's program is not sealed");
                program.clone()
            }
            None => program.clone(),
        };
        Command::new(path)
            .arg0(program)
            .args(arguments)
            .arg("--config")
            .arg(directory.shim_config())
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0)
            .spawn()
            .map_err(|error| CriError::failed(format!("failed to start the shim {program}"), error))
    }
}

fn start_failure(directory: &SandboxDir, what: &str) -> CriError {
    let said = std::fs::read(directory.shim_start_log()).unwrap_or_default();
    let tail = said.get(said.len().saturating_sub(START_LOG_TAIL_BYTES)..).unwrap_or_default();
    let tail = String::from_utf8_lossy(tail);
    let cause = format!("{what}: {}", tail.trim());
    CriError::Failed {
        act: "failed to start the pod's shim".to_owned(),
        cause: cause.trim_end_matches([':', ' ']).into(),
    }
}

/// Ends a shim: politely, then by SIGKILL. True when it is gone.
pub(crate) async fn end(client: &ShimClient, identity: ProcessIdentity) -> bool {
    let Some(handle) = process::open(identity) else {
        return true;
    };
    match client.call(&Request::Shutdown, SHUTDOWN_DEADLINE).await {
        Ok(_) if process::wait_gone(handle, KILL_DEADLINE).await => return true,
        Ok(_) => tracing::warn!(pid = identity.pid, "the shim agreed to end and did not"),
        Err(error) => {
            tracing::warn!(pid = identity.pid, error = chain(&error), "the shim did not end when asked")
        }
    }
    process::kill(identity, KILL_DEADLINE).await
}
