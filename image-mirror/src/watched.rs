//! Files that are read again when they change.

use std::fs::Metadata;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use orlop_daemon::Drain;

/// Between two looks at the files.
const INTERVAL: Duration = Duration::from_secs(2);
/// Most bytes of such a file.
const LIMIT_BYTES: u64 = 4 << 20;

/// What tells one state of a file from the next: device, inode, size, time of change.
type Stamp = (u64, u64, u64, i64, i64);

type Parse<T> = Box<dyn Fn(&[Vec<u8>]) -> anyhow::Result<T> + Send + Sync>;

/// What some files together say. A change that cannot be used is logged once, and what was there before stays.
pub(crate) struct Watched<T> {
    what: &'static str,
    files: Vec<PathBuf>,
    parse: Parse<T>,
    value: ArcSwap<T>,
    seen: Mutex<Vec<Option<Stamp>>>,
}

impl<T> Watched<T> {
    /// Reads the files for the first time.
    pub(crate) fn open(
        what: &'static str,
        files: Vec<PathBuf>,
        parse: impl Fn(&[Vec<u8>]) -> anyhow::Result<T> + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        // Stamps first: what changes while it is read is read again.
        let seen = stamps(&files);
        let value = read(&files).and_then(|contents| parse(&contents)).with_context(|| {
            let names: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
            format!("failed to load the {what} from {}", names.join(" and "))
        })?;
        Ok(Self {
            what,
            files,
            parse: Box::new(parse),
            value: ArcSwap::from_pointee(value),
            seen: Mutex::new(seen),
        })
    }

    /// What they said when they were last understood.
    pub(crate) fn get(&self) -> Arc<T> {
        self.value.load_full()
    }
}

/// A [`Watched`] of any type.
pub(crate) trait Refresh: Send + Sync {
    /// Reads the files again where they have changed.
    fn refresh(&self);
}

impl<T: Send + Sync> Refresh for Watched<T> {
    fn refresh(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamps(&self.files);
        if *seen == now {
            return;
        }
        *seen = now;
        match read(&self.files).and_then(|contents| (self.parse)(&contents)) {
            Ok(value) => {
                self.value.store(Arc::new(value));
                tracing::info!(what = self.what, files = ?self.files, "read again");
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(what = self.what, files = ?self.files, error, "not usable, the old one stays");
            }
        }
    }
}

/// Looks at all of them until the drain.
pub(crate) async fn watch(watched: Vec<Arc<dyn Refresh>>, drain: Drain) -> anyhow::Result<()> {
    let watched: Arc<[Arc<dyn Refresh>]> = watched.into();
    loop {
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = drain.wait() => return Ok(()),
        }
        let all = watched.clone();
        // The files may lie on a network.
        tokio::task::spawn_blocking(move || all.iter().for_each(|one| one.refresh()))
            .await
            .context("failed to look at watched files")?;
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    let stamp = |data: Metadata| (data.dev(), data.ino(), data.len(), data.mtime(), data.mtime_nsec());
    files.iter().map(|file| std::fs::metadata(file).ok().map(stamp)).collect()
}

fn read(files: &[PathBuf]) -> anyhow::Result<Vec<Vec<u8>>> {
    let read_one = |file: &PathBuf| {
        let mut bytes = Vec::new();
        std::fs::File::open(file)
            .and_then(|opened| opened.take(LIMIT_BYTES + 1).read_to_end(&mut bytes))
            .with_context(|| format!("failed to read {}", file.display()))?;
        anyhow::ensure!(
            bytes.len() as u64 <= LIMIT_BYTES,
            "{} has more than {LIMIT_BYTES} bytes",
            file.display()
        );
        Ok(bytes)
    };
    files.iter().map(read_one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_seen_and_a_broken_one_keeps_the_old() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("number");
        let parse = |contents: &[Vec<u8>]| Ok(std::str::from_utf8(&contents[0])?.trim().parse::<u32>()?);
        std::fs::write(&file, "none").unwrap();
        assert!(Watched::open("number", vec![file.clone()], parse).is_err());
        std::fs::write(&file, "1").unwrap();
        let watched = Watched::open("number", vec![file.clone()], parse).unwrap();
        let change = |text: &str| {
            // Another file in its place, as editors and configuration tools do it.
            std::fs::write(file.with_extension("new"), text).unwrap();
            std::fs::rename(file.with_extension("new"), &file).unwrap();
            watched.refresh();
            *watched.get()
        };
        assert_eq!(change("22"), 22);
        assert_eq!(change("broken"), 22);
        assert_eq!(change("333"), 333);
        std::fs::remove_file(&file).unwrap();
        watched.refresh();
        assert_eq!(*watched.get(), 333);
    }
}
