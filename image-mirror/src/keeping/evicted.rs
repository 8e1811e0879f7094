//! What goes and what stays when there is too much.

use orlop_types::Digest;

use super::properties::Subject;
use super::{Keeper, KeepingConfig};
use crate::records::{ManifestRow, Part, now_ms};
use crate::repositories::NewManifest;

/// Bytes of each blob.
const BLOB_BYTES: usize = 1000;

fn content(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(BLOB_BYTES, b'.');
    bytes
}

fn digest(name: &str) -> Digest {
    Digest::sha256(&content(name))
}

fn subject(quota_bytes: u64, pins: &[&str]) -> Subject {
    Subject::new(&KeepingConfig {
        quota_bytes,
        min_free_bytes: Some(0),
        keep_used_seconds: 0,
        pins: pins.iter().map(|pin| (*pin).to_owned()).collect(),
        ..KeepingConfig::default()
    })
}

/// The clock moves on, so that what was used before is older.
fn later() {
    let now = now_ms();
    while now_ms() == now {
        std::hint::spin_loop();
    }
}

/// Keeps blobs and a manifest that names them, all as large as each other.
async fn keep(subject: &Subject, name: &str, manifest: &str, parts: &[&str], fetched: bool) {
    let repositories = &subject.repositories;
    let part = |name: &&str| Part { digest: digest(name), size: BLOB_BYTES as u64 };
    for part in parts.iter().filter(|part| !part.starts_with("manifest")) {
        let staged = repositories.stage(&digest(part), &content(part)).unwrap();
        repositories.keep_blob(name, staged, fetched).await.unwrap();
    }
    let row = ManifestRow {
        media_type: "test".to_owned(),
        size: BLOB_BYTES as u64,
        fetched,
        subject: None,
        artifact_type: None,
        annotations: None,
        parts: parts.iter().map(part).collect(),
    };
    let staged = repositories.stage(&digest(manifest), &content(manifest)).unwrap();
    let tags = vec![manifest.to_owned()];
    let new = NewManifest { name: name.to_owned(), digest: digest(manifest), row, tags, staged };
    if fetched {
        repositories.fetch_manifest(new).await.unwrap();
    } else {
        repositories.push_manifest(new, Vec::new()).await.unwrap().unwrap();
    }
    later();
}

fn here(subject: &Subject, names: &[&str]) -> Vec<bool> {
    let files = subject.files();
    names.iter().map(|name| files.contains(&digest(name))).collect()
}

async fn room(keeper: &std::sync::Arc<Keeper>, more: u64) -> Option<String> {
    keeper.make_room(more).await.err().map(|error| format!("{} {}", error.code, error.message))
}

#[tokio::test]
async fn the_longest_unused_image_goes_first_and_shared_blobs_with_the_last() {
    let subject = subject(6500, &[]);
    let name = "docker.io/library/a";
    keep(&subject, name, "manifest 1", &["base", "one"], true).await;
    keep(&subject, name, "manifest 2", &["base", "two"], true).await;
    subject.keeper.pulled(&digest("manifest 1"));
    assert_eq!(room(&subject.keeper, 1000).await, None);
    let all = ["base", "one", "manifest 1", "two", "manifest 2"];
    assert_eq!(here(&subject, &all), [true; 5], "everything fits");
    later();
    assert_eq!(room(&subject.keeper, 2000).await, None);
    assert_eq!(here(&subject, &all), [true, true, true, false, false], "the other one was pulled last");
    assert_eq!(subject.repositories.tag(name, "manifest 2").unwrap(), None);
    assert_eq!(room(&subject.keeper, 6000).await, None);
    assert_eq!(here(&subject, &all), [false; 5]);
    assert!(!subject.repositories.exists(name).unwrap());
    let totals = subject.repositories.records.totals().unwrap();
    assert_eq!((totals.count, totals.bytes), (0, 0));
    assert!(room(&subject.keeper, 6501).await.unwrap().contains("keeping.quotaBytes"));
}

#[tokio::test]
async fn what_was_pushed_or_is_pinned_stays() {
    let subject = subject(8000, &["docker.io/library/pinned:manifest index"]);
    // A tag has no space; the pin is none then, which the configuration says.
    assert_eq!(
        KeepingConfig {
            pins: vec!["docker.io/library/pinned:manifest index".to_owned()],
            ..KeepingConfig::default()
        }
        .problems()
        .len(),
        1
    );
    keep(&subject, "team/app", "manifest pushed", &["pushed"], false).await;
    keep(&subject, "docker.io/library/a", "manifest 1", &["pushed", "one"], true).await;
    keep(&subject, "docker.io/library/b", "manifest 2", &["two"], true).await;
    assert_eq!(room(&subject.keeper, 6000).await, None);
    let all = ["pushed", "manifest pushed", "one", "manifest 1", "two", "manifest 2"];
    assert_eq!(here(&subject, &all), [true, true, false, false, false, false]);
    let refused = room(&subject.keeper, 6001).await.unwrap();
    assert!(refused.starts_with("DENIED the quota of 8000 bytes is full"), "{refused}");
    assert_eq!(subject.keeper.state()["lastRefusal"]["message"].as_str().map(str::is_empty), Some(false));
}

#[tokio::test]
async fn pins_keep_an_index_with_its_images_and_a_use_of_the_index_too() {
    let subject = subject(7500, &["docker.io/p/pinned:manifest-index", "registry.k8s.io/"]);
    keep(&subject, "docker.io/p/pinned", "manifest-amd64", &["one"], true).await;
    keep(&subject, "docker.io/p/pinned", "manifest-index", &["manifest-amd64"], true).await;
    keep(&subject, "registry.k8s.io/pause", "manifest-pause", &["pause"], true).await;
    keep(&subject, "docker.io/p/other", "manifest-other", &["other"], true).await;
    let all =
        ["one", "manifest-amd64", "manifest-index", "pause", "manifest-pause", "other", "manifest-other"];
    assert_eq!(here(&subject, &all), [true; 7]);
    assert_eq!(room(&subject.keeper, 1500).await, None);
    assert_eq!(here(&subject, &all), [true, true, true, true, true, false, false]);
    assert!(room(&subject.keeper, 3000).await.unwrap().starts_with("DENIED"));
}

#[tokio::test]
async fn a_disk_that_is_full_is_named() {
    let config = KeepingConfig { min_free_bytes: Some(u64::MAX), ..KeepingConfig::default() };
    let subject = Subject::new(&config);
    keep(&subject, "docker.io/library/a", "manifest 1", &["one"], true).await;
    let refused = room(&subject.keeper, 0).await.unwrap();
    assert!(refused.contains("are held back: free space"), "{refused}");
    assert_eq!(here(&subject, &["one"]), [true], "it was used a moment ago");
    let root = subject.blobs.ingest_dir();
    assert!(std::fs::read_dir(root).unwrap().next().is_none());
}
