//! One process of a container, from the set-up child's start to the last byte of its output.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::Instant;

use orlop_oci::setup::Answer;
use rustix::io::Errno;
use rustix::termios::Winsize;

use crate::log::Stream;
use crate::protocol::TerminalSize;

/// Input that a process has not read yet.
const STDIN_BYTES: usize = 64 * 1024;
const CHUNK_BYTES: usize = 16 * 1024;
/// Largest answer or failure text of a set-up child.
const ANSWER_LIMIT_BYTES: usize = 64 * 1024;

/// What a process is for.
#[derive(Debug)]
pub(crate) enum Role {
    /// The container's first.
    Init,
    /// Belongs to a session.
    Session { connection: u64 },
    /// Its output goes to whoever waits for its end.
    Streamed { connection: u64, timed_out: bool },
    /// Its output is collected.
    Collected { connection: u64, stdout: Vec<u8>, stderr: Vec<u8>, timed_out: bool },
}

/// How far it is.
#[derive(Debug)]
pub(crate) enum Stage {
    /// The set-up child works.
    Preparing { setup_pid: u32, answer: OwnedFd, text: Vec<u8> },
    /// Made, not started (first processes only).
    Waiting,
    /// execve is pending.
    Starting,
    /// The program runs, or ran.
    Running,
}

/// Where the terminal's master side will come from.
#[derive(Debug)]
pub(crate) enum Console {
    None,
    /// libcontainer connects here.
    Listener(UnixListener),
    /// It arrives on this socket.
    Socket(OwnedFd),
}

impl Console {
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Console::None => None,
            Console::Listener(listener) => Some(listener.as_fd()),
            Console::Socket(socket) => Some(socket.as_fd()),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) container: String,
    pub(crate) role: Role,
    pub(crate) stage: Stage,
    pub(crate) pid: Option<u32>,
    /// Closes when execve worked; text says why not.
    pub(crate) status: Option<OwnedFd>,
    pub(crate) status_text: Vec<u8>,
    pub(crate) console: Console,
    pub(crate) terminal: Option<OwnedFd>,
    pub(crate) size: Option<TerminalSize>,
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdin_buffer: Vec<u8>,
    /// Close it when the buffer is empty.
    pub(crate) stdin_ends: bool,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    /// Exit code and time.
    pub(crate) exited: Option<(i32, i64)>,
    /// Output that does not end by then is left.
    pub(crate) drain_until: Option<Instant>,
    /// Whatever is under way is killed then: set-up, or the process itself.
    pub(crate) deadline: Option<Instant>,
    /// What `deadline` becomes after set-up.
    pub(crate) time_limit: Option<Instant>,
}

/// What reading from a descriptor gave.
pub(crate) enum Chunk {
    Data(Vec<u8>),
    /// Nothing now.
    Later,
    End,
}

pub(crate) fn read_chunk(fd: BorrowedFd<'_>) -> Chunk {
    let mut data = vec![0; CHUNK_BYTES];
    match rustix::io::read(fd, &mut data) {
        Ok(0) => Chunk::End,
        Ok(count) => {
            data.truncate(count);
            Chunk::Data(data)
        }
        Err(Errno::AGAIN | Errno::INTR) => Chunk::Later,
        // EIO is how a terminal says that nobody has its other side open.
        Err(_) => Chunk::End,
    }
}

impl Running {
    pub(crate) fn is_init(&self) -> bool {
        matches!(self.role, Role::Init)
    }

    pub(crate) fn output(&self, stream: Stream) -> Option<&OwnedFd> {
        match stream {
            Stream::Stdout => self.stdout.as_ref(),
            Stream::Stderr => self.stderr.as_ref(),
        }
    }

    pub(crate) fn close_output(&mut self, stream: Stream) {
        match stream {
            Stream::Stdout => self.stdout = None,
            Stream::Stderr => self.stderr = None,
        }
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.stdout.is_none() && self.stderr.is_none() && matches!(self.console, Console::None)
    }

    /// Reads the set-up child's answer as far as it is there.
    pub(crate) fn read_answer(&mut self) -> Option<Answer> {
        let Stage::Preparing { answer, text, .. } = &mut self.stage else {
            return None;
        };
        while let Chunk::Data(data) = read_chunk(answer.as_fd()) {
            if text.len() < ANSWER_LIMIT_BYTES {
                text.extend_from_slice(&data);
            }
        }
        // The container's process holds the pipe too, so the end of the text is the end of the JSON.
        serde_json::from_slice(text).ok()
    }

    /// Reads the status pipe. True when it has ended: execve happened or failed.
    pub(crate) fn read_status(&mut self) -> bool {
        let Some(status) = &self.status else { return false };
        loop {
            match read_chunk(status.as_fd()) {
                Chunk::Data(data) => {
                    if self.status_text.len() < ANSWER_LIMIT_BYTES {
                        self.status_text.extend_from_slice(&data);
                    }
                }
                Chunk::Later => return false,
                Chunk::End => {
                    self.status = None;
                    return true;
                }
            }
        }
    }

    pub(crate) fn wants_input(&self) -> bool {
        self.stdin_buffer.len() < STDIN_BYTES
    }

    /// Queues input; what the process will never read is forgotten.
    pub(crate) fn feed(&mut self, data: &[u8]) {
        if !self.stdin_ends && (self.stdin.is_some() || !matches!(self.console, Console::None)) {
            self.stdin_buffer.extend_from_slice(data);
        }
    }

    pub(crate) fn end_input(&mut self) {
        self.stdin_ends = true;
        self.write_input();
    }

    /// Hands queued input over.
    pub(crate) fn write_input(&mut self) {
        let Some(stdin) = &self.stdin else { return };
        while !self.stdin_buffer.is_empty() {
            match rustix::io::write(stdin, &self.stdin_buffer) {
                Ok(count) => drop(self.stdin_buffer.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    self.stdin_buffer = Vec::new();
                    self.stdin = None;
                    return;
                }
            }
        }
        self.stdin_buffer.shrink_to(CHUNK_BYTES);
        if self.stdin_ends {
            self.stdin = None;
        }
    }

    /// The master side has arrived: all streams are it.
    pub(crate) fn take_terminal(&mut self, master: OwnedFd) -> std::io::Result<()> {
        crate::spawn::set_nonblocking(&master)?;
        self.stdout = Some(master.try_clone()?);
        self.stdin = Some(master.try_clone()?);
        self.terminal = Some(master);
        self.console = Console::None;
        self.apply_size();
        self.write_input();
        Ok(())
    }

    pub(crate) fn resize(&mut self, size: TerminalSize) {
        self.size = Some(size);
        self.apply_size();
    }

    fn apply_size(&mut self) {
        if let (Some(terminal), Some(size)) = (&self.terminal, self.size) {
            let size = Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
            // A terminal that is gone has no size.
            let _ = rustix::termios::tcsetwinsize(terminal, size);
        }
    }

    /// Nobody listens and nobody will write any more.
    pub(crate) fn close_streams(&mut self) {
        self.console = Console::None;
        self.terminal = None;
        self.stdin = None;
        self.stdout = None;
        self.stderr = None;
        self.stdin_buffer = Vec::new();
    }
}
