//! What controllers keep of an object: a parsed pod costs 120 KB, these views a few hundred bytes.

mod meta;
mod node;
mod pod;
mod quantity;
mod service;
mod workload;

pub use meta::{HasMeta, Labels, Meta, Owner, selects};
pub use node::{Condition, Lease, Namespace, Node, Taint};
pub use pod::{ContainerPort, HostPort, Phase, Pod, Scheduling, Toleration, resource_requests};
pub use quantity::Resources;
pub use service::{EndpointSlice, Endpoints, Service, ServicePort, TargetPort};
pub use workload::{ConfigMap, Workload};
