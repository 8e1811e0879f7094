//! The last steps before a container's program: directory, groups, user, capabilities, seccomp, execve.
//!
//! libcontainer's own last steps lack seccomp (it needs a C library) and get it wrong for exec, so both paths, a container's first
//! process and exec, end here. Everything that can fail for a bad specification fails in [`LastMile::prepare`], on our side of the
//! container.
//!
//! Order (the same as runc's, and why): the directory first, as root, because it may have to be made; groups and user while capabilities last;
//! without no_new_privs the filter needs CAP_SYS_ADMIN and so comes before the last capability goes; with it the filter comes last.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability, CapsHashSet};
use nix::unistd::{Gid, Uid};
use oci_spec::runtime::{Hook, Linux, LinuxCapabilities, LinuxSeccomp, Process};

use crate::attributes::{AttributeError, Attributes};
use crate::hooks::{self, HookState, Kind};
use crate::seccomp::listener::{Listener, PidTeller};
use crate::seccomp::{self, Filter, SeccompError};

/// Where programs are looked for when the environment does not say (as runc).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// `/etc/passwd` belongs to the image; more than this is not read.
const PASSWD_LIMIT_BYTES: u64 = 1 << 20;
/// execve(2): `MAX_ARG_STRLEN`, 32 pages, the zero byte at the end counted.
const STRING_LIMIT_BYTES: usize = 32 * 4096;

/// A specification that cannot become a process.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// No program.
    #[error("process has no arguments")]
    NoArguments,
    /// C strings end at a zero byte.
    #[error("process argument or environment contains a zero byte")]
    ZeroByte,
    /// Linux takes no program with such a string.
    #[error("process {field}[{index}] has {bytes} bytes, Linux takes at most {}", STRING_LIMIT_BYTES - 1)]
    TooLong {
        /// `args` or `env`.
        field: &'static str,
        /// Which of them.
        index: usize,
        /// Its length.
        bytes: usize,
    },
    /// A name that this build does not know.
    #[error("capability {0} is unknown")]
    Capability(String),
    /// The filter.
    #[error("failed to compile the seccomp profile")]
    Seccomp(#[from] SeccompError),
    /// Priorities, execution domain, labels.
    #[error(transparent)]
    Attribute(#[from] AttributeError),
}

/// Why the program did not start.
#[derive(Debug, thiserror::Error)]
pub enum LastMileError {
    /// A step before execve.
    #[error("failed to {step}: {source}")]
    Step {
        /// Which.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
    /// More than the kernel takes for one program.
    #[error("exec {program:?}: {source}: args have {arguments} bytes and env has {environment}")]
    TooMuch {
        /// As the specification names it.
        program: String,
        /// In sum.
        arguments: usize,
        /// In sum.
        environment: usize,
        /// E2BIG.
        source: io::Error,
    },
    /// execve, or nothing to execve.
    #[error("exec {program:?}: {source}")]
    Exec {
        /// As the specification names it.
        program: String,
        /// Why.
        source: io::Error,
    },
}

#[derive(Clone, Debug, Default)]
struct Capabilities {
    bounding: CapsHashSet,
    effective: CapsHashSet,
    permitted: CapsHashSet,
    inheritable: CapsHashSet,
    ambient: CapsHashSet,
}

/// Everything that the last steps need, checked.
#[derive(Clone, Debug)]
pub struct LastMile {
    arguments: Vec<CString>,
    environment: Vec<String>,
    directory: PathBuf,
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    umask: Option<u32>,
    no_new_privileges: bool,
    capabilities: Capabilities,
    filter: Option<Filter>,
    listener: Option<Listener>,
    attributes: Attributes,
    terminal_size: Option<(u16, u16)>,
    hooks: Option<(Vec<Hook>, HookState)>,
}

impl LastMile {
    /// Checks and compiles; `linux` is the container's.
    pub fn prepare(process: &Process, linux: Option<&Linux>) -> Result<Self, PrepareError> {
        let profile = linux.and_then(|linux| linux.seccomp().as_ref());
        let personality = linux.and_then(|linux| linux.personality().as_ref());
        let arguments: Vec<CString> = process
            .args()
            .iter()
            .flatten()
            .map(|argument| CString::new(argument.as_str()))
            .collect::<Result<_, _>>()
            .map_err(|_| PrepareError::ZeroByte)?;
        if arguments.first().is_none_or(|program| program.is_empty()) {
            return Err(PrepareError::NoArguments);
        }
        let mut environment: Vec<String> = process.env().clone().unwrap_or_default();
        if environment.iter().any(|entry| entry.contains('\0')) {
            return Err(PrepareError::ZeroByte);
        }
        fits("args", arguments.iter().map(|argument| argument.as_bytes().len()))?;
        fits("env", environment.iter().map(String::len))?;
        if !environment.iter().any(|entry| entry.starts_with("PATH=")) {
            environment.push(format!("PATH={DEFAULT_PATH}"));
        }
        let user = process.user();
        Ok(Self {
            arguments,
            environment,
            directory: process.cwd().clone(),
            uid: Uid::from_raw(user.uid()),
            gid: Gid::from_raw(user.gid()),
            groups: user.additional_gids().iter().flatten().map(|gid| Gid::from_raw(*gid)).collect(),
            umask: user.umask(),
            no_new_privileges: process.no_new_privileges() == Some(true),
            capabilities: process
                .capabilities()
                .as_ref()
                .map_or(Ok(Capabilities::default()), parse_capabilities)?,
            filter: profile.map(seccomp::compile).transpose()?,
            listener: None,
            attributes: Attributes::prepare(process, personality)?,
            terminal_size: terminal_size(process),
            hooks: None,
        })
    }

    /// More entries for the program's environment.
    pub fn add_environment(&mut self, entries: &[String]) {
        self.environment.extend_from_slice(entries);
    }

    /// Connects to the agent of the filter, if that has one; who makes the process tells the agent its pid.
    pub(crate) fn connect_listener(
        &mut self,
        profile: Option<&LinuxSeccomp>,
        state: &HookState,
    ) -> io::Result<Option<PidTeller>> {
        let path = profile.and_then(|profile| profile.listener_path().as_deref());
        let (Some(profile), Some(path), true) =
            (profile, path, self.filter.as_ref().is_some_and(|filter| filter.notifies))
        else {
            return Ok(None);
        };
        let metadata = profile.listener_metadata().clone();
        let (listener, teller) = Listener::connect(path, metadata, state.clone())?;
        self.listener = Some(listener);
        Ok(Some(teller))
    }

    /// Hooks of kind `startContainer`, to run right before the program and as its user (the image's files must not run with more).
    pub fn run_before(&mut self, hooks: Vec<Hook>, state: HookState) {
        self.hooks = Some((hooks, state));
    }

    /// Fails as [`LastMile::run`] would when there is no such program; for processes that are in the container but not yet its user.
    pub fn look_for_program(&self) -> Result<(), LastMileError> {
        let program = self.arguments[0].to_string_lossy().into_owned();
        let mut worst = not_found();
        for candidate in self.candidates(&program) {
            let path = self.directory.join(std::ffi::OsStr::from_bytes(candidate.to_bytes()));
            match std::fs::metadata(&path) {
                Ok(found) if !found.is_dir() && found.permissions().mode() & 0o111 != 0 => return Ok(()),
                Ok(_) => worst = io::ErrorKind::PermissionDenied.into(),
                Err(error) if program.contains('/') => worst = error,
                Err(_) => {}
            }
        }
        Err(LastMileError::Exec { program, source: worst })
    }

    /// Becomes the program. Returns only when that fails; the calling process is then half way and must end.
    pub fn run(&self) -> LastMileError {
        match self.try_run() {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    fn try_run(&self) -> Result<std::convert::Infallible, LastMileError> {
        let home = self.home();
        self.enter_directory(true)?;
        if let Some(umask) = self.umask {
            rustix::process::umask(rustix::fs::Mode::from_raw_mode(umask));
        }
        step("reset signals", orlop_linux::process::reset_signals())?;
        self.attributes.apply().map_err(|(what, source)| LastMileError::Step { step: what, source })?;
        self.drop_bounding()?;
        self.own_streams();
        if let Some((columns, rows)) = self.terminal_size {
            let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
            let resized = rustix::termios::tcsetwinsize(rustix::stdio::stdin(), size);
            step("set the terminal's size", resized.map_err(io::Error::from))?;
        }
        self.change_user()?;
        // As root the directory may have been out of reach (a mount that squashes root); as the user it must not be.
        self.enter_directory(false)?;
        verify_inside()?;
        if self.no_new_privileges {
            self.set_capabilities()?;
            step("set no_new_privs", rustix::thread::set_no_new_privs(true).map_err(io::Error::from))?;
            self.load_filter()?;
        } else {
            self.load_filter()?;
            self.set_capabilities()?;
        }
        if let Some((hooks, state)) = &self.hooks {
            let mut state = state.clone();
            state.pid = std::process::id();
            hooks::run_all(Kind::StartContainer, hooks, &state, Path::new("/"), Some(&self.environment))
                .map_err(|error| LastMileError::Step {
                    step: "run the hooks before the program",
                    source: io::Error::other(error),
                })?;
        }
        Err(self.execute(home))
    }

    /// `HOME` from the container's own passwd file when the environment has none.
    fn home(&self) -> Option<String> {
        if self.environment.iter().any(|entry| entry.starts_with("HOME=")) {
            return None;
        }
        let text = read_bounded(Path::new("/etc/passwd")).unwrap_or_default();
        let home = home_of(&text, self.uid.as_raw()).unwrap_or("/");
        Some(format!("HOME={home}"))
    }

    fn enter_directory(&self, as_root: bool) -> Result<(), LastMileError> {
        if self.directory.as_os_str().is_empty() {
            return Ok(());
        }
        if as_root && !self.directory.exists() {
            // Images name working directories that they do not contain; every runtime makes them.
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&self.directory);
            if let Err(error) = made
                && error.kind() != io::ErrorKind::AlreadyExists
            {
                return Err(LastMileError::Step { step: "make the working directory", source: error });
            }
        }
        match std::env::set_current_dir(&self.directory) {
            Err(error) if as_root && error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            // Entered as root before; a user without search permission keeps it, as with runc.
            Err(error) if !as_root && error.kind() == io::ErrorKind::PermissionDenied => {
                match std::env::current_dir() {
                    Ok(directory) if directory == self.directory => Ok(()),
                    _ => Err(LastMileError::Step { step: "enter the working directory", source: error }),
                }
            }
            other => step("enter the working directory", other),
        }
    }

    fn drop_bounding(&self) -> Result<(), LastMileError> {
        let held = capability_step(caps::read(None, CapSet::Bounding))?;
        for capability in held.difference(&self.capabilities.bounding) {
            capability_step(caps::drop(None, CapSet::Bounding, *capability))?;
        }
        Ok(())
    }

    /// Standard streams belong to the user, or `/dev/stdout` could not be opened anew (as runc does). What cannot be given away
    /// stays as it is.
    fn own_streams(&self) {
        let streams = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
        for stream in streams {
            let Ok(found) = rustix::fs::fstat(stream) else {
                continue;
            };
            let null = (rustix::fs::major(found.st_rdev), rustix::fs::minor(found.st_rdev)) == (1, 3);
            if found.st_uid != self.uid.as_raw() && !null {
                let _ = rustix::fs::fchown(stream, Some(rustix::fs::Uid::from_raw(self.uid.as_raw())), None);
            }
        }
    }

    fn change_user(&self) -> Result<(), LastMileError> {
        let wrap = |answer: nix::Result<()>| answer.map_err(io::Error::from);
        // In a user namespace that denies setgroups there is nothing to set, and asking for nothing must not fail.
        match nix::unistd::setgroups(&self.groups) {
            Err(nix::errno::Errno::EPERM) if self.groups.is_empty() => {}
            other => step("set supplementary groups", wrap(other))?,
        }
        capability_step(caps::securebits::set_keepcaps(true))?;
        step("set the group", wrap(nix::unistd::setresgid(self.gid, self.gid, self.gid)))?;
        step("set the user", wrap(nix::unistd::setresuid(self.uid, self.uid, self.uid)))?;
        capability_step(caps::securebits::set_keepcaps(false))?;
        // A change from root empties the effective set; the next steps still need it.
        let permitted = capability_step(caps::read(None, CapSet::Permitted))?;
        capability_step(caps::set(None, CapSet::Effective, &permitted))
    }

    /// To exactly what the specification asks for, less what the caller itself does not hold.
    fn set_capabilities(&self) -> Result<(), LastMileError> {
        let wanted = &self.capabilities;
        let held = capability_step(caps::read(None, CapSet::Permitted))?;
        let permitted: CapsHashSet = wanted.permitted.intersection(&held).copied().collect();
        let effective: CapsHashSet = wanted.effective.intersection(&permitted).copied().collect();
        let inheritable: CapsHashSet = wanted.inheritable.intersection(&held).copied().collect();
        // Inheritable first: raising it beyond the old one needs it permitted or CAP_SETPCAP.
        capability_step(caps::set(None, CapSet::Inheritable, &inheritable))?;
        capability_step(caps::set(None, CapSet::Effective, &effective))?;
        capability_step(caps::set(None, CapSet::Permitted, &permitted))?;
        let _ = caps::clear(None, CapSet::Ambient);
        for capability in &wanted.ambient {
            if permitted.contains(capability) && inheritable.contains(capability) {
                capability_step(caps::raise(None, CapSet::Ambient, *capability))?;
            }
        }
        Ok(())
    }

    fn load_filter(&self) -> Result<(), LastMileError> {
        let Some(filter) = &self.filter else { return Ok(()) };
        let loaded = match &self.listener {
            Some(listener) => listener.load(filter),
            None => orlop_linux::seccomp::load(&filter.instructions, filter.flags).map(drop),
        };
        step("load the seccomp filter", loaded)
    }

    /// execve of the first hit on PATH, as execvp(3) chooses.
    fn execute(&self, home: Option<String>) -> LastMileError {
        let program = self.arguments[0].to_string_lossy().into_owned();
        let failed = |source| LastMileError::Exec { program: program.clone(), source };
        let text = |entry: &String| CString::new(entry.as_str()).ok();
        let environment: Vec<CString> =
            self.environment.iter().chain(home.as_ref()).filter_map(text).collect();
        let mut worst = not_found();
        for candidate in self.candidates(&program) {
            let Err(errno) = nix::unistd::execve(&candidate, &self.arguments, &environment);
            match errno {
                nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR if !program.contains('/') => {}
                nix::errno::Errno::EACCES if !program.contains('/') => worst = errno.into(),
                nix::errno::Errno::E2BIG => {
                    let sum = |texts: &[CString]| texts.iter().map(|text| text.as_bytes().len()).sum();
                    return LastMileError::TooMuch {
                        program,
                        arguments: sum(&self.arguments),
                        environment: sum(&environment),
                        source: errno.into(),
                    };
                }
                other => return failed(other.into()),
            }
        }
        failed(worst)
    }

    fn candidates(&self, program: &str) -> Vec<CString> {
        if program.contains('/') {
            return vec![self.arguments[0].clone()];
        }
        let path =
            self.environment.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
        path.split(':')
            .map(|directory| if directory.is_empty() { "." } else { directory })
            .filter_map(|directory| CString::new(format!("{directory}/{program}")).ok())
            .collect()
    }
}

fn fits(field: &'static str, lengths: impl Iterator<Item = usize>) -> Result<(), PrepareError> {
    match lengths.enumerate().find(|(_, bytes)| *bytes >= STRING_LIMIT_BYTES) {
        Some((index, bytes)) => Err(PrepareError::TooLong { field, index, bytes }),
        None => Ok(()),
    }
}

fn not_found() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "executable file not found in $PATH")
}

/// Columns and rows.
fn terminal_size(process: &Process) -> Option<(u16, u16)> {
    let size = process.console_size().filter(|_| process.terminal() == Some(true))?;
    Some((u16::try_from(size.width()).ok()?, u16::try_from(size.height()).ok()?))
}

fn step<T>(step: &'static str, answer: io::Result<T>) -> Result<T, LastMileError> {
    answer.map_err(|source| LastMileError::Step { step, source })
}

fn capability_step<T>(answer: Result<T, caps::errors::CapsError>) -> Result<T, LastMileError> {
    step("set capabilities", answer.map_err(io::Error::other))
}

/// A directory descriptor that leaked in could leave us outside of the root (CVE-2024-21626); the kernel then says "(unreachable)".
fn verify_inside() -> Result<(), LastMileError> {
    let directory =
        step("find the working directory", rustix::process::getcwd(Vec::new()).map_err(io::Error::from))?;
    if directory.as_bytes().starts_with(b"/") {
        return Ok(());
    }
    Err(LastMileError::Step {
        step: "stay inside the container",
        source: io::Error::other("the working directory is outside of the container's root"),
    })
}

fn read_bounded(path: &Path) -> io::Result<String> {
    use std::io::Read as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    // The file is the image's: a FIFO there must not hang us.
    let file = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut text = Vec::new();
    file.take(PASSWD_LIMIT_BYTES).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn home_of(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let of_user = fields.nth(2)?.parse::<u32>().ok()? == uid;
        let home = fields.nth(2).filter(|home| home.starts_with('/'))?;
        of_user.then_some(home)
    })
}

fn parse_capabilities(given: &LinuxCapabilities) -> Result<Capabilities, PrepareError> {
    let parse = |set: &Option<oci_spec::runtime::Capabilities>| -> Result<CapsHashSet, PrepareError> {
        set.iter()
            .flatten()
            .map(|capability| {
                let name = caps::to_canonical(&capability.to_string());
                name.parse::<Capability>().map_err(|_| PrepareError::Capability(name))
            })
            .collect()
    };
    Ok(Capabilities {
        bounding: parse(given.bounding())?,
        effective: parse(given.effective())?,
        permitted: parse(given.permitted())?,
        inheritable: parse(given.inheritable())?,
        ambient: parse(given.ambient())?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(json: &str) -> Process {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn prepares() {
        let mile = LastMile::prepare(
            &process(
                r#"{"user":{"uid":7,"gid":8,"additionalGids":[9]},"args":["sh","-c","x"],"env":["A=b"],"cwd":"/w",
                "capabilities":{"bounding":["CAP_CHOWN","CAP_NET_BIND_SERVICE"],"permitted":["CAP_CHOWN"]}}"#,
            ),
            None,
        )
        .unwrap();
        assert_eq!(mile.environment, ["A=b".to_owned(), format!("PATH={DEFAULT_PATH}")]);
        assert_eq!(mile.candidates("sh").len(), 6);
        assert_eq!(mile.capabilities.bounding.len(), 2);
        assert!(mile.capabilities.effective.is_empty());
        assert!(!mile.no_new_privileges);
    }

    #[test]
    fn refuses() {
        for json in [
            r#"{"user":{},"args":[],"cwd":"/"}"#,
            r#"{"user":{},"cwd":"/"}"#,
            r#"{"user":{},"args":["a\u0000b"],"cwd":"/"}"#,
            r#"{"user":{},"args":["a"],"env":["A=\u0000"],"cwd":"/"}"#,
        ] {
            assert!(LastMile::prepare(&process(json), None).is_err(), "{json}");
        }
    }

    #[test]
    fn finds_homes() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbad\nweb:x:33:33::/var/www:\nodd:x:5:5::relative:\n";
        assert_eq!(home_of(passwd, 0), Some("/root"));
        assert_eq!(home_of(passwd, 33), Some("/var/www"));
        assert_eq!(home_of(passwd, 5), None);
        assert_eq!(home_of(passwd, 1), None);
    }
}
