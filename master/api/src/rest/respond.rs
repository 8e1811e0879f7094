//! Objects as the client wants them: plain, as a Table, or only their metadata; JSON or YAML.

use bytes::Bytes;
use http::StatusCode;
use orlop_resources::Resource;
use orlop_resources::status::{self, ApiError};
use orlop_store::Entry;
use serde_json::{Value, json};

use crate::body::{Reply, full, json, reply};
use crate::context::Context;
use crate::rules::accept::{Format, Shape};
use crate::state::parse;

/// Which part of the object a table row carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IncludeObject {
    None,
    Metadata,
    Object,
}

pub(super) fn include_object(context: &Context) -> Result<IncludeObject, ApiError> {
    match context.query.get("includeObject") {
        None | Some("Metadata") => Ok(IncludeObject::Metadata),
        Some("None") => Ok(IncludeObject::None),
        Some("Object") => Ok(IncludeObject::Object),
        Some(other) => Err(status::bad_request(format!(
            "includeObject: Invalid value: {other:?}: must be one of: Metadata, None, Object"
        ))),
    }
}

/// One object as an answer.
pub(crate) fn object_reply(context: &Context, code: StatusCode, bytes: Bytes) -> Result<Reply, ApiError> {
    let format = context.format(false)?;
    if format == Format::default() {
        return Ok(json(code, bytes));
    }
    let object: Value = serde_json::from_slice(&bytes).map_err(status::internal)?;
    let shaped = match format.shape {
        Shape::Object => object,
        Shape::Partial => partial(&object),
        Shape::Table => {
            let include = include_object(context)?;
            let metadata = json!({"resourceVersion": object.pointer("/metadata/resourceVersion")});
            table(context.resource, metadata, vec![row(context.resource, &object, include)])
        }
    };
    written(code, &shaped, format.yaml)
}

/// A value of any kind as an answer; only JSON and YAML, never a table.
pub(crate) fn value_reply(context: &Context, code: StatusCode, value: &Value) -> Result<Reply, ApiError> {
    let yaml = context.format(false).is_ok_and(|format| format.yaml);
    written(code, value, yaml)
}

pub(super) fn written(code: StatusCode, value: &Value, yaml: bool) -> Result<Reply, ApiError> {
    if yaml {
        let text = serde_saphyr::to_string(value).map_err(status::internal)?;
        return Ok(reply(code, "application/yaml", full(text)));
    }
    Ok(json(code, value.to_string()))
}

/// An entry in the form of the requested resource: the shared bytes wherever that is the stored form.
pub(super) fn bytes_of(resource: &Resource, entry: &Entry) -> Bytes {
    if !resource.is_view() {
        return entry.bytes.clone();
    }
    let mut object = parse(entry);
    resource.from_storage(&mut object);
    Bytes::from(object.to_string())
}

/// As [`bytes_of`], parsed.
pub(super) fn object_of(resource: &Resource, entry: &Entry) -> Value {
    let mut object = parse(entry);
    resource.from_storage(&mut object);
    object
}

pub(super) fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object.get("metadata")})
}

pub(super) fn row(resource: &Resource, object: &Value, include: IncludeObject) -> Value {
    let cells = resource.table_cells(object, jiff::Timestamp::now());
    let mut row = json!({"cells": cells});
    match include {
        IncludeObject::None => {}
        IncludeObject::Metadata => row["object"] = partial(object),
        IncludeObject::Object => row["object"] = object.clone(),
    }
    row
}

pub(super) fn table(resource: &Resource, metadata: Value, rows: Vec<Value>) -> Value {
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": resource.table_columns(), "rows": rows,
    })
}
