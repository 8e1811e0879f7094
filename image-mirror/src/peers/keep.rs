//! What is owed is asked for again; what was removed long ago is forgotten.

use std::sync::Arc;
use std::time::Duration;

use orlop_daemon::Drain;
use orlop_types::Digest;

use super::Peers;
use super::follow::replicate;
use crate::keeping::Mode;
use crate::registry::Registry;

/// Between two rounds.
const PERIOD: Duration = Duration::from_secs(300);
/// Rounds between two looks for removed rows: once a day.
const ROUNDS_OF_DAY: u32 = 288;
/// Digests, or rows, that are read at one time.
const BATCH: usize = 500;

pub(super) async fn run(peers: Peers, registry: Arc<Registry>, drain: Drain) -> anyhow::Result<()> {
    let mut round = 0;
    loop {
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => round += 1,
            // Who comes back may have what the others did not.
            () = peers.inner.returned.notified() => {}
            () = drain.wait() => return Ok(()),
        }
        if registry.keeper.mode() == Mode::Maintenance {
            continue;
        }
        if let Err(error) = ask_again(&peers, &registry, &drain).await {
            tracing::warn!(error = error.message, "what is owed could not be asked for");
        }
        if round >= ROUNDS_OF_DAY {
            round = 0;
            if let Err(error) = forget(&registry).await {
                tracing::warn!(%error, "removed rows could not be forgotten");
            }
        }
    }
}

async fn ask_again(
    peers: &Peers,
    registry: &Arc<Registry>,
    drain: &Drain,
) -> Result<(), crate::error::RegistryError> {
    let records = &registry.repositories.records;
    let mut after: Option<String> = None;
    loop {
        let owed = records.owed(after.as_deref(), BATCH)?;
        let Some(last) = owed.last() else { return Ok(()) };
        after = Some(last.clone());
        for text in owed {
            let Ok(digest) = text.parse::<Digest>() else { continue };
            if records.owners(&digest)?.is_empty() {
                records.write(move |change| change.owe_no_more(&text)).await?;
                continue;
            }
            for peer in peers.inner.pairs.iter().filter(|peer| peer.may_answer()) {
                match replicate(peers, peer, registry, &digest, None).await {
                    Ok(true) => break,
                    Ok(false) => {}
                    Err(error) => tracing::debug!(%digest, error = error.message, "still owed"),
                }
            }
            if drain.is_draining() {
                return Ok(());
            }
        }
    }
}

async fn forget(registry: &Registry) -> Result<(), crate::records::RecordsError> {
    let records = &registry.repositories.records;
    let mut since = 0;
    loop {
        let page = records.changes(since, BATCH, usize::MAX)?;
        let now_ms = crate::records::now_ms();
        let old = page.changes.into_iter().filter(|(_, cell)| crate::records::is_forgettable(cell, now_ms));
        let rows: Vec<_> = old.map(|(row, _)| row).collect();
        if !rows.is_empty() {
            records.write(move |change| rows.iter().try_for_each(|row| change.forget(row))).await?;
        }
        if page.through >= page.last {
            return Ok(());
        }
        since = page.through;
    }
}
