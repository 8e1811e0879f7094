//! Connections that carry streams: attach, exec, port forward.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde::Serialize;

use crate::connection::{Connection, Mode};
use crate::log::Stream;
use crate::protocol::{ErrorKind, ExitStatus, Response, TerminalSize, channel};
use crate::running::{Console, Role, Running, Stage};
use crate::server::Shim;

/// Of each stream of a collected exec. Both, in base64, fit into one frame.
const COLLECTED_BYTES: usize = 1400 * 1024;

/// Attach, exec and port forward together, of the connections that a shim takes.
const SESSION_LIMIT: usize = 128;

impl Shim {
    /// Hands output to everybody who wants it.
    pub(crate) fn deliver(&mut self, key: u64, stream: Stream, data: &[u8]) {
        let Some(running) = self.processes.get_mut(&key) else {
            return;
        };
        match &mut running.role {
            Role::Init => {
                let id = &running.container;
                if let Some(container) = self.containers.get_mut(id) {
                    container.log.write(stream, data);
                }
                for connection in self.connections.values_mut() {
                    let Mode::Attach { container, stdout, stderr, .. } = &connection.mode else {
                        continue;
                    };
                    let wanted = match stream {
                        Stream::Stdout => *stdout,
                        Stream::Stderr => *stderr,
                    };
                    if wanted && container == id {
                        connection.push_stream(channel_of(stream), data);
                        connection.cut_if_slow();
                    }
                }
            }
            // A client that is gone has its output dropped.
            Role::Session { connection } | Role::Streamed { connection, .. } => {
                if let Some(connection) = self.connections.get_mut(connection) {
                    connection.push_stream(channel_of(stream), data);
                }
            }
            Role::Collected { stdout, stderr, .. } => {
                let collected = match stream {
                    Stream::Stdout => stdout,
                    Stream::Stderr => stderr,
                };
                // The rest is read and dropped, so that the process does not stand still.
                let room = COLLECTED_BYTES.saturating_sub(collected.len());
                collected.extend_from_slice(&data[..data.len().min(room)]);
            }
        }
    }

    /// The program of an exec session runs.
    pub(crate) fn begin_session(&mut self, key: u64, process: u64) {
        self.answer(key, &Response::Ok);
        match self.connections.get_mut(&key) {
            Some(connection) => connection.mode = Mode::Exec { process },
            None => self.hang_up(process),
        }
    }

    pub(crate) fn end_session(&mut self, key: u64, end: &impl Serialize) {
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.push_stream(channel::EXIT, &serde_json::to_vec(end).unwrap_or_default());
            connection.last = true;
        }
    }

    /// The container ended; so do the sessions that follow it.
    pub(crate) fn end_attached(&mut self, id: &str, exit: &ExitStatus) {
        let follows = |mode: &Mode| matches!(mode, Mode::Attach { container, .. } if container == id);
        let keys: Vec<u64> =
            self.connections.iter().filter(|(_, c)| follows(&c.mode)).map(|(key, _)| *key).collect();
        for key in keys {
            self.end_session(key, exit);
        }
    }

    /// The process behind a session, and whether the session may write to it.
    fn session_process(&self, key: u64) -> Option<(u64, bool)> {
        match &self.connections.get(&key)?.mode {
            Mode::Exec { process } => Some((*process, true)),
            Mode::Attach { container, stdin, .. } => Some((self.containers.get(container)?.init?, *stdin)),
            Mode::Requests | Mode::Events | Mode::Forward(_) => None,
        }
    }

    pub(crate) fn session_input(&mut self, key: u64, channel: u8, data: &[u8]) {
        let Some((process, may_write)) = self.session_process(key) else {
            return;
        };
        match channel {
            channel::STDIN if may_write => {
                if let Some(running) = self.processes.get_mut(&process) {
                    running.feed(data);
                    running.write_input();
                }
            }
            channel::RESIZE => {
                if let (Ok(size), Some(running)) =
                    (serde_json::from_slice::<TerminalSize>(data), self.processes.get_mut(&process))
                {
                    running.resize(size);
                }
            }
            channel::CLOSE_STDIN => self.session_input_ended(key),
            // Channels of a later version.
            _ => {}
        }
    }

    /// The client will write nothing more.
    pub(crate) fn session_input_ended(&mut self, key: u64) {
        let Some((process, may_write)) = self.session_process(key) else {
            return;
        };
        let once = match self.connections.get(&key).map(|connection| &connection.mode) {
            Some(Mode::Attach { container, .. }) => {
                self.containers.get(container).is_some_and(|container| container.request.stdin_once)
            }
            _ => true,
        };
        if may_write
            && once
            && let Some(running) = self.processes.get_mut(&process)
        {
            running.end_input();
        }
    }

    /// Forgets a connection, with what that means for the other side.
    pub(crate) fn drop_connection(&mut self, key: u64) {
        self.session_input_ended(key);
        let Some(connection) = self.connections.remove(&key) else {
            return;
        };
        if let Mode::Exec { process } = connection.mode {
            self.hang_up(process);
        }
    }

    /// Nobody is there any more for an exec'd process: its input ends, its terminal hangs up, and without one its next output is
    /// SIGPIPE, as with ssh. Reading on would keep what only talks (`tail -f`) until the container ends. A hook or probe goes on: it is
    /// there for what it does, and has a deadline.
    fn hang_up(&mut self, process: u64) {
        if let Some(running) = self.processes.get_mut(&process)
            && matches!(running.role, Role::Session { .. })
        {
            running.close_streams();
        }
    }

    /// Room for one more session: the rest of the connections is for requests, or a pod with busy users would look hung.
    pub(crate) fn has_session_room(&self) -> bool {
        let is_session = |running: &Running| matches!(running.role, Role::Session { .. });
        let carries = |connection: &&Connection| match &connection.mode {
            Mode::Attach { .. } | Mode::Forward(_) => true,
            Mode::Exec { process } => self.processes.get(process).is_none_or(is_session),
            Mode::Requests | Mode::Events => false,
        };
        let starting = |running: &&Running| is_session(running) && !matches!(running.stage, Stage::Running);
        let open = self.connections.values().filter(carries).count();
        open + self.processes.values().filter(starting).count() < SESSION_LIMIT
    }

    /// The terminal's master side arrives.
    pub(crate) fn console_ready(&mut self, key: u64) {
        let Some(running) = self.processes.get_mut(&key) else {
            return;
        };
        let Console::Socket(socket) = &running.console else {
            return;
        };
        match receive_descriptor(socket) {
            Ok(Some(master)) => {
                if let Err(error) = running.take_terminal(master) {
                    crate::say(&format!("{}: no terminal: {error}", running.container));
                    running.console = Console::None;
                }
            }
            Ok(None) if running.exited.is_none() => {}
            Ok(None) => running.console = Console::None,
            Err(error) => {
                crate::say(&format!("{}: no terminal: {error}", running.container));
                running.console = Console::None;
            }
        }
    }

    /// The TCP side of a port forward.
    pub(crate) fn pod_ready(&mut self, key: u64, flags: PollFlags) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        let Mode::Forward(forward) = &mut connection.mode else {
            return;
        };
        if forward.connecting {
            match forward.advance() {
                Ok(true) => connection.answer(&Response::Ok),
                Ok(false) => {}
                Err(error) => {
                    connection.mode = Mode::Requests;
                    connection
                        .answer(&Response::Error { kind: ErrorKind::Failed, message: error.to_string() });
                }
            }
            return;
        }
        let mut alive = true;
        if flags.contains(PollFlags::OUT) {
            alive &= forward.write(connection.ended);
        }
        if flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) && !forward.pod_ended {
            alive &= forward.read(&mut connection.output);
        }
        if !alive {
            forward.pod_ended = true;
            forward.to_pod = Vec::new();
        }
    }
}

fn channel_of(stream: Stream) -> u8 {
    match stream {
        Stream::Stdout => channel::STDOUT,
        Stream::Stderr => channel::STDERR,
    }
}

/// One descriptor over a unix socket; `None` when it has not come yet.
fn receive_descriptor(socket: &OwnedFd) -> std::io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut data = [0; 256];
    match recvmsg(socket.as_fd(), &mut [IoSliceMut::new(&mut data)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    {
        Ok(_) => {}
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    }
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message
            && let Some(descriptor) = descriptors.next()
        {
            return Ok(Some(descriptor));
        }
    }
    Err(std::io::Error::other("the console socket closed without a terminal"))
}
