//! Field errors, with upstream's causes and texts (apimachinery `pkg/util/validation/field`).

use std::fmt::Display;

use serde_json::Value;

use crate::status::quote;

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
        if self.field.is_empty() {
            write!(formatter, "{}", self.message)
        } else {
            write!(formatter, "{}: {}", self.field, self.message)
        }
    }
}

impl FieldError {
    /// A field that must be given.
    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        let message =
            if detail.is_empty() { "Required value".to_owned() } else { format!("Required value: {detail}") };
        Self { cause: "FieldValueRequired", field: field.into(), message }
    }

    /// A malformed value.
    pub fn invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        let shown = show(value);
        let message = if detail.is_empty() {
            format!("Invalid value: {shown}")
        } else {
            format!("Invalid value: {shown}: {detail}")
        };
        Self { cause: "FieldValueInvalid", field: field.into(), message }
    }

    /// Something that must not be given or changed.
    pub fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        let message = if detail.is_empty() { "Forbidden".to_owned() } else { format!("Forbidden: {detail}") };
        Self { cause: "FieldValueForbidden", field: field.into(), message }
    }

    /// A value given twice.
    pub fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self {
            cause: "FieldValueDuplicate",
            field: field.into(),
            message: format!("Duplicate value: {}", show(value)),
        }
    }

    /// A value outside of an enumeration.
    pub fn not_supported(field: impl Into<String>, value: &str, supported: &[&str]) -> Self {
        let list: Vec<String> = supported.iter().map(|one| quote(one)).collect();
        let message = format!("Unsupported value: {}: supported values: {}", quote(value), list.join(", "));
        Self { cause: "FieldValueNotSupported", field: field.into(), message }
    }

    /// A reference to something that is not there.
    pub fn not_found(field: impl Into<String>, value: &str) -> Self {
        Self {
            cause: "FieldValueNotFound",
            field: field.into(),
            message: format!("Not found: {}", quote(value)),
        }
    }

    /// A text over its limit.
    pub fn too_long(field: impl Into<String>, limit_bytes: usize) -> Self {
        let message = format!("Too long: may not be more than {limit_bytes} bytes");
        Self { cause: "FieldValueTooLong", field: field.into(), message }
    }

    /// A list over its limit.
    pub fn too_many(field: impl Into<String>, count: usize, limit: usize) -> Self {
        let message =
            format!("Too many: {count}: must have at most {limit} item{}", if limit == 1 { "" } else { "s" });
        Self { cause: "FieldValueTooMany", field: field.into(), message }
    }
}

fn show(value: &Value) -> String {
    match value {
        Value::String(text) => quote(text),
        Value::Null => "null".to_owned(),
        other => other.to_string(),
    }
}

/// The errors found so far.
#[derive(Default)]
pub(crate) struct Errors(Vec<FieldError>);

/// More than this tells nobody anything.
const LIMIT: usize = 200;

impl Errors {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn into_vec(self) -> Vec<FieldError> {
        self.0
    }

    pub(crate) fn push(&mut self, error: FieldError) {
        if self.0.len() < LIMIT {
            self.0.push(error);
        }
    }

    pub(crate) fn required(&mut self, field: impl Into<String>, detail: &str) {
        self.push(FieldError::required(field, detail));
    }

    pub(crate) fn invalid(&mut self, field: impl Into<String>, value: impl Into<Value>, detail: &str) {
        self.push(FieldError::invalid(field, &value.into(), detail));
    }

    pub(crate) fn forbidden(&mut self, field: impl Into<String>, detail: &str) {
        self.push(FieldError::forbidden(field, detail));
    }

    pub(crate) fn duplicate(&mut self, field: impl Into<String>, value: impl Into<Value>) {
        self.push(FieldError::duplicate(field, &value.into()));
    }

    pub(crate) fn not_found(&mut self, field: impl Into<String>, value: &str) {
        self.push(FieldError::not_found(field, value));
    }

    pub(crate) fn too_long(&mut self, field: impl Into<String>, limit_bytes: usize) {
        self.push(FieldError::too_long(field, limit_bytes));
    }

    pub(crate) fn too_many(&mut self, field: impl Into<String>, count: usize, limit: usize) {
        self.push(FieldError::too_many(field, count, limit));
    }

    pub(crate) fn not_supported(&mut self, field: impl Into<String>, value: &str, supported: &[&str]) {
        self.push(FieldError::not_supported(field, value, supported));
    }

    /// One `Invalid value` for each fault.
    pub(crate) fn faults(&mut self, field: &str, value: &str, faults: Vec<String>) {
        for fault in faults {
            self.invalid(field, value, &fault);
        }
    }

    /// A value of an enumeration; empty is the caller's business.
    pub(crate) fn one_of(&mut self, field: impl Into<String>, value: &str, supported: &[&str]) {
        if !supported.contains(&value) {
            self.not_supported(field, value, supported);
        }
    }

    /// `field is immutable` unless the values are equal.
    pub(crate) fn immutable(&mut self, field: &str, new: Option<&Value>, old: Option<&Value>) {
        if absent_as_null(new) != absent_as_null(old) {
            self.invalid(field, absent_as_null(new).clone(), "field is immutable");
        }
    }
}

fn absent_as_null(value: Option<&Value>) -> &Value {
    value.unwrap_or(&Value::Null)
}
