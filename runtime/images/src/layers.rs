//! Unpacked layers: `snapshots/layers/CHAINID-HEX/{fs,layer.json}`, immutable once they have their name.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use orlop_types::Digest;
use serde::{Deserialize, Serialize};

use crate::files::{Paths, children, read_json, remove_path, unique_name, write_json};
use crate::unpack::{self, Budget, Limits, LowerView, UnpackError, Unpacked};
use crate::{ImageError, Usage};

#[derive(Clone, Debug)]
pub(crate) struct LayerStore {
    paths: Paths,
    limits: Limits,
    /// Of the running system: random(4), `boot_id`.
    boot: String,
}

/// `layer.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LayerInfo {
    pub(crate) version: u32,
    pub(crate) chain_id: Digest,
    pub(crate) diff_id: Digest,
    pub(crate) usage: Usage,
    /// The boot in which it was unpacked, until its files are known to be on disk: after another one it may be half there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) boot: Option<String>,
    /// Differs between two layers that have the same place one after the other.
    #[serde(default)]
    pub(crate) made: String,
}

/// A layer that is unpacked and verified but has no name yet. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct StagedLayer {
    directory: PathBuf,
    unpacked: Unpacked,
}

impl StagedLayer {
    /// Its tree, until it is committed.
    pub(crate) fn tree(&self) -> PathBuf {
        self.directory.join("fs")
    }
}

/// Removes its directory when dropped: also when the unpacking stopped half way.
struct Scratch(Option<PathBuf>);

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(path) = self.0.take()
            && let Err(error) = remove_path(&path)
        {
            tracing::warn!(%error, "unfinished layer stays until the next garbage collection");
        }
    }
}

impl Drop for StagedLayer {
    fn drop(&mut self) {
        drop(Scratch(Some(std::mem::take(&mut self.directory)).filter(|path| !path.as_os_str().is_empty())));
    }
}

impl LayerStore {
    pub(crate) fn new(paths: Paths, limits: Limits) -> Result<Self, ImageError> {
        let path = Path::new("/proc/sys/kernel/random/boot_id");
        let boot = fs::read_to_string(path).map_err(|source| ImageError::io("read", path, source))?;
        Ok(Self { paths, limits, boot: boot.trim().to_owned() })
    }

    /// Whether a loss of power may have left it half written.
    pub(crate) fn is_doubtful(&self, info: &LayerInfo) -> bool {
        info.boot.as_ref().is_some_and(|boot| *boot != self.boot)
    }

    /// Sees to it that every layer that is here now survives a loss of power. Takes as long as the disk needs.
    pub(crate) fn settle(&self) -> Result<(), ImageError> {
        let fresh = |info: &LayerInfo| info.boot.as_ref() == Some(&self.boot);
        let unsettled: Vec<LayerInfo> = self.list()?.into_iter().filter(fresh).collect();
        if unsettled.is_empty() {
            return Ok(());
        }
        self.paths.sync()?;
        // A collection must not put another layer in its place between the look and the mark.
        let _lock = self.paths.lock_shared()?;
        for info in unsettled {
            let path = self.directory(&info.chain_id).join("layer.json");
            if read_json::<LayerInfo>(&path)?.as_ref() == Some(&info) {
                write_json(&path, &LayerInfo { boot: None, ..info })?;
            }
        }
        Ok(())
    }

    fn directory(&self, chain_id: &Digest) -> PathBuf {
        self.paths.layers().join(chain_id.hex())
    }

    /// The tree of a committed layer.
    pub(crate) fn tree(&self, chain_id: &Digest) -> PathBuf {
        self.directory(chain_id).join("fs")
    }

    pub(crate) fn exists(&self, chain_id: &Digest) -> bool {
        self.tree(chain_id).is_dir()
    }

    /// Unpacks a layer and checks its digest. `lower` as in [`unpack::unpack`].
    pub(crate) fn stage(
        &self,
        session: &str,
        source: impl Read,
        diff_id: &Digest,
        lower: Option<&LowerView>,
        budget: &Budget,
    ) -> Result<StagedLayer, UnpackError> {
        let directory = self.paths.layers().join(format!(".{session}.{}", unique_name()));
        let mut scratch = Scratch(Some(directory.clone()));
        let tree = directory.join("fs");
        let made = fs::create_dir(&directory)
            .and_then(|()| fs::create_dir(&tree))
            .and_then(|()| fs::set_permissions(&tree, std::os::unix::fs::PermissionsExt::from_mode(0o755)));
        made.map_err(|source| UnpackError::Write {
            act: "create",
            path: tree.display().to_string(),
            source,
        })?;
        let unpacked = unpack::unpack(source, &tree, lower, self.limits, budget)?;
        expect_diff_id(&unpacked.diff_id, diff_id)?;
        scratch.0 = None;
        Ok(StagedLayer { directory, unpacked })
    }

    /// Checks a layer's digest without unpacking it: its tree is there already, but this blob is new.
    pub(crate) fn verify(&self, source: impl Read, diff_id: &Digest) -> Result<(), UnpackError> {
        expect_diff_id(&unpack::digest(source, self.limits)?, diff_id)
    }

    /// Fits a layer that was unpacked alone onto those below it.
    pub(crate) fn adopt_lower(&self, staged: &StagedLayer, lower: &LowerView) -> Result<(), UnpackError> {
        unpack::adopt_lower(&staged.unpacked, &staged.tree(), lower, self.limits)
    }

    /// Gives a layer its name. When another operation was faster, its result is taken.
    pub(crate) fn commit(&self, mut staged: StagedLayer, chain_id: &Digest) -> Result<(), ImageError> {
        let info = LayerInfo {
            version: 1,
            chain_id: chain_id.clone(),
            diff_id: staged.unpacked.diff_id.clone(),
            usage: staged.unpacked.usage,
            boot: Some(self.boot.clone()),
            made: unique_name(),
        };
        // Not synced: until the whole layer is, it counts in this boot only.
        let description = staged.directory.join("layer.json");
        let content = serde_json::to_vec(&info).expect("a description of strings and numbers is JSON");
        fs::write(&description, content).map_err(|source| ImageError::io("write", &description, source))?;
        let target = self.directory(chain_id);
        match fs::rename(&staged.directory, &target) {
            Ok(()) => {
                staged.directory = PathBuf::new();
                Ok(())
            }
            Err(error) if is_taken(&error) => Ok(()),
            Err(source) => Err(ImageError::io("rename into place", &target, source)),
        }
    }

    /// The committed layers. Directories without a readable description count as unfinished.
    pub(crate) fn list(&self) -> Result<Vec<LayerInfo>, ImageError> {
        let mut layers = Vec::new();
        for path in children(&self.paths.layers())?.into_iter().filter(|path| !is_hidden(path)) {
            if let Ok(Some(info)) = read_json::<LayerInfo>(&path.join("layer.json")) {
                layers.push(info);
            }
        }
        Ok(layers)
    }

    /// Directories that are no committed layer, with the session that made them.
    pub(crate) fn unfinished(&self) -> Result<Vec<(String, PathBuf)>, ImageError> {
        let mut found = Vec::new();
        for path in children(&self.paths.layers())? {
            if is_hidden(&path) {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let session = name.trim_start_matches('.').split('.').next().unwrap_or_default().to_owned();
                found.push((session, path));
            } else if !matches!(read_json::<LayerInfo>(&path.join("layer.json")), Ok(Some(_))) {
                found.push((String::new(), path));
            }
        }
        Ok(found)
    }

    /// Moves a layer out of sight.
    pub(crate) fn discard(&self, chain_id: &Digest) -> Result<(), ImageError> {
        self.paths.discard(&self.directory(chain_id))
    }

    /// The layers below, for unpacking the next one; `chain` is bottom first.
    pub(crate) fn lower_view(&self, chain: &[Digest]) -> Result<LowerView, ImageError> {
        let trees = chain.iter().rev().map(|chain_id| self.tree(chain_id)).collect();
        LowerView::new(trees).map_err(|source| ImageError::io("read", &self.paths.layers(), source))
    }

    /// The trees that a mount of this chain shows, top first.
    pub(crate) fn visible(&self, chain: &[Digest]) -> Result<Vec<PathBuf>, ImageError> {
        let trees = chain.iter().rev().map(|chain_id| self.tree(chain_id)).collect();
        unpack::visible(trees).map_err(|source| ImageError::io("read", &self.paths.layers(), source))
    }

    /// An empty directory for images without layers: overlayfs wants at least one.
    pub(crate) fn empty_tree(&self) -> Result<PathBuf, ImageError> {
        let path = self.paths.root.join("snapshots/empty");
        fs::create_dir_all(&path).map_err(|source| ImageError::io("create", &path, source))?;
        Ok(path)
    }
}

fn expect_diff_id(found: &Digest, diff_id: &Digest) -> Result<(), UnpackError> {
    if found == diff_id {
        return Ok(());
    }
    let reason = format!("unpacks to {found} but the image configuration says {diff_id}");
    Err(UnpackError::Stream(io::Error::new(io::ErrorKind::InvalidData, reason)))
}

fn is_taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty)
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}
