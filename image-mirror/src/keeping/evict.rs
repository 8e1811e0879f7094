//! Eviction: whole images that an upstream gives again, the longest unused first.
//!
//! What was pushed, what is pinned and what was used a moment ago stays. A blob goes with the last manifest that names it.

use std::collections::BinaryHeap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use http::StatusCode;
use orlop_types::Digest;

use super::collect::blocking;
use super::rules::{Lack, Space, plan_reserve};
use super::{Keeper, Refusal};
use crate::error::RegistryError;
use crate::records::{Candidate, Evicted, Kind, Page, RecordsError, Row, Value, now_ms};

/// Candidates that one look at all images gives.
const CANDIDATES: usize = 256;
/// Images in one change.
const AT_ONCE: usize = 8;
/// When nothing could be evicted, nobody looks again for this long.
const FUTILE: Duration = Duration::from_secs(10);

impl Keeper {
    /// Makes room for bytes that a client pushes or that are fetched: evicts when they do not fit.
    ///
    /// Whoever writes blobs asks here first. The answer is no reservation: what is under way at the same time may go beyond a quota
    /// by as much, and the reserve is there for it.
    ///
    /// # Errors
    /// 507 with what the operator can do.
    pub(crate) async fn make_room(self: &Arc<Self>, more: u64) -> Result<(), RegistryError> {
        if self.space()?.lack(more).is_none() {
            return Ok(());
        }
        let lack = self.evict_for(more).await?;
        let Some((lack, space)) = lack else { return Ok(()) };
        let (code, message) = refusal(lack, &space);
        tracing::warn!(more, message, "refused");
        let refusal = Refusal { at_ms: now_ms(), message: message.clone() };
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal);
        Err(RegistryError::new(StatusCode::INSUFFICIENT_STORAGE, code, message))
    }

    /// What still stands against `more` bytes after an eviction.
    async fn evict_for(self: &Arc<Self>, more: u64) -> Result<Option<(Lack, Space)>, RecordsError> {
        let mut futile_until = self.evicting.lock().await;
        // Another request may have made the room meanwhile.
        let space = self.space()?;
        let wanted = space.plan_eviction(more);
        if wanted == 0 {
            return Ok(None);
        }
        if futile_until.is_none_or(|until| Instant::now() > until) {
            let evicted = self.evict(wanted).await?;
            if evicted == 0 {
                *futile_until = Some(Instant::now() + FUTILE);
            }
            self.empty_trash().await;
        }
        let space = self.space()?;
        Ok(space.lack(more).map(|lack| (lack, space)))
    }

    pub(crate) fn space(&self) -> Result<Space, RecordsError> {
        let disk = rustix::fs::statvfs(&self.root)
            .map_err(|error| RecordsError::Storage(format!("failed to look at the disk: {error}")))?;
        let blocks = |count: u64| count.saturating_mul(disk.f_frsize);
        Ok(Space {
            quota: self.quota_bytes,
            used: self.repositories.records.totals()?.bytes,
            reserve: plan_reserve(self.min_free_bytes, blocks(disk.f_blocks)),
            free: blocks(disk.f_bavail),
        })
    }

    /// Evicts images until `wanted` bytes went or nothing may go; the bytes that went.
    async fn evict(self: &Arc<Self>, wanted: u64) -> Result<u64, RecordsError> {
        self.write_uses().await?;
        let before_ms = now_ms().saturating_sub(self.keep_used_ms);
        let mut gone = 0;
        while gone < wanted {
            let candidates = self.candidates(before_ms).await?;
            let mut progress = false;
            for some in candidates.chunks(AT_ONCE) {
                let evicted = self.evict_images(some.to_vec(), before_ms, wanted - gone).await?;
                progress |= evicted.images > 0;
                gone += evicted.bytes;
                if gone >= wanted {
                    break;
                }
            }
            if !progress {
                break;
            }
        }
        Ok(gone)
    }

    async fn evict_images(
        self: &Arc<Self>,
        images: Vec<Candidate>,
        before_ms: u64,
        wanted: u64,
    ) -> Result<Evicted, RecordsError> {
        let keeper = self.clone();
        let evicted = self.repositories.records.write(move |change| {
            let mut evicted = Evicted::default();
            for image in images {
                if evicted.bytes >= wanted {
                    break;
                }
                let went = change.evict_image(&image.name, &image.digest, before_ms, &|digest| {
                    let used_ms = keeper.uses.used_ms(digest).unwrap_or(0);
                    (used_ms < before_ms).then(|| keeper.burial(digest))
                })?;
                if let Some(bytes) = went {
                    tracing::info!(repository = image.name, digest = %image.digest, bytes, "image evicted");
                    evicted.images += 1;
                    evicted.bytes += bytes;
                }
            }
            Ok(evicted)
        });
        let evicted = evicted.await?;
        self.evicted_images.inc_by(evicted.images);
        self.evicted_bytes.inc_by(evicted.bytes);
        Ok(evicted)
    }

    /// The images that may go, the longest unused first.
    async fn candidates(&self, before_ms: u64) -> Result<Vec<Candidate>, RecordsError> {
        // The heap's top is the latest used of those that are kept.
        let mut oldest: BinaryHeap<Candidate> = BinaryHeap::new();
        let mut from = Vec::new();
        loop {
            let records = self.repositories.records.clone();
            let Page { found, next } = blocking(move || records.fetched_images(&from, before_ms)).await?;
            for candidate in found {
                if !self.is_pinned(&candidate)? {
                    oldest.push(candidate);
                    if oldest.len() > CANDIDATES {
                        oldest.pop();
                    }
                }
            }
            match next {
                Some(next) => from = next,
                None => return Ok(oldest.into_sorted_vec()),
            }
        }
    }

    fn is_pinned(&self, candidate: &Candidate) -> Result<bool, RecordsError> {
        let mut tagged: Vec<Digest> = Vec::new();
        for tag in self.pins.tags(&candidate.name) {
            for kind in [Kind::Tag, Kind::FetchedTag] {
                let row = Row::new(kind, &candidate.name, tag);
                if let Some(Value::Tag(digest)) = self.repositories.records.value(&row)? {
                    tagged.push(digest);
                }
            }
        }
        Ok(self.pins.is_pinned(&candidate.name, &candidate.related, &tagged))
    }
}

/// Code and message.
fn refusal(lack: Lack, space: &Space) -> (&'static str, String) {
    match lack {
        Lack::Quota => (
            "DENIED",
            format!(
                "the quota of {} bytes is full of what was pushed, is pinned or is in use: delete images or raise keeping.quotaBytes",
                space.quota
            ),
        ),
        Lack::Disk => (
            "UNKNOWN",
            format!(
                "the registry's disk is full: {} bytes are free and {} are held back: free space or ask its operator",
                space.free, space.reserve
            ),
        ),
    }
}
