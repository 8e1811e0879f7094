//! ReplicationControllers: keeps the wanted number of pods.
//!
//! The plan knows a [`Workload`](crate::model::Workload) only, so another kind of the same shape (ReplicaSet) is another projection
//! and another route.

mod in_flight;
mod plan;

use std::sync::Arc;
use std::time::Instant;

use in_flight::{DOUBT_AFTER, InFlight};
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Api;
use orlop_kube::Key;
use plan::Refusal;

use crate::api::{self, Act as _, ApplyError};
use crate::events::{Recorder, Severity, Subject};
use crate::model::{Pod, Workload, selects};
use crate::queue::{Next, WorkQueue, spawn_workers};
use crate::watch::{self, Routes};
use crate::{Context, model};

const NAME: &str = "replication-controller";
const KIND: &str = "ReplicationController";

struct Controller {
    context: Context,
    recorder: Recorder,
    in_flight: Arc<InFlight>,
}

/// Starts the workers and their routes.
pub(crate) fn start(context: &Context, routes: &mut Routes) {
    let queue = WorkQueue::new("replicationcontroller", &context.queues);
    let in_flight = Arc::new(InFlight::default());
    routes.replication.on({
        let queue = queue.clone();
        move |key, _, _| queue.add(key.clone())
    });
    routes.pods.on(pod_route(context, &queue, &in_flight));
    let controller = Arc::new(Controller {
        context: context.clone(),
        recorder: Recorder::start(&context.frame, &context.client, NAME),
        in_flight,
    });
    let watches = context.watches.clone();
    let ready = move || {
        let watches = watches.clone();
        async move {
            watches.replication.synced().await;
            watches.pods.synced().await;
        }
    };
    spawn_workers(&context.frame, NAME, &queue, context.config.concurrency, ready, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
}

fn pod_route(
    context: &Context,
    queue: &Arc<WorkQueue>,
    in_flight: &Arc<InFlight>,
) -> impl Fn(&Key, Option<&Pod>, Option<&Pod>) + Send + Sync + 'static {
    let (queue, in_flight, workloads) =
        (queue.clone(), in_flight.clone(), context.watches.replication.clone());
    move |_, old, new| {
        // A pod that was replaced under the same name is two pods.
        let replaced = old.filter(|old| new.is_none_or(|new| new.meta.uid != old.meta.uid));
        for (pod, deleted) in
            replaced.map(|pod| (pod, true)).into_iter().chain(new.map(|pod| (pod, !pod.is_active())))
        {
            if let Some(owner) = pod.meta.controller() {
                if owner.kind == KIND {
                    let key = Key { namespace: pod.meta.namespace.clone(), name: owner.name.clone() };
                    in_flight.seen(&key, &pod.meta.uid, deleted);
                    queue.add(key);
                }
            } else if pod.meta.deleting.is_none() {
                for workload in watch::in_namespace(&workloads, &pod.meta.namespace) {
                    if selects(&workload.selector, &pod.meta.labels) {
                        queue.add(Key {
                            namespace: pod.meta.namespace.clone(),
                            name: workload.meta.name.clone(),
                        });
                    }
                }
            }
        }
        // A pod that was released or taken over concerns its former controller too.
        let former = old.and_then(|old| old.meta.controller()).filter(|owner| owner.kind == KIND);
        if let (Some(owner), Some(new)) = (former, new)
            && new.meta.controller().is_none_or(|controller| controller.uid != owner.uid)
        {
            queue.add(Key { namespace: new.meta.namespace.clone(), name: owner.name.clone() });
        }
    }
}

impl Controller {
    async fn reconcile(&self, key: Key) -> Result<Next, ApplyError> {
        let started = Instant::now();
        let Some(workload) = self.context.watches.replication.get(&key) else {
            return Ok(Next::Done);
        };
        self.settle_doubts(&key).await?;
        let read = || watch::in_namespace(&self.context.watches.pods, &key.namespace);
        let (pods, doomed) = self.in_flight.overlay(&key, read);
        let plan = plan::plan(&workload, &pods, &doomed, Timestamp::now());
        self.claim(&workload, &plan).await?;
        let deletions = self.delete(&key, &workload, &plan.delete).await;
        let creations = self.create(&key, &workload, plan.create).await;
        let refusal = creations
            .as_ref()
            .err()
            .map(|error| Refusal { reason: "FailedCreate", message: api::message(error.cause()) });
        self.write_status(&workload, &plan.owned, refusal.as_ref()).await?;
        if plan.create > 0 || !plan.delete.is_empty() {
            tracing::info!(
                controller = %key, wanted = workload.replicas, had = plan.owned.len(), created = creations.as_ref().ok(),
                deleted = plan.delete.len(), milliseconds = started.elapsed().as_millis(), "pods brought to the wanted number"
            );
        }
        deletions?;
        if let Err(error) = creations {
            // Nothing can be made in a namespace that ends; its deletion removes this controller too.
            return if api::is_namespace_terminating(error.cause()) { Ok(Next::Done) } else { Err(error) };
        }
        let doubt = self.in_flight.is_waiting(&key).then_some(DOUBT_AFTER);
        let again = [plan.look_again, doubt].into_iter().flatten().min();
        Ok(again.map_or(Next::Done, Next::After))
    }

    fn pods(&self, namespace: &str) -> Api<core::Pod> {
        Api::namespaced(self.context.client.clone(), namespace)
    }

    /// An echo that does not come (the pod came and went between two looks at the watch) is settled by asking the API.
    async fn settle_doubts(&self, key: &Key) -> Result<(), ApplyError> {
        for (name, uid) in self.in_flight.doubts(key).pods {
            let found = self.pods(&key.namespace).get_opt(&name).await.act(|| format!("read pod {name}"))?;
            let found = found.filter(|pod| pod.metadata.uid.as_deref() == Some(&uid));
            let active = found.is_some_and(|pod| Pod::of(&pod).is_active());
            if !active {
                self.in_flight.seen(key, &uid, true);
            }
        }
        Ok(())
    }

    async fn claim(&self, workload: &Workload, plan: &plan::Plan) -> Result<(), ApplyError> {
        if plan.adopt.is_empty() && plan.release.is_empty() {
            return Ok(());
        }
        // Adoption by a controller that was deleted or replaced meanwhile would doom the pod: ask the API itself first.
        let api: Api<core::ReplicationController> =
            Api::namespaced(self.context.client.clone(), &workload.meta.namespace);
        let name = &workload.meta.name;
        let fresh = api.get_opt(name).await.act(|| format!("read {KIND} {name}"))?;
        let alive = fresh.is_some_and(|fresh| {
            fresh.metadata.uid.as_deref() == Some(&workload.meta.uid)
                && fresh.metadata.deletion_timestamp.is_none()
        });
        let pods = self.pods(&workload.meta.namespace);
        for pod in plan.adopt.iter().filter(|_| alive) {
            let body = serde_json::json!({"metadata": {"uid": pod.meta.uid, "ownerReferences": [owner_reference(workload)]}});
            let patched = pods.patch(&pod.meta.name, &api::patch(), &api::strategic(body)).await;
            patched.act_or_gone(|| format!("adopt pod {}", pod.meta.name))?;
            tracing::info!(controller = %name, pod = %pod.meta.name, "adopted");
        }
        for pod in &plan.release {
            let reference = serde_json::json!({"$patch": "delete", "uid": workload.meta.uid});
            let body = serde_json::json!({"metadata": {"uid": pod.meta.uid, "ownerReferences": [reference]}});
            let patched = pods.patch(&pod.meta.name, &api::patch(), &api::strategic(body)).await;
            patched.act_or_gone(|| format!("release pod {}", pod.meta.name))?;
            tracing::info!(controller = %name, pod = %pod.meta.name, "released");
        }
        Ok(())
    }

    async fn delete(&self, key: &Key, workload: &Workload, victims: &[Arc<Pod>]) -> Result<(), ApplyError> {
        let pods = self.pods(&key.namespace);
        for pod in victims {
            self.in_flight.doomed(key, pod);
            let result = pods.delete(&pod.meta.name, &api::delete_uid(&pod.meta.uid)).await;
            let result = result.act_or_gone(|| format!("delete pod {}", pod.meta.name));
            let about = Subject::new(KIND, &workload.meta);
            match result {
                Ok(Some(_)) => {
                    let message = format!("Deleted pod: {}", pod.meta.name);
                    self.recorder.say(about, Severity::Normal, "SuccessfulDelete", message);
                }
                Ok(None) => self.in_flight.seen(key, &pod.meta.uid, true),
                Err(error) => {
                    self.in_flight.seen(key, &pod.meta.uid, true);
                    let message = format!("Error deleting: {}", api::message(error.cause()));
                    self.recorder.say(about, Severity::Warning, "FailedDelete", message);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Makes pods in growing batches; the first refusal ends it. Returns how many were made.
    async fn create(&self, key: &Key, workload: &Workload, count: usize) -> Result<usize, ApplyError> {
        let mut made = 0;
        for batch in plan::slow_start(count) {
            let results = futures::future::join_all((0..batch).map(|_| self.create_one(key, workload))).await;
            made += results.iter().filter(|result| result.is_ok()).count();
            results.into_iter().collect::<Result<(), _>>()?;
        }
        Ok(made)
    }

    async fn create_one(&self, key: &Key, workload: &Workload) -> Result<(), ApplyError> {
        let act = || format!("create a pod of {KIND} {}", workload.meta.name);
        let template = serde_json::from_str::<core::PodTemplateSpec>(&workload.template);
        let template = template.map_err(kube::Error::SerdeError).act(act)?;
        let pod = pod_from_template(workload, template);
        let about = Subject::new(KIND, &workload.meta);
        match self.pods(&key.namespace).create(&api::post(), &pod).await {
            Ok(created) => {
                let created = Pod::of(&created);
                let message = format!("Created pod: {}", created.meta.name);
                self.recorder.say(about, Severity::Normal, "SuccessfulCreate", message);
                // The watch may have been quicker than the answer.
                let own = Key { namespace: key.namespace.clone(), name: created.meta.name.clone() };
                if self.context.watches.pods.get(&own).is_none_or(|seen| seen.meta.uid != created.meta.uid) {
                    self.in_flight.created(key, created);
                }
                Ok(())
            }
            Err(error) => {
                if !api::is_namespace_terminating(&error) {
                    let message = format!("Error creating: {}", api::message(&error));
                    self.recorder.say(about, Severity::Warning, "FailedCreate", message);
                }
                Err(error).act(act)
            }
        }
    }

    async fn write_status(
        &self,
        workload: &Workload,
        owned: &[Arc<model::Pod>],
        refusal: Option<&Refusal>,
    ) -> Result<(), ApplyError> {
        let wanted = plan::status(workload, owned, refusal, Timestamp::now());
        if wanted == workload.status {
            return Ok(());
        }
        // Absent counts are null in a merge patch: upstream leaves zeroes out.
        let body = serde_json::json!({"status": {
            "replicas": wanted.replicas,
            "fullyLabeledReplicas": wanted.fully_labeled_replicas,
            "readyReplicas": wanted.ready_replicas,
            "availableReplicas": wanted.available_replicas,
            "observedGeneration": wanted.observed_generation,
            "conditions": wanted.conditions,
        }});
        let api: Api<core::ReplicationController> =
            Api::namespaced(self.context.client.clone(), &workload.meta.namespace);
        let patched = api.patch_status(&workload.meta.name, &api::patch(), &api::merge(body)).await;
        patched.act_or_gone(|| format!("write the status of {KIND} {}", workload.meta.name))?;
        Ok(())
    }
}

fn owner_reference(workload: &Workload) -> OwnerReference {
    OwnerReference {
        api_version: "v1".to_owned(),
        kind: KIND.to_owned(),
        name: workload.meta.name.clone(),
        uid: workload.meta.uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

fn pod_from_template(workload: &Workload, template: core::PodTemplateSpec) -> core::Pod {
    let meta = template.metadata.unwrap_or_default();
    core::Pod {
        metadata: ObjectMeta {
            namespace: Some(workload.meta.namespace.clone()),
            generate_name: Some(format!("{}-", workload.meta.name)),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner_reference(workload)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}
