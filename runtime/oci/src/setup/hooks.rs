//! `oci-setup hooks KIND WORK`: the one hook per kind that libcontainer runs for us; it runs the configuration's own.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use oci_spec::runtime::{Hook, Hooks, Spec};
use serde::{Deserialize, Serialize};

use super::mounts::Prepared;
use crate::hooks::{HookState, Kind, run_all};

/// In the work directory.
const FILE: &str = "hooks.json";
/// In the work directory: why a hook failed.
const FAILURE: &str = "hook-failure";

/// `hooks.json`.
#[derive(Serialize, Deserialize)]
struct Kept {
    hooks: Hooks,
    state: HookState,
    rootfs: PathBuf,
    /// Where hooks of the runtime's namespaces run, if libcontainer is in another mount namespace.
    mount_namespace: Option<PathBuf>,
}

/// Keeps the real hooks and puts ours in their place. Those of `startContainer` are the last mile's; `poststart` and `poststop` belong to
/// whoever starts and deletes.
pub(super) fn substitute(
    derived: &mut Spec,
    state: &HookState,
    work: &Path,
    prepared: &Prepared,
) -> anyhow::Result<()> {
    let Some(hooks) = derived.hooks().clone() else { return Ok(()) };
    let ours = |kind: Kind, given: &Option<Vec<Hook>>| -> anyhow::Result<Option<Vec<Hook>>> {
        if given.as_ref().is_none_or(Vec::is_empty) {
            return Ok(None);
        }
        let mut hook = Hook::default();
        hook.set_path(PathBuf::from("/proc/self/exe"));
        let work = work.to_str().context("the work directory's name is not UTF-8")?;
        let arguments = ["orlop-oci", "oci-setup", "hooks", kind.name(), work];
        hook.set_args(Some(arguments.map(str::to_owned).to_vec()));
        // libcontainer splits at the first '='.
        let environment = std::env::vars().map(|(name, value)| format!("{name}={value}"));
        hook.set_env(Some(environment.collect()));
        Ok(Some(vec![hook]))
    };
    let mut replaced = Hooks::default();
    replaced.set_prestart(ours(Kind::Prestart, hooks.prestart())?);
    replaced.set_create_runtime(ours(Kind::CreateRuntime, hooks.create_runtime())?);
    replaced.set_create_container(ours(Kind::CreateContainer, hooks.create_container())?);
    let starter = || PathBuf::from(format!("/proc/{}/ns/mnt", std::os::unix::process::parent_id()));
    let kept = Kept {
        hooks,
        state: state.clone(),
        rootfs: prepared.rootfs.clone(),
        mount_namespace: prepared.moved.then(starter),
    };
    fs::write(work.join(FILE), serde_json::to_vec(&kept)?).context("failed to keep the hooks")?;
    derived.set_hooks(Some(replaced));
    Ok(())
}

/// What the failed hook said, if that was the reason.
pub(super) fn failure(work: &Path) -> Option<String> {
    fs::read_to_string(work.join(FAILURE)).ok()
}

pub(super) fn main(kind: Option<&str>, work: Option<&OsString>) -> i32 {
    let (Some(kind), Some(work)) = (kind, work.map(Path::new)) else {
        return 2;
    };
    match serve(kind, work) {
        Ok(()) => 0,
        Err(error) => {
            let text = format!("{error:#}");
            if fs::write(work.join(FAILURE), &text).is_err() {
                let _ = writeln!(io::stderr(), "orlop-oci: {text}");
            }
            1
        }
    }
}

fn serve(kind: &str, work: &Path) -> anyhow::Result<()> {
    #[derive(Deserialize)]
    struct Given {
        pid: Option<u32>,
    }
    let given: Given =
        serde_json::from_reader(io::stdin().lock()).context("failed to read the container's state")?;
    let text = fs::read(work.join(FILE)).context("failed to read the hooks")?;
    let kept: Kept = serde_json::from_slice(&text).context("failed to read the hooks")?;
    let mut state = kept.state;
    let (kind, hooks, directory) = match kind {
        "prestart" => (Kind::Prestart, kept.hooks.prestart(), &state.bundle.clone()),
        "createRuntime" => (Kind::CreateRuntime, kept.hooks.create_runtime(), &state.bundle.clone()),
        "createContainer" => (Kind::CreateContainer, kept.hooks.create_container(), &kept.rootfs),
        other => bail!("{other:?} hooks are not run here"),
    };
    state.pid = match kind {
        // Started by the container's first process, inside of its namespaces: its pid as seen from there, as with runc.
        Kind::CreateContainer => std::os::unix::process::parent_id(),
        _ => given.pid.context("the container's state has no pid")?,
    };
    if let (Some(path), Kind::Prestart | Kind::CreateRuntime) = (&kept.mount_namespace, kind) {
        let namespace = fs::File::open(path).context("failed to find the runtime's mount namespace")?;
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNS)
            .context("failed to join the runtime's mount namespace")?;
    }
    run_all(kind, hooks.as_deref().unwrap_or_default(), &state, directory, None)?;
    Ok(())
}
