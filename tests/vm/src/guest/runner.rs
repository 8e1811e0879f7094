//! Runs each test in a process of its own, some at the same time, and looks for what is left behind.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal};

use super::machine::{GROUPS, OWN_GROUP};
use super::{Events, RUNNER};
use crate::task::{Event, Outcome, Program, Task};

/// Of what a test writes, this much is told.
const OUTPUT_BYTES: usize = 32 << 10;
/// What the last test has killed may take a moment to go.
const LEFTOVER_PATIENCE: Duration = Duration::from_secs(10);

struct Test<'a> {
    program: &'a Program,
    name: String,
}

impl Test<'_> {
    fn full_name(&self) -> String {
        format!("{}::{}", self.program.name, self.name)
    }
}

pub(crate) fn run(task: &Task, events: &Events) -> anyhow::Result<()> {
    let mut tests = Vec::new();
    for program in &task.programs {
        let names = list(program)?;
        tests.extend(
            names.into_iter().filter(|name| name.contains(&program.only)).map(|name| Test { program, name }),
        );
    }
    tests.retain(|test| test.full_name().contains(&task.filter));
    let before = Traces::take()?;
    let read = |file: &str| fs::read_to_string(file).unwrap_or_default().trim().to_owned();
    events.say(&Event::Booted {
        kernel: read("/proc/sys/kernel/osrelease"),
        controllers: read(&format!("{GROUPS}/cgroup.controllers")),
        tests: tests.len(),
    });
    let again = run_beside_each_other(tests, task, events);
    // Emulation is slow, and slower on a busy machine: a deadline missed beside others is tried again alone.
    for test in &again {
        say(test, run_one(test, 0, task), events);
    }
    for left in before.left()? {
        events.say(&Event::Problem { text: format!("left behind: {left}") });
    }
    Ok(())
}

/// Gives back those that failed.
fn run_beside_each_other<'a>(mut tests: Vec<Test<'a>>, task: &Task, events: &Events) -> Vec<Test<'a>> {
    tests.reverse();
    let (queue, failed) = (Mutex::new(tests), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for worker in 0..task.workers.max(1) {
            let (queue, failed) = (&queue, &failed);
            scope.spawn(move || {
                while let Some(test) = queue.lock().ok().and_then(|mut tests| tests.pop()) {
                    let mut ended = run_one(&test, worker, task);
                    let mut is_good = true;
                    if let Ok(Event::Test { outcome, .. }) = &mut ended {
                        is_good = matches!(outcome, Outcome::Passed | Outcome::Skipped);
                        *outcome = if is_good { *outcome } else { Outcome::Retried };
                    }
                    say(&test, ended, events);
                    if !is_good && let Ok(mut failed) = failed.lock() {
                        failed.push(test);
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap_or_default()
}

fn say(test: &Test<'_>, ended: anyhow::Result<Event>, events: &Events) {
    events.say(
        &ended.unwrap_or_else(|error| Event::Problem { text: format!("{}: {error:#}", test.full_name()) }),
    );
}

fn command(program: &Program) -> Command {
    let mut command = Command::new(&program.path);
    command
        .current_dir(&program.directory)
        .env_remove(RUNNER)
        .env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .env("RUST_BACKTRACE", "0")
        .envs(&program.environment)
        .stdin(Stdio::null());
    command
}

/// libtest's own list; ignored tests are not run.
fn list(program: &Program) -> anyhow::Result<Vec<String>> {
    let call = |extra: &[&str]| -> anyhow::Result<Vec<String>> {
        let output = command(program).args(["--list", "--format", "terse"]).args(extra).output();
        let output = output.with_context(|| format!("failed to start {}", program.path.display()))?;
        ensure!(output.status.success(), "{} does not list its tests", program.name);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
    };
    let ignored = call(&["--ignored"])?;
    Ok(call(&[])?.into_iter().filter(|name| !ignored.contains(name)).collect())
}

fn run_one(test: &Test<'_>, worker: usize, task: &Task) -> anyhow::Result<Event> {
    // Files, not pipes: what a test leaves running would keep a pipe open.
    let path = format!("/run/orlop-vm-{worker}");
    let file = File::create(&path).context("failed to make a file for output")?;
    let start = Instant::now();
    let mut child = command(test.program);
    child.args(["--exact", &test.name, "--nocapture", "--test-threads=1"]);
    child.stdout(file.try_clone()?).stderr(file);
    std::os::unix::process::CommandExt::process_group(&mut child, 0);
    let mut child =
        child.spawn().with_context(|| format!("failed to start {}", test.program.path.display()))?;
    let in_time = wait(Pid::from_child(&child), Duration::from_secs(task.test_seconds))?;
    if !in_time {
        rustix::process::kill_process_group(Pid::from_child(&child), Signal::KILL)?;
    }
    let status = child.wait()?;
    let output = fs::read(&path).context("failed to read the output")?;
    let outcome = judge(in_time, status, &output);
    let output = if outcome == Outcome::Passed { String::new() } else { shown(&output, outcome) };
    let millis = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(Event::Test { name: test.full_name(), outcome, millis, output })
}

/// Whether the process ends in time.
fn wait(pid: Pid, limit: Duration) -> anyhow::Result<bool> {
    let handle = rustix::process::pidfd_open(pid, PidfdFlags::empty()).context("failed to watch a test")?;
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let mut wanted = [PollFd::new(&handle, PollFlags::IN)];
        match poll(&mut wanted, Some(&Timespec::try_from(left)?)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("failed to watch a test"),
        }
    }
}

fn judge(in_time: bool, status: ExitStatus, output: &[u8]) -> Outcome {
    let text = String::from_utf8_lossy(output);
    if !in_time {
        Outcome::TimedOut
    } else if !status.success() || !text.contains("1 passed") {
        Outcome::Failed
    } else if text.lines().any(is_skip) {
        Outcome::Skipped
    } else {
        Outcome::Passed
    }
}

fn is_skip(line: &str) -> bool {
    // Beside libtest's own beginning of a line.
    line.contains("SKIP: ") || line.contains("SKIP ")
}

fn shown(output: &[u8], outcome: Outcome) -> String {
    let from = output.len().saturating_sub(OUTPUT_BYTES);
    let text = String::from_utf8_lossy(&output[from..]);
    match outcome {
        Outcome::Skipped => text.lines().filter(|line| is_skip(line)).collect::<Vec<_>>().join("\n"),
        Outcome::Passed | Outcome::Failed | Outcome::TimedOut | Outcome::Retried => text.into_owned(),
    }
}

/// What tests must not leave: control groups, mounts, network interfaces, processes.
struct Traces(Vec<String>);

impl Traces {
    fn take() -> anyhow::Result<Self> {
        let mut found = Vec::new();
        for entry in fs::read_dir(GROUPS).context("failed to list the control groups")?.flatten() {
            if entry.path().is_dir() && entry.file_name() != OWN_GROUP {
                found.push(format!("control group {}", entry.file_name().display()));
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("failed to read the mounts")?;
        let place = |line: &str| line.split(' ').nth(4).map(|place| format!("mount {place}"));
        found.extend(mounts.lines().filter_map(place));
        for entry in fs::read_dir("/sys/class/net").context("failed to list the interfaces")?.flatten() {
            found.push(format!("interface {}", entry.file_name().display()));
        }
        for entry in fs::read_dir("/proc").context("failed to list the processes")?.flatten() {
            found.extend(program_of(&entry.path()));
        }
        Ok(Self(found))
    }

    /// What came since, and stays.
    fn left(&self) -> anyhow::Result<Vec<String>> {
        let end = Instant::now() + LEFTOVER_PATIENCE;
        loop {
            let now = Self::take()?;
            let left: Vec<String> = now.0.into_iter().filter(|trace| !self.0.contains(trace)).collect();
            if left.is_empty() || Instant::now() >= end {
                return Ok(left);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A process that is a program: the kernel's own threads come and go as they like.
fn program_of(process: &Path) -> Option<String> {
    let pid: u32 = process.file_name()?.to_str()?.parse().ok()?;
    let program = fs::read_link(process.join("exe")).ok()?;
    let arguments = fs::read_to_string(process.join("cmdline")).unwrap_or_default();
    Some(format!("process {pid} {} {}", program.display(), arguments.replace('\0', " ")))
}
