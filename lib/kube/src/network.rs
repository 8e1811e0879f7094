//! What a node's network parts (overlay, service rules, DNS) watch, kept once for all of them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::runtime::watcher;
use kube::{Api, Client};
use orlop_daemon::Frame;

use crate::{Informer, informer};

/// The label that ties an EndpointSlice to its Service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP, also for an absent field.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    fn parse(text: Option<&str>) -> Self {
        match text {
            Some("UDP") => Self::Udp,
            Some("SCTP") => Self::Sctp,
            _ => Self::Tcp,
        }
    }

    /// The lower-case name, as in DNS (`_tcp`) and in nftables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty when the only port has no name.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Port on the cluster address.
    pub port: u16,
    /// Port on every node; 0 is none.
    pub node_port: u16,
    /// The target when it is a number.
    pub target_port: Option<u16>,
}

/// A Service, as rules and DNS need it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// `spec.type`, for example `ClusterIP`.
    pub kind: String,
    /// Cluster addresses; empty for headless and ExternalName Services.
    pub cluster_ips: Vec<IpAddr>,
    /// `clusterIP: None`.
    pub headless: bool,
    /// Target of an ExternalName Service.
    pub external_name: Option<String>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// Addresses of a load balancer (`status.loadBalancer.ingress[].ip`).
    pub load_balancer_ips: Vec<IpAddr>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// `sessionAffinity: ClientIP` with its timeout in seconds.
    pub affinity_seconds: Option<u32>,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// `publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// Label `service.kubernetes.io/service-proxy-name` is set: another proxy serves it.
    pub foreign_proxy: bool,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Addresses, all of the slice's family.
    pub addresses: Vec<IpAddr>,
    /// Condition ready (absent counts as ready).
    pub ready: bool,
    /// Condition serving (absent counts as ready).
    pub serving: bool,
    /// Condition terminating.
    pub terminating: bool,
    /// Hostname for DNS.
    pub hostname: Option<String>,
    /// Node it runs on.
    pub node: Option<String>,
}

/// One port of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    /// Empty when unnamed; equals the Service port's name.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Port of the endpoints.
    pub port: u16,
}

/// An EndpointSlice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Name of its Service, in the same namespace.
    pub service: String,
    /// Endpoints.
    pub endpoints: Vec<Endpoint>,
    /// Ports.
    pub ports: Vec<EndpointPort>,
}

/// A Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// `spec.podCIDRs`, else `spec.podCIDR`.
    pub pod_cidrs: Vec<String>,
    /// Addresses of type InternalIP.
    pub internal_ips: Vec<IpAddr>,
    /// Annotations of flannel's (`flannel.alpha.coreos.com/…`).
    pub flannel: BTreeMap<String, String>,
}

/// One set of watches for all network parts.
#[derive(Clone, Debug)]
pub struct NetworkWatches {
    /// Services of all namespaces.
    pub services: Informer<Service>,
    /// EndpointSlices of all namespaces.
    pub slices: Informer<EndpointSlice>,
    /// Nodes.
    pub nodes: Informer<Node>,
}

impl NetworkWatches {
    /// Starts the three watches as tasks of the frame.
    pub fn start(frame: &Frame, client: &Client) -> Self {
        let all = watcher::Config::default;
        Self {
            services: informer(frame, "services", Api::all(client.clone()), all(), |object| {
                Some(service(&object))
            }),
            slices: informer(frame, "endpointslices", Api::all(client.clone()), all(), |object| {
                endpoint_slice(&object)
            }),
            nodes: informer(frame, "nodes", Api::all(client.clone()), all(), |object| Some(node(&object))),
        }
    }

    /// Empty watches for tests, fed by [`Informer::set`].
    pub fn detached(synced: bool) -> Self {
        Self {
            services: Informer::detached(synced),
            slices: Informer::detached(synced),
            nodes: Informer::detached(synced),
        }
    }
}

fn ips<'a>(texts: impl IntoIterator<Item = &'a String>) -> Vec<IpAddr> {
    texts.into_iter().filter_map(|text| text.parse().ok()).collect()
}

fn port(number: i32) -> u16 {
    u16::try_from(number).unwrap_or(0)
}

/// Projects a Service.
pub fn service(object: &core::Service) -> Service {
    let spec = object.spec.clone().unwrap_or_default();
    let headless = spec.cluster_ip.as_deref() == Some("None");
    let cluster_ips = match &spec.cluster_ips {
        Some(list) if !list.is_empty() => ips(list),
        _ => ips(spec.cluster_ip.as_ref()),
    };
    let status = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|balancer| balancer.ingress.as_ref()).into_iter().flatten();
    let affinity = spec.session_affinity.as_deref() == Some("ClientIP");
    let timeout = spec.session_affinity_config.and_then(|config| config.client_ip?.timeout_seconds);
    let labels = object.metadata.labels.as_ref();
    Service {
        kind: spec.type_.unwrap_or_else(|| "ClusterIP".to_owned()),
        cluster_ips,
        headless,
        external_name: spec.external_name,
        external_ips: ips(spec.external_ips.iter().flatten()),
        load_balancer_ips: ips(ingress.filter_map(|entry| entry.ip.as_ref())),
        ports: spec.ports.iter().flatten().map(service_port).collect(),
        affinity_seconds: affinity.then(|| u32::try_from(timeout.unwrap_or(10_800)).unwrap_or(10_800)),
        internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        foreign_proxy: labels
            .is_some_and(|labels| labels.contains_key("service.kubernetes.io/service-proxy-name")),
    }
}

fn service_port(object: &core::ServicePort) -> ServicePort {
    ServicePort {
        name: object.name.clone().unwrap_or_default(),
        protocol: Protocol::parse(object.protocol.as_deref()),
        port: port(object.port),
        node_port: port(object.node_port.unwrap_or(0)),
        target_port: match object.target_port {
            Some(IntOrString::Int(number)) => Some(port(number)),
            _ => None,
        },
    }
}

/// Projects an EndpointSlice; `None` for slices of no Service and of the FQDN type.
pub fn endpoint_slice(object: &discovery::EndpointSlice) -> Option<EndpointSlice> {
    let service = object.metadata.labels.as_ref()?.get(SERVICE_NAME_LABEL)?.clone();
    if object.address_type == "FQDN" {
        return None;
    }
    let endpoints = object.endpoints.iter().flatten();
    Some(EndpointSlice {
        service,
        endpoints: endpoints.map(endpoint).collect(),
        ports: object.ports.iter().flatten().filter_map(endpoint_port).collect(),
    })
}

fn endpoint(object: &discovery::Endpoint) -> Endpoint {
    let conditions = object.conditions.clone().unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    Endpoint {
        addresses: ips(&object.addresses),
        ready,
        serving: conditions.serving.unwrap_or(ready),
        terminating: conditions.terminating.unwrap_or(false),
        hostname: object.hostname.clone(),
        node: object.node_name.clone(),
    }
}

fn endpoint_port(object: &discovery::EndpointPort) -> Option<EndpointPort> {
    Some(EndpointPort {
        name: object.name.clone().unwrap_or_default(),
        protocol: Protocol::parse(object.protocol.as_deref()),
        port: port(object.port?),
    })
}

/// Projects a Node.
pub fn node(object: &core::Node) -> Node {
    let spec = object.spec.clone().unwrap_or_default();
    let addresses = object.status.as_ref().and_then(|status| status.addresses.as_ref()).into_iter().flatten();
    let annotations = object.metadata.annotations.clone().unwrap_or_default();
    Node {
        pod_cidrs: spec.pod_cidrs.or_else(|| spec.pod_cidr.map(|cidr| vec![cidr])).unwrap_or_default(),
        internal_ips: addresses
            .filter(|address| address.type_ == "InternalIP")
            .filter_map(|address| address.address.parse().ok())
            .collect(),
        flannel: annotations
            .into_iter()
            .filter(|(key, _)| key.starts_with("flannel.alpha.coreos.com/"))
            .collect(),
    }
}
