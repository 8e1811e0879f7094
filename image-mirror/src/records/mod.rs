//! What the registry knows, in one file `records.redb`: tags, manifests and blobs of repositories, and the bytes that are here.
//!
//! ```text
//!   write(|change| …) --queue--> thread "mirror-records": batch -> rename blobs, sync -> commit -> replies
//!   reads see the last commit
//! ```
//!
//! Invariants: blobs are put in their place only inside a change; a row's last change, removals too, has a stamp and stands in the
//! journal; nothing is scanned at start.

mod change;
mod journal;
mod merge;
mod read;
mod row;
mod stamp;
mod sweep;
mod tables;
mod writer;

use std::path::Path;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use redb::Database;
use tokio::sync::{oneshot, watch};

pub(crate) use change::{Burial, Change, Evicted};
pub(crate) use merge::is_forgettable;
pub(crate) use row::{Cell, Kind, ManifestRow, Part, Row, Value};
pub(crate) use stamp::{Stamp, now_ms};
pub(crate) use sweep::{Candidate, Page};

use writer::{Job, Shared, Waiting};

/// How long a predecessor may hold the file.
const HANDOVER: Duration = Duration::from_secs(5);

/// Why records could not be read or written.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum RecordsError {
    #[error("the registry's disk is full: free space or ask its operator")]
    NoSpace,
    #[error("failed to use the records: {0}")]
    Storage(String),
    #[error("the records are not open")]
    Stopped,
}

impl RecordsError {
    fn damaged(row: &Row) -> Self {
        RecordsError::Storage(format!("{row:?} is damaged"))
    }
}

impl From<redb::Error> for RecordsError {
    fn from(error: redb::Error) -> Self {
        use std::io::ErrorKind;
        match &error {
            redb::Error::Io(io)
                if matches!(
                    io.kind(),
                    ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
                ) =>
            {
                RecordsError::NoSpace
            }
            _ => RecordsError::Storage(error.to_string()),
        }
    }
}

impl From<redb::StorageError> for RecordsError {
    fn from(error: redb::StorageError) -> Self {
        redb::Error::from(error).into()
    }
}

/// The file; cheap to clone.
#[derive(Clone)]
pub(crate) struct Records {
    shared: Shared,
    jobs: SyncSender<Box<dyn Job>>,
    written: watch::Receiver<u64>,
    node: u64,
}

fn current(shared: &RwLock<Option<Arc<Database>>>) -> Result<Arc<Database>, RecordsError> {
    shared.read().unwrap_or_else(PoisonError::into_inner).clone().ok_or(RecordsError::Stopped)
}

/// A predecessor that still ends holds the file for a moment.
fn open_when_free(path: &Path) -> Result<Database, redb::Error> {
    let until = Instant::now() + HANDOVER;
    loop {
        match tables::open(path) {
            Err(redb::Error::DatabaseAlreadyOpen) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

impl Records {
    /// Opens or makes `records.redb` in a directory.
    pub(crate) fn open(directory: &Path) -> anyhow::Result<Self> {
        let path = directory.join("records.redb");
        let database = open_when_free(&path)
            .map_err(|error| anyhow::anyhow!("failed to open {}: {error}", path.display()))?;
        let shared: Shared = Arc::new(RwLock::new(Some(Arc::new(database))));
        let (node, last) = journal::identity(&shared)?;
        let (sender, written) = watch::channel(last);
        let jobs = writer::start(path, shared.clone(), sender)?;
        Ok(Self { shared, jobs, written, node })
    }

    /// The number of the last change, known before whoever made it hears of it: what was read after a look at it is true while it stays.
    pub(crate) fn generation(&self) -> u64 {
        *self.written.borrow()
    }

    /// Carries out a change; it is on the disk when this returns.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Change<'_>) -> Result<T, RecordsError> + Send + 'static,
    ) -> Result<T, RecordsError> {
        let (reply, answer) = oneshot::channel();
        let mut job: Box<dyn Job> = Box::new(Waiting::new(work, reply));
        // The queue is long and the disk quick: a full one is rare, and then waiting is right.
        loop {
            match self.jobs.try_send(job) {
                Ok(()) => break,
                Err(std::sync::mpsc::TrySendError::Full(back)) => {
                    job = back;
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                Err(std::sync::mpsc::TrySendError::Disconnected(_)) => return Err(RecordsError::Stopped),
            }
        }
        answer.await.unwrap_or(Err(RecordsError::Stopped))
    }
}
