//! What a running operation needs is written down before it is looked at or made, so that garbage collection, in this process or
//! another one, leaves it alone.
//!
//! A lease is a locked file of digests. The kernel drops the lock when the process dies: a lease that can be locked by somebody
//! else is dead, and so is everything unfinished that carries its name.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use orlop_types::Digest;
use rustix::fs::FlockOperation;

use crate::ImageError;
use crate::files::{Paths, children, remove_path, retry_flock, unique_name};

/// A running operation.
pub(crate) struct Lease {
    paths: Paths,
    path: PathBuf,
    session: String,
    state: Mutex<State>,
}

struct State {
    file: File,
    kept: HashSet<String>,
}

/// What live leases protect.
#[derive(Default)]
pub(crate) struct Protected {
    pub(crate) sessions: HashSet<String>,
    pub(crate) blobs: HashSet<Digest>,
    pub(crate) layers: HashSet<Digest>,
}

impl Lease {
    pub(crate) fn new(paths: &Paths) -> Result<Self, ImageError> {
        // A collection must see the lease before it sees what the operation makes, or not at all.
        let _lock = paths.lock_shared()?;
        let session = unique_name();
        let path = paths.leases().join(&session);
        let file = File::create_new(&path).map_err(|source| ImageError::io("create", &path, source))?;
        retry_flock(&file, FlockOperation::LockExclusive)
            .map_err(|source| ImageError::io("lock", &path, source))?;
        let state = Mutex::new(State { file, kept: HashSet::new() });
        Ok(Self { paths: paths.clone(), path, session, state })
    }

    /// The name under which unfinished files are made.
    pub(crate) fn session(&self) -> &str {
        &self.session
    }

    pub(crate) fn keep_blob(&self, digest: &Digest) -> Result<(), ImageError> {
        self.keep(format!("blob {digest}\n"))
    }

    pub(crate) fn keep_layer(&self, chain_id: &Digest) -> Result<(), ImageError> {
        self.keep(format!("layer {chain_id}\n"))
    }

    fn keep(&self, line: String) -> Result<(), ImageError> {
        if self.state().kept.contains(&line) {
            return Ok(());
        }
        // A collection that runs now finishes first; the next one sees the line.
        let _lock = self.paths.lock_shared()?;
        let mut state = self.state();
        state
            .file
            .write_all(line.as_bytes())
            .map_err(|source| ImageError::io("write", &self.path, source))?;
        state.kept.insert(line);
        Ok(())
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // If that fails the lease is dead by its lock, and the next collection removes it.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Reads the live leases and removes the dead ones. The caller holds the store's lock exclusively.
pub(crate) fn protected(paths: &Paths) -> Result<Protected, ImageError> {
    let mut protected = Protected::default();
    for path in children(&paths.leases())? {
        if is_dead(&path)? {
            remove_path(&path)?;
            continue;
        }
        let Some(session) = path.file_name().and_then(|name| name.to_str()) else { continue };
        protected.sessions.insert(session.to_owned());
        // A lease that ended between the two looks protects nothing any more.
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        for line in text.lines() {
            let Some((kind, digest)) = line.split_once(' ') else { continue };
            let Ok(digest) = digest.parse::<Digest>() else { continue };
            match kind {
                "blob" => protected.blobs.insert(digest),
                _ => protected.layers.insert(digest),
            };
        }
    }
    Ok(protected)
}

fn is_dead(path: &Path) -> Result<bool, ImageError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(source) => return Err(ImageError::io("open", path, source)),
    };
    match retry_flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(source) => Err(ImageError::io("lock", path, source)),
    }
}
