use serde::{Deserialize, Serialize};

/// What stays on the disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct KeepingConfig {
    /// How long bytes that no manifest names stay after their last use: a push is done within this, and a client that was told that a
    /// blob is here finds it.
    pub upload_lease_seconds: u64,
    /// Time between two looks for bytes that nobody needs.
    pub collect_interval_seconds: u64,
}

impl Default for KeepingConfig {
    fn default() -> Self {
        Self { upload_lease_seconds: 24 * 3600, collect_interval_seconds: 3600 }
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
        problems
    }
}
