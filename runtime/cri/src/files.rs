//! Where things are below the state directory, and how they are written: a temporary name, then a rename.
//!
//! ```text
//!   STATE/sandboxes/ID/sandbox.json        this crate: the record
//!                      shim-config.json    this crate: what the shim is started with
//!                      shim.json shim.sock the shim
//!                      resolv.conf hostname hosts shm/
//!                      network.json        this crate: CNI configuration and result, for DEL
//!                      bundles/CID/container.json config.json rootfs/
//!                      containers/CID/     the shim: exit.json
//! ```

use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Records larger than this were not written by us.
const RECORD_LIMIT_BYTES: u64 = 4 * 1024 * 1024;

/// One sandbox's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SandboxDir(PathBuf);

impl SandboxDir {
    /// Below `state`.
    pub(crate) fn new(state: &Path, id: &str) -> Self {
        Self(state.join("sandboxes").join(id))
    }

    /// The directory itself.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The sandbox's record.
    pub(crate) fn record(&self) -> PathBuf {
        self.0.join("sandbox.json")
    }

    /// What the shim is started with.
    pub(crate) fn shim_config(&self) -> PathBuf {
        self.0.join("shim-config.json")
    }

    /// Pid and start time, written by the shim when it is ready.
    pub(crate) fn shim_identity(&self) -> PathBuf {
        self.0.join("shim.json")
    }

    /// The shim's socket.
    pub(crate) fn shim_socket(&self) -> PathBuf {
        self.0.join("shim.sock")
    }

    /// What a shim says before it is ready.
    pub(crate) fn shim_start_log(&self) -> PathBuf {
        self.0.join("shim-start.log")
    }

    /// CNI configuration and result.
    pub(crate) fn network(&self) -> PathBuf {
        self.0.join("network.json")
    }

    /// A file that the pod's containers see.
    pub(crate) fn pod_file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A container's bundle.
    pub(crate) fn bundle(&self, container_id: &str) -> PathBuf {
        self.0.join("bundles").join(container_id)
    }

    /// A container's record.
    pub(crate) fn container_record(&self, container_id: &str) -> PathBuf {
        self.bundle(container_id).join("container.json")
    }

    /// Where the shim writes how a container ended.
    pub(crate) fn exit_file(&self, container_id: &str) -> PathBuf {
        self.0.join("containers").join(container_id).join("exit.json")
    }
}

/// Makes a directory that only root may enter, with its parents.
pub(crate) fn make_private_dir(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o711).create(path)
}

/// Replaces a file in one step.
pub(crate) fn write_atomic(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".tmp-{:016x}", rand::random::<u64>()));
    let temporary = path.with_file_name(name);
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .and_then(|mut file| file.write_all(content))
        .and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// As [`write_atomic`], JSON, mode 0600.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    write_atomic(path, &serde_json::to_vec(value)?, 0o600)
}

/// Reads what [`write_json`] wrote.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    let size = std::fs::metadata(path)?.len();
    if size > RECORD_LIMIT_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{size} bytes are too many")));
    }
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

/// Removes a file or directory tree; what is not there is fine.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_is_whole_and_leaves_no_temporary() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.json");
        for value in [1, 2] {
            write_json(&path, &value).unwrap();
            assert_eq!(read_json::<i32>(&path).unwrap(), value);
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        remove_tree(&path).unwrap();
        remove_tree(&path).unwrap();
        assert!(read_json::<i32>(&path).is_err());
    }
}
