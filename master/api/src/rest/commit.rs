//! Storing an object.

use std::sync::Arc;

use bytes::Bytes;
use orlop_resources::Resource;
use orlop_resources::status::{self, ApiError};
use orlop_store::{Condition, StoreError, Write};
use serde_json::Value;

use crate::rules::describe::describe;
use crate::rules::encode::{encode, text};
use crate::state::{Api, owner_of};

/// The time as the API writes it: seconds, UTC.
pub(crate) fn now_text() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Stores the object (none deletes) and returns its encoding in the form of `resource`. A dry run stops before the store; its
/// answer has the revision of `condition`.
pub(crate) async fn commit(
    api: &Api,
    resource: &'static Resource,
    key: &str,
    condition: Condition,
    object: &Value,
    dry_run: bool,
) -> Result<Bytes, ApiError> {
    let encoded = encode(&resource.api_version(), resource.kind, object);
    if dry_run {
        if condition == Condition::Absent && api.cache.get(key).is_some() {
            return Err(status::already_exists(resource, text(object, "/metadata/name")));
        }
        return Ok(match condition {
            Condition::At(revision) => encoded.at(revision),
            Condition::Absent => without_revision(object, resource),
        });
    }
    let (stored, meta) = if resource.is_view() {
        let owner = owner_of(key).ok_or_else(|| status::internal(format!("nothing owns {key}")))?;
        let mut stored = object.clone();
        resource.to_storage(&mut stored);
        (encode(&owner.api_version(), owner.kind, &stored), describe(owner, &stored))
    } else {
        (encoded.clone(), describe(resource, object))
    };
    let write = Write { key: Arc::from(key), condition, object: Some((stored, Arc::new(meta))) };
    match api.store.write(write).await {
        Ok(revision) => {
            api.cache.wait_for(revision).await;
            Ok(encoded.at(revision))
        }
        Err(error) => Err(store_failure(resource, text(object, "/metadata/name"), &error)),
    }
}

/// What a created object looks like before it has a revision.
fn without_revision(object: &Value, resource: &Resource) -> Bytes {
    let mut object = object.clone();
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.shift_remove("resourceVersion");
    }
    object["kind"] = Value::from(resource.kind);
    object["apiVersion"] = Value::from(resource.api_version());
    Bytes::from(object.to_string())
}

/// The answer that a refusal of the store is.
pub(crate) fn store_failure(resource: &Resource, name: &str, error: &StoreError) -> ApiError {
    match error {
        StoreError::Exists { .. } => status::already_exists(resource, name),
        StoreError::NotFound { .. } => status::not_found(resource, name),
        StoreError::Conflict { .. } => status::conflict(resource, name, status::MODIFIED),
        StoreError::NoSpace { .. } => no_space(error),
        StoreError::Io { .. } | StoreError::Open { .. } => status::internal(error),
        StoreError::Closed => status::service_unavailable("the store is closed, the server is stopping"),
    }
}

/// Says so at once: with a time to try again in it, clients would hang for a minute before they show why.
fn no_space(error: &StoreError) -> ApiError {
    let text = format!("{error}; nothing was stored, reads go on: free space and try again");
    let mut error = status::insufficient_storage(text);
    error.retry_after = None;
    error.body["details"] = serde_json::json!({});
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_507_and_not_tried_again_by_clients() {
        let full = StoreError::NoSpace { reason: "No space left on device (os error 28)".to_owned() };
        let error = store_failure(crate::state::core("pods"), "a", &full);
        assert_eq!((error.code, error.reason(), error.retry_after), (507, "InsufficientStorage", None));
        assert!(error.message().contains("No space left on device"), "{error}");
    }
}
