//! The cluster's zone as a value: built from Services and EndpointSlices, asked by name. Pure.
//!
//! Law: the Kubernetes DNS specification 1.1, RFC 1035, RFC 2308 (negative answers), RFC 8020 (empty non-terminals exist).

mod build;
mod zone;

pub use build::{ServiceRecord, build};
pub use zone::{Answer, Data, Zone};

#[cfg(test)]
mod tests;
