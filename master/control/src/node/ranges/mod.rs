//! Gives every node its part of the pod range: `spec.podCIDR`, remembered only in the Node objects.
//!
//! Invariant: one worker, and what it gave is overlaid until the watch shows it, so no range is given twice.

mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use kube::Api;
use orlop_kube::Key;
use tokio::sync::Mutex;

use crate::Context;
use crate::api::{self, Act as _, ApplyError};
use crate::events::{Recorder, Severity, Subject};
use crate::queue::{Next, WorkQueue, spawn_workers};
use crate::watch::Routes;

/// What was given and is not watched yet, by the node's uid; and the range given last.
#[derive(Debug, Default)]
struct Given {
    unseen: BTreeMap<String, IpNet>,
    last: Option<IpNet>,
}

#[derive(Clone)]
struct Controller {
    context: Context,
    recorder: Recorder,
    given: Arc<Mutex<Given>>,
}

pub(super) fn start(context: &Context, routes: &mut Routes) {
    let queue = WorkQueue::new("node_ipam", &context.queues);
    routes.nodes.on({
        let (queue, nodes) = (queue.clone(), context.watches.nodes.clone());
        move |key, old, new| {
            if new.is_some_and(|node| node.pod_cidrs.is_empty()) {
                queue.add(key.clone());
            }
            // A range came free: nodes that found none look again.
            if old.is_some() && new.is_none() {
                let waiting = nodes.all().into_iter().filter(|(_, node)| node.pod_cidrs.is_empty());
                waiting.for_each(|(key, _)| queue.add(key));
            }
        }
    });
    let nodes = context.watches.nodes.clone();
    let ready = move || {
        let nodes = nodes.clone();
        async move { nodes.synced().await }
    };
    let recorder = Recorder::start(&context.frame, &context.client, "cidrAllocator");
    let controller = Controller { context: context.clone(), recorder, given: Arc::default() };
    spawn_workers(&context.frame, "node-ipam", &queue, 1, ready, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
}

impl Controller {
    async fn reconcile(&self, key: &Key) -> Result<Next, ApplyError> {
        let nodes = self.context.watches.nodes.all();
        let Some((_, node)) = nodes.iter().find(|(found, _)| found == key) else {
            return Ok(Next::Done);
        };
        if !node.pod_cidrs.is_empty() || node.meta.deleting.is_some() {
            return Ok(Next::Done);
        }
        // Only this worker takes the lock; it is async because a range stays taken while it is written.
        let mut given = self.given.lock().await;
        let is_unseen =
            |uid: &str| nodes.iter().any(|(_, node)| node.meta.uid == uid && node.pod_cidrs.is_empty());
        given.unseen.retain(|uid, _| is_unseen(uid));
        if given.unseen.contains_key(&node.meta.uid) {
            return Ok(Next::Done);
        }
        let mut taken: BTreeSet<IpNet> = given.unseen.values().copied().collect();
        taken.extend(
            nodes.iter().flat_map(|(_, node)| &node.pod_cidrs).filter_map(|cidr| cidr.parse::<IpNet>().ok()),
        );
        let config = &self.context.config;
        let Some(range) = plan::allocate(config.cluster_cidr, config.node_cidr_mask_size, &taken, given.last)
        else {
            let message = format!("Node {key} status is now: CIDRNotAvailable");
            self.recorder.say(
                Subject::new("Node", &node.meta),
                Severity::Normal,
                "CIDRNotAvailable",
                message,
            );
            tracing::warn!(node = %key, cluster = %config.cluster_cidr, "no pod range left for the node");
            return Ok(Next::Done);
        };
        let text = range.to_string();
        let body = serde_json::json!({
            "metadata": {"uid": node.meta.uid},
            "spec": {"podCIDR": text, "podCIDRs": [text]},
        });
        let api: Api<core::Node> = Api::all(self.context.client.clone());
        let patched = api.patch(&key.name, &api::patch(), &api::merge(body)).await;
        if patched.act_or_gone(|| format!("give node {key} its pod range"))?.is_some() {
            given.unseen.insert(node.meta.uid.clone(), range);
            given.last = Some(range);
            tracing::info!(node = %key, range = %text, "pod range given");
        }
        Ok(Next::Done)
    }
}
