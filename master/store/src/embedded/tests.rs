use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use redb::StorageBackend;
use redb::backends::FileBackend;

use super::*;
use crate::{At, Cache, Condition, Encoded, Meta, PageRequest};

fn object(text: &str) -> (Encoded, Arc<Meta>) {
    let bytes = format!(r#"{{"rv":"","text":"{text}"}}"#);
    (Encoded { bytes: Bytes::from(bytes), revision_at: 7 }, Arc::new(Meta::default()))
}

fn write(key: &str, condition: Condition, text: Option<&str>) -> Write {
    Write { key: Arc::from(key), condition, object: text.map(object) }
}

fn cache() -> Arc<Cache> {
    Cache::new(["/registry/a/".to_owned(), "/registry/b/".to_owned()], |_, _| Meta::default())
}

fn everything(cache: &Cache, prefix: &str, at: At) -> Vec<(String, Bytes)> {
    let request = PageRequest { at, prefix, start: "", limit: 0, matches: &|_| true };
    let page = cache.list(&request).unwrap();
    page.entries.iter().map(|entry| (entry.key.to_string(), entry.bytes.clone())).collect()
}

#[tokio::test]
async fn the_file_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    std::fs::write(&path, "").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let _store = EmbeddedStore::open(&path).await.unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn conditions_hold_and_revisions_grow_over_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = EmbeddedStore::open(&path).await.unwrap();
    let created = store.write(write("/registry/a/x", Condition::Absent, Some("1"))).await.unwrap();
    let again = store.write(write("/registry/a/x", Condition::Absent, Some("1"))).await;
    assert_eq!(again, Err(StoreError::Exists { key: "/registry/a/x".into() }));
    let updated = store.write(write("/registry/a/x", Condition::At(created), Some("2"))).await.unwrap();
    assert!(updated > created);
    let stale = store.write(write("/registry/a/x", Condition::At(created), Some("3"))).await;
    assert_eq!(
        stale,
        Err(StoreError::Conflict { key: "/registry/a/x".into(), expected: created, current: updated })
    );
    let gone = store.write(write("/registry/a/y", Condition::At(1), None)).await;
    assert_eq!(gone, Err(StoreError::NotFound { key: "/registry/a/y".into() }));
    let record = store.get("/registry/a/x").await.unwrap().unwrap();
    assert_eq!((record.create_revision, record.mod_revision), (created, updated));
    let deleted = store.write(write("/registry/a/x", Condition::At(updated), None)).await.unwrap();
    drop(store);
    let store = reopen(&path).await;
    let later = store.write(write("/registry/a/x", Condition::Absent, Some("4"))).await.unwrap();
    assert!(later > deleted, "a revision must never be used twice, also not that of a deletion");
}

async fn reopen(path: &Path) -> EmbeddedStore {
    for _ in 0..100 {
        // The old writer thread ends a moment after the last handle is dropped.
        match EmbeddedStore::open(path).await {
            Ok(store) => return store,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    panic!("the store stays locked");
}

#[tokio::test]
async fn a_file_that_is_no_store_is_refused_with_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    std::fs::write(&path, "this is no store, and long enough to be looked at".repeat(100)).unwrap();
    let error = EmbeddedStore::open(&path).await.unwrap_err().to_string();
    assert!(error.contains(&path.display().to_string()), "{error}");
}

#[tokio::test]
async fn concurrent_writers_get_distinct_revisions_and_read_their_writes() {
    let directory = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&directory.path().join("store")).await.unwrap();
    let cache = cache();
    store.follow("/registry/", cache.sink()).await.unwrap();
    let tasks: Vec<_> = (0..64)
        .map(|number| {
            let (store, cache) = (store.clone(), cache.clone());
            tokio::spawn(async move {
                let key = format!("/registry/a/{number}");
                let revision = store.write(write(&key, Condition::Absent, Some("x"))).await.unwrap();
                assert_eq!(cache.get(&key).unwrap().mod_revision, revision);
                revision
            })
        })
        .collect();
    let mut revisions = Vec::new();
    for task in tasks {
        revisions.push(task.await.unwrap());
    }
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len(), 64);
    assert_eq!(cache.revision(), *revisions.last().unwrap());
}

/// A file on a disk that can be full.
#[derive(Debug)]
struct FullDisk {
    file: FileBackend,
    full: Arc<AtomicBool>,
}

impl FullDisk {
    fn check(&self) -> Result<(), std::io::Error> {
        if self.full.load(Ordering::SeqCst) {
            return Err(std::io::Error::from(std::io::ErrorKind::StorageFull));
        }
        Ok(())
    }
}

impl StorageBackend for FullDisk {
    fn len(&self) -> Result<u64, std::io::Error> {
        self.file.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), std::io::Error> {
        self.file.read(offset, out)
    }
    fn set_len(&self, len: u64) -> Result<(), std::io::Error> {
        self.check()?;
        self.file.set_len(len)
    }
    fn sync_data(&self) -> Result<(), std::io::Error> {
        self.check()?;
        self.file.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), std::io::Error> {
        self.check()?;
        self.file.write(offset, data)
    }
    fn close(&self) -> Result<(), std::io::Error> {
        self.file.close()
    }
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, redb::BackendError> {
        self.file.try_lock_range(start, end)
    }
}

#[tokio::test]
async fn a_full_disk_refuses_writes_keeps_reads_and_heals() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let full = Arc::new(AtomicBool::new(false));
    let opener = {
        let (path, full) = (path.clone(), full.clone());
        Opener::custom(&path.clone(), move |builder| {
            let file = std::fs::OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)?;
            builder.create_with_backend(FullDisk { file: FileBackend::new(file)?, full: full.clone() })
        })
    };
    let store = EmbeddedStore::open_with(opener).await.unwrap();
    let cache = cache();
    store.follow("/registry/", cache.sink()).await.unwrap();
    let first = store.write(write("/registry/a/x", Condition::Absent, Some("1"))).await.unwrap();
    full.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        let refused = store.write(write("/registry/a/y", Condition::Absent, Some("2"))).await;
        assert!(matches!(refused, Err(StoreError::NoSpace { .. })), "{refused:?}");
        assert_eq!(everything(&cache, "/registry/a/", At::Now).len(), 1, "reads go on");
    }
    full.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(600)).await;
    let next = store.write(write("/registry/a/y", Condition::Absent, Some("2"))).await.unwrap();
    assert!(next > first);
    assert_eq!(everything(&cache, "/registry/a/", At::Now).len(), 2);
    drop(store);
    let store = reopen(&path).await;
    assert!(store.get("/registry/a/x").await.unwrap().is_some(), "nothing is lost");
}

#[derive(Clone, Debug)]
enum Step {
    Put { key: usize, text: u8, stale: bool },
    Delete { key: usize },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..6usize, any::<u8>(), any::<bool>()).prop_map(|(key, text, stale)| Step::Put { key, text, stale }),
        3 => (0..6usize).prop_map(|key| Step::Delete { key }),
        1 => Just(Step::Restart),
    ]
}

/// What a store is, without any of its machinery.
#[derive(Default)]
struct Naive {
    objects: BTreeMap<String, (u64, u64, String)>,
    states: BTreeMap<u64, Vec<(String, Bytes)>>,
}

impl Naive {
    fn listed(&self) -> Vec<(String, Bytes)> {
        self.objects
            .iter()
            .map(|(key, (_, revision, text))| (key.clone(), object(text).0.at(*revision)))
            .collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn the_store_and_its_cache_equal_the_naive_model(steps in proptest::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(check_against_model(steps));
    }
}

async fn check_against_model(steps: Vec<Step>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let mut store = EmbeddedStore::open(&path).await.unwrap();
    let mut cache = cache();
    let mut oldest = store.follow("/registry/", cache.sink()).await.unwrap();
    let mut naive = Naive::default();
    naive.states.insert(oldest, Vec::new());
    let mut last = oldest;
    let mut seen = cache.watch("/registry/a/", None, Arc::new(|_| true)).unwrap();
    let mut events = 0;
    for step in steps {
        match step {
            Step::Put { key, text, stale } => {
                let key = format!("/registry/a/{key}");
                let text = text.to_string();
                let current = naive.objects.get(&key).cloned();
                let condition = match (&current, stale) {
                    (None, _) => Condition::Absent,
                    (Some((_, revision, _)), false) => Condition::At(*revision),
                    (Some((_, revision, _)), true) => Condition::At(revision - 1),
                };
                let outcome = store.write(write(&key, condition, Some(&text))).await;
                if current.is_some() && stale {
                    assert!(matches!(outcome, Err(StoreError::Conflict { .. })), "{outcome:?}");
                    continue;
                }
                let revision = outcome.unwrap();
                assert_eq!(revision, last + 1);
                let created = current.map_or(revision, |(created, _, _)| created);
                naive.objects.insert(key, (created, revision, text));
                last = revision;
                events += 1;
            }
            Step::Delete { key } => {
                let key = format!("/registry/a/{key}");
                let Some((_, revision, _)) = naive.objects.remove(&key) else {
                    continue;
                };
                last = store.write(write(&key, Condition::At(revision), None)).await.unwrap();
                events += 1;
            }
            Step::Restart => {
                drop(store);
                store = reopen(&path).await;
                cache = self::cache();
                oldest = store.follow("/registry/", cache.sink()).await.unwrap();
                assert_eq!(oldest, last);
                seen = cache.watch("/registry/a/", None, Arc::new(|_| true)).unwrap();
                events = 0;
            }
        }
        naive.states.insert(last, naive.listed());
        assert_eq!(everything(&cache, "/registry/a/", At::Now), naive.listed());
    }
    for (revision, state) in &naive.states {
        if *revision >= oldest {
            assert_eq!(&everything(&cache, "/registry/a/", At::Revision(*revision)), state, "at {revision}");
        } else {
            let request = PageRequest {
                at: At::Revision(*revision),
                prefix: "/registry/a/",
                start: "",
                limit: 0,
                matches: &|_| true,
            };
            assert!(cache.list(&request).is_err(), "{revision} is before the restart");
        }
    }
    let mut delivered = 0;
    let mut revision = oldest;
    while let Ok(change) = seen.changes.try_recv() {
        assert!(change.revision() > revision);
        revision = change.revision();
        delivered += 1;
    }
    assert_eq!(delivered, events);
}

/// Written to disk before each acknowledged key is printed by the child of the test below.
#[test]
fn acknowledged_writes_survive_kill_9() {
    if let Ok(path) = std::env::var("ORLOP_STORE_KILL_TEST") {
        write_until_killed(Path::new(&path));
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let mut acknowledged = 0;
    for _ in 0..3 {
        acknowledged = kill_writer(&path, acknowledged);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let store = EmbeddedStore::open(&path).await.unwrap();
            let cache = cache();
            store.follow("/registry/", cache.sink()).await.unwrap();
            let stored = everything(&cache, "/registry/a/", At::Now).len();
            assert!(stored >= acknowledged, "{stored} stored, {acknowledged} acknowledged");
            acknowledged = stored;
        });
    }
}

fn write_until_killed(path: &Path) -> ! {
    use std::io::Write as _;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = EmbeddedStore::open(path).await.unwrap();
        let first = store.write(write("/registry/b/start", Condition::Absent, Some("x"))).await;
        let _ = first;
        let cache = cache();
        store.follow("/registry/", cache.sink()).await.unwrap();
        let count = everything(&cache, "/registry/a/", At::Now).len();
        for number in count.. {
            let key = format!("/registry/a/{number:08}");
            store.write(write(&key, Condition::Absent, Some("x"))).await.unwrap();
            let mut out = std::io::stderr().lock();
            let _ = writeln!(out, "ACK {}", number + 1);
        }
    });
    unreachable!("the loop has no end")
}

fn kill_writer(path: &Path, before: usize) -> usize {
    use std::io::BufRead as _;
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "embedded::tests::acknowledged_writes_survive_kill_9", "--nocapture"])
        .env("ORLOP_STORE_KILL_TEST", path)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = Mutex::new(std::io::BufReader::new(child.stderr.take().unwrap()).lines());
    let mut acknowledged = before;
    for line in lines.lock().unwrap().by_ref() {
        if let Some(number) = line.unwrap().strip_prefix("ACK ") {
            acknowledged = number.parse().unwrap();
            if acknowledged >= before + 50 {
                break;
            }
        }
    }
    child.kill().unwrap();
    // What was acknowledged between the break and the kill counts too.
    for line in lines.lock().unwrap().by_ref().map_while(Result::ok) {
        if let Some(number) = line.strip_prefix("ACK ") {
            acknowledged = number.parse().unwrap_or(acknowledged);
        }
    }
    child.wait().unwrap();
    acknowledged
}
