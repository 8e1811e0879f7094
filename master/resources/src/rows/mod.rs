//! The table.

mod cluster;
mod configuration;
mod endpoints;
mod events;
pub(crate) mod metadata;
pub(crate) mod names;
mod pods;
mod reviews;
mod services;
pub(crate) mod shape;

mod workloads;

use jiff::Timestamp;
use serde_json::Value;

use crate::resource::{NameRule, Resource, StatusRule, text};

static RESOURCES: &[Resource] = &[
    reviews::BINDINGS,
    configuration::CONFIG_MAPS,
    endpoints::ENDPOINTS,
    events::EVENTS,
    configuration::NAMESPACES,
    cluster::NODES,
    pods::ROW,
    workloads::REPLICATION_CONTROLLERS,
    configuration::SECRETS,
    configuration::SERVICE_ACCOUNTS,
    services::SERVICES,
    reviews::TOKEN_REVIEWS,
    reviews::SELF_SUBJECT_REVIEWS,
    reviews::LOCAL_SUBJECT_ACCESS_REVIEWS,
    reviews::SELF_SUBJECT_ACCESS_REVIEWS,
    reviews::SELF_SUBJECT_RULES_REVIEWS,
    reviews::SUBJECT_ACCESS_REVIEWS,
    cluster::LEASES,
    endpoints::ENDPOINT_SLICES,
    events::NEW_EVENTS,
    cluster::NETWORK_POLICIES,
    cluster::RUNTIME_CLASSES,
    cluster::PRIORITY_CLASSES,
    cluster::CSI_DRIVERS,
    cluster::CSI_NODES,
];

/// Every row, the core group first.
pub fn resources() -> &'static [Resource] {
    RESOURCES
}

/// The row at a path.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|row| row.group == group && row.version == version && row.plural == plural)
}

/// The row of a kind.
pub fn by_kind(group: &str, version: &str, kind: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|row| row.group == group && row.version == version && row.kind == kind)
}

pub(crate) const ALL_VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// What most rows have in common; a row says only what differs.
pub(crate) const BASE: Resource = Resource {
    group: "",
    version: "v1",
    kind: "",
    list_kind: "",
    plural: "",
    singular: "",
    short_names: &[],
    categories: &[],
    namespaced: true,
    verbs: ALL_VERBS,
    subresources: &[],
    storage: "",
    definition: "",
    schema: |_| schemars::Schema::default(),
    status: StatusRule::None,
    generation: false,
    name: NameRule::Subdomain,
    defaults: |_| {},
    create: |_| {},
    update: |_, _, _| {},
    check: |_, _| {},
    check_update: |_, _, _, _| {},
    fields: &[],
    columns: &[],
    cells: |object: &Value, _: Timestamp| vec![Value::String(text(object, "/metadata/name"))],
    storage_form: None,
};

#[cfg(test)]
mod tests;
