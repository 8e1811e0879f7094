use bytes::Bytes;
use http::StatusCode;
use orlop_resources::Resource;
use orlop_resources::status::{self, ApiError};
use orlop_store::Condition;
use rand::RngExt as _;
use serde_json::{Value, json};

use super::{commit, decode_body, now_text, object_reply};
use crate::admission;
use crate::body::Reply;
use crate::context::Context;
use crate::identity::Identity;
use crate::rules::encode::{metadata_mut, text};
use crate::state::{Api, key};

/// How often a generated name that is taken is generated anew (upstream tries as often).
const GENERATE_TRIES: usize = 8;
/// Base names are cut so that base and suffix are at most 63 characters.
const BASE_NAME_LIMIT: usize = 58;
/// No vowels and nothing that looks like one, so that no words appear.
const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// POST of an object.
pub(crate) async fn create(context: &mut Context) -> Result<Reply, ApiError> {
    let dry_run = context.dry_run()?;
    let object = decode_body(context, context.resource)?;
    let namespace = context.info.namespace.clone();
    let bytes =
        create_object(&context.api, &context.identity, context.resource, &namespace, object, dry_run).await?;
    object_reply(context, StatusCode::CREATED, bytes)
}

/// Stores a new object after defaults, admission and validation, and returns its encoding.
pub(crate) async fn create_object(
    api: &Api,
    identity: &Identity,
    resource: &'static Resource,
    namespace: &str,
    mut object: Value,
    dry_run: bool,
) -> Result<Bytes, ApiError> {
    place(resource, namespace, &mut object)?;
    let generated =
        text(&object, "/metadata/name").is_empty() && !text(&object, "/metadata/generateName").is_empty();
    let mut tries = if generated { GENERATE_TRIES } else { 1 };
    loop {
        tries -= 1;
        let mut attempt = object.clone();
        if generated {
            let name = generate_name(text(&object, "/metadata/generateName"));
            metadata_mut(&mut attempt).insert("name".to_owned(), Value::from(name));
        }
        match store_new(api, identity, resource, namespace, attempt, dry_run).await {
            Err(error) if tries > 0 && error.reason() == "AlreadyExists" => {}
            outcome => return outcome,
        }
    }
}

async fn store_new(
    api: &Api,
    identity: &Identity,
    resource: &'static Resource,
    namespace: &str,
    mut object: Value,
    dry_run: bool,
) -> Result<Bytes, ApiError> {
    let metadata = metadata_mut(&mut object);
    metadata.insert("uid".to_owned(), json!(uuid::Uuid::new_v4().to_string()));
    metadata.insert("creationTimestamp".to_owned(), json!(now_text()));
    resource.default(&mut object);
    resource.prepare_create(&mut object);
    let name = text(&object, "/metadata/name").to_owned();
    admission::namespace(api, resource, namespace, &name)?;
    admission::create(api, identity, resource, &mut object)?;
    // Held until the object is stored: what is free now is free then.
    let _allocation = admission::allocate(api, resource, &mut object, None).await?;
    let errors = resource.validate(&object, None, None);
    if !errors.is_empty() {
        return Err(status::invalid(resource, &name, &errors));
    }
    if name.is_empty() || name.contains('/') {
        return Err(status::bad_request("name or generateName is required"));
    }
    commit(api, resource, &key(resource, namespace, &name), Condition::Absent, &object, dry_run).await
}

/// Puts the object into the namespace of the request and drops what only the server says.
fn place(resource: &Resource, namespace: &str, object: &mut Value) -> Result<(), ApiError> {
    if !text(object, "/metadata/resourceVersion").is_empty() {
        return Err(status::bad_request("resourceVersion should not be set on objects to be created"));
    }
    let given = text(object, "/metadata/namespace").to_owned();
    let metadata = metadata_mut(object);
    if resource.namespaced {
        if !given.is_empty() && given != namespace {
            return Err(status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        metadata.insert("namespace".to_owned(), Value::from(namespace));
    } else {
        metadata.shift_remove("namespace");
    }
    for key in
        ["managedFields", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "resourceVersion"]
    {
        metadata.shift_remove(key);
    }
    Ok(())
}

/// A name as upstream generates it: the base and five random characters.
pub(crate) fn generate_name(base: &str) -> String {
    let base: String = base.chars().take(BASE_NAME_LIMIT).collect();
    let mut random = rand::rng();
    let suffix: String =
        (0..5).map(|_| char::from(SUFFIX_ALPHABET[random.random_range(0..SUFFIX_ALPHABET.len())])).collect();
    base + &suffix
}
