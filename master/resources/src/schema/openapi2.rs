//! OpenAPI v2, as JSON and as gnostic's protobuf form. Both are written piece by piece.

use std::sync::OnceLock;

use serde_json::{Map, Value, json};

use super::definitions::{self, REF};
use super::gnostic;
use super::operations::{self, Operation, Path};
use crate::rows::resources;

static DOCUMENT: OnceLock<Vec<u8>> = OnceLock::new();

/// `/openapi/v2` as JSON.
pub fn openapi_v2() -> &'static [u8] {
    DOCUMENT.get_or_init(|| {
        let mut text = format!("{{\"swagger\":\"2.0\",\"info\":{},\"paths\":{{", info()).into_bytes();
        for (index, path) in operations::paths(resources().iter()).enumerate() {
            entry(&mut text, index, &path.path, &path_item(&path));
        }
        text.extend_from_slice(b"},\"definitions\":{");
        for (index, (name, definition)) in definitions::generate(resources().iter()).into_iter().enumerate() {
            entry(&mut text, index, &name, &definition);
        }
        text.extend_from_slice(b"}}");
        text.shrink_to_fit();
        text
    })
}

/// `/openapi/v2` as a gnostic `openapi.v2.Document`.
pub fn openapi_v2_protobuf() -> Vec<u8> {
    let info = info();
    let mut document = gnostic::DocumentWriter::new(&info);
    document.paths(operations::paths(resources().iter()).map(|path| (path_item(&path), path.path)));
    document.definitions(definitions::generate(resources().iter()).into_iter());
    document.into_bytes()
}

/// The `info` of both OpenAPI versions.
pub(super) fn info() -> Value {
    json!({"title": "Kubernetes", "version": crate::KUBERNETES_VERSION})
}

fn entry(text: &mut Vec<u8>, index: usize, name: &str, value: &Value) {
    if index > 0 {
        text.push(b',');
    }
    text.extend_from_slice(Value::String(name.to_owned()).to_string().as_bytes());
    text.push(b':');
    text.extend_from_slice(value.to_string().as_bytes());
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
                                   "type": "string", "uniqueItems": true}));
        }
    }
    parameters.push(json!({"name": "pretty", "in": "query", "type": "string", "uniqueItems": true,
        "description": "If 'true', then the output is pretty printed."}));
    item.insert("parameters".to_owned(), Value::Array(parameters));
    Value::Object(item)
}

fn operation_body(operation: &Operation) -> Value {
    let mut parameters = Vec::new();
    if let Some(body) = &operation.body {
        let required = !operation.action.starts_with("delete");
        let mut parameter = json!({"name": "body", "in": "body", "schema": {"$ref": format!("{REF}{body}")}});
        if required {
            parameter["required"] = json!(true);
        }
        parameters.push(parameter);
    }
    for query in operation.query {
        parameters.push(json!({"name": query.name, "in": "query", "description": query.description, "type": query.kind, "uniqueItems": true}));
    }
    let schema = match &operation.answer {
        Some(answer) => json!({"$ref": format!("{REF}{answer}")}),
        None => json!({"type": "string"}),
    };
    let mut responses =
        json!({"200": {"description": "OK", "schema": schema}, "401": {"description": "Unauthorized"}});
    if operation.action == "post" {
        responses["201"] = json!({"description": "Created", "schema": schema});
        responses["202"] = json!({"description": "Accepted", "schema": schema});
    }
    json!({
        "description": operation.description,
        "consumes": if operation.consumes.is_empty() { &["*/*"] } else { operation.consumes },
        "produces": ["application/json", "application/yaml"],
        "schemes": ["https"],
        "tags": [operation.tag],
        "operationId": operation.id,
        "parameters": parameters,
        "responses": responses,
        "x-kubernetes-action": operation.action,
        "x-kubernetes-group-version-kind": operations::kind_extension(operation),
    })
}
