//! Waiting for a process as if it were ours: signals go to it, its terminal is ours, and its end is our exit code.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::termios::{OptionalActions, Termios};

/// Copied at once; a pipe that polls as writable takes as much without blocking (pipe(7), PIPE_BUF).
const CHUNK_BYTES: usize = 4096;

/// Every signal, blocked and readable.
pub(super) struct Signals(SignalFd);

impl Signals {
    pub(super) fn block() -> anyhow::Result<Self> {
        let mut all = SigSet::all();
        // What our own faults raise must end us.
        for signal in [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE, Signal::SIGABRT] {
            all.remove(signal);
        }
        all.thread_block().context("failed to block signals")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self(SignalFd::with_flags(&all, flags).context("failed to watch signals")?))
    }

    /// Until our child `pid` has ended; its exit code, or 128 and its signal.
    pub(super) fn attend(
        &self,
        pid: u32,
        process: &OwnedFd,
        mut terminal: Option<Terminal>,
    ) -> anyhow::Result<i32> {
        if let Some(terminal) = &mut terminal {
            terminal.take_over();
        }
        loop {
            // Before the first poll too: SIGCHLD of one that ended early may be merged with another.
            if let Some(code) = reap(pid)? {
                if let Some(terminal) = &mut terminal {
                    terminal.drain();
                }
                return Ok(code);
            }
            let (signalled, ready) = self.poll(terminal.as_ref())?;
            if signalled {
                while let Some(signal) = self.0.read_signal().context("failed to read a signal")? {
                    forward(signal.ssi_signo, process, terminal.as_ref());
                }
            }
            if let Some(terminal) = &mut terminal {
                terminal.copy(ready);
            }
        }
    }

    /// Whether there is a signal, and what the terminal can do.
    fn poll(&self, terminal: Option<&Terminal>) -> anyhow::Result<(bool, Ready)> {
        let interests = terminal.map(Terminal::interests).unwrap_or_default();
        let mut wanted = vec![PollFd::from_borrowed_fd(self.0.as_fd(), PollFlags::IN)];
        wanted.extend(interests.iter().map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)));
        match poll(&mut wanted, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno).context("failed to wait"),
        }
        let mut ready = Ready::default();
        for ((end, ..), fd) in interests.iter().zip(&wanted[1..]) {
            let flags = fd.revents();
            let readable = flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR);
            let writable = flags.intersects(PollFlags::OUT | PollFlags::HUP | PollFlags::ERR);
            match end {
                End::Input => ready.input = readable,
                End::Output => ready.output = writable,
                End::Master => (ready.from_master, ready.to_master) = (readable, writable),
            }
        }
        Ok((!wanted[0].revents().is_empty(), ready))
    }
}

/// Waits for every child that has ended; orphans of the container become ours.
fn reap(pid: u32) -> anyhow::Result<Option<i32>> {
    let mut code = None;
    loop {
        let (who, answer) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(who, status)) => (who, status),
            Ok(WaitStatus::Signaled(who, signal, _)) => (who, 128 + signal as i32),
            Ok(_) | Err(nix::errno::Errno::ECHILD) => return Ok(code),
            Err(nix::errno::Errno::EINTR) => continue,
            Err(errno) => return Err(errno).context("failed to wait for the process"),
        };
        if u32::try_from(who.as_raw()) == Ok(pid) {
            code = Some(answer);
        }
    }
}

fn forward(signal: u32, process: &OwnedFd, terminal: Option<&Terminal>) {
    let Ok(signal) = i32::try_from(signal) else { return };
    match signal {
        // Not for the process: its own children, our pipes, and out-of-band data of our sockets.
        libc::SIGCHLD | libc::SIGPIPE | libc::SIGURG => {}
        libc::SIGWINCH => {
            if let Some(terminal) = terminal {
                terminal.resize();
            }
        }
        // Ended meanwhile is fine.
        other => drop(orlop_linux::process::send_signal_to(process.as_fd(), other)),
    }
}

#[derive(Clone, Copy, Debug)]
enum End {
    Input,
    Output,
    Master,
}

/// What can be done without waiting.
#[derive(Clone, Copy, Debug, Default)]
struct Ready {
    input: bool,
    output: bool,
    from_master: bool,
    to_master: bool,
}

/// A process's terminal, seen from outside, joined to our standard streams.
pub(super) struct Terminal {
    master: OwnedFd,
    /// How ours was.
    saved: Option<Termios>,
    to_master: Vec<u8>,
    to_output: Vec<u8>,
    input_ended: bool,
    master_ended: bool,
}

impl Terminal {
    pub(super) fn new(master: OwnedFd) -> anyhow::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&master)?;
        rustix::fs::fcntl_setfl(&master, flags | OFlags::NONBLOCK)?;
        Ok(Self {
            master,
            saved: None,
            to_master: Vec::new(),
            to_output: Vec::new(),
            input_ended: false,
            master_ended: false,
        })
    }

    /// Ours passes everything on as it is typed; theirs gets the size of ours.
    fn take_over(&mut self) {
        let Ok(termios) = rustix::termios::tcgetattr(rustix::stdio::stdin()) else { return };
        let mut raw = termios.clone();
        raw.make_raw();
        if rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw).is_ok() {
            self.saved = Some(termios);
        }
        self.resize();
    }

    fn resize(&self) {
        if let Ok(size) = rustix::termios::tcgetwinsize(rustix::stdio::stdin()) {
            let _ = rustix::termios::tcsetwinsize(&self.master, size);
        }
    }

    /// What is not wanted is left out: poll(2) reports a hang-up even to those who ask for nothing.
    fn interests(&self) -> Vec<(End, BorrowedFd<'_>, PollFlags)> {
        let mut interests = Vec::new();
        if !self.input_ended && self.to_master.is_empty() {
            interests.push((End::Input, rustix::stdio::stdin(), PollFlags::IN));
        }
        if !self.to_output.is_empty() {
            interests.push((End::Output, rustix::stdio::stdout(), PollFlags::OUT));
        }
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, self.to_output.is_empty());
        flags.set(PollFlags::OUT, !self.to_master.is_empty());
        if !self.master_ended && !flags.is_empty() {
            interests.push((End::Master, self.master.as_fd(), flags));
        }
        interests
    }

    fn copy(&mut self, ready: Ready) {
        if ready.input && !self.input_ended && self.to_master.is_empty() {
            self.input_ended = !fill(rustix::stdio::stdin(), &mut self.to_master);
        }
        if ready.to_master && !self.to_master.is_empty() && !flush(self.master.as_fd(), &mut self.to_master) {
            self.master_ended = true;
        }
        if ready.from_master && !self.master_ended && self.to_output.is_empty() {
            self.master_ended = !fill(self.master.as_fd(), &mut self.to_output);
        }
        if ready.output && !flush(rustix::stdio::stdout(), &mut self.to_output) {
            self.to_output.clear();
        }
    }

    /// What the process wrote before it ended.
    fn drain(&mut self) {
        loop {
            while !self.to_output.is_empty() {
                if !flush(rustix::stdio::stdout(), &mut self.to_output) {
                    return;
                }
            }
            if self.master_ended
                || !fill(self.master.as_fd(), &mut self.to_output)
                || self.to_output.is_empty()
            {
                return;
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(saved) = &self.saved {
            let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, saved);
        }
    }
}

/// False at the end. A terminal without a process answers EIO.
fn fill(from: BorrowedFd<'_>, into: &mut Vec<u8>) -> bool {
    let mut chunk = [0_u8; CHUNK_BYTES];
    match rustix::io::read(from, &mut chunk) {
        Ok(0) => false,
        Ok(count) => {
            into.extend_from_slice(&chunk[..count]);
            true
        }
        Err(errno) => is_transient(errno),
    }
}

/// False when nobody reads any more.
fn flush(to: BorrowedFd<'_>, from: &mut Vec<u8>) -> bool {
    match rustix::io::write(to, from) {
        Ok(count) => {
            from.drain(..count);
            true
        }
        Err(errno) => is_transient(errno),
    }
}

fn is_transient(errno: rustix::io::Errno) -> bool {
    matches!(io::Error::from(errno).kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
