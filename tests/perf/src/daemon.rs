//! A process of a peer on a lab machine, ended by its pid.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orlop_tests::Machine;

const STOP_PATIENCE: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(20);

/// Mounts that hide this machine's own directories, then the daemon in the place of the shell.
const ISOLATE: &str = "mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/lib && echo $$ > \"$0/cgroup.procs\" && exec \"$@\"";

/// Stopped on drop: asked first, then killed.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
}

impl Daemon {
    /// In the machine's network namespace; its output goes to `log`.
    pub(crate) fn start(machine: &Machine, words: &[&str], log: &Path) -> anyhow::Result<Self> {
        let mut command = machine.command(words[0]);
        command.args(&words[1..]);
        Self::spawn(command, log)
    }

    /// As [`Daemon::start`], in a mount namespace of its own whose `/run` and `/var/lib` are empty, and in a cgroup.
    pub(crate) fn start_isolated(
        machine: &Machine,
        cgroup: &Path,
        words: &[&str],
        log: &Path,
    ) -> anyhow::Result<Self> {
        let mut command = machine.command("unshare");
        command
            .args(["--mount", "--propagation", "private", "--", "sh", "-c", ISOLATE])
            .arg(cgroup)
            .args(words);
        Self::spawn(command, log)
    }

    fn spawn(mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let output = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = command.spawn().with_context(|| format!("failed to start {command:?}"))?;
        Ok(Self { child })
    }

    /// nsenter, unshare and sh all end in exec: this is the daemon itself.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Fails once it has ended by itself.
    pub(crate) fn ensure_runs(&mut self, log: &Path) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let text = std::fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            anyhow::bail!(
                "the daemon ended ({status}):\n{}",
                lines[lines.len().saturating_sub(15)..].join("\n")
            );
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let end = Instant::now() + STOP_PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > end {
                let _ = self.child.kill();
            }
            std::thread::sleep(POLL);
        }
    }
}
