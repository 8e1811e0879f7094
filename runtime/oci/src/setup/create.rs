//! `oci-setup create`: libcontainer makes the container, up to our own last mile.

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxMemoryBuilder, LinuxNamespaceType, LinuxResources, Spec};

use orlop_linux::process::{CloneOptions, Side, SingleThreaded};

use super::reasons::Reasons;
use super::user_namespace::UserNamespace;
use super::{Answer, CreateRequest, hooks, mounts, rules, set_oom_score_adjustment, take, user_namespace};
use crate::cgroup::Hierarchies;
use crate::configuration;
use crate::devices;
use crate::hooks::HookState;
use crate::last_mile::{LastMile, LastMileError};
use crate::limits;
use crate::systemd::{self, Bus, Scope};

/// Makes the container. Single-threaded processes only.
pub fn create(request: &CreateRequest) -> anyhow::Result<Answer> {
    // Nobody would ever know of a container whose creator has died. Its own processes do not inherit this (prctl(2)).
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let stdin = take(request.descriptors.stdin)?;
    let stdout = take(request.descriptors.stdout)?;
    let stderr = take(request.descriptors.stderr)?;
    let status = take(request.descriptors.status)?.map(Arc::new);
    let spec = load(request)?;
    let rootfs = rootfs(request, &spec)?;
    let process = spec.process().as_ref().ok_or(rules::DeriveError::NoProcess)?;
    let profile = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let mut mile = LastMile::prepare(process, spec.linux().as_ref())
        .context("failed to prepare the container's process")?;
    mile.add_environment(&request.environment);
    let user = UserNamespace::of(&spec, &request.namespaces)?;
    let user_path = user.as_ref().map(UserNamespace::path);
    let mut derived = rules::derive(&spec, &request.id, &rootfs, &request.namespaces, user_path)?;
    let hierarchies = leave_limits_to_us(&mut derived)?;
    refuse_strange_device_directory(&rootfs)?;
    let streams = Streams { stdin, stdout, stderr };
    let mut _held = Vec::new();
    if let Some(user) = &user {
        _held = user_namespace::hold_others(&mut derived)?;
        let wanted = process.user();
        user.own_streams(streams.all(), wanted.uid(), wanted.gid())?;
    }

    let [bundle, state] = ["bundle", "state"].map(|name| request.work.join(name));
    fs::create_dir_all(&bundle)
        .and_then(|()| fs::create_dir_all(&state))
        .context("failed to make the work directory")?;
    let prepared = mounts::prepare(&mut derived, &rootfs, user.as_ref())?;
    if let Some(root) = derived.root_mut() {
        root.set_path(prepared.rootfs.clone());
    }
    let seen_by_hooks = hook_state(request, &spec);
    hooks::substitute(&mut derived, &seen_by_hooks, &request.work, &prepared)?;
    let waits = HookState { status: "created".to_owned(), ..seen_by_hooks.clone() };
    let teller = mile.connect_listener(profile, &waits).context("failed to connect to the seccomp agent")?;
    if let Some(given) = spec.hooks().as_ref().and_then(|hooks| hooks.start_container().as_ref()) {
        mile.run_before(given.clone(), waits);
    }
    derived.save(bundle.join("config.json")).context("failed to write the derived configuration")?;
    let warning = set_oom_score_adjustment(process.oom_score_adj().or(request.sibling.then_some(0)))
        .context("failed to set oom_score_adj")?;

    if request.new_keyring {
        orlop_linux::keyring::join_session(&request.id).context("failed to make a session keyring")?;
    }
    let scope = if request.systemd { Some(start_scope(&spec, &request.id)?) } else { None };
    let group = hierarchies.cgroup(&rules::cgroup_path(&spec, &request.id)?.to_string_lossy());
    group.enter_named().context("failed to enter the control group")?;
    let executor = LastMileExecutor {
        mile: Arc::new(mile),
        status,
        check_program: request.check_program,
        mounts: prepared.later,
    };
    let container = build(request, executor, streams, &bundle, &state)?;
    drop(scope);
    let pid = container.pid().context("the container has no process")?;
    let pid = u32::try_from(pid.as_raw())?;
    complete(&hierarchies, &spec, &request.id, user.as_ref(), pid)?;
    if let Some(teller) = teller {
        teller.tell(pid).context("failed to tell the seccomp agent's helper")?;
    }
    Ok(Answer { pid: Some(pid), error: None, warnings: warning.into_iter().collect() })
}

fn load(request: &CreateRequest) -> anyhow::Result<Spec> {
    let mut spec = configuration::load(&request.bundle.join("config.json"))?;
    if !request.mounts.is_empty() {
        let all = spec.mounts().iter().flatten().chain(&request.mounts).cloned().collect();
        spec.set_mounts(Some(all));
    }
    rules::absolute_sources(&mut spec, &request.bundle);
    Ok(spec)
}

/// What is done to the container's group once it is there; a container without is none.
fn complete(
    hierarchies: &Hierarchies,
    spec: &Spec,
    id: &str,
    user: Option<&UserNamespace>,
    pid: u32,
) -> anyhow::Result<()> {
    let guarded = guard(hierarchies, spec, id)
        .and_then(|()| limit_the_rest(hierarchies, spec, id))
        .and_then(|()| delegate(spec, id, user));
    if guarded.is_err() {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(pid)?);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL);
    }
    guarded
}

struct Streams {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

impl Streams {
    /// Those given, and for the rest our own, which the container inherits.
    fn all(&self) -> [BorrowedFd<'_>; 3] {
        [
            self.stdin.as_ref().map_or(rustix::stdio::stdin(), AsFd::as_fd),
            self.stdout.as_ref().map_or(rustix::stdio::stdout(), AsFd::as_fd),
            self.stderr.as_ref().map_or(rustix::stdio::stderr(), AsFd::as_fd),
        ]
    }
}

fn build(
    request: &CreateRequest,
    executor: LastMileExecutor,
    streams: Streams,
    bundle: &Path,
    state: &Path,
) -> anyhow::Result<Container> {
    let mut builder = ContainerBuilder::new(request.id.clone(), SyscallType::default())
        .with_root_path(state)?
        .with_console_socket(request.console_socket.as_ref())
        .with_preserved_fds(request.preserve_fds)
        .with_executor(executor)
        .validate_id()?;
    if let Some(stdin) = streams.stdin {
        builder = builder.with_stdin(stdin);
    }
    if let Some(stdout) = streams.stdout {
        builder = builder.with_stdout(stdout);
    }
    if let Some(stderr) = streams.stderr {
        builder = builder.with_stderr(stderr);
    }
    let reasons = Reasons::collect()?;
    let built = builder
        .as_init(bundle)
        .with_systemd(false)
        .as_sibling(request.sibling)
        .with_detach(true)
        .with_no_pivot(request.no_pivot)
        .build();
    built.map_err(|error| match hooks::failure(&request.work) {
        // libcontainer knows no more than that ours failed.
        Some(said) => anyhow::Error::msg(said),
        None => {
            let error = anyhow::Error::new(error).context("failed to create the container");
            // As the innermost text, where a chain of errors has it.
            match reasons.first() {
                Some(reason) => anyhow::Error::msg(format!("{error:#}: {reason}")),
                None => error,
            }
        }
    })
}

fn hook_state(request: &CreateRequest, spec: &Spec) -> HookState {
    let annotations = spec.annotations().iter().flatten();
    HookState {
        oci_version: crate::SPECIFICATION_VERSION.to_owned(),
        id: request.id.clone(),
        status: "creating".to_owned(),
        pid: 0,
        bundle: request.bundle.clone(),
        annotations: annotations.map(|(name, value)| (name.clone(), value.clone())).collect(),
    }
}

fn rootfs(request: &CreateRequest, spec: &Spec) -> anyhow::Result<std::path::PathBuf> {
    let given = match (&request.rootfs, spec.root()) {
        (Some(path), _) => path.clone(),
        (None, Some(root)) => request.bundle.join(root.path()),
        (None, None) => bail!(rules::DeriveError::NoRoot),
    };
    fs::canonicalize(&given)
        .with_context(|| format!("failed to find the root file system {}", given.display()))
}

/// libcontainer makes links in `/dev` by path; were the image's `/dev` a link itself, they would land on the host (the class of
/// CVE-2026-41579 and CVE-2026-47766).
fn refuse_strange_device_directory(rootfs: &Path) -> anyhow::Result<()> {
    for name in ["dev", "proc", "sys"] {
        let path = rootfs.join(name);
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => bail!("/{name} of the image is not a directory"),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("failed to look at {}", path.display())),
        }
    }
    Ok(())
}

/// See [`guard`].
fn leave_limits_to_us(derived: &mut Spec) -> anyhow::Result<Hierarchies> {
    let hierarchies = Hierarchies::detect_once().context("failed to find the control groups")?;
    if hierarchies.is_unified()
        && let Some(linux) = derived.linux_mut()
    {
        linux.set_resources(None);
    }
    Ok(hierarchies)
}

/// On a unified machine limits and device policy are ours: libcontainer's policy needs a C library, and of its limits some are wrong
/// ([`crate::limits`]). The container waits meanwhile. On v1 libcontainer has applied them.
fn guard(hierarchies: &Hierarchies, spec: &Spec, id: &str) -> anyhow::Result<()> {
    if !hierarchies.is_unified() {
        return Ok(());
    }
    let path = rules::cgroup_path(spec, id)?;
    let cgroup = hierarchies.cgroup(&path.to_string_lossy());
    let Some(directory) = cgroup.unified_directory() else {
        return Ok(());
    };
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    if let Some(resources) = resources {
        limits::apply(&cgroup, resources, true).context("failed to set the limits")?;
    }
    let deny_all = [LinuxDeviceCgroup::default()];
    let given = resources.and_then(|resources| resources.devices().as_deref()).unwrap_or(&deny_all);
    let program = orlop_linux::bpf::load_device_program(&devices::compile(given))
        .context("failed to load the device policy")?;
    let group =
        fs::File::open(&directory).with_context(|| format!("failed to open {}", directory.display()))?;
    orlop_linux::bpf::attach_device_program(&group, &program).context("failed to attach the device policy")
}

/// A process that keeps a scope alive until the container's own first one is in it.
struct Placeholder(nix::unistd::Pid);

impl Drop for Placeholder {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(self.0, nix::sys::signal::SIGKILL);
        let _ = nix::sys::wait::waitpid(self.0, None);
    }
}

/// Not with this process in it: when libcontainer fails, it kills what is in the group.
fn start_scope(spec: &Spec, id: &str) -> anyhow::Result<Placeholder> {
    let linux = spec.linux().as_ref().ok_or(rules::DeriveError::NoLinux)?;
    let given = linux.cgroups_path().clone().unwrap_or_default();
    let scope = Scope::parse(&given.to_string_lossy())?;
    let single = SingleThreaded::verify()?;
    let placeholder = match orlop_linux::process::clone(&single, CloneOptions::default())? {
        Side::Parent(pid) => Placeholder(nix::unistd::Pid::from_raw(i32::try_from(pid)?)),
        Side::Child => {
            let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
            loop {
                nix::unistd::pause();
            }
        }
    };
    let unified = Hierarchies::detect().context("failed to find the control groups")?.is_unified();
    let pid = u32::try_from(placeholder.0.as_raw())?;
    let mut bus = Bus::system()?;
    systemd::start(
        &mut bus,
        &scope,
        &format!("orlop container {id}"),
        pid,
        linux.resources().as_ref(),
        unified,
    )
    .with_context(|| format!("failed to make the unit {}", scope.unit))?;
    Ok(placeholder)
}

/// What libcontainer, which sets the limits on v1, does not know.
fn limit_the_rest(hierarchies: &Hierarchies, spec: &Spec, id: &str) -> anyhow::Result<()> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let Some(resources) = resources.filter(|_| !hierarchies.is_unified()) else { return Ok(()) };
    let devices = resources.rdma().as_ref().filter(|devices| !devices.is_empty());
    let disable = resources.memory().as_ref().and_then(|memory| memory.disable_oom_killer()) == Some(true);
    if devices.is_none() && !disable {
        return Ok(());
    }
    let mut rest = LinuxResources::default();
    rest.set_devices(None).set_rdma(devices.cloned());
    if disable {
        rest.set_memory(Some(LinuxMemoryBuilder::default().disable_oom_killer(true).build()?));
    }
    let group = hierarchies.cgroup(&rules::cgroup_path(spec, id)?.to_string_lossy());
    limits::apply(&group, &rest, false).context("linux.resources")
}

/// On a unified machine a container with a user namespace of its own may manage what is below its group, if it has a cgroup namespace
/// and may write there (runtime-spec config-linux.md, "Cgroup ownership").
fn delegate(spec: &Spec, id: &str, user: Option<&UserNamespace>) -> anyhow::Result<()> {
    let (Some(user), Some(linux)) = (user, spec.linux()) else { return Ok(()) };
    let mut namespaces = linux.namespaces().iter().flatten();
    let own_view = namespaces
        .any(|namespace| namespace.typ() == LinuxNamespaceType::Cgroup && namespace.path().is_none());
    let is_ro = |option: &String| option == "ro";
    let writable = spec.mounts().iter().flatten().any(|mount| {
        mount.destination() == Path::new("/sys/fs/cgroup") && !mount.options().iter().flatten().any(is_ro)
    });
    let hierarchies = Hierarchies::detect_once().context("failed to find the control groups")?;
    if !(own_view && writable && hierarchies.is_unified()) {
        return Ok(());
    }
    let (uid, gid) = user.outside(0, 0)?;
    let path = rules::cgroup_path(spec, id)?;
    hierarchies
        .cgroup(&path.to_string_lossy())
        .delegate(uid, gid)
        .context("failed to give the control group to the container")
}

#[derive(Clone)]
struct LastMileExecutor {
    mile: Arc<LastMile>,
    status: Option<Arc<OwnedFd>>,
    check_program: bool,
    mounts: mounts::Later,
}

impl Executor for LastMileExecutor {
    fn exec(&self, _derived: &Spec) -> Result<(), ExecutorError> {
        let error = self.mile.run();
        report(self.status.as_deref(), &error);
        orlop_linux::process::exit_now(exit_code(&error))
    }

    /// Whether the program exists is known for certain by exec alone; looking before is for callers that expect it of `create`.
    ///
    /// Called in the container as its root, before anybody is told that it exists.
    fn validate(&self, _derived: &Spec) -> Result<(), ExecutorValidationError> {
        self.mounts
            .apply()
            .map_err(|error| ExecutorValidationError::ArgValidationError(format!("{error:#}")))?;
        if !self.check_program {
            return Ok(());
        }
        self.mile.look_for_program().map_err(|error| {
            // libcontainer wraps the text three times; the reader of the pipe gets it as it is.
            if let Some(status) = &self.status {
                let _ = rustix::io::write(status, error.to_string().as_bytes());
            }
            ExecutorValidationError::ArgValidationError(error.to_string())
        })
    }

    /// The program's environment is passed to execve; ours stays as it is.
    fn setup_envs(
        &self,
        _environment: std::collections::HashMap<String, String>,
    ) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }
}

/// Says why the program did not start: to the starter if it listens, else to standard error.
pub(super) fn report(status: Option<&OwnedFd>, error: &LastMileError) {
    let message = error.to_string();
    let written = status.is_some_and(|status| rustix::io::write(status, message.as_bytes()).is_ok());
    if !written {
        let _ = writeln!(std::io::stderr(), "orlop-oci: {message}");
    }
}

/// As shells count (POSIX 2.8.2): 127 not found, 126 found and not executable.
pub(super) fn exit_code(error: &LastMileError) -> i32 {
    match error {
        LastMileError::Exec { source, .. } if source.kind() == std::io::ErrorKind::NotFound => 127,
        LastMileError::TooMuch { .. } | LastMileError::Exec { .. } | LastMileError::Step { .. } => 126,
    }
}
