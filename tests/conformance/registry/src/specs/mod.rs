//! Sections of the specification.

pub mod deletes;
pub mod errors;
pub mod manifests;
pub mod mounts;
pub mod pull;
pub mod ranges;
pub mod referrers;
pub mod tags;
pub mod uploads;
