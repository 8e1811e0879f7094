//! Inside: process 1. It sets the machine up, starts a runner, buries orphans and switches off.

mod machine;
mod runner;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::process::{Command, ExitCode};
use std::sync::Mutex;

use anyhow::Context;
use rustix::process::{Pid, WaitOptions};
use rustix::system::RebootCommand;

use crate::task::{EVENT_DEVICE, Event, TASK_FILE, Task};

/// Says to the second incarnation of this program that it is the runner.
pub(crate) const RUNNER: &str = "ORLOP_VM_RUNNER";

/// Never returns with the machine on.
pub(crate) fn main() -> anyhow::Result<ExitCode> {
    if let Err(error) = serve() {
        eprintln!("orlop-vm: {error:#}");
        if let Ok(events) = Events::open() {
            events.say(&Event::Problem { text: format!("{error:#}") });
        }
    }
    rustix::fs::sync();
    rustix::system::reboot(RebootCommand::PowerOff).context("failed to switch the machine off")?;
    Ok(ExitCode::FAILURE)
}

fn serve() -> anyhow::Result<()> {
    machine::mount()?;
    let text = fs::read(TASK_FILE).context("failed to read the task")?;
    let task: Task = serde_json::from_slice(&text).context("failed to read the task")?;
    machine::configure(&task)?;
    let runner =
        Command::new("/proc/self/exe").env(RUNNER, "1").spawn().context("failed to start the runner")?;
    let runner = Pid::from_child(&runner);
    // Children of others come here when their parents die.
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == runner => {
                anyhow::ensure!(status.exit_status() == Some(0), "the runner ended with {status:?}");
                return Ok(());
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("failed to wait for the runner"),
        }
    }
}

/// The child of process 1.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let text = fs::read(TASK_FILE).context("failed to read the task")?;
    let task: Task = serde_json::from_slice(&text).context("failed to read the task")?;
    let events = Events::open()?;
    machine::enter_group()?;
    runner::run(&task, &events)?;
    events.say(&Event::End);
    Ok(ExitCode::SUCCESS)
}

/// The way out; a line is written whole.
pub(crate) struct Events(Mutex<File>);

impl Events {
    fn open() -> anyhow::Result<Self> {
        let file = OpenOptions::new().write(true).open(EVENT_DEVICE);
        Ok(Self(Mutex::new(file.with_context(|| format!("failed to open {EVENT_DEVICE}"))?)))
    }

    pub(crate) fn say(&self, event: &Event) {
        let mut line = serde_json::to_string(event).expect("events are plain values");
        line.push('\n');
        if let Ok(mut file) = self.0.lock()
            && let Err(error) = file.write_all(line.as_bytes())
        {
            // The console is all that is left to tell it.
            eprintln!("orlop-vm: failed to report: {error}");
        }
    }
}
