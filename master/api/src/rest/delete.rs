//! Deletion: preconditions, grace, finalizers, and only then the removal.

use bytes::Bytes;
use http::StatusCode;
use orlop_resources::status::{self, ApiError};
use orlop_resources::{FieldError, Resource};
use orlop_store::{Condition, Entry, StoreError, Write};
use serde_json::{Value, json};

use super::respond::bytes_of;
use super::update::is_finished;
use super::{commit, decode_options, now_text, object_reply, store_failure, value_reply};
use crate::body::Reply;
use crate::context::Context;
use crate::rules::encode::{metadata_mut, text};
use crate::rules::options::dry_run;
use crate::state::{Api, parse};

const KIND: &str = "DeleteOptions";
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
const CONFLICT_TRIES: usize = 16;

/// What becomes of the objects that this one owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// `meta.k8s.io/v1` DeleteOptions.
#[derive(Clone, Debug, Default)]
pub(crate) struct DeleteOptions {
    pub(crate) grace_seconds: Option<i64>,
    pub(crate) uid: Option<String>,
    pub(crate) resource_version: Option<String>,
    pub(crate) dry_run: bool,
    propagation: Option<Propagation>,
}

impl DeleteOptions {
    pub(crate) fn read(context: &mut Context) -> Result<Self, ApiError> {
        let mut options = Self::from_value(&decode_options(context, "DeleteOptions")?)?;
        if let Some(seconds) = context.query.number("gracePeriodSeconds").map_err(status::bad_request)? {
            options.grace_seconds = Some(seconds);
        }
        if let Some(policy) = context.query.get("propagationPolicy") {
            options.propagation = Some(propagation(policy)?);
        } else if let Some(orphan) = context.query.get("orphanDependents") {
            options.propagation =
                Some(if orphan == "true" { Propagation::Orphan } else { Propagation::Background });
        }
        options.dry_run |= context.dry_run()?;
        Ok(options)
    }

    pub(crate) fn from_value(body: &Value) -> Result<Self, ApiError> {
        let word = |pointer: &str| Some(text(body, pointer).to_owned()).filter(|word| !word.is_empty());
        let propagation =
            match (word("/propagationPolicy"), body.get("orphanDependents").and_then(Value::as_bool)) {
                (Some(_), Some(_)) => {
                    let why = "orphanDependents and deletionPropagation cannot be both set";
                    let given = body.get("propagationPolicy").unwrap_or(&Value::Null);
                    return Err(refused(FieldError::invalid("propagationPolicy", given, why)));
                }
                (Some(policy), None) => Some(propagation(&policy)?),
                (None, Some(true)) => Some(Propagation::Orphan),
                (None, Some(false)) => Some(Propagation::Background),
                (None, None) => None,
            };
        let dry = body.get("dryRun").and_then(Value::as_array).into_iter().flatten();
        Ok(Self {
            grace_seconds: body.get("gracePeriodSeconds").and_then(Value::as_i64),
            uid: word("/preconditions/uid"),
            resource_version: word("/preconditions/resourceVersion"),
            dry_run: dry_run(KIND, dry.map(|value| value.as_str().unwrap_or_default()))?,
            propagation,
        })
    }
}

fn propagation(policy: &str) -> Result<Propagation, ApiError> {
    match policy {
        "Background" => Ok(Propagation::Background),
        "Foreground" => Ok(Propagation::Foreground),
        "Orphan" => Ok(Propagation::Orphan),
        other => {
            let known = ["Foreground", "Background", "Orphan", "nil"];
            Err(refused(FieldError::not_supported("propagationPolicy", other, &known)))
        }
    }
}

fn refused(fault: FieldError) -> ApiError {
    status::invalid_kind("meta.k8s.io", KIND, "", &[fault])
}

/// DELETE of one object.
pub(crate) async fn delete(context: &mut Context) -> Result<Reply, ApiError> {
    let options = DeleteOptions::read(context)?;
    let outcome =
        delete_named(&context.api, context.resource, &context.key(), &context.info.name, &options).await?;
    match outcome {
        Deleted::Removed { bytes, .. } if returns_object(context.resource) => {
            object_reply(context, StatusCode::OK, bytes)
        }
        Deleted::Removed { uid, .. } => {
            let details = status::deleted_details(context.resource, &context.info.name, &uid);
            value_reply(context, StatusCode::OK, &status::success(Some(details)))
        }
        Deleted::Pending(bytes) => object_reply(context, StatusCode::OK, bytes),
    }
}

/// Kinds whose deletion answers with the object (upstream's `ReturnDeletedObject`).
fn returns_object(resource: &Resource) -> bool {
    resource.group.is_empty()
        && matches!(
            resource.plural,
            "pods"
                | "services"
                | "serviceaccounts"
                | "podtemplates"
                | "resourcequotas"
                | "persistentvolumes"
                | "persistentvolumeclaims"
        )
}

/// How far a deletion came.
pub(crate) enum Deleted {
    /// The object is gone; its last state.
    Removed { bytes: Bytes, uid: String },
    /// It waits for its grace or its finalizers.
    Pending(Bytes),
}

/// Deletes one object as far as it can be deleted now.
pub(crate) async fn delete_named(
    api: &Api,
    resource: &'static Resource,
    key: &str,
    name: &str,
    options: &DeleteOptions,
) -> Result<Deleted, ApiError> {
    let mut tries = CONFLICT_TRIES;
    loop {
        tries -= 1;
        let entry = api.cache.get(key).ok_or_else(|| status::not_found(resource, name))?;
        let mut old = parse(&entry);
        resource.from_storage(&mut old);
        check_preconditions(resource, name, &old, options)?;
        if resource.group.is_empty() && resource.plural == "namespaces" {
            check_namespace(resource, name)?;
        }
        let outcome = match plan(resource, &old, options) {
            Plan::Nothing => return Ok(Deleted::Pending(bytes_of(resource, &entry))),
            Plan::Remove => remove(api, resource, name, &entry, options.dry_run).await,
            Plan::Mark(marked) => {
                let condition = Condition::At(entry.mod_revision);
                commit(api, resource, key, condition, &marked, options.dry_run).await.map(Deleted::Pending)
            }
        };
        match outcome {
            Err(error) if tries > 0 && error.reason() == "Conflict" => {}
            outcome => return outcome,
        }
    }
}

async fn remove(
    api: &Api,
    resource: &Resource,
    name: &str,
    entry: &Entry,
    dry_run: bool,
) -> Result<Deleted, ApiError> {
    let uid = entry.meta.uid.to_string();
    if dry_run {
        return Ok(Deleted::Removed { bytes: bytes_of(resource, entry), uid });
    }
    let write = Write { key: entry.key.clone(), condition: Condition::At(entry.mod_revision), object: None };
    match api.store.write(write).await {
        Ok(revision) => {
            api.cache.wait_for(revision).await;
            Ok(Deleted::Removed { bytes: bytes_of(resource, &entry.at_revision(revision)), uid })
        }
        Err(StoreError::NotFound { .. }) => Err(status::not_found(resource, name)),
        Err(error) => Err(store_failure(resource, name, &error)),
    }
}

fn check_preconditions(
    resource: &Resource,
    name: &str,
    old: &Value,
    options: &DeleteOptions,
) -> Result<(), ApiError> {
    let uid = text(old, "/metadata/uid");
    if let Some(wanted) = options.uid.as_deref().filter(|wanted| *wanted != uid) {
        let why = format!(
            "the UID in the precondition ({wanted}) does not match the UID in record ({uid}). The object might have been deleted and then recreated"
        );
        // Not upstream's "object has been modified": this must not be tried again.
        return Err(precondition(resource, name, &why));
    }
    let revision = text(old, "/metadata/resourceVersion");
    if let Some(wanted) = options.resource_version.as_deref().filter(|wanted| *wanted != revision) {
        let why = format!(
            "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in record ({revision}). The object might have been modified"
        );
        return Err(precondition(resource, name, &why));
    }
    Ok(())
}

fn precondition(resource: &Resource, name: &str, why: &str) -> ApiError {
    status::conflict(resource, name, why)
}

/// The namespaces that the system lives in stay (upstream's NamespaceLifecycle admission).
fn check_namespace(resource: &Resource, name: &str) -> Result<(), ApiError> {
    if matches!(name, "default" | "kube-system" | "kube-public") {
        return Err(status::forbidden_because(resource, name, "this namespace may not be deleted"));
    }
    Ok(())
}

enum Plan {
    /// It is being deleted already and nothing changes.
    Nothing,
    Remove,
    /// The object with its deletion noted.
    Mark(Value),
}

fn plan(resource: &Resource, old: &Value, options: &DeleteOptions) -> Plan {
    let mut new = old.clone();
    set_finalizers(resource, &mut new, options.propagation);
    let grace = graceful_seconds(resource, old, options);
    let deleted = text(old, "/metadata/deletionTimestamp").to_owned();
    if deleted.is_empty() {
        let deadline = deadline(&now_text(), grace);
        let namespace = resource.group.is_empty() && resource.plural == "namespaces";
        let metadata = metadata_mut(&mut new);
        metadata.insert("deletionTimestamp".to_owned(), Value::from(deadline));
        metadata.insert("deletionGracePeriodSeconds".to_owned(), Value::from(grace));
        bump_generation(&mut new);
        if namespace {
            new["status"]["phase"] = json!("Terminating");
        }
    } else {
        let current =
            old.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or_default();
        // Grace can only become shorter, and only when the client says so.
        if options.grace_seconds.is_some() && grace < current {
            let deadline = deadline(&deleted, grace - current);
            let metadata = metadata_mut(&mut new);
            metadata.insert("deletionTimestamp".to_owned(), Value::from(deadline));
            metadata.insert("deletionGracePeriodSeconds".to_owned(), Value::from(grace));
            bump_generation(&mut new);
        }
    }
    if is_finished(resource, &new) {
        Plan::Remove
    } else if new == *old {
        Plan::Nothing
    } else {
        Plan::Mark(new)
    }
}

fn bump_generation(object: &mut Value) {
    if let Some(generation) =
        object.pointer("/metadata/generation").and_then(Value::as_i64).filter(|number| *number > 0)
    {
        object["metadata"]["generation"] = Value::from(generation + 1);
    }
}

fn deadline(from: &str, seconds: i64) -> String {
    let from: jiff::Timestamp = from.parse().unwrap_or_else(|_| jiff::Timestamp::now());
    let at = from.checked_add(jiff::SignedDuration::from_secs(seconds)).unwrap_or(from);
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// How long a pod may take to stop (upstream's `CheckGracefulDelete`); nothing else has grace.
fn graceful_seconds(resource: &Resource, object: &Value, options: &DeleteOptions) -> i64 {
    if !resource.group.is_empty() || resource.plural != "pods" {
        return 0;
    }
    let of_spec = object.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64);
    let unbound = text(object, "/spec/nodeName").is_empty();
    if unbound || matches!(text(object, "/status/phase"), "Succeeded" | "Failed") {
        return 0;
    }
    match options.grace_seconds.or(of_spec).unwrap_or(30) {
        // A negative period counts as one second: nobody means "never".
        negative if negative < 0 => 1,
        seconds => seconds,
    }
}

/// Notes for the garbage collector what becomes of dependents (upstream's `deletionFinalizersForGarbageCollection`).
fn set_finalizers(resource: &Resource, object: &mut Value, asked: Option<Propagation>) {
    if resource.group.is_empty() && resource.plural == "events" {
        return;
    }
    let current: Vec<String> = object
        .pointer("/metadata/finalizers")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|item| item.as_str().map(str::to_owned))
        .collect();
    let has = |finalizer: &str| current.iter().any(|item| item == finalizer);
    let policy = match asked {
        Some(policy) => policy,
        None if has(ORPHAN) => Propagation::Orphan,
        None if has(FOREGROUND) => Propagation::Foreground,
        // The first version of the API orphaned, and clients of replicationcontrollers still rely on it.
        None if resource.group.is_empty() && resource.plural == "replicationcontrollers" => {
            Propagation::Orphan
        }
        None => Propagation::Background,
    };
    let mut finalizers: Vec<String> =
        current.iter().filter(|item| *item != ORPHAN && *item != FOREGROUND).cloned().collect();
    match policy {
        Propagation::Background => {}
        Propagation::Foreground => finalizers.push(FOREGROUND.to_owned()),
        Propagation::Orphan => finalizers.push(ORPHAN.to_owned()),
    }
    if finalizers.len() == current.len() && finalizers.iter().all(|item| current.contains(item)) {
        return;
    }
    let metadata = metadata_mut(object);
    if finalizers.is_empty() {
        metadata.shift_remove("finalizers");
    } else {
        metadata.insert("finalizers".to_owned(), json!(finalizers));
    }
}
