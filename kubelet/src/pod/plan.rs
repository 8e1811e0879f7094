//! What to do next for one pod: a pure function of its specification, what was observed, what the worker remembers, and the time.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;

use super::model::{self, Container, Memory, Observed, Role, Sandbox, State, Waiting};

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Stop a sandbox and what still runs in it.
    StopSandbox { id: String },
    /// Make the sandbox.
    CreateSandbox { attempt: u32 },
    /// Create and start a container. `crashed` when it replaces one that ended by itself.
    Start { name: String, attempt: u32, crashed: bool },
    /// Stop a container.
    Stop { id: String, name: String, grace_seconds: i64, message: String },
    /// Remove a container that will not be needed any more.
    Remove { id: String },
    /// Remove an old sandbox.
    RemoveSandbox { id: String },
}

/// The outcome of one round of planning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Round {
    pub(crate) actions: Vec<Action>,
    /// When to plan again though nothing happened.
    pub(crate) wake_at: Option<Timestamp>,
    /// Containers that wait, with the reason for the status.
    pub(crate) waiting: BTreeMap<String, Waiting>,
}

impl Round {
    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }
}

struct Planner<'a> {
    pod: &'a core::Pod,
    observed: &'a Observed,
    memory: &'a Memory,
    now: Timestamp,
    round: Round,
}

/// Plans a pod that shall run.
pub(crate) fn plan(pod: &core::Pod, observed: &Observed, memory: &Memory, now: Timestamp) -> Round {
    let mut planner = Planner { pod, observed, memory, now, round: Round::default() };
    planner.run();
    planner.round
}

impl Planner<'_> {
    fn run(&mut self) {
        let Some(sandbox) = self.sandbox().cloned() else {
            return;
        };
        let initialized = self.initialize(&sandbox);
        let ephemeral = model::containers(self.pod).into_iter().filter(|(role, _)| *role == Role::Ephemeral);
        for (_, container) in ephemeral {
            if self.observed.latest(&container.name).is_none() {
                self.start(&container, 0, None);
            }
        }
        if initialized {
            for (_, container) in
                model::containers(self.pod).into_iter().filter(|(role, _)| *role == Role::App)
            {
                // A container starts after the postStart hook of the one before it.
                if !self.memory.hooks.is_empty() && self.observed.latest(&container.name).is_none() {
                    break;
                }
                self.keep_running(&container, Role::App, &sandbox);
            }
        }
        self.collect_garbage(&sandbox);
    }

    /// The sandbox to work in, or `None` after planning how to get one.
    fn sandbox(&mut self) -> Option<&Sandbox> {
        let host_network = model::host_network(self.pod);
        let usable = |sandbox: &&Sandbox| sandbox.ready && (host_network || !sandbox.ips.is_empty());
        for old in self.observed.sandboxes.iter().skip(1).filter(|sandbox| sandbox.ready) {
            self.round.actions.push(Action::StopSandbox { id: old.id.clone() });
        }
        let newest = self.observed.sandboxes.first();
        if let Some(sandbox) = newest.filter(usable) {
            return Some(sandbox);
        }
        if let Some(sandbox) = newest {
            // Stopping a dead sandbox again releases what a crash left: its network.
            self.round.actions.push(Action::StopSandbox { id: sandbox.id.clone() });
        }
        if newest.is_none() || self.anything_to_run() {
            let attempt = newest.map_or(0, |sandbox| sandbox.attempt + 1);
            self.round.actions.push(Action::CreateSandbox { attempt });
        }
        None
    }

    fn anything_to_run(&self) -> bool {
        let init_failed = self.policy() == "Never"
            && model::containers(self.pod).iter().any(|(role, container)| {
                *role == Role::Init
                    && self
                        .observed
                        .latest(&container.name)
                        .is_some_and(|c| c.state == State::Exited && c.exit_code != 0)
            });
        !init_failed
            && model::containers(self.pod).iter().any(|(role, container)| {
                *role == Role::App
                    && match self.observed.latest(&container.name) {
                        None => true,
                        Some(latest) => restarts(self.policy(), latest),
                    }
            })
    }

    fn policy(&self) -> &str {
        model::spec(self.pod).restart_policy.as_deref().unwrap_or("Always")
    }

    /// Plans init containers and sidecars; true when app containers may run.
    fn initialize(&mut self, sandbox: &Sandbox) -> bool {
        let containers = model::containers(self.pod);
        let app_seen = containers.iter().any(|(role, container)| {
            *role == Role::App && self.observed.latest_in(&container.name, &sandbox.id).is_some()
        });
        for (role, container) in &containers {
            let latest = self.observed.latest_in(&container.name, &sandbox.id);
            match role {
                Role::Init if app_seen => {}
                Role::Init => {
                    if latest.is_some_and(|latest| latest.state == State::Exited && latest.exit_code == 0) {
                        continue;
                    }
                    self.keep_running(container, Role::Init, sandbox);
                    return false;
                }
                Role::Sidecar => {
                    self.keep_running(container, Role::Sidecar, sandbox);
                    let started = latest.is_some_and(|latest| {
                        latest.state == State::Running && is_started(container, latest, self.memory)
                    });
                    if !started && !app_seen {
                        return false;
                    }
                }
                Role::App | Role::Ephemeral => {}
            }
        }
        true
    }

    /// Starts what does not run, stops what must not, leaves alone what is right.
    fn keep_running(&mut self, container: &core::Container, role: Role, sandbox: &Sandbox) {
        let latest = match role {
            Role::Init | Role::Sidecar => self.observed.latest_in(&container.name, &sandbox.id),
            Role::App | Role::Ephemeral => self.observed.latest(&container.name),
        };
        let attempt = self.next_attempt(container);
        let policy = match role {
            Role::Sidecar => "Always",
            Role::Init if self.policy() == "Always" => "OnFailure",
            _ => self.policy(),
        };
        match latest {
            None => self.start(container, attempt, None),
            Some(latest) => match latest.state {
                State::Running => self.check_running(container, latest, sandbox),
                State::Unknown => self.stop(
                    latest,
                    "Container is in an unknown state, try killing it before restart".to_owned(),
                ),
                State::Created => {
                    // Made but never started: cut off between the two, or its start failed.
                    self.round.actions.push(Action::Remove { id: latest.id.clone() });
                    self.start(container, attempt, None);
                }
                State::Exited if restarts(policy, latest) => {
                    let latest = latest.clone();
                    self.start(container, attempt, Some(&latest));
                }
                State::Exited => {}
            },
        }
    }

    fn check_running(&mut self, container: &core::Container, latest: &Container, sandbox: &Sandbox) {
        let name = &container.name;
        if latest.sandbox_id != sandbox.id {
            self.stop(latest, format!("Container {name} runs in a sandbox that is gone"));
        } else if latest.hash != model::hash(container) {
            self.stop(latest, format!("Container {name} definition changed"));
        } else if let Some(kind) = self.memory.probes.failed.get(&latest.id) {
            self.stop(latest, format!("Container {name} failed {kind} probe, will be restarted"));
        }
    }

    fn next_attempt(&self, container: &core::Container) -> u32 {
        if let Some(latest) = self.observed.latest(&container.name) {
            return latest.attempt + 1;
        }
        // After a reboot the runtime knows nothing, but the status still counts.
        let status = self.pod.status.as_ref();
        let known = status.into_iter().flat_map(|status| {
            status.container_statuses.iter().chain(&status.init_container_statuses).flatten()
        });
        known
            .filter(|status| {
                status.name == container.name && status.container_id.as_ref().is_some_and(|id| !id.is_empty())
            })
            .map(|status| u32::try_from(status.restart_count).unwrap_or(0) + 1)
            .next()
            .unwrap_or(0)
    }

    fn start(&mut self, container: &core::Container, attempt: u32, crashed: Option<&Container>) {
        let name = &container.name;
        if self.memory.pulling.contains(name) {
            return;
        }
        if let Some(failure) = self.memory.failures.get(name)
            && failure.retry_at > self.now
        {
            self.round.waiting.insert(name.clone(), failure.waiting.clone());
            self.round.wake(failure.retry_at);
            return;
        }
        if let Some(crashed) = crashed
            && let Some(until) = self.crash_backoff(name, crashed)
        {
            let pause = self.memory.crashes.get(name).map_or(0, |step| step.pause.as_secs());
            let message = format!(
                "back-off {} restarting failed container={name} pod={}",
                go_duration(pause),
                model::full_name(self.pod)
            );
            self.round
                .waiting
                .insert(name.clone(), Waiting { reason: "CrashLoopBackOff".to_owned(), message });
            self.round.wake(until);
            return;
        }
        self.round.actions.push(Action::Start { name: name.clone(), attempt, crashed: crashed.is_some() });
    }

    /// Until when a container that ended must wait.
    fn crash_backoff(&self, name: &str, crashed: &Container) -> Option<Timestamp> {
        let step = self.memory.crashes.get(name)?;
        let finished = model::timestamp(crashed.finished_at).unwrap_or(self.now);
        if step.is_expired(finished) {
            return None;
        }
        let until = finished + SignedDuration::try_from(step.pause).unwrap_or(SignedDuration::MAX);
        (until > self.now).then_some(until)
    }

    fn stop(&mut self, container: &Container, message: String) {
        if self.memory.stopping.contains_key(&container.id) {
            return;
        }
        let spec = model::container(self.pod, &container.name);
        let probe_grace = self.memory.probes.failed.get(&container.id).and_then(|kind| {
            let (_, spec) = spec?;
            let probe =
                if *kind == "startup" { spec.startup_probe.as_ref() } else { spec.liveness_probe.as_ref() };
            probe?.termination_grace_period_seconds
        });
        self.round.actions.push(Action::Stop {
            id: container.id.clone(),
            name: container.name.clone(),
            grace_seconds: probe_grace.unwrap_or_else(|| model::grace_seconds(self.pod)),
            message,
        });
    }

    /// One dead container per name stays (for `logs --previous`), and one sandbox.
    fn collect_garbage(&mut self, sandbox: &Sandbox) {
        let mut dead_kept: BTreeMap<&str, u32> = BTreeMap::new();
        let mut kept_sandboxes = vec![sandbox.id.as_str()];
        for container in &self.observed.containers {
            let latest =
                self.observed.latest(&container.name).is_some_and(|latest| latest.id == container.id);
            let dead = matches!(container.state, State::Exited);
            let kept = dead_kept.entry(&container.name).or_default();
            if latest || !dead || *kept == 0 {
                *kept += u32::from(dead && !latest);
                kept_sandboxes.push(&container.sandbox_id);
            } else {
                self.round.actions.push(Action::Remove { id: container.id.clone() });
            }
        }
        for old in &self.observed.sandboxes {
            if !old.ready && !kept_sandboxes.contains(&old.id.as_str()) {
                self.round.actions.push(Action::RemoveSandbox { id: old.id.clone() });
            }
        }
    }
}

/// Whether a container that ended is started again.
pub(crate) fn restarts(policy: &str, container: &Container) -> bool {
    match policy {
        "Never" => container.state != State::Exited,
        "OnFailure" => container.state != State::Exited || container.exit_code != 0,
        _ => true,
    }
}

/// Whether startup is over: the startup probe succeeded and the postStart hook ended.
pub(crate) fn is_started(spec: &core::Container, container: &Container, memory: &Memory) -> bool {
    !memory.hooks.contains(&container.id)
        && (spec.startup_probe.is_none() || memory.probes.started.contains(&container.id))
}

/// Plans the end of a pod: containers get until `deadline_seconds` (since 1970). Done when there is nothing to do and nothing lives.
pub(crate) fn plan_stop(
    pod: Option<&core::Pod>,
    observed: &Observed,
    memory: &Memory,
    now_seconds: i64,
    deadline_seconds: i64,
) -> Vec<Action> {
    let sidecars: Vec<String> = pod.map_or_else(Vec::new, |pod| {
        let all = model::containers(pod).into_iter();
        all.filter(|(role, _)| *role == Role::Sidecar).map(|(_, container)| container.name.clone()).collect()
    });
    let alive: Vec<&Container> = observed.alive().collect();
    let mut next: Vec<&Container> =
        alive.iter().copied().filter(|container| !sidecars.contains(&container.name)).collect();
    if next.is_empty() {
        // Sidecars end after all others, last started first.
        let last = sidecars
            .iter()
            .rev()
            .find_map(|name| alive.iter().copied().find(|container| container.name == *name));
        next.extend(last);
    }
    if next.is_empty() {
        let open = observed.sandboxes.iter().filter(|sandbox| sandbox.ready);
        return open.map(|sandbox| Action::StopSandbox { id: sandbox.id.clone() }).collect();
    }
    next.into_iter()
        // A container that is being stopped is stopped again only when the grace was shortened since.
        .filter(|container| {
            memory.stopping.get(&container.id).is_none_or(|given| *given > deadline_seconds + 1)
        })
        .map(|container| Action::Stop {
            id: container.id.clone(),
            name: container.name.clone(),
            grace_seconds: (deadline_seconds - now_seconds).max(0),
            message: format!("Stopping container {}", container.name),
        })
        .collect()
}

/// When the pod's active deadline passes.
pub(crate) fn deadline(pod: &core::Pod, started: Option<Timestamp>) -> Option<Timestamp> {
    let seconds = model::spec(pod).active_deadline_seconds?;
    Some(started? + SignedDuration::from_secs(seconds))
}

/// Seconds as Go prints a duration: `10s`, `1m20s`, `5m0s`.
pub(crate) fn go_duration(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}m{seconds}s"),
        (hours, minutes, seconds) => format!("{hours}h{minutes}m{seconds}s"),
    }
}
