//! Observation of one pod over CRI.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use orlop_cri::v1 as cri;

use super::model::{Container, Observed, Sandbox, State};
use crate::labels;
use crate::runtime::{Runtime, RuntimeError};

/// Longest termination message (upstream: MaxContainerTerminationMessageLength).
const MESSAGE_LIMIT_BYTES: usize = 4096;
/// Longest one taken from the log (upstream: MaxContainerTerminationMessageLogLength).
const LOG_MESSAGE_LIMIT_BYTES: usize = 2048;
const LOG_MESSAGE_LIMIT_LINES: usize = 80;

/// Where a pod's files are.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// `ROOT/pods/UID`.
    pub(crate) pod_dir: PathBuf,
    /// `LOGS/NS_NAME_UID`.
    pub(crate) log_dir: PathBuf,
}

impl Places {
    /// The file behind a container's termination message path.
    pub(crate) fn message_file(&self, container: &str, attempt: u32) -> PathBuf {
        self.pod_dir.join("containers").join(container).join(attempt.to_string())
    }
}

/// Observes one pod; keeps what cannot change any more.
#[derive(Default)]
pub(crate) struct Observer {
    /// Ended containers by id.
    ended: HashMap<String, Container>,
    /// Addresses by sandbox id.
    addresses: BTreeMap<String, Vec<String>>,
}

fn by_uid(uid: &str) -> HashMap<String, String> {
    HashMap::from([(labels::POD_UID.to_owned(), uid.to_owned())])
}

impl Observer {
    /// One look.
    pub(crate) async fn observe(
        &mut self,
        runtime: &Runtime,
        uid: &str,
        places: &Places,
    ) -> Result<Observed, RuntimeError> {
        let sandboxes = runtime.list_pod_sandbox(cri::ListPodSandboxRequest {
            filter: Some(cri::PodSandboxFilter { label_selector: by_uid(uid), ..Default::default() }),
        });
        let containers = runtime.list_containers(cri::ListContainersRequest {
            filter: Some(cri::ContainerFilter { label_selector: by_uid(uid), ..Default::default() }),
        });
        let (sandboxes, containers) = tokio::try_join!(sandboxes, containers)?;
        let mut observed = Observed::default();
        for sandbox in sandboxes.items {
            observed.sandboxes.push(self.sandbox(runtime, sandbox).await?);
        }
        observed.sandboxes.sort_by_key(|sandbox| std::cmp::Reverse((sandbox.attempt, sandbox.created_at)));
        let ids: Vec<&cri::Container> = containers.containers.iter().collect();
        self.ended.retain(|id, _| ids.iter().any(|container| container.id == *id));
        let statuses =
            ids.iter().filter(|container| !self.ended.contains_key(&container.id)).map(|container| async {
                let request =
                    cri::ContainerStatusRequest { container_id: container.id.clone(), verbose: false };
                match runtime.container_status(request).await {
                    Ok(answer) => {
                        Ok(answer.status.map(|status| convert(status, &container.pod_sandbox_id, places)))
                    }
                    // Removed since the list was made.
                    Err(error) if error.is_not_found() => Ok(None),
                    Err(error) => Err(error),
                }
            });
        let fresh = futures::future::try_join_all(statuses).await?;
        observed.containers.extend(self.ended.values().cloned());
        for container in fresh.into_iter().flatten() {
            if container.state == State::Exited {
                self.ended.insert(container.id.clone(), container.clone());
            }
            observed.containers.push(container);
        }
        observed
            .containers
            .sort_by_key(|container| std::cmp::Reverse((container.attempt, container.created_at)));
        Ok(observed)
    }

    async fn sandbox(
        &mut self,
        runtime: &Runtime,
        sandbox: cri::PodSandbox,
    ) -> Result<Sandbox, RuntimeError> {
        let ready = sandbox.state == cri::PodSandboxState::SandboxReady as i32;
        if ready && !self.addresses.contains_key(&sandbox.id) {
            let request = cri::PodSandboxStatusRequest { pod_sandbox_id: sandbox.id.clone(), verbose: false };
            let status = match runtime.pod_sandbox_status(request).await {
                Ok(answer) => answer.status.unwrap_or_default(),
                Err(error) if error.is_not_found() => cri::PodSandboxStatus::default(),
                Err(error) => return Err(error),
            };
            let network = status.network.unwrap_or_default();
            let more = network.additional_ips.into_iter().map(|ip| ip.ip);
            let ips: Vec<String> =
                std::iter::once(network.ip).chain(more).filter(|ip| !ip.is_empty()).collect();
            if !ips.is_empty() {
                self.addresses.insert(sandbox.id.clone(), ips);
            }
        }
        Ok(Sandbox {
            // Also of one that has stopped: a pod may end before its first status is written.
            ips: self.addresses.get(&sandbox.id).cloned().unwrap_or_default(),
            attempt: sandbox.metadata.map_or(0, |metadata| metadata.attempt),
            ready,
            created_at: sandbox.created_at,
            id: sandbox.id,
        })
    }
}

fn convert(status: cri::ContainerStatus, sandbox_id: &str, places: &Places) -> Container {
    let state = match cri::ContainerState::try_from(status.state) {
        Ok(cri::ContainerState::ContainerCreated) => State::Created,
        Ok(cri::ContainerState::ContainerRunning) => State::Running,
        Ok(cri::ContainerState::ContainerExited) => State::Exited,
        _ => State::Unknown,
    };
    let metadata = status.metadata.clone().unwrap_or_default();
    let annotation = |key: &str| status.annotations.get(key).cloned().unwrap_or_default();
    let message =
        if state == State::Exited { termination_message(&status, &metadata, places) } else { String::new() };
    Container {
        attempt: annotation(labels::RESTART_COUNT).parse().unwrap_or(metadata.attempt),
        hash: annotation(labels::HASH),
        grace_seconds: annotation(labels::POD_GRACE).parse().ok(),
        name: metadata.name,
        sandbox_id: sandbox_id.to_owned(),
        state,
        created_at: status.created_at,
        started_at: status.started_at,
        finished_at: status.finished_at,
        exit_code: status.exit_code,
        image: status
            .image
            .map(|image| {
                // As upstream, the runtime's full name; an id is no name.
                let named = !image.image.is_empty() && !image.image.starts_with("sha256:");
                if named { image.image } else { image.user_specified_image }
            })
            .unwrap_or_default(),
        image_ref: status.image_ref,
        reason: status.reason,
        message,
        id: status.id,
    }
}

fn termination_message(
    status: &cri::ContainerStatus,
    metadata: &cri::ContainerMetadata,
    places: &Places,
) -> String {
    let attempt = status
        .annotations
        .get(labels::RESTART_COUNT)
        .and_then(|text| text.parse().ok())
        .unwrap_or(metadata.attempt);
    let mut message = read_bounded(&places.message_file(&metadata.name, attempt), MESSAGE_LIMIT_BYTES);
    let from_logs = status
        .annotations
        .get(labels::MESSAGE_POLICY)
        .is_some_and(|policy| policy == "FallbackToLogsOnError");
    if message.is_empty() && from_logs && status.exit_code != 0 {
        let log = if status.log_path.is_empty() {
            places.log_dir.join(&metadata.name).join(format!("{attempt}.log"))
        } else {
            PathBuf::from(&status.log_path)
        };
        message = crate::logs::tail_text(&log, LOG_MESSAGE_LIMIT_LINES, LOG_MESSAGE_LIMIT_BYTES);
    }
    if message.is_empty() { status.message.clone() } else { message }
}

/// The last `limit` bytes of a file, as text.
fn read_bounded(path: &Path, limit: usize) -> String {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let Ok(mut file) = std::fs::File::open(path) else {
        return String::new();
    };
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    if length > limit as u64 && file.seek(SeekFrom::End(-(i64::try_from(limit).unwrap_or(0)))).is_err() {
        return String::new();
    }
    let mut bytes = Vec::new();
    let _ = file.take(limit as u64).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}
