//! Who is tested, and what is known of it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::rig::skip;

/// Whose program it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// This project's.
    Ours,
    /// opencontainers/runc.
    Runc,
    /// containers/crun.
    Crun,
    /// Some other: held to everything.
    Other,
}

/// A runtime's command line.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The file.
    pub program: PathBuf,
    /// What stands before the runtime's own arguments.
    pub prefix: Vec<OsString>,
    /// Whose.
    pub kind: Kind,
}

impl Subject {
    /// From `SUBJECT`.
    ///
    /// # Panics
    /// When it names no program.
    pub fn from_environment() -> Self {
        let given = std::env::var_os("SUBJECT").filter(|given| !given.is_empty());
        let default = crate::rig::default_subject;
        let given = given.map_or_else(default, PathBuf::from);
        if given == Path::new("orlop") {
            let program = std::env::var_os("ORLOP_BIN").map_or(given, PathBuf::from);
            return Self { program: find(&program), prefix: vec!["oci".into()], kind: Kind::Ours };
        }
        let program = find(&given);
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let kind = match name.as_str() {
            name if name.starts_with("orlop") => Kind::Ours,
            "runc" => Kind::Runc,
            "crun" => Kind::Crun,
            _ => Kind::Other,
        };
        let prefix = if name == "orlop" { vec!["oci".into()] } else { Vec::new() };
        Self { program, prefix, kind }
    }

    /// A call of it.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.prefix);
        command
    }

    /// The same for a shell.
    pub fn line(&self) -> String {
        let words = std::iter::once(self.program.as_os_str()).chain(self.prefix.iter().map(AsRef::as_ref));
        words.map(|word| format!("'{}'", word.to_string_lossy())).collect::<Vec<_>>().join(" ")
    }
}

fn find(given: &Path) -> PathBuf {
    if given.components().count() > 1 {
        assert!(given.exists(), "SUBJECT: {} does not exist", given.display());
        return given.to_path_buf();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).map(|directory| directory.join(given)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("SUBJECT: no {} on PATH", given.display()))
}

/// Not some other runtime.
pub fn is_ours() -> bool {
    Subject::from_environment().kind == Kind::Ours
}

/// One thing that a subject does otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Difference {
    /// Of whom.
    pub kind: Kind,
    /// What tests ask for.
    pub what: &'static str,
    /// Why it is the subject's limit and not its fault, or a fault that later versions do not have.
    pub why: &'static str,
}

const fn known(kind: Kind, what: &'static str, why: &'static str) -> Difference {
    Difference { kind, what, why }
}

/// Known limits of Debian 12's runc 1.1.5 and crun 1.8.1, and of ours.
pub const DIFFERENCES: &[Difference] = &[
    known(Kind::Ours, "device links stay inside while /dev changes", "needs another version of libcontainer"),
    known(Kind::Runc, "cpu.idle and cpu.burst at create", "newer than 1.1.5"),
    known(Kind::Runc, "domainname", "newer than 1.1.5"),
    known(Kind::Runc, "time namespaces", "newer than 1.1.5"),
    known(Kind::Runc, "personality", "newer than 1.1.5"),
    known(Kind::Runc, "process.scheduler and process.ioPriority", "newer than 1.1.5"),
    known(Kind::Runc, "ociVersion is checked", "1.1.5 takes any"),
    known(Kind::Runc, "real-time signals by name", "1.1.5 does not know them"),
    known(
        Kind::Runc,
        "exec has the container's rlimits",
        "1.1.5: the Go runtime of exec raises the soft limit of open files",
    ),
    known(
        Kind::Runc,
        "rootfsPropagation shared and unbindable",
        "1.1.5 makes the root private before pivot_root",
    ),
    known(Kind::Runc, "root.path may be a link", "1.1.5 refuses links"),
    known(Kind::Runc, "exec --cgroup", "1.1.5 wants the group in every hierarchy"),
    known(Kind::Runc, "joining a user namespace by its path", "1.1.5 wants mappings too"),
    known(Kind::Runc, "device links stay inside while /dev changes", "1.1.5 looks it up by path"),
    known(Kind::Runc, "device links stay inside when /dev is a link", "CVE-2026-41579, fixed in 1.3.6"),
    known(Kind::Runc, "mount points stay inside while links change", "CVE-2024-45310, fixed in 1.1.14"),
    known(Kind::Runc, "masks with a false null device", "CVE-2025-31133, fixed in 1.2.8"),
    known(Kind::Runc, "exec refuses a false /dev/pts", "CVE-2025-52565, fixed in 1.2.8"),
    known(Kind::Crun, "limits of -1 at create", "1.8.1 writes the number as unsigned"),
    known(
        Kind::Crun,
        "limits of -1 and all options of update",
        "1.8.1 writes -1 as it is and knows fewer units",
    ),
    known(Kind::Crun, "cpu.idle and cpu.burst at create", "1.8.1 has no cpu.burst on v1"),
    known(
        Kind::Crun,
        "a creation that failed leaves no control group",
        "1.8.1 leaves it when a limit is refused",
    ),
    known(Kind::Crun, "exec --env adds to the container's environment", "1.8.1 replaces it"),
    known(Kind::Crun, "exec --cap adds to the container's capabilities", "1.8.1 replaces them"),
    known(Kind::Crun, "exec --cgroup", "1.8.1 makes the group that is named"),
    known(Kind::Crun, "exec joins the container's session keyring", "1.8.1 leaves exec in the caller's"),
    known(Kind::Crun, "exec has the container's rlimits", "1.8.1 leaves the caller's"),
    known(
        Kind::Crun,
        "LISTEN_FDS reaches the program",
        "1.8.1 passes the descriptors and not the variable on",
    ),
    known(Kind::Crun, "ids with spaces are refused", "1.8.1 refuses slashes only"),
    known(Kind::Crun, "process.cwd must be absolute", "1.8.1 takes any"),
    known(
        Kind::Crun,
        "the state of startContainer hooks names the bundle",
        "1.8.1 asks for its working directory inside of the container",
    ),
    known(Kind::Crun, "kill --all in the host's PID namespace", "1.8.1 kills itself too"),
    known(Kind::Crun, "events", "1.8.1 has no such verb"),
    known(Kind::Crun, "exec in a paused container is refused", "1.8.1 waits for the thaw"),
    known(
        Kind::Crun,
        "a paused container can be killed",
        "1.8.1 leaves it frozen on v1, and the signal pending",
    ),
    known(Kind::Crun, "recursive mount attributes", "1.8.1 knows fewer"),
    known(Kind::Crun, "duplicate namespaces are refused", "1.8.1 takes the last"),
    known(Kind::Crun, "time namespaces", "1.8.1 dies when the offsets are set on this kernel"),
    known(Kind::Crun, "ociVersion is checked", "1.8.1 takes any"),
    known(Kind::Crun, "real-time signals by name", "1.8.1 does not know them"),
    known(Kind::Crun, "unknown signals are refused", "1.8.1 takes them as number 0"),
    known(Kind::Crun, "process.scheduler and process.ioPriority", "newer than 1.8.1"),
    known(Kind::Crun, "propagation of single mounts", "1.8.1 makes everything private when the root is"),
    known(Kind::Crun, "an unknown rootfsPropagation is refused", "1.8.1 takes any"),
    known(Kind::Crun, "create with a terminal needs a console socket", "1.8.1 makes one that nobody holds"),
    known(
        Kind::Crun,
        "a terminal in the foreground has the caller's size",
        "1.8.1 sets it at the next SIGWINCH",
    ),
    known(Kind::Crun, "device links stay inside while /dev changes", "1.8.1 looks it up by path"),
    known(Kind::Crun, "device links stay inside when /dev is a link", "CVE-2026-47766, fixed in 1.28"),
    known(Kind::Crun, "masks with a false null device", "CVE-2025-31133's class, fixed later"),
    known(Kind::Crun, "exec refuses a false /dev/pts", "CVE-2025-52565's class, fixed later"),
];

/// Whether the subject is known to do `what` otherwise; says so.
///
/// # Panics
/// When nobody does: a name that stands in no table is a slip of the pen.
pub fn differs(what: &str) -> bool {
    assert!(
        DIFFERENCES.iter().any(|known| known.what == what),
        "{what:?} is not in the table of differences"
    );
    let kind = Subject::from_environment().kind;
    let known = DIFFERENCES.iter().find(|known| known.kind == kind && known.what == what);
    if let Some(known) = known {
        skip(&format!("{kind:?} differs: {what}: {}", known.why));
    }
    known.is_some()
}
