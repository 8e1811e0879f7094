//! What checking and merging need of the definitions: names and types, no prose.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::Value;

use super::definitions::{self, INT_OR_STRING, META, QUANTITY, REF};
use super::merge_facts::{self, ListFact};

/// The type of a value.
#[derive(Debug)]
pub(crate) enum Type {
    String,
    Int32,
    Int64,
    Number,
    Bool,
    IntOrString,
    Quantity,
    Time,
    MicroTime,
    Bytes,
    /// Anything, not looked into.
    Any,
    Object(usize),
    List(Box<Type>),
    Map(Box<Type>),
}

/// One field of an object.
#[derive(Debug)]
pub(crate) struct FieldType {
    pub(crate) name: Box<str>,
    pub(crate) kind: Type,
    pub(crate) required: bool,
    pub(crate) list: Option<ListFact>,
}

/// One definition.
#[derive(Debug)]
pub(crate) struct Definition {
    /// Name of the Go type, as `v1.PodSpec`.
    pub(crate) go_type: Box<str>,
    fields: Vec<FieldType>,
}

impl Definition {
    pub(crate) fn field(&self, name: &str) -> Option<&FieldType> {
        self.fields.iter().find(|field| &*field.name == name)
    }

    /// `PodSpec` of `v1.PodSpec`.
    pub(crate) fn short_name(&self) -> &str {
        self.go_type.rsplit('.').next().unwrap_or(&self.go_type)
    }
}

/// Every definition the table reaches.
#[derive(Debug)]
pub(crate) struct Model {
    names: HashMap<Box<str>, usize>,
    definitions: Vec<Definition>,
}

static MODEL: LazyLock<Model> = LazyLock::new(Model::build);

/// The model of the whole table, built at first use.
pub(crate) fn model() -> &'static Model {
    &MODEL
}

impl Model {
    pub(crate) fn definition(&self, name: &str) -> Option<&Definition> {
        self.names.get(name).map(|index| &self.definitions[*index])
    }

    pub(crate) fn at(&self, index: usize) -> &Definition {
        &self.definitions[index]
    }

    /// The Go type's name of a type, as decoding errors show it.
    pub(crate) fn go_type(&self, kind: &Type) -> String {
        match kind {
            Type::String => "string".to_owned(),
            Type::Int32 => "int32".to_owned(),
            Type::Int64 => "int64".to_owned(),
            Type::Number => "float64".to_owned(),
            Type::Bool => "bool".to_owned(),
            Type::IntOrString => "intstr.IntOrString".to_owned(),
            Type::Quantity => "resource.Quantity".to_owned(),
            Type::Time => "v1.Time".to_owned(),
            Type::MicroTime => "v1.MicroTime".to_owned(),
            Type::Bytes => "[]uint8".to_owned(),
            Type::Any => "map[string]interface {}".to_owned(),
            Type::Object(index) => self.at(*index).go_type.to_string(),
            Type::List(item) => format!("[]{}", self.go_type(item)),
            Type::Map(item) => format!("map[string]{}", self.go_type(item)),
        }
    }

    fn build() -> Self {
        let generated = definitions::generate(crate::rows::resources().iter());
        let names: HashMap<Box<str>, usize> =
            generated.iter().enumerate().map(|(index, (name, _))| (name.as_str().into(), index)).collect();
        let definitions =
            generated.iter().map(|(name, schema)| definition(name, schema, &names, &generated)).collect();
        Self { names, definitions }
    }
}

type Generated = [(String, Value)];

fn definition(
    name: &str,
    schema: &Value,
    names: &HashMap<Box<str>, usize>,
    generated: &Generated,
) -> Definition {
    let required: Vec<&str> = schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let mut fields = Vec::new();
    for (field, schema) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        fields.push(FieldType {
            name: field.as_str().into(),
            kind: kind(schema, names, generated),
            required: required.contains(&field.as_str()),
            list: merge_facts::list(name, field),
        });
    }
    Definition { go_type: go_type(name), fields }
}

/// `io.k8s.api.core.v1.Pod` is `v1.Pod` in Go.
fn go_type(name: &str) -> Box<str> {
    let mut parts = name.rsplit('.');
    let (last, package) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    format!("{package}.{last}").into()
}

fn kind(schema: &Value, names: &HashMap<Box<str>, usize>, generated: &Generated) -> Type {
    if let Some(name) = schema.get("$ref").and_then(Value::as_str).and_then(|name| name.strip_prefix(REF)) {
        return reference(name, names, generated);
    }
    let format = schema.get("format").and_then(Value::as_str).unwrap_or_default();
    match (schema.get("type").and_then(Value::as_str).unwrap_or_default(), format) {
        ("string", "byte") => Type::Bytes,
        ("string", _) => Type::String,
        ("integer", "int64") => Type::Int64,
        ("integer", _) => Type::Int32,
        ("number", _) => Type::Number,
        ("boolean", _) => Type::Bool,
        ("array", _) => {
            let item = schema.get("items").map_or(Type::Any, |item| kind(item, names, generated));
            Type::List(Box::new(item))
        }
        ("object", _) => match schema.get("additionalProperties") {
            Some(item) if item.is_object() => Type::Map(Box::new(kind(item, names, generated))),
            _ => Type::Any,
        },
        _ => Type::Any,
    }
}

fn reference(name: &str, names: &HashMap<Box<str>, usize>, generated: &Generated) -> Type {
    match name {
        QUANTITY => return Type::Quantity,
        INT_OR_STRING => return Type::IntOrString,
        _ => {}
    }
    match name.strip_prefix(META) {
        Some(".Time") => return Type::Time,
        Some(".MicroTime") => return Type::MicroTime,
        _ => {}
    }
    let Some(index) = names.get(name) else {
        return Type::Any;
    };
    // An object without properties is open: FieldsV1, RawExtension.
    match generated[*index].1.get("properties") {
        Some(_) => Type::Object(*index),
        None => Type::Any,
    }
}
