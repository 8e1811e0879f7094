//! Probes: one task per container and probe; the worker reads a snapshot and is woken when it changes.

pub(crate) mod check;
mod grpc;
pub(crate) mod http;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::Kubelet;
use crate::events::Kind as EventKind;
use crate::pod::model::{self, Container, Observed, ProbeView, Role, State};

/// The three kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Startup => "startup",
            Self::Liveness => "liveness",
            Self::Readiness => "readiness",
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

/// The probes of one pod. Dropping it ends them.
pub(crate) struct Probes {
    kubelet: Arc<Kubelet>,
    wake: Arc<Notify>,
    view: Arc<Mutex<ProbeView>>,
    tasks: HashMap<(String, Kind), AbortHandle>,
}

struct Probe {
    kubelet: Arc<Kubelet>,
    wake: Arc<Notify>,
    view: Arc<Mutex<ProbeView>>,
    pod: Arc<core::Pod>,
    container: Container,
    kind: Kind,
    spec: core::Probe,
    address: String,
}

impl Probes {
    pub(crate) fn new(kubelet: Arc<Kubelet>, wake: Arc<Notify>) -> Self {
        Self { kubelet, wake, view: Arc::default(), tasks: HashMap::new() }
    }

    /// The results so far.
    pub(crate) fn view(&self) -> ProbeView {
        self.view.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts the probes of running containers, ends those of others.
    pub(crate) fn sync(&mut self, pod: &Arc<core::Pod>, observed: &Observed) {
        let alive: Vec<&Container> =
            observed.containers.iter().filter(|container| container.state == State::Running).collect();
        self.tasks.retain(|(id, _), task| {
            let keep = alive.iter().any(|container| container.id == *id);
            if !keep {
                task.abort();
            }
            keep
        });
        {
            let mut view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
            let is_alive = |id: &String| alive.iter().any(|container| container.id == *id);
            view.ready.retain(is_alive);
            view.started.retain(is_alive);
            view.failed.retain(|id, _| is_alive(id));
        }
        let address = if model::host_network(pod) {
            self.kubelet.config.node_ip.clone()
        } else {
            observed.ready_sandbox().and_then(|sandbox| sandbox.ips.first().cloned()).unwrap_or_default()
        };
        for container in alive {
            let Some((role, spec)) = model::container(pod, &container.name) else {
                continue;
            };
            if !matches!(role, Role::App | Role::Sidecar) {
                continue;
            }
            let probes = [
                (Kind::Startup, &spec.startup_probe),
                (Kind::Liveness, &spec.liveness_probe),
                (Kind::Readiness, &spec.readiness_probe),
            ];
            for (kind, probe) in probes {
                let Some(probe) = probe else { continue };
                self.start(pod, container, kind, probe, &address);
            }
        }
    }

    fn start(
        &mut self,
        pod: &Arc<core::Pod>,
        container: &Container,
        kind: Kind,
        spec: &core::Probe,
        address: &str,
    ) {
        let key = (container.id.clone(), kind);
        if self.tasks.contains_key(&key) {
            return;
        }
        self.carry_over(pod, container, kind);
        let probe = Probe {
            kubelet: self.kubelet.clone(),
            wake: self.wake.clone(),
            view: self.view.clone(),
            pod: pod.clone(),
            container: container.clone(),
            kind,
            spec: spec.clone(),
            address: address.to_owned(),
        };
        // Bounded by three per container of the node; ended by this map.
        let task = tokio::spawn(probe.run());
        self.tasks.insert(key, task.abort_handle());
    }

    /// What the pod's status says of this very container, told by a kubelet before this one, holds until the probe says otherwise: a
    /// restart of the kubelet takes no endpoint out of a Service.
    fn carry_over(&self, pod: &core::Pod, container: &Container, kind: Kind) {
        let Some(status) = model::reported(pod, container) else {
            return;
        };
        let mut view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        match kind {
            Kind::Readiness if status.ready => drop(view.ready.insert(container.id.clone())),
            Kind::Startup if status.started == Some(true) => drop(view.started.insert(container.id.clone())),
            Kind::Readiness | Kind::Startup | Kind::Liveness => {}
        }
    }

    /// Ends all probes.
    pub(crate) fn clear(&mut self) {
        self.tasks.drain().for_each(|(_, task)| task.abort());
        *self.view.lock().unwrap_or_else(PoisonError::into_inner) = ProbeView::default();
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.tasks.values().for_each(AbortHandle::abort);
    }
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(
        value.and_then(|value| u64::try_from(value).ok()).filter(|value| *value > 0).unwrap_or(default),
    )
}

impl Probe {
    async fn run(self) {
        self.wait_for_start().await;
        let period = seconds(self.spec.period_seconds, 10);
        let limit = seconds(self.spec.timeout_seconds, 1);
        let failure_threshold = self.spec.failure_threshold.filter(|value| *value > 0).unwrap_or(3);
        let success_threshold = self.spec.success_threshold.filter(|value| *value > 0).unwrap_or(1);
        let (mut last, mut run) = (None, 0);
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let result = check::probe(
                &self.kubelet.runtime,
                &self.container,
                &self.pod,
                &self.address,
                &self.spec,
                limit,
            )
            .await;
            let ok = result.is_ok();
            if let Err(problem) = result {
                let message = format!("{} probe failed: {problem}", self.kind.title());
                self.kubelet.events.container(
                    &self.pod,
                    &self.container.name,
                    EventKind::Warning,
                    "Unhealthy",
                    message,
                );
            }
            run = if last == Some(ok) { run + 1 } else { 1 };
            last = Some(ok);
            if (ok && run < success_threshold) || (!ok && run < failure_threshold) {
                continue;
            }
            if self.publish(ok) {
                return;
            }
        }
    }

    /// Initial delay counts from the start of the container; liveness and readiness wait for the startup probe.
    async fn wait_for_start(&self) {
        let gated = self.kind != Kind::Startup
            && model::container(&self.pod, &self.container.name)
                .is_some_and(|(_, spec)| spec.startup_probe.is_some());
        while gated
            && !self.view.lock().unwrap_or_else(PoisonError::into_inner).started.contains(&self.container.id)
        {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let delay = seconds(self.spec.initial_delay_seconds, 0);
        let started = model::timestamp(self.container.started_at).unwrap_or_else(Timestamp::now);
        let age = Duration::try_from(Timestamp::now().duration_since(started)).unwrap_or_default();
        tokio::time::sleep(delay.saturating_sub(age)).await;
    }

    /// Publishes a settled result; true when this probe is over.
    fn publish(&self, ok: bool) -> bool {
        let id = self.container.id.clone();
        let mut view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        let before = view.clone();
        let over = match self.kind {
            Kind::Readiness => {
                if ok {
                    view.ready.insert(id)
                } else {
                    view.ready.remove(&id)
                };
                false
            }
            Kind::Startup if ok => {
                view.started.insert(id);
                true
            }
            Kind::Liveness if ok => false,
            Kind::Startup | Kind::Liveness => {
                view.failed.insert(id, self.kind.name());
                true
            }
        };
        if *view != before {
            self.wake.notify_one();
        }
        over
    }
}
