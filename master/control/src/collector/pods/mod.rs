//! Removes pods of vanished nodes, unbound pods that are being deleted and finished pods above the threshold.

mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use kube::Api;
use tokio::time::Instant;

use crate::Context;
use crate::api::{self, Act as _, ApplyError};
use crate::model::Pod;

const PERIOD: Duration = Duration::from_secs(20);

pub(crate) fn start(context: &Context) {
    let context = context.clone();
    let frame = context.frame.clone();
    frame.spawn("pod-garbage-collector", async move {
        let drain = context.frame.drain();
        let mut missing_since: BTreeMap<String, Instant> = BTreeMap::new();
        tokio::select! {
            () = context.watches.all_synced() => {}
            () = drain.wait() => return Ok(()),
        }
        while drain.sleep(PERIOD).await {
            if let Err(error) = collect(&context, &mut missing_since).await {
                tracing::warn!(error = %error.chain(), "pod garbage collection failed, trying again");
            }
        }
        Ok(())
    });
}

async fn collect(context: &Context, missing_since: &mut BTreeMap<String, Instant>) -> Result<(), ApplyError> {
    let pods: Vec<Arc<Pod>> = context.watches.pods.all().into_iter().map(|(_, pod)| pod).collect();
    let nodes: BTreeSet<String> =
        context.watches.nodes.with(|nodes| nodes.keys().map(|key| key.name.clone()).collect());
    let grace = Duration::from_secs(u64::from(context.config.orphan_pod_grace_seconds));
    let due = missing_since
        .iter()
        .filter(|(_, since)| since.elapsed() >= grace)
        .map(|(name, _)| name.clone())
        .collect();
    let threshold = usize::try_from(context.config.terminated_pod_threshold).unwrap_or(usize::MAX);
    let plan = plan::plan(&pods, &nodes, &due, threshold);
    missing_since.retain(|name, _| plan.missing.contains(name));
    for name in &plan.missing {
        missing_since.entry(name.clone()).or_insert_with(Instant::now);
    }
    let node_api: Api<core::Node> = Api::all(context.client.clone());
    for (node, pods) in plan.orphaned {
        let found = node_api.get_metadata_opt(&node).await.act(|| format!("read node {node}"))?;
        if found.is_some() {
            continue;
        }
        for pod in pods {
            remove(context, &pod, "its node is gone", true).await?;
        }
    }
    for pod in plan.unbound {
        remove(context, &pod, "deleted before it had a node", false).await?;
    }
    for pod in plan.finished {
        remove(context, &pod, "too many finished pods", false).await?;
    }
    Ok(())
}

async fn remove(context: &Context, pod: &Pod, why: &str, is_orphan: bool) -> Result<(), ApplyError> {
    let api: Api<core::Pod> = Api::namespaced(context.client.clone(), &pod.meta.namespace);
    let name = &pod.meta.name;
    if is_orphan && !pod.is_finished() {
        let body = serde_json::json!({"metadata": {"uid": pod.meta.uid}, "status": {"phase": "Failed", "conditions": [{
            "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
            "message": "PodGC: node no longer exists",
            "lastTransitionTime": k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::now()),
        }]}});
        let patched = api.patch_status(name, &api::patch(), &api::strategic(body)).await;
        patched.act_or_gone(|| format!("mark pod {name} failed"))?;
    }
    let deleted = api.delete(name, &api::delete_uid(&pod.meta.uid).grace_period(0)).await;
    deleted.act_or_gone(|| format!("delete pod {name}"))?;
    tracing::info!(pod = %name, namespace = %pod.meta.namespace, why, "pod removed");
    Ok(())
}
