//! qemu without acceleration: the same machine everywhere, also inside of another.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;

/// Memory of the machine: the initramfs twice (as it is loaded, and unpacked), and what tests use.
const MEMORY_MEBIBYTES: u32 = 3072;
/// With `norandmaps` a program that starts again lies where it lay, so its translated code is used again: twice as fast. What the mitigations
/// are for, the emulation has not.
const KERNEL_COMMAND_LINE: &str = "console=ttyS0 panic=-1 quiet loglevel=4 norandmaps mitigations=off random.trust_cpu=on tsc=reliable no_timer_check";
/// Lines that are read before somebody takes them.
const BACKLOG_LINES: usize = 1024;

/// What to boot.
pub(crate) struct Machine<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) initramfs: &'a Path,
    /// Where the kernel's messages go.
    pub(crate) console: &'a Path,
    pub(crate) processors: usize,
    pub(crate) limit: Duration,
}

/// A machine that runs; dropped, it is switched off.
pub(crate) struct Running {
    child: Child,
    lines: Option<Receiver<String>>,
    reader: Option<JoinHandle<()>>,
    end: Instant,
}

/// What came next.
pub(crate) enum Next {
    /// A line of the second serial port.
    Line(String),
    /// The machine is off.
    Off,
    /// The time is over.
    TimeIsOver,
}

impl Machine<'_> {
    /// Switches on.
    pub(crate) fn boot(&self) -> anyhow::Result<Running> {
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args([
                "-M",
                "q35,accel=tcg",
                "-cpu",
                "max,la57=off",
                "-nodefaults",
                "-no-user-config",
                "-no-reboot",
            ])
            .args(["-display", "none", "-nic", "none", "-m", &MEMORY_MEBIBYTES.to_string()])
            .args(["-smp", &self.processors.to_string()])
            .arg("-serial")
            .arg(format!("file:{}", self.console.display()))
            .args(["-serial", "stdio"])
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.initramfs)
            .args(["-append", KERNEL_COMMAND_LINE])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = command.spawn().context("failed to start qemu (package qemu-system-x86)")?;
        let output = child.stdout.take().context("qemu has no output")?;
        let (sender, lines) = sync_channel(BACKLOG_LINES);
        let reader = std::thread::spawn(move || {
            let mut output = BufReader::new(output);
            let mut line = Vec::new();
            while output.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                let text = String::from_utf8_lossy(&line).trim().to_owned();
                line.clear();
                if sender.send(text).is_err() {
                    return;
                }
            }
        });
        let end = Instant::now() + self.limit;
        Ok(Running { child, lines: Some(lines), reader: Some(reader), end })
    }
}

impl Running {
    /// Waits for the next line, not beyond the limit.
    pub(crate) fn next(&mut self) -> Next {
        let left = self.end.saturating_duration_since(Instant::now());
        let Some(lines) = &self.lines else { return Next::Off };
        match lines.recv_timeout(left) {
            Ok(line) => Next::Line(line),
            Err(RecvTimeoutError::Disconnected) => Next::Off,
            Err(RecvTimeoutError::Timeout) => Next::TimeIsOver,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // The reader ends with the pipe, also when it waits for room.
        self.lines = None;
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}
