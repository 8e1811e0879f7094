//! The worker of one pod: observe, plan, apply, report, sleep until something happens.
//!
//! ```text
//!   Running --deleted, gone, rejected, deadline, all ended--> Stopping --nothing lives--> Stopped --object gone--> (end)
//! ```
//! Nothing here waits long: pulls, hooks, stops and status writes run beside the worker and come back as [`Done`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;
use orlop_cri::v1 as cri;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::model::{self, Failure, Memory, Observed, State, Step, Waiting};
use super::observe::{Observer, Places};
use super::operations::{self, Done};
use super::plan::{self, Action};
use super::status::Verdict;
use crate::Kubelet;
use crate::events::Kind;
use crate::probe::Probes;

/// Plans applied in a row before the worker looks at its inbox again.
const ROUNDS: usize = 16;
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_CAP: Duration = Duration::from_secs(10);

/// What a worker is told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Desired {
    /// The newest object; the last one known after it is gone; none for a pod that only the runtime knows.
    pub(crate) pod: Option<Arc<core::Pod>>,
    /// The object is gone from the API.
    pub(crate) gone: bool,
    /// Why the pod was not taken.
    pub(crate) rejected: Option<Verdict>,
}

/// Where a pod stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Running,
    Stopping,
    Stopped,
}

/// Doubling pauses of one kind of retry.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Retry {
    pause: Duration,
    pub(crate) at: Option<Timestamp>,
}

impl Retry {
    pub(super) fn failed(&mut self, now: Timestamp) {
        self.pause = if self.pause.is_zero() { RETRY_FIRST } else { (self.pause * 2).min(RETRY_CAP) };
        self.at = Some(now + SignedDuration::try_from(self.pause).unwrap_or(SignedDuration::MAX));
    }

    pub(super) fn is_waiting(&self, now: Timestamp) -> bool {
        self.at.is_some_and(|at| at > now)
    }
}

pub(crate) struct Worker {
    pub(crate) kubelet: Arc<Kubelet>,
    pub(crate) uid: String,
    pub(super) inbox: watch::Receiver<Desired>,
    pub(super) wake: Arc<Notify>,
    pub(crate) pod: Option<Arc<core::Pod>>,
    pub(crate) gone: bool,
    pub(crate) stage: Stage,
    pub(crate) memory: Memory,
    pub(crate) observed: Observed,
    pub(super) observer: Observer,
    pub(crate) operations: JoinSet<Done>,
    pub(super) probes: Probes,
    pub(crate) verdict: Option<Verdict>,
    pub(crate) waiting: BTreeMap<String, Waiting>,
    /// The status at the API as far as known.
    pub(super) sent: core::PodStatus,
    pub(super) written_version: Option<u64>,
    pub(super) writing: bool,
    pub(super) status_retry: Option<Timestamp>,
    /// The pod ended before this worker began: its status is history and is not computed again.
    pub(super) frozen: bool,
    pub(crate) stopping_since: Option<Timestamp>,
    pub(crate) deleted: bool,
    pub(crate) released: bool,
    /// The last status, computed while the runtime still knew the containers.
    pub(crate) final_status: Option<Box<core::PodStatus>>,
    pub(super) volumes_ready: bool,
    pub(super) refresh_at: Option<Timestamp>,
    pub(crate) cgroup_ready: bool,
    pub(crate) retry: Retry,
    pub(crate) pulled: BTreeMap<String, String>,
    pub(crate) pull_steps: BTreeMap<String, Step>,
    pub(crate) sandbox_config: Option<cri::PodSandboxConfig>,
}

impl Worker {
    pub(crate) fn new(
        kubelet: Arc<Kubelet>,
        uid: String,
        inbox: watch::Receiver<Desired>,
        wake: Arc<Notify>,
    ) -> Self {
        let probes = Probes::new(kubelet.clone(), wake.clone());
        Self {
            kubelet,
            uid,
            inbox,
            wake,
            pod: None,
            gone: false,
            stage: Stage::Running,
            memory: Memory::default(),
            observed: Observed::default(),
            observer: Observer::default(),
            operations: JoinSet::new(),
            probes,
            verdict: None,
            waiting: BTreeMap::new(),
            sent: core::PodStatus::default(),
            written_version: None,
            writing: false,
            status_retry: None,
            frozen: false,
            stopping_since: None,
            deleted: false,
            released: false,
            final_status: None,
            volumes_ready: false,
            refresh_at: None,
            cgroup_ready: false,
            retry: Retry::default(),
            pulled: BTreeMap::new(),
            pull_steps: BTreeMap::new(),
            sandbox_config: None,
        }
    }

    /// Runs until the pod is gone from the API and from the machine, or the drain starts.
    pub(crate) async fn run(mut self) {
        let drain = self.kubelet.drain.clone();
        loop {
            self.take_in();
            let Some(wake_at) = self.step().await else { return };
            let pause = wake_at
                .map(|at| at.duration_since(Timestamp::now()))
                .and_then(|pause| Duration::try_from(pause).ok());
            let pause = if wake_at.is_some() { pause.unwrap_or_default() } else { Duration::from_secs(3600) };
            tokio::select! {
                changed = self.inbox.changed() => if changed.is_err() { return },
                () = self.wake.notified() => {}
                Some(done) = self.operations.join_next() => self.take_done(done),
                () = tokio::time::sleep(pause) => {}
                () = drain.wait() => return,
            }
            while let Some(done) = self.operations.try_join_next() {
                self.take_done(done);
            }
        }
    }

    fn take_in(&mut self) {
        let desired = self.inbox.borrow_and_update().clone();
        self.gone = desired.gone;
        if self.verdict.is_none() && desired.rejected.is_some() {
            self.verdict = desired.rejected;
        }
        let Some(pod) = desired.pod else { return };
        let first = self.pod.is_none();
        if first && model::is_terminal(pod.status.as_ref()) {
            self.frozen = true;
        }
        let version = pod.metadata.resource_version.as_ref().and_then(|version| version.parse::<u64>().ok());
        let stale = self.written_version.zip(version).is_some_and(|(written, seen)| seen < written);
        if !self.writing && !stale && !self.gone {
            self.sent = pod.status.clone().unwrap_or_default();
        }
        if !first
            && self.pod.as_ref().is_some_and(|old| {
                old.metadata.labels != pod.metadata.labels
                    || old.metadata.annotations != pod.metadata.annotations
            })
        {
            // Downward API volumes follow labels and annotations.
            self.refresh_at = Some(Timestamp::now());
        }
        self.pod = Some(pod);
    }

    fn take_done(&mut self, done: Result<Done, tokio::task::JoinError>) {
        let done = match done {
            Ok(done) => done,
            Err(error) => {
                tracing::error!(uid = self.uid, %error, "an operation was cut off");
                return;
            }
        };
        match done {
            Done::Pulled { name, result } => self.pull_ended(&name, result),
            Done::Hooked { id, name, result } => {
                self.memory.hooks.remove(&id);
                if let Err(error) = result {
                    self.hook_failed(&id, &name, &error);
                }
            }
            Done::Stopped { id, result } => {
                if let Err(error) = result {
                    tracing::warn!(uid = self.uid, container = id, error, "could not stop a container");
                    self.memory.stopping.remove(&id);
                    self.retry.failed(Timestamp::now());
                }
            }
            Done::Written { status, result } => {
                self.writing = false;
                match result {
                    Ok(version) => {
                        self.sent = *status;
                        self.written_version =
                            version.and_then(|version| version.parse().ok()).or(self.written_version);
                        self.status_retry = None;
                    }
                    Err(error) => {
                        tracing::warn!(uid = self.uid, error, "could not write a pod status");
                        self.status_retry = Some(Timestamp::now() + SignedDuration::from_secs(1));
                    }
                }
            }
        }
    }

    fn hook_failed(&mut self, id: &str, name: &str, error: &str) {
        let Some(pod) = self.pod.clone() else { return };
        self.kubelet.events.container(
            &pod,
            name,
            Kind::Warning,
            "FailedPostStartHook",
            // Never the hook's output: it may hold secrets, and more people read events than pods (as upstream).
            "PostStartHook failed",
        );
        self.fail_start(&pod, name, "PostStartHookError", format!("PostStartHook failed: {error}"));
        self.stop_container(id, model::grace_seconds(&pod), "FailedPostStartHook".to_owned());
    }

    /// Whether and why the pod must end.
    fn must_stop(&mut self, now: Timestamp) -> bool {
        let Some(pod) = &self.pod else { return true };
        if self.gone || pod.metadata.deletion_timestamp.is_some() || self.verdict.is_some() || self.frozen {
            return true;
        }
        let started = self.sent.start_time.as_ref().map(|time| time.0);
        if plan::deadline(pod, started).is_some_and(|deadline| deadline <= now) {
            let message = "Pod was active on the node longer than the specified deadline".to_owned();
            self.kubelet.events.pod(pod, None, Kind::Normal, "DeadlineExceeded", message.clone());
            self.verdict = Some(Verdict { rejected: false, reason: "DeadlineExceeded".to_owned(), message });
            return true;
        }
        false
    }

    /// One pass; `None` when the worker is done for good.
    async fn step(&mut self) -> Option<Option<Timestamp>> {
        for _ in 0..ROUNDS {
            let now = Timestamp::now();
            let places = self.places();
            match self.observer.observe(&self.kubelet.runtime, &self.uid, &places).await {
                Ok(observed) => self.observed = observed,
                Err(error) => {
                    tracing::warn!(uid = self.uid, call = error.call, %error, "could not observe a pod");
                    self.retry.failed(now);
                    return Some(self.retry.at);
                }
            }
            self.forget_ended();
            self.memory.probes = self.probes.view();
            if self.stage == Stage::Running && self.must_stop(now) {
                self.stage = Stage::Stopping;
            }
            let turn = match self.stage {
                Stage::Running => self.turn_running(now).await,
                Stage::Stopping => self.turn_stopping(now).await,
                Stage::Stopped => self.turn_stopped(now).await?,
            };
            match turn {
                Turn::Again => {}
                Turn::Sleep(wake_at) => return Some(earliest([wake_at, self.status_retry])),
            }
        }
        Some(Some(Timestamp::now() + SignedDuration::from_millis(100)))
    }

    pub(crate) fn places(&self) -> Places {
        Places { pod_dir: self.kubelet.volumes.pod_dir(&self.uid), log_dir: self.log_dir() }
    }

    pub(crate) fn log_dir(&self) -> std::path::PathBuf {
        let logs = &self.kubelet.config.pod_logs_dir;
        match &self.pod {
            Some(pod) => logs.join(crate::container::config::log_directory(pod)),
            None => logs.join(format!("unknown_unknown_{}", self.uid)),
        }
    }

    /// Drops what was remembered of containers that ended.
    fn forget_ended(&mut self) {
        let alive: Vec<&str> = self.observed.alive().map(|container| container.id.as_str()).collect();
        self.memory.stopping.retain(|id, _| alive.contains(&id.as_str()));
        self.memory.hooks.retain(|id| alive.contains(&id.as_str()));
    }

    async fn turn_running(&mut self, now: Timestamp) -> Turn {
        let Some(pod) = self.pod.clone() else {
            return Turn::Sleep(None);
        };
        let next_show = self.show_back_offs(now);
        if self.sent.start_time.is_none() {
            self.publish(false, now);
        }
        self.probes.sync(&pod, &self.observed);
        self.memory.probes = self.probes.view();
        let round = plan::plan(&pod, &self.observed, &self.memory, now);
        self.report_crashes(&pod, &round.waiting);
        self.waiting = round.waiting;
        let mut progress = false;
        let mut blocked = None;
        if !round.actions.is_empty() {
            if self.retry.is_waiting(now) {
                blocked = self.retry.at;
            } else {
                for action in round.actions {
                    match self.apply(&pod, action).await {
                        Ok(changed) => progress |= changed,
                        Err(()) => {
                            self.retry.failed(Timestamp::now());
                            blocked = self.retry.at;
                            break;
                        }
                    }
                }
            }
        }
        if progress {
            return Turn::Again;
        }
        if blocked.is_none() {
            self.retry = Retry::default();
        }
        self.refresh_volumes(&pod, now).await;
        let status = self.publish(false, now);
        if model::is_terminal(Some(&status)) {
            self.stage = Stage::Stopping;
            return Turn::Again;
        }
        let started = self.sent.start_time.as_ref().map(|time| time.0);
        Turn::Sleep(earliest([
            round.wake_at,
            blocked,
            next_show,
            plan::deadline(&pod, started),
            self.refresh_at,
        ]))
    }

    fn report_crashes(&self, pod: &core::Pod, waiting: &BTreeMap<String, Waiting>) {
        for (name, waiting) in waiting.iter().filter(|(_, waiting)| waiting.reason == "CrashLoopBackOff") {
            if self.waiting.get(name).is_none_or(|before| before != waiting) {
                let message =
                    format!("Back-off restarting failed container {name} in pod {}", model::full_name(pod));
                self.kubelet.events.container(pod, name, Kind::Warning, "BackOff", message);
            }
        }
    }

    /// Applies one action. `Ok(true)` when the machine changed and must be looked at again; `Err` when to try later.
    async fn apply(&mut self, pod: &Arc<core::Pod>, action: Action) -> Result<bool, ()> {
        match action {
            Action::StopSandbox { id } => self.stop_sandbox(&id).await.map(|()| true),
            Action::CreateSandbox { attempt } => self.create_sandbox(pod, attempt).await,
            Action::Start { name, attempt, crashed } => {
                self.start_container(pod, &name, attempt, crashed).await
            }
            Action::Stop { id, grace_seconds, message, .. } => {
                self.stop_container(&id, grace_seconds, message);
                Ok(false)
            }
            Action::Remove { id } => {
                self.kubelet.runtime.delete_container(&id).await.map(|()| false).map_err(|error| {
                    tracing::warn!(uid = self.uid, container = id, %error, "could not remove a container");
                })
            }
            Action::RemoveSandbox { id } => {
                self.kubelet.runtime.remove_sandbox(&id).await.map(|()| false).map_err(|error| {
                    tracing::warn!(uid = self.uid, sandbox = id, %error, "could not remove a sandbox");
                })
            }
        }
    }

    pub(crate) async fn stop_sandbox(&mut self, id: &str) -> Result<(), ()> {
        self.kubelet.runtime.stop_sandbox(id).await.map_err(|error| {
            tracing::warn!(uid = self.uid, sandbox = id, %error, "could not stop a sandbox");
        })
    }

    /// Stops a container beside the worker.
    pub(crate) fn stop_container(&mut self, id: &str, grace_seconds: i64, message: String) {
        let Some(container) = self.observed.containers.iter().find(|container| container.id == id).cloned()
        else {
            return;
        };
        let deadline = Timestamp::now().as_second().saturating_add(grace_seconds);
        self.memory.stopping.insert(id.to_owned(), deadline);
        let grace = Duration::from_secs(u64::try_from(grace_seconds).unwrap_or(0));
        let address = self.address();
        let stop =
            operations::stop(self.kubelet.clone(), self.pod.clone(), container, address, grace, message);
        self.operations.spawn(stop);
    }

    /// The pod's first address.
    pub(crate) fn address(&self) -> String {
        let host_network = self.pod.as_ref().is_some_and(|pod| model::host_network(pod));
        if host_network {
            return self.kubelet.config.node_ip.clone();
        }
        self.observed.ready_sandbox().and_then(|sandbox| sandbox.ips.first().cloned()).unwrap_or_default()
    }

    pub(crate) fn pod_ips(&self) -> Vec<String> {
        if self.pod.as_ref().is_some_and(|pod| model::host_network(pod)) {
            return vec![self.kubelet.config.node_ip.clone()];
        }
        self.observed.ready_sandbox().map(|sandbox| sandbox.ips.clone()).unwrap_or_default()
    }

    /// Remembers that a start failed; tried again after a pause that doubles.
    pub(crate) fn fail_start(&mut self, pod: &core::Pod, name: &str, reason: &str, message: String) {
        let now = Timestamp::now();
        let before = self.memory.failures.get(name).map(|failure| failure.step.pause);
        let pause = before.map_or(Duration::from_secs(1), |pause| (pause * 2).min(RETRY_CAP));
        let shown = match reason {
            "PostStartHookError" => None,
            "ErrImageNeverPull" | "InvalidImageName" | "ImageInspectError" => Some(reason),
            _ => Some(message.as_str()),
        };
        if let Some(shown) = shown {
            self.kubelet.events.container(pod, name, Kind::Warning, "Failed", format!("Error: {shown}"));
        }
        let retry_at = now + SignedDuration::try_from(pause).unwrap_or(SignedDuration::MAX);
        let failure = Failure {
            waiting: Waiting { reason: reason.to_owned(), message },
            retry_at,
            step: Step { pause, updated: now },
        };
        self.waiting.insert(name.to_owned(), failure.waiting.clone());
        self.memory.failures.insert(name.to_owned(), failure);
    }

    pub(crate) fn end_probes(&mut self) {
        self.probes.clear();
    }

    pub(crate) fn keep_probes(&mut self) {
        if let Some(pod) = &self.pod {
            self.probes.sync(pod, &self.observed);
        }
    }

    /// Whether a container of the pod is running.
    pub(crate) fn is_alive(&self) -> bool {
        self.observed
            .containers
            .iter()
            .any(|container| matches!(container.state, State::Running | State::Unknown))
    }
}

/// What a turn of the worker leads to.
pub(crate) enum Turn {
    /// Look again at once.
    Again,
    /// Wait for something, at most until then.
    Sleep(Option<Timestamp>),
}

pub(crate) fn earliest<const N: usize>(times: [Option<Timestamp>; N]) -> Option<Timestamp> {
    times.into_iter().flatten().min()
}
