//! OpenAPI v3: one document for each group version, built on demand.

use std::hash::{DefaultHasher, Hasher};
use std::sync::OnceLock;

use serde_json::{Map, Value, json};

use super::definitions::{self, INT_OR_STRING, QUANTITY, REF};
use super::openapi2::info;
use super::operations::{self, Operation, Path};
use crate::discovery::{group_names, versions_of};
use crate::resource::Resource;
use crate::rows::resources;

const REF3: &str = "#/components/schemas/";

static INDEX: OnceLock<Vec<(String, u64)>> = OnceLock::new();

/// `/openapi/v3`: where each group version's document is. The hash changes with the document, so that clients may cache by it.
pub fn openapi_v3_index() -> Value {
    let index = INDEX.get_or_init(|| {
        let paths = group_names()
            .into_iter()
            .flat_map(|group| versions_of(group).into_iter().map(move |v| path_of(group, v)));
        paths
            .map(|path| {
                let mut hasher = DefaultHasher::new();
                hasher.write(&openapi_v3(&path).unwrap_or_default());
                (path, hasher.finish())
            })
            .collect()
    });
    let paths: Map<String, Value> = index
        .iter()
        .map(|(path, hash)| {
            (path.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash:016X}")}))
        })
        .collect();
    json!({"paths": paths})
}

/// `/openapi/v3/PATH`, where path is `api/v1` or `apis/GROUP/VERSION`.
pub fn openapi_v3(path: &str) -> Option<Vec<u8>> {
    let rows: Vec<&'static Resource> =
        resources().iter().filter(|row| path_of(row.group, row.version) == path).collect();
    if rows.is_empty() {
        return None;
    }
    let paths: Map<String, Value> =
        operations::paths(rows.iter().copied()).map(|path| (path.path.clone(), path_item(&path))).collect();
    let schemas: Map<String, Value> = definitions::generate(rows.iter().copied())
        .into_iter()
        .map(|(name, mut definition)| {
            convert(&name, &mut definition);
            (name, definition)
        })
        .collect();
    let document =
        json!({"openapi": "3.0.0", "info": info(), "paths": paths, "components": {"schemas": schemas}});
    Some(document.to_string().into_bytes())
}

fn path_of(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// From v2's form: references move, a reference with siblings becomes `allOf`, int-or-string becomes a union.
fn convert(name: &str, definition: &mut Value) {
    let union = match name {
        INT_OR_STRING => json!([{"type": "integer"}, {"type": "string"}]),
        QUANTITY => json!([{"type": "string"}, {"type": "number"}]),
        _ => {
            move_references(definition);
            return;
        }
    };
    if let Some(map) = definition.as_object_mut() {
        map.shift_remove("type");
        map.insert("oneOf".to_owned(), union);
    }
}

fn move_references(value: &mut Value) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(move_references),
        Value::Object(map) => {
            let target = match map.get("$ref") {
                Some(Value::String(target)) => target.strip_prefix(REF).map(|name| format!("{REF3}{name}")),
                _ => None,
            };
            if let Some(target) = target {
                if map.len() == 1 {
                    map.insert("$ref".to_owned(), json!(target));
                } else {
                    map.shift_remove("$ref");
                    map.insert("allOf".to_owned(), json!([{"$ref": target}]));
                }
                return;
            }
            map.values_mut().for_each(move_references);
        }
        _ => {}
    }
}

fn path_item(path: &Path) -> Value {
    let mut item = Map::new();
    for operation in &path.operations {
        item.insert(operation.method.to_owned(), operation_body(operation));
    }
    let mut parameters = Vec::new();
    for (wanted, name, description) in [
        (path.named, "name", "name of the object"),
        (path.namespaced, "namespace", "object name and auth scope, such as for teams and projects"),
    ] {
        if wanted {
            parameters.push(json!({"name": name, "in": "path", "description": description, "required": true,
                                   "schema": {"type": "string", "uniqueItems": true}}));
        }
    }
    parameters
        .push(json!({"name": "pretty", "in": "query", "schema": {"type": "string", "uniqueItems": true},
        "description": "If 'true', then the output is pretty printed."}));
    item.insert("parameters".to_owned(), Value::Array(parameters));
    Value::Object(item)
}

fn operation_body(operation: &Operation) -> Value {
    let parameters: Vec<Value> = operation
        .query
        .iter()
        .map(|query| {
            json!({"name": query.name, "in": "query", "description": query.description,
                   "schema": {"type": query.kind, "uniqueItems": true}})
        })
        .collect();
    let mut body = json!({
        "tags": [operation.tag],
        "description": operation.description,
        "operationId": operation.id,
        "parameters": parameters,
    });
    if let Some(definition) = &operation.body {
        let schema = json!({"schema": {"$ref": format!("{REF3}{definition}")}});
        let content: Map<String, Value> =
            operation.consumes.iter().map(|media| ((*media).to_owned(), schema.clone())).collect();
        body["requestBody"] = json!({"content": content});
        if !operation.action.starts_with("delete") {
            body["requestBody"]["required"] = json!(true);
        }
    }
    let schema = match &operation.answer {
        Some(answer) => json!({"$ref": format!("{REF3}{answer}")}),
        None => json!({"type": "string"}),
    };
    let content = json!({"application/json": {"schema": schema}, "application/yaml": {"schema": schema}});
    let mut responses =
        json!({"200": {"description": "OK", "content": content}, "401": {"description": "Unauthorized"}});
    if operation.action == "post" {
        responses["201"] = json!({"description": "Created", "content": content});
        responses["202"] = json!({"description": "Accepted", "content": content});
    }
    body["responses"] = responses;
    body["x-kubernetes-action"] = json!(operation.action);
    body["x-kubernetes-group-version-kind"] = operations::kind_extension(operation);
    body
}
