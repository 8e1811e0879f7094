//! What stays on the disk.
//!
//! ```text
//!   uses (memory) --each minute--> last use of contents
//!   task "mirror-keeping": write uses, evict above quota, collect garbage
//!   push, fetch --> make_room --> evict
//!   thread "mirror-scrub": hash every blob again; damaged ones to quarantine/
//! ```
//!
//! Invariants: bytes that a row wants are never removed; bytes that a client was told about stay for the lease; a removal is decided
//! inside a change of the records, and the file goes after it.

mod collect;
mod commands;
mod config;
mod evict;
#[cfg(test)]
mod evicted;
#[cfg(test)]
mod many;
mod memory;
mod mode;
#[cfg(test)]
mod properties;
mod rules;
mod scrub;
mod seen;
mod uses;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use orlop_daemon::Frame;
use orlop_daemon::prometheus_client::metrics::counter::Counter;
use orlop_types::Digest;

pub use config::KeepingConfig;
pub use mode::Mode;

use crate::records::{Kind, RecordsError, Row, Value, now_ms};
use crate::repositories::Repositories;
use collect::Collected;
use memory::Memory;
use rules::Pins;
use scrub::Orders;
use uses::{Noted, Uses};

/// Time between two writes of uses.
const TICK: Duration = Duration::from_secs(60);
/// Uses in one change.
const USES_AT_ONCE: usize = 512;
/// The first collection waits for the start to be over.
const FIRST_COLLECTION: Duration = Duration::from_secs(600);
/// Looking at every file is done with the first collection and after this time again.
const STRAYS: Duration = Duration::from_secs(24 * 3600);

/// The last collection, for the state dump.
#[derive(Clone, Copy, Debug)]
struct LastCollection {
    started_ms: u64,
    ended_ms: u64,
    collected: Collected,
}

/// Why a push or a fetch was refused last.
#[derive(Clone, Debug)]
struct Refusal {
    at_ms: u64,
    message: String,
}

/// One per registry.
pub(crate) struct Keeper {
    repositories: Repositories,
    root: PathBuf,
    configured_mode: Mode,
    memory: Mutex<Memory>,
    remembering: Mutex<()>,
    lease_ms: u64,
    interval: Duration,
    quota_bytes: u64,
    min_free_bytes: Option<u64>,
    pins: Pins,
    keep_used_ms: u64,
    uses: Uses,
    /// Blobs that were served for repositories which do not count them as theirs yet.
    adoptions: Mutex<Vec<(Row, u64)>>,
    /// Held by the one eviction; when it is worth to look again.
    evicting: tokio::sync::Mutex<Option<Instant>>,
    refusal: Mutex<Option<Refusal>>,
    evicted_images: Counter,
    evicted_bytes: Counter,
    opened_ms: u64,
    scrub_interval_days: u64,
    scrub_bytes_per_second: u64,
    scrub_orders: Orders,
    scrubbed_bytes: Counter,
    damaged: Counter,
    /// Held by the one collection.
    collecting: tokio::sync::Mutex<()>,
    soon: tokio::sync::Notify,
    last: Mutex<Option<LastCollection>>,
    removed_bytes: Counter,
}

impl Keeper {
    pub(crate) fn open(
        root: &Path,
        config: &KeepingConfig,
        mode: Mode,
        repositories: Repositories,
    ) -> anyhow::Result<Self> {
        let lease_ms = config.upload_lease_ms();
        let keeper = Self {
            repositories,
            root: root.to_owned(),
            configured_mode: mode,
            memory: Mutex::new(Memory::load(root)),
            remembering: Mutex::default(),
            lease_ms,
            interval: Duration::from_secs(config.collect_interval_seconds),
            quota_bytes: config.quota_bytes,
            min_free_bytes: config.min_free_bytes,
            pins: Pins::parse(&config.pins).0,
            keep_used_ms: config.keep_used_seconds.saturating_mul(1000),
            uses: Uses::new(lease_ms),
            adoptions: Mutex::default(),
            evicting: tokio::sync::Mutex::default(),
            refusal: Mutex::default(),
            evicted_images: Counter::default(),
            evicted_bytes: Counter::default(),
            opened_ms: now_ms(),
            scrub_interval_days: config.scrub_interval_days,
            scrub_bytes_per_second: config.scrub_bytes_per_second,
            scrub_orders: Orders::default(),
            scrubbed_bytes: Counter::default(),
            damaged: Counter::default(),
            collecting: tokio::sync::Mutex::default(),
            soon: tokio::sync::Notify::new(),
            last: Mutex::default(),
            removed_bytes: Counter::default(),
        };
        for directory in [keeper.trash(), root.join("quarantine")] {
            std::fs::create_dir_all(&directory)
                .with_context(|| format!("failed to create {}", directory.display()))?;
        }
        Ok(keeper)
    }

    /// Starts the task, and shows what it does.
    ///
    /// # Errors
    /// No thread can be started.
    pub(crate) fn start(self: &Arc<Self>, frame: &Frame) -> anyhow::Result<()> {
        self.register(&mut frame.metrics());
        self.offer(frame);
        self.start_scrub(frame)?;
        let (keeper, drain) = (self.clone(), frame.drain());
        frame.spawn("mirror-keeping", async move {
            let mut collect_at = Instant::now() + keeper.interval.min(FIRST_COLLECTION);
            let mut strays_at = collect_at;
            loop {
                tokio::select! {
                    () = drain.wait() => break,
                    () = tokio::time::sleep(TICK.min(keeper.interval)) => {}
                    () = keeper.soon.notified() => {}
                }
                if keeper.mode() == Mode::Maintenance {
                    continue;
                }
                keeper.log(keeper.write_uses().await, "uses were not written");
                // What stands against it is noted, and pushes are told.
                let _ = keeper.make_room(0).await;
                let now = Instant::now();
                if now >= collect_at {
                    let strays = now >= strays_at;
                    tokio::select! {
                        () = drain.wait() => break,
                        collected = keeper.collect(strays) => keeper.log(collected.map(drop), "garbage was not collected"),
                    }
                    collect_at = Instant::now() + keeper.interval;
                    if strays {
                        strays_at = Instant::now() + STRAYS;
                    }
                }
            }
            if keeper.mode() != Mode::Maintenance {
                keeper.log(keeper.write_uses().await, "uses were not written");
            }
            Ok(())
        });
        Ok(())
    }

    /// Every step is tried again at the next tick.
    fn log(&self, outcome: Result<(), RecordsError>, what: &str) {
        if let Err(error) = outcome {
            tracing::warn!(%error, root = %self.root.display(), "{what}");
        }
    }

    /// Notes a pull. Nothing is written now.
    pub(crate) fn pulled(&self, digest: &Digest) {
        if self.uses.note(digest, now_ms()) == Noted::Many {
            self.soon.notify_one();
        }
    }

    /// A blob that one repository fetched is served for others of upstreams too: it becomes theirs, so that it stays for their images.
    pub(crate) fn adopt(&self, name: &str, digest: &Digest, size: u64) {
        let mut adoptions = self.adoptions.lock().unwrap_or_else(PoisonError::into_inner);
        // More than this in a minute are adopted when they are pulled again.
        if adoptions.len() < USES_AT_ONCE {
            adoptions.push((Row::new(Kind::Blob, name, digest.as_str()), size));
        }
    }

    async fn write_adoptions(&self) -> Result<(), RecordsError> {
        let adoptions = std::mem::take(&mut *self.adoptions.lock().unwrap_or_else(PoisonError::into_inner));
        if adoptions.is_empty() {
            return Ok(());
        }
        let write = self.repositories.records.write(move |change| {
            for (row, size) in adoptions {
                let here = row.key.parse().is_ok_and(|digest| matches!(change.used_ms(&digest), Ok(Some(_))));
                if here && change.value(&row)?.is_none() {
                    change.set(&row, Some(Value::Blob { size, fetched: true }))?;
                }
            }
            Ok(())
        });
        write.await
    }

    /// Notes that a client is told that bytes are here; false when they went just now.
    ///
    /// It counts on them for the lease, so the disk must know before it does.
    pub(crate) async fn promised(&self, digest: &Digest) -> bool {
        let now = now_ms();
        // In maintenance nothing goes.
        if self.uses.is_written(digest, now) || self.mode() == Mode::Maintenance {
            return true;
        }
        let wanted = digest.clone();
        let here = self.repositories.records.write(move |change| {
            change.touch(wanted.as_str(), now)?;
            change.used_ms(&wanted).map(|used| used.is_some())
        });
        match here.await {
            Ok(true) => {
                self.uses.written(&[(digest.clone(), now)], now);
                true
            }
            Ok(false) => false,
            // A full disk must not keep anybody from looking.
            Err(error) => {
                tracing::warn!(%error, %digest, "a lease was not renewed");
                true
            }
        }
    }

    async fn write_uses(&self) -> Result<(), RecordsError> {
        self.write_adoptions().await?;
        loop {
            let uses = self.uses.unwritten(USES_AT_ONCE);
            if uses.is_empty() {
                self.uses.written(&[], now_ms());
                return Ok(());
            }
            let written = uses.clone();
            let write = self.repositories.records.write(move |change| {
                for (digest, used_ms) in &uses {
                    change.touch(digest.as_str(), *used_ms)?;
                }
                Ok(())
            });
            write.await?;
            self.uses.written(&written, now_ms());
        }
    }
}
