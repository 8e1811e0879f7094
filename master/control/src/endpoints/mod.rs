//! Endpoints and EndpointSlices of Services with a selector, and slices that mirror Endpoints objects kept by others.
//!
//! Invariant: Services without a selector are left alone, but for mirroring; `default/kubernetes` is the API server's own.

mod plan;
mod unseen;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Api;
use orlop_kube::Key;
use orlop_kube::network::SERVICE_NAME_LABEL;
use plan::{Address, SliceContent};
use unseen::Unseen;

use crate::Context;
use crate::api::{self, Act as _, ApplyError};
use crate::model::{EndpointSlice, Endpoints, Meta, Pod, Service, selects};
use crate::queue::{Next, WorkQueue, spawn_workers};
use crate::watch::{self, Routes};

const NAME: &str = "endpoints";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const SLICE_MANAGER: &str = "endpointslice-controller.k8s.io";
const MIRROR_MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";
const ENDPOINTS_MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// How long an echo of our own write may take before the informer is believed again.
const ECHO: Duration = Duration::from_secs(5);

struct Controller {
    context: Context,
    unseen: Unseen,
}

/// Starts the workers and their routes.
pub(crate) fn start(context: &Context, routes: &mut Routes) {
    let queue = WorkQueue::new("endpoint_slice", &context.queues);
    let unseen = Unseen::default();
    add_routes(context, routes, &queue, &unseen);
    let controller = Arc::new(Controller { context: context.clone(), unseen });
    let watches = context.watches.clone();
    let ready = move || {
        let watches = watches.clone();
        async move {
            watches.services.synced().await;
            watches.pods.synced().await;
            watches.endpoints.synced().await;
            watches.slices.synced().await;
        }
    };
    spawn_workers(&context.frame, NAME, &queue, context.config.concurrency, ready, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
}

fn add_routes(context: &Context, routes: &mut Routes, queue: &Arc<WorkQueue>, unseen: &Unseen) {
    routes.services.on({
        let queue = queue.clone();
        move |key, _, _| queue.add(key.clone())
    });
    routes.endpoints.on({
        let queue = queue.clone();
        move |key, _, _| queue.add(key.clone())
    });
    routes.slices.on({
        let (queue, unseen) = (queue.clone(), unseen.clone());
        move |key, old, new| {
            unseen.seen(key);
            for slice in old.into_iter().chain(new) {
                if let Some(name) = slice.meta.labels.get(SERVICE_NAME_LABEL) {
                    queue.add(Key { namespace: key.namespace.clone(), name: name.clone() });
                }
            }
        }
    });
    routes.pods.on({
        let (queue, services) = (queue.clone(), context.watches.services.clone());
        move |key, old, new| {
            if old.zip(new).is_some_and(|(old, new)| !matters(old, new)) {
                return;
            }
            for service in watch::in_namespace(&services, &key.namespace) {
                let selected =
                    |pod: Option<&Pod>| pod.is_some_and(|pod| selects(&service.selector, &pod.meta.labels));
                if selected(old) || selected(new) {
                    queue.add(Key { namespace: key.namespace.clone(), name: service.meta.name.clone() });
                }
            }
        }
    });
}

/// Whether a change of a pod can change an endpoint.
fn matters(old: &Pod, new: &Pod) -> bool {
    old.meta.uid != new.meta.uid
        || old.meta.labels != new.meta.labels
        || old.meta.deleting.is_some() != new.meta.deleting.is_some()
        || old.ips != new.ips
        || old.ready != new.ready
        || old.node != new.node
        || old.is_finished() != new.is_finished()
        || (&old.hostname, &old.subdomain) != (&new.hostname, &new.subdomain)
}

impl Controller {
    async fn reconcile(&self, key: Key) -> Result<Next, ApplyError> {
        let watches = &self.context.watches;
        let service = watches.services.get(&key).filter(|service| service.meta.deleting.is_none());
        let endpoints = watches.endpoints.get(&key).filter(|endpoints| endpoints.meta.deleting.is_none());
        let Some(service) = service else {
            // Slices go by their owner reference; an Endpoints object has none and goes here.
            if let Some(endpoints) = endpoints.filter(|endpoints| is_ours(endpoints)) {
                self.delete_endpoints(&endpoints).await?;
            }
            return Ok(Next::Done);
        };
        if service.external_name {
            return Ok(Next::Done);
        }
        let result = if service.selector.is_empty() {
            self.mirror(&service, endpoints).await
        } else {
            let pods = watch::in_namespace(&watches.pods, &key.namespace);
            self.write_endpoints(&service, &pods, endpoints).await?;
            let families = service.families.iter();
            let families = families
                .map(|family| (family.clone(), plan::addresses(&service, &pods, family)))
                .collect::<Vec<_>>();
            self.write_slices(&service.meta, service_owner(&service), &service, SLICE_MANAGER, &families)
                .await
        };
        match result {
            // Nothing can be made in a namespace that ends.
            Err(error) if api::is_namespace_terminating(error.cause()) => Ok(Next::Done),
            other => other,
        }
    }

    fn endpoints_api(&self, namespace: &str) -> Api<core::Endpoints> {
        Api::namespaced(self.context.client.clone(), namespace)
    }

    async fn delete_endpoints(&self, endpoints: &Endpoints) -> Result<(), ApplyError> {
        let api = self.endpoints_api(&endpoints.meta.namespace);
        let deleted = api.delete(&endpoints.meta.name, &api::delete_uid(&endpoints.meta.uid)).await;
        deleted.act_or_gone(|| format!("delete Endpoints {}", endpoints.meta.name))?;
        tracing::info!(service = %endpoints.meta.name, namespace = %endpoints.meta.namespace, "Endpoints deleted");
        Ok(())
    }

    async fn write_endpoints(
        &self,
        service: &Service,
        pods: &[Arc<Pod>],
        existing: Option<Arc<Endpoints>>,
    ) -> Result<(), ApplyError> {
        let family = service.families.first().map_or("IPv4", String::as_str);
        let (subsets, over) = plan::subsets(service, &plan::addresses(service, pods, family));
        let labels = endpoints_labels(service);
        if existing.as_ref().is_some_and(|existing| {
            existing.subsets == subsets && existing.meta.labels == labels && existing.over_capacity == over
        }) {
            return Ok(());
        }
        let mut object = core::Endpoints {
            metadata: ObjectMeta {
                name: Some(service.meta.name.clone()),
                namespace: Some(service.meta.namespace.clone()),
                labels: Some(labels),
                annotations: over.then(|| [(OVER_CAPACITY.to_owned(), "truncated".to_owned())].into()),
                ..ObjectMeta::default()
            },
            subsets: (!subsets.is_empty()).then_some(subsets),
        };
        let api = self.endpoints_api(&service.meta.namespace);
        let act = || format!("write Endpoints {}", service.meta.name);
        match existing {
            Some(existing) => {
                object.metadata.resource_version = Some(existing.meta.resource_version.clone());
                api.replace(&service.meta.name, &api::post(), &object).await.act_or_gone(act)?;
            }
            None => match api.create(&api::post(), &object).await {
                // Written before and not yet watched: its own event brings the key back.
                Err(error) if api::is_already_there(&error) => {}
                other => drop(other.act(act)?),
            },
        }
        tracing::info!(service = %service.meta.name, namespace = %service.meta.namespace, "Endpoints written");
        Ok(())
    }

    async fn mirror(&self, service: &Service, endpoints: Option<Arc<Endpoints>>) -> Result<Next, ApplyError> {
        let Some(endpoints) = endpoints else {
            return Ok(Next::Done);
        };
        let labels = &endpoints.meta.labels;
        let foreign = endpoints.meta.namespace == "default" && endpoints.meta.name == "kubernetes";
        if foreign || labels.get(SKIP_MIRROR).is_some_and(|value| value == "true") || is_ours(&endpoints) {
            return Ok(Next::Done);
        }
        let families: Vec<(String, Vec<Address>)> = ["IPv4", "IPv6"]
            .into_iter()
            .map(|family| (family.to_owned(), plan::mirrored(&endpoints.subsets, family)))
            .filter(|(_, addresses)| !addresses.is_empty())
            .collect();
        let owner = OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Endpoints".to_owned(),
            name: endpoints.meta.name.clone(),
            uid: endpoints.meta.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        };
        self.write_slices(&endpoints.meta, owner, service, MIRROR_MANAGER, &families).await
    }

    async fn write_slices(
        &self,
        source: &Meta,
        owner: OwnerReference,
        service: &Service,
        manager: &str,
        families: &[(String, Vec<Address>)],
    ) -> Result<Next, ApplyError> {
        let namespace = &service.meta.namespace;
        let Some(existing) = self.own_slices(namespace, &service.meta.name, manager) else {
            return Ok(Next::After(ECHO));
        };
        let mut plan = plan::plan_slices(&existing, families);
        let api: Api<discovery::EndpointSlice> = Api::namespaced(self.context.client.clone(), namespace);
        let labels = slice_labels(source, service, manager);
        plan::relabel(&mut plan, &existing, &labels);
        let (made, updated, deleted) = (plan.create.len(), plan.update.len(), plan.delete.len());
        for (old, content) in plan.update {
            let mut object = slice_object(&service.meta, &owner, &labels, content);
            object.metadata.name = Some(old.meta.name.clone());
            object.metadata.generate_name = None;
            object.metadata.resource_version = Some(old.meta.resource_version.clone());
            let name = &old.meta.name;
            let replaced = api.replace(name, &api::post(), &object).await;
            if replaced.act_or_gone(|| format!("write EndpointSlice {name}"))?.is_some() {
                self.expect(&service.meta, name, &old.meta.resource_version);
            }
        }
        for content in plan.create {
            let object = slice_object(&service.meta, &owner, &labels, content);
            let created = api.create(&api::post(), &object).await;
            let created = created.act(|| format!("create an EndpointSlice of {}", service.meta.name))?;
            self.expect(&service.meta, created.metadata.name.as_deref().unwrap_or_default(), "");
        }
        for slice in plan.delete {
            let name = &slice.meta.name;
            let gone = api.delete(name, &api::delete_uid(&slice.meta.uid)).await;
            if gone.act_or_gone(|| format!("delete EndpointSlice {name}"))?.is_some() {
                self.expect(&service.meta, name, &slice.meta.resource_version);
            }
        }
        if made + updated + deleted > 0 {
            tracing::info!(service = %service.meta.name, %namespace, made, updated, deleted, "EndpointSlices written");
        }
        Ok(Next::Done)
    }

    /// The slices as watched; `None` while a write of ours has not come back. Asked before the slices are read: an echo that came
    /// earlier is then among them.
    fn own_slices(&self, namespace: &str, service: &str, manager: &str) -> Option<Vec<Arc<EndpointSlice>>> {
        let key = Key { namespace: namespace.to_owned(), name: service.to_owned() };
        if self.unseen.holds_any_of(&key) {
            return None;
        }
        let slices =
            watch::in_namespace(&self.context.watches.slices, namespace).into_iter().filter(|slice| {
                let label = |key: &str| slice.meta.labels.get(key).map(String::as_str);
                label(SERVICE_NAME_LABEL) == Some(service)
                    && label(MANAGED_BY) == Some(manager)
                    && slice.meta.deleting.is_none()
            });
        Some(slices.collect())
    }

    /// Remembers a write until the watch shows it; an echo that was skipped is forgotten after a while.
    fn expect(&self, service: &Meta, name: &str, version_before: &str) {
        let service = Key { namespace: service.namespace.clone(), name: service.name.clone() };
        let key = Key { namespace: service.namespace.clone(), name: name.to_owned() };
        let ticket = rand::random::<u64>();
        self.unseen.add(&key, service, ticket);
        // The watch may have been quicker than the answer. Asked after the insertion, so that one of both sees the other.
        let watched = self.context.watches.slices.get(&key).map(|slice| slice.meta.resource_version.clone());
        if watched.unwrap_or_default() != version_before {
            self.unseen.seen(&key);
            return;
        }
        let (unseen, drain) = (self.unseen.clone(), self.context.frame.drain());
        // Bounded by the slices written within the echo time; ends by itself.
        tokio::spawn(async move {
            drain.sleep(ECHO).await;
            unseen.expire(&key, ticket);
        });
    }
}

/// Endpoints objects made by this controller carry its label since Kubernetes 1.33.
fn is_ours(endpoints: &Endpoints) -> bool {
    endpoints.meta.labels.get(ENDPOINTS_MANAGED_BY).is_some_and(|manager| manager == "endpoint-controller")
}

fn endpoints_labels(service: &Service) -> crate::model::Labels {
    let mut labels = service.meta.labels.clone();
    labels.insert(ENDPOINTS_MANAGED_BY.to_owned(), "endpoint-controller".to_owned());
    if service.headless {
        labels.insert(HEADLESS_LABEL.to_owned(), String::new());
    }
    labels
}

fn slice_labels(source: &Meta, service: &Service, manager: &str) -> crate::model::Labels {
    let mut labels = source.labels.clone();
    labels.remove(ENDPOINTS_MANAGED_BY);
    labels.insert(SERVICE_NAME_LABEL.to_owned(), service.meta.name.clone());
    labels.insert(MANAGED_BY.to_owned(), manager.to_owned());
    if service.headless {
        labels.insert(HEADLESS_LABEL.to_owned(), String::new());
    }
    labels
}

fn service_owner(service: &Service) -> OwnerReference {
    OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Service".to_owned(),
        name: service.meta.name.clone(),
        uid: service.meta.uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

fn slice_object(
    service: &Meta,
    owner: &OwnerReference,
    labels: &crate::model::Labels,
    content: SliceContent,
) -> discovery::EndpointSlice {
    discovery::EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", service.name)),
            namespace: Some(service.namespace.clone()),
            labels: Some(labels.clone()),
            owner_references: Some(vec![owner.clone()]),
            ..ObjectMeta::default()
        },
        address_type: content.address_type,
        endpoints: Some(content.endpoints),
        ports: Some(content.ports),
    }
}
