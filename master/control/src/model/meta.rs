use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

/// Labels, or a selector of equalities.
pub type Labels = BTreeMap<String, String>;

/// Whether an equality selector matches; an empty selector matches nothing, as everywhere in the core API.
pub fn selects(selector: &Labels, labels: &Labels) -> bool {
    !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// One ownerReference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// `apiVersion` of the owner.
    pub api_version: String,
    /// Kind of the owner.
    pub kind: String,
    /// Name of the owner, in the same namespace or of cluster scope.
    pub name: String,
    /// Uid of the owner.
    pub uid: String,
    /// Whether it is the managing controller.
    pub controller: bool,
    /// Whether foreground deletion of the owner waits for this object.
    pub blocks_deletion: bool,
}

impl Owner {
    fn of(reference: &OwnerReference) -> Self {
        Self {
            api_version: reference.api_version.clone(),
            kind: reference.kind.clone(),
            name: reference.name.clone(),
            uid: reference.uid.clone(),
            controller: reference.controller.unwrap_or(false),
            blocks_deletion: reference.block_owner_deletion.unwrap_or(false),
        }
    }
}

/// The part of an object's metadata that controllers use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Namespace; empty for cluster-scoped kinds.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
    /// Resource version, for optimistic writes.
    pub resource_version: String,
    /// Generation of the spec.
    pub generation: i64,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// Deletion timestamp.
    pub deleting: Option<Timestamp>,
    /// Labels.
    pub labels: Labels,
    /// Owners.
    pub owners: Vec<Owner>,
    /// Finalizers.
    pub finalizers: Vec<String>,
}

impl Meta {
    /// Projects object metadata.
    pub fn of(meta: &ObjectMeta) -> Self {
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            generation: meta.generation.unwrap_or(0),
            created: meta.creation_timestamp.as_ref().map(|time| time.0),
            deleting: meta.deletion_timestamp.as_ref().map(|time| time.0),
            labels: meta.labels.clone().unwrap_or_default(),
            owners: meta.owner_references.iter().flatten().map(Owner::of).collect(),
            finalizers: meta.finalizers.clone().unwrap_or_default(),
        }
    }

    /// The managing controller.
    pub fn controller(&self) -> Option<&Owner> {
        self.owners.iter().find(|owner| owner.controller)
    }
}

/// Anything with metadata.
pub trait HasMeta {
    /// Its metadata.
    fn meta(&self) -> &Meta;
}

impl HasMeta for Meta {
    fn meta(&self) -> &Meta {
        self
    }
}
