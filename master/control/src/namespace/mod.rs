//! Empties a namespace that is being deleted and then lets it go.
//!
//! ```text
//!   deleting --round: pods first, then the rest--> remains? --yes: conditions, look again--> next round
//!                                                   \--no--> finalizer "kubernetes" removed through /finalize
//! ```
//!
//! Every round lists live, so what is made in between is caught by the next one.

mod plan;

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams};
use kube::{Api, core::PartialObjectMeta};
use orlop_kube::Key;
use plan::Remains;

use crate::Context;
use crate::api::{self, Act as _, ApplyError};
use crate::collector::resources::{self, Kind};
use crate::model::Namespace;
use crate::queue::{Next, WorkQueue, spawn_workers};
use crate::watch::Routes;

const NAME: &str = "namespace";
const FINALIZER: &str = "kubernetes";
const PAGE: u32 = 500;
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Starts the workers and their routes.
pub(crate) fn start(context: &Context, routes: &mut Routes) {
    let queue = WorkQueue::new("namespace", &context.queues);
    routes.namespaces.on({
        let queue = queue.clone();
        move |key, _, new| {
            if new.is_some_and(|namespace| !namespace.is_active()) {
                queue.add(key.clone());
            }
        }
    });
    // Something left a namespace that waits to be empty.
    routes.on_any({
        let (queue, namespaces) = (queue.clone(), context.watches.namespaces.clone());
        move |_, key, old, new| {
            if old.is_some() && new.is_none() && !key.namespace.is_empty() {
                let key = Key { namespace: String::new(), name: key.namespace.clone() };
                if namespaces.get(&key).is_some_and(|namespace| !namespace.is_active()) {
                    queue.add(key);
                }
            }
        }
    });
    let namespaces = context.watches.namespaces.clone();
    let ready = move || {
        let namespaces = namespaces.clone();
        async move { namespaces.synced().await }
    };
    let context = context.clone();
    let (frame, workers) = (context.frame.clone(), context.config.concurrency);
    spawn_workers(&frame, NAME, &queue, workers, ready, move |key| {
        let context = context.clone();
        async move { reconcile(&context, &key).await }
    });
}

async fn reconcile(context: &Context, key: &Key) -> Result<Next, ApplyError> {
    let Some(namespace) = context.watches.namespaces.get(key).filter(|namespace| !namespace.is_active())
    else {
        return Ok(Next::Done);
    };
    if !namespace.finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
        return Ok(Next::Done);
    }
    let kinds = resources::discover(&context.client).await.act(|| "discover resources".to_owned())?;
    let remains = empty(context, &key.name, &kinds).await;
    if remains.is_empty() {
        finalize(context, &namespace).await?;
        tracing::info!(namespace = %key.name, "namespace emptied");
        return Ok(Next::Done);
    }
    write_conditions(context, &namespace, &remains).await?;
    tracing::debug!(namespace = %key.name, ?remains, "namespace not empty yet");
    Ok(Next::After(LOOK_AGAIN))
}

/// One round: pods first, so that what they need (secrets, services) outlives them (KEP-5080), then everything else.
async fn empty(context: &Context, namespace: &str, kinds: &[Kind]) -> Remains {
    let mut remains = Remains::default();
    let is_pods = |kind: &Kind| kind.resource.group.is_empty() && kind.resource.plural == "pods";
    let deletable = |kind: &&Kind| kind.namespaced && kind.can("delete") && kind.can("list");
    for kind in kinds.iter().filter(deletable).filter(|kind| is_pods(kind)) {
        delete_all(context, namespace, &kind.resource, &mut remains).await;
    }
    if !remains.is_empty() {
        return remains;
    }
    let rest: Vec<_> = kinds.iter().filter(deletable).filter(|kind| !is_pods(kind)).collect();
    for kind in rest {
        delete_all(context, namespace, &kind.resource, &mut remains).await;
    }
    remains
}

async fn delete_all(context: &Context, namespace: &str, resource: &ApiResource, remains: &mut Remains) {
    let name = if resource.group.is_empty() {
        resource.plural.clone()
    } else {
        format!("{}.{}", resource.plural, resource.group)
    };
    if let Err(error) = try_delete_all(context, namespace, resource, &name, remains).await {
        remains.failures.push(format!("{name}: {}", api::message(&error)));
    }
}

async fn try_delete_all(
    context: &Context,
    namespace: &str,
    resource: &ApiResource,
    name: &str,
    remains: &mut Remains,
) -> Result<(), kube::Error> {
    let api: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), namespace, resource);
    let found = list(&api).await?;
    if found.is_empty() {
        return Ok(());
    }
    for object in found.iter().filter(|object| object.metadata.deletion_timestamp.is_none()) {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        match api.delete(name, &DeleteParams::background()).await {
            Err(error) if !api::is_not_found(&error) && !api::is_conflict(&error) => return Err(error),
            _ => {}
        }
    }
    let left = list(&api).await?;
    if !left.is_empty() {
        remains.objects.insert(name.to_owned(), left.len());
    }
    for finalizer in left.iter().flat_map(|object| object.metadata.finalizers.iter().flatten()) {
        *remains.finalizers.entry(finalizer.clone()).or_default() += 1;
    }
    Ok(())
}

/// The first page is enough: a round that leaves something is followed by another.
async fn list(api: &Api<DynamicObject>) -> Result<Vec<PartialObjectMeta<DynamicObject>>, kube::Error> {
    Ok(api.list_metadata(&ListParams::default().limit(PAGE)).await?.items)
}

async fn write_conditions(
    context: &Context,
    namespace: &Namespace,
    remains: &Remains,
) -> Result<(), ApplyError> {
    let wanted = remains.conditions();
    let is_same = wanted.iter().all(|condition| namespace.conditions.contains(condition));
    if is_same {
        return Ok(());
    }
    let now = Time(Timestamp::now());
    let rows: Vec<_> = wanted
        .iter()
        .filter(|row| !namespace.conditions.contains(row))
        .map(|(kind, status, reason, message)| {
            serde_json::json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": now})
        })
        .collect();
    let api: Api<core::Namespace> = Api::all(context.client.clone());
    let body = serde_json::json!({"status": {"conditions": rows}});
    let patched = api.patch_status(&namespace.meta.name, &api::patch(), &api::strategic(body)).await;
    patched.act_or_gone(|| format!("write the status of namespace {}", namespace.meta.name))?;
    Ok(())
}

async fn finalize(context: &Context, namespace: &Namespace) -> Result<(), ApplyError> {
    let api: Api<core::Namespace> = Api::all(context.client.clone());
    let name = &namespace.meta.name;
    let act = || format!("finalize namespace {name}");
    let Some(mut fresh) = api.get_opt(name).await.act(act)? else {
        return Ok(());
    };
    if fresh.metadata.uid.as_deref() != Some(&namespace.meta.uid) {
        return Ok(());
    }
    if let Some(finalizers) = fresh.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
        finalizers.retain(|finalizer| finalizer != FINALIZER);
    }
    let answer = api.replace_subresource("finalize", name, &api::post(), &fresh).await;
    answer.act_or_gone(act)?;
    Ok(())
}
