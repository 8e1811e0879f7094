//! `create`: everything but the program's start.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::arguments::Create;
use super::container::{Container, make_status_fifo};
use super::store::{Lock, Record, write_atomically};
use super::{Call, console, delete, notify};
use crate::attributes;
use crate::configuration;
use crate::program::Program;
use crate::setup::{CreateRequest, Descriptors, rules};
use crate::systemd::Scope;

/// Who takes the terminal, if there is one.
pub(super) enum Console<'a> {
    /// `--console-socket`.
    Socket(Option<&'a Path>),
    /// `run` itself.
    Ours(&'a mut Option<std::os::unix::net::UnixListener>),
}

pub(super) fn main(call: &Call, options: &Create) -> anyhow::Result<()> {
    create(call, options, Console::Socket(options.console_socket.as_deref())).map(drop)
}

/// Makes the container, or leaves nothing.
pub(super) fn create(call: &Call, options: &Create, console: Console<'_>) -> anyhow::Result<Container> {
    let bundle = fs::canonicalize(&options.bundle)
        .with_context(|| format!("failed to find the bundle {}", options.bundle.display()))?;
    let text = read_configuration(&bundle)?;
    let spec = configuration::parse(&text).context("failed to parse config.json")?;
    let rootfs = validate(&spec, &bundle)?;
    let unit = systemd_unit(call, &spec)?;
    let cgroup = rules::cgroup_path(&spec, &options.id)?;
    check_terminal(&spec, &console)?;

    let (directory, lock) = call.store.make(&options.id)?;
    let mut record = Record::new(&options.id, &bundle, &rootfs, &cgroup, &spec);
    record.own_keyring = !options.no_new_keyring;
    record.systemd_unit = unit;
    let mut container = Container { record, directory };
    let made = refuse_used_cgroup(&container)
        .and_then(|()| Ok(write_atomically(&container.directory.join("config.json"), &text, 0o600)?))
        .and_then(|()| call.store.save(&container.record));
    if let Err(error) = made {
        // Nothing runs yet, and the control group may be somebody else's.
        let _ = call.store.remove(&options.id);
        return Err(error);
    }
    match set_up(call, options, console, &spec, &mut container) {
        Ok(()) => {
            drop(lock);
            Ok(container)
        }
        Err(error) => Err(undo(call, &container, lock, error)),
    }
}

/// The unit that systemd shall make; paths of its form are for it alone.
fn systemd_unit(call: &Call, spec: &Spec) -> anyhow::Result<Option<String>> {
    let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().clone()).unwrap_or_default();
    if call.systemd_cgroup {
        return Ok(Some(Scope::parse(&path.to_string_lossy())?.unit));
    }
    if path.to_string_lossy().contains(':') {
        bail!(
            "cgroupsPath {path:?} is not a path (the cgroupfs driver wants one; --systemd-cgroup does not)"
        );
    }
    Ok(None)
}

/// What `delete` would do, and the reason of the failure stays the message.
fn undo(call: &Call, container: &Container, lock: Lock, error: anyhow::Error) -> anyhow::Error {
    match delete::destroy(call, container, lock) {
        Ok(()) => error,
        Err(left) => error.context(format!("failed to clean up: {left:#}")),
    }
}

fn set_up(
    call: &Call,
    options: &Create,
    console: Console<'_>,
    spec: &Spec,
    container: &mut Container,
) -> anyhow::Result<()> {
    let work = container.work();
    fs::create_dir(&work).context("failed to make the work directory")?;
    let console_socket = match console {
        Console::Socket(path) => path.map(std::path::absolute).transpose()?,
        Console::Ours(listener) if has_terminal(spec) => {
            *listener = Some(console::listen(&container.directory)?);
            Some(container.directory.join(console::SOCKET))
        }
        Console::Ours(_) => None,
    };
    let status = make_status_fifo(&container.directory.join("status")).context("failed to make the FIFO")?;
    let program = Program::seal().context("failed to seal this program")?;
    let (preserve_fds, mut environment) = passed_sockets(options.preserve_fds)?;
    let mut mounts = Vec::new();
    if let Some((mount, entry)) = notify::prepare(container)? {
        mounts.push(mount);
        environment.push(entry);
    }
    let answer = program.ask("create", &[status.as_fd()], |answer| CreateRequest {
        id: options.id.clone(),
        bundle: container.record.bundle.clone(),
        rootfs: Some(container.record.rootfs.clone()),
        work: work.clone(),
        namespaces: Default::default(),
        console_socket,
        sibling: true,
        preserve_fds,
        no_pivot: options.no_pivot,
        new_keyring: !options.no_new_keyring,
        check_program: true,
        environment,
        systemd: container.record.systemd_unit.is_some(),
        mounts,
        descriptors: Descriptors {
            status: Some(status.as_raw_fd()),
            answer: Some(answer),
            ..Descriptors::default()
        },
    });
    let answer = answer.map_err(|error| match said(&status) {
        Some(reason) => anyhow::Error::msg(format!("unable to start container process: {reason}")),
        None => error,
    })?;
    for warning in &answer.warnings {
        call.log.warning(warning);
    }
    let pid = answer.pid.context("oci-setup named no process")?;
    let identity = orlop_linux::process::identify(pid).context("the container's first process is gone")?;
    container.record.init = Some(identity);
    call.store.save(&container.record)?;
    if let Some(path) = &options.pidfd_socket {
        notify::send_pidfd(path, pid)?;
    }
    if let Some(path) = &options.pid_file {
        write_atomically(path, pid.to_string().as_bytes(), 0o644)
            .with_context(|| format!("failed to write {}", path.display()))?;
    }
    Ok(())
}

/// What the last mile wrote to the FIFO, if anything.
fn said(status: &OwnedFd) -> Option<String> {
    let flags = rustix::fs::fcntl_getfl(status).ok()?;
    rustix::fs::fcntl_setfl(status, flags | rustix::fs::OFlags::NONBLOCK).ok()?;
    let mut text = [0_u8; 4096];
    let count = rustix::io::read(status, &mut text).ok().filter(|count| *count > 0)?;
    Some(String::from_utf8_lossy(&text[..count]).into_owned())
}

fn read_configuration(bundle: &Path) -> anyhow::Result<Vec<u8>> {
    let path = bundle.join("config.json");
    match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("JSON specification file {} not found", path.display())
        }
        other => other.with_context(|| format!("failed to read {}", path.display())),
    }
}

/// What libcontainer would accept and not do, or do to the host. Returns the root file system.
fn validate(spec: &Spec, bundle: &Path) -> anyhow::Result<PathBuf> {
    let process = spec.process().as_ref().ok_or(rules::DeriveError::NoProcess)?;
    let linux = spec.linux().as_ref().ok_or(rules::DeriveError::NoLinux)?;
    let root = spec.root().as_ref().ok_or(rules::DeriveError::NoRoot)?;
    let path = bundle.join(root.path());
    let rootfs =
        fs::canonicalize(&path).with_context(|| format!("invalid rootfs: stat {}", path.display()))?;
    if !rootfs.is_dir() {
        bail!("invalid rootfs: {} is not a directory", rootfs.display());
    }
    if !process.cwd().is_absolute() {
        bail!("process.cwd {:?} must be an absolute path", process.cwd());
    }
    if linux.mount_label().as_ref().is_some_and(|label| !label.is_empty()) && !attributes::has_selinux() {
        bail!(attributes::AttributeError::NoSelinux("linux.mountLabel"));
    }
    if linux.intel_rdt().is_some() {
        bail!("linux.intelRdt is not supported");
    }
    let has_mount_namespace =
        linux.namespaces().iter().flatten().any(|namespace| namespace.typ() == LinuxNamespaceType::Mount);
    if !has_mount_namespace {
        // Its mounts would be made in the caller's namespace and stay there.
        bail!("a container without a mount namespace is not supported: linux.namespaces must have one");
    }
    Ok(rootfs)
}

fn has_terminal(spec: &Spec) -> bool {
    spec.process().as_ref().and_then(oci_spec::runtime::Process::terminal) == Some(true)
}

fn check_terminal(spec: &Spec, console: &Console<'_>) -> anyhow::Result<()> {
    match (has_terminal(spec), console) {
        (true, Console::Socket(None)) => {
            bail!("cannot allocate tty if runc will detach without setting console socket")
        }
        (false, Console::Socket(Some(_))) => {
            bail!("cannot use console socket if runc will not detach or allocate tty")
        }
        _ => Ok(()),
    }
}

/// Whoever deletes the container kills what is in its group, so nobody else may be in it.
fn refuse_used_cgroup(container: &Container) -> anyhow::Result<()> {
    let cgroup = container.cgroup()?;
    let processes = cgroup.processes();
    if !processes.is_empty() {
        bail!(
            "container's cgroup {} is not empty: {} process(es) found",
            container.record.cgroup.display(),
            processes.len()
        );
    }
    if cgroup.is_frozen() {
        bail!("container's cgroup {} is unexpectedly frozen", container.record.cgroup.display());
    }
    Ok(())
}

/// Descriptors to keep and what the program is told of them: sockets of systemd's activation come right after standard error
/// (sd_listen_fds(3)), then `--preserve-fds` more.
pub(super) fn passed_sockets(preserve_fds: u32) -> anyhow::Result<(i32, Vec<String>)> {
    let listen = super::listen_fds();
    super::verify_open(preserve_fds + listen)?;
    let mut environment = Vec::new();
    if listen > 0 {
        environment.push(format!("LISTEN_FDS={listen}"));
        // In its own PID namespace the program is process 1.
        environment.push("LISTEN_PID=1".to_owned());
    }
    Ok((i32::try_from(preserve_fds + listen)?, environment))
}
