//! Services as environment variables need them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;
use kube::Api;
use orlop_kube::{Informer, informer};

use crate::container::env::{Port, Service};

/// Watches the Services of all namespaces.
pub(crate) fn watch(frame: &orlop_daemon::Frame, client: &kube::Client) -> Informer<Service> {
    informer(
        frame,
        "services",
        Api::<core::Service>::all(client.clone()),
        kube::runtime::watcher::Config::default(),
        |service| project(&service),
    )
}

fn project(service: &core::Service) -> Option<Service> {
    let spec = service.spec.as_ref()?;
    // Headless and ExternalName Services have no variables.
    let address = spec.cluster_ip.as_ref()?.parse().ok()?;
    let port = |port: &core::ServicePort| Port {
        name: port.name.clone().unwrap_or_default(),
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
        port: port.port,
    };
    Some(Service { address, ports: spec.ports.iter().flatten().map(port).collect() })
}

/// What a pod of `namespace` sees: its namespace's Services when links are on, and always the API server's.
pub(crate) fn visible(
    services: &Informer<Service>,
    namespace: &str,
    links: bool,
) -> BTreeMap<String, Service> {
    services.with(|all| {
        let mut seen = BTreeMap::new();
        for (key, service) in all {
            let api_server = key.namespace == "default" && key.name == "kubernetes";
            let own = links && key.namespace == namespace;
            if own || (api_server && !seen.contains_key(&key.name)) {
                seen.insert(key.name.clone(), (**service).clone());
            }
        }
        seen
    })
}
