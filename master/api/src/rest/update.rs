use bytes::Bytes;
use http::StatusCode;
use orlop_resources::status::{self, ApiError};
use orlop_resources::{FieldError, Resource};
use orlop_store::{Condition, Entry, StoreError, Write};
use serde_json::Value;

use super::respond::bytes_of;
use super::{commit, create_object, decode_body, object_reply, store_failure};
use crate::admission;
use crate::body::Reply;
use crate::context::Context;
use crate::identity::Identity;
use crate::rules::encode::{metadata_mut, text};
use crate::state::{Api, parse};

/// How often a change is computed anew when somebody else was faster.
const CONFLICT_TRIES: usize = 16;

/// Where an update goes.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) resource: &'static Resource,
    pub(crate) key: &'a str,
    pub(crate) name: &'a str,
    pub(crate) subresource: Option<&'a str>,
    pub(crate) dry_run: bool,
}

/// PUT of an object or of a subresource with the object's own kind.
pub(crate) async fn update(context: &mut Context, subresource: Option<&str>) -> Result<Reply, ApiError> {
    let dry_run = context.dry_run()?;
    let resource = context.resource;
    let object = decode_body(context, resource)?;
    check_place(context, &object)?;
    let key = context.key();
    let creates = subresource.is_none() && allows_create(resource);
    if creates && context.api.cache.get(&key).is_none() {
        let namespace = context.info.namespace.clone();
        let mut object = object;
        let metadata = metadata_mut(&mut object);
        metadata.shift_remove("resourceVersion");
        metadata.insert("name".to_owned(), Value::from(context.info.name.clone()));
        let bytes =
            create_object(&context.api, &context.identity, resource, &namespace, object, dry_run).await?;
        return object_reply(context, StatusCode::CREATED, bytes);
    }
    if text(&object, "/metadata/resourceVersion").is_empty() && !allows_unconditional(resource) {
        let error = FieldError {
            cause: "FieldValueInvalid",
            field: "metadata.resourceVersion".to_owned(),
            message: "Invalid value: 0: must be specified for an update".to_owned(),
        };
        return Err(status::invalid(resource, &context.info.name, &[error]));
    }
    let target = Target { resource, key: &key, name: &context.info.name, subresource, dry_run };
    let bytes = update_object(&context.api, &context.identity, target, &mut |_| Ok(object.clone())).await?;
    object_reply(context, StatusCode::OK, bytes)
}

/// The name in the body must be that of the path, and so must the namespace when the body has one.
pub(crate) fn check_place(context: &Context, object: &Value) -> Result<(), ApiError> {
    let (name, expected) = (text(object, "/metadata/name"), &context.info.name);
    if name.is_empty() {
        return Err(status::bad_request(format!(
            "the name of the object ({expected} based on URL) was undeterminable: name must be provided"
        )));
    }
    if name != expected {
        return Err(status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({expected})"
        )));
    }
    let (namespace, expected) = (text(object, "/metadata/namespace"), &context.info.namespace);
    if !namespace.is_empty() && context.resource.namespaced && namespace != expected {
        return Err(status::bad_request(format!(
            "the namespace of the object ({namespace}) does not match the namespace on the request ({expected})"
        )));
    }
    Ok(())
}

/// Kinds that a PUT creates (upstream's `AllowCreateOnUpdate`).
fn allows_create(resource: &Resource) -> bool {
    matches!(
        (resource.group, resource.plural),
        ("", "endpoints" | "events" | "limitranges" | "services")
            | ("events.k8s.io", "events")
            | ("coordination.k8s.io", "leases")
    )
}

/// Kinds that may be updated without a resourceVersion (upstream's `AllowUnconditionalUpdate`).
fn allows_unconditional(resource: &Resource) -> bool {
    resource.group != "coordination.k8s.io"
}

/// Changes an object by `mutate`, which sees the current object in the resource's form and is called again when somebody else
/// was faster, unless its result insists on a resourceVersion. Returns the object after it; when the update took away the last
/// thing that a deletion waited for, its last state.
pub(crate) async fn update_object(
    api: &Api,
    identity: &Identity,
    target: Target<'_>,
    mutate: &mut (dyn FnMut(&Value) -> Result<Value, ApiError> + Send),
) -> Result<Bytes, ApiError> {
    let mut tries = CONFLICT_TRIES;
    loop {
        tries -= 1;
        let entry =
            api.cache.get(target.key).ok_or_else(|| status::not_found(target.resource, target.name))?;
        let mut old = parse(&entry);
        target.resource.from_storage(&mut old);
        let new = mutate(&old)?;
        let insists = !text(&new, "/metadata/resourceVersion").is_empty()
            && text(&new, "/metadata/resourceVersion") != text(&old, "/metadata/resourceVersion");
        if insists {
            return Err(status::conflict(target.resource, target.name, status::MODIFIED));
        }
        match store_changed(api, identity, target, &entry, &old, new).await {
            Err(error)
                if tries > 0
                    && error.reason() == "Conflict"
                    && error.message().ends_with(status::MODIFIED) => {}
            outcome => return outcome,
        }
    }
}

async fn store_changed(
    api: &Api,
    identity: &Identity,
    target: Target<'_>,
    entry: &Entry,
    old: &Value,
    mut new: Value,
) -> Result<Bytes, ApiError> {
    let Target { resource, key, name, subresource, dry_run } = target;
    keep_server_fields(resource, &mut new, old, name)?;
    resource.default(&mut new);
    resource.prepare_update(&mut new, old, subresource);
    admission::update(identity, resource, &new, old)?;
    let _allocation = admission::allocate(api, resource, &mut new, Some(old)).await?;
    let errors = resource.validate(&new, Some(old), subresource);
    if !errors.is_empty() {
        return Err(status::invalid(resource, name, &errors));
    }
    if is_finished(resource, &new) {
        return remove(api, target, entry).await;
    }
    if same(&new, old) {
        return Ok(bytes_of(resource, entry));
    }
    commit(api, resource, key, Condition::At(entry.mod_revision), &new, dry_run).await
}

/// The update took away the last finalizer of an object that is being deleted.
async fn remove(api: &Api, target: Target<'_>, entry: &Entry) -> Result<Bytes, ApiError> {
    let bytes = bytes_of(target.resource, entry);
    if target.dry_run {
        return Ok(bytes);
    }
    let write = Write { key: entry.key.clone(), condition: Condition::At(entry.mod_revision), object: None };
    match api.store.write(write).await {
        Ok(revision) => {
            api.cache.wait_for(revision).await;
            Ok(entry.at_revision(revision).bytes)
        }
        Err(StoreError::NotFound { .. }) => Ok(bytes),
        Err(error) => Err(store_failure(target.resource, target.name, &error)),
    }
}

/// Whether nothing keeps a deleted object any more.
pub(super) fn is_finished(resource: &Resource, object: &Value) -> bool {
    let empty = |pointer: &str| object.pointer(pointer).and_then(Value::as_array).is_none_or(Vec::is_empty);
    let grace =
        object.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or_default();
    let namespace = resource.group.is_empty() && resource.plural == "namespaces";
    object.pointer("/metadata/deletionTimestamp").is_some()
        && grace == 0
        && empty("/metadata/finalizers")
        && (!namespace || empty("/spec/finalizers"))
}

/// What a client may leave out but never change.
fn keep_server_fields(resource: &Resource, new: &mut Value, old: &Value, name: &str) -> Result<(), ApiError> {
    let uid = text(new, "/metadata/uid");
    let old_uid = text(old, "/metadata/uid");
    if !uid.is_empty() && uid != old_uid {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {old_uid}");
        return Err(status::conflict(resource, name, &why));
    }
    let metadata = metadata_mut(new);
    for key in ["managedFields", "selfLink"] {
        metadata.shift_remove(key);
    }
    for key in ["name", "namespace", "uid", "creationTimestamp", "generation", "generateName"] {
        if let Some(value) = old.pointer(&format!("/metadata/{key}"))
            && (key != "generateName" || !metadata.contains_key(key))
        {
            // A changed creationTimestamp is corrected, not refused: clients round it.
            metadata.insert(key.to_owned(), value.clone());
        }
    }
    for key in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
        match old.pointer(&format!("/metadata/{key}")) {
            Some(value) => metadata.insert(key.to_owned(), value.clone()),
            None => metadata.shift_remove(key),
        };
    }
    Ok(())
}

/// Whether an update changes nothing but the revision.
fn same(new: &Value, old: &Value) -> bool {
    let without_revision = |object: &Value| {
        let mut object = object.clone();
        metadata_mut(&mut object).shift_remove("resourceVersion");
        object
    };
    without_revision(new) == without_revision(old)
}
