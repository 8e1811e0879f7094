//! Scheduler and controllers of the master: everything that turns stored intent into other objects.
//!
//! ```text
//!   informers (one set) --> routers --> work queues (dirty keys, backoff) --> plan (pure) --> apply (API calls)
//!        watch::Watches      watch::Router     queue::WorkQueue
//! ```
//!
//! | module | turns | into |
//! |---|---|---|
//! | [`workload`] | ReplicationControllers | pods |
//! | [`endpoints`] | Services and pods | Endpoints and EndpointSlices |
//! | [`namespace`] | a Namespace's deletion | deletion of all it holds |
//! | [`collector`] | ownerReferences | deletion or release of dependents; pods without a node |
//! | [`account`] | a Namespace | its ServiceAccount `default` and ConfigMap `kube-root-ca.crt` |
//! | [`node`] | leases, conditions, taints | node conditions and taints, evictions, pod ranges |
//! | [`scheduler`] | pending pods | bindings |
//!
//! Each controller is the same machine: a changed object marks keys dirty, a worker takes a key, reads the informers' snapshots,
//! asks a pure `plan` and applies it. A failed apply puts the key back with backoff; a conflict is an error like any other: the
//! next plan sees the newer object. Nothing is remembered but what repairs itself from the API.
//!
//! Invariant: no controller acts before every informer it reads is synced.
//! Invariant: one key is worked on by at most one worker at a time, so a plan never races with its own predecessor.
//! Invariant: what a controller has written but not yet seen in its watch is overlaid on the snapshot (created pods, issued
//! deletes, bindings, pod ranges), so a stale watch never doubles anything.
//!
//! It deliberately does not elect a leader (the embedded master is one process), does not know the store, and does not implement
//! inter-pod affinity, preemption or volume binding: pods that require inter-pod affinity stay Pending with that reason.

mod account;
mod api;
mod collector;
mod config;
mod endpoints;
mod events;
pub mod model;
mod namespace;
mod node;
mod queue;
mod scheduler;
mod watch;
mod workload;

use std::sync::Arc;

pub use config::Config;
use kube::Client;
use orlop_daemon::Frame;

/// What every controller is given.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) frame: Frame,
    pub(crate) client: Client,
    pub(crate) config: Arc<Config>,
    pub(crate) watches: watch::Watches,
    pub(crate) queues: queue::Metrics,
}

/// Starts the watches, the controllers and the scheduler as tasks of the frame.
///
/// # Errors
/// A root certificate file that cannot be read.
pub async fn start(frame: &Frame, client: Client, config: Config) -> anyhow::Result<()> {
    let root_ca = account::read_root_ca(&config)?;
    let context = Context {
        frame: frame.clone(),
        client: client.clone(),
        config: Arc::new(config),
        watches: watch::Watches::start(frame, &client),
        queues: queue::Metrics::register(frame),
    };
    let mut routes = watch::Routes::new(&context.watches);
    scheduler::start(&context, &mut routes);
    workload::start(&context, &mut routes);
    endpoints::start(&context, &mut routes);
    namespace::start(&context, &mut routes);
    account::start(&context, &mut routes, root_ca);
    node::start(&context, &mut routes);
    collector::start(&context, &mut routes);
    routes.spawn(frame);
    Ok(())
}
