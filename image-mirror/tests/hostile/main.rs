//! What the mirror makes of upstreams that are slow, broken or evil.

#![expect(clippy::unwrap_used, reason = "tests")]

mod blobs;
mod credentials;
mod default;
mod lists;
mod mirror;
mod rests;
mod tags;
mod upstream;
