//! OpenAPI v2 in the protobuf form clients ask for (gnostic, `openapi.v2.Document`): only the messages and fields used here.

use prost::Message;
use serde_json::Value;

/// Writes a document piece by piece, so that only one piece is parsed at a time.
pub(super) struct DocumentWriter {
    bytes: Vec<u8>,
}

const PATHS: u32 = 8;
const DEFINITIONS: u32 = 9;

impl DocumentWriter {
    pub(super) fn new(info: &Value) -> Self {
        let head = Head {
            swagger: "2.0".to_owned(),
            info: Some(Info { title: string(info, "title"), version: string(info, "version") }),
        };
        Self { bytes: head.encode_to_vec() }
    }

    pub(super) fn paths(&mut self, paths: impl Iterator<Item = (Value, String)>) {
        let mut body = Vec::new();
        for (item, name) in paths {
            let path = NamedPathItem { name, value: Some(path_item(&item)) };
            nested(&mut body, 2, &path.encode_to_vec());
        }
        nested(&mut self.bytes, PATHS, &body);
    }

    pub(super) fn definitions(&mut self, definitions: impl Iterator<Item = (String, Value)>) {
        let mut body = Vec::new();
        for (name, definition) in definitions {
            let named = NamedSchema { name, value: Some(schema(&definition)) };
            nested(&mut body, 1, &named.encode_to_vec());
        }
        nested(&mut self.bytes, DEFINITIONS, &body);
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

fn nested(bytes: &mut Vec<u8>, tag: u32, body: &[u8]) {
    prost::encoding::encode_key(tag, prost::encoding::WireType::LengthDelimited, bytes);
    prost::encoding::encode_varint(body.len() as u64, bytes);
    bytes.extend_from_slice(body);
}

#[derive(Clone, PartialEq, Message)]
struct Head {
    #[prost(string, tag = "1")]
    swagger: String,
    #[prost(message, optional, tag = "2")]
    info: Option<Info>,
}

#[derive(Clone, PartialEq, Message)]
struct Info {
    #[prost(string, tag = "1")]
    title: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct NamedPathItem {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<PathItem>,
}

#[derive(Clone, PartialEq, Message)]
struct PathItem {
    #[prost(message, optional, tag = "2")]
    get: Option<OperationMessage>,
    #[prost(message, optional, tag = "3")]
    put: Option<OperationMessage>,
    #[prost(message, optional, tag = "4")]
    post: Option<OperationMessage>,
    #[prost(message, optional, tag = "5")]
    delete: Option<OperationMessage>,
    #[prost(message, optional, tag = "8")]
    patch: Option<OperationMessage>,
    #[prost(message, repeated, tag = "9")]
    parameters: Vec<ParametersItem>,
}

#[derive(Clone, PartialEq, Message)]
struct OperationMessage {
    #[prost(string, repeated, tag = "1")]
    tags: Vec<String>,
    #[prost(string, tag = "3")]
    description: String,
    #[prost(string, tag = "5")]
    operation_id: String,
    #[prost(string, repeated, tag = "6")]
    produces: Vec<String>,
    #[prost(string, repeated, tag = "7")]
    consumes: Vec<String>,
    #[prost(message, repeated, tag = "8")]
    parameters: Vec<ParametersItem>,
    #[prost(message, optional, tag = "9")]
    responses: Option<Responses>,
    #[prost(string, repeated, tag = "10")]
    schemes: Vec<String>,
    #[prost(message, repeated, tag = "13")]
    vendor_extension: Vec<NamedAny>,
}

#[derive(Clone, PartialEq, Message)]
struct ParametersItem {
    #[prost(message, optional, tag = "1")]
    parameter: Option<Parameter>,
}

#[derive(Clone, PartialEq, Message)]
struct Parameter {
    #[prost(message, optional, tag = "1")]
    body_parameter: Option<BodyParameter>,
    #[prost(message, optional, tag = "2")]
    non_body_parameter: Option<NonBodyParameter>,
}

#[derive(Clone, PartialEq, Message)]
struct BodyParameter {
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    place: String,
    #[prost(bool, tag = "4")]
    required: bool,
    #[prost(message, optional, tag = "5")]
    schema: Option<Schema>,
}

#[derive(Clone, PartialEq, Message)]
struct NonBodyParameter {
    #[prost(message, optional, tag = "3")]
    query: Option<QueryParameter>,
    #[prost(message, optional, tag = "4")]
    path: Option<PathParameter>,
}

#[derive(Clone, PartialEq, Message)]
struct QueryParameter {
    #[prost(string, tag = "2")]
    place: String,
    #[prost(string, tag = "3")]
    description: String,
    #[prost(string, tag = "4")]
    name: String,
    #[prost(string, tag = "6")]
    kind: String,
    #[prost(bool, tag = "20")]
    unique_items: bool,
}

#[derive(Clone, PartialEq, Message)]
struct PathParameter {
    #[prost(bool, tag = "1")]
    required: bool,
    #[prost(string, tag = "2")]
    place: String,
    #[prost(string, tag = "3")]
    description: String,
    #[prost(string, tag = "4")]
    name: String,
    #[prost(string, tag = "5")]
    kind: String,
    #[prost(bool, tag = "19")]
    unique_items: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Responses {
    #[prost(message, repeated, tag = "1")]
    response_code: Vec<NamedResponseValue>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedResponseValue {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<ResponseValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ResponseValue {
    #[prost(message, optional, tag = "1")]
    response: Option<Response>,
}

#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(string, tag = "1")]
    description: String,
    #[prost(message, optional, tag = "2")]
    schema: Option<SchemaItem>,
}

#[derive(Clone, PartialEq, Message)]
struct SchemaItem {
    #[prost(message, optional, tag = "1")]
    schema: Option<Schema>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedSchema {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Schema>,
}

#[derive(Clone, PartialEq, Message)]
struct Schema {
    #[prost(string, tag = "1")]
    reference: String,
    #[prost(string, tag = "2")]
    format: String,
    #[prost(string, tag = "4")]
    description: String,
    #[prost(string, repeated, tag = "19")]
    required: Vec<String>,
    #[prost(message, optional, boxed, tag = "21")]
    additional_properties: Option<Box<AdditionalProperties>>,
    #[prost(message, optional, tag = "22")]
    kind: Option<TypeItem>,
    #[prost(message, optional, tag = "23")]
    items: Option<ItemsItem>,
    #[prost(message, optional, tag = "25")]
    properties: Option<Properties>,
    #[prost(message, repeated, tag = "31")]
    vendor_extension: Vec<NamedAny>,
}

#[derive(Clone, PartialEq, Message)]
struct AdditionalProperties {
    #[prost(message, optional, boxed, tag = "1")]
    schema: Option<Box<Schema>>,
}

#[derive(Clone, PartialEq, Message)]
struct TypeItem {
    #[prost(string, repeated, tag = "1")]
    value: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct ItemsItem {
    #[prost(message, repeated, tag = "1")]
    schema: Vec<Schema>,
}

#[derive(Clone, PartialEq, Message)]
struct Properties {
    #[prost(message, repeated, tag = "1")]
    additional_properties: Vec<NamedSchema>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedAny {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyMessage {
    #[prost(string, tag = "2")]
    yaml: String,
}

fn string(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn strings(value: &Value, key: &str) -> Vec<String> {
    let list = value.get(key).and_then(Value::as_array).into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn flag(value: &Value, key: &str) -> bool {
    value.get(key).and_then(Value::as_bool).unwrap_or_default()
}

/// The `x-…` members. Their values are YAML; JSON is YAML.
fn extensions(value: &Value) -> Vec<NamedAny> {
    let members = value.as_object().into_iter().flatten().filter(|(name, _)| name.starts_with("x-"));
    members
        .map(|(name, value)| NamedAny {
            name: name.clone(),
            value: Some(AnyMessage { yaml: format!("{value}\n") }),
        })
        .collect()
}

fn schema(value: &Value) -> Schema {
    let additional = value.get("additionalProperties").filter(|schema| schema.is_object());
    let properties = value.get("properties").and_then(Value::as_object);
    let kind = string(value, "type");
    Schema {
        reference: string(value, "$ref"),
        format: string(value, "format"),
        description: string(value, "description"),
        required: strings(value, "required"),
        additional_properties: additional
            .map(|item| Box::new(AdditionalProperties { schema: Some(Box::new(schema(item))) })),
        kind: (!kind.is_empty()).then(|| TypeItem { value: vec![kind] }),
        items: value.get("items").map(|item| ItemsItem { schema: vec![schema(item)] }),
        properties: properties.map(|properties| Properties {
            additional_properties: properties
                .iter()
                .map(|(name, value)| NamedSchema { name: name.clone(), value: Some(schema(value)) })
                .collect(),
        }),
        vendor_extension: extensions(value),
    }
}

fn path_item(value: &Value) -> PathItem {
    let method = |name: &str| value.get(name).map(operation);
    PathItem {
        get: method("get"),
        put: method("put"),
        post: method("post"),
        delete: method("delete"),
        patch: method("patch"),
        parameters: parameters(value),
    }
}

fn operation(value: &Value) -> OperationMessage {
    let responses = value.get("responses").and_then(Value::as_object);
    OperationMessage {
        tags: strings(value, "tags"),
        description: string(value, "description"),
        operation_id: string(value, "operationId"),
        produces: strings(value, "produces"),
        consumes: strings(value, "consumes"),
        parameters: parameters(value),
        responses: responses.map(|codes| Responses {
            response_code: codes.iter().map(|(code, value)| response(code, value)).collect(),
        }),
        schemes: strings(value, "schemes"),
        vendor_extension: extensions(value),
    }
}

fn response(code: &str, value: &Value) -> NamedResponseValue {
    let body = value.get("schema").map(|body| SchemaItem { schema: Some(schema(body)) });
    let response = Response { description: string(value, "description"), schema: body };
    NamedResponseValue { name: code.to_owned(), value: Some(ResponseValue { response: Some(response) }) }
}

fn parameters(value: &Value) -> Vec<ParametersItem> {
    let list = value.get("parameters").and_then(Value::as_array).into_iter().flatten();
    list.map(|value| ParametersItem { parameter: Some(parameter(value)) }).collect()
}

fn parameter(value: &Value) -> Parameter {
    let place = string(value, "in");
    let name = string(value, "name");
    let other = |query, path| Parameter {
        body_parameter: None,
        non_body_parameter: Some(NonBodyParameter { query, path }),
    };
    match place.as_str() {
        "body" => {
            let body = BodyParameter {
                name,
                place,
                required: flag(value, "required"),
                schema: value.get("schema").map(schema),
            };
            Parameter { body_parameter: Some(body), non_body_parameter: None }
        }
        "path" => {
            let path = PathParameter {
                required: true,
                place,
                description: string(value, "description"),
                name,
                kind: string(value, "type"),
                unique_items: true,
            };
            other(None, Some(path))
        }
        _ => {
            let query = QueryParameter {
                place,
                description: string(value, "description"),
                name,
                kind: string(value, "type"),
                unique_items: true,
            };
            other(Some(query), None)
        }
    }
}
