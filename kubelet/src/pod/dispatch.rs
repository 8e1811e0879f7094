//! The dispatcher: one worker per pod UID. It admits pods, passes on what changed, and finds what nobody wants any more.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use k8s_openapi::api::core::v1 as core;
use kube::Api;
use orlop_kube::{Informer, Key};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tracing::Instrument as _;

use super::admission::{self, Offer};
use super::status::Verdict;
use super::worker::{Desired, Worker};
use super::{model, pleg};
use crate::Kubelet;
use crate::volume::blocking;

const HOUSEKEEPING: Duration = Duration::from_secs(30);

struct Handle {
    key: Option<Key>,
    inbox: watch::Sender<Desired>,
    wake: Arc<Notify>,
}

struct Dispatcher {
    kubelet: Arc<Kubelet>,
    pods: Informer<core::Pod>,
    workers: HashMap<String, Handle>,
    tasks: JoinSet<Result<String, String>>,
}

/// Runs until the drain starts.
pub(crate) async fn run(
    kubelet: Arc<Kubelet>,
    pods: Informer<core::Pod>,
    mut changed: mpsc::Receiver<String>,
) -> anyhow::Result<()> {
    let drain = kubelet.drain.clone();
    let mut health = kubelet.health.clone();
    tokio::select! {
        () = pods.synced() => {}
        () = drain.wait() => return Ok(()),
    }
    let subscription = pods.subscribe();
    let mut dispatcher = Dispatcher { kubelet, pods, workers: HashMap::new(), tasks: JoinSet::new() };
    let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
    housekeeping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = drain.wait() => break,
            keys = subscription.changed() => dispatcher.pods_changed(keys).await,
            Some(uid) = changed.recv() => dispatcher.machine_changed(&uid),
            Some(ended) = dispatcher.tasks.join_next() => dispatcher.worker_ended(ended)?,
            result = health.changed() => if result.is_ok() { dispatcher.wake_all() },
            _ = housekeeping.tick() => dispatcher.keep_house().await,
        }
    }
    // Workers watch the drain too; none is cut off in the middle of a step.
    while dispatcher.tasks.join_next().await.is_some() {}
    Ok(())
}

impl Dispatcher {
    async fn pods_changed(&mut self, keys: BTreeSet<Key>) {
        let mut fresh: Vec<(Key, Arc<core::Pod>)> = Vec::new();
        for key in keys {
            let pod = self.pods.get(&key);
            let uid = pod.as_ref().map(|pod| model::uid(pod).to_owned());
            for (known, handle) in &self.workers {
                if handle.key.as_ref() == Some(&key) && Some(known) != uid.as_ref() {
                    handle.inbox.send_modify(|desired| desired.gone = true);
                }
            }
            let (Some(pod), Some(uid)) = (pod, uid) else {
                continue;
            };
            match self.workers.get_mut(&uid) {
                Some(handle) => {
                    handle.key = Some(key);
                    handle.inbox.send_modify(|desired| {
                        desired.pod = Some(pod);
                        desired.gone = false;
                    });
                }
                None => fresh.push((key, pod)),
            }
        }
        // After a restart the oldest pods are taken first, as they were taken before.
        fresh.sort_by(|(_, one), (_, other)| {
            one.metadata.creation_timestamp.cmp(&other.metadata.creation_timestamp)
        });
        for (key, pod) in fresh {
            let rejected = self.admit(&pod).await;
            let uid = model::uid(&pod).to_owned();
            self.spawn(uid, Some(key), Desired { pod: Some(pod), gone: false, rejected });
        }
    }

    /// The verdict over a pod seen for the first time; pods that already ran here are not judged again.
    async fn admit(&self, pod: &core::Pod) -> Option<Verdict> {
        let started = pod.status.as_ref().is_some_and(|status| status.start_time.is_some());
        if started || pod.metadata.deletion_timestamp.is_some() || model::is_terminal(pod.status.as_ref()) {
            return None;
        }
        let others: Vec<Arc<core::Pod>> = self
            .workers
            .values()
            .filter_map(|handle| {
                let desired = handle.inbox.borrow();
                let taken = desired.rejected.is_none().then(|| desired.pod.clone()).flatten()?;
                let ended = handle
                    .key
                    .as_ref()
                    .and_then(|key| self.pods.get(key))
                    .is_some_and(|pod| model::is_terminal(pod.status.as_ref()));
                (!ended).then_some(taken)
            })
            .collect();
        let others: Vec<&core::Pod> = others.iter().map(Arc::as_ref).collect();
        let mut offer = Offer {
            allocatable: self.kubelet.allocatable.clone(),
            labels: self.kubelet.node_labels(),
            allowed_sysctls: self.kubelet.config.allowed_unsafe_sysctls.clone(),
        };
        let mut verdict = admission::admit(pod, &others, &offer).err()?;
        if verdict.reason == "NodeAffinity" {
            // The label may be younger than our copy of the Node.
            let nodes = Api::<core::Node>::all(self.kubelet.client.clone());
            if let Ok(node) = nodes.get(&self.kubelet.config.node_name).await {
                self.kubelet.set_node(node);
                offer.labels = self.kubelet.node_labels();
                verdict = admission::admit(pod, &others, &offer).err()?;
            }
        }
        self.kubelet.events.pod(
            pod,
            None,
            crate::events::Kind::Warning,
            &verdict.reason,
            verdict.message.trim_start_matches("Pod was rejected: "),
        );
        Some(verdict)
    }

    fn spawn(&mut self, uid: String, key: Option<Key>, desired: Desired) {
        let (inbox, receiver) = watch::channel(desired);
        let wake = Arc::new(Notify::new());
        let worker = Worker::new(self.kubelet.clone(), uid.clone(), receiver, wake.clone());
        let span = tracing::info_span!("pod", key = key.as_ref().map(ToString::to_string));
        let id = uid.clone();
        self.tasks.spawn(
            async move {
                match std::panic::AssertUnwindSafe(worker.run()).catch_unwind().await {
                    Ok(()) => Ok(id),
                    Err(_) => Err(id),
                }
            }
            .instrument(span),
        );
        self.workers.insert(uid, Handle { key, inbox, wake });
    }

    fn worker_ended(
        &mut self,
        ended: Result<Result<String, String>, tokio::task::JoinError>,
    ) -> anyhow::Result<()> {
        match ended {
            Ok(Ok(uid)) => {
                self.workers.remove(&uid);
                Ok(())
            }
            // A restart of the process plans everything anew; a worker that panics again and again must be seen.
            Ok(Err(uid)) => Err(anyhow::anyhow!("the worker of pod {uid} panicked")),
            Err(error) => Err(error.into()),
        }
    }

    fn machine_changed(&self, uid: &str) {
        if let Some(handle) = self.workers.get(uid) {
            handle.wake.notify_one();
        }
    }

    fn wake_all(&self) {
        self.workers.values().for_each(|handle| handle.wake.notify_one());
    }

    /// Ends pods that nobody wants any more, and removes what crashes left behind.
    async fn keep_house(&mut self) {
        let wanted: BTreeSet<String> = self.pods.with(|pods| {
            pods.values().map(|pod| model::uid(pod).to_owned()).chain(self.workers.keys().cloned()).collect()
        });
        let seen = match pleg::relist(&self.kubelet).await {
            Ok(seen) => seen,
            // Without the runtime's word nothing is known to be unwanted.
            Err(_) => return,
        };
        for uid in seen.keys().filter(|uid| !wanted.contains(*uid)) {
            tracing::info!(uid, "a pod runs that is not in the API, stopping it");
            self.spawn(uid.clone(), None, Desired { gone: true, ..Desired::default() });
        }
        let kubelet = self.kubelet.clone();
        let mut kept = wanted;
        kept.extend(seen.into_keys());
        let result = blocking(move || {
            sweep(&kubelet, &kept);
            Ok(())
        });
        let _ = result.await;
    }
}

/// Directories, logs and cgroups of pods that are neither wanted nor running.
fn sweep(kubelet: &Kubelet, kept: &BTreeSet<String>) {
    let mut orphans: BTreeSet<String> = kubelet.volumes.known_uids().into_iter().collect();
    orphans.extend(kubelet.cgroups.known_uids());
    for uid in orphans.iter().filter(|uid| !kept.contains(*uid)) {
        tracing::info!(uid, "removing what is left of a pod");
        if let Err(error) = kubelet.volumes.tear_down_now(uid) {
            tracing::warn!(uid, %error, "could not remove a pod's directory");
        }
        if let Err(error) = kubelet.cgroups.remove_pod(uid) {
            tracing::warn!(uid, %error, "could not remove a pod's cgroup");
        }
    }
    for entry in std::fs::read_dir(&kubelet.config.pod_logs_dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((_, uid)) = name.rsplit_once('_') else {
            continue;
        };
        if !kept.contains(uid)
            && let Err(error) = std::fs::remove_dir_all(entry.path())
        {
            tracing::warn!(uid, %error, "could not remove a pod's logs");
        }
    }
}
