//! Bounds container logs: a full one is renamed and the runtime told to open a new one; old ones are removed.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use orlop_cri::v1 as cri;

use crate::Kubelet;
use crate::labels;

/// As upstream's containerLogMonitorInterval.
const PERIOD: Duration = Duration::from_secs(10);

/// One container's log.
struct Log {
    id: String,
    running: bool,
    attempt: u32,
}

/// Runs until the drain starts.
pub(crate) async fn run(kubelet: Arc<Kubelet>) -> anyhow::Result<()> {
    while kubelet.drain.sleep(PERIOD).await {
        let answer = match kubelet.runtime.list_containers(cri::ListContainersRequest::default()).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::debug!(%error, "could not list containers for log rotation");
                continue;
            }
        };
        for (dir, logs) in by_directory(&kubelet.config.pod_logs_dir, &answer.containers) {
            if let Err(error) = bound(&kubelet, &dir, &logs).await {
                tracing::warn!(dir = %dir.display(), %error, "could not rotate a log");
            }
        }
    }
    Ok(())
}

fn by_directory(root: &Path, containers: &[cri::Container]) -> BTreeMap<PathBuf, Vec<Log>> {
    let mut directories: BTreeMap<PathBuf, Vec<Log>> = BTreeMap::new();
    for container in containers {
        let label = |key: &str| container.labels.get(key).cloned();
        let place = (
            label(labels::POD_NAMESPACE),
            label(labels::POD_NAME),
            label(labels::POD_UID),
            label(labels::CONTAINER_NAME),
        );
        let (Some(namespace), Some(pod), Some(uid), Some(name)) = place else {
            continue;
        };
        let attempt = container.annotations.get(labels::RESTART_COUNT).and_then(|text| text.parse().ok());
        directories.entry(root.join(format!("{namespace}_{pod}_{uid}")).join(name)).or_default().push(Log {
            id: container.id.clone(),
            running: container.state == cri::ContainerState::ContainerRunning as i32,
            attempt: attempt.or(container.metadata.as_ref().map(|metadata| metadata.attempt)).unwrap_or(0),
        });
    }
    directories
}

async fn bound(kubelet: &Kubelet, dir: &Path, logs: &[Log]) -> io::Result<()> {
    for log in logs.iter().filter(|log| log.running) {
        let path = dir.join(format!("{}.log", log.attempt));
        let Ok(metadata) = std::fs::metadata(&path) else {
            continue;
        };
        if metadata.len() <= kubelet.config.log_limit_bytes() {
            continue;
        }
        let rotated = rotated_name(&path, Timestamp::now());
        std::fs::rename(&path, &rotated)?;
        let request = cri::ReopenContainerLogRequest { container_id: log.id.clone() };
        if let Err(error) = kubelet.runtime.reopen_container_log(request).await {
            // The runtime goes on writing the file under its new name: give the name back.
            std::fs::rename(&rotated, &path)?;
            return Err(io::Error::other(error));
        }
        tracing::debug!(path = %path.display(), "rotated a log");
    }
    sweep(dir, logs, kubelet.config.container_log_max_files as usize)
}

fn rotated_name(path: &Path, now: Timestamp) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", now.strftime("%Y%m%d-%H%M%S")));
    PathBuf::from(name)
}

/// Removes rotated files beyond the bound, and files of starts that the runtime has forgotten.
fn sweep(dir: &Path, logs: &[Log], max_files: usize) -> io::Result<()> {
    let oldest = logs.iter().map(|log| log.attempt).min().unwrap_or(0);
    let mut rotated: BTreeMap<u32, Vec<PathBuf>> = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((attempt, rest)) = name.split_once(".log") else {
            continue;
        };
        let Ok(attempt) = attempt.parse::<u32>() else {
            continue;
        };
        if attempt < oldest {
            std::fs::remove_file(entry.path())?;
        } else if !rest.is_empty() {
            rotated.entry(attempt).or_default().push(entry.path());
        }
    }
    for mut files in rotated.into_values() {
        files.sort();
        // The current file counts too.
        let excess = (files.len() + 1).saturating_sub(max_files);
        files.iter().take(excess).try_for_each(std::fs::remove_file)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_files_go() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "0.log",
            "1.log",
            "2.log",
            "2.log.20260101-000001",
            "2.log.20260101-000002",
            "2.log.20260101-000003",
            "odd",
        ] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let log = |attempt| Log { id: String::new(), running: false, attempt };
        sweep(dir.path(), &[log(2), log(1)], 3).unwrap();
        let mut left: Vec<String> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["1.log", "2.log", "2.log.20260101-000002", "2.log.20260101-000003", "odd"]);
    }
}
