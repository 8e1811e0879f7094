//! The loop: wait for descriptors and deadlines, hand each to whoever knows it.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use nix::sys::signalfd::SignalFd;
use orlop_linux::process::SingleThreaded;
use orlop_oci::cgroup::Hierarchies;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::connection::{Connection, Mode};
use crate::container::Container;
use crate::frame::{take_frame, take_stream_frame};
use crate::log::Stream;
use crate::pod::PodUser;
use crate::protocol::{ErrorKind, Event, Request, Response, ShimConfig};
use crate::running::{Role, Running, Stage};
use crate::spawn::Program;
use crate::staged::HostMounts;

/// Clients at once; more are turned away.
const CONNECTION_LIMIT: usize = 256;
/// Reads from one stream before the others have their turn.
pub(crate) const READS_PER_TURN: usize = 4;

/// What became ready.
#[derive(Clone, Copy, Debug)]
enum Source {
    Listener,
    Signals,
    Client(u64),
    /// The TCP side of a client's port forward.
    Pod(u64),
    Answer(u64),
    Status(u64),
    Console(u64),
    Input(u64),
    Output(u64, Stream),
}

/// An end under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ending {
    pub(crate) connection: u64,
    pub(crate) give_up_at: Instant,
}

/// Namespaces of the pod's that the shim is not in.
pub(crate) struct Namespaces {
    /// Process 1 of the shared PID namespace.
    pub(crate) reaper: Option<u32>,
    /// The pod's user namespace.
    pub(crate) user: Option<PodUser>,
    /// The host's mounts.
    pub(crate) host_mounts: HostMounts,
}

/// All state of a shim. One thread owns it.
pub struct Shim {
    pub(crate) config: ShimConfig,
    pub(crate) single: SingleThreaded,
    pub(crate) program: Program,
    pub(crate) hierarchies: Hierarchies,
    pub(crate) reaper: Option<u32>,
    /// The pod's user namespace, unless it is the machine's.
    pub(crate) user: Option<PodUser>,
    pub(crate) host_mounts: HostMounts,
    listener: UnixListener,
    signals: SignalFd,
    pub(crate) connections: BTreeMap<u64, Connection>,
    pub(crate) containers: BTreeMap<String, Container>,
    pub(crate) processes: BTreeMap<u64, Running>,
    /// Ends of children whose pids nobody has told us yet: pid, code, time.
    pub(crate) unclaimed: VecDeque<(u32, i32, i64)>,
    pub(crate) ending: Option<Ending>,
    next_key: u64,
    done: bool,
}

impl Shim {
    pub(crate) fn new(
        config: ShimConfig,
        single: SingleThreaded,
        program: Program,
        hierarchies: Hierarchies,
        namespaces: Namespaces,
        listener: UnixListener,
        signals: SignalFd,
    ) -> Self {
        Self {
            config,
            single,
            program,
            hierarchies,
            reaper: namespaces.reaper,
            user: namespaces.user,
            host_mounts: namespaces.host_mounts,
            listener,
            signals,
            connections: BTreeMap::new(),
            containers: BTreeMap::new(),
            processes: BTreeMap::new(),
            unclaimed: VecDeque::new(),
            ending: None,
            next_key: 1,
            done: false,
        }
    }

    pub(crate) fn new_key(&mut self) -> u64 {
        self.next_key += 1;
        self.next_key
    }

    /// Serves until [`Request::Shutdown`] is done.
    pub(crate) fn serve(&mut self) {
        while !self.done {
            let ready = self.wait();
            for (source, flags) in ready {
                self.dispatch(source, flags);
            }
            self.fire_deadlines(Instant::now());
            self.close_finished();
            self.done = self.try_end(Instant::now());
        }
    }

    fn wait(&self) -> Vec<(Source, PollFlags)> {
        let interests = self.interests();
        let mut polled: Vec<PollFd<'_>> =
            interests.iter().map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
        let timeout = self.next_deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = timeout.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        match poll(&mut polled, timeout.as_ref()) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Vec::new(),
            Ok(_) => {}
            Err(errno) => {
                crate::say(&format!("poll failed: {errno}"));
                // Memory is short; a busy loop would not help.
                std::thread::sleep(Duration::from_millis(100));
                return Vec::new();
            }
        }
        let answers = interests.iter().zip(&polled).map(|((source, ..), fd)| (*source, fd.revents()));
        answers.filter(|(_, flags)| !flags.is_empty()).collect()
    }

    fn interests(&self) -> Vec<(Source, BorrowedFd<'_>, PollFlags)> {
        let mut list = vec![(Source::Signals, self.signals.as_fd(), PollFlags::IN)];
        if self.connections.len() < CONNECTION_LIMIT {
            list.push((Source::Listener, self.listener.as_fd(), PollFlags::IN));
        }
        for (key, connection) in &self.connections {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, !connection.ended && self.wants_input(connection));
            flags.set(PollFlags::OUT, !connection.output.is_empty());
            list.push((Source::Client(*key), connection.stream.as_fd(), flags));
            if let Mode::Forward(forward) = &connection.mode
                && !(forward.pod_ended && forward.to_pod.is_empty())
            {
                let mut flags = PollFlags::empty();
                flags.set(
                    PollFlags::IN,
                    !forward.connecting && !forward.pod_ended && !connection.is_congested(),
                );
                flags.set(PollFlags::OUT, forward.connecting || !forward.to_pod.is_empty());
                list.push((Source::Pod(*key), forward.socket.as_fd(), flags));
            }
        }
        for (key, running) in &self.processes {
            self.process_interests(*key, running, &mut list);
        }
        list
    }

    fn process_interests<'a>(
        &self,
        key: u64,
        running: &'a Running,
        list: &mut Vec<(Source, BorrowedFd<'a>, PollFlags)>,
    ) {
        if let Stage::Preparing { answer, .. } = &running.stage {
            list.push((Source::Answer(key), answer.as_fd(), PollFlags::IN));
        }
        if let Some(status) = &running.status {
            list.push((Source::Status(key), status.as_fd(), PollFlags::IN));
        }
        if let Some(console) = running.console.fd()
            && !matches!(running.stage, Stage::Preparing { .. })
        {
            list.push((Source::Console(key), console, PollFlags::IN));
        }
        if let Some(stdin) = &running.stdin
            && !running.stdin_buffer.is_empty()
        {
            list.push((Source::Input(key), stdin.as_fd(), PollFlags::OUT));
        }
        // An exec session's client must hear "ok" before it hears the program; and it may be slow.
        if matches!(running.stage, Stage::Running) && !self.is_congested(running) {
            for stream in [Stream::Stdout, Stream::Stderr] {
                if let Some(fd) = running.output(stream) {
                    list.push((Source::Output(key, stream), fd.as_fd(), PollFlags::IN));
                }
            }
        }
    }

    /// Whoever hears the process has not taken what it said before.
    pub(crate) fn is_congested(&self, running: &Running) -> bool {
        match running.role {
            Role::Session { connection } | Role::Streamed { connection, .. } => {
                self.connections.get(&connection).is_some_and(Connection::is_congested)
            }
            Role::Init | Role::Collected { .. } => false,
        }
    }

    fn wants_input(&self, connection: &Connection) -> bool {
        match &connection.mode {
            Mode::Requests => !connection.busy && !connection.last,
            Mode::Events => true,
            Mode::Attach { container, .. } => {
                let init = self.containers.get(container).and_then(|container| container.init);
                init.and_then(|key| self.processes.get(&key)).is_none_or(Running::wants_input)
            }
            Mode::Exec { process } => self.processes.get(process).is_none_or(Running::wants_input),
            Mode::Forward(forward) => forward.has_room(),
        }
    }

    fn dispatch(&mut self, source: Source, flags: PollFlags) {
        match source {
            Source::Listener => self.accept(),
            Source::Signals => {
                while let Ok(Some(_)) = self.signals.read_signal() {}
                self.reap();
            }
            Source::Client(key) => self.client_ready(key, flags),
            Source::Pod(key) => self.pod_ready(key, flags),
            Source::Answer(key) => self.answer_ready(key),
            Source::Status(key) => {
                if self.processes.get_mut(&key).is_some_and(Running::read_status) {
                    self.status_ended(key);
                }
            }
            Source::Console(key) => self.console_ready(key),
            Source::Input(key) => {
                if let Some(running) = self.processes.get_mut(&key) {
                    running.write_input();
                }
            }
            Source::Output(key, stream) => self.pump(key, stream),
        }
    }

    fn accept(&mut self) {
        let Ok((stream, _)) = self.listener.accept() else {
            return;
        };
        if let Ok(connection) = Connection::new(stream) {
            let key = self.new_key();
            self.connections.insert(key, connection);
        }
    }

    fn client_ready(&mut self, key: u64, flags: PollFlags) {
        let hung_up = flags.intersects(PollFlags::HUP | PollFlags::ERR);
        if let Some(connection) = self.connections.get_mut(&key) {
            if flags.contains(PollFlags::OUT) {
                connection.flush();
            }
            if flags.contains(PollFlags::IN) {
                connection.fill();
            }
            // A client that closed may have sent something first; that is read to its end.
            connection.broken |= hung_up && !flags.contains(PollFlags::IN);
        }
        self.process_input(key);
        self.input_ended(key);
    }

    fn process_input(&mut self, key: u64) {
        while let Some(connection) = self.connections.get_mut(&key) {
            match &mut connection.mode {
                Mode::Requests if connection.busy || connection.last => return,
                Mode::Requests => match take_frame(&mut connection.input) {
                    Ok(Some(body)) => self.receive(key, &body),
                    Ok(None) => return,
                    Err(_) => {
                        connection.broken = true;
                        return;
                    }
                },
                Mode::Events => {
                    connection.input.clear();
                    return;
                }
                Mode::Attach { .. } | Mode::Exec { .. } => match take_stream_frame(&mut connection.input) {
                    Ok(Some((channel, data))) => self.session_input(key, channel, &data),
                    Ok(None) => return,
                    Err(_) => {
                        connection.broken = true;
                        return;
                    }
                },
                Mode::Forward(forward) => {
                    forward.to_pod.append(&mut connection.input);
                    connection.broken |= !forward.connecting && !forward.write(connection.ended);
                    return;
                }
            }
        }
    }

    fn receive(&mut self, key: u64, body: &[u8]) {
        let request = serde_json::from_slice::<Request>(body);
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.busy = true;
        }
        match request {
            Ok(request) => self.request(key, request),
            Err(error) => self.refuse(key, ErrorKind::Invalid, format!("unreadable request: {error}")),
        }
    }

    /// What the end of a client's input means for what its connection is.
    fn input_ended(&mut self, key: u64) {
        let Some(connection) = self.connections.get_mut(&key).filter(|connection| connection.ended) else {
            return;
        };
        match &connection.mode {
            Mode::Requests => connection.broken |= !connection.busy && connection.output.is_empty(),
            Mode::Events => connection.broken = true,
            Mode::Attach { .. } | Mode::Exec { .. } => self.session_input_ended(key),
            Mode::Forward(_) => {}
        }
    }

    fn close_finished(&mut self) {
        let keys: Vec<u64> = self.connections.keys().copied().collect();
        for key in keys {
            let Some(connection) = self.connections.get_mut(&key) else {
                continue;
            };
            if !connection.output.is_empty() {
                connection.flush();
            }
            let idle = connection.output.is_empty();
            if let Mode::Forward(forward) = &connection.mode {
                connection.broken |= forward.pod_ended && idle;
            }
            connection.broken |= idle
                && (connection.last
                    || connection.ended && !connection.busy && matches!(connection.mode, Mode::Requests));
            if connection.broken {
                self.drop_connection(key);
            }
        }
    }

    pub(crate) fn answer(&mut self, key: u64, response: &Response) {
        // The client may be gone; the work was done all the same.
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.answer(response);
        }
    }

    pub(crate) fn refuse(&mut self, key: u64, kind: ErrorKind, message: String) {
        self.answer(key, &Response::Error { kind, message });
    }

    /// Tells every events client.
    pub(crate) fn announce(&mut self, id: &str) {
        let Some(container) = self.containers.get(id) else {
            return;
        };
        let event = Event { container: container.state() };
        for connection in
            self.connections.values_mut().filter(|connection| matches!(connection.mode, Mode::Events))
        {
            connection.push(&event);
            connection.cut_if_slow();
        }
    }
}
