//! Marks nodes whose lease is old, keeps the taints that follow from conditions, and takes pods of silent nodes out of service.
//!
//! The age of a lease is measured by our own clock from the moment the change was seen: the nodes' clocks do not matter. After a
//! restart every node therefore gets a whole grace period again.

mod plan;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use orlop_kube::Key;
use tokio::time::Instant;

use crate::Context;
use crate::api::{self, Act as _, ApplyError};
use crate::events::{Recorder, Severity, Subject};
use crate::model::{Node, Pod};
use crate::queue::{Next, WorkQueue, spawn_workers};
use crate::watch::Routes;

const LEASES: &str = "kube-node-lease";

/// When each node last gave a sign of life, by our clock; bounded by the number of nodes.
type Signs = Arc<Mutex<HashMap<String, Instant>>>;

#[derive(Clone)]
struct Controller {
    context: Context,
    recorder: Recorder,
    signs: Signs,
}

pub(super) fn start(context: &Context, routes: &mut Routes) {
    let queue = WorkQueue::new("node_lifecycle", &context.queues);
    let signs = Signs::default();
    routes.leases.on({
        let signs = signs.clone();
        move |key, old, new| {
            if key.namespace == LEASES && old.map(|lease| lease.renewed) != new.map(|lease| lease.renewed) {
                sign(&signs, &key.name);
            }
        }
    });
    routes.nodes.on({
        let (signs, queue) = (signs.clone(), queue.clone());
        move |key, old, new| {
            let heartbeat = |node: &Node| node.condition("Ready").and_then(|condition| condition.heartbeat);
            match (old, new) {
                (_, None) => drop(signs.lock().unwrap_or_else(PoisonError::into_inner).remove(&key.name)),
                // Our own conditions change no heartbeat.
                (old, Some(new)) if old.is_none_or(|old| heartbeat(old) != heartbeat(new)) => {
                    sign(&signs, &key.name)
                }
                _ => {}
            }
            queue.add(key.clone());
        }
    });
    routes.pods.on({
        let queue = queue.clone();
        move |_, old, new| {
            // A pod that comes to, or becomes ready on, a silent node is marked as the others were.
            let ready = |pod: Option<&Pod>| pod.is_some_and(|pod| pod.ready);
            if let (false, true, Some(node)) = (ready(old), ready(new), new.and_then(|pod| pod.node.clone()))
            {
                queue.add(Key { namespace: String::new(), name: node });
            }
        }
    });
    let watches = context.watches.clone();
    let ready = move || {
        let watches = watches.clone();
        async move {
            watches.nodes.synced().await;
            watches.leases.synced().await;
            watches.pods.synced().await;
        }
    };
    spawn_monitor(context, &queue);
    let recorder = Recorder::start(&context.frame, &context.client, "node-controller");
    let controller = Controller { context: context.clone(), recorder, signs };
    spawn_workers(&context.frame, "node-lifecycle", &queue, context.config.concurrency, ready, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
}

fn sign(signs: &Signs, node: &str) {
    signs.lock().unwrap_or_else(PoisonError::into_inner).insert(node.to_owned(), Instant::now());
}

fn spawn_monitor(context: &Context, queue: &Arc<WorkQueue>) {
    let (context, queue) = (context.clone(), queue.clone());
    let frame = context.frame.clone();
    frame.spawn("node-monitor", async move {
        let period = Duration::from_secs(u64::from(context.config.node_monitor_period_seconds));
        while context.frame.drain().sleep(period).await {
            for (key, _) in context.watches.nodes.all() {
                queue.add(key);
            }
        }
        Ok(())
    });
}

impl Controller {
    async fn reconcile(&self, key: &Key) -> Result<Next, ApplyError> {
        let Some(node) = self.context.watches.nodes.get(key) else {
            return Ok(Next::Done);
        };
        if node.meta.deleting.is_some() {
            return Ok(Next::Done);
        }
        let is_silent = self.is_silent(&key.name);
        if is_silent {
            self.write_silence(&node).await?;
            self.take_pods_out(&node).await?;
        }
        if let Some(taints) = plan::taints(&node, is_silent, Timestamp::now()) {
            let list: Vec<_> = taints
                .iter()
                .map(|taint| core::Taint {
                    key: taint.key.clone(),
                    value: Some(taint.value.clone()).filter(|value| !value.is_empty()),
                    effect: taint.effect.clone(),
                    time_added: taint.added.map(Time),
                })
                .collect();
            let names: Vec<_> =
                taints.iter().map(|taint| format!("{}:{}", taint.key, taint.effect)).collect();
            let body = serde_json::json!({
                "metadata": {"resourceVersion": node.meta.resource_version},
                "spec": {"taints": if list.is_empty() { serde_json::Value::Null } else { serde_json::json!(list) }},
            });
            let patched = self.nodes().patch(&key.name, &api::patch(), &api::merge(body)).await;
            match patched {
                // A newer version of the node is on its way here, and with it the key.
                Err(error) if api::is_conflict(&error) => {}
                other => drop(other.act_or_gone(|| format!("taint node {key}"))?),
            }
            tracing::info!(node = %key, taints = %names.join(" "), "taints written");
        }
        Ok(Next::Done)
    }

    fn nodes(&self) -> Api<core::Node> {
        Api::all(self.context.client.clone())
    }

    fn is_silent(&self, node: &str) -> bool {
        let grace = Duration::from_secs(u64::from(self.context.config.node_monitor_grace_period_seconds));
        let mut signs = self.signs.lock().unwrap_or_else(PoisonError::into_inner);
        signs.entry(node.to_owned()).or_insert_with(Instant::now).elapsed() > grace
    }

    async fn write_silence(&self, node: &Node) -> Result<(), ApplyError> {
        let silence = plan::silence(node);
        if silence.is_empty() {
            return Ok(());
        }
        let was_ready = node.condition("Ready").is_some_and(|condition| condition.status == "True");
        let now = Time(Timestamp::now());
        let rows: Vec<_> = silence
            .iter()
            .map(|row| {
                let mut value = serde_json::json!({
                    "type": row.kind, "status": "Unknown", "reason": row.reason, "message": row.message,
                });
                if row.is_transition {
                    value["lastTransitionTime"] = serde_json::json!(now);
                }
                value
            })
            .collect();
        let body = serde_json::json!({"status": {"conditions": rows}});
        let patched = self.nodes().patch_status(&node.meta.name, &api::patch(), &api::strategic(body)).await;
        patched.act_or_gone(|| format!("write the status of node {}", node.meta.name))?;
        tracing::warn!(node = %node.meta.name, "node is silent, its status is unknown");
        if was_ready {
            let message = format!("Node {} status is now: NodeNotReady", node.meta.name);
            self.recorder.say(Subject::new("Node", &node.meta), Severity::Normal, "NodeNotReady", message);
        }
        Ok(())
    }

    /// Endpoints leave at once, long before the pods are evicted.
    async fn take_pods_out(&self, node: &Node) -> Result<(), ApplyError> {
        let pods: Vec<Arc<Pod>> = self.context.watches.pods.with(|pods| {
            let here = pods.values().filter(|pod| pod.node.as_deref() == Some(&node.meta.name) && pod.ready);
            here.cloned().collect()
        });
        for pod in pods {
            let body = serde_json::json!({"metadata": {"uid": pod.meta.uid}, "status": {"conditions": [{
                "type": "Ready", "status": "False", "lastTransitionTime": Time(Timestamp::now()),
            }]}});
            let api: Api<core::Pod> = Api::namespaced(self.context.client.clone(), &pod.meta.namespace);
            let patched = api.patch_status(&pod.meta.name, &api::patch(), &api::strategic(body)).await;
            patched.act_or_gone(|| format!("mark pod {} not ready", pod.meta.name))?;
            let about = Subject::new("Pod", &pod.meta);
            self.recorder.say(about, Severity::Warning, "NodeNotReady", "Node is not ready".to_owned());
            tracing::info!(pod = %pod.meta.name, node = %node.meta.name, "pod of a silent node marked not ready");
        }
        Ok(())
    }
}
