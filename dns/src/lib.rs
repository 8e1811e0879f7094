//! Cluster DNS on the node itself (Kubernetes DNS specification 1.1): no DNAT, no conntrack, no stale negative answers.
//!
//! ```text
//!   Services, EndpointSlices --watch--> index --debounce--> model::build --> zone (immutable, swapped) --> answers
//!   other names ----------------------------------------------------------> forward (upstreams, small cache)
//! ```
//!
//! Invariants: an answer comes from one immutable zone; not synced is SERVFAIL, never NXDOMAIN; every decoder takes hostile
//! bytes; questions under way, connections and the cache are bounded.
//!
//! It does not watch pods (`a-b-c-d.NAMESPACE.pod` is answered from the name), does not sign, and puts no address on an
//! interface: the addresses of `listen` are there or will be.
//!
//! Tasks: `dns-zone` (owns the zone, alone writes it), `dns-udp-*` and `dns-tcp-*` (one per address).
//! Where to read next: [`model`], then `message.rs`.

#![warn(missing_docs)]

mod config;
mod forward;
mod message;
mod metrics;
pub mod model;
mod server;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use orlop_daemon::{Drain, Frame};
use orlop_kube::network::NetworkWatches;
use tokio::sync::Semaphore;

pub use config::Config;
use forward::Forwarder;
use metrics::Metrics;
use model::ServiceRecord;
use server::Responder;

/// Changes within this time make one new zone.
const DEBOUNCE: Duration = Duration::from_millis(10);

/// Starts the server as tasks of the frame.
///
/// # Errors
/// None at start; addresses that cannot be bound are tried again for ever, and hold back readiness (`dns-listening`).
pub async fn start(frame: &Frame, watches: &NetworkWatches, config: Config) -> anyhow::Result<()> {
    let metrics = Metrics::new(frame);
    let responder = Arc::new(Responder {
        zone: ArcSwapOption::empty(),
        forwarder: Forwarder::new(&config, metrics.clone()),
        metrics,
        ttl_seconds: config.ttl_seconds,
        pending: Arc::new(Semaphore::new(config.max_forwarded)),
    });
    let dumped = responder.clone();
    frame.dump("dns", move || {
        let zone = dumped.zone.load();
        serde_json::json!({"synced": zone.is_some(), "names": zone.as_ref().map(|zone| zone.len())})
    });
    frame.spawn("dns-zone", keep_zone(watches.clone(), responder.clone(), config.clone(), frame.drain()));
    let connections = Arc::new(Semaphore::new(config.max_connections));
    for address in config.listen {
        let guard = frame.ready().guard(format!("dns-listening-{address}"));
        let (responder, connections) = (responder.clone(), connections.clone());
        let (drain, spawner) = (frame.drain(), frame.clone());
        frame.spawn(format!("dns-bind-{address}"), async move {
            let Some((udp, tcp)) = server::bind(address, &drain).await else { return Ok(()) };
            tracing::info!(%address, "serving DNS");
            guard.set();
            spawner.spawn(format!("dns-udp-{address}"), server::serve_udp(udp, responder.clone(), drain.clone()));
            spawner.spawn(format!("dns-tcp-{address}"), server::serve_tcp(tcp, responder, connections, drain));
            Ok(())
        });
    }
    Ok(())
}

/// Owns the zone: builds it anew after changes, at its own pace.
async fn keep_zone(
    watches: NetworkWatches,
    responder: Arc<Responder>,
    config: Config,
    drain: Drain,
) -> anyhow::Result<()> {
    let services = watches.services.subscribe();
    let slices = watches.slices.subscribe();
    tokio::select! {
        () = async { tokio::join!(watches.services.synced(), watches.slices.synced()); } => {}
        () = drain.wait() => return Ok(()),
    }
    let own: Vec<IpAddr> = config.listen.iter().map(SocketAddr::ip).collect();
    loop {
        let started = Instant::now();
        let zone = model::build(&config.domain, &own, &records(&watches));
        tracing::debug!(names = zone.len(), elapsed = ?started.elapsed(), "zone built");
        responder.zone.store(Some(Arc::new(zone)));
        tokio::select! {
            _ = services.changed() => {}
            _ = slices.changed() => {}
            () = drain.wait() => return Ok(()),
        }
        if !drain.sleep(DEBOUNCE).await {
            return Ok(());
        }
    }
}

fn records(watches: &NetworkWatches) -> Vec<ServiceRecord> {
    let mut of_service: BTreeMap<(String, String), Vec<_>> = BTreeMap::new();
    for (key, slice) in watches.slices.all() {
        of_service.entry((key.namespace, slice.service.clone())).or_default().push(slice);
    }
    let services = watches.services.all().into_iter();
    services
        .map(|(key, service)| {
            let slices = of_service.remove(&(key.namespace.clone(), key.name.clone())).unwrap_or_default();
            ServiceRecord { key, service, slices }
        })
        .collect()
}
