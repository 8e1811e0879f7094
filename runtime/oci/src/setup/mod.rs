//! Short-lived programs between a shim (or the command line) and a container: `oci-setup create|exec|hooks|reaper`.
//!
//! Each is this binary, started anew with one thread: libcontainer clones with raw system calls, changes directories and limits of its
//! process and never puts them back, so it gets a process that ends with its work. The containers' processes become children of the
//! starter (CLONE_PARENT).
//!
//! The request is JSON in an inherited descriptor whose number is the argument; it names the numbers of all the others. The [`Answer`] goes to one
//! of them, once. A second pipe, `status`, says whether execve worked: it closes empty when it did.

mod create;
mod exec;
mod hooks;
pub(crate) mod mounts;
mod reaper;
mod reasons;
pub mod rules;
mod terminal;
mod user_namespace;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;

use oci_spec::runtime::Process;
use orlop_types::ProcessIdentity;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use create::create;
pub use exec::exec;

/// Largest request or answer.
const LIMIT_BYTES: u64 = 1 << 20;

/// Descriptors by number, inherited.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptors {
    /// Container's standard input, unless it has a terminal.
    pub stdin: Option<RawFd>,
    /// Its standard output.
    pub stdout: Option<RawFd>,
    /// Its standard error.
    pub stderr: Option<RawFd>,
    /// Write end: why execve failed; closed without a word by a good one.
    pub status: Option<RawFd>,
    /// Write end for the [`Answer`].
    pub answer: Option<RawFd>,
    /// A unix socket that takes the terminal's master side (exec only).
    pub console: Option<RawFd>,
}

/// Makes a container that waits to be started.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateRequest {
    /// Container id.
    pub id: String,
    /// Directory with `config.json`.
    pub bundle: PathBuf,
    /// Root file system in place of the configuration's.
    pub rootfs: Option<PathBuf>,
    /// A directory of our own: derived configuration in `bundle/`, libcontainer's state in `state/ID/`.
    pub work: PathBuf,
    /// What `"path": "pod"` means, by namespace type.
    pub namespaces: BTreeMap<String, PathBuf>,
    /// Listening socket that takes the terminal's master side.
    pub console_socket: Option<PathBuf>,
    /// Make the container a child of our parent.
    pub sibling: bool,
    /// Descriptors beyond standard error that the container keeps.
    pub preserve_fds: i32,
    /// Change the root by moving a mount instead of pivot_root(2), which an initramfs lacks.
    #[serde(default)]
    pub no_pivot: bool,
    /// Give the container a session keyring of its own.
    #[serde(default)]
    pub new_keyring: bool,
    /// Fail now, not when it is started, if the program does not exist.
    #[serde(default)]
    pub check_program: bool,
    /// Entries for the program's environment beyond the configuration's.
    #[serde(default)]
    pub environment: Vec<String>,
    /// Let systemd make the container's control group; the configuration's path is then `slice:prefix:name`.
    #[serde(default)]
    pub systemd: bool,
    /// Mounts beyond the configuration's.
    #[serde(default)]
    pub mounts: Vec<oci_spec::runtime::Mount>,
    /// Descriptors.
    pub descriptors: Descriptors,
}

/// Runs one more process in a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecRequest {
    /// The container's first process.
    pub target: ProcessIdentity,
    /// The container's `config.json`: seccomp, cgroup, and the process to imitate.
    pub config: PathBuf,
    /// The whole process; absent is the container's own with `arguments` and `terminal`.
    pub process: Option<Box<Process>>,
    /// Program and arguments.
    pub arguments: Vec<String>,
    /// A pseudo terminal, sent to `descriptors.console`.
    pub terminal: bool,
    /// Descriptors beyond standard error that the process keeps.
    #[serde(default)]
    pub preserve_fds: u32,
    /// Join the container's session keyring, which was made with it.
    #[serde(default)]
    pub join_keyring: bool,
    /// A group below the container's own to run in.
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
    /// The same for single controllers of cgroup v1.
    #[serde(default)]
    pub cgroup_of: BTreeMap<String, PathBuf>,
    /// Descriptors.
    pub descriptors: Descriptors,
}

/// What came of a request.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// The new process, in the starter's PID namespace.
    pub pid: Option<u32>,
    /// Why there is none.
    pub error: Option<String>,
    /// What had to be done differently.
    pub warnings: Vec<String>,
}

/// The entry of `oci-setup`; the arguments after it.
pub fn main(arguments: &[OsString]) -> i32 {
    let text = |at: usize| arguments.get(at).and_then(|argument| argument.to_str());
    let number = || text(1).and_then(|text| text.parse::<RawFd>().ok());
    match (text(0), number()) {
        (Some("create"), Some(number)) => serve(number, |request: CreateRequest| {
            let answer = take(request.descriptors.answer);
            (answer, create(&request))
        }),
        (Some("exec"), Some(number)) => serve(number, |request: ExecRequest| {
            let answer = take(request.descriptors.answer);
            (answer, exec(&request))
        }),
        (Some("hooks"), _) => hooks::main(text(1), arguments.get(2)),
        (Some("reaper"), Some(user)) => reaper::start_in(user),
        (Some("reaper"), None) => reaper::main(),
        _ => {
            let _ = writeln!(
                io::stderr(),
                "oci-setup is started by the shim: oci-setup create|exec DESCRIPTOR, oci-setup reaper"
            );
            2
        }
    }
}

fn serve<R: DeserializeOwned>(
    number: RawFd,
    work: impl FnOnce(R) -> (io::Result<Option<OwnedFd>>, anyhow::Result<Answer>),
) -> i32 {
    let request = match read_request(number) {
        Ok(request) => request,
        Err(error) => {
            let _ = writeln!(io::stderr(), "oci-setup: unreadable request: {error}");
            return 2;
        }
    };
    let (channel, result) = work(request);
    report_back(channel, result)
}

/// `oci-setup exec` in this process, which is a fork of the starter with one thread: it ends with its work and returns its exit code.
///
/// For a starter that runs from a read-only mount: the container may get hold of this process's `/proc/PID/exe`.
pub fn exec_in_fork(request: &ExecRequest) -> i32 {
    let channel = take(request.descriptors.answer);
    report_back(channel, exec(request))
}

fn report_back(channel: io::Result<Option<OwnedFd>>, result: anyhow::Result<Answer>) -> i32 {
    let answer =
        result.unwrap_or_else(|error| Answer { error: Some(format!("{error:#}")), ..Answer::default() });
    let failed = answer.error.is_some();
    let written = channel.and_then(|channel| match channel {
        Some(channel) => File::from(channel).write_all(&serde_json::to_vec(&answer)?),
        None => Ok(()),
    });
    i32::from(failed || written.is_err())
}

fn read_request<R: DeserializeOwned>(number: RawFd) -> io::Result<R> {
    let mut file = File::from(orlop_linux::fd::take_inherited(number)?);
    file.rewind()?;
    let mut text = Vec::new();
    file.take(LIMIT_BYTES).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Takes an inherited descriptor over, if there is one.
fn take(number: Option<RawFd>) -> io::Result<Option<OwnedFd>> {
    number.map(orlop_linux::fd::take_inherited).transpose()
}

/// Writes the OOM killer's preference of this process and what it starts. Returns a warning when the kernel would not go that low.
///
/// Below its inherited minimum only CAP_SYS_RESOURCE goes (proc(5)); a container is better than none.
fn set_oom_score_adjustment(wanted: Option<i32>) -> io::Result<Option<String>> {
    const FILE: &str = "/proc/self/oom_score_adj";
    let Some(wanted) = wanted else { return Ok(None) };
    match std::fs::write(FILE, wanted.to_string()) {
        Ok(()) => Ok(None),
        Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied) => {
            let kept = std::fs::read_to_string(FILE)?.trim().to_owned();
            Ok(Some(format!("oom_score_adj {wanted} needs CAP_SYS_RESOURCE, {kept} is kept")))
        }
        Err(error) => Err(error),
    }
}
