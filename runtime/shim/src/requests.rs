//! What each request does.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::Context;
use orlop_oci::setup::{CreateRequest, Descriptors, ExecRequest};

use crate::connection::Mode;
use crate::container::{Container, Stop, cgroup_path, is_valid_id};
use crate::log::ContainerLog;
use crate::port_forward::Forward;
use crate::protocol::{
    ContainerStats, CreateContainer, ErrorKind, Event, ExecProcess, Phase, Request, Response, ShimState,
    VERSION,
};
use crate::running::{Console, Role, Running, Stage};
use crate::server::{Ending, Shim};
use crate::spawn::Pipe;
use crate::{now_nanos, rootfs, start};

/// A set-up child that takes longer hangs on something (a dead network file system, usually).
const SETUP_LIMIT: Duration = Duration::from_secs(100);
/// After SIGKILL; longer is a process in uninterruptible sleep.
const DEATH_LIMIT: Duration = Duration::from_secs(10);
const END_LIMIT: Duration = Duration::from_secs(8);

/// A refusal with its kind.
type Refusal = (ErrorKind, String);

fn not_found(id: &str) -> Refusal {
    (ErrorKind::NotFound, format!("container {id} is unknown"))
}

fn failed(error: &anyhow::Error) -> Refusal {
    (ErrorKind::Failed, format!("{error:#}"))
}

impl Shim {
    /// Does a request; the answer comes now or when the work is done.
    pub(crate) fn request(&mut self, key: u64, request: Request) {
        let done = match request {
            Request::Hello { .. } => Ok(Some(Response::Hello { version: VERSION, pid: std::process::id() })),
            Request::State => Ok(Some(Response::State(self.state()))),
            Request::Create(request) => self.create(key, *request),
            Request::Start { id } => self.start(key, &id),
            Request::Signal { id, signal, all } => self.signal(&id, signal, all),
            Request::Stop { id, grace_millis } => self.stop(key, &id, Duration::from_millis(grace_millis)),
            Request::Remove { id } => self.remove(key, &id),
            Request::ExecSync { id, process, timeout_millis, stream } => {
                let role = match stream {
                    true => Role::Streamed { connection: key, timed_out: false },
                    false => Role::Collected {
                        connection: key,
                        stdout: Vec::new(),
                        stderr: Vec::new(),
                        timed_out: false,
                    },
                };
                self.exec_sync(&id, &process, timeout_millis, role)
            }
            Request::Exec { id, process } => self.exec_session(key, &id, &process),
            Request::Attach { id, stdin, stdout, stderr } => self.attach(key, &id, stdin, stdout, stderr),
            Request::PortForward { port } => self.port_forward(key, port),
            Request::ReopenLog { id } => self.reopen_log(&id),
            Request::Stats { id } => self.stats(&id),
            Request::Events => {
                self.follow_events(key);
                Ok(None)
            }
            Request::Shutdown => {
                self.begin_end(key);
                Ok(None)
            }
        };
        match done {
            Ok(Some(response)) => self.answer(key, &response),
            Ok(None) => {}
            Err((kind, message)) => self.refuse(key, kind, message),
        }
    }

    fn state(&self) -> ShimState {
        let known = self.containers.values().filter(|container| !container.is_unborn());
        ShimState {
            sandbox_id: self.config.sandbox_id.clone(),
            containers: known.map(Container::state).collect(),
        }
    }

    fn create(&mut self, key: u64, request: CreateContainer) -> Result<Option<Response>, Refusal> {
        if !is_valid_id(&request.id) {
            return Err((ErrorKind::Invalid, format!("{:?} is not a container id", request.id)));
        }
        if self.ending.is_some() {
            return Err((ErrorKind::WrongState, "the pod is ending".to_owned()));
        }
        if let Some(container) = self.containers.get_mut(&request.id) {
            if container.is_unborn() {
                container.creators.push(key);
                return Ok(None);
            }
            return Ok(Some(Response::Container(container.state())));
        }
        let id = request.id.clone();
        let mut container = self.new_container(request).map_err(|error| failed(&error))?;
        container.creators.push(key);
        self.containers.insert(id.clone(), container);
        if let Err(error) = self.begin_creation(&id) {
            self.fail_creation(&id, format!("{error:#}"));
        }
        Ok(None)
    }

    fn new_container(&self, request: CreateContainer) -> anyhow::Result<Container> {
        let directory = self.config.state_dir.join("containers").join(&request.id);
        let config = request.bundle.join("config.json");
        let path = cgroup_path(&config, &request.id)
            .with_context(|| format!("failed to read {}", config.display()))?;
        // Whatever a shim before us left under this id is over.
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(directory.join("work"))
            .context("failed to make the container's state directory")?;
        let log = ContainerLog::open(request.log_path.clone()).context("failed to open the log")?;
        let cgroup = self.hierarchies.cgroup(&path);
        Ok(Container::new(request, directory, cgroup, log))
    }

    /// Mounts, then starts the set-up child; the rest happens when it answers.
    fn begin_creation(&mut self, id: &str) -> anyhow::Result<()> {
        let key = self.new_key();
        let container = self.containers.get_mut(id).context("unknown container")?;
        rootfs::mount_overlay(&container.request.rootfs, &container.rootfs(), self.user.as_ref())
            .context("failed to mount the root file system")?;
        self.host_mounts.stage(&container.request.mounts, self.user.as_ref())?;
        let terminal = container.request.terminal;
        let console = match terminal {
            true => Console::Listener(start::listen_at(&container.work(), "console.sock")?),
            false => Console::None,
        };
        let streams = Streams::open(container.request.stdin && !terminal, !terminal, !terminal)?;
        let request = CreateRequest {
            id: id.to_owned(),
            bundle: container.request.bundle.clone(),
            rootfs: Some(container.rootfs()),
            work: container.work(),
            namespaces: pod_namespaces(self.reaper, self.user.as_ref()),
            console_socket: terminal.then(|| container.work().join("console.sock")),
            sibling: true,
            preserve_fds: 0,
            no_pivot: false,
            new_keyring: false,
            // Kubernetes expects a missing program to fail the start, not the creation.
            check_program: false,
            environment: Vec::new(),
            systemd: self.config.scope.is_some(),
            mounts: Vec::new(),
            descriptors: streams.numbers(None),
        };
        let setup_pid = self
            .program
            .start("create", &request, &streams.theirs())
            .context("failed to start the set-up child")?;
        container.init = Some(key);
        let running = streams.into_running(id, Role::Init, setup_pid, console);
        self.processes.insert(key, running);
        Ok(())
    }

    fn start(&mut self, key: u64, id: &str) -> Result<Option<Response>, Refusal> {
        let container = self
            .containers
            .get_mut(id)
            .filter(|container| !container.is_unborn())
            .ok_or_else(|| not_found(id))?;
        let init = container.init.and_then(|init| self.processes.get_mut(&init));
        let Some(init) = init.filter(|init| matches!(init.stage, Stage::Waiting) && init.exited.is_none())
        else {
            return Err((ErrorKind::WrongState, format!("container {id} is not waiting to be started")));
        };
        let directory = container.work().join("state").join(id);
        notify(&directory).context("failed to start the container").map_err(|error| failed(&error))?;
        init.stage = Stage::Starting;
        container.starters.push(key);
        Ok(None)
    }

    fn signal(&mut self, id: &str, signal: i32, all: bool) -> Result<Option<Response>, Refusal> {
        let container = self.containers.get(id).ok_or_else(|| not_found(id))?;
        if !(1..=64).contains(&signal) {
            return Err((ErrorKind::Invalid, format!("{signal} is not a signal")));
        }
        let pid =
            container.pid.ok_or_else(|| (ErrorKind::WrongState, format!("container {id} does not run")))?;
        if all {
            container.cgroup.signal(signal);
        } else {
            send(pid, signal).context("failed to send the signal").map_err(|error| failed(&error))?;
        }
        Ok(Some(Response::Ok))
    }

    fn stop(&mut self, key: u64, id: &str, grace: Duration) -> Result<Option<Response>, Refusal> {
        let container = self.containers.get_mut(id).ok_or_else(|| not_found(id))?;
        if container.init.is_none() {
            return Ok(Some(Response::Ok));
        }
        let now = Instant::now();
        // A container that was never started has nothing to say to a polite signal.
        let grace = if container.phase == Phase::Created { Duration::ZERO } else { grace };
        let kill_at = now.checked_add(grace).unwrap_or(now + Duration::from_secs(u64::from(u32::MAX)));
        container.stoppers.push(key);
        match &mut container.stop {
            Some(stop) => stop.kill_at = stop.kill_at.min(kill_at),
            None => {
                container.stop = Some(Stop { kill_at, killed: false, give_up_at: kill_at + DEATH_LIMIT });
                if let Some(pid) = container.pid.filter(|_| !grace.is_zero()) {
                    // Gone just now is what we want.
                    let _ = send(pid, container.request.stop_signal);
                }
            }
        }
        Ok(None)
    }

    fn remove(&mut self, key: u64, id: &str) -> Result<Option<Response>, Refusal> {
        let Some(container) = self.containers.get_mut(id) else {
            return Ok(Some(Response::Ok));
        };
        if container.is_unborn() && container.failure.is_none() {
            return Err((ErrorKind::WrongState, format!("container {id} is being created")));
        }
        if container.phase == Phase::Running && container.pid.is_some() {
            return Err((ErrorKind::WrongState, format!("container {id} runs")));
        }
        container.removers.push(key);
        if container.init.is_some() {
            // Made and not started, or draining; its end goes on with the removal.
            container.cgroup.kill();
            if let Some(pid) = container.pid {
                let _ = send(pid, libc::SIGKILL);
            }
        } else if container.removal.is_none() {
            self.begin_removal(id);
        }
        Ok(None)
    }

    fn exec_sync(
        &mut self,
        id: &str,
        process: &ExecProcess,
        timeout_millis: u64,
        role: Role,
    ) -> Result<Option<Response>, Refusal> {
        let timeout = (timeout_millis > 0).then(|| Duration::from_millis(timeout_millis));
        let process = ExecProcess {
            args: process.args.clone(),
            terminal: false,
            stdin: false,
            stdout: true,
            stderr: true,
        };
        let process_key = self.exec(id, &process, role)?;
        if let (Some(running), Some(timeout)) = (self.processes.get_mut(&process_key), timeout) {
            running.deadline = running.deadline.min(Instant::now().checked_add(timeout));
            running.time_limit = Instant::now().checked_add(timeout);
        }
        Ok(None)
    }

    fn check_session_room(&self) -> Result<(), Refusal> {
        match self.has_session_room() {
            true => Ok(()),
            false => {
                Err((ErrorKind::Failed, "the pod has too many open sessions: end one of them".to_owned()))
            }
        }
    }

    fn exec_session(
        &mut self,
        key: u64,
        id: &str,
        process: &ExecProcess,
    ) -> Result<Option<Response>, Refusal> {
        self.check_session_room()?;
        self.exec(id, process, Role::Session { connection: key })?;
        Ok(None)
    }

    fn exec(&mut self, id: &str, process: &ExecProcess, role: Role) -> Result<u64, Refusal> {
        let container = self.containers.get(id).ok_or_else(|| not_found(id))?;
        let pid = container.pid.filter(|_| container.phase == Phase::Running);
        let pid = pid.ok_or_else(|| (ErrorKind::WrongState, format!("container {id} does not run")))?;
        if process.args.is_empty() {
            return Err((ErrorKind::Invalid, "no program to run".to_owned()));
        }
        let config = container.config();
        self.begin_exec(id, pid, config, process, role).map_err(|error| failed(&error))
    }

    fn begin_exec(
        &mut self,
        id: &str,
        pid: u32,
        config: std::path::PathBuf,
        process: &ExecProcess,
        role: Role,
    ) -> anyhow::Result<u64> {
        let terminal = process.terminal;
        let streams = Streams::open(
            process.stdin && !terminal,
            process.stdout && !terminal,
            process.stderr && !terminal,
        )?;
        let (ours, theirs) = match terminal {
            true => {
                let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
                ours.set_nonblocking(true)?;
                (Console::Socket(ours.into()), Some(theirs))
            }
            false => (Console::None, None),
        };
        let request = ExecRequest {
            // Our child, not waited for: the pid cannot be anybody else's.
            target: orlop_linux::process::identify(pid).context("the container's first process is gone")?,
            config,
            process: None,
            arguments: process.args.clone(),
            terminal,
            preserve_fds: 0,
            join_keyring: false,
            cgroup: None,
            cgroup_of: Default::default(),
            descriptors: streams.numbers(theirs.as_ref().map(AsRawFd::as_raw_fd)),
        };
        let mut keep = streams.theirs();
        keep.extend(theirs.as_ref().map(AsFd::as_fd));
        let setup_pid = self
            .program
            .start_exec(&self.single, &request, &keep)
            .context("failed to start the set-up child")?;
        let key = self.new_key();
        let running = streams.into_running(id, role, setup_pid, ours);
        self.processes.insert(key, running);
        Ok(key)
    }

    fn attach(
        &mut self,
        key: u64,
        id: &str,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    ) -> Result<Option<Response>, Refusal> {
        self.check_session_room()?;
        let container = self
            .containers
            .get(id)
            .filter(|container| !container.is_unborn())
            .ok_or_else(|| not_found(id))?;
        if container.init.is_none() {
            return Err((ErrorKind::WrongState, format!("container {id} has ended")));
        }
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.mode = Mode::Attach { container: id.to_owned(), stdin, stdout, stderr };
        }
        Ok(Some(Response::Ok))
    }

    fn port_forward(&mut self, key: u64, port: u16) -> Result<Option<Response>, Refusal> {
        self.check_session_room()?;
        let forward = Forward::open(port).map_err(|error| (ErrorKind::Failed, error.to_string()))?;
        let connected = !forward.connecting;
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.mode = Mode::Forward(forward);
        }
        Ok(connected.then_some(Response::Ok))
    }

    fn reopen_log(&mut self, id: &str) -> Result<Option<Response>, Refusal> {
        let container = self.containers.get_mut(id).ok_or_else(|| not_found(id))?;
        container.log.reopen().context("failed to open the log").map_err(|error| failed(&error))?;
        Ok(Some(Response::Ok))
    }

    fn stats(&self, id: &str) -> Result<Option<Response>, Refusal> {
        let container = self.containers.get(id).ok_or_else(|| not_found(id))?;
        let usage = container.cgroup.usage();
        Ok(Some(Response::Stats(ContainerStats {
            timestamp: now_nanos(),
            cpu_nanos: usage.cpu_nanos,
            memory_bytes: usage.memory_bytes,
            memory_working_set_bytes: usage.working_set_bytes,
            memory_rss_bytes: usage.rss_bytes,
            pids: usage.pids,
        })))
    }

    fn follow_events(&mut self, key: u64) {
        let exits: Vec<Event> = self
            .containers
            .values()
            .filter(|container| container.exit.is_some())
            .map(|container| Event { container: container.state() })
            .collect();
        self.answer(key, &Response::Ok);
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.mode = Mode::Events;
            for event in exits {
                connection.push(&event);
            }
        }
    }

    fn begin_end(&mut self, key: u64) {
        self.ending = Some(Ending { connection: key, give_up_at: Instant::now() + END_LIMIT });
        let ids: Vec<String> = self.containers.keys().cloned().collect();
        for id in ids {
            let Some(container) = self.containers.get(&id) else {
                continue;
            };
            container.cgroup.kill();
            if let Some(pid) = container.pid {
                let _ = send(pid, libc::SIGKILL);
            }
            if container.init.is_none() && container.removal.is_none() {
                self.begin_removal(&id);
            }
        }
    }
}

pub(crate) fn send(pid: u32, signal: i32) -> std::io::Result<()> {
    let pid = i32::try_from(pid).map_err(std::io::Error::other)?;
    orlop_linux::process::send_signal(pid, signal)
}

fn pod_namespaces(
    reaper: Option<u32>,
    user: Option<&crate::pod::PodUser>,
) -> std::collections::BTreeMap<String, std::path::PathBuf> {
    let own = std::process::id();
    let mut namespaces: std::collections::BTreeMap<String, std::path::PathBuf> =
        [("network", "net"), ("ipc", "ipc"), ("uts", "uts")]
            .into_iter()
            .map(|(name, file)| (name.to_owned(), format!("/proc/{own}/ns/{file}").into()))
            .collect();
    if let Some(user) = user {
        namespaces.insert("user".to_owned(), format!("/proc/{own}/fd/{}", user.namespace.as_raw_fd()).into());
    }
    if let Some(reaper) = reaper {
        namespaces.insert("pid".to_owned(), format!("/proc/{reaper}/ns/pid").into());
    }
    namespaces
}

/// Lets the container's process go on: libcontainer's start socket (its notify_socket.rs: connect, any text, close).
fn notify(directory: &std::path::Path) -> std::io::Result<()> {
    use std::io::Write as _;
    let directory = std::fs::File::open(directory)?;
    let path = format!("/proc/self/fd/{}/notify.sock", directory.as_raw_fd());
    std::os::unix::net::UnixStream::connect(path)?.write_all(b"start container")
}

/// The pipes of a new process.
struct Streams {
    stdin: Option<Pipe>,
    stdout: Option<Pipe>,
    stderr: Option<Pipe>,
    status: Pipe,
    answer: Pipe,
}

impl Streams {
    fn open(stdin: bool, stdout: bool, stderr: bool) -> std::io::Result<Self> {
        Ok(Self {
            stdin: stdin.then(Pipe::writing).transpose()?,
            stdout: stdout.then(Pipe::reading).transpose()?,
            stderr: stderr.then(Pipe::reading).transpose()?,
            status: Pipe::reading()?,
            answer: Pipe::reading()?,
        })
    }

    fn pipes(&self) -> impl Iterator<Item = &Pipe> {
        let streams = [&self.stdin, &self.stdout, &self.stderr].into_iter().flatten();
        streams.chain([&self.status, &self.answer])
    }

    fn theirs(&self) -> Vec<BorrowedFd<'_>> {
        self.pipes().map(|pipe| pipe.theirs.as_fd()).collect()
    }

    fn numbers(&self, console: Option<i32>) -> Descriptors {
        Descriptors {
            stdin: self.stdin.as_ref().map(Pipe::number),
            stdout: self.stdout.as_ref().map(Pipe::number),
            stderr: self.stderr.as_ref().map(Pipe::number),
            status: Some(self.status.number()),
            answer: Some(self.answer.number()),
            console,
        }
    }

    /// Keeps our sides; theirs close here.
    fn into_running(self, container: &str, role: Role, setup_pid: u32, console: Console) -> Running {
        Running {
            container: container.to_owned(),
            role,
            stage: Stage::Preparing { setup_pid, answer: self.answer.ours, text: Vec::new() },
            pid: None,
            status: Some(self.status.ours),
            status_text: Vec::new(),
            console,
            terminal: None,
            size: None,
            stdin: self.stdin.map(|pipe| pipe.ours),
            stdin_buffer: Vec::new(),
            stdin_ends: false,
            stdout: self.stdout.map(|pipe| pipe.ours),
            stderr: self.stderr.map(|pipe| pipe.ours),
            exited: None,
            drain_until: None,
            deadline: Some(Instant::now() + SETUP_LIMIT),
            time_limit: None,
        }
    }
}
