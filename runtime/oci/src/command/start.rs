//! `start`: lets a created container go on to its program.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, anyhow, bail};

use super::Call;
use super::container::{Container, Status};
use super::notify::Relay;
use crate::hooks::{self, Kind};

/// What the last mile may say.
const SAID_LIMIT_BYTES: u64 = 64 * 1024;

pub(super) fn main(call: &Call, id: &str) -> anyhow::Result<()> {
    start_and_tell(call, &Container::load(&call.store, id)?)
}

/// For callers that do not stay: returns when the program says that it is ready, if the caller's service manager wants to know.
pub(super) fn start_and_tell(call: &Call, container: &Container) -> anyhow::Result<()> {
    let relay = Relay::open(container)?;
    let init = container.init();
    start(call, container)?;
    match (relay, init, container.record.init) {
        (Some(relay), Some(process), Some(identity)) => relay.pass_on(&process, identity.pid),
        _ => Ok(()),
    }
}

pub(super) fn start(call: &Call, container: &Container) -> anyhow::Result<()> {
    let lock = call.store.lock(&container.record.id)?;
    // Read again: it may have been deleted while we waited.
    let container = &Container::load(&call.store, &container.record.id)?;
    match container.status()? {
        Status::Created => {}
        Status::Stopped => bail!("cannot start a container that has stopped"),
        Status::Running | Status::Paused => bail!("cannot start an already running container"),
        Status::Creating => bail!("cannot start a container in the creating state"),
    }
    let said = open_status(container).context("failed to open the container's FIFO")?;
    match container.send_start() {
        // A start that was cut short has been here before; the program runs.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(container.start_socket())?;
            bail!("cannot start an already running container")
        }
        other => other.context("failed to start the container's process")?,
    }
    // Hooks may ask for this container.
    drop(lock);
    let said = read_all(said).context("failed to read the container's FIFO")?;
    if !said.is_empty() {
        return Err(anyhow!("unable to start container process: {said}"));
    }
    run_hooks(container)
}

/// For reading, without waiting for a writer; the first process holds the other end.
fn open_status(container: &Container) -> io::Result<File> {
    let path = container.directory.join("status");
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

/// Until execve closes the other end: silently when it worked.
fn read_all(file: File) -> io::Result<String> {
    let flags = rustix::fs::fcntl_getfl(&file)?;
    rustix::fs::fcntl_setfl(&file, flags - rustix::fs::OFlags::NONBLOCK)?;
    let mut text = Vec::new();
    file.take(SAID_LIMIT_BYTES).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// runtime-spec runtime.md, "Lifecycle" 9: one that fails stops the container.
fn run_hooks(container: &Container) -> anyhow::Result<()> {
    let spec = container.spec()?;
    let Some(given) = spec.hooks().as_ref().and_then(|hooks| hooks.poststart().as_ref()) else {
        return Ok(());
    };
    let state = container.hook_state("running");
    if let Err(error) = hooks::run_all(Kind::Poststart, given, &state, &container.record.bundle, None) {
        container.kill_and_wait()?;
        return Err(error.into());
    }
    Ok(())
}
