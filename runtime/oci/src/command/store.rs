//! The containers that exist: one directory each below `--root`.
//!
//! ```text
//! ROOT/ID/            0700, locked while somebody makes, starts or removes the container
//!   state.json        Record; written last when made, removed last
//!   config.json       the configuration as it was at create; exec and the hooks go by it
//!   status            FIFO: why the program did not start, from the last mile to `start`
//!   console.sock      only while `run` waits for its own terminal
//!   work/             oci-setup's: derived configuration, libcontainer's state and start socket
//! ```

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use oci_spec::runtime::Spec;
use orlop_types::ProcessIdentity;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

/// Version of [`Record`].
const VERSION: u32 = 1;
/// Longest id; directory names end at 255 bytes, and a control group and a keyring are named after it too.
const ID_LIMIT_BYTES: usize = 200;

/// `state.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    pub(super) version: u32,
    pub(super) id: String,
    pub(super) bundle: PathBuf,
    pub(super) rootfs: PathBuf,
    pub(super) created: jiff::Timestamp,
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
    /// Below each hierarchy's root.
    pub(super) cgroup: PathBuf,
    /// systemd's unit for it, if systemd made the group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) systemd_unit: Option<String>,
    /// It has a session keyring of its own.
    pub(super) own_keyring: bool,
    /// The first process; none while the container is being made.
    pub(super) init: Option<ProcessIdentity>,
}

impl Record {
    pub(super) fn new(id: &str, bundle: &Path, rootfs: &Path, cgroup: &Path, spec: &Spec) -> Self {
        let annotations = spec.annotations().iter().flatten();
        Self {
            version: VERSION,
            id: id.to_owned(),
            bundle: bundle.to_path_buf(),
            rootfs: rootfs.to_path_buf(),
            created: jiff::Timestamp::now(),
            annotations: annotations.map(|(name, value)| (name.clone(), value.clone())).collect(),
            cgroup: cgroup.to_path_buf(),
            systemd_unit: None,
            own_keyring: true,
            init: None,
        }
    }
}

/// `--root`.
#[derive(Debug)]
pub(super) struct Store {
    root: PathBuf,
}

/// Held as long as it lives.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "closing it unlocks")] File);

impl Store {
    pub(super) fn new(root: &Path) -> anyhow::Result<Self> {
        Ok(Self { root: std::path::absolute(root).context("failed to find the root directory")? })
    }

    /// The directory of a container, whether it exists or not.
    pub(super) fn directory(&self, id: &str) -> anyhow::Result<PathBuf> {
        validate_id(id)?;
        Ok(self.root.join(id))
    }

    /// A new directory, locked.
    pub(super) fn make(&self, id: &str) -> anyhow::Result<(PathBuf, Lock)> {
        let directory = self.directory(id)?;
        let mut builder = DirBuilder::new();
        builder.mode(0o700);
        let root = builder.recursive(true).create(&self.root);
        root.with_context(|| format!("failed to make {}", self.root.display()))?;
        match builder.recursive(false).create(&directory) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // One that died between making the directory and its record, or between the reverse, left nothing else.
                if directory.join("state.json").exists() {
                    bail!("container with given ID already exists");
                }
            }
            Err(error) => {
                return Err(error).with_context(|| format!("failed to make {}", directory.display()));
            }
        }
        let lock = lock(&directory, FlockOperation::NonBlockingLockExclusive)
            .context("container with given ID already exists")?;
        if directory.join("state.json").exists() || !directory.exists() {
            bail!("container with given ID already exists");
        }
        Ok((directory, lock))
    }

    /// Waits until nobody else makes, starts or removes the container.
    pub(super) fn lock(&self, id: &str) -> anyhow::Result<Lock> {
        let directory = self.directory(id)?;
        match lock(&directory, FlockOperation::LockExclusive) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => bail!("container does not exist"),
            other => other.with_context(|| format!("failed to lock {}", directory.display())),
        }
    }

    pub(super) fn load(&self, id: &str) -> anyhow::Result<Record> {
        let path = self.directory(id)?.join("state.json");
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => bail!("container does not exist"),
            other => other.with_context(|| format!("failed to read {}", path.display()))?,
        };
        let record: Record =
            serde_json::from_slice(&text).with_context(|| format!("failed to read {}", path.display()))?;
        if record.version != VERSION {
            bail!("{} has version {}, this program reads {VERSION}", path.display(), record.version);
        }
        Ok(record)
    }

    pub(super) fn save(&self, record: &Record) -> anyhow::Result<()> {
        let path = self.directory(&record.id)?.join("state.json");
        write_atomically(&path, &serde_json::to_vec(record)?, 0o600)
            .with_context(|| format!("failed to write {}", path.display()))
    }

    /// Names of all containers, sorted.
    pub(super) fn ids(&self) -> anyhow::Result<Vec<String>> {
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.with_context(|| format!("failed to list {}", self.root.display()))?,
        };
        let mut ids: Vec<String> = entries
            .flatten()
            .filter(|entry| entry.path().join("state.json").exists())
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        ids.sort();
        Ok(ids)
    }

    /// The user that made a container.
    pub(super) fn owner(&self, id: &str) -> anyhow::Result<u32> {
        Ok(fs::metadata(self.directory(id)?)?.uid())
    }

    /// Removes the directory; the record goes last, so that a removal cut short can be repeated.
    pub(super) fn remove(&self, id: &str) -> io::Result<()> {
        let directory = self.directory(id).map_err(io::Error::other)?;
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_name() == "state.json" {
                continue;
            }
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        fs::remove_dir_all(directory)
    }
}

fn lock(directory: &Path, operation: FlockOperation) -> io::Result<Lock> {
    let file = File::open(directory)?;
    rustix::fs::flock(&file, operation)?;
    Ok(Lock(file))
}

/// Ids become names of directories and control groups (runc's rule, and a limit).
fn validate_id(id: &str) -> anyhow::Result<()> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
    if id.is_empty() || id == "." || id == ".." || id.len() > ID_LIMIT_BYTES || !id.bytes().all(is_allowed) {
        bail!("invalid container ID format: {id:?}");
    }
    Ok(())
}

/// Whoever reads sees the old or the new content. By a name that nobody else writes at the same time: ours has the pid in it.
pub(super) fn write_atomically(path: &Path, text: &[u8], mode: u32) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)
        .and_then(|mut file| file.write_all(text))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_names() {
        for id in ["a", "a.b_c-d+e", ".x", "-"] {
            validate_id(id).unwrap();
        }
        for id in ["", ".", "..", "a/b", "a b", "ä", &"x".repeat(201)] {
            assert!(validate_id(id).is_err(), "{id}");
        }
    }

    #[test]
    fn makes_once_and_removes() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::new(&root.path().join("deep/root")).unwrap();
        assert!(store.ids().unwrap().is_empty());
        assert_eq!(store.load("a").unwrap_err().to_string(), "container does not exist");
        let (directory, lock) = store.make("a").unwrap();
        assert!(store.make("a").is_err(), "locked");
        let record = Record::new("a", Path::new("/b"), Path::new("/b/r"), Path::new("/a"), &Spec::default());
        store.save(&record).unwrap();
        drop(lock);
        assert!(store.make("a").is_err(), "recorded");
        fs::create_dir_all(directory.join("work/state")).unwrap();
        assert_eq!(store.ids().unwrap(), ["a"]);
        store.remove("a").unwrap();
        assert!(!directory.exists());
        store.remove("a").unwrap();
    }
}
