//! `run`: create, start, wait, delete.

use anyhow::Context;

use super::arguments::Run;
use super::container::Container;
use super::create::{Console, create};
use super::foreground::{Signals, Terminal};
use super::notify::Relay;
use super::{Call, console, delete, start};

pub(super) fn main(call: &Call, options: &Run) -> anyhow::Result<i32> {
    if options.detach {
        let console = Console::Socket(options.create.console_socket.as_deref());
        let container = create(call, &options.create, console)?;
        start_or_destroy(call, options, &container)?;
        return Ok(0);
    }
    anyhow::ensure!(
        options.create.console_socket.is_none(),
        "cannot use console socket if runc will not detach or allocate tty"
    );
    // Before anything is started: what happens from here on is seen.
    let signals = Signals::block()?;
    if !options.no_subreaper {
        rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1))
            .context("failed to become a subreaper")?;
    }
    let mut listener = None;
    let container = create(call, &options.create, Console::Ours(&mut listener))?;
    let ended = wait(call, options, &container, listener, &signals);
    if options.keep && ended.is_ok() {
        return ended;
    }
    let removed = remove(call, &container);
    let code = ended?;
    removed?;
    Ok(code)
}

fn wait(
    call: &Call,
    options: &Run,
    container: &Container,
    listener: Option<std::os::unix::net::UnixListener>,
    signals: &Signals,
) -> anyhow::Result<i32> {
    let terminal = match listener {
        Some(listener) => {
            let (connection, _) = listener.accept().context("failed to receive the terminal")?;
            let terminal = Terminal::new(console::receive(&connection)?)?;
            std::fs::remove_file(container.directory.join(console::SOCKET))?;
            Some(terminal)
        }
        None => None,
    };
    let init = container.record.init.context("the container has no process")?;
    let process = orlop_linux::process::open(init).context("the container's process is gone")?;
    let relay = Relay::open(container)?;
    start_or_destroy(call, options, container)?;
    if let Some(relay) = relay {
        // The service manager's main process is this one: it lasts as long, and gets the signals.
        relay.pass_on_beside(&process, std::process::id())?;
    }
    signals.attend(init.pid, &process, terminal)
}

/// A container whose program did not start is of no use to anybody.
fn start_or_destroy(call: &Call, options: &Run, container: &Container) -> anyhow::Result<()> {
    let started = match options.detach {
        true => start::start_and_tell(call, container),
        false => start::start(call, container),
    };
    let Err(error) = started else { return Ok(()) };
    if options.detach {
        remove(call, container)?;
    }
    Err(error)
}

fn remove(call: &Call, container: &Container) -> anyhow::Result<()> {
    match call.store.lock(&container.record.id) {
        Ok(lock) => delete::destroy(call, container, lock),
        // Somebody else deleted it.
        Err(_) => Ok(()),
    }
}
