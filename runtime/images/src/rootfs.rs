//! Writable directories of containers: `snapshots/containers/KEY/{fs,work,layers.json}`.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use orlop_types::Digest;
use serde::{Deserialize, Serialize};

use crate::files::{Paths, children, read_json};
use crate::unpack::Attributes;
use crate::{ImageError, Usage};

/// `layers.json`: which layers the container stands on. A garbage collection leaves them alone, also when the image is removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RootfsInfo {
    pub(crate) version: u32,
    pub(crate) image: String,
    /// Chain ids, bottom first.
    pub(crate) chain: Vec<Digest>,
    /// Chain ids of images that the container mounts besides, in no order.
    #[serde(default)]
    pub(crate) volumes: Vec<Digest>,
}

/// The directory of a container; the key must be a plain file name.
pub(crate) fn directory(paths: &Paths, key: &str) -> Result<PathBuf, ImageError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if key.is_empty() || key.len() > 128 || key.starts_with('.') || !key.bytes().all(plain) {
        return Err(ImageError::Invalid {
            what: "container key",
            text: key.to_owned(),
            reason: "1 to 128 letters, digits, '_', '-' and '.' are allowed, no leading dot".to_owned(),
        });
    }
    Ok(paths.containers().join(key))
}

/// None also for the empty file that a loss of power leaves: that container is gone, its directories wait for removal.
pub(crate) fn read(directory: &Path) -> Result<Option<RootfsInfo>, ImageError> {
    let path = directory.join("layers.json");
    if fs::metadata(&path).is_ok_and(|found| found.len() == 0) {
        return Ok(None);
    }
    read_json(&path)
}

/// Makes the directories under a temporary name and renames them: a container has all of it or nothing.
pub(crate) fn create(
    paths: &Paths,
    directory: &Path,
    session: &str,
    info: &RootfsInfo,
    top: &Path,
) -> Result<(), ImageError> {
    let temporary = paths.containers().join(format!(".{session}.{}", crate::files::unique_name()));
    let result = fill(&temporary, info, top).and_then(|()| {
        fs::rename(&temporary, directory)
            .map_err(|source| ImageError::io("rename into place", directory, source))
    });
    if result.is_err() {
        // The first error is the one to report; the rest is swept later if this fails.
        let _ = fs::remove_dir_all(&temporary);
    }
    result
}

fn fill(temporary: &Path, info: &RootfsInfo, top: &Path) -> Result<(), ImageError> {
    let (upper, work) = (temporary.join("fs"), temporary.join("work"));
    let failed = |source: io::Error| ImageError::io("create", temporary, source);
    for path in [temporary, &upper, &work] {
        fs::create_dir(path).map_err(failed)?;
    }
    // overlayfs takes the root directory's attributes from the upper layer, so it has to look like the image's.
    let attributes = fs::symlink_metadata(top).and_then(|root| Attributes::of_path(top, &root));
    let attributes = attributes.map_err(|source| ImageError::io("look at", top, source))?;
    fs::File::open(&upper).and_then(|upper| attributes.apply(&upper)).map_err(failed)?;
    // Not synced: no container outlives a loss of power, so neither need its record; see [`read`].
    let content = serde_json::to_vec(info).expect("records of strings and numbers are JSON");
    fs::write(temporary.join("layers.json"), content).map_err(failed)
}

/// Adds layers that the container needs, for good when this returns.
pub(crate) fn keep_volume(
    directory: &Path,
    mut info: RootfsInfo,
    chain: &[Digest],
) -> Result<(), ImageError> {
    let known = info.volumes.len();
    for chain_id in chain {
        if !info.volumes.contains(chain_id) {
            info.volumes.push(chain_id.clone());
        }
    }
    if info.volumes.len() == known {
        return Ok(());
    }
    crate::files::write_json(&directory.join("layers.json"), &info)
}

/// The keys of all containers.
pub(crate) fn keys(paths: &Paths) -> Result<Vec<String>, ImageError> {
    let names = children(&paths.containers())?;
    let mut keys: Vec<String> = names
        .iter()
        .filter_map(|path| path.file_name()?.to_str().map(str::to_owned))
        .filter(|name| !name.starts_with('.'))
        .collect();
    keys.sort();
    Ok(keys)
}

/// Every layer that a container stands on.
pub(crate) fn chains(paths: &Paths) -> Result<HashSet<Digest>, ImageError> {
    let mut chains = HashSet::new();
    for key in keys(paths)? {
        if let Some(info) = read(&paths.containers().join(key))? {
            chains.extend(info.chain);
            chains.extend(info.volumes);
        }
    }
    Ok(chains)
}

/// Disk use of a tree; files with several names count once. What vanishes meanwhile is not counted.
pub(crate) fn disk_usage(root: &Path) -> Result<Usage, ImageError> {
    let mut usage = Usage::default();
    let mut seen: HashSet<(u64, u64)> = HashSet::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        let Ok(metadata) = fs::symlink_metadata(&directory) else { continue };
        usage.inodes += 1;
        usage.bytes += metadata.blocks() * 512;
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(ImageError::io("list", &directory, source)),
        };
        for entry in entries.flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                pending.push(entry.path());
            } else if metadata.nlink() < 2 || seen.insert((metadata.dev(), metadata.ino())) {
                usage.inodes += 1;
                usage.bytes += metadata.blocks() * 512;
            }
        }
    }
    Ok(usage)
}
