//! The verdict.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;

use super::archive::mebibytes;
use super::machine::{Machine, Next};
use crate::task::{Event, Outcome};

/// Lines of the kernel's messages that are shown beside a failure.
const CONSOLE_LINES: usize = 60;

#[derive(Default)]
struct Verdict {
    tests: Option<usize>,
    passed: usize,
    skipped: usize,
    failed: Vec<String>,
    retried: Vec<String>,
    problems: Vec<String>,
    ended: bool,
}

/// Boots, shows what happens, and says how it went.
pub(crate) fn judge(machine: &Machine<'_>) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let mut out = io::stdout().lock();
    writeln!(out, "booting {} ({} MiB initramfs)", name(machine.kernel), mebibytes(machine.initramfs))?;
    let mut running = machine.boot()?;
    let mut verdict = Verdict::default();
    loop {
        match running.next() {
            Next::Line(line) if line.is_empty() => {}
            Next::Line(line) => match serde_json::from_str(&line) {
                Ok(event) => verdict.take(event, start, &mut out)?,
                Err(_) => verdict.problems.push(format!("the machine says {line:?}")),
            },
            Next::Off => break,
            Next::TimeIsOver => {
                verdict.problems.push(format!("the machine was still on after {:?}", machine.limit));
                break;
            }
        }
    }
    drop(running);
    verdict.finish(machine.console, start, &mut out)
}

impl Verdict {
    fn take(&mut self, event: Event, start: Instant, out: &mut impl Write) -> io::Result<()> {
        match event {
            Event::Booted { kernel, controllers, tests } => {
                let seconds = start.elapsed().as_secs_f32();
                self.tests = Some(tests);
                writeln!(out, "Linux {kernel} after {seconds:.1} s; {controllers}; {tests} tests")
            }
            Event::Test { name, outcome, millis, output } => {
                let word = match outcome {
                    Outcome::Passed => "pass",
                    Outcome::Skipped => "SKIP",
                    Outcome::Failed => "FAIL",
                    Outcome::TimedOut => "TIME",
                    Outcome::Retried => "AGAIN",
                };
                writeln!(
                    out,
                    "{word:5} {:7.3} s  {name}",
                    f64::from(u32::try_from(millis).unwrap_or(u32::MAX)) / 1000.0
                )?;
                match outcome {
                    Outcome::Passed => self.passed += 1,
                    Outcome::Skipped => self.skipped += 1,
                    Outcome::Failed | Outcome::TimedOut => self.failed.push(name),
                    Outcome::Retried => self.retried.push(name),
                }
                for line in output.lines() {
                    writeln!(out, "    {line}")?;
                }
                Ok(())
            }
            Event::Problem { text } => {
                writeln!(out, "problem: {text}")?;
                self.problems.push(text);
                Ok(())
            }
            Event::End => {
                self.ended = true;
                Ok(())
            }
        }
    }

    fn finish(mut self, console: &Path, start: Instant, out: &mut impl Write) -> anyhow::Result<ExitCode> {
        let ran = self.passed + self.skipped + self.failed.len();
        if !self.ended {
            self.problems.push("the machine went off before the end".to_owned());
        } else if self.tests != Some(ran) || self.passed == 0 {
            self.problems.push(format!("{ran} tests ran, {} passed", self.passed));
        }
        let seconds = start.elapsed().as_secs();
        let (passed, skipped, failed) = (self.passed, self.skipped, self.failed.len());
        writeln!(out, "{passed} passed, {skipped} skipped, {failed} failed in {seconds} s")?;
        for name in self.retried.iter().filter(|name| !self.failed.contains(name)) {
            writeln!(out, "flaky: {name}")?;
        }
        for name in &self.failed {
            writeln!(out, "failed: {name}")?;
        }
        if !self.problems.is_empty() {
            for problem in &self.problems {
                writeln!(out, "problem: {problem}")?;
            }
            let text = fs::read(console).context("failed to read the console")?;
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            for line in &lines[lines.len().saturating_sub(CONSOLE_LINES)..] {
                writeln!(out, "console: {line}")?;
            }
        }
        let is_good = self.failed.is_empty() && self.problems.is_empty();
        Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
