//! Gives every pending pod a node.
//!
//! One task owns the view of the cluster and the waiting pods; it takes in all changes, then plans the due pods one after the
//! other, each on top of the assumptions of those before it. Bindings run beside it, at most [`BINDINGS`] at once.

mod pending;
mod rules;

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Api;
use orlop_daemon::prometheus_client::encoding::EncodeLabelSet;
use orlop_daemon::prometheus_client::metrics::counter::Counter;
use orlop_daemon::prometheus_client::metrics::family::Family;
use orlop_daemon::prometheus_client::metrics::gauge::Gauge;
use orlop_kube::{Key, Subscription};
use pending::Pending;
use rules::{Cluster, Verdict};
use tokio::time::Instant;

use crate::Context;
use crate::api;
use crate::events::{Recorder, Severity, Subject};
use crate::model::{Labels, Node, Pod, selects};
use crate::watch::{self, Routes};

/// Bindings under way at once; more pods than this wait in the queue.
const BINDINGS: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLabels {
    queue: &'static str,
}

#[derive(Clone, Debug, Default)]
struct Metrics {
    attempts: Family<ResultLabels, Counter>,
    pending: Family<QueueLabels, Gauge>,
}

type Binding = BoxFuture<'static, (Key, String, Result<(), kube::Error>)>;

struct Scheduler {
    context: Context,
    recorder: Recorder,
    metrics: Metrics,
    cluster: Cluster,
    pending: Pending,
    bindings: FuturesUnordered<Binding>,
    /// Notes of refusal being written; separate from bindings so that they never hold one up.
    notes: FuturesUnordered<BoxFuture<'static, ()>>,
}

/// Starts the scheduler's task.
pub(crate) fn start(context: &Context, _routes: &mut Routes) {
    let metrics = Metrics::default();
    {
        let mut registry = context.frame.metrics();
        let help = "Number of attempts to schedule pods, by the result";
        registry.register("scheduler_schedule_attempts", help, metrics.attempts.clone());
        let help = "Number of pending pods, by the queue type";
        registry.register("scheduler_pending_pods", help, metrics.pending.clone());
    }
    let last_backoff = Duration::from_secs(u64::from(context.config.pod_max_backoff_seconds));
    let mut scheduler = Scheduler {
        context: context.clone(),
        recorder: Recorder::start(&context.frame, &context.client, "default-scheduler"),
        metrics,
        cluster: Cluster::default(),
        pending: Pending::new(last_backoff),
        bindings: FuturesUnordered::new(),
        notes: FuturesUnordered::new(),
    };
    let drain = context.frame.drain();
    context.frame.spawn("scheduler", async move {
        tokio::select! {
            () = scheduler.run() => {}
            () = drain.wait() => {}
        }
        Ok(())
    });
}

impl Scheduler {
    async fn run(&mut self) {
        let watches = self.context.watches.clone();
        watches.pods.synced().await;
        watches.nodes.synced().await;
        watches.services.synced().await;
        let (pods, nodes) = (watches.pods.subscribe(), watches.nodes.subscribe());
        // The whole state first: the first plan must know every placed pod.
        for (key, node) in watches.nodes.all() {
            self.cluster.set_node(&key.name, Some(node));
        }
        for (key, _) in watches.pods.all() {
            self.take_pod(key);
        }
        loop {
            self.schedule_due();
            self.publish_counts();
            self.wait_for_change(&pods, &nodes).await;
        }
    }

    async fn wait_for_change(&mut self, pods: &Subscription, nodes: &Subscription) {
        let next = self.pending.next_due();
        let timer = async {
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = nodes.changed() => changed.into_iter().for_each(|key| self.take_node(&key)),
            changed = pods.changed() => changed.into_iter().for_each(|key| self.take_pod(key)),
            Some((key, uid, result)) = self.bindings.next(), if !self.bindings.is_empty() => self.bound(&key, &uid, result),
            Some(()) = self.notes.next(), if !self.notes.is_empty() => {}
            () = timer, if self.bindings.len() < BINDINGS => {}
        }
    }

    fn take_node(&mut self, key: &Key) {
        let node = self.context.watches.nodes.get(key);
        let before = self.cluster.places.get(&key.name).and_then(|place| place.node.clone());
        if node.as_deref().is_some_and(|node| before.as_deref().is_none_or(|before| makes_room(before, node)))
        {
            self.pending.wake();
        }
        self.cluster.set_node(&key.name, node);
    }

    fn take_pod(&mut self, key: Key) {
        let pod = self.context.watches.pods.get(&key);
        let placed_before = self.cluster.is_placed(&key);
        self.cluster.set_pod(&key, pod.clone());
        if placed_before && !self.cluster.is_placed(&key) {
            self.pending.wake();
        }
        let ours = |pod: &&Arc<Pod>| {
            pod.node.is_none() && pod.is_active() && pod.scheduler == self.context.config.scheduler_name
        };
        match pod.as_ref().filter(ours) {
            Some(_) if self.cluster.is_assumed(&key) => {}
            Some(pod) => {
                // Our own note of refusal is no change that could help; a lifted gate is.
                let gated = pod.scheduling.as_ref().is_some_and(|wants| !wants.gates.is_empty());
                self.pending.add(key, &pod.meta.uid, pod.meta.created, !gated && self.is_ungated(pod));
            }
            None => self.pending.remove(&key),
        }
    }

    /// Whether the pod carries the note that a gate held it back although none does any more.
    fn is_ungated(&self, pod: &Pod) -> bool {
        pod.scheduling.as_ref().is_some_and(|wants| wants.refusal.as_deref() == Some(GATED))
    }

    fn schedule_due(&mut self) {
        let now = Instant::now();
        for key in self.pending.due(now) {
            if self.bindings.len() >= BINDINGS {
                break;
            }
            let Some(pod) = self.context.watches.pods.get(&key).filter(|pod| pod.node.is_none()) else {
                self.pending.remove(&key);
                continue;
            };
            let started = std::time::Instant::now();
            match rules::plan(&self.cluster, &pod, &self.companions(&pod)) {
                Verdict::Bind(node) => self.bind(key, pod, node, started),
                Verdict::Unschedulable(message) => {
                    self.count("unschedulable");
                    self.pending.park(&key, now);
                    self.refuse(&key, &pod, message, "Unschedulable", started);
                }
                Verdict::Gated => {
                    self.pending.park(&key, now);
                    self.refuse(&key, &pod, GATED.to_owned(), "SchedulingGated", started);
                }
            }
        }
    }

    fn companions(&self, pod: &Pod) -> Vec<Labels> {
        let services = watch::in_namespace(&self.context.watches.services, &pod.meta.namespace);
        let selecting = services.into_iter().filter(|service| selects(&service.selector, &pod.meta.labels));
        selecting.map(|service| service.selector.clone()).collect()
    }

    fn bind(&mut self, key: Key, pod: Arc<Pod>, node: String, started: std::time::Instant) {
        self.pending.hold(&key);
        self.cluster.assume(&key, pod.clone(), &node);
        let api: Api<core::Pod> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let recorder = self.recorder.clone();
        self.bindings.push(Box::pin(async move {
            let binding = core::Binding {
                metadata: ObjectMeta {
                    name: Some(key.name.clone()),
                    namespace: Some(key.namespace.clone()),
                    uid: Some(pod.meta.uid.clone()),
                    ..ObjectMeta::default()
                },
                target: core::ObjectReference {
                    kind: Some("Node".to_owned()),
                    name: Some(node.clone()),
                    ..core::ObjectReference::default()
                },
            };
            let post = api::post();
            let answer =
                api.create_subresource::<_, serde_json::Value>("binding", &key.name, &post, &binding);
            let result = answer.await.map(drop);
            if result.is_ok() {
                let message = format!("Successfully assigned {}/{} to {node}", key.namespace, key.name);
                recorder.say(Subject::new("Pod", &pod.meta), Severity::Normal, "Scheduled", message);
                tracing::info!(pod = %key, %node, microseconds = started.elapsed().as_micros(), "scheduled");
            }
            (key, pod.meta.uid.clone(), result)
        }));
    }

    fn bound(&mut self, key: &Key, uid: &str, result: Result<(), kube::Error>) {
        match result {
            Ok(()) => {
                self.count("scheduled");
                self.pending.remove(key);
            }
            Err(error) => {
                self.count("error");
                self.cluster.forget(key, uid);
                self.pending.back_off(key, Instant::now());
                // What was assumed is free again.
                self.pending.wake();
                if api::is_not_found(&error) {
                    self.pending.remove(key);
                }
                tracing::warn!(pod = %key, error = %api::message(&error), "binding failed, trying again");
            }
        }
    }

    /// Tells the user why, once per message.
    fn refuse(
        &mut self,
        key: &Key,
        pod: &Pod,
        message: String,
        reason: &'static str,
        started: std::time::Instant,
    ) {
        if pod.scheduling.as_ref().is_some_and(|wants| wants.refusal.as_deref() == Some(&message)) {
            return;
        }
        if reason == "Unschedulable" {
            let about = Subject::new("Pod", &pod.meta);
            self.recorder.say(about, Severity::Warning, "FailedScheduling", message.clone());
        }
        tracing::info!(pod = %key, %message, microseconds = started.elapsed().as_micros(), "not scheduled");
        if self.notes.len() >= BINDINGS {
            // The pod is looked at again before long, and told then.
            return;
        }
        let api: Api<core::Pod> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let (name, uid) = (key.name.clone(), pod.meta.uid.clone());
        self.notes.push(Box::pin(async move {
            let body = serde_json::json!({"metadata": {"uid": uid}, "status": {"conditions": [{
                "type": "PodScheduled", "status": "False", "reason": reason, "message": message,
                "lastTransitionTime": Time(Timestamp::now()),
            }]}});
            if let Err(error) = api.patch_status(&name, &api::patch(), &api::strategic(body)).await {
                tracing::debug!(pod = %name, error = %api::message(&error), "refusal not written");
            }
        }));
    }

    fn count(&self, result: &'static str) {
        self.metrics.attempts.get_or_create(&ResultLabels { result }).inc();
    }

    fn publish_counts(&self) {
        let (active, backoff, parked) = self.pending.counts();
        for (queue, count) in [("active", active), ("backoff", backoff), ("unschedulable", parked)] {
            let gauge = self.metrics.pending.get_or_create(&QueueLabels { queue });
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
}

const GATED: &str = "Scheduling is blocked due to non-empty scheduling gates";

/// Whether a change of a node may let a pod fit that did not.
fn makes_room(before: &Node, after: &Node) -> bool {
    before.allocatable != after.allocatable
        || before.taints != after.taints
        || before.unschedulable != after.unschedulable
        || before.meta.labels != after.meta.labels
}
