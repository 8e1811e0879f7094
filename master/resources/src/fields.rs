//! Field errors, with upstream's causes and texts (apimachinery `pkg/util/validation/field`).

use std::fmt::Display;

use serde_json::Value;

/// One thing wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Machine-readable cause, as `FieldValueInvalid`.
    pub cause: &'static str,
    /// Path, as `spec.containers[0].name`.
    pub field: String,
    /// Text without the path, as `Invalid value: "x": must be …`.
    pub message: String,
}

impl Display for FieldError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.field.is_empty() { write!(formatter, "{}", self.message) } else { write!(formatter, "{}: {}", self.field, self.message) }
    }
}

/// The errors found so far.
#[derive(Default)]
pub(crate) struct Errors(Vec<FieldError>);

impl Errors {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn push(&mut self, cause: &'static str, field: impl Into<String>, message: String) {
        self.0.push(FieldError { cause, field: field.into(), message });
    }

    pub(crate) fn required(&mut self, field: impl Into<String>, why: &str) {
        let message = if why.is_empty() { "Required value".to_owned() } else { format!("Required value: {why}") };
        self.push("FieldValueRequired", field, message);
    }

    pub(crate) fn invalid(&mut self, field: impl Into<String>, value: &Value, why: &str) {
        self.push("FieldValueInvalid", field, format!("Invalid value: {value}: {why}"));
    }

    pub(crate) fn duplicate(&mut self, field: impl Into<String>, value: &Value) {
        self.push("FieldValueDuplicate", field, format!("Duplicate value: {value}"));
    }

    pub(crate) fn not_found(&mut self, field: impl Into<String>, value: &Value) {
        self.push("FieldValueNotFound", field, format!("Not found: {value}"));
    }

    pub(crate) fn not_supported(&mut self, field: impl Into<String>, value: &Value, known: &[&str]) {
        let mut known: Vec<String> = known.iter().map(|known| format!("{known:?}")).collect();
        known.sort();
        let message = format!("Unsupported value: {value}: supported values: {}", known.join(", "));
        self.push("FieldValueNotSupported", field, message);
    }

    pub(crate) fn forbidden(&mut self, field: impl Into<String>, why: &str) {
        self.push("FieldValueForbidden", field, format!("Forbidden: {why}"));
    }

    pub(crate) fn too_long(&mut self, field: impl Into<String>, limit: usize) {
        self.push("FieldValueTooLong", field, format!("Too long: may not be more than {limit} bytes"));
    }

    pub(crate) fn into_vec(self) -> Vec<FieldError> {
        self.0
    }
}
