//! Content stores of runtimes on this machine, read only: what a runtime has pulled need not be fetched for its neighbours.
//!
//! Invariant: a file is served only after its content was compared with its name, and again when it has changed.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use orlop_types::{Digest, Digester};

use crate::error::RegistryError;
use crate::flights::blocking;

/// Files whose content was compared.
const VERIFIED_LIMIT: usize = 4096;
const READ_BYTES: usize = 256 << 10;

/// What tells one state of a file from another: device, inode, size, time of change.
type State = (u64, u64, u64, i64, i64);

/// The directories; cheap to clone.
#[derive(Clone)]
pub(crate) struct Stores {
    inner: Arc<Inner>,
}

struct Inner {
    directories: Vec<PathBuf>,
    /// Held while a file is read: who waits for it finds it compared.
    verified: tokio::sync::Mutex<HashMap<Digest, State>>,
}

impl Stores {
    pub(crate) fn new(directories: &[PathBuf]) -> Self {
        // A runtime's root, or the directory `blobs` itself.
        let directories =
            directories.iter().flat_map(|directory| [directory.join("blobs"), directory.clone()]);
        let inner = Inner { directories: directories.collect(), verified: tokio::sync::Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// A whole blob with the content that its name says.
    pub(crate) async fn find(&self, digest: &Digest) -> Result<Option<File>, RegistryError> {
        if self.inner.directories.is_empty() {
            return Ok(None);
        }
        for directory in &self.inner.directories {
            let path = directory.join(digest.algorithm().name()).join(digest.hex());
            let Ok(file) = File::open(&path) else { continue };
            let Ok(metadata) = file.metadata() else { continue };
            if metadata.is_file() && self.is_whole(digest, &file, &metadata).await? {
                return Ok(Some(file));
            }
        }
        Ok(None)
    }

    async fn is_whole(
        &self,
        digest: &Digest,
        file: &File,
        metadata: &Metadata,
    ) -> Result<bool, RegistryError> {
        let state = (metadata.dev(), metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec());
        let mut verified = self.inner.verified.lock().await;
        if verified.get(digest) == Some(&state) {
            return Ok(true);
        }
        let failed = |error: std::io::Error| RegistryError::internal("read a runtime's content store", error);
        // The place in the file is shared with the caller's, who seeks before he reads.
        let mut reading = file.try_clone().map_err(failed)?;
        let wanted = digest.clone();
        let whole = blocking(move || {
            let mut digester = Digester::new(wanted.algorithm());
            let mut buffer = vec![0_u8; READ_BYTES];
            loop {
                let count = reading.read(&mut buffer).map_err(failed)?;
                if count == 0 {
                    return Ok(digester.verify(&wanted).is_ok());
                }
                digester.update(&buffer[..count]);
            }
        });
        let whole = whole.await?;
        if whole {
            if verified.len() >= VERIFIED_LIMIT {
                verified.clear();
            }
            verified.insert(digest.clone(), state);
        } else {
            tracing::warn!(%digest, "a file of a runtime's content store is not what its name says: not served");
        }
        Ok(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_what_is_what_its_name_says() {
        let directory = tempfile::tempdir().unwrap();
        let digest = Digest::sha256(b"right");
        let path = directory.path().join("blobs/sha256").join(digest.hex());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        for stores in [directory.path().to_owned(), directory.path().join("blobs")] {
            let stores = Stores::new(&[stores]);
            assert!(stores.find(&digest).await.unwrap().is_none());
            std::fs::write(&path, b"wrong").unwrap();
            assert!(stores.find(&digest).await.unwrap().is_none());
            std::fs::write(&path, b"right").unwrap();
            for _ in 0..2 {
                assert!(stores.find(&digest).await.unwrap().is_some());
            }
            // Another file under the name.
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, b"wrong again").unwrap();
            assert!(stores.find(&digest).await.unwrap().is_none());
            std::fs::remove_file(&path).unwrap();
        }
    }
}
