//! What an operator sees: metrics, and the section of the state dump.

use std::fmt;
use std::sync::{Arc, PoisonError, Weak};

use orlop_daemon::prometheus_client::collector::Collector;
use orlop_daemon::prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use orlop_daemon::prometheus_client::metrics::gauge::ConstGauge;
use orlop_daemon::prometheus_client::registry::Registry;

use super::collect::Collected;
use super::{Keeper, LastCollection};
use crate::records::now_ms;

/// Blobs that are named as lost here.
const OWED_SHOWN: usize = 20;

/// Read when somebody looks.
struct Disk(Weak<Keeper>);

impl fmt::Debug for Disk {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Disk")
    }
}

impl Collector for Disk {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(keeper) = self.0.upgrade() else { return Ok(()) };
        // What cannot be read now is missing.
        let (Ok(space), Ok(totals)) = (keeper.space(), keeper.repositories.records.totals()) else {
            return Ok(());
        };
        for (name, help, value) in [
            ("mirror_blobs", "Blobs and manifests that are here", totals.count),
            ("mirror_blob_bytes", "Their bytes", totals.bytes),
            ("mirror_quota_bytes", "Most bytes that are kept, 0 without a bound", space.quota),
            ("mirror_disk_free_bytes", "Bytes of the file system that are free", space.free),
            ("mirror_disk_reserved_bytes", "Bytes of the file system that stay free", space.reserve),
        ] {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

impl Keeper {
    pub(super) fn register(self: &Arc<Self>, registry: &mut Registry) {
        registry.register_collector(Box::new(Disk(Arc::downgrade(self))));
        for (name, help, counter) in [
            ("mirror_collected_bytes", "Bytes removed because nobody needed them", &self.removed_bytes),
            ("mirror_scrubbed_bytes", "Bytes that were read and hashed again", &self.scrubbed_bytes),
            ("mirror_damaged_blobs", "Blobs found damaged or gone", &self.damaged),
            ("mirror_evicted_bytes", "Bytes evicted to make room", &self.evicted_bytes),
            ("mirror_evicted_images", "Images evicted to make room", &self.evicted_images),
        ] {
            registry.register(name, help, counter.clone());
        }
    }

    pub(super) fn collected(&self, collected: Collected, started_ms: u64) {
        let Collected { rows, files, bytes } = collected;
        self.removed_bytes.inc_by(bytes);
        if rows > 0 || files > 0 {
            tracing::info!(rows, files, bytes, "garbage collected");
        }
        let last = LastCollection { started_ms, ended_ms: now_ms(), collected };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
    }

    /// For the state dump.
    pub(crate) fn state(&self) -> serde_json::Value {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let refusal = self.refusal.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let space = self.space().ok();
        serde_json::json!({
            "mode": self.mode(),
            "startedMs": self.opened_ms,
            "quotaBytes": space.map(|space| space.quota),
            "freeBytes": space.map(|space| space.free),
            "reservedBytes": space.map(|space| space.reserve),
            "scrub": self.memory().scrub.clone(),
            "damagedBlobs": self.damaged.get(),
            "owedBlobs": self.repositories.records.owed(None, OWED_SHOWN).ok(),
            "evictedImages": self.evicted_images.get(),
            "evictedBytes": self.evicted_bytes.get(),
            "lastRefusal": refusal.map(|refusal| serde_json::json!({
                "atMs": refusal.at_ms,
                "message": refusal.message,
            })),
            "lastCollection": last.map(|LastCollection { started_ms, ended_ms, collected }| serde_json::json!({
                "startedMs": started_ms,
                "endedMs": ended_ms,
                "rows": collected.rows,
                "files": collected.files,
                "bytes": collected.bytes,
            })),
        })
    }
}
