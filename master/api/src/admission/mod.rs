//! What a new or changed object must satisfy that depends on other objects, and what is filled in from them.
//! The names are those of upstream's admission plugins.

mod node_restriction;
mod pod;
mod service;
mod service_account;

use orlop_resources::Resource;
use orlop_resources::status::{self, ApiError};
use serde_json::Value;

use crate::identity::Identity;
use crate::rules::encode::text;
use crate::state::{Api, core, parse};

pub(crate) use service::allocate;

/// NamespaceLifecycle: nothing new appears in a namespace that is not there or is going away.
pub(crate) fn namespace(api: &Api, resource: &Resource, namespace: &str, name: &str) -> Result<(), ApiError> {
    if !resource.namespaced {
        return Ok(());
    }
    let Some(entry) = api.core_entry("namespaces", "", namespace) else {
        return Err(status::not_found(core("namespaces"), namespace));
    };
    if !text(&parse(&entry), "/metadata/deletionTimestamp").is_empty() {
        return Err(status::namespace_terminating(resource, name, namespace));
    }
    Ok(())
}

/// Everything that a new object goes through, in upstream's order.
pub(crate) fn create(
    api: &Api,
    identity: &Identity,
    resource: &Resource,
    object: &mut Value,
) -> Result<(), ApiError> {
    node_restriction::create(identity, resource, object)?;
    if resource.group.is_empty() && resource.plural == "pods" {
        service_account::admit(api, resource, object)?;
        pod::admit(resource, object)?;
    }
    Ok(())
}

/// Everything that a changed object goes through.
pub(crate) fn update(
    identity: &Identity,
    resource: &Resource,
    new: &Value,
    old: &Value,
) -> Result<(), ApiError> {
    node_restriction::update(identity, resource, new, old)
}
