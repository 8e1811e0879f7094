//! Which pods changed on the machine: the runtime's events where it has them, and a relist in any case.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use orlop_cri::v1 as cri;
use orlop_daemon::backoff::Backoff;
use tokio::sync::mpsc;

use crate::Kubelet;
use crate::labels;
use crate::runtime::RuntimeError;

const RELIST_ALONE: Duration = Duration::from_secs(1);
const RELIST_BESIDE_EVENTS: Duration = Duration::from_secs(10);

/// Sends the UID of each pod that changed until the drain starts.
pub(crate) async fn watch(kubelet: Arc<Kubelet>, changed: mpsc::Sender<String>) -> anyhow::Result<()> {
    let drain = kubelet.drain.clone();
    let (evented, mut relist_pace) = tokio::sync::watch::channel(false);
    let events = follow_events(&kubelet, &changed, &evented);
    let relist = async {
        let mut known = HashMap::new();
        loop {
            match relist(&kubelet).await {
                Ok(seen) => {
                    for uid in differences(&known, &seen) {
                        if changed.send(uid).await.is_err() {
                            return;
                        }
                    }
                    known = seen;
                }
                Err(error) => tracing::debug!(%error, "could not list what runs"),
            }
            let pause = if *relist_pace.borrow_and_update() { RELIST_BESIDE_EVENTS } else { RELIST_ALONE };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // Events began or ended: what happened in between is found by a list.
                result = relist_pace.changed() => if result.is_err() { return },
            }
        }
    };
    tokio::select! {
        () = events => {}
        () = relist => {}
        () = drain.wait() => {}
    }
    Ok(())
}

async fn follow_events(
    kubelet: &Kubelet,
    changed: &mpsc::Sender<String>,
    evented: &tokio::sync::watch::Sender<bool>,
) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    loop {
        match kubelet.runtime.container_events().await {
            Ok(mut stream) => {
                evented.send_replace(true);
                backoff.reset();
                loop {
                    match stream.message().await {
                        Ok(Some(event)) => {
                            let Some(uid) = uid_of(&event) else { continue };
                            if changed.send(uid).await.is_err() {
                                return;
                            }
                        }
                        Ok(None) => break,
                        Err(status) => {
                            tracing::debug!(error = status.message(), "the runtime's event stream ended");
                            if status.code() == tonic::Code::Unimplemented {
                                evented.send_if_modified(|on| std::mem::replace(on, false));
                                // Lists do all the work with this runtime.
                                std::future::pending::<()>().await;
                            }
                            break;
                        }
                    }
                }
            }
            Err(error) if error.code == tonic::Code::Unimplemented => std::future::pending::<()>().await,
            Err(error) => tracing::debug!(%error, "could not follow the runtime's events"),
        }
        evented.send_if_modified(|on| std::mem::replace(on, false));
        tokio::time::sleep(backoff.pause()).await;
    }
}

fn uid_of(event: &cri::ContainerEventResponse) -> Option<String> {
    let metadata = event.pod_sandbox_status.as_ref()?.metadata.as_ref()?;
    Some(metadata.uid.clone()).filter(|uid| !uid.is_empty())
}

/// Container and sandbox states by pod UID.
pub(crate) type Seen = HashMap<String, BTreeSet<(String, i32)>>;

/// What runs now.
pub(crate) async fn relist(kubelet: &Kubelet) -> Result<Seen, RuntimeError> {
    let sandboxes = kubelet.runtime.list_pod_sandbox(cri::ListPodSandboxRequest::default());
    let containers = kubelet.runtime.list_containers(cri::ListContainersRequest::default());
    let (sandboxes, containers) = tokio::try_join!(sandboxes, containers)?;
    let ready = cri::PodSandboxState::SandboxReady as i32;
    let running = cri::ContainerState::ContainerRunning as i32;
    let pods = sandboxes.items.iter().filter(|sandbox| sandbox.state == ready).count();
    let alive = containers.containers.iter().filter(|container| container.state == running).count();
    kubelet.metrics.running_pods.set(i64::try_from(pods).unwrap_or(i64::MAX));
    kubelet.metrics.running_containers.set(i64::try_from(alive).unwrap_or(i64::MAX));
    let mut seen = Seen::new();
    for sandbox in sandboxes.items {
        // Sandboxes without the label were made by others (crictl) and are not ours to manage.
        if let Some(uid) = sandbox.labels.get(labels::POD_UID) {
            seen.entry(uid.clone()).or_default().insert((sandbox.id, sandbox.state));
        }
    }
    for container in containers.containers {
        if let Some(uid) = container.labels.get(labels::POD_UID) {
            seen.entry(uid.clone()).or_default().insert((container.id, container.state));
        }
    }
    Ok(seen)
}

fn differences(old: &Seen, new: &Seen) -> Vec<String> {
    let changed =
        new.iter().filter(|(uid, states)| old.get(*uid) != Some(states)).map(|(uid, _)| uid.clone());
    let vanished = old.keys().filter(|uid| !new.contains_key(*uid)).cloned();
    changed.chain(vanished).collect()
}
