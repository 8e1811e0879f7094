//! Hooks of a container's life, run one after the other (runtime-spec config.md, "POSIX-platform Hooks").
//!
//! libcontainer runs hooks too, but with the state of the directory that we derive for it and with a thread for the time limit. So it
//! is given one hook of ours per kind, `oci-setup hooks KIND WORK`, at the right moment; that one runs the real ones from here.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use oci_spec::runtime::Hook;
use serde::{Deserialize, Serialize};

/// What of a hook's standard error goes into our message.
const SAID_LIMIT_BYTES: u64 = 4096;
/// Longest pause between two looks at a hook that has a time limit.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// The moments of a life that have hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Deprecated twin of [`Kind::CreateRuntime`], runs before it.
    Prestart,
    /// Namespaces exist; runs in the caller's.
    CreateRuntime,
    /// As above; runs in the container's, before its root changes.
    CreateContainer,
    /// In the container, right before its program.
    StartContainer,
    /// The program runs.
    Poststart,
    /// The container is no more.
    Poststop,
}

impl Kind {
    /// Its name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Prestart => "prestart",
            Kind::CreateRuntime => "createRuntime",
            Kind::CreateContainer => "createContainer",
            Kind::StartContainer => "startContainer",
            Kind::Poststart => "poststart",
            Kind::Poststop => "poststop",
        }
    }
}

/// Why a hook counts as failed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// It could not be started, fed or waited for.
    #[error("failed to run {kind} hook {path}: {source}")]
    Run {
        /// Kind.
        kind: &'static str,
        /// The program.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It said no.
    #[error("{kind} hook {path} failed: {status}{said}")]
    Failed {
        /// Kind.
        kind: &'static str,
        /// The program.
        path: PathBuf,
        /// Exit code or signal.
        status: ExitStatus,
        /// Its standard error, or nothing.
        said: String,
    },
    /// It took too long and was killed.
    #[error("{kind} hook {path} took longer than {seconds} s")]
    Slow {
        /// Kind.
        kind: &'static str,
        /// The program.
        path: PathBuf,
        /// Its limit.
        seconds: u64,
    },
}

/// The state that a hook reads from its standard input (runtime-spec runtime.md, "State").
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HookState {
    /// Version of the specification.
    pub oci_version: String,
    /// Container.
    pub id: String,
    /// `creating`, `created`, `running` or `stopped`.
    pub status: String,
    /// First process; 0 when there is none any more.
    pub pid: u32,
    /// The bundle that the caller named.
    pub bundle: PathBuf,
    /// The configuration's annotations.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub annotations: std::collections::BTreeMap<String, String>,
}

/// Runs hooks of one kind until one fails.
///
/// `environment` is for hooks that name none; without it they get the caller's, as with runc.
pub fn run_all(
    kind: Kind,
    hooks: &[Hook],
    state: &HookState,
    directory: &Path,
    environment: Option<&[String]>,
) -> Result<(), HookError> {
    hooks.iter().try_for_each(|hook| run(kind, hook, state, directory, environment))
}

/// Runs one hook.
pub fn run(
    kind: Kind,
    hook: &Hook,
    state: &HookState,
    directory: &Path,
    environment: Option<&[String]>,
) -> Result<(), HookError> {
    let failed = |source| HookError::Run { kind: kind.name(), path: hook.path().clone(), source };
    // A file and not a pipe: a hook may leave a process behind that keeps its standard error open.
    let said = rustix::fs::memfd_create("hook", rustix::fs::MemfdFlags::CLOEXEC).ok().map(File::from);
    let mut child = command(hook, directory, environment)
        .stdin(input(state).map_err(failed)?)
        .stdout(Stdio::null())
        .stderr(match &said {
            Some(file) => Stdio::from(file.try_clone().map_err(failed)?),
            None => Stdio::null(),
        })
        .spawn()
        .map_err(failed)?;
    let limit = hook.timeout().and_then(|seconds| u64::try_from(seconds).ok());
    match wait(&mut child, limit.map(Duration::from_secs)).map_err(failed)? {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(HookError::Failed {
            kind: kind.name(),
            path: hook.path().clone(),
            status,
            said: said.map(excerpt).unwrap_or_default(),
        }),
        None => Err(HookError::Slow {
            kind: kind.name(),
            path: hook.path().clone(),
            seconds: limit.unwrap_or_default(),
        }),
    }
}

fn command(hook: &Hook, directory: &Path, environment: Option<&[String]>) -> Command {
    let mut command = Command::new(hook.path());
    if let Some((name, arguments)) = hook.args().as_ref().and_then(|arguments| arguments.split_first()) {
        command.arg0(name).args(arguments);
    }
    if let Some(environment) = hook.env().as_deref().or(environment) {
        command.env_clear();
        command.envs(environment.iter().filter_map(|entry| entry.split_once('=')));
    }
    command.current_dir(directory);
    command
}

/// The state, written before the hook starts: one that does not read must not end us by SIGPIPE, which is at its default in the last mile.
fn input(state: &HookState) -> io::Result<Stdio> {
    let text = serde_json::to_vec(state)?;
    match rustix::fs::memfd_create("state", rustix::fs::MemfdFlags::CLOEXEC) {
        Ok(file) => {
            let mut file = File::from(file);
            file.write_all(&text)?;
            file.rewind()?;
            Ok(file.into())
        }
        // A container's filter may not know memory files; a pipe takes one page at least.
        Err(_) => {
            let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
            File::from(writer).write_all(&text)?;
            Ok(reader.into())
        }
    }
}

/// Nothing when the time is up; then the hook is dead.
fn wait(child: &mut Child, limit: Option<Duration>) -> io::Result<Option<ExitStatus>> {
    let Some(limit) = limit else { return child.wait().map(Some) };
    let end = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        // No pidfd: the filter that a container's own hooks run under may not know it.
        std::thread::sleep(pause);
        pause = (pause * 2).min(LOOK_PAUSE);
    }
}

fn excerpt(mut file: File) -> String {
    let mut text = Vec::new();
    if file.rewind().and_then(|()| file.take(SAID_LIMIT_BYTES).read_to_end(&mut text)).is_err() {
        return String::new();
    }
    match String::from_utf8_lossy(&text).trim() {
        "" => String::new(),
        said => format!(": {said}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> HookState {
        HookState {
            oci_version: "1.1.0".into(),
            id: "c".into(),
            status: "creating".into(),
            pid: 7,
            bundle: "/b".into(),
            annotations: Default::default(),
        }
    }

    fn shell(script: &str, more: &str) -> Hook {
        let args = serde_json::to_string(script).unwrap();
        serde_json::from_str(&format!(r#"{{"path":"/bin/sh","args":["sh","-c",{args}]{more}}}"#)).unwrap()
    }

    #[test]
    fn feeds_the_state_and_reports_failures() {
        let directory = Path::new("/");
        let seen = tempfile::NamedTempFile::new().unwrap();
        let script = format!("cat > {0}; echo \" $A $PWD\" >> {0}", seen.path().display());
        run(Kind::Prestart, &shell(&script, r#","env":["A=x"]"#), &state(), directory, None).unwrap();
        let text = std::fs::read_to_string(seen.path()).unwrap();
        assert!(text.contains(r#""pid":7"#) && text.trim_end().ends_with("x /"), "{text}");

        let error =
            run(Kind::Poststop, &shell("echo no >&2; exit 3", ""), &state(), directory, None).unwrap_err();
        assert_eq!(error.to_string(), "poststop hook /bin/sh failed: exit status: 3: no");
        let slow = shell("exec sleep 100", r#","timeout":1"#);
        assert!(matches!(
            run(Kind::Prestart, &slow, &state(), directory, None),
            Err(HookError::Slow { seconds: 1, .. })
        ));
        assert!(run_all(Kind::Prestart, &[], &state(), directory, None).is_ok());
    }
}
