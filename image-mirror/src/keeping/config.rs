use serde::{Deserialize, Serialize};

use super::rules::Pins;

/// What stays on the disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct KeepingConfig {
    /// How long bytes that no manifest names stay after their last use: a push is done within this, and a client that was told that a
    /// blob is here finds it.
    pub upload_lease_seconds: u64,
    /// Bytes that are kept at most; 0 is no bound. Above it fetched images are evicted, the longest unused first, down to 90 %; what was
    /// pushed is never evicted: when it fills the quota, pushes and fetches are refused, and reads go on.
    pub quota_bytes: u64,
    /// Bytes of the file system that stay free: below them fetched images are evicted, then pushes and fetches are refused. Without it 5 %
    /// of the file system, at most 1 GiB.
    pub min_free_bytes: Option<u64>,
    /// Fetched images that are never evicted: `docker.io/library/busybox:1.36`, `docker.io/library/busybox:*`, `registry.k8s.io/`.
    pub pins: Vec<String>,
    /// What was used within this is not evicted.
    pub keep_used_seconds: u64,
    /// Days between two scrubs, which read and hash every blob again; 0 is never.
    pub scrub_interval_days: u64,
    /// How much a scrub reads in a second.
    pub scrub_bytes_per_second: u64,
    /// Time between two looks for bytes that nobody needs.
    pub collect_interval_seconds: u64,
}

impl Default for KeepingConfig {
    fn default() -> Self {
        Self {
            upload_lease_seconds: 24 * 3600,
            quota_bytes: 0,
            min_free_bytes: None,
            pins: Vec::new(),
            keep_used_seconds: 600,
            scrub_interval_days: 30,
            scrub_bytes_per_second: 20 << 20,
            collect_interval_seconds: 3600,
        }
    }
}

impl KeepingConfig {
    pub(crate) fn upload_lease_ms(&self) -> u64 {
        self.upload_lease_seconds.saturating_mul(1000)
    }

    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (key, value) in [
            ("uploadLeaseSeconds", self.upload_lease_seconds),
            ("collectIntervalSeconds", self.collect_interval_seconds),
        ] {
            if value == 0 {
                problems.push(format!("keeping.{key} is 0: give at least 1"));
            }
        }
        problems.extend(self.scrub_problems());
        for pin in Pins::parse(&self.pins).1 {
            problems.push(format!(
                "keeping.pins: {pin:?} is no image, repository or prefix such as \"docker.io/library/busybox:*\" or \"registry.k8s.io/\""
            ));
        }
        problems
    }
}
