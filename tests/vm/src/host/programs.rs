//! The test executables: built by cargo, stripped, with what they call.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde::Deserialize;

use super::archive::Archive;
use super::kernel::output;
use crate::task::Program;

/// What runs in the guest.
struct Suite {
    package: &'static str,
    /// Targets to leave out: they need what the guest has not, and nothing of the kernel.
    without: &'static [&'static str],
    /// Only this target, if any is named.
    only: Option<&'static str>,
    environment: &'static [(&'static str, &'static str)],
}

/// `{bin:NAME}` stands for the path of a program that the packages build.
const SUITES: [Suite; 6] = [
    // Neither podman nor containerd is in the guest.
    Suite { package: BLACK_BOX, without: &["engines"], only: None, environment: &[] },
    Suite { package: "orlop-oci", without: &[], only: None, environment: &[] },
    Suite { package: "orlop-shim", without: &[], only: None, environment: &[] },
    Suite {
        package: "orlop-runtime",
        without: &[],
        only: None,
        environment: &[("ORLOP_TEST_SHIM", "{bin:orlop-shim-test} shim")],
    },
    // Its registry tests are about HTTP.
    Suite { package: "orlop-images", without: &["pull"], only: None, environment: &[] },
    // A whole cluster, with the binary that was built before.
    Suite {
        package: "orlop-tests",
        without: &[],
        only: Some("cgroup_v2"),
        environment: &[("ORLOP_BIN", ORLOP)],
    },
];
/// Where the whole program is in the guest.
const ORLOP: &str = "/usr/local/bin/orlop";
/// Its tests judge any runtime, by `SUBJECT`.
const BLACK_BOX: &str = "orlop-conformance-oci";
/// Runtimes of others that must pass them too.
const PEERS: [&str; 2] = ["/usr/sbin/runc", "/usr/bin/crun"];
/// Unless asked for all, they are asked what only this machine can: how they treat cgroup v2.
const PEER_TESTS: &str = "v2";

/// An executable that cargo made.
struct Executable {
    package: String,
    target: String,
    kind: String,
    is_test: bool,
    path: PathBuf,
    directory: PathBuf,
}

#[derive(Deserialize)]
struct Message {
    reason: String,
    package_id: Option<String>,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// Builds the tests, puts them into the archive and says how to run them.
pub(crate) fn add(
    archive: &mut Archive<impl std::io::Write>,
    workspace: bool,
    whole_peers: bool,
    scratch: &Path,
) -> anyhow::Result<Vec<Program>> {
    let built = build(workspace)?;
    let helpers: BTreeMap<String, &Executable> = built
        .iter()
        .filter(|executable| !executable.is_test && executable.kind == "bin")
        .map(|executable| (format!("{{bin:{}}}", executable.target), executable))
        .collect();
    let mut programs = Vec::new();
    for suite in &SUITES {
        for executable in built.iter().filter(|executable| executable.package == suite.package) {
            let target = executable.target.as_str();
            if suite.without.contains(&target) || suite.only.is_some_and(|only| only != target) {
                continue;
            }
            add_stripped(archive, &executable.path, scratch)?;
            archive.directory(&executable.directory)?;
            if executable.is_test {
                programs.extend(program(suite, executable, None, &helpers));
                let peers = PEERS.iter().filter(|_| suite.package == BLACK_BOX);
                programs.extend(peers.filter_map(|peer| {
                    let program = program(suite, executable, Some(peer), &helpers)?;
                    let only = if whole_peers { "" } else { PEER_TESTS };
                    Some(Program { only: only.to_owned(), ..program })
                }));
            }
        }
    }
    for peer in PEERS {
        add_dynamic(archive, Path::new(peer))?;
    }
    if !add_cluster(archive, scratch)? {
        eprintln!("SKIP a whole cluster: no orlop binary is built, or kubectl is not on the PATH");
        programs.retain(|program| !program.environment.contains_key("ORLOP_BIN"));
    }
    ensure!(!programs.is_empty(), "cargo built no tests");
    Ok(programs)
}

fn program(
    suite: &Suite,
    executable: &Executable,
    subject: Option<&str>,
    helpers: &BTreeMap<String, &Executable>,
) -> Option<Program> {
    let mut environment: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in suite.environment {
        let mut value = (*value).to_owned();
        for (word, helper) in helpers {
            value = value.replace(word, &helper.path.to_string_lossy());
        }
        environment.insert((*name).to_owned(), value);
    }
    let mut name = format!("{}::{}", suite.package, executable.target);
    if let Some(subject) = subject {
        environment.insert("SUBJECT".to_owned(), subject.to_owned());
        name = format!("{name}@{}", Path::new(subject).file_name()?.to_string_lossy());
    }
    Some(Program {
        name,
        path: executable.path.clone(),
        directory: executable.directory.clone(),
        environment,
        only: String::new(),
    })
}

/// The same set of packages as in a run outside gives the same features, so nothing is compiled twice.
fn build(workspace: bool) -> anyhow::Result<Vec<Executable>> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["test", "--no-run", "--locked", "--message-format=json-render-diagnostics"]);
    if workspace {
        cargo.arg("--workspace");
    } else {
        cargo.args(SUITES.iter().flat_map(|suite| ["--package", suite.package]));
    }
    // Started by `cargo run`, we have variables of our own package that would make cargo build others anew.
    for (name, _) in std::env::vars_os() {
        let is_ours = |prefix| name.to_string_lossy().starts_with(prefix);
        if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_"].into_iter().any(is_ours) {
            cargo.env_remove(name);
        }
    }
    let output = cargo.stderr(Stdio::inherit()).output().context("failed to start cargo")?;
    ensure!(output.status.success(), "the tests do not build");
    let mut found = Vec::new();
    for line in output.stdout.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"{")) {
        let message: Message = serde_json::from_slice(line).context("cargo says something strange")?;
        found.extend(executable(message));
    }
    Ok(found)
}

fn executable(message: Message) -> Option<Executable> {
    let (target, directory) = (message.target?, message.manifest_path?.parent()?.to_path_buf());
    if message.reason != "compiler-artifact" {
        return None;
    }
    Some(Executable {
        package: package_name(&message.package_id?)?,
        target: target.name,
        kind: target.kind.into_iter().next()?,
        is_test: message.profile?.test,
        path: message.executable?,
        directory,
    })
}

/// From `path+file:///DIRECTORY#NAME@VERSION`, or without a name where the directory has it (cargo's package id specifications).
fn package_name(id: &str) -> Option<String> {
    let (address, fragment) = id.rsplit_once('#')?;
    let name = match fragment.split_once('@') {
        Some((name, _)) => name,
        None => address.rsplit('/').next()?,
    };
    Some(name.to_owned())
}

/// Debug information would be most of the archive.
fn add_stripped(
    archive: &mut Archive<impl std::io::Write>,
    path: &Path,
    scratch: &Path,
) -> anyhow::Result<()> {
    if archive.has(path) {
        return Ok(());
    }
    let stripped = scratch.join("stripped");
    output(Command::new("strip").arg("-o").arg(&stripped).arg(path))?;
    archive.copy(&stripped, path).context("failed to write the archive")
}

/// The whole program and what its tests call; false when there is none.
fn add_cluster(archive: &mut Archive<impl std::io::Write>, scratch: &Path) -> anyhow::Result<bool> {
    let target = std::env::current_exe()?.ancestors().nth(2).map(Path::to_path_buf).unwrap_or_default();
    let built = ["release", "debug"].map(|profile| target.join(profile).join("orlop"));
    let given = std::env::var_os("ORLOP_BIN").map(PathBuf::from);
    let orlop = given.into_iter().chain(built).find(|path| path.exists());
    let path = std::env::var_os("PATH").unwrap_or_default();
    let kubectl =
        std::env::split_paths(&path).map(|folder| folder.join("kubectl")).find(|path| path.exists());
    let (Some(orlop), Some(kubectl)) = (orlop, kubectl) else { return Ok(false) };
    let stripped = scratch.join("stripped");
    output(Command::new("strip").arg("-o").arg(&stripped).arg(orlop))?;
    archive.copy(&stripped, Path::new(ORLOP))?;
    archive.copy(&kubectl, Path::new("/usr/local/bin/kubectl"))?;
    for program in ["/usr/bin/ip", "/usr/bin/nsenter"] {
        add_dynamic(archive, Path::new(program))?;
    }
    Ok(true)
}

/// A program with the libraries that it is linked to.
pub(crate) fn add_dynamic(archive: &mut Archive<impl std::io::Write>, path: &Path) -> anyhow::Result<()> {
    archive.copy(path, path).context("failed to write the archive")?;
    let libraries = output(Command::new("ldd").arg(path))?;
    for word in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        // By the name that the loader looks for, whatever is behind it.
        archive.copy(Path::new(word), Path::new(word)).context("failed to write the archive")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_ids_have_names() {
        let name = |id| package_name(id).unwrap();
        assert_eq!(name("path+file:///w/runtime/oci#orlop-oci@0.1.0"), "orlop-oci");
        assert_eq!(name("path+file:///w/xtask#0.1.0"), "xtask");
    }
}
