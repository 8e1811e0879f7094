//! Node-local cluster DNS (Kubernetes DNS specification 1.1) with forwarding of everything else.
//!
//! ```text
//!   watches --> zone task --(debounce)--> snapshot (immutable, swapped)
//!                                             |
//!   UDP / TCP --> decode --> limit --> zone, reverse --yes--> encode, truncate --> client
//!                                             \--no--> cache --> upstreams in turn --/
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`model`] | Services and slices as a zone; a query against it (pure) |
//! | `answer` | one message: decode, choose, encode, truncate |
//! | `server` | sockets, limits, idle times |
//! | `forward`, `cache` | the rest of the world |
//!
//! Invariant: the zone is answered only from a snapshot made after Services and slices are synced; before that it is SERVFAIL,
//! never NXDOMAIN, because resolvers remember a name that does not exist.
//! Invariant: hostile bytes cost a bounded amount of work and never end a task.
//! Invariant: every queue has a bound: queries under way, TCP connections, forwards, cache entries.
//!
//! It deliberately does not do DNSSEC validation, zone transfers, DNS over TLS or HTTPS, and adds no address to any interface: the
//! caller has put the addresses of [`Config::listen`] on the host.

mod answer;
mod cache;
mod config;
mod forward;
mod metrics;
pub mod model;
mod server;
mod snapshot;
mod upstreams;

use std::sync::Arc;

pub use config::Config;
use orlop_daemon::Frame;
use orlop_kube::network::NetworkWatches;

/// Starts the DNS server as tasks of the frame.
///
/// # Errors
/// A domain that is no DNS name.
pub async fn start(frame: &Frame, watches: &NetworkWatches, config: Config) -> anyhow::Result<()> {
    let origin = config.origin()?;
    let config = Arc::new(config);
    let metrics = metrics::Metrics::register(frame);
    let snapshots = snapshot::start(frame, watches, &origin, &config);
    let upstreams = upstreams::start(frame, &config);
    let forwarder = forward::Forwarder::new(upstreams, &config, metrics.clone());
    let responder = Arc::new(answer::Responder::new(origin, snapshots, forwarder, metrics, &config));
    server::start(frame, &responder, &config);
    Ok(())
}
