//! runc's command line (`orlop oci`, `orlop-oci`): one verb, one file.
//!
//! A call is a process of its own with one thread. It reads and writes the containers' records ([`store`]), looks at the kernel for what
//! they do now ([`container`]), and starts `oci-setup` for what happens inside of them. Texts that callers match on are runc's
//! ("container does not exist", "container not running", "container with given ID already exists").
//!
//! ```text
//!            create          start           the program ends          delete
//!   (none) ────────► created ─────► running ─────────────────► stopped ───────► (none)
//!                                    │   ▲
//!                              pause ▼   │ resume
//!                                   paused
//! ```

mod arguments;
mod console;
mod container;
mod create;
mod delete;
mod events;
mod exec;
mod features;
mod foreground;
mod kill;
mod list;
mod log;
mod notify;
mod pause;
mod ps;
mod resume;
mod run;
mod spec;
mod start;
mod state;
mod store;
mod update;

use std::ffi::OsString;
use std::io::{self, Write};

use anyhow::{Context, bail};
use clap::{CommandFactory, Parser};

use arguments::{Arguments, Global, Verb};
use log::Log;
use store::Store;

/// What every verb needs.
struct Call {
    store: Store,
    log: Log,
    /// `--systemd-cgroup`.
    systemd_cgroup: bool,
}

/// An error with an exit code other than 1.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
struct Coded {
    code: i32,
    reason: String,
}

pub(crate) fn main(arguments: &[OsString]) -> i32 {
    let name = OsString::from("orlop-oci");
    let parsed = match Arguments::try_parse_from(std::iter::once(&name).chain(arguments)) {
        Ok(parsed) => parsed,
        Err(error) => {
            // Help is no error, and goes to standard output; clap knows.
            let _ = error.print();
            return i32::from(error.use_stderr());
        }
    };
    let log =
        Log { file: parsed.global.log.clone(), format: parsed.global.log_format, debug: parsed.global.debug };
    match dispatch(parsed, log) {
        Ok(code) => code,
        Err((log, error)) => {
            log.error(&format!("{error:#}"));
            error.downcast_ref::<Coded>().map_or(1, |coded| coded.code)
        }
    }
}

/// The log comes back with an error, to take it.
fn dispatch(parsed: Arguments, log: Log) -> Result<i32, (Log, anyhow::Error)> {
    if parsed.global.version {
        let version = env!("CARGO_PKG_VERSION");
        let specification = crate::SPECIFICATION_VERSION;
        let text = format!("orlop-oci version {version}\nspec: {specification}\n");
        return print(&text).map(|()| 0).map_err(|error| (log, error));
    }
    let Some(verb) = parsed.verb else {
        let help = Arguments::command().render_help().to_string();
        return print(&help).map(|()| 0).map_err(|error| (log, error));
    };
    let needs_nothing =
        matches!(verb, Verb::Features | Verb::Spec(_) | Verb::Checkpoint(_) | Verb::Restore(_));
    if !needs_nothing && let Err(error) = check_global(&parsed.global) {
        return Err((log, error));
    }
    let store = match Store::new(&parsed.global.root) {
        Ok(store) => store,
        Err(error) => return Err((log, error)),
    };
    let call = Call { store, log, systemd_cgroup: parsed.global.systemd_cgroup };
    call.log.debug(&format!("{verb:?}"));
    perform(&call, verb).map_err(|error| (call.log, error))
}

fn perform(call: &Call, verb: Verb) -> anyhow::Result<i32> {
    keep_descriptors(&verb)?;
    // What is made, and what containers begin with, does not depend on the caller's (runc's, too).
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    match verb {
        Verb::Create(options) => create::main(call, &options)?,
        Verb::Start { id } => start::main(call, &id)?,
        Verb::Run(options) => return run::main(call, &options),
        Verb::State { id } => state::main(call, &id)?,
        Verb::Kill(options) => kill::main(call, &options)?,
        Verb::Delete(options) => delete::main(call, &options)?,
        Verb::Exec(options) => return exec::main(call, &options),
        Verb::Ps(options) => ps::main(call, &options)?,
        Verb::List(options) => list::main(call, &options)?,
        Verb::Events(options) => events::main(call, &options)?,
        Verb::Pause { id } => pause::main(call, &id)?,
        Verb::Resume { id } => resume::main(call, &id)?,
        Verb::Update(options) => update::main(call, &options)?,
        Verb::Features => features::main()?,
        Verb::Spec(options) => spec::main(&options)?,
        Verb::Checkpoint(_) => bail!("checkpoint is not supported"),
        Verb::Restore(_) => bail!("restore is not supported"),
    }
    Ok(0)
}

fn check_global(global: &Global) -> anyhow::Result<()> {
    if global.systemd_cgroup && !crate::systemd::is_running() {
        bail!("--systemd-cgroup: systemd is not running on this machine; use the cgroupfs driver");
    }
    match global.rootless.as_str() {
        "auto" | "false" => {}
        "true" => bail!("--rootless=true is not supported: containers are made by root"),
        other => bail!("--rootless={other:?} is not one of auto, true, false"),
    }
    if !rustix::process::geteuid().is_root() {
        bail!("rootless containers are not supported: run this as root");
    }
    Ok(())
}

/// Descriptors that a careless caller left open reach neither hooks nor containers, but for those it wants to be kept.
fn keep_descriptors(verb: &Verb) -> anyhow::Result<()> {
    let kept = match verb {
        Verb::Create(options) => options.preserve_fds,
        Verb::Run(options) => options.create.preserve_fds,
        Verb::Exec(options) => options.preserve_fds,
        _ => 0,
    };
    let first = 3_u32.checked_add(kept).and_then(|first| first.checked_add(listen_fds()));
    let first = first.context("--preserve-fds is too large")?;
    orlop_linux::fd::close_from_on_exec(first).context("failed to mark descriptors")
}

/// How many sockets of systemd's activation are meant for this process (sd_listen_fds(3)).
fn listen_fds() -> u32 {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    match number("LISTEN_PID") {
        Some(pid) if pid != std::process::id() => 0,
        _ => number("LISTEN_FDS").unwrap_or(0),
    }
}

/// Descriptors to keep must be there, or one of our own would be taken for it.
fn verify_open(count: u32) -> anyhow::Result<()> {
    for number in 3..3 + count {
        if !std::path::Path::new(&format!("/proc/self/fd/{number}")).exists() {
            bail!("unable to stat preserved-fd {number} (of {count}): it is not open");
        }
    }
    Ok(())
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("failed to write to standard output")
}
