//! The resource table: every API kind as a row.
//!
//! A row names a kind (group, version, plural, verbs, subresources) and points at what is peculiar to it: defaults, validation,
//! update strategy, selectable fields, printed columns, its schema. Everything the API server says about a kind is derived from
//! its row: discovery, OpenAPI, field validation, strategic merge, tables. Adding a resource is adding a row in `rows/`.
//!
//! What this crate deliberately does not do: storage, HTTP, authentication, allocation of addresses and ports, anything that
//! needs another object. It has no tokio, no file, no socket and no clock; the time is passed in.
//!
//! Objects are `serde_json::Value`s in the kind's own version. The order the API server calls in:
//!
//! ```text
//! bytes -> schema::decode_json -> schema::unknown_fields / type_errors -> Resource::default
//!       -> prepare_create | prepare_update -> (admission, allocation) -> validate -> store
//! store -> table_columns / table_cells, selectable_fields
//! ```
//!
//! Invariants: the functions never panic on any JSON value; `default` is idempotent; `validate` sees defaulted objects only.
//! Errors carry upstream's texts, because clients and tests match on them.
//!
//! Read next: `resource.rs` (the row), `rows/mod.rs` (the table), `rows/pods/` (the largest row).

pub mod discovery;
pub mod fields;
pub mod patch;
mod resource;
mod rows;
pub mod schema;
pub mod selector;
pub mod status;

/// The Kubernetes API version the table follows.
pub const KUBERNETES_VERSION: &str = "v1.36.0";

pub use fields::FieldError;
pub use resource::{Resource, Subresource};
pub use rows::{by_kind, find, resources};
