//! A registry (OCI distribution specification 1.1): push, pull, tags, referrers; bytes are stored and served verbatim.
//!
//! ```text
//!   connection --TLS--> namespace, route --> registry --> uploads (memory, ingest/) --commit--> blobs/ + records.redb
//!                                               \-> miss -> other mirrors, upstream: one flight per blob, clients read the growing file
//! ```
//!
//! Invariants: a blob is visible only whole and with the digest of its name; every change of the records is whole or absent; a kill at any
//! line leaves at most files in `ingest/`, which the next start removes, and strays that a later collection finds; what a row names is never
//! removed (`keeping/`); connections and uploads are bounded.
//!
//! Bytes by digest are never asked for twice; a fetched tag is confirmed upstream when it is older than `tagFreshnessSeconds`, and served
//! as last seen, marked stale, when the upstream does not answer (`upstream/`). Only configured upstreams are contacted, whatever a client says (`namespace.rs`).
//!
//! Mirrors that name each other in `peers` hold the same content, and mirrors of nodes fetch for each other (`peers/`).
//!
//! It knows no runtime daemon and no Kubernetes. Without `auth` nobody is asked who he is: everybody may pull, and push only on loopback
//! unless `anonymousPush` is set. With it, `auth/` says who may do what.
//!
//! Tasks: `mirror-listener`, one per connection, one per blob that is fetched, `mirror-files` (users are read again), one `mirror-peer` per
//! peer (follows its changes), `mirror-owed` (asks again for what no peer had), `mirror-keeping` (evicts, collects garbage), the thread
//! `mirror-scrub`. Where to read next: `route.rs`, `registry.rs`.

mod auth;
mod bundles;
mod config;
mod content;
mod door;
mod error;
mod flights;
mod keeping;
mod landing;
mod namespace;
mod older;
mod peers;
mod query;
mod ranges;
mod recent;
mod records;
mod registry;
mod repositories;
mod route;
mod server;
mod stores;
mod uploads;
mod upstream;
mod watched;

pub use auth::{Action, AuthConfig, ExternalTokens, Rule, user_line};
pub use config::{ClientAuth, Config, NodesConfig};
pub use keeping::{KeepingConfig, Mode};
pub use server::start;
pub use upstream::{UpstreamCredential, UpstreamListener, UpstreamTimeouts};
