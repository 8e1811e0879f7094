//! One thread writes: changes that wait together are one transaction, and one sync of the disk.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use redb::Database;
use tokio::sync::{oneshot, watch};

use super::change::{Change, Effects};
use super::stamp::now_ms;
use super::{RecordsError, tables};

/// Changes that wait for the disk; more wait for their place.
const QUEUE: usize = 256;
/// Changes in one transaction.
const BATCH: usize = 128;
/// Readers of a file that must be opened anew are done within this.
const READERS: Duration = Duration::from_secs(5);

/// The open file; none while it is opened anew after a fault.
pub(super) type Shared = Arc<RwLock<Option<Arc<Database>>>>;

/// A change and whoever waits for it.
pub(super) trait Job: Send {
    fn run(&mut self, change: &mut Change<'_>) -> Result<(), RecordsError>;
    fn done(self: Box<Self>, outcome: Result<(), RecordsError>);
}

pub(super) struct Waiting<T, F> {
    work: Option<F>,
    result: Option<T>,
    reply: oneshot::Sender<Result<T, RecordsError>>,
}

impl<T, F> Waiting<T, F> {
    pub(super) fn new(work: F, reply: oneshot::Sender<Result<T, RecordsError>>) -> Self {
        Self { work: Some(work), result: None, reply }
    }
}

impl<T, F> Job for Waiting<T, F>
where
    T: Send,
    F: FnOnce(&mut Change<'_>) -> Result<T, RecordsError> + Send,
{
    fn run(&mut self, change: &mut Change<'_>) -> Result<(), RecordsError> {
        if let Some(work) = self.work.take() {
            self.result = Some(work(change)?);
        }
        Ok(())
    }

    fn done(self: Box<Self>, outcome: Result<(), RecordsError>) {
        let Waiting { result, reply, .. } = *self;
        // Who does not wait any more does not mind.
        let _ = reply.send(outcome.and_then(|()| result.ok_or(RecordsError::Stopped)));
    }
}

/// Starts the thread. It ends when every sender is gone.
pub(super) fn start(
    path: std::path::PathBuf,
    shared: Shared,
    written: watch::Sender<u64>,
) -> std::io::Result<SyncSender<Box<dyn Job>>> {
    let (sender, receiver) = sync_channel(QUEUE);
    std::thread::Builder::new().name("mirror-records".to_owned()).spawn(move || {
        run(&path, &receiver, &shared, &written);
    })?;
    Ok(sender)
}

fn run(
    path: &std::path::Path,
    receiver: &Receiver<Box<dyn Job>>,
    shared: &Shared,
    written: &watch::Sender<u64>,
) {
    while let Ok(first) = receiver.recv() {
        let mut jobs = vec![first];
        while jobs.len() < BATCH
            && let Ok(job) = receiver.try_recv()
        {
            jobs.push(job);
        }
        // A panic must not end the thread: every later push would be refused until a restart.
        let outcome = catch_unwind(AssertUnwindSafe(|| write(&mut jobs, shared)))
            .unwrap_or_else(|_| Err(RecordsError::Storage("a change panicked".to_owned())));
        match &outcome {
            Ok(last) => {
                written.send_if_modified(|known| std::mem::replace(known, *last) != *last);
            }
            Err(error) => {
                tracing::error!(%error, path = %path.display(), "records were not written");
                // A file that failed once refuses every later change until it is opened anew.
                reopen(path, shared);
            }
        }
        for job in jobs {
            job.done(outcome.clone().map(drop));
        }
    }
}

/// Carries the changes out; the journal's last number.
fn write(jobs: &mut [Box<dyn Job>], shared: &Shared) -> Result<u64, RecordsError> {
    let database = super::current(shared)?;
    let mut transaction = database.begin_write().map_err(redb::Error::from)?;
    // A start after a kill must not read the whole file.
    transaction.set_quick_repair(true);
    let effects = {
        let mut change = Change::begin(&transaction, now_ms())?;
        for job in jobs {
            job.run(&mut change)?;
        }
        change.finish()?
    };
    let Effects { renamed, burials, last } = effects;
    for directory in renamed {
        File::open(&directory).and_then(|directory| directory.sync_all()).map_err(redb::Error::from)?;
    }
    transaction.commit().map_err(redb::Error::from)?;
    for burial in burials.values() {
        match std::fs::rename(&burial.from, &burial.to) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                // A later sweep finds it as a stray.
                tracing::warn!(%error, path = %burial.from.display(), "a file that nobody needs was not moved");
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(last)
}

fn reopen(path: &std::path::Path, shared: &Shared) {
    let old = shared.write().unwrap_or_else(PoisonError::into_inner).take();
    let Some(old) = old else { return open_again(path, shared) };
    let gone = Arc::downgrade(&old);
    drop(old);
    let step = Duration::from_millis(5);
    let mut waited = Duration::ZERO;
    while gone.strong_count() > 0 && waited < READERS {
        std::thread::sleep(step);
        waited += step;
    }
    open_again(path, shared);
}

fn open_again(path: &std::path::Path, shared: &Shared) {
    match tables::open(path) {
        Ok(database) => {
            *shared.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(database));
        }
        // The next change tries again.
        Err(error) => tracing::error!(%error, path = %path.display(), "records cannot be opened"),
    }
}
