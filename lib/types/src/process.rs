use serde::{Deserialize, Serialize};

/// A process that cannot be mistaken for a later one with the same pid.
///
/// `start_time` is field 22 of `/proc/PID/stat`, in clock ticks since boot (proc(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessIdentity {
    /// Process id in the namespace of whoever wrote it down.
    pub pid: u32,
    /// Clock ticks since boot.
    pub start_time: u64,
}

impl ProcessIdentity {
    /// Both halves at once.
    pub fn new(pid: u32, start_time: u64) -> Self {
        Self { pid, start_time }
    }
}
