//! What the shim knows about one container.

use std::path::{Path, PathBuf};
use std::time::Instant;

use orlop_oci::cgroup::Cgroup;

use crate::log::ContainerLog;
use crate::protocol::{ContainerState, CreateContainer, ExitStatus, Phase};

/// A stop under way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stop {
    /// SIGKILL then.
    pub(crate) kill_at: Instant,
    pub(crate) killed: bool,
    /// Give up waiting then.
    pub(crate) give_up_at: Instant,
}

/// A removal under way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Removal {
    pub(crate) next_try: Instant,
    pub(crate) give_up_at: Instant,
}

pub(crate) struct Container {
    pub(crate) request: CreateContainer,
    /// `containers/ID`.
    pub(crate) directory: PathBuf,
    pub(crate) cgroup: Cgroup,
    pub(crate) log: ContainerLog,
    pub(crate) phase: Phase,
    pub(crate) created_at: i64,
    pub(crate) started_at: i64,
    pub(crate) exit: Option<ExitStatus>,
    /// Key of the first process until it is done.
    pub(crate) init: Option<u64>,
    /// Its pid while it lives.
    pub(crate) pid: Option<u32>,
    /// Creation failed; the container is only there to be cleaned up.
    pub(crate) failure: Option<String>,
    pub(crate) stop: Option<Stop>,
    pub(crate) removal: Option<Removal>,
    /// Connections that wait.
    pub(crate) creators: Vec<u64>,
    pub(crate) starters: Vec<u64>,
    pub(crate) stoppers: Vec<u64>,
    pub(crate) removers: Vec<u64>,
}

impl Container {
    pub(crate) fn new(
        request: CreateContainer,
        directory: PathBuf,
        cgroup: Cgroup,
        log: ContainerLog,
    ) -> Self {
        Self {
            request,
            directory,
            cgroup,
            log,
            phase: Phase::Created,
            created_at: 0,
            started_at: 0,
            exit: None,
            init: None,
            pid: None,
            failure: None,
            stop: None,
            removal: None,
            creators: Vec::new(),
            starters: Vec::new(),
            stoppers: Vec::new(),
            removers: Vec::new(),
        }
    }

    pub(crate) fn state(&self) -> ContainerState {
        ContainerState {
            id: self.request.id.clone(),
            phase: self.phase,
            pid: self.pid,
            created_at: self.created_at,
            started_at: self.started_at,
            exit: self.exit.clone(),
        }
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.request.bundle.join("rootfs")
    }

    /// Where the set-up child keeps the derived configuration and libcontainer its state.
    pub(crate) fn work(&self) -> PathBuf {
        self.directory.join("work")
    }

    /// Being made, or being cleaned up after that failed.
    pub(crate) fn is_unborn(&self) -> bool {
        self.created_at == 0
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.request.bundle.join("config.json")
    }
}

/// Ids become directory and cgroup names.
pub(crate) fn is_valid_id(id: &str) -> bool {
    let first = id.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    first && id.len() <= 128 && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// Where `linux.cgroupsPath` is. Read alone, so that the whole configuration is not kept in memory.
pub(crate) fn cgroup_path(config: &Path, id: &str) -> anyhow::Result<String> {
    #[derive(serde::Deserialize)]
    struct Config {
        linux: Option<Linux>,
    }
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Linux {
        cgroups_path: Option<String>,
    }
    let text = std::fs::read(config)?;
    let config: Config = serde_json::from_slice(&text)?;
    let given = config.linux.and_then(|linux| linux.cgroups_path).unwrap_or_else(|| format!("/{id}"));
    let scope = orlop_oci::systemd::path_of(Path::new(&given))?;
    Ok(scope.map_or(given, |path| path.to_string_lossy().into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_names() {
        for id in ["a", "0f-1_2.3"] {
            assert!(is_valid_id(id));
        }
        for id in ["", ".", "..", "a/b", "-a", "a b", &"x".repeat(129)] {
            assert!(!is_valid_id(id), "{id}");
        }
    }
}
