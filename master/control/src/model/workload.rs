use k8s_openapi::api::core::v1 as core;

use super::{HasMeta, Labels, Meta};

/// A controller of identical pods: today a ReplicationController, in the same shape a ReplicaSet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Workload {
    /// Metadata.
    pub meta: Meta,
    /// Wanted pods.
    pub replicas: i64,
    /// How long a pod must be ready before it counts as available.
    pub min_ready_seconds: i64,
    /// Which pods are its.
    pub selector: Labels,
    /// Labels of the template.
    pub template_labels: Labels,
    /// The pod template as JSON: a tenth of its parsed size.
    pub template: String,
    /// What its status says now.
    pub status: core::ReplicationControllerStatus,
}

impl HasMeta for Workload {
    fn meta(&self) -> &Meta {
        &self.meta
    }
}

impl Workload {
    /// Projects a ReplicationController.
    pub fn of(object: core::ReplicationController) -> Self {
        let spec = object.spec.unwrap_or_default();
        let template = spec.template.unwrap_or_default();
        let labels = template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
        let selector = spec.selector.filter(|selector| !selector.is_empty());
        Self {
            meta: Meta::of(&object.metadata),
            replicas: i64::from(spec.replicas.unwrap_or(1)),
            min_ready_seconds: i64::from(spec.min_ready_seconds.unwrap_or(0)),
            selector: selector.unwrap_or_else(|| labels.clone()),
            template_labels: labels,
            template: serde_json::to_string(&template).unwrap_or_default(),
            status: object.status.unwrap_or_default(),
        }
    }
}

/// A ConfigMap: only whether it publishes the root certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigMap {
    /// Metadata.
    pub meta: Meta,
    /// `data["ca.crt"]`, kept for ConfigMaps named `kube-root-ca.crt`.
    pub root_ca: Option<std::sync::Arc<str>>,
}

impl HasMeta for ConfigMap {
    fn meta(&self) -> &Meta {
        &self.meta
    }
}

impl ConfigMap {
    /// Name of the ConfigMap with the cluster's root certificate.
    pub const ROOT_CA_NAME: &'static str = "kube-root-ca.crt";

    /// Projects a ConfigMap.
    pub fn of(object: &core::ConfigMap) -> Self {
        let meta = Meta::of(&object.metadata);
        let wanted = meta.name == Self::ROOT_CA_NAME;
        let data = object.data.as_ref().filter(|_| wanted);
        Self { root_ca: data.and_then(|data| data.get("ca.crt")).map(|text| text.as_str().into()), meta }
    }
}
