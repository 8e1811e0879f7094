//! Becoming a shim: leave the daemon's session, enter the pod's control group, make its namespaces, listen.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use orlop_linux::process::{CloneOptions, Side, SingleThreaded};
use orlop_oci::cgroup::Hierarchies;
use orlop_oci::systemd::{self, Scope};
use serde::Serialize;

use crate::exit_file::write_json;
use crate::pod;
use crate::protocol::{ShimConfig, VERSION};
use crate::server::{Namespaces, Shim};
use crate::spawn::Program;
use crate::staged::HostMounts;

/// What the child says when it serves.
const READY: &[u8] = b"ready";

/// `shim.json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Identity {
    pid: u32,
    start_time: u64,
    version: u32,
}

pub(crate) fn main(config: &Path) -> i32 {
    match fork(config) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "orlop shim: {error:#}");
            1
        }
    }
}

/// The parent waits until the child serves, or says why it cannot.
fn fork(config: &Path) -> anyhow::Result<i32> {
    orlop_linux::fd::close_inherited().context("failed to close inherited descriptors")?;
    let text = fs::read(config).with_context(|| format!("failed to read {}", config.display()))?;
    let config: ShimConfig =
        serde_json::from_slice(&text).with_context(|| format!("failed to read {}", config.display()))?;
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let single = SingleThreaded::verify()?;
    match orlop_linux::process::clone(&single, CloneOptions::default())? {
        Side::Parent(_) => {
            drop(writer);
            let mut said = Vec::new();
            File::from(reader).take(64 * 1024).read_to_end(&mut said)?;
            if said == READY {
                return Ok(0);
            }
            anyhow::bail!(
                "{}",
                if said.is_empty() { "the shim died".into() } else { String::from_utf8_lossy(&said) }
            )
        }
        Side::Child => {
            drop(reader);
            let mut ready = File::from(writer);
            let mut shim = match prepare(config, single) {
                Ok(shim) => shim,
                Err(error) => {
                    let _ = write!(ready, "{error:#}");
                    orlop_linux::process::exit_now(1);
                }
            };
            let _ = ready.write_all(READY);
            drop(ready);
            shim.serve();
            orlop_linux::process::exit_now(0)
        }
    }
}

fn prepare(config: ShimConfig, single: SingleThreaded) -> anyhow::Result<Shim> {
    rustix::process::setsid().context("failed to start a session")?;
    // Started from a descriptor, it would be called by that's number.
    let _ = rustix::thread::set_name(c"orlop-shim");
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    std::env::set_current_dir("/")?;
    fs::create_dir_all(config.state_dir.join("containers")).context("failed to make the state directory")?;
    // While the program is still in our mount namespace.
    let program = Program::seal();
    let hierarchies = Hierarchies::detect().context("failed to find the control groups")?;
    if let Some(scope) = &config.scope {
        enclose(scope, &config.sandbox_id, hierarchies.is_unified())
            .with_context(|| format!("failed to have systemd make the scope {scope}"))?;
    }
    // Also with systemd, which knows only the v1 hierarchies that it accounts in.
    hierarchies
        .cgroup(&config.cgroup)
        .enter_new()
        .with_context(|| format!("failed to enter control group {}", config.cgroup))?;
    rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1))
        .context("failed to become a subreaper")?;
    redirect_streams(&config.state_dir)?;
    let host_mounts = HostMounts::current().context("failed to open the host's mount namespace")?;
    let user = pod::isolate(&config, &single)?;
    let reaper = match (config.shared_pid_namespace, &user) {
        (false, _) => None,
        (true, None) => Some(program.start_reaper(&single)?),
        (true, Some(user)) => Some(program.start_reaper_of(&user.namespace)?),
    };
    let mut awaited = SigSet::empty();
    awaited.add(Signal::SIGCHLD);
    awaited.thread_block()?;
    let signals = SignalFd::with_flags(&awaited, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    // The daemon's SIGHUP, SIGTERM and SIGINT are not ours: only Shutdown and SIGKILL end a shim.
    let listener = listen(&config.state_dir).context("failed to listen")?;
    let pid = std::process::id();
    let identity = Identity { pid, start_time: orlop_linux::process::start_time(pid)?, version: VERSION };
    write_json(&config.state_dir.join("shim.json"), &serde_json::to_vec(&identity)?)
        .context("failed to write shim.json")?;
    let namespaces = Namespaces { reaper, user, host_mounts };
    Ok(Shim::new(config, single, program, hierarchies, namespaces, listener, signals))
}

fn enclose(scope: &str, sandbox_id: &str, unified: bool) -> anyhow::Result<()> {
    let description = format!("orlop shim of pod sandbox {sandbox_id}");
    Ok(systemd::enclose(&Scope::parse(scope)?, &description, std::process::id(), unified)?)
}

/// Nothing of the daemon's terminal or pipes stays.
fn redirect_streams(state_dir: &Path) -> anyhow::Result<()> {
    let null: OwnedFd = OpenOptions::new().read(true).write(true).open("/dev/null")?.into();
    let log = OpenOptions::new().append(true).create(true).mode(0o640).open(state_dir.join("shim.log"))?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&log)?;
    Ok(())
}

/// By way of the directory's descriptor: socket paths end at 107 bytes (unix(7)).
pub(crate) fn listen_at(directory: &Path, name: &str) -> std::io::Result<UnixListener> {
    let path = directory.join(name);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let directory = File::open(directory)?;
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn listen(state_dir: &Path) -> std::io::Result<UnixListener> {
    listen_at(state_dir, "shim.sock")
}
