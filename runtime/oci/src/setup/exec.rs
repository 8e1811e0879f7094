//! `oci-setup exec`: one more process in a running container.
//!
//! Ours from end to end, because libcontainer's exec neither joins the user namespace nor loads the filter. Everything that reads the host's
//! files happens before the namespaces change; after that, what `/proc` says is the container's word.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, sched_setaffinity};
use nix::sys::resource::{Resource, setrlimit};
use oci_spec::runtime::{PosixRlimit, PosixRlimitType, Process, Spec};
use orlop_linux::process::{CloneOptions, Side, SingleThreaded};

use super::create::{exit_code, report};
use super::user_namespace::UserNamespace;
use super::{Answer, ExecRequest, rules, set_oom_score_adjustment, take, terminal};
use crate::attributes;
use crate::cgroup::Hierarchies;
use crate::configuration;
use crate::hooks::HookState;
use crate::last_mile::{LastMile, LastMileError};

/// Every type of namespace; `setns` takes a pidfd and several flags at once and orders them itself (Linux 5.8).
const NAMESPACES: [(&str, CloneFlags); 8] = [
    ("user", CloneFlags::CLONE_NEWUSER),
    ("mnt", CloneFlags::CLONE_NEWNS),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("net", CloneFlags::CLONE_NEWNET),
    ("pid", CloneFlags::CLONE_NEWPID),
    ("cgroup", CloneFlags::CLONE_NEWCGROUP),
    ("time", CloneFlags::from_bits_retain(libc::CLONE_NEWTIME)),
];

/// Descriptors of the new process.
struct Streams {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    console: Option<OwnedFd>,
    status: Option<OwnedFd>,
}

/// Starts the process; its parent is our parent. Single-threaded processes only.
pub fn exec(request: &ExecRequest) -> anyhow::Result<Answer> {
    let numbers = &request.descriptors;
    let streams = Streams {
        stdin: take(numbers.stdin)?,
        stdout: take(numbers.stdout)?,
        stderr: take(numbers.stderr)?,
        console: take(numbers.console)?,
        status: take(numbers.status)?,
    };
    let single = SingleThreaded::verify()?;
    let spec = configuration::load(&request.config)?;
    let process = wanted_process(request, &spec)?;
    let profile = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let mut mile =
        LastMile::prepare(&process, spec.linux().as_ref()).context("failed to prepare the process")?;
    let warning = set_oom_score_adjustment(process.oom_score_adj().or(Some(0)))
        .context("failed to set oom_score_adj")?;

    let target =
        orlop_linux::process::open(request.target).context("the container's first process is gone")?;
    let id =
        request.config.parent().and_then(|bundle| bundle.file_name()).unwrap_or_default().to_string_lossy();
    if request.join_keyring {
        orlop_linux::keyring::join_session(&id).context("failed to join the container's keyring")?;
    }
    let teller = mile
        .connect_listener(profile, &running_state(request, &spec, &id))
        .context("failed to connect to the seccomp agent")?;
    let cgroup = rules::cgroup_path(&spec, &id)?;
    let affinity = process.exec_cpu_affinity().clone();
    run_on(affinity.as_ref().and_then(|affinity| affinity.initial().as_ref()))?;
    enter_cgroup(request, &cgroup)?;
    run_on(affinity.as_ref().and_then(|affinity| affinity.cpu_affinity_final().as_ref()))?;
    set_limits(process.rlimits().as_deref().unwrap_or_default())?;
    let foreign = foreign_namespaces(request.target.pid)?;

    if foreign.contains(CloneFlags::CLONE_NEWUSER) {
        let user = UserNamespace::of_process(request.target.pid)
            .context("failed to look at the container's user namespace")?;
        let given = [&streams.stdin, &streams.stdout, &streams.stderr];
        let given = given.into_iter().flatten().map(AsFd::as_fd);
        user.own_streams(given, process.user().uid(), process.user().gid())?;
    }

    // From here on the container's processes may see us; they must not get at our memory or descriptors.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    if !foreign.is_empty() {
        nix::sched::setns(target.as_fd(), foreign).context("failed to join the container's namespaces")?;
    }
    drop(target);
    if foreign.contains(CloneFlags::CLONE_NEWUSER) {
        let (root_group, root) = (nix::unistd::Gid::from_raw(0), nix::unistd::Uid::from_raw(0));
        nix::unistd::setresgid(root_group, root_group, root_group)
            .context("failed to become root of the container")?;
        nix::unistd::setresuid(root, root, root).context("failed to become root of the container")?;
    }
    match orlop_linux::process::clone(&single, CloneOptions { sibling: true, ..CloneOptions::default() })? {
        Side::Parent(pid) => {
            if let Some(teller) = teller {
                teller.tell(pid).context("failed to tell the seccomp agent's helper")?;
            }
            Ok(Answer { pid: Some(pid), error: None, warnings: warning.into_iter().collect() })
        }
        Side::Child => become_program(&streams, &mile, request),
    }
}

/// What an agent hears of the container that one more process is for.
fn running_state(request: &ExecRequest, spec: &Spec, id: &str) -> HookState {
    let annotations = spec.annotations().iter().flatten();
    HookState {
        oci_version: crate::SPECIFICATION_VERSION.to_owned(),
        id: id.to_owned(),
        status: "running".to_owned(),
        pid: request.target.pid,
        bundle: request.config.parent().unwrap_or(Path::new("/")).to_path_buf(),
        annotations: annotations.map(|(name, value)| (name.clone(), value.clone())).collect(),
    }
}

fn run_on(cpus: Option<&String>) -> anyhow::Result<()> {
    let Some(list) = cpus.filter(|list| !list.is_empty()) else { return Ok(()) };
    sched_setaffinity(nix::unistd::Pid::from_raw(0), &attributes::cpus(list)?)
        .with_context(|| format!("failed to run on the CPUs {list}"))
}

fn enter_cgroup(request: &ExecRequest, container: &Path) -> anyhow::Result<()> {
    let hierarchies = Hierarchies::detect_once().context("failed to find the control groups")?;
    if !request.cgroup_of.is_empty() {
        return enter_single_cgroups(request, container, &hierarchies);
    }
    let Some(below) = &request.cgroup else {
        return hierarchies
            .cgroup(&container.to_string_lossy())
            .enter(Some(request.target.pid))
            .context("failed to enter the control group");
    };
    let path = nested_cgroup(container, below)?;
    let group = hierarchies.cgroup(&path.to_string_lossy());
    anyhow::ensure!(!group.directories().is_empty(), "control group {} does not exist", path.display());
    group.enter(None).with_context(|| format!("failed to enter control group {}", path.display()))
}

fn nested_cgroup(container: &Path, below: &Path) -> anyhow::Result<std::path::PathBuf> {
    let within = below.components().all(|part| !matches!(part, std::path::Component::ParentDir));
    anyhow::ensure!(within, "{} is not below the container's control group", below.display());
    Ok(container.join(below.strip_prefix("/").unwrap_or(below)))
}

/// Groups of single controllers; of the others the container's own.
fn enter_single_cgroups(
    request: &ExecRequest,
    container: &Path,
    hierarchies: &Hierarchies,
) -> anyhow::Result<()> {
    let own = hierarchies.cgroup(&container.to_string_lossy());
    own.enter(Some(request.target.pid)).context("failed to enter the control group")?;
    for (controller, below) in &request.cgroup_of {
        let path = nested_cgroup(container, below)?;
        let group = hierarchies.cgroup(&path.to_string_lossy());
        let found = group.of_controller(controller).filter(|(_, unified)| !unified);
        let (directory, _) =
            found.with_context(|| format!("there is no cgroup v1 controller {controller}"))?;
        std::fs::write(directory.join("cgroup.procs"), "0")
            .with_context(|| format!("failed to enter control group {}", directory.display()))?;
    }
    Ok(())
}

fn wanted_process(request: &ExecRequest, spec: &Spec) -> anyhow::Result<Process> {
    if let Some(process) = &request.process {
        let mut process = (**process).clone();
        let first = spec.process().as_ref();
        // A process file rarely names them, and is no way out of the container's confinement (as runc does).
        let is_missing = |label: &Option<String>| label.as_ref().is_none_or(String::is_empty);
        if is_missing(process.apparmor_profile()) {
            process.set_apparmor_profile(first.and_then(|first| first.apparmor_profile().clone()));
        }
        if is_missing(process.selinux_label()) {
            process.set_selinux_label(first.and_then(|first| first.selinux_label().clone()));
        }
        return Ok(process);
    }
    let mut process = spec.process().clone().ok_or(rules::DeriveError::NoProcess)?;
    if request.arguments.is_empty() {
        bail!("no program to run");
    }
    process.set_args(Some(request.arguments.clone()));
    process.set_terminal(Some(request.terminal));
    Ok(process)
}

/// Namespaces of the target that are not ours already; joining one's own user namespace is an error.
fn foreign_namespaces(pid: u32) -> anyhow::Result<CloneFlags> {
    let mut flags = CloneFlags::empty();
    for (name, flag) in NAMESPACES {
        let theirs = std::fs::read_link(format!("/proc/{pid}/ns/{name}"));
        // Kernels without this kind.
        if theirs.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
            && !Path::new("/proc/self/ns").join(name).exists()
        {
            continue;
        }
        let theirs = theirs.with_context(|| format!("failed to look at the container's {name} namespace"))?;
        if theirs != std::fs::read_link(format!("/proc/self/ns/{name}"))? {
            flags |= flag;
        }
    }
    Ok(flags)
}

fn set_limits(limits: &[PosixRlimit]) -> anyhow::Result<()> {
    for limit in limits {
        let resource = match limit.typ() {
            PosixRlimitType::RlimitCpu => Resource::RLIMIT_CPU,
            PosixRlimitType::RlimitFsize => Resource::RLIMIT_FSIZE,
            PosixRlimitType::RlimitData => Resource::RLIMIT_DATA,
            PosixRlimitType::RlimitStack => Resource::RLIMIT_STACK,
            PosixRlimitType::RlimitCore => Resource::RLIMIT_CORE,
            PosixRlimitType::RlimitRss => Resource::RLIMIT_RSS,
            PosixRlimitType::RlimitNproc => Resource::RLIMIT_NPROC,
            PosixRlimitType::RlimitNofile => Resource::RLIMIT_NOFILE,
            PosixRlimitType::RlimitMemlock => Resource::RLIMIT_MEMLOCK,
            PosixRlimitType::RlimitAs => Resource::RLIMIT_AS,
            PosixRlimitType::RlimitLocks => Resource::RLIMIT_LOCKS,
            PosixRlimitType::RlimitSigpending => Resource::RLIMIT_SIGPENDING,
            PosixRlimitType::RlimitMsgqueue => Resource::RLIMIT_MSGQUEUE,
            PosixRlimitType::RlimitNice => Resource::RLIMIT_NICE,
            PosixRlimitType::RlimitRtprio => Resource::RLIMIT_RTPRIO,
            PosixRlimitType::RlimitRttime => Resource::RLIMIT_RTTIME,
        };
        setrlimit(resource, limit.soft(), limit.hard())
            .with_context(|| format!("failed to set {:?}", limit.typ()))?;
    }
    Ok(())
}

/// The new process: inside every namespace, not yet the program.
fn become_program(streams: &Streams, mile: &LastMile, request: &ExecRequest) -> ! {
    let error = match prepare_child(streams, request) {
        Ok(()) => mile.run(),
        Err(error) => LastMileError::Step {
            step: "prepare the process",
            source: std::io::Error::other(format!("{error:#}")),
        },
    };
    report(streams.status.as_ref(), &error);
    orlop_linux::process::exit_now(exit_code(&error))
}

fn prepare_child(streams: &Streams, request: &ExecRequest) -> anyhow::Result<()> {
    rustix::process::setsid().context("failed to start a session")?;
    if request.terminal {
        let console = streams.console.as_ref().context("a terminal needs a console socket")?;
        let slave = terminal::open(console.as_fd()).context("failed to set up the terminal")?;
        rustix::process::ioctl_tiocsctty(&slave).context("failed to take the terminal")?;
        redirect(Some(&slave), Some(&slave), Some(&slave))?;
    } else {
        redirect(streams.stdin.as_ref(), streams.stdout.as_ref(), streams.stderr.as_ref())?;
    }
    orlop_linux::fd::close_from_on_exec(3 + request.preserve_fds).context("failed to close descriptors")
}

fn redirect(
    stdin: Option<&OwnedFd>,
    stdout: Option<&OwnedFd>,
    stderr: Option<&OwnedFd>,
) -> anyhow::Result<()> {
    // Without a stream the process gets the null device: it must not inherit the starter's.
    let null = File::options().read(true).write(true).open("/dev/null");
    let null = match (&null, stdin, stdout, stderr) {
        (_, Some(_), Some(_), Some(_)) => None,
        (Ok(null), ..) => Some(null.as_fd()),
        (Err(_), ..) => bail!("the container has no /dev/null"),
    };
    let chosen = |stream: Option<&OwnedFd>| -> anyhow::Result<OwnedFd> {
        let borrowed = stream.map(AsFd::as_fd).or(null).context("no stream and no null device")?;
        Ok(borrowed.try_clone_to_owned()?)
    };
    rustix::stdio::dup2_stdin(chosen(stdin)?)?;
    rustix::stdio::dup2_stdout(chosen(stdout)?)?;
    rustix::stdio::dup2_stderr(chosen(stderr)?)?;
    Ok(())
}
