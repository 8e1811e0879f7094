//! Keeps the zone's snapshot current.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use hickory_proto::rr::Name;
use orlop_daemon::Frame;
use orlop_kube::network::NetworkWatches;

use crate::Config;
use crate::model::{Origin, Zone};

const DEBOUNCE: Duration = Duration::from_millis(10);

/// The snapshot in force; none until the watches are synced.
#[derive(Clone)]
pub(crate) struct Snapshots {
    pub(crate) origin: Arc<Origin>,
    current: Arc<ArcSwapOption<Zone>>,
}

impl Snapshots {
    pub(crate) fn current(&self) -> Option<Arc<Zone>> {
        self.current.load_full()
    }

    #[cfg(test)]
    pub(crate) fn fixed(origin: Origin, zone: Option<Zone>) -> Self {
        Self { origin: Arc::new(origin), current: Arc::new(ArcSwapOption::new(zone.map(Arc::new))) }
    }
}

/// Starts the task that builds snapshots. It rests five times as long as a build took, so that a busy cluster costs at most a sixth of
/// a core.
pub(crate) fn start(frame: &Frame, watches: &NetworkWatches, origin: &Name, config: &Config) -> Snapshots {
    let origin = Origin {
        name: origin.clone(),
        ttl_seconds: config.ttl_seconds,
        servers: config.listen.iter().map(std::net::SocketAddr::ip).collect(),
    };
    let snapshots = Snapshots { origin: Arc::new(origin), current: Arc::default() };
    frame.dump("dns", {
        let snapshots = snapshots.clone();
        move || match snapshots.current() {
            Some(zone) => serde_json::json!({"synced": true, "serial": zone.serial, "services": zone.len()}),
            None => serde_json::json!({"synced": false}),
        }
    });
    let (watches, drain, built) = (watches.clone(), frame.drain(), snapshots.clone());
    frame.spawn("dns-zone", async move {
        tokio::select! {
            () = async { watches.services.synced().await; watches.slices.synced().await; } => {}
            () = drain.wait() => return Ok(()),
        }
        let (services, slices) = (watches.services.subscribe(), watches.slices.subscribe());
        let mut serial = 0;
        loop {
            let started = Instant::now();
            serial = next_serial(serial);
            let zone = build(&watches, serial);
            let took = started.elapsed();
            tracing::debug!(serial, services = zone.len(), microseconds = took.as_micros(), "zone built");
            built.current.store(Some(Arc::new(zone)));
            if !drain.sleep(took * 5).await {
                return Ok(());
            }
            tokio::select! {
                _ = services.changed() => {}
                _ = slices.changed() => {}
                () = drain.wait() => return Ok(()),
            }
            if !drain.sleep(DEBOUNCE).await {
                return Ok(());
            }
        }
    });
    snapshots
}

fn build(watches: &NetworkWatches, serial: u32) -> Zone {
    let (services, slices) = (watches.services.all(), watches.slices.all());
    Zone::build(
        services.iter().map(|(key, service)| (key, &**service)),
        slices.iter().map(|(key, slice)| (key, &**slice)),
        serial,
    )
}

/// Seconds since the epoch, as CoreDNS, but never the same twice.
fn next_serial(last: u32) -> u32 {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    u32::try_from(seconds & u64::from(u32::MAX)).unwrap_or(0).max(last.wrapping_add(1))
}
