//! A content-addressed directory: `blobs/ALGORITHM/HEX`, filled through `ingest/`.
//!
//! Invariant: a file under `blobs/` was complete and had the digest of its name when it was renamed there. Nothing is ever
//! written in place. Every method blocks on files.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use orlop_types::{Algorithm, Digest, DigestError, Digester};

/// Why a blob could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// A file operation failed.
    #[error("failed to {act} {path}: {source}")]
    Io {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The content is not what its digest says.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// The content is longer or shorter than announced.
    #[error("blob {digest} has {actual} bytes but {expected} were announced")]
    Size {
        /// The blob.
        digest: Digest,
        /// Bytes announced.
        expected: u64,
        /// Bytes that arrived.
        actual: u64,
    },
    /// A blob that should be small is not.
    #[error("blob {digest} has {size} bytes, at most {limit} are read")]
    TooLarge {
        /// The blob.
        digest: Digest,
        /// Its size.
        size: u64,
        /// The bound.
        limit: u64,
    },
}

impl BlobError {
    /// A failed file operation.
    pub fn io(act: &'static str, path: &Path, source: io::Error) -> Self {
        BlobError::Io { act, path: path.to_owned(), source }
    }

    /// Whether the disk is full.
    pub fn is_no_space(&self) -> bool {
        matches!(self, BlobError::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

/// When a stored blob is safe against a loss of power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// On return of [`StagedBlob::commit`].
    Commit,
    /// When the caller syncs the file system; until then nothing may refer to the blob.
    Caller,
}

/// The directory.
#[derive(Clone, Debug)]
pub struct BlobStore {
    root: PathBuf,
    durability: Durability,
}

impl BlobStore {
    /// Opens or makes the directory.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn open(root: &Path, durability: Durability) -> Result<Self, BlobError> {
        for name in ["blobs/sha256", "blobs/sha512", "ingest"] {
            let path = root.join(name);
            fs::create_dir_all(&path).map_err(|source| BlobError::io("create", &path, source))?;
        }
        Ok(Self { root: root.to_owned(), durability })
    }

    /// Where a blob is or would be.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.algorithm().name()).join(digest.hex())
    }

    /// The directory of unfinished blobs.
    pub fn ingest_dir(&self) -> PathBuf {
        self.root.join("ingest")
    }

    /// Size of a blob; none when it is not here.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn size(&self, digest: &Digest) -> Result<Option<u64>, BlobError> {
        let path = self.path(digest);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(BlobError::io("look at", &path, source)),
        }
    }

    /// Opens a blob; none when it is not here.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn open_blob(&self, digest: &Digest) -> Result<Option<File>, BlobError> {
        let path = self.path(digest);
        match File::open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(BlobError::io("open", &path, source)),
        }
    }

    /// Reads a small blob whole and verifies it; none when it is not here.
    ///
    /// # Errors
    /// Not what its digest says, above `limit`, or unreadable.
    pub fn read(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, BlobError> {
        let Some(file) = self.open_blob(digest)? else { return Ok(None) };
        let mut content = Vec::new();
        let path = self.path(digest);
        file.take(limit + 1)
            .read_to_end(&mut content)
            .map_err(|source| BlobError::io("read", &path, source))?;
        if content.len() as u64 > limit {
            let size = self.size(digest)?.unwrap_or(content.len() as u64);
            return Err(BlobError::TooLarge { digest: digest.clone(), size, limit });
        }
        digest.verify(&content)?;
        Ok(Some(content))
    }

    /// Starts a blob. Its file in `ingest/` is named `SESSION.NUMBER`; whoever cleans up finds out by the session whether it lives.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn writer(&self, session: &str, algorithm: Algorithm) -> Result<BlobWriter, BlobError> {
        let path = self.ingest_dir().join(format!("{session}.{:016x}", rand::random::<u64>()));
        let file = File::options()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|source| BlobError::io("create", &path, source))?;
        let staged = Staging { path };
        Ok(BlobWriter { store: self.clone(), file, staged, digester: Digester::new(algorithm), size: 0 })
    }

    /// Stores bytes that are in memory already.
    ///
    /// # Errors
    /// As [`BlobWriter::finish`] and [`StagedBlob::commit`].
    pub fn put(&self, session: &str, expected: &Digest, content: &[u8]) -> Result<(), BlobError> {
        let mut writer = self.writer(session, expected.algorithm())?;
        writer.append(content)?;
        writer.finish(Some(expected), Some(content.len() as u64))?.commit()
    }

    /// Takes over a file of the same file system whose content the caller has hashed.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn adopt(&self, path: &Path, digest: &Digest, size: u64) -> Result<(), BlobError> {
        let staged = Staging { path: path.to_owned() };
        StagedBlob { store: self.clone(), staged, digest: digest.clone(), size }.commit()
    }

    /// Removes a blob; true when it was here.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn remove(&self, digest: &Digest) -> Result<bool, BlobError> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(BlobError::io("remove", &path, source)),
        }
    }

    /// Every blob and its size. Names that are no digests are skipped.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn list(&self) -> Result<Vec<(Digest, u64)>, BlobError> {
        let mut found = Vec::new();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let path = self.root.join("blobs").join(algorithm.name());
            let entries = fs::read_dir(&path).map_err(|source| BlobError::io("list", &path, source))?;
            for entry in entries {
                let entry = entry.map_err(|source| BlobError::io("list", &path, source))?;
                let name = entry.file_name();
                let digest = name
                    .to_str()
                    .and_then(|hex| format!("{}:{hex}", algorithm.name()).parse::<Digest>().ok());
                // Removed meanwhile: not listed.
                if let (Some(digest), Ok(metadata)) = (digest, entry.metadata()) {
                    found.push((digest, metadata.len()));
                }
            }
        }
        Ok(found)
    }

    /// The unfinished blobs: session and path.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn unfinished(&self) -> Result<Vec<(String, PathBuf)>, BlobError> {
        let path = self.ingest_dir();
        let entries = fs::read_dir(&path).map_err(|source| BlobError::io("list", &path, source))?;
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| BlobError::io("list", &path, source))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let session = name.split_once('.').map_or(name.as_str(), |(session, _)| session).to_owned();
            found.push((session, entry.path()));
        }
        Ok(found)
    }
}

/// Removes its file when dropped: an error on the way leaves nothing behind.
#[derive(Debug)]
struct Staging {
    path: PathBuf,
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Gone already after a commit.
        let _ = fs::remove_file(&self.path);
    }
}

/// A blob that is being written; hashed on the way.
pub struct BlobWriter {
    store: BlobStore,
    file: File,
    staged: Staging,
    digester: Digester,
    size: u64,
}

impl BlobWriter {
    /// Where it is for now.
    pub fn path(&self) -> &Path {
        &self.staged.path
    }

    /// Bytes so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds bytes.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        self.write_all(bytes).map_err(|source| BlobError::io("write", &self.staged.path, source))
    }

    /// Ends writing and verifies digest and size where they are known.
    ///
    /// # Errors
    /// [`BlobError::Digest`], [`BlobError::Size`]; the file is gone then.
    pub fn finish(self, expected: Option<&Digest>, size: Option<u64>) -> Result<StagedBlob, BlobError> {
        let actual = self.digester.finish();
        if let Some(announced) = size
            && announced != self.size
        {
            let digest = expected.unwrap_or(&actual).clone();
            return Err(BlobError::Size { digest, expected: announced, actual: self.size });
        }
        if let Some(expected) = expected
            && *expected != actual
        {
            return Err(DigestError::Mismatch { expected: expected.clone(), actual }.into());
        }
        // The file is closed here: an archive may stage more blobs than a process may have open files.
        Ok(StagedBlob { store: self.store, staged: self.staged, digest: actual, size: self.size })
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.digester.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A whole, verified blob that nobody can see yet. Dropping it removes it.
#[derive(Debug)]
pub struct StagedBlob {
    store: BlobStore,
    staged: Staging,
    digest: Digest,
    size: u64,
}

impl StagedBlob {
    /// Its digest.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Its size.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Where it is for now.
    pub fn path(&self) -> &Path {
        &self.staged.path
    }

    /// Reads it whole.
    ///
    /// # Errors
    /// Above `limit`, or unreadable.
    pub fn read(&self, limit: u64) -> Result<Vec<u8>, BlobError> {
        if self.size > limit {
            return Err(BlobError::TooLarge { digest: self.digest.clone(), size: self.size, limit });
        }
        fs::read(&self.staged.path).map_err(|source| BlobError::io("read", &self.staged.path, source))
    }

    /// Renames it to its place.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn commit(self) -> Result<(), BlobError> {
        let path = self.store.path(&self.digest);
        if self.store.durability == Durability::Commit {
            let synced = File::open(&self.staged.path).and_then(|file| file.sync_all());
            synced.map_err(|source| BlobError::io("sync", &self.staged.path, source))?;
        }
        fs::rename(&self.staged.path, &path)
            .map_err(|source| BlobError::io("rename into place", &path, source))?;
        if self.store.durability == Durability::Commit
            && let Some(directory) = path.parent()
        {
            let synced = File::open(directory).and_then(|directory| directory.sync_all());
            synced.map_err(|source| BlobError::io("sync", directory, source))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_content_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let store = BlobStore::open(directory.path(), Durability::Commit).unwrap();
        let digest = Digest::sha256(b"right");
        let mut writer = store.writer("session", Algorithm::Sha256).unwrap();
        writer.append(b"wrong").unwrap();
        assert!(matches!(writer.finish(Some(&digest), None), Err(BlobError::Digest(_))));
        let mut writer = store.writer("session", Algorithm::Sha256).unwrap();
        writer.append(b"rig").unwrap();
        assert!(matches!(writer.finish(Some(&digest), Some(5)), Err(BlobError::Size { actual: 3, .. })));
        assert!(store.unfinished().unwrap().is_empty());
        assert!(store.list().unwrap().is_empty());
        store.put("session", &digest, b"right").unwrap();
        assert_eq!(store.list().unwrap(), vec![(digest.clone(), 5)]);
        assert_eq!(store.read(&digest, 5).unwrap().unwrap(), b"right");
        assert!(matches!(store.read(&digest, 4), Err(BlobError::TooLarge { size: 5, .. })));
        assert!(store.remove(&digest).unwrap() && !store.remove(&digest).unwrap());
    }

    #[test]
    fn damage_is_seen_when_read() {
        let directory = tempfile::tempdir().unwrap();
        let store = BlobStore::open(directory.path(), Durability::Caller).unwrap();
        let digest = Digest::sha256(b"right");
        store.put("session", &digest, b"right").unwrap();
        fs::write(store.path(&digest), b"wrong").unwrap();
        assert!(matches!(store.read(&digest, 10), Err(BlobError::Digest(_))));
    }
}
