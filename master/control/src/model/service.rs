use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{HasMeta, Labels, Meta};

/// Where a Service port leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// The same port number on every pod.
    Number(u16),
    /// The container port of that name.
    Name(String),
}

/// A Service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Name, maybe empty.
    pub name: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// `appProtocol`.
    pub app_protocol: Option<String>,
    /// Where it leads.
    pub target: TargetPort,
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Metadata.
    pub meta: Meta,
    /// Selector; empty means that somebody else keeps the endpoints.
    pub selector: Labels,
    /// `type: ExternalName`.
    pub external_name: bool,
    /// `clusterIP: None`.
    pub headless: bool,
    /// Whether endpoints count as ready at once.
    pub publish_not_ready: bool,
    /// `IPv4`, `IPv6`.
    pub families: Vec<String>,
    /// Ports.
    pub ports: Vec<ServicePort>,
}

impl HasMeta for Service {
    fn meta(&self) -> &Meta {
        &self.meta
    }
}

impl Service {
    /// Projects a Service.
    pub fn of(object: &core::Service) -> Self {
        let spec = object.spec.clone().unwrap_or_default();
        let families = spec.ip_families.filter(|families| !families.is_empty());
        let is_v6 = spec.cluster_ip.as_ref().is_some_and(|ip| ip.contains(':'));
        Self {
            meta: Meta::of(&object.metadata),
            selector: spec.selector.unwrap_or_default(),
            external_name: spec.type_.as_deref() == Some("ExternalName"),
            headless: spec.cluster_ip.as_deref() == Some("None"),
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
            families: families.unwrap_or_else(|| vec![if is_v6 { "IPv6" } else { "IPv4" }.to_owned()]),
            ports: spec.ports.iter().flatten().filter_map(service_port).collect(),
        }
    }
}

fn service_port(object: &core::ServicePort) -> Option<ServicePort> {
    let target = match &object.target_port {
        Some(IntOrString::Int(0)) | None => TargetPort::Number(u16::try_from(object.port).ok()?),
        Some(IntOrString::Int(number)) => TargetPort::Number(u16::try_from(*number).ok()?),
        Some(IntOrString::String(name)) if name.is_empty() => {
            TargetPort::Number(u16::try_from(object.port).ok()?)
        }
        Some(IntOrString::String(name)) => match name.parse() {
            Ok(number) => TargetPort::Number(number),
            Err(_) => TargetPort::Name(name.clone()),
        },
    };
    Some(ServicePort {
        name: object.name.clone().unwrap_or_default(),
        protocol: object.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
        app_protocol: object.app_protocol.clone(),
        target,
    })
}

/// An EndpointSlice: its content is kept as it is, only what we did not write is dropped.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointSlice {
    /// Metadata.
    pub meta: Meta,
    /// `IPv4`, `IPv6` or `FQDN`.
    pub address_type: String,
    /// Endpoints.
    pub endpoints: Vec<discovery::Endpoint>,
    /// Ports.
    pub ports: Vec<discovery::EndpointPort>,
}

impl HasMeta for EndpointSlice {
    fn meta(&self) -> &Meta {
        &self.meta
    }
}

impl EndpointSlice {
    /// Projects an EndpointSlice.
    pub fn of(object: discovery::EndpointSlice) -> Self {
        Self {
            meta: Meta::of(&object.metadata),
            address_type: object.address_type,
            endpoints: object.endpoints.unwrap_or_default(),
            ports: object.ports.unwrap_or_default(),
        }
    }
}

/// An Endpoints object.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoints {
    /// Metadata.
    pub meta: Meta,
    /// Subsets.
    pub subsets: Vec<core::EndpointSubset>,
    /// Whether annotation `endpoints.kubernetes.io/over-capacity` is set.
    pub over_capacity: bool,
}

impl HasMeta for Endpoints {
    fn meta(&self) -> &Meta {
        &self.meta
    }
}

impl Endpoints {
    /// Projects an Endpoints object.
    pub fn of(object: core::Endpoints) -> Self {
        let annotations = object.metadata.annotations.as_ref();
        Self {
            meta: Meta::of(&object.metadata),
            over_capacity: annotations
                .is_some_and(|all| all.contains_key("endpoints.kubernetes.io/over-capacity")),
            subsets: object.subsets.unwrap_or_default(),
        }
    }
}
