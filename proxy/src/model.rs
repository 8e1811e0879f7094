//! What is known of Services and their endpoints, and which front ends follow from it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use orlop_kube::Key;
use orlop_kube::network::{EndpointSlice, Protocol, Service, ServicePort};
use orlop_nft::IpVersion;

/// Where packets come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Place {
    /// At an address of the Service.
    Address(IpAddr),
    /// At a port of this node, of this IP version.
    NodePort(IpVersion),
}

impl Place {
    pub(crate) const fn version(self) -> IpVersion {
        match self {
            Self::Address(address) => IpVersion::of(address),
            Self::NodePort(version) => version,
        }
    }
}

/// What a packet must have to be meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct FrontendKey {
    pub(crate) place: Place,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
}

/// What is done with a packet when no endpoint is left for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WhenEmpty {
    /// The Service has no endpoint at all: say so.
    Reject,
    /// There are endpoints, but the traffic policy keeps this packet from them: another node may be right.
    Drop,
}

/// One way into a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frontend {
    /// Endpoints, sorted, without duplicates.
    pub(crate) endpoints: Vec<SocketAddr>,
    /// With `externalTrafficPolicy: Local`, where clients inside the cluster go: to all endpoints.
    pub(crate) inside: Option<Vec<SocketAddr>>,
    /// `sessionAffinity: ClientIP`: silence in seconds after which it is forgotten.
    pub(crate) affinity_seconds: Option<u32>,
    /// The endpoint must see this node as the client, so that its answer comes back this way.
    pub(crate) masquerade: bool,
    /// The place is a cluster address.
    pub(crate) cluster_address: bool,
    pub(crate) when_empty: WhenEmpty,
}

/// Services and slices, indexed.
#[derive(Debug, Default)]
pub(crate) struct Model {
    services: BTreeMap<Key, Arc<Service>>,
    slices: BTreeMap<Key, Arc<EndpointSlice>>,
    /// Slices by Service.
    of_service: BTreeMap<Key, BTreeSet<Key>>,
}

impl Model {
    /// Takes in a Service; its front ends are to be looked at again.
    pub(crate) fn set_service(&mut self, key: &Key, service: Option<Arc<Service>>) {
        match service {
            Some(service) => drop(self.services.insert(key.clone(), service)),
            None => drop(self.services.remove(key)),
        }
    }

    /// Takes in a slice and returns the Services that it touches: the one it belonged to and the one it belongs to.
    pub(crate) fn set_slice(&mut self, key: &Key, slice: Option<Arc<EndpointSlice>>) -> BTreeSet<Key> {
        let mut touched = BTreeSet::new();
        if let Some(old) = self.slices.remove(key) {
            let service = service_key(key, &old);
            if let Some(slices) = self.of_service.get_mut(&service) {
                slices.remove(key);
                if slices.is_empty() {
                    self.of_service.remove(&service);
                }
            }
            touched.insert(service);
        }
        if let Some(slice) = slice {
            let service = service_key(key, &slice);
            self.of_service.entry(service.clone()).or_default().insert(key.clone());
            self.slices.insert(key.clone(), slice);
            touched.insert(service);
        }
        touched
    }

    /// Number of Services.
    pub(crate) fn len(&self) -> usize {
        self.services.len()
    }

    /// The front ends of one Service on this node; none when it is not ours to serve.
    pub(crate) fn frontends(&self, key: &Key, node: &str) -> Vec<(FrontendKey, Frontend)> {
        let Some(service) = self.services.get(key) else {
            return Vec::new();
        };
        if service.headless || service.foreign_proxy || service.kind == "ExternalName" {
            return Vec::new();
        }
        let mut frontends = Vec::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            for port in &service.ports {
                let endpoints = self.endpoints(key, port, node, version);
                port_frontends(service, port, version, &endpoints, &mut frontends);
            }
        }
        frontends
    }

    /// The addresses of endpoints on this node (or on no node that is known): only those can call themselves through a Service.
    pub(crate) fn local_addresses(&self, key: &Key, node: &str) -> BTreeSet<IpAddr> {
        self.service_slices(key)
            .flat_map(|slice| &slice.endpoints)
            .filter(|endpoint| endpoint.node.as_deref().is_none_or(|name| name == node))
            .flat_map(|endpoint| endpoint.addresses.iter().copied())
            .collect()
    }

    fn service_slices(&self, key: &Key) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        self.of_service.get(key).into_iter().flatten().filter_map(|slice| self.slices.get(slice))
    }

    fn endpoints(&self, key: &Key, port: &ServicePort, node: &str, version: IpVersion) -> Endpoints {
        let (mut all, mut local) = (Candidates::default(), Candidates::default());
        for slice in self.service_slices(key) {
            let ports =
                slice.ports.iter().filter(|found| found.name == port.name && found.protocol == port.protocol);
            for number in ports.map(|found| found.port) {
                for endpoint in &slice.endpoints {
                    let is_local = endpoint.node.as_deref() == Some(node);
                    for address in
                        endpoint.addresses.iter().filter(|address| IpVersion::of(**address) == version)
                    {
                        let address = SocketAddr::new(*address, number);
                        all.add(address, endpoint);
                        if is_local {
                            local.add(address, endpoint);
                        }
                    }
                }
            }
        }
        Endpoints { all: all.usable(), local: local.usable() }
    }
}

fn service_key(slice_key: &Key, slice: &EndpointSlice) -> Key {
    Key { namespace: slice_key.namespace.clone(), name: slice.service.clone() }
}

/// Endpoints that packets may go to.
struct Endpoints {
    all: Vec<SocketAddr>,
    local: Vec<SocketAddr>,
}

#[derive(Default)]
struct Candidates {
    ready: BTreeSet<SocketAddr>,
    /// Shutting down but still answering: used when nothing else is left (KEP-1669).
    leaving: BTreeSet<SocketAddr>,
}

impl Candidates {
    fn add(&mut self, address: SocketAddr, endpoint: &orlop_kube::network::Endpoint) {
        if endpoint.ready {
            self.ready.insert(address);
        } else if endpoint.serving && endpoint.terminating {
            self.leaving.insert(address);
        }
    }

    fn usable(self) -> Vec<SocketAddr> {
        let chosen = if self.ready.is_empty() { self.leaving } else { self.ready };
        chosen.into_iter().collect()
    }
}

fn port_frontends(
    service: &Service,
    port: &ServicePort,
    version: IpVersion,
    endpoints: &Endpoints,
    into: &mut Vec<(FrontendKey, Frontend)>,
) {
    let when_empty = if endpoints.all.is_empty() { WhenEmpty::Reject } else { WhenEmpty::Drop };
    let internal = Frontend {
        endpoints: if service.internal_local { endpoints.local.clone() } else { endpoints.all.clone() },
        inside: None,
        affinity_seconds: service.affinity_seconds,
        masquerade: false,
        cluster_address: true,
        when_empty,
    };
    let external = || Frontend {
        endpoints: if service.external_local { endpoints.local.clone() } else { endpoints.all.clone() },
        inside: service.external_local.then(|| endpoints.all.clone()),
        masquerade: !service.external_local,
        cluster_address: false,
        ..internal.clone()
    };
    let key = |place, number| FrontendKey { place, protocol: port.protocol, port: number };
    let of_version = |addresses: &[IpAddr]| -> Vec<IpAddr> {
        addresses.iter().filter(|address| IpVersion::of(**address) == version).copied().collect()
    };
    for address in of_version(&service.cluster_ips) {
        into.push((key(Place::Address(address), port.port), internal.clone()));
    }
    let has_addresses = !of_version(&service.cluster_ips).is_empty();
    for address in of_version(&service.external_ips).into_iter().chain(of_version(&service.load_balancer_ips))
    {
        into.push((key(Place::Address(address), port.port), external()));
    }
    if port.node_port != 0 && has_addresses {
        into.push((key(Place::NodePort(version), port.node_port), external()));
    }
}

#[cfg(test)]
mod tests {
    use orlop_kube::network::{Endpoint, EndpointPort};

    use super::*;

    fn key(name: &str) -> Key {
        Key { namespace: "default".into(), name: name.into() }
    }

    fn endpoint(last: u8, node: &str, state: &str) -> Endpoint {
        Endpoint {
            addresses: vec![IpAddr::from([10, 244, 0, last])],
            ready: state == "ready",
            serving: state != "dead",
            terminating: state == "leaving",
            hostname: None,
            node: Some(node.into()),
        }
    }

    fn model(service: Service, endpoints: Vec<Endpoint>) -> Model {
        let mut model = Model::default();
        model.set_service(&key("web"), Some(Arc::new(service)));
        let ports = vec![EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }];
        let slice = EndpointSlice { service: "web".into(), endpoints, ports };
        assert_eq!(model.set_slice(&key("web-1"), Some(Arc::new(slice))), BTreeSet::from([key("web")]));
        model
    }

    fn service() -> Service {
        Service {
            kind: "NodePort".into(),
            cluster_ips: vec!["10.96.0.7".parse().unwrap()],
            external_ips: vec!["203.0.113.9".parse().unwrap()],
            ports: vec![ServicePort {
                name: "http".into(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: 30080,
                target_port: None,
            }],
            ..Service::default()
        }
    }

    /// Each front end as `place: endpoints (inside) flags`.
    fn shown(model: &Model) -> Vec<String> {
        let last = |list: &[SocketAddr]| {
            list.iter()
                .map(|address| address.ip().to_string().rsplit_once('.').unwrap().1.to_owned())
                .collect::<Vec<_>>()
                .join(" ")
        };
        model
            .frontends(&key("web"), "here")
            .into_iter()
            .map(|(key, frontend)| {
                let place = match key.place {
                    Place::Address(address) => format!("{address}:{}", key.port),
                    Place::NodePort(_) => format!("node:{}", key.port),
                };
                let inside = frontend
                    .inside
                    .as_ref()
                    .map(|list| format!(" inside [{}]", last(list)))
                    .unwrap_or_default();
                let masquerade = if frontend.masquerade { " masquerade" } else { "" };
                let empty = if frontend.endpoints.is_empty() {
                    format!(" {:?}", frontend.when_empty)
                } else {
                    String::new()
                };
                format!("{place} [{}]{inside}{masquerade}{empty}", last(&frontend.endpoints))
            })
            .collect()
    }

    #[test]
    fn policies_choose_endpoints() {
        let endpoints = || {
            vec![endpoint(1, "here", "ready"), endpoint(2, "there", "ready"), endpoint(3, "there", "dead")]
        };
        assert_eq!(
            shown(&model(service(), endpoints())),
            ["10.96.0.7:80 [1 2]", "203.0.113.9:80 [1 2] masquerade", "node:30080 [1 2] masquerade"]
        );
        let local = Service { internal_local: true, external_local: true, ..service() };
        assert_eq!(
            shown(&model(local.clone(), endpoints())),
            ["10.96.0.7:80 [1]", "203.0.113.9:80 [1] inside [1 2]", "node:30080 [1] inside [1 2]"]
        );
        assert_eq!(
            shown(&model(local.clone(), vec![endpoint(2, "there", "ready")])),
            ["10.96.0.7:80 [] Drop", "203.0.113.9:80 [] inside [2] Drop", "node:30080 [] inside [2] Drop"]
        );
        assert_eq!(shown(&model(service(), vec![]))[0], "10.96.0.7:80 [] Reject");
    }

    #[test]
    fn leaving_endpoints_serve_when_nothing_else_does() {
        let leaving = endpoint(1, "here", "leaving");
        assert_eq!(
            shown(&model(service(), vec![leaving.clone(), endpoint(2, "there", "ready")]))[0],
            "10.96.0.7:80 [2]"
        );
        assert_eq!(
            shown(&model(service(), vec![leaving.clone(), endpoint(2, "there", "dead")]))[0],
            "10.96.0.7:80 [1]"
        );
        let local = Service { external_local: true, ..service() };
        let shown = shown(&model(local, vec![leaving, endpoint(2, "there", "ready")]));
        assert_eq!(shown[2], "node:30080 [1] inside [2]");
    }

    #[test]
    fn services_of_others_are_left_alone() {
        for other in [
            Service { headless: true, cluster_ips: vec![], ..service() },
            Service { foreign_proxy: true, ..service() },
            Service { kind: "ExternalName".into(), ..service() },
        ] {
            assert!(shown(&model(other, vec![])).is_empty());
        }
    }

    #[test]
    fn a_slice_that_changes_hands_touches_both() {
        let mut model = model(service(), vec![]);
        let slice = EndpointSlice { service: "other".into(), ..EndpointSlice::default() };
        let touched = model.set_slice(&key("web-1"), Some(Arc::new(slice)));
        assert_eq!(touched, BTreeSet::from([key("other"), key("web")]));
        assert_eq!(model.set_slice(&key("web-1"), None), BTreeSet::from([key("other")]));
        assert!(model.of_service.is_empty());
    }
}
