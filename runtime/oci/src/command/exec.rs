//! `exec`: one more process in a container.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use anyhow::{Context, anyhow, bail};
use oci_spec::runtime::{Capabilities, Process, User};

use super::arguments::Exec;
use super::container::{Container, Status};
use super::foreground::{Signals, Terminal};
use super::store::write_atomically;
use super::{Call, Coded, console, create, notify};
use crate::configuration;
use crate::program::Program;
use crate::setup::{Descriptors, ExecRequest};

/// What callers of runc expect when the process could not be started.
const FAILED: i32 = 255;
/// What the last mile may say.
const SAID_LIMIT_BYTES: u64 = 64 * 1024;

pub(super) fn main(call: &Call, options: &Exec) -> anyhow::Result<i32> {
    exec(call, options)
        .map_err(|error| Coded { code: FAILED, reason: format!("exec failed: {error:#}") }.into())
}

/// The new process's end of its terminal's way to us.
enum Console {
    None,
    Socket(UnixStream),
    Ours { ours: UnixStream, theirs: UnixStream },
}

impl Console {
    fn theirs(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Console::None => None,
            Console::Socket(socket) | Console::Ours { theirs: socket, .. } => Some(socket.as_fd()),
        }
    }
}

fn exec(call: &Call, options: &Exec) -> anyhow::Result<i32> {
    let container = Container::load(&call.store, &options.id)?;
    match container.status()? {
        Status::Stopped => bail!("cannot exec in a stopped container"),
        Status::Paused if !options.ignore_paused => {
            bail!("cannot exec in a paused container (use --ignore-paused to override)")
        }
        Status::Creating => bail!("cannot exec in a container in the creating state"),
        Status::Created | Status::Running | Status::Paused => {}
    }
    let (preserve_fds, environment) = create::passed_sockets(options.preserve_fds)?;
    let mut process = wanted_process(&container, options)?;
    if !environment.is_empty() {
        let mut all = process.env().clone().unwrap_or_default();
        all.extend(environment);
        process.set_env(Some(all));
    }
    let terminal = process.terminal() == Some(true);
    let console = open_console(options, terminal)?;
    let signals = if options.detach { None } else { Some(Signals::block()?) };

    let (reader, status) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let pid = ask(call, &container, options, process, preserve_fds, &console, &status)?;
    drop(status);
    let mut said = String::new();
    File::from(reader).take(SAID_LIMIT_BYTES).read_to_string(&mut said)?;
    if !said.is_empty() {
        return Err(anyhow!("unable to start container process: {said}"));
    }
    if let Some(path) = &options.pidfd_socket {
        notify::send_pidfd(path, pid)?;
    }
    if let Some(path) = &options.pid_file {
        write_atomically(path, pid.to_string().as_bytes(), 0o644)
            .with_context(|| format!("failed to write {}", path.display()))?;
    }
    let Some(signals) = signals else { return Ok(0) };
    let terminal = match console {
        Console::Ours { ours, theirs } => {
            drop(theirs);
            Some(Terminal::new(console::receive(&ours)?)?)
        }
        Console::None | Console::Socket(_) => None,
    };
    // Not waited for yet, so the pid is still its own.
    let process = orlop_linux::process::open_pid(pid).context("the process is gone")?;
    signals.attend(pid, &process, terminal)
}

fn open_console(options: &Exec, terminal: bool) -> anyhow::Result<Console> {
    match (&options.console_socket, terminal, options.detach) {
        (Some(path), true, true) => Ok(Console::Socket(console::connect(path)?)),
        (Some(_), _, _) => bail!("cannot use console socket if runc will not detach or allocate tty"),
        (None, true, true) => bail!("cannot allocate tty if runc will detach without setting console socket"),
        (None, true, false) => {
            let (ours, theirs) = UnixStream::pair()?;
            Ok(Console::Ours { ours, theirs })
        }
        (None, false, _) => Ok(Console::None),
    }
}

fn ask(
    call: &Call,
    container: &Container,
    options: &Exec,
    process: Process,
    preserve_fds: i32,
    console: &Console,
    status: &OwnedFd,
) -> anyhow::Result<u32> {
    let copy = |stream: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(stream, 3);
    let streams =
        [copy(rustix::stdio::stdin())?, copy(rustix::stdio::stdout())?, copy(rustix::stdio::stderr())?];
    let mut keep: Vec<BorrowedFd<'_>> = streams.iter().map(AsFd::as_fd).collect();
    keep.push(status.as_fd());
    keep.extend(console.theirs());
    let (cgroup, cgroup_of) = nested_cgroups(&options.cgroup)?;
    let program = Program::seal().context("failed to seal this program")?;
    let answer = program.ask("exec", &keep, |answer| ExecRequest {
        target: container.record.init.expect("only containers that were made get here"),
        config: container.directory.join("config.json"),
        terminal: process.terminal() == Some(true),
        process: Some(Box::new(process)),
        arguments: Vec::new(),
        preserve_fds: preserve_fds.unsigned_abs(),
        join_keyring: container.record.own_keyring,
        cgroup,
        cgroup_of,
        descriptors: Descriptors {
            stdin: Some(streams[0].as_raw_fd()),
            stdout: Some(streams[1].as_raw_fd()),
            stderr: Some(streams[2].as_raw_fd()),
            status: Some(status.as_raw_fd()),
            answer: Some(answer),
            console: console.theirs().map(|socket| socket.as_raw_fd()),
        },
    })?;
    for warning in &answer.warnings {
        call.log.warning(warning);
    }
    answer.pid.context("oci-setup named no process")
}

/// The file's, or the container's own with the options' changes.
fn wanted_process(container: &Container, options: &Exec) -> anyhow::Result<Process> {
    if let Some(path) = &options.process {
        let text = std::fs::read(path).with_context(|| format!("failed to read {}", path.display()))?;
        let process = configuration::parse_process(&text)
            .with_context(|| format!("failed to parse {}", path.display()))?;
        if !process.cwd().is_absolute() {
            bail!("cwd {:?} must be an absolute path", process.cwd());
        }
        return Ok(process);
    }
    if options.command.is_empty() {
        bail!("process args cannot be empty");
    }
    let spec = container.spec()?;
    let mut process = spec.process().clone().context("the container's configuration has no process")?;
    process.set_args(Some(options.command.clone()));
    process.set_terminal(Some(options.tty));
    if let Some(cwd) = &options.cwd {
        anyhow::ensure!(cwd.is_absolute(), "cwd {cwd:?} must be an absolute path");
        process.set_cwd(cwd.clone());
    }
    if let Some(profile) = options.apparmor.as_ref().filter(|profile| !profile.is_empty()) {
        process.set_apparmor_profile(Some(profile.clone()));
    }
    if let Some(label) = options.process_label.as_ref().filter(|label| !label.is_empty()) {
        process.set_selinux_label(Some(label.clone()));
    }
    if options.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    add_capabilities(&mut process, &options.cap)?;
    let environment = merge_environment(process.env().clone().unwrap_or_default(), &options.env);
    process.set_env(Some(environment));
    if let Some(user) = &options.user {
        process.set_user(parse_user(user)?);
    }
    if !options.additional_gids.is_empty() {
        let mut user = process.user().clone();
        let mut groups = user.additional_gids().clone().unwrap_or_default();
        groups.extend(&options.additional_gids);
        user.set_additional_gids(Some(groups));
        process.set_user(user);
    }
    Ok(process)
}

/// `--cgroup` as runc reads it: one path for all, or any number of CONTROLLER,...:PATH.
fn nested_cgroups(given: &[String]) -> anyhow::Result<(Option<PathBuf>, BTreeMap<String, PathBuf>)> {
    if let [path] = given
        && !path.contains(':')
    {
        return Ok((Some(path.into()), BTreeMap::new()));
    }
    let mut of_controllers = BTreeMap::new();
    for entry in given {
        let Some((controllers, path)) = entry.split_once(':') else {
            bail!("invalid --cgroup argument: {entry} (missing <controller>: prefix)")
        };
        if path.contains(':') || controllers.is_empty() || path.is_empty() {
            bail!("invalid --cgroup argument: {entry}");
        }
        of_controllers.extend(controllers.split(',').map(|controller| (controller.to_owned(), path.into())));
    }
    Ok((None, of_controllers))
}

/// Later entries replace earlier ones of the same name.
fn merge_environment(mut entries: Vec<String>, more: &[String]) -> Vec<String> {
    for entry in more {
        let name = entry.split('=').next().unwrap_or_default();
        entries.retain(|old| old.split('=').next() != Some(name));
        entries.push(entry.clone());
    }
    entries
}

/// Numbers alone: names belong to the container's files, which a runtime does not read for this.
fn parse_user(text: &str) -> anyhow::Result<User> {
    let (uid, gid) = match text.split_once(':') {
        Some((uid, gid)) => (uid, Some(gid)),
        None => (text, None),
    };
    let mut user = User::default();
    user.set_uid(uid.parse().with_context(|| format!("parsing {uid:?} as int for uid failed"))?);
    if let Some(gid) = gid {
        user.set_gid(gid.parse().with_context(|| format!("parsing {gid:?} as int for gid failed"))?);
    }
    Ok(user)
}

/// As runc: bounding, effective and permitted; ambient where the container's process has inheritable ones at all.
fn add_capabilities(process: &mut Process, names: &[String]) -> anyhow::Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let mut more = Capabilities::new();
    for name in names {
        let canonical = name.to_ascii_uppercase();
        let json = serde_json::Value::String(canonical);
        more.insert(serde_json::from_value(json).map_err(|_| anyhow!("unknown capability {name:?}"))?);
    }
    let mut sets = process.capabilities().clone().unwrap_or_default();
    let with = |old: &Option<Capabilities>| {
        Some(old.iter().flatten().copied().chain(more.iter().copied()).collect::<Capabilities>())
    };
    let has_inheritable = sets.inheritable().as_ref().is_some_and(|set| !set.is_empty());
    let (bounding, effective, permitted) =
        (with(sets.bounding()), with(sets.effective()), with(sets.permitted()));
    let ambient = if has_inheritable { with(sets.ambient()) } else { sets.ambient().clone() };
    sets.set_bounding(bounding).set_effective(effective).set_permitted(permitted).set_ambient(ambient);
    process.set_capabilities(Some(sets));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_the_process() {
        let old = vec!["A=1".to_owned(), "B=2".to_owned()];
        assert_eq!(merge_environment(old, &["A=3".to_owned()]), ["B=2", "A=3"]);
        let groups =
            |given: &[&str]| nested_cgroups(&given.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        assert_eq!(groups(&[]).unwrap(), (None, BTreeMap::new()));
        assert_eq!(groups(&["a"]).unwrap().0, Some("a".into()));
        assert_eq!(groups(&["cpu,cpuacct:a", "memory:b"]).unwrap().1.len(), 3);
        assert!(groups(&["a", "b"]).is_err() && groups(&["a:b:c"]).is_err() && groups(&["a:"]).is_err());

        let user = parse_user("7:8").unwrap();
        assert_eq!((user.uid(), user.gid()), (7, 8));
        assert!(parse_user("web").is_err() && parse_user("1:x").is_err());

        let mut process = Process::default();
        add_capabilities(&mut process, &["CAP_NET_ADMIN".to_owned()]).unwrap();
        let sets = process.capabilities().as_ref().unwrap();
        let capability = oci_spec::runtime::Capability::NetAdmin;
        assert!(sets.bounding().as_ref().unwrap().contains(&capability));
        assert!(add_capabilities(&mut process, &["CAP_NONE".to_owned()]).is_err());
    }
}
