//! Garbage collection by ownerReferences (background, foreground, orphan), and of pods that nobody will end.
//!
//! The queue's keys are uids: a name may belong to another object tomorrow.

mod model;
mod pods;
pub(crate) mod resources;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::Api;
use kube::api::{DeleteParams, DynamicObject, PropagationPolicy};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher;
use model::{Action, FOREGROUND, Graph, ORPHAN, Object, OwnerState, Propagation};
use orlop_daemon::backoff::Backoff;
use orlop_kube::{Informer, Key, informer};
use resources::Kind;

use crate::Context;
use crate::api::{self, Act as _, ApplyError};
use crate::model::{Meta, Owner};
use crate::queue::{Next, WorkQueue, spawn_workers};
use crate::watch::{Route, Routes};

const NAME: &str = "garbage-collector";
/// Kinds that the shared watches bring already.
const SHARED: [&str; 10] = [
    "pods",
    "nodes",
    "namespaces",
    "services",
    "endpoints",
    "endpointslices",
    "replicationcontrollers",
    "serviceaccounts",
    "configmaps",
    "leases",
];

#[derive(Clone)]
struct Collector {
    context: Context,
    graph: Arc<Mutex<Graph>>,
    queue: Arc<WorkQueue>,
    kinds: Arc<HashMap<String, Kind>>,
}

/// Starts the graph on the shared watches; the rest follows once discovery has answered.
pub(crate) fn start(context: &Context, routes: &mut Routes) {
    pods::start(context);
    let graph = Arc::new(Mutex::new(Graph::default()));
    let queue = WorkQueue::new("garbage_collector_attempt_to_delete", &context.queues);
    routes.on_any(listener(&graph, &queue));
    context.frame.dump("garbageCollector", {
        let graph = graph.clone();
        move || serde_json::json!({ "objects": graph.lock().unwrap_or_else(PoisonError::into_inner).len() })
    });
    let context = context.clone();
    let frame = context.frame.clone();
    frame.spawn("garbage-collector-start", async move {
        let drain = context.frame.drain();
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let kinds = loop {
            match resources::discover(&context.client).await {
                Ok(kinds) => break kinds,
                Err(error) => tracing::warn!(error = %api::message(&error), "discovery failed, trying again"),
            }
            if !drain.sleep(backoff.pause()).await {
                return Ok(());
            }
        };
        start_workers(&context, graph, queue, kinds);
        Ok(())
    });
}

fn listener(
    graph: &Arc<Mutex<Graph>>,
    queue: &Arc<WorkQueue>,
) -> impl Fn(&str, &Key, Option<&Meta>, Option<&Meta>) + Clone + Send + Sync + 'static {
    let (graph, queue) = (graph.clone(), queue.clone());
    move |plural, key, old, new| {
        let mut look = Vec::new();
        {
            let mut graph = graph.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(old) = old.filter(|old| new.is_none_or(|new| new.uid != old.uid)) {
                look.extend(graph.remove(&old.uid));
            }
            // Most changes (heartbeats, statuses) leave the metadata that matters as it was.
            let same = |old: &Meta, new: &Meta| {
                old.uid == new.uid
                    && old.owners == new.owners
                    && old.finalizers == new.finalizers
                    && old.deleting == new.deleting
            };
            if let Some(new) = new.filter(|new| old.is_none_or(|old| !same(old, new))) {
                look.extend(graph.put(plural, key, new));
            }
        }
        look.into_iter().for_each(|uid| queue.add(uid_key(&uid)));
    }
}

fn uid_key(uid: &str) -> Key {
    Key { namespace: String::new(), name: uid.to_owned() }
}

fn start_workers(context: &Context, graph: Arc<Mutex<Graph>>, queue: Arc<WorkQueue>, kinds: Vec<Kind>) {
    let mut informers: Vec<Informer<Meta>> = Vec::new();
    for kind in &kinds {
        let plural = kind.resource.plural.as_str();
        let wanted = ["list", "watch", "delete"].iter().all(|verb| kind.can(verb));
        // Events have no dependents and expire by themselves.
        if !wanted || plural == "events" || SHARED.contains(&plural) {
            continue;
        }
        let api: Api<PartialObjectMeta<DynamicObject>> =
            Api::all_with(context.client.clone(), &kind.resource);
        let found = informer(
            &context.frame,
            plural,
            api,
            watcher::Config::default(),
            |object: PartialObjectMeta<DynamicObject>| Some(Meta::of(&object.metadata)),
        );
        let mut route = Route::new(plural, &found);
        let (listen, plural) = (listener(&graph, &queue), plural.to_owned());
        route.on(move |key, old: Option<&Meta>, new: Option<&Meta>| listen(&plural, key, old, new));
        route.spawn(&context.frame);
        informers.push(found);
    }
    let watches = context.watches.clone();
    let ready = move || {
        let (watches, informers) = (watches.clone(), informers.clone());
        async move {
            watches.all_synced().await;
            for informer in informers {
                informer.synced().await;
            }
        }
    };
    let kinds = kinds.into_iter().map(|kind| (kind.resource.plural.clone(), kind)).collect();
    let collector =
        Collector { context: context.clone(), graph, queue: queue.clone(), kinds: Arc::new(kinds) };
    spawn_workers(&context.frame, NAME, &queue, context.config.concurrency, ready, move |key| {
        let collector = collector.clone();
        async move { collector.reconcile(&key.name).await }
    });
}

impl Collector {
    fn graph<R>(&self, read: impl FnOnce(&Graph) -> R) -> R {
        read(&self.graph.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn reconcile(&self, uid: &str) -> Result<Next, ApplyError> {
        let Some((object, mut owners)) =
            self.graph(|graph| graph.get(uid).map(|object| (object.clone(), graph.owner_states(object))))
        else {
            return Ok(Next::Done);
        };
        for (owner, state) in object.owners.iter().zip(&mut owners) {
            if *state == OwnerState::Unknown && !object.deleting {
                *state = self.ask_for_owner(&object, owner).await?;
            }
        }
        match self.graph(|graph| graph.plan(&object, &owners)) {
            Action::Nothing => {}
            Action::Look(uids) => uids.iter().for_each(|uid| self.queue.add(uid_key(uid))),
            Action::ReleaseDependents(uids) => {
                for dependent in uids {
                    if let Some(dependent) = self.graph(|graph| graph.get(&dependent).cloned()) {
                        self.drop_owners(&dependent, &[uid.to_owned()]).await?;
                    }
                }
                self.drop_finalizer(&object, ORPHAN).await?;
            }
            Action::Unblock => self.drop_finalizer(&object, FOREGROUND).await?,
            Action::DropOwners(owners) => self.drop_owners(&object, &owners).await?,
            Action::Delete(propagation) => self.delete(&object, propagation).await?,
        }
        Ok(Next::Done)
    }

    fn api(&self, object: &Object) -> Option<Api<DynamicObject>> {
        let kind = self.kinds.get(&*object.plural)?;
        Some(self.api_of(kind, &object.key.namespace))
    }

    fn api_of(&self, kind: &Kind, namespace: &str) -> Api<DynamicObject> {
        if kind.namespaced {
            Api::namespaced_with(self.context.client.clone(), namespace, &kind.resource)
        } else {
            Api::all_with(self.context.client.clone(), &kind.resource)
        }
    }

    /// An owner that is not in the graph may be newer than the watch, of an unwatched kind, or gone.
    async fn ask_for_owner(&self, object: &Object, owner: &Owner) -> Result<OwnerState, ApplyError> {
        let group = owner.api_version.rsplit_once('/').map_or("", |(group, _)| group);
        let kind =
            self.kinds.values().find(|kind| kind.resource.kind == owner.kind && kind.resource.group == group);
        let Some(kind) = kind else {
            tracing::debug!(object = %object.key, kind = %owner.kind, "owner is of an unknown kind, keeping the object");
            return Ok(OwnerState::Solid);
        };
        if kind.namespaced && object.key.namespace.is_empty() {
            // A cluster-scoped object cannot have an owner with a namespace: keep it, as upstream does.
            return Ok(OwnerState::Solid);
        }
        let found = self.api_of(kind, &object.key.namespace).get_metadata_opt(&owner.name).await;
        let found = found.act(|| format!("read {} {}", owner.kind, owner.name))?;
        let is_same = found.is_some_and(|found| found.metadata.uid.as_deref() == Some(&owner.uid));
        Ok(if is_same { OwnerState::Solid } else { OwnerState::Absent })
    }

    async fn drop_owners(&self, object: &Object, owners: &[String]) -> Result<(), ApplyError> {
        let Some(api) = self.api(object) else {
            return Ok(());
        };
        let act = || format!("drop owners of {} {}", object.plural, object.key);
        let Some(fresh) = api.get_metadata_opt(&object.key.name).await.act(act)? else {
            return Ok(());
        };
        if fresh.metadata.uid.as_deref() != Some(&object.uid) {
            return Ok(());
        }
        let kept: Vec<_> = fresh
            .metadata
            .owner_references
            .unwrap_or_default()
            .into_iter()
            .filter(|reference| !owners.contains(&reference.uid))
            .collect();
        let body = serde_json::json!({"metadata": {
            "uid": object.uid,
            "resourceVersion": fresh.metadata.resource_version,
            "ownerReferences": if kept.is_empty() { serde_json::Value::Null } else { serde_json::json!(kept) },
        }});
        api.patch(&object.key.name, &api::patch(), &api::merge(body)).await.act_or_gone(act)?;
        tracing::info!(kind = %object.plural, object = %object.key, "references to owners dropped");
        Ok(())
    }

    async fn drop_finalizer(&self, object: &Object, finalizer: &str) -> Result<(), ApplyError> {
        let Some(api) = self.api(object) else {
            return Ok(());
        };
        let act = || format!("drop finalizer {finalizer} of {} {}", object.plural, object.key);
        let Some(fresh) = api.get_metadata_opt(&object.key.name).await.act(act)? else {
            return Ok(());
        };
        let finalizers = fresh.metadata.finalizers.unwrap_or_default();
        if fresh.metadata.uid.as_deref() != Some(&object.uid)
            || !finalizers.iter().any(|name| name == finalizer)
        {
            return Ok(());
        }
        let kept: Vec<_> = finalizers.into_iter().filter(|name| name != finalizer).collect();
        let body = serde_json::json!({"metadata": {
            "uid": object.uid,
            "resourceVersion": fresh.metadata.resource_version,
            "finalizers": if kept.is_empty() { serde_json::Value::Null } else { serde_json::json!(kept) },
        }});
        api.patch(&object.key.name, &api::patch(), &api::merge(body)).await.act_or_gone(act)?;
        tracing::info!(kind = %object.plural, object = %object.key, finalizer, "finalizer dropped");
        Ok(())
    }

    async fn delete(&self, object: &Object, propagation: Propagation) -> Result<(), ApplyError> {
        let Some(api) = self.api(object) else {
            return Ok(());
        };
        let parameters = DeleteParams {
            propagation_policy: Some(match propagation {
                Propagation::Orphan => PropagationPolicy::Orphan,
                Propagation::Foreground => PropagationPolicy::Foreground,
                Propagation::Background => PropagationPolicy::Background,
            }),
            ..api::delete_uid(&object.uid)
        };
        let deleted = api.delete(&object.key.name, &parameters).await;
        deleted.act_or_gone(|| format!("delete {} {}", object.plural, object.key))?;
        tracing::info!(kind = %object.plural, object = %object.key, ?propagation, "deleted: its owners are gone");
        Ok(())
    }
}
