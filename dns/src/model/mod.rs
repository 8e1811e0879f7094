//! The cluster's zone: built from Services and slices, asked by name and type. Pure.

mod query;
mod zone;

pub use query::{Answer, Found, Origin};
pub use zone::{Endpoint, Service, Target, Zone};
