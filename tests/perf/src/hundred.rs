//! A hundred pods by CRI alone: how long, and what they cost while nothing happens.

use std::time::Duration;

use anyhow::Context as _;

use crate::memory::Resident;
use crate::peer::Peer;
use crate::pods::Runtimes;
use crate::report::{Measure, Row};
use crate::sample::Samples;
use crate::{SETTLE, interrupt};

const PODS: usize = 100;
/// Created at the same time.
const WIDTH: usize = 10;
/// How long idle CPU time is watched.
const WATCH: Duration = Duration::from_secs(20);
const REFERENCE: &str = "containerd + runc, same calls";

struct Hundred {
    created: Samples,
    daemon: Resident,
    idle_percent: f64,
}

/// Both runtimes, one after the other.
pub(crate) fn measure(runtimes: Runtimes, rows: &mut Vec<Row>) -> anyhow::Result<()> {
    let theirs = runtimes.runtime.block_on(one(runtimes.containerd)).context("containerd")?;
    let ours = runtimes.runtime.block_on(one(runtimes.orlop)).context("orlop runtime")?;
    let mut row = |what: String, target, ours, theirs| {
        rows.push(Row { what, target, ours, reference: Some((theirs, REFERENCE)) });
    };
    // A quarter of the reference's, whatever that is on this machine.
    row(
        format!("{PODS} pods created {WIDTH} at a time, all running"),
        Some(theirs.created.median() / 4.0),
        Measure::Time(ours.created),
        Measure::Time(theirs.created),
    );
    row(
        format!("resident memory of the runtime with {PODS} running pods"),
        Some(25.0),
        Measure::Memory(ours.daemon),
        Measure::Memory(theirs.daemon),
    );
    row(
        format!("CPU of runtime, shims and sleeping containers of {PODS} pods, nothing asked"),
        Some(0.1),
        Measure::Percent(ours.idle_percent),
        Measure::Percent(theirs.idle_percent),
    );
    Ok(())
}

async fn one(peer: &Peer) -> anyhow::Result<Hundred> {
    interrupt::check()?;
    let (elapsed, pods) = peer.cri.run_pods(&peer.orders("hundred", PODS), WIDTH).await?;
    tokio::time::sleep(SETTLE).await;
    let daemon = Resident::of(&[peer.daemon_pid()])?;
    let before = peer.cpu()?;
    tokio::time::sleep(WATCH).await;
    let used = peer.cpu()?.saturating_sub(before);
    for part in pods.chunks(WIDTH) {
        peer.cri.remove_pods(part).await?;
    }
    let mut created = Samples::new();
    created.push(elapsed);
    Ok(Hundred { created, daemon, idle_percent: used.as_secs_f64() / WATCH.as_secs_f64() * 100.0 })
}
