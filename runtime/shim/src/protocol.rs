//! What the runtime daemon and a shim say to each other.
//!
//! Transport: the shim's unix stream socket. Every frame is `u32` big endian length, then that many bytes of JSON
//! ([`FRAME_LIMIT_BYTES`] at most). The client opens a connection, sends one [`Request`] at a time and reads one [`Response`].
//! Two requests turn the connection into something else after an `Ok` response:
//!
//! - [`Request::Events`]: the shim sends one [`Event`] frame per change, first a replay of every exit on disk.
//! - [`Request::Attach`] and [`Request::PortForward`]: a session. Attach carries stream frames both ways: one byte of channel
//!   ([`channel`]), `u32` big endian length, data ([`STREAM_FRAME_LIMIT_BYTES`] at most). PortForward carries raw bytes.
//!
//! In `config.json`, a namespace of type network, ipc, uts, user or pid with `"path": "pod"` is the pod's own (the shim's; pid: the shared one).
//! The pod's `/dev/shm` is `STATE_DIR/shm`, mounted in the shim's mount namespace: containers bind it from there. A program that cannot be
//! executed fails [`Request::Start`] and [`Request::Exec`], not [`Request::Create`].
//!
//! A session of either kind ends with one frame on [`channel::EXIT`]: for an attach it is the container's exit.
//!
//! Versions: [`Request::Hello`] first; each side tells its own and goes on. A shim lives as long as its pod, so after an upgrade a daemon meets
//! shims of an older binary, and after a downgrade of a newer one. The rule that makes both work:
//!
//! 1. Within a version only optional things are added: fields that may be absent (`#[serde(default)]`, also in [`ShimConfig`]), requests that
//!    the daemon can do without. Whoever reads ignores what it does not know.
//! 2. Anything else raises [`VERSION`] by one, and the code then speaks the version before as well, on both sides, until the next one.
//! 3. So versions that are at most one apart understand each other ([`is_spoken`]). A daemon that meets any other shim says so and ends its
//!    pod, which the kubelet makes anew: upgrade one version at a time, or drain the node.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The version this code speaks. Additions are optional fields; anything else raises it.
pub const VERSION: u32 = 1;

/// Whether this code can talk to the other side's version.
pub const fn is_spoken(version: u32) -> bool {
    version.abs_diff(VERSION) <= 1
}

/// Largest JSON frame.
pub const FRAME_LIMIT_BYTES: usize = 4 * 1024 * 1024;
/// Largest data part of a stream frame.
pub const STREAM_FRAME_LIMIT_BYTES: usize = 64 * 1024;

/// Channels of a session, numbered as in Kubernetes' `v5.channel.k8s.io`.
pub mod channel {
    /// Client to container.
    pub const STDIN: u8 = 0;
    /// Container to client.
    pub const STDOUT: u8 = 1;
    /// Container to client.
    pub const STDERR: u8 = 2;
    /// Shim to client, once, last: JSON of [`super::ExitStatus`] for an exec, or [`super::SessionError`].
    pub const EXIT: u8 = 3;
    /// Client to shim: JSON of [`super::TerminalSize`].
    pub const RESIZE: u8 = 4;
    /// Client to shim: no more standard input (no data).
    pub const CLOSE_STDIN: u8 = 255;
}

/// What the daemon hands to `orlop shim` when it starts one: a JSON file named on its command line.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShimConfig {
    /// Sandbox id.
    pub sandbox_id: String,
    /// Directory on tmpfs that holds `shim.sock`, `shim.json` (pid and start time) and `containers/ID/`.
    pub state_dir: PathBuf,
    /// New network namespace unless the pod uses the host's.
    pub new_network_namespace: bool,
    /// New IPC namespace unless the pod uses the host's.
    pub new_ipc_namespace: bool,
    /// New UTS namespace with this hostname; `None` is the host's.
    pub hostname: Option<String>,
    /// A PID namespace shared by the pod's containers.
    pub shared_pid_namespace: bool,
    /// `kernel.x.y` and `net.x.y` settings to write inside the namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// The cgroup that the shim itself moves into, relative to each hierarchy's root; made if missing.
    pub cgroup: String,
    /// The same group in systemd's form, `slice:prefix:name`: systemd makes it, and those of the pod's containers, whose configurations
    /// then have this form too.
    #[serde(default)]
    pub scope: Option<String>,
    /// Size of `/dev/shm` of the pod in bytes.
    pub shm_bytes: u64,
    /// A user namespace of the pod's own (`hostUsers: false`); its other new namespaces belong to it, and the owners of its containers'
    /// root file systems are mapped through it. `None` is the host's.
    #[serde(default)]
    pub user_namespace: Option<UserNamespace>,
}

/// The maps of a pod's user namespace; both have at least one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UserNamespace {
    /// Users.
    pub uid_mappings: Vec<IdMapping>,
    /// Groups.
    pub gid_mappings: Vec<IdMapping>,
}

/// One line of a map, as in CRI and the runtime specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IdMapping {
    /// First id inside.
    pub container_id: u32,
    /// The same one on the machine.
    pub host_id: u32,
    /// How many.
    pub length: u32,
}

/// One container, as the daemon asks for it. The bundle's `config.json` is already in `bundle`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateContainer {
    /// Container id.
    pub id: String,
    /// Directory with `config.json`; `rootfs/` is made in it by the shim, inside the pod's mount namespace.
    pub bundle: PathBuf,
    /// Overlay layers, top first, and the writable part.
    pub rootfs: RootfsMount,
    /// CRI log file; `None` keeps no log.
    pub log_path: Option<PathBuf>,
    /// A pseudo terminal instead of pipes.
    pub terminal: bool,
    /// Standard input is a pipe that attach sessions feed.
    pub stdin: bool,
    /// Standard input closes when the first attach session that used it ends.
    pub stdin_once: bool,
    /// Signal number sent first by a stop.
    pub stop_signal: i32,
    /// Mounts to make in the pod's mount namespace first; `config.json` binds them from there.
    #[serde(default)]
    pub mounts: Vec<StagedMount>,
}

/// A mount that only exists inside the pod, as the source of one in `config.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StagedMount {
    /// Where it is mounted, below the bundle; made by the shim.
    pub target: PathBuf,
    /// What is mounted.
    pub source: StagedSource,
}

/// What a [`StagedMount`] shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StagedSource {
    /// A path of the host whose mounts are a peer of the host's: what either side mounts below, both see.
    #[serde(rename_all = "camelCase")]
    Host {
        /// Absolute, without links.
        path: PathBuf,
    },
    /// An image, read-only.
    #[serde(rename_all = "camelCase")]
    Image {
        /// Its layers, top first; at least one.
        lower: Vec<PathBuf>,
        /// A directory in it; empty is all of it.
        sub_path: PathBuf,
    },
}

/// How the root file system is put together.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RootfsMount {
    /// Read-only layers, top first; at least one.
    pub lower: Vec<PathBuf>,
    /// Writable directory.
    pub upper: PathBuf,
    /// Overlay's work directory on the same file system as `upper`.
    pub work: PathBuf,
}

/// A process to run in a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecProcess {
    /// Program and arguments.
    pub args: Vec<String>,
    /// A pseudo terminal.
    pub terminal: bool,
    /// Wants standard input.
    pub stdin: bool,
    /// Wants standard output.
    pub stdout: bool,
    /// Wants standard error (never with a terminal).
    pub stderr: bool,
}

/// Requests of the daemon.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "method", content = "params")]
pub enum Request {
    /// First on every connection.
    Hello {
        /// The daemon's [`VERSION`].
        version: u32,
    },
    /// Everything the shim knows: [`Response::State`].
    State,
    /// Makes a container (idempotent by id).
    Create(Box<CreateContainer>),
    /// Starts a created container.
    Start {
        /// Container id.
        id: String,
    },
    /// Signals a container's first process.
    Signal {
        /// Container id.
        id: String,
        /// Signal number.
        signal: i32,
        /// Every process of the container instead.
        all: bool,
    },
    /// Stop signal, then SIGKILL to all after the grace time; answers when it is dead. Ok at once when it is not running.
    Stop {
        /// Container id.
        id: String,
        /// Grace time; 0 kills at once.
        grace_millis: u64,
    },
    /// Removes a container that is not running: mounts, cgroup, state. Ok when unknown.
    Remove {
        /// Container id.
        id: String,
    },
    /// Runs a process to its end and returns its output, [`Response::ExecSync`].
    ExecSync {
        /// Container id.
        id: String,
        /// What to run; its stream flags are ignored.
        process: ExecProcess,
        /// Kill it after this time; 0 is no limit.
        timeout_millis: u64,
        /// Answer with `Ok`, the output as it comes in the frames of a session, and [`ExecEnd`] on [`channel::EXIT`]: the shim keeps
        /// nothing. A client that goes away leaves the process running. Shims that do not know this answer with
        /// [`Response::ExecSync`].
        #[serde(default)]
        stream: bool,
    },
    /// Session with a new process in the container.
    Exec {
        /// Container id.
        id: String,
        /// What to run.
        process: ExecProcess,
    },
    /// Session with the container's first process.
    Attach {
        /// Container id.
        id: String,
        /// Feed standard input.
        stdin: bool,
        /// Copy standard output.
        stdout: bool,
        /// Copy standard error.
        stderr: bool,
    },
    /// Connects to a TCP port on the pod's loopback and becomes that connection.
    PortForward {
        /// Port.
        port: u16,
    },
    /// Opens the log file anew, after a rotation.
    ReopenLog {
        /// Container id.
        id: String,
    },
    /// Resource use of one container.
    Stats {
        /// Container id.
        id: String,
    },
    /// Becomes a stream of events.
    Events,
    /// Kills what is left, unmounts, removes cgroups and ends the shim.
    Shutdown,
}

/// Answers of the shim.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "result", content = "value")]
pub enum Response {
    /// Done, nothing to say; sessions start after it.
    Ok,
    /// To [`Request::Hello`].
    Hello {
        /// The shim's version.
        version: u32,
        /// The shim's pid.
        pid: u32,
    },
    /// To [`Request::State`].
    State(ShimState),
    /// To [`Request::Create`] and [`Request::Start`].
    Container(ContainerState),
    /// To [`Request::ExecSync`].
    ExecSync {
        /// Bytes as base64, as far as both streams fit into [`FRAME_LIMIT_BYTES`]: 1400 KiB of each.
        stdout: String,
        /// As `stdout`.
        stderr: String,
        /// How it ended.
        exit: ExitStatus,
        /// The timeout killed it.
        timed_out: bool,
    },
    /// To [`Request::Stats`].
    Stats(ContainerStats),
    /// The request failed.
    Error {
        /// The kind, for the daemon's decision.
        kind: ErrorKind,
        /// For people, with its causes.
        message: String,
    },
}

/// Kinds of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ErrorKind {
    /// No such container.
    NotFound,
    /// Not possible in the container's state.
    WrongState,
    /// The request makes no sense.
    Invalid,
    /// Everything else.
    Failed,
}

/// What a shim holds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShimState {
    /// Sandbox id.
    pub sandbox_id: String,
    /// Every container that was not removed.
    pub containers: Vec<ContainerState>,
}

/// One container.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerState {
    /// Container id.
    pub id: String,
    /// Life so far.
    pub phase: Phase,
    /// First process, while it lives.
    pub pid: Option<u32>,
    /// Nanoseconds since the epoch; 0 is not yet.
    pub created_at: i64,
    /// Nanoseconds since the epoch; 0 is not yet.
    pub started_at: i64,
    /// Set when it ended.
    pub exit: Option<ExitStatus>,
}

/// A container's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// Made, not started.
    Created,
    /// Its first process runs.
    Running,
    /// Its first process ended.
    Exited,
}

/// How a process ended. Written to `containers/ID/exit.json` before it is announced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExitStatus {
    /// Exit code, or 128 + signal.
    pub code: i32,
    /// Nanoseconds since the epoch.
    pub finished_at: i64,
    /// The kernel's OOM killer ended a process of the container.
    pub oom_killed: bool,
}

/// How a streamed [`Request::ExecSync`] ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecEnd {
    /// The process's end.
    #[serde(flatten)]
    pub exit: ExitStatus,
    /// The timeout killed it.
    #[serde(default)]
    pub timed_out: bool,
}

/// Why a session ended without an exit status.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionError {
    /// For people.
    pub error: String,
}

/// Size of a terminal, as `remotecommand` sends it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// Sent on an events connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// The container's state after the change.
    pub container: ContainerState,
}

/// Resource use, from the container's cgroup.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerStats {
    /// Nanoseconds since the epoch.
    pub timestamp: i64,
    /// Total CPU time.
    pub cpu_nanos: u64,
    /// Memory in use.
    pub memory_bytes: u64,
    /// Memory in use without inactive file pages.
    pub memory_working_set_bytes: u64,
    /// Anonymous memory.
    pub memory_rss_bytes: u64,
    /// Number of processes.
    pub pids: u64,
}
