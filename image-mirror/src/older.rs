//! Records of versions before `records.redb`: small files in `repositories/`, taken over once.
//!
//! ```text
//!   repositories/NAME/_tags/TAG                     the digest, and "fetched" if an upstream gave it
//!   repositories/NAME/_manifests/ALGORITHM/HEX      the media type
//!   repositories/NAME/_blobs/ALGORITHM/HEX          the size
//! ```
//!
//! Cut off anywhere it begins anew at the next start: rows that are there already are not changed, and the directory goes last.

use std::path::Path;

use anyhow::Context as _;
use orlop_distribution::blobs::BlobStore;
use orlop_distribution::manifest::{MANIFEST_LIMIT, Manifest};
use orlop_types::Digest;

use crate::records::{Kind, Records, Row, Value};
use crate::repositories::manifest_row;

/// Rows in one change.
const BATCH: usize = 1000;
/// Parts of a repository's name, and directories of records below it.
const DEPTH_LIMIT: usize = 260;

struct Found {
    row: Row,
    value: Value,
    /// The bytes that are here, with their size.
    content: Option<(Digest, u64)>,
}

/// Takes over what an older version wrote below `root`.
pub(crate) async fn take_over(root: &Path, records: &Records, blobs: &BlobStore) -> anyhow::Result<()> {
    let directory = root.join("repositories");
    if !directory.is_dir() {
        return Ok(());
    }
    let mut found = Vec::new();
    walk(&directory, "", DEPTH_LIMIT, blobs, &mut found)
        .with_context(|| format!("failed to read the records in {}", directory.display()))?;
    let rows = found.len();
    while !found.is_empty() {
        let batch = found.split_off(found.len().saturating_sub(BATCH));
        let written = records.write(move |change| {
            for Found { row, value, content } in batch {
                if let Some((digest, size)) = content {
                    change.count(&digest, size)?;
                }
                if change.cell(&row)?.is_none() {
                    change.set(&row, Some(value))?;
                }
            }
            Ok(())
        });
        written.await.context("failed to take over the records of an older version")?;
    }
    std::fs::remove_dir_all(&directory)
        .with_context(|| format!("failed to remove {}", directory.display()))?;
    tracing::info!(rows, "took over the records of an older version");
    Ok(())
}

fn walk(
    directory: &Path,
    name: &str,
    depth: usize,
    blobs: &BlobStore,
    found: &mut Vec<Found>,
) -> anyhow::Result<()> {
    anyhow::ensure!(depth > 0, "{} is nested too deeply", directory.display());
    for entry in std::fs::read_dir(directory)? {
        let (path, part) = match entry.map(|entry| (entry.path(), entry.file_name())) {
            Ok((path, part)) => (path, part.to_string_lossy().into_owned()),
            Err(error) => return Err(error.into()),
        };
        match part.as_str() {
            "_tags" => tags(&path, name, found)?,
            "_manifests" => digests(&path, |digest, text| manifest(name, digest, text, blobs), found)?,
            "_blobs" => digests(&path, |digest, text| blob(name, digest, text, blobs), found)?,
            // Made anew from the manifests.
            "_referrers" => {}
            _ if path.is_dir() => {
                let name = if name.is_empty() { part } else { format!("{name}/{part}") };
                walk(&path, &name, depth - 1, blobs, found)?;
            }
            _ => tracing::warn!(path = %path.display(), "no record: left out"),
        }
    }
    Ok(())
}

fn tags(directory: &Path, name: &str, found: &mut Vec<Found>) -> anyhow::Result<()> {
    for (tag, text) in files(directory)? {
        let (digest, origin) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        let Ok(digest) = digest.parse::<Digest>() else {
            tracing::warn!(name, tag, "a tag that names no digest: left out");
            continue;
        };
        let kind = if origin == "fetched" { Kind::FetchedTag } else { Kind::Tag };
        found.push(Found { row: Row::new(kind, name, &tag), value: Value::Tag(digest), content: None });
    }
    Ok(())
}

fn digests(
    directory: &Path,
    mut read: impl FnMut(&Digest, &str) -> anyhow::Result<Option<Found>>,
    found: &mut Vec<Found>,
) -> anyhow::Result<()> {
    for algorithm in ["sha256", "sha512"] {
        let directory = directory.join(algorithm);
        if !directory.is_dir() {
            continue;
        }
        for (hex, text) in files(&directory)? {
            let Ok(digest) = format!("{algorithm}:{hex}").parse::<Digest>() else { continue };
            match read(&digest, text.trim())? {
                Some(row) => found.push(row),
                None => tracing::warn!(%digest, "a record that says nothing of use: left out"),
            }
        }
    }
    Ok(())
}

/// What was pushed and what was fetched was not told apart for manifests and blobs: all of it counts as pushed, which is kept longer.
fn manifest(
    name: &str,
    digest: &Digest,
    media_type: &str,
    blobs: &BlobStore,
) -> anyhow::Result<Option<Found>> {
    let Ok(Some(bytes)) = blobs.read(digest, MANIFEST_LIMIT) else { return Ok(None) };
    let Ok(manifest) = Manifest::parse(&bytes, Some(media_type)) else { return Ok(None) };
    let size = bytes.len() as u64;
    let value = Value::Manifest(manifest_row(&manifest, media_type, size, false));
    let row = Row::new(Kind::Manifest, name, digest.as_str());
    Ok(Some(Found { row, value, content: Some((digest.clone(), size)) }))
}

fn blob(name: &str, digest: &Digest, size: &str, blobs: &BlobStore) -> anyhow::Result<Option<Found>> {
    // Of a fetched image every blob was recorded, also those that nobody had asked for: their sizes are in the manifest's row now.
    let Some(here) = blobs.size(digest)? else { return Ok(None) };
    if size.parse() != Ok(here) {
        return Ok(None);
    }
    let row = Row::new(Kind::Blob, name, digest.as_str());
    let value = Value::Blob { size: here, fetched: false };
    Ok(Some(Found { row, value, content: Some((digest.clone(), here)) }))
}

/// Names and texts of the records in a directory; what a killed process did not finish is none.
fn files(directory: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with(".new-") {
            let text = std::fs::read_to_string(entry.path())
                .with_context(|| format!("failed to read {}", entry.path().display()))?;
            found.push((name, text));
        }
    }
    Ok(found)
}
