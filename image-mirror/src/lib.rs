//! A registry (OCI distribution specification 1.1): push, pull, tags, referrers; bytes are stored and served verbatim.
//!
//! ```text
//!   connection --TLS--> route --> registry --> uploads (memory, ingest/) --commit--> blobs/ + repositories/ (files)
//! ```
//!
//! Invariants: a blob is visible only whole and with the digest of its name; every record is whole or absent; a kill at any
//! line leaves at most files in `ingest/`, which the next start removes; connections and uploads are bounded.
//!
//! It knows no runtime daemon and no Kubernetes. Who may push is not asked: it listens on loopback, or behind TLS where
//! `readOnly` is the way to refuse pushes.
//!
//! Tasks: `mirror-listener`, and one per connection. Where to read next: `route.rs`, `registry.rs`.

mod config;
mod content;
mod error;
mod registry;
mod repositories;
mod route;
mod server;
mod uploads;

pub use config::Config;
pub use server::start;
