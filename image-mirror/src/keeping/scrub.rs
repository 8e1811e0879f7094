//! Scrub: every blob is read and hashed again now and then, slowly, on a thread of its own; where it was is remembered.
//!
//! A damaged file goes to `quarantine/`, and its bytes count as not here: they are fetched again when somebody asks, or at once when
//! they were pushed and another registry has them ([`crate::records::Records::owed`]).

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use orlop_daemon::Frame;
use orlop_types::{Digest, Digester};
use serde::{Deserialize, Serialize};

use super::collect::blocking;
use super::mode::Mode;
use super::{Keeper, KeepingConfig};
use crate::records::{Page, RecordsError, now_ms};

const CHUNK_BYTES: usize = 256 << 10;
/// Where the scrub is, is written down this often.
const REMEMBER: Duration = Duration::from_secs(60);
/// Between two looks whether it is time.
const IDLE: Duration = Duration::from_secs(60);
/// What `quarantine/` holds at most; the oldest go.
const QUARANTINE_FILES: usize = 16;
const QUARANTINE_BYTES: u64 = 1 << 30;
/// Images that the log names with a damaged blob.
const NAMED: usize = 8;
/// The lowest priority, for the processor and so for the disk (ioprio_set(2): derived from it).
const NICE: i32 = 19;

/// Where the scrub is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Progress {
    /// The last digest that was read; none between two scrubs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cursor: Option<String>,
    /// Of this scrub, or of the last one.
    pub(super) started_ms: u64,
    /// Of the last whole one.
    pub(super) ended_ms: u64,
    pub(super) blobs: u64,
    pub(super) bytes: u64,
    pub(super) damaged: u64,
}

/// How the scrub is told.
#[derive(Debug, Default)]
pub(super) struct Orders {
    told: Mutex<Told>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, Default)]
struct Told {
    stop: bool,
    now: bool,
}

impl Orders {
    fn tell(&self, change: impl FnOnce(&mut Told)) {
        change(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    /// Waits, less when there is something new; false when the thread is to end.
    fn wait(&self, time: Duration) -> bool {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(told, time, |told| !told.stop && !told.now);
        !waited.unwrap_or_else(PoisonError::into_inner).0.stop
    }

    /// Waits whatever is new, for the pace; false when the thread is to end.
    fn rest(&self, time: Duration) -> bool {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(told, time, |told| !told.stop);
        !waited.unwrap_or_else(PoisonError::into_inner).0.stop
    }

    fn take_now(&self) -> bool {
        std::mem::take(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner).now)
    }
}

/// What a file turned out to be.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Whole,
    Missing,
    /// The file that was read, by its inode: another one may be in its place by now.
    Damaged {
        inode: u64,
        why: String,
    },
    Stopped,
}

impl Keeper {
    /// Starts the thread.
    pub(super) fn start_scrub(self: &Arc<Self>, frame: &Frame) -> anyhow::Result<()> {
        let (keeper, runtime) = (self.clone(), tokio::runtime::Handle::current());
        let thread = std::thread::Builder::new().name("mirror-scrub".to_owned());
        let thread = thread.spawn(move || {
            if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE) {
                tracing::debug!(%error, "the scrub has no lower priority");
            }
            keeper.scrub_forever(&runtime);
        });
        let thread = thread.context("failed to start the scrub")?;
        let (keeper, drain) = (self.clone(), frame.drain());
        frame.spawn("mirror-scrub", async move {
            drain.wait().await;
            keeper.scrub_orders.tell(|told| told.stop = true);
            let joined = tokio::task::spawn_blocking(move || thread.join()).await?;
            joined.map_err(|_| anyhow::anyhow!("the scrub panicked"))
        });
        Ok(())
    }

    /// The command `scrub`.
    pub(super) fn command_scrub(&self) -> String {
        let under_way = self.memory().scrub.cursor.is_some();
        self.scrub_orders.tell(|told| told.now = true);
        if under_way { "a scrub is under way".to_owned() } else { "a scrub is started".to_owned() }
    }

    fn scrub_forever(&self, runtime: &tokio::runtime::Handle) {
        while self.scrub_orders.wait(IDLE) {
            let ordered = self.scrub_orders.take_now();
            if self.mode() == Mode::Maintenance || !(ordered || self.is_scrub_due()) {
                continue;
            }
            if let Err(error) = self.scrub(runtime) {
                tracing::warn!(%error, "scrub broken off: it goes on in a minute");
                if !self.scrub_orders.rest(IDLE) {
                    return;
                }
            }
        }
    }

    fn is_scrub_due(&self) -> bool {
        let progress = &self.memory().scrub;
        let interval_ms = self.scrub_interval_days.saturating_mul(24 * 3_600_000);
        // A registry that was never scrubbed waits too: it is new.
        let last_ms = progress.ended_ms.max(self.opened_ms);
        progress.cursor.is_some() || interval_ms > 0 && now_ms() >= last_ms.saturating_add(interval_ms)
    }

    /// Goes on where the last one was.
    fn scrub(&self, runtime: &tokio::runtime::Handle) -> Result<(), RecordsError> {
        let mut progress = self.memory().scrub.clone();
        if progress.cursor.is_none() {
            let ended_ms = progress.ended_ms;
            progress = Progress { started_ms: now_ms(), ended_ms, ..Progress::default() };
            progress.cursor = Some(String::new());
            self.remember_scrub(&progress)?;
        }
        let mut remembered = Instant::now();
        while let Some(cursor) = progress.cursor.clone() {
            let Page { found, next } = self.repositories.records.contents(cursor.as_bytes())?;
            for (digest, size) in found {
                if self.mode() == Mode::Maintenance
                    || !self.scrub_one(runtime, &digest, size, &mut progress)?
                {
                    return self.remember_scrub(&progress);
                }
                self.memory().scrub.clone_from(&progress);
                if remembered.elapsed() > REMEMBER {
                    self.remember_scrub(&progress)?;
                    remembered = Instant::now();
                }
            }
            if next.is_none() {
                (progress.cursor, progress.ended_ms) = (None, now_ms());
            }
        }
        let Progress { blobs, bytes, damaged, .. } = progress;
        tracing::info!(blobs, bytes, damaged, "scrub ended");
        self.remember_scrub(&progress)
    }

    fn remember_scrub(&self, progress: &Progress) -> Result<(), RecordsError> {
        let remembered = self.remember(|memory| memory.scrub = progress.clone());
        remembered.map_err(|error| RecordsError::from(redb::Error::Io(error)))
    }

    /// Reads one blob; false when the scrub is to stop.
    fn scrub_one(
        &self,
        runtime: &tokio::runtime::Handle,
        digest: &Digest,
        size: u64,
        progress: &mut Progress,
    ) -> Result<bool, RecordsError> {
        let pace = |bytes: usize, took: Duration| {
            let due = Duration::from_secs_f64(bytes as f64 / self.scrub_bytes_per_second as f64);
            self.scrub_orders.rest(due.saturating_sub(took))
        };
        let found = look(&self.repositories.path(digest), digest, Some(size), pace);
        let found = found.map_err(|error| RecordsError::from(redb::Error::Io(error)))?;
        if found == Found::Stopped {
            return Ok(false);
        }
        if matches!(found, Found::Damaged { .. }) {
            progress.damaged += 1;
        }
        runtime.block_on(self.settle(digest, found))?;
        progress.cursor = Some(digest.as_str().to_owned());
        progress.blobs += 1;
        progress.bytes += size;
        self.scrubbed_bytes.inc_by(size);
        Ok(true)
    }

    /// Looks at bytes that were not there or not right when they were to be served.
    pub(crate) async fn inspect(&self, digest: &Digest) {
        let (records, path, looked) =
            (self.repositories.records.clone(), self.repositories.path(digest), digest.clone());
        let found = blocking(move || {
            // Most often nobody said that they are here.
            if !path.exists() && !records.is_counted(&looked)? {
                return Ok(Found::Whole);
            }
            look(&path, &looked, None, |_, _| true)
                .map_err(|error| RecordsError::from(redb::Error::Io(error)))
        });
        let settled = match found.await {
            Ok(found) => self.settle(digest, found).await,
            Err(error) => Err(error),
        };
        self.log(settled, "bytes that are not right were not noted");
    }

    /// Does what a look at a file asks for.
    async fn settle(&self, digest: &Digest, found: Found) -> Result<(), RecordsError> {
        let (inode, why) = match found {
            Found::Whole | Found::Stopped => return Ok(()),
            Found::Missing => (None, "the file is gone".to_owned()),
            Found::Damaged { inode, why } => (Some(inode), why),
        };
        if self.mode() == Mode::Maintenance {
            return Ok(());
        }
        let needed_by = self.repositories.records.needed_by(digest, NAMED)?;
        let (path, quarantine) = (self.repositories.path(digest), self.root.join("quarantine"));
        let lost = digest.clone();
        let settled = self.repositories.records.write(move |change| {
            // Looked at once more on the one thread that puts files there: it may have been pushed again meanwhile.
            let now = std::fs::metadata(&path).ok().map(|metadata| metadata.ino());
            if now != inode || inode.is_none() && change.used_ms(&lost)?.is_none() {
                return Ok(false);
            }
            if inode.is_some() {
                // Before the records say so: killed in between the file is missing, which is found again.
                let moved = std::fs::rename(&path, quarantine.join(lost.hex()));
                moved.map_err(|error| RecordsError::from(redb::Error::Io(error)))?;
            }
            change.lose(&lost)?;
            Ok(true)
        });
        if settled.await? {
            self.damaged.inc();
            self.uses.forget(digest);
            tracing::error!(%digest, why, ?needed_by, "a blob is damaged: it is fetched again where it can be had");
            let quarantine = self.root.join("quarantine");
            let bounded = tokio::task::spawn_blocking(move || bound_quarantine(&quarantine));
            if let Ok(Err(error)) = bounded.await {
                tracing::warn!(%error, root = %self.root.display(), "the quarantine was not looked through");
            }
        }
        Ok(())
    }
}

impl KeepingConfig {
    pub(super) fn scrub_problems(&self) -> Option<String> {
        (self.scrub_bytes_per_second == 0).then(|| {
            "keeping.scrubBytesPerSecond is 0: give at least 1, or scrubIntervalDays: 0 for no scrub"
                .to_owned()
        })
    }
}

/// Reads and hashes a file. `pace` waits after each part, and says whether to go on.
fn look(
    path: &Path,
    digest: &Digest,
    size: Option<u64>,
    pace: impl Fn(usize, Duration) -> bool,
) -> io::Result<Found> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Missing),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    let inode = metadata.ino();
    if let Some(size) = size.filter(|size| *size != metadata.len()) {
        return Ok(Found::Damaged { inode, why: format!("{} bytes, not {size}", metadata.len()) });
    }
    // What is read here is no sign that anybody will read it again. Only advice.
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::NoReuse);
    let mut digester = Digester::new(digest.algorithm());
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let started = Instant::now();
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                digester.update(&buffer[..count]);
                if !pace(count, started.elapsed()) {
                    return Ok(Found::Stopped);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The disk does not give the bytes back.
            Err(error) => return Ok(Found::Damaged { inode, why: error.to_string() }),
        }
    }
    Ok(match digester.finish() {
        actual if actual == *digest => Found::Whole,
        actual => Found::Damaged { inode, why: format!("its content has digest {actual}") },
    })
}

/// The newest stay: what they were is for the operator to find out.
fn bound_quarantine(directory: &Path) -> io::Result<()> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        // Moving it there changed the inode, not the content.
        let moved = SystemTime::UNIX_EPOCH + Duration::from_secs(metadata.ctime().unsigned_abs());
        files.push((moved, metadata.len(), entry.path()));
    }
    files.sort();
    let mut bytes = 0;
    for (number, (_, size, path)) in files.iter().rev().enumerate() {
        bytes += size;
        if number >= QUARANTINE_FILES || bytes > QUARANTINE_BYTES {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_turns_out_to_be() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("blob");
        let digest = Digest::sha256(b"content");
        let look = |size| look(&path, &digest, size, |_, _| true).unwrap();
        assert_eq!(look(None), Found::Missing);
        std::fs::write(&path, b"content").unwrap();
        assert_eq!(look(Some(7)), Found::Whole);
        assert!(matches!(look(Some(8)), Found::Damaged { .. }));
        std::fs::write(&path, b"kontent").unwrap();
        assert!(matches!(look(Some(7)), Found::Damaged { why, .. } if why.contains("digest")));
        assert_eq!(super::look(&path, &digest, None, |_, _| false).unwrap(), Found::Stopped);
    }

    #[test]
    fn the_quarantine_is_bounded() {
        let directory = tempfile::tempdir().unwrap();
        for number in 0..QUARANTINE_FILES + 3 {
            std::fs::write(directory.path().join(number.to_string()), b"x").unwrap();
        }
        bound_quarantine(directory.path()).unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), QUARANTINE_FILES);
    }
}
