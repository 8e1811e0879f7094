//! Field errors, with upstream's causes and texts (apimachinery `pkg/util/validation/field`).

use std::fmt::Display;

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

    pub(crate) fn into_vec(self) -> Vec<FieldError> {
        self.0
    }
}
