//! Garbage: rows of blobs that no manifest names, bytes that no row wants, files that the records do not know.
//!
//! A sweep reads page by page and only proposes. The change that removes looks again, on the one thread that writes, so that no push
//! comes in between; and whoever has a file open reads it to its end.

use std::path::PathBuf;
use std::time::Duration;

use orlop_types::{Algorithm, Digest};

use super::Keeper;
use crate::records::{Burial, Page, RecordsError, now_ms};

/// Rows that one change removes: pushes wait for no more.
const AT_ONCE: usize = 200;
/// Between two pages, so that a sweep is not felt.
const PAUSE: Duration = Duration::from_millis(10);
/// Files of a directory that are looked up together.
const FILES: usize = 1000;

/// What a collection removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Collected {
    /// Rows of blobs.
    pub(crate) rows: u64,
    /// Contents and strays.
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

impl Keeper {
    /// Removes what nobody needs. `strays` also looks at every file, which is slow.
    pub(crate) async fn collect(&self, strays: bool) -> Result<Collected, RecordsError> {
        self.collect_before(now_ms().saturating_sub(self.lease_ms), strays).await
    }

    pub(super) async fn collect_before(
        &self,
        before_ms: u64,
        strays: bool,
    ) -> Result<Collected, RecordsError> {
        let _one = self.collecting.lock().await;
        // A pull that is noted in memory alone counts too.
        self.write_uses().await?;
        let started_ms = now_ms();
        let mut collected = Collected::default();
        self.collect_rows(before_ms, &mut collected).await?;
        self.collect_bytes(before_ms, &mut collected).await?;
        if strays {
            self.collect_strays(&mut collected).await?;
        }
        self.repositories.records.write(|change| change.prune_owed()).await?;
        self.empty_trash().await;
        self.collected(collected, started_ms);
        Ok(collected)
    }

    async fn collect_rows(&self, before_ms: u64, collected: &mut Collected) -> Result<(), RecordsError> {
        let mut from = Vec::new();
        loop {
            let records = self.repositories.records.clone();
            let page = blocking(move || records.unnamed(&from, before_ms)).await?;
            let Page { mut found, next } = page;
            while !found.is_empty() {
                let rows = found.split_off(found.len().saturating_sub(AT_ONCE));
                let removed = self.repositories.records.write(move |change| {
                    let mut removed = 0;
                    for row in &rows {
                        removed += u64::from(change.evict_unnamed(row, before_ms)?);
                    }
                    Ok(removed)
                });
                collected.rows += removed.await?;
            }
            let Some(next) = next else { return Ok(()) };
            from = next;
            tokio::time::sleep(PAUSE).await;
        }
    }

    pub(super) async fn collect_bytes(
        &self,
        before_ms: u64,
        collected: &mut Collected,
    ) -> Result<(), RecordsError> {
        let mut from = Vec::new();
        loop {
            let records = self.repositories.records.clone();
            let Page { found, next } = blocking(move || records.unowned(&from, before_ms)).await?;
            self.drop_bytes(found, before_ms, collected).await?;
            let Some(next) = next else { return Ok(()) };
            from = next;
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Drops those of the contents that no row wants.
    async fn drop_bytes(
        &self,
        mut digests: Vec<Digest>,
        before_ms: u64,
        collected: &mut Collected,
    ) -> Result<(), RecordsError> {
        while !digests.is_empty() {
            let some = digests.split_off(digests.len().saturating_sub(AT_ONCE));
            let some: Vec<_> = some.into_iter().map(|digest| (self.burial(&digest), digest)).collect();
            let dropped = self.repositories.records.write(move |change| {
                let mut dropped = Vec::new();
                for (burial, digest) in some {
                    if let Some(size) = change.drop_unowned(&digest, before_ms, burial)? {
                        dropped.push((digest, size));
                    }
                }
                Ok(dropped)
            });
            for (digest, size) in dropped.await? {
                tracing::debug!(%digest, size, "nobody needs it: removed");
                self.uses.forget(&digest);
                collected.files += 1;
                collected.bytes += size;
            }
        }
        Ok(())
    }

    /// Files that a kill left between a commit and a removal, or that somebody put there.
    async fn collect_strays(&self, collected: &mut Collected) -> Result<(), RecordsError> {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let path = self.root.join("blobs").join(algorithm.name());
            let Ok(mut entries) = std::fs::read_dir(&path) else { continue };
            loop {
                let records = self.repositories.records.clone();
                let part = blocking(move || {
                    let files = some_files(&mut entries, algorithm);
                    let ended = files.len() < FILES;
                    records.unknown(files).map(|unknown| (unknown, ended, entries))
                });
                let (unknown, ended, rest) = part.await?;
                entries = rest;
                for (digest, size) in unknown {
                    let (burial, stray) = (self.burial(&digest), digest.clone());
                    let gone = self
                        .repositories
                        .records
                        .write(move |change| change.settle_stray(&stray, size, burial))
                        .await?;
                    tracing::info!(%digest, size, gone, "found a file that the records did not know");
                    collected.files += u64::from(gone);
                    collected.bytes += if gone { size } else { 0 };
                }
                if ended {
                    break;
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(())
    }

    /// Where the file of dropped bytes goes: away from its name at once, its bytes when there is time.
    pub(super) fn burial(&self, digest: &Digest) -> Burial {
        let to = self.trash().join(format!("{}-{}", digest.algorithm().name(), digest.hex()));
        Burial { from: self.repositories.path(digest), to }
    }

    pub(super) fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    /// Frees the bytes of what was dropped.
    pub(super) async fn empty_trash(&self) {
        let trash = self.trash();
        let emptied = tokio::task::spawn_blocking(move || {
            for entry in std::fs::read_dir(&trash)? {
                std::fs::remove_file(entry?.path())?;
            }
            Ok::<_, std::io::Error>(())
        });
        if let Ok(Err(error)) = emptied.await {
            tracing::warn!(%error, path = %self.trash().display(), "the trash was not emptied");
        }
    }
}

fn some_files(entries: &mut std::fs::ReadDir, algorithm: Algorithm) -> Vec<(Digest, u64)> {
    let mut files = Vec::new();
    for entry in entries.by_ref().flatten() {
        let name = entry.file_name();
        let digest = name.to_str().and_then(|hex| format!("{}:{hex}", algorithm.name()).parse().ok());
        // Gone meanwhile: no stray.
        if let (Some(digest), Ok(metadata)) = (digest, entry.metadata()) {
            files.push((digest, metadata.len()));
            if files.len() >= FILES {
                break;
            }
        }
    }
    files
}

/// Runs reads of the records off the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RecordsError> + Send + 'static,
) -> Result<T, RecordsError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(RecordsError::Storage(error.to_string())))
}
