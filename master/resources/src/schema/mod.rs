//! Schemas: decoding JSON strictly, finding unknown fields and wrong types, OpenAPI documents.
//!
//! The source of every schema is the row's type in k8s-openapi. `definitions` turns it into upstream's named definitions; `types`
//! keeps what checking and merging need of them (names and types, no prose); the OpenAPI documents are built, serialised and
//! dropped, so that the parsed prose never stays in memory.

mod check;
mod decode;
mod definitions;
mod gnostic;
mod merge_facts;
mod openapi2;
mod openapi3;
mod operations;
pub(crate) mod types;

use serde_json::Value;

use crate::resource::Resource;

pub use decode::decode_json;
pub use openapi2::{openapi_v2, openapi_v2_protobuf};
pub use openapi3::{openapi_v3, openapi_v3_index};

/// Paths of fields the kind does not have, as `spec.foo`.
pub fn unknown_fields(res: &Resource, object: &Value) -> Vec<String> {
    unknown_fields_of(res.definition, object)
}

/// Paths of fields a definition (`io.k8s.api.autoscaling.v1.Scale`) does not have.
pub fn unknown_fields_of(definition: &str, object: &Value) -> Vec<String> {
    types::model().definition(definition).map(|root| check::unknown(root, object)).unwrap_or_default()
}

/// The first value of a wrong JSON type, in the words of upstream's decoder.
pub fn type_errors(res: &Resource, object: &Value) -> Option<String> {
    type_errors_of(res.definition, object)
}

/// The first value of a wrong JSON type in a definition that is no row (`io.k8s.api.autoscaling.v1.Scale`).
pub fn type_errors_of(definition: &str, object: &Value) -> Option<String> {
    check::wrong(types::model().definition(definition)?, object)
}

/// What decoding into upstream's typed form and encoding again would do: unknown fields, nulls and empty optional lists and maps
/// go, quantities become canonical. `Resource::default` begins with it; unknown fields are to be reported before.
pub fn normalize(res: &Resource, object: &mut Value) {
    if let Some(root) = types::model().definition(res.definition) {
        check::normalize(root, object);
    }
}

#[cfg(test)]
mod tests;
