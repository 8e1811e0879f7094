//! Deletes pods from nodes with NoExecute taints that they do not bear, or no longer.

pub(crate) mod plan;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use orlop_kube::Key;
use plan::Stay;

use crate::Context;
use crate::api::{self, Act as _, ApplyError};
use crate::events::{Recorder, Severity, Subject};
use crate::model::{Node, Pod};
use crate::queue::{Next, WorkQueue, spawn_workers};
use crate::watch::Routes;

pub(super) fn start(context: &Context, routes: &mut Routes) {
    let queue = WorkQueue::new("noexec_taint_node", &context.queues);
    routes.nodes.on({
        let queue = queue.clone();
        move |key, old, new| {
            if old.map(|node| &node.taints) != new.map(|node| &node.taints) {
                queue.add(key.clone());
            }
        }
    });
    routes.pods.on({
        let (queue, nodes) = (queue.clone(), context.watches.nodes.clone());
        move |_, old, new| {
            let Some(name) = new.and_then(|pod| pod.node.clone()) else {
                return;
            };
            let changed = old.is_none_or(|old| {
                old.node.as_deref() != Some(&name)
                    || old.tolerations != new.map(|pod| pod.tolerations.clone()).unwrap_or_default()
            });
            let key = Key { namespace: String::new(), name };
            if changed && nodes.get(&key).is_some_and(|node| is_executing(&node)) {
                queue.add(key);
            }
        }
    });
    let watches = context.watches.clone();
    let ready = move || {
        let watches = watches.clone();
        async move {
            watches.nodes.synced().await;
            watches.pods.synced().await;
        }
    };
    let recorder = Recorder::start(&context.frame, &context.client, "taint-eviction-controller");
    let context = context.clone();
    let (frame, workers) = (context.frame.clone(), context.config.concurrency);
    spawn_workers(&frame, "taint-eviction", &queue, workers, ready, move |key| {
        let (context, recorder) = (context.clone(), recorder.clone());
        async move { reconcile(&context, &recorder, &key).await }
    });
}

fn is_executing(node: &Node) -> bool {
    node.taints.iter().any(|taint| taint.effect == "NoExecute")
}

async fn reconcile(context: &Context, recorder: &Recorder, key: &Key) -> Result<Next, ApplyError> {
    let Some(node) = context.watches.nodes.get(key).filter(|node| is_executing(node)) else {
        return Ok(Next::Done);
    };
    let pods: Vec<Arc<Pod>> = context.watches.pods.with(|pods| {
        let here = pods.values().filter(|pod| pod.node.as_deref() == Some(&key.name) && pod.is_active());
        here.cloned().collect()
    });
    let now = Timestamp::now();
    let mut soonest: Option<Duration> = None;
    for pod in pods {
        match plan::stay(&pod, &node.taints, now) {
            Stay::ForEver => {}
            Stay::Until(end) if end <= now => evict(context, recorder, &pod, &key.name).await?,
            Stay::Until(end) => {
                let wait = Duration::try_from(end.duration_since(now)).unwrap_or_default();
                soonest = Some(soonest.map_or(wait, |soonest| soonest.min(wait)));
            }
        }
    }
    Ok(soonest.map_or(Next::Done, |wait| Next::After(wait + Duration::from_millis(1))))
}

async fn evict(context: &Context, recorder: &Recorder, pod: &Pod, node: &str) -> Result<(), ApplyError> {
    let api: Api<core::Pod> = Api::namespaced(context.client.clone(), &pod.meta.namespace);
    let name = &pod.meta.name;
    let message = format!("Marking for deletion Pod {}/{name}", pod.meta.namespace);
    recorder.say(Subject::new("Pod", &pod.meta), Severity::Normal, "TaintManagerEviction", message);
    let body = serde_json::json!({"metadata": {"uid": pod.meta.uid}, "status": {"conditions": [{
        "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
        "message": "Taint manager: deleting due to NoExecute taint", "lastTransitionTime": Time(Timestamp::now()),
    }]}});
    let patched = api.patch_status(name, &api::patch(), &api::strategic(body)).await;
    patched.act_or_gone(|| format!("announce the eviction of pod {name}"))?;
    let deleted = api.delete(name, &api::delete_uid(&pod.meta.uid)).await;
    deleted.act_or_gone(|| format!("evict pod {name}"))?;
    tracing::info!(pod = %name, namespace = %pod.meta.namespace, node, "evicted");
    Ok(())
}
