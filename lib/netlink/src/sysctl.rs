//! Kernel settings of the calling thread's network namespace, under `/proc/sys/net`.

use std::io;
use std::path::PathBuf;

/// Why a setting could not be made.
#[derive(Debug, thiserror::Error)]
#[error("failed to set kernel parameter {key} to {value}")]
pub struct SysctlError {
    /// Path below `/proc/sys`, for example `net/ipv4/ip_forward`.
    pub key: String,
    /// The value wanted.
    pub value: String,
    /// Why.
    #[source]
    pub source: io::Error,
}

impl SysctlError {
    /// This kernel has no such parameter.
    pub fn is_missing(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

/// The value of a parameter, trimmed. `key` is a path below `/proc/sys`.
///
/// # Errors
/// As reading the file.
pub fn read(key: &str) -> io::Result<String> {
    Ok(std::fs::read_to_string(path(key))?.trim().to_owned())
}

/// Sets a parameter unless it has the value already (so that a read-only `/proc/sys` with the right value is no error).
///
/// # Errors
/// [`SysctlError`].
pub fn write(key: &str, value: &str) -> Result<(), SysctlError> {
    if read(key).is_ok_and(|current| current == value) {
        return Ok(());
    }
    std::fs::write(path(key), value).map_err(|source| SysctlError {
        key: key.to_owned(),
        value: value.to_owned(),
        source,
    })
}

fn path(key: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(key)
}
