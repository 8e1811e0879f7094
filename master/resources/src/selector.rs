//! Label and field selectors, in text and object form (apimachinery `pkg/labels`, `pkg/fields`).

mod field;
mod label;
mod token;

pub use field::{FieldRequirement, FieldSelector};
pub use label::{LabelSelector, Operator, Requirement};
