//! One set of watches for all controllers, and the routers that turn changes into dirty keys.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::coordination::v1 as coordination;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use orlop_daemon::Frame;
use orlop_kube::{Informer, Key, informer};
use serde::de::DeserializeOwned;

use crate::model::{
    ConfigMap, EndpointSlice, Endpoints, HasMeta, Lease, Meta, Namespace, Node, Pod, Service, Workload,
};

/// The shared informers.
#[derive(Clone, Debug)]
pub(crate) struct Watches {
    pub(crate) pods: Informer<Pod>,
    pub(crate) nodes: Informer<Node>,
    pub(crate) namespaces: Informer<Namespace>,
    pub(crate) services: Informer<Service>,
    pub(crate) endpoints: Informer<Endpoints>,
    pub(crate) slices: Informer<EndpointSlice>,
    pub(crate) replication: Informer<Workload>,
    pub(crate) accounts: Informer<Meta>,
    pub(crate) config_maps: Informer<ConfigMap>,
    pub(crate) leases: Informer<Lease>,
}

fn all<K, V>(
    frame: &Frame,
    client: &Client,
    name: &str,
    project: impl Fn(K) -> V + Send + Sync + 'static,
) -> Informer<V>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
    V: Send + Sync + 'static,
{
    informer(frame, name, Api::all(client.clone()), watcher::Config::default(), move |object| {
        Some(project(object))
    })
}

impl Watches {
    pub(crate) fn start(frame: &Frame, client: &Client) -> Self {
        Self {
            pods: all(frame, client, "pods", |object: core::Pod| Pod::of(&object)),
            nodes: all(frame, client, "nodes", |object: core::Node| Node::of(&object)),
            namespaces: all(frame, client, "namespaces", |object: core::Namespace| Namespace::of(&object)),
            services: all(frame, client, "services", |object: core::Service| Service::of(&object)),
            endpoints: all(frame, client, "endpoints", |object: core::Endpoints| Endpoints::of(object)),
            slices: all(frame, client, "endpointslices", |object: discovery::EndpointSlice| {
                EndpointSlice::of(object)
            }),
            replication: all(
                frame,
                client,
                "replicationcontrollers",
                |object: core::ReplicationController| Workload::of(object),
            ),
            accounts: all(frame, client, "serviceaccounts", |object: core::ServiceAccount| {
                Meta::of(&object.metadata)
            }),
            config_maps: all(frame, client, "configmaps", |object: core::ConfigMap| ConfigMap::of(&object)),
            leases: all(frame, client, "leases", |object: coordination::Lease| Lease::of(&object)),
        }
    }
}

impl Watches {
    /// Resolves once every informer is synced.
    pub(crate) async fn all_synced(&self) {
        self.pods.synced().await;
        self.nodes.synced().await;
        self.namespaces.synced().await;
        self.services.synced().await;
        self.endpoints.synced().await;
        self.slices.synced().await;
        self.replication.synced().await;
        self.accounts.synced().await;
        self.config_maps.synced().await;
        self.leases.synced().await;
    }
}

/// The objects of one namespace.
pub(crate) fn in_namespace<V>(informer: &Informer<V>, namespace: &str) -> Vec<Arc<V>> {
    let first = Key { namespace: namespace.to_owned(), name: String::new() };
    informer.with(|objects| {
        let range = objects.range(first..).take_while(|(key, _)| key.namespace == namespace);
        range.map(|(_, value)| value.clone()).collect()
    })
}

type Listener<V> = Box<dyn Fn(&Key, Option<&V>, Option<&V>) + Send + Sync>;

/// Calls listeners with the old and the new state of every changed object, so that a deletion can still be mapped to its keys.
///
/// Both are `None` for an object that came and went between two looks; states in between are skipped.
pub(crate) struct Route<V> {
    informer: Informer<V>,
    name: String,
    listeners: Vec<Listener<V>>,
}

impl<V: Send + Sync + 'static> Route<V> {
    pub(crate) fn new(name: &str, informer: &Informer<V>) -> Self {
        Self { informer: informer.clone(), name: name.to_owned(), listeners: Vec::new() }
    }

    /// Adds a listener; it must be quick.
    pub(crate) fn on(&mut self, listener: impl Fn(&Key, Option<&V>, Option<&V>) + Send + Sync + 'static) {
        self.listeners.push(Box::new(listener));
    }

    pub(crate) fn spawn(self, frame: &Frame) {
        let drain = frame.drain();
        frame.spawn(format!("route-{}", self.name), async move {
            let subscription = self.informer.subscribe();
            let mut previous: HashMap<Key, Arc<V>> = HashMap::new();
            loop {
                let changed = tokio::select! {
                    changed = subscription.changed() => changed,
                    () = drain.wait() => return Ok(()),
                };
                for key in changed {
                    let new = self.informer.get(&key);
                    let old = match &new {
                        Some(new) => previous.insert(key.clone(), new.clone()),
                        None => previous.remove(&key),
                    };
                    for listener in &self.listeners {
                        listener(&key, old.as_deref(), new.as_deref());
                    }
                }
            }
        });
    }
}

/// One route per shared informer.
pub(crate) struct Routes {
    pub(crate) pods: Route<Pod>,
    pub(crate) nodes: Route<Node>,
    pub(crate) namespaces: Route<Namespace>,
    pub(crate) services: Route<Service>,
    pub(crate) endpoints: Route<Endpoints>,
    pub(crate) slices: Route<EndpointSlice>,
    pub(crate) replication: Route<Workload>,
    pub(crate) accounts: Route<Meta>,
    pub(crate) config_maps: Route<ConfigMap>,
    pub(crate) leases: Route<Lease>,
}

impl Routes {
    pub(crate) fn new(watches: &Watches) -> Self {
        Self {
            pods: Route::new("pods", &watches.pods),
            nodes: Route::new("nodes", &watches.nodes),
            namespaces: Route::new("namespaces", &watches.namespaces),
            services: Route::new("services", &watches.services),
            endpoints: Route::new("endpoints", &watches.endpoints),
            slices: Route::new("endpointslices", &watches.slices),
            replication: Route::new("replicationcontrollers", &watches.replication),
            accounts: Route::new("serviceaccounts", &watches.accounts),
            config_maps: Route::new("configmaps", &watches.config_maps),
            leases: Route::new("leases", &watches.leases),
        }
    }

    pub(crate) fn spawn(self, frame: &Frame) {
        self.pods.spawn(frame);
        self.nodes.spawn(frame);
        self.namespaces.spawn(frame);
        self.services.spawn(frame);
        self.endpoints.spawn(frame);
        self.slices.spawn(frame);
        self.replication.spawn(frame);
        self.accounts.spawn(frame);
        self.config_maps.spawn(frame);
        self.leases.spawn(frame);
    }

    /// Calls `listener` for every change of every routed kind with its metadata, old and new.
    pub(crate) fn on_any(
        &mut self,
        listener: impl Fn(&str, &Key, Option<&Meta>, Option<&Meta>) + Clone + Send + Sync + 'static,
    ) {
        fn add<V: HasMeta + Send + Sync + 'static>(
            route: &mut Route<V>,
            listener: impl Fn(&str, &Key, Option<&Meta>, Option<&Meta>) + Send + Sync + 'static,
        ) {
            let name = route.name.clone();
            route.on(move |key, old, new| {
                listener(&name, key, old.map(HasMeta::meta), new.map(HasMeta::meta))
            });
        }
        add(&mut self.pods, listener.clone());
        add(&mut self.nodes, listener.clone());
        add(&mut self.namespaces, listener.clone());
        add(&mut self.services, listener.clone());
        add(&mut self.endpoints, listener.clone());
        add(&mut self.slices, listener.clone());
        add(&mut self.replication, listener.clone());
        add(&mut self.accounts, listener.clone());
        add(&mut self.config_maps, listener.clone());
        add(&mut self.leases, listener);
    }
}
