//! A directory of bundles and other archives of images, taken in at the start and when something is put there.
//!
//! ```text
//!   directory --poll--> seen (unchanged for a while) --load.rs--> blobs, manifests, tags --> bundles.json remembers
//! ```
//!
//! What is in `bundles.json` is not read again while it is unchanged. A kill at any line costs at most the work on one archive: what it
//! had is there, and is passed over the next time. A failure is named in the log, the metrics and the dump, and tried again later.

mod load;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use orlop_airgap::bundle::{PublicKey, Trust};
use orlop_daemon::prometheus_client::metrics::counter::Counter;
use orlop_daemon::{Drain, Frame};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::keeping::Mode;
use crate::registry::Registry;

/// Between two looks at the directory.
const INTERVAL: Duration = Duration::from_secs(5);
/// What changed a shorter time ago may still be on its way.
const SETTLED: Duration = Duration::from_secs(5);
/// Before what failed is tried again.
const AGAIN: Duration = Duration::from_secs(600);
/// Archives in the directory, and files of one that is a directory.
const ENTRIES: usize = 10_000;
const FILES: usize = 1_000_000;
const DEPTH: usize = 24;
/// Bytes of `bundles.json`.
const STATE_BYTES: u64 = 16 << 20;

/// What tells one state of an archive from the next: inode, files, bytes, the last change in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    inode: u64,
    files: u64,
    bytes: u64,
    changed_ns: i128,
}

/// What came of an archive.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    #[serde(skip)]
    stamp: Option<Stamp>,
    images: usize,
    error: Option<String>,
    #[serde(skip)]
    at: Option<Instant>,
}

/// The directory and what came of it.
pub(crate) struct Bundles {
    directory: PathBuf,
    state: PathBuf,
    trust: Trust,
    /// By file name.
    outcomes: Mutex<BTreeMap<String, Outcome>>,
    loaded: Counter,
    failures: Counter,
}

impl Bundles {
    /// None when no directory is configured.
    pub(crate) fn open(config: &Config) -> anyhow::Result<Option<Arc<Self>>> {
        let Some(directory) = config.bundles.clone() else { return Ok(None) };
        let trust = match &config.bundle_key_file {
            Some(file) => Trust::Keys(vec![PublicKey::load(file)?]),
            None => Trust::Anybody,
        };
        let state = config.root.join("bundles.json");
        let known = read_state(&state).unwrap_or_else(|error| {
            // Then everything is read once more.
            tracing::warn!(%error, "what bundles were loaded is not known");
            BTreeMap::new()
        });
        let outcome = |stamp| Outcome { stamp: Some(stamp), images: 0, error: None, at: None };
        let outcomes = known.into_iter().map(|(name, stamp)| (name, outcome(stamp))).collect();
        Ok(Some(Arc::new(Self {
            directory,
            state,
            trust,
            outcomes: Mutex::new(outcomes),
            loaded: Counter::default(),
            failures: Counter::default(),
        })))
    }

    /// Starts the task and its metrics.
    pub(crate) fn start(self: Arc<Self>, frame: &Frame, registry: &Arc<Registry>) {
        let mut metrics = frame.metrics();
        metrics.register("mirror_bundles_loaded", "Bundles taken in", self.loaded.clone());
        metrics.register(
            "mirror_bundle_failures",
            "Bundles that could not be taken in",
            self.failures.clone(),
        );
        drop(metrics);
        frame.spawn("mirror-bundles", self.watch(registry.clone(), frame.drain()));
    }

    /// For the dump.
    pub(crate) fn state(&self) -> serde_json::Value {
        let outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        serde_json::to_value(&*outcomes).unwrap_or_default()
    }

    async fn watch(self: Arc<Self>, registry: Arc<Registry>, drain: Drain) -> anyhow::Result<()> {
        let mut silent = false;
        loop {
            // Maintenance writes nothing.
            if registry.keeper.mode() != Mode::Maintenance {
                match self.waiting().await {
                    Ok(waiting) => {
                        silent = false;
                        for (name, stamp) in waiting {
                            tokio::select! {
                                () = self.take(&registry, &name, stamp) => {}
                                () = drain.wait() => return Ok(()),
                            }
                        }
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut silent, true) {
                            tracing::warn!(directory = %self.directory.display(), "bundles cannot be listed: {error:#}");
                        }
                    }
                }
            }
            if !drain.sleep(INTERVAL).await {
                return Ok(());
            }
        }
    }

    /// What is settled, and neither loaded nor failed a short time ago.
    async fn waiting(&self) -> anyhow::Result<Vec<(String, Stamp)>> {
        let directory = self.directory.clone();
        let found = tokio::task::spawn_blocking(move || list(&directory)).await??;
        let outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = |name: &str, stamp: &Stamp| match outcomes.get(name) {
            Some(outcome) if outcome.stamp == Some(*stamp) => {
                outcome.error.is_some() && outcome.at.is_none_or(|at| at.elapsed() >= AGAIN)
            }
            _ => true,
        };
        Ok(found.into_iter().filter(|(name, stamp)| is_due(name, stamp)).collect())
    }

    async fn take(&self, registry: &Registry, name: &str, stamp: Stamp) {
        let started = Instant::now();
        let path = self.directory.join(name);
        let loaded = load::load(registry, &path, &self.trust).await;
        let outcome = match loaded {
            Ok(images) => {
                self.loaded.inc();
                tracing::info!(bundle = name, images, elapsed = ?started.elapsed(), "bundle loaded");
                Outcome { stamp: Some(stamp), images, error: None, at: None }
            }
            Err(error) => {
                self.failures.inc();
                let error = format!("{error:#}");
                tracing::error!(bundle = name, error, "bundle not loaded");
                Outcome { stamp: Some(stamp), images: 0, error: Some(error), at: Some(Instant::now()) }
            }
        };
        let known = {
            let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
            outcomes.insert(name.to_owned(), outcome);
            // What is gone from the directory is forgotten.
            outcomes.retain(|name, _| self.directory.join(name).exists());
            let loaded = outcomes.iter().filter(|(_, outcome)| outcome.error.is_none());
            loaded.filter_map(|(name, outcome)| Some((name.clone(), outcome.stamp?))).collect()
        };
        if let Err(error) = write_state(&self.state, &known) {
            tracing::warn!("bundles are read again after the next start: {error:#}");
        }
    }
}

fn read_state(path: &Path) -> anyhow::Result<BTreeMap<String, Stamp>> {
    use std::io::Read as _;
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error.into()),
    };
    let mut text = String::new();
    file.take(STATE_BYTES).read_to_string(&mut text)?;
    Ok(serde_json::from_str(&text)?)
}

fn write_state(path: &Path, known: &BTreeMap<String, Stamp>) -> anyhow::Result<()> {
    let temporary = path.with_extension("json.new");
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(&serde_json::to_vec(known)?)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    Ok(())
}

/// Everything in the directory that is settled. What begins with a dot or ends as half copied files do is left out.
fn list(directory: &Path) -> anyhow::Result<Vec<(String, Stamp)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).context("failed to open the directory")? {
        let Ok(name) = entry?.file_name().into_string() else { continue };
        if name.starts_with('.') || [".part", ".tmp", ".pub", ".sha256"].iter().any(|end| name.ends_with(end))
        {
            continue;
        }
        // Removed meanwhile: not listed.
        let Ok(stamp) = stamp(&directory.join(&name)) else { continue };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let age = i128::try_from(now.as_nanos()).unwrap_or(i128::MAX) - stamp.changed_ns;
        // A clock that was set back must not hide a file for ever.
        if age < 0 || age >= i128::try_from(SETTLED.as_nanos()).unwrap_or(0) {
            found.push((name, stamp));
        }
        anyhow::ensure!(found.len() <= ENTRIES, "more than {ENTRIES} entries");
    }
    found.sort_by(|one, two| one.0.cmp(&two.0));
    Ok(found)
}

fn stamp(path: &Path) -> anyhow::Result<Stamp> {
    let metadata = std::fs::metadata(path)?;
    let mut stamp = Stamp { inode: metadata.ino(), files: 0, bytes: 0, changed_ns: 0 };
    stamp.add(&metadata);
    if metadata.is_dir() {
        stamp.walk(path, 0)?;
    }
    Ok(stamp)
}

impl Stamp {
    fn add(&mut self, metadata: &std::fs::Metadata) {
        self.files += 1;
        self.bytes += metadata.len();
        let changed = i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec());
        self.changed_ns = self.changed_ns.max(changed);
    }

    fn walk(&mut self, directory: &Path, depth: usize) -> anyhow::Result<()> {
        anyhow::ensure!(depth < DEPTH, "directories are nested too deeply");
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            let metadata = std::fs::symlink_metadata(entry.path())?;
            self.add(&metadata);
            anyhow::ensure!(self.files <= FILES as u64, "more than {FILES} files");
            if metadata.is_dir() {
                self.walk(&entry.path(), depth + 1)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_is_kept_and_changes_are_seen() {
        let work = tempfile::tempdir().unwrap();
        let (file, state) = (work.path().join("a.tar"), work.path().join("bundles.json"));
        std::fs::write(&file, "one").unwrap();
        let first = stamp(&file).unwrap();
        assert_eq!(stamp(&file).unwrap(), first);
        std::fs::write(&file, "more").unwrap();
        assert_ne!(stamp(&file).unwrap(), first);
        assert!(read_state(&state).unwrap().is_empty());
        let known = BTreeMap::from([("a.tar".to_owned(), first)]);
        write_state(&state, &known).unwrap();
        assert_eq!(read_state(&state).unwrap(), known);
        std::fs::write(&state, "{").unwrap();
        assert!(read_state(&state).is_err());
        assert!(list(work.path()).unwrap().is_empty(), "what changed now is not settled");
    }
}
