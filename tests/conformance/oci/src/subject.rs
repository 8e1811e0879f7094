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
        let default = || PathBuf::from(crate::rig::default_subject());
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
pub const DIFFERENCES: &[Difference] = &[known(Kind::Crun, "placeholder", "to be filled")];

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
