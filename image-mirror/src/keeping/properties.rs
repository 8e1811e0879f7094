//! Records and garbage against a naive model: nothing that a row needs goes, nothing that nobody needs stays.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use orlop_distribution::blobs::{BlobStore, Durability};
use orlop_types::Digest;
use proptest::prelude::*;

use super::{Keeper, KeepingConfig, Mode};
use crate::records::{Kind, ManifestRow, Part, Records, Row, now_ms};
use crate::repositories::{NewManifest, Repositories};

const REPOSITORIES: [&str; 2] = ["a", "docker.io/b"];
const BLOBS: u8 = 4;
/// Blobs of each manifest.
const MANIFESTS: [&[u8]; 3] = [&[0, 1], &[1, 2], &[3]];

#[derive(Clone, Copy, Debug)]
enum Step {
    Blob { repository: usize, blob: u8, fetched: bool },
    Manifest { repository: usize, manifest: usize, fetched: bool },
    DeleteManifest { repository: usize, manifest: usize },
    DeleteBlob { repository: usize, blob: u8 },
    Head { blob: u8 },
    Pull { blob: u8 },
    Stray { blob: u8 },
    LeasesEnd,
    Collect,
}

fn step() -> impl Strategy<Value = Step> {
    let (repository, blob, manifest) = (0..REPOSITORIES.len(), 0..BLOBS, 0..MANIFESTS.len());
    prop_oneof![
        4 => (repository.clone(), blob.clone(), any::<bool>())
            .prop_map(|(repository, blob, fetched)| Step::Blob { repository, blob, fetched }),
        3 => (repository.clone(), manifest.clone(), any::<bool>())
            .prop_map(|(repository, manifest, fetched)| Step::Manifest { repository, manifest, fetched }),
        2 => (repository.clone(), manifest)
            .prop_map(|(repository, manifest)| Step::DeleteManifest { repository, manifest }),
        1 => (repository, blob.clone()).prop_map(|(repository, blob)| Step::DeleteBlob { repository, blob }),
        1 => blob.clone().prop_map(|blob| Step::Head { blob }),
        1 => blob.clone().prop_map(|blob| Step::Pull { blob }),
        1 => blob.prop_map(|blob| Step::Stray { blob }),
        3 => Just(Step::LeasesEnd),
        3 => Just(Step::Collect),
    ]
}

fn content(blob: u8) -> Vec<u8> {
    vec![blob; 10 + usize::from(blob)]
}

fn blob_digest(blob: u8) -> Digest {
    Digest::sha256(&content(blob))
}

fn manifest_bytes(manifest: usize) -> Vec<u8> {
    format!("manifest {manifest}").into_bytes()
}

/// Which rows and bytes there are; true while used since the leases last ended.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    blobs: BTreeMap<(usize, u8), (bool, bool)>,
    manifests: BTreeMap<(usize, usize), bool>,
    bytes: BTreeMap<Digest, bool>,
}

impl Model {
    fn names(&self, repository: usize, blob: u8) -> bool {
        self.manifests.keys().any(|(of, manifest)| *of == repository && MANIFESTS[*manifest].contains(&blob))
    }

    fn wants(&self, digest: &Digest) -> bool {
        self.blobs.keys().any(|(_, blob)| blob_digest(*blob) == *digest)
            || self
                .manifests
                .keys()
                .any(|(_, manifest)| Digest::sha256(&manifest_bytes(*manifest)) == *digest)
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Blob { repository, blob, fetched } => {
                self.bytes.insert(blob_digest(blob), true);
                match self.blobs.get_mut(&(repository, blob)) {
                    // What was pushed stays so, and a row that says the same is not stated again.
                    Some((was_fetched, _)) if *was_fetched == fetched || fetched => {}
                    _ => drop(self.blobs.insert((repository, blob), (fetched, true))),
                }
            }
            Step::Manifest { repository, manifest, fetched } => {
                let here = |blob: &u8| {
                    self.blobs.contains_key(&(repository, *blob))
                        && self.bytes.contains_key(&blob_digest(*blob))
                };
                if !fetched && !MANIFESTS[manifest].iter().all(here) {
                    return;
                }
                for blob in MANIFESTS[manifest].iter().filter(|_| !fetched) {
                    if let Some(row) =
                        self.blobs.get_mut(&(repository, *blob)).filter(|(fetched, _)| *fetched)
                    {
                        *row = (false, true);
                    }
                }
                self.manifests.insert((repository, manifest), true);
                self.bytes.insert(Digest::sha256(&manifest_bytes(manifest)), true);
            }
            Step::DeleteManifest { repository, manifest } => {
                self.manifests.remove(&(repository, manifest));
            }
            Step::DeleteBlob { repository, blob } => {
                self.blobs.remove(&(repository, blob));
            }
            Step::Head { blob } | Step::Pull { blob } => {
                if let Some(fresh) = self.bytes.get_mut(&blob_digest(blob)) {
                    *fresh = true;
                }
            }
            Step::Stray { blob } => {
                if self.blobs.keys().any(|(_, of)| *of == blob) {
                    // A row wants it: it is counted when it is found.
                    self.bytes.entry(blob_digest(blob)).or_insert(true);
                }
            }
            Step::LeasesEnd => {
                self.blobs.values_mut().for_each(|(_, fresh)| *fresh = false);
                self.bytes.values_mut().for_each(|fresh| *fresh = false);
            }
            Step::Collect => {
                let before = self.clone();
                self.blobs.retain(|(repository, blob), (_, fresh)| {
                    let used = before.bytes.get(&blob_digest(*blob)).is_some_and(|fresh| *fresh);
                    *fresh || used || before.names(*repository, *blob)
                });
                let rows = self.clone();
                self.bytes.retain(|digest, fresh| *fresh || rows.wants(digest));
            }
        }
    }
}

pub(super) struct Subject {
    pub(super) keeper: Arc<Keeper>,
    pub(super) repositories: Repositories,
    pub(super) blobs: BlobStore,
    leases_ended_ms: u64,
    _directory: tempfile::TempDir,
}

impl Subject {
    pub(super) fn new(config: &KeepingConfig) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let blobs = BlobStore::open(directory.path(), Durability::Caller).unwrap();
        let repositories =
            Repositories::open(Records::open(directory.path()).unwrap(), blobs.clone(), u64::MAX);
        let keeper =
            Arc::new(Keeper::open(directory.path(), config, Mode::Normal, repositories.clone()).unwrap());
        Self { keeper, repositories, blobs, leases_ended_ms: 0, _directory: directory }
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Blob { repository, blob, fetched } => {
                let staged = self.repositories.stage(&blob_digest(blob), &content(blob)).unwrap();
                self.repositories.keep_blob(REPOSITORIES[repository], staged, fetched).await.unwrap();
            }
            Step::Manifest { repository, manifest, fetched } => {
                self.manifest(REPOSITORIES[repository], manifest, fetched).await;
            }
            Step::DeleteManifest { repository, manifest } => {
                let digest = Digest::sha256(&manifest_bytes(manifest));
                self.repositories.remove_manifest(REPOSITORIES[repository], &digest).await.unwrap();
            }
            Step::DeleteBlob { repository, blob } => {
                let digest = blob_digest(blob);
                self.repositories.remove_blob(REPOSITORIES[repository], &digest).await.unwrap();
            }
            Step::Head { blob } => {
                let here = self.keeper.promised(&blob_digest(blob)).await;
                assert_eq!(here, self.files().contains(&blob_digest(blob)));
            }
            Step::Pull { blob } => self.keeper.pulled(&blob_digest(blob)),
            Step::Stray { blob } => {
                std::fs::write(self.blobs.path(&blob_digest(blob)), content(blob)).unwrap();
                self.keeper.collect_before(0, true).await.unwrap();
            }
            Step::LeasesEnd => {
                self.keeper.write_uses().await.unwrap();
                let ended_ms = now_ms() + 1;
                while now_ms() < ended_ms {
                    std::hint::spin_loop();
                }
                self.leases_ended_ms = ended_ms;
            }
            Step::Collect => {
                self.keeper.collect_before(self.leases_ended_ms, false).await.unwrap();
            }
        }
    }

    async fn manifest(&self, name: &str, manifest: usize, fetched: bool) {
        let bytes = manifest_bytes(manifest);
        let digest = Digest::sha256(&bytes);
        let needs: Vec<Digest> = MANIFESTS[manifest].iter().map(|blob| blob_digest(*blob)).collect();
        let row = ManifestRow {
            media_type: "test".to_owned(),
            size: bytes.len() as u64,
            fetched,
            subject: None,
            artifact_type: None,
            annotations: None,
            parts: needs.iter().map(|digest| Part { digest: digest.clone(), size: 1 }).collect(),
        };
        let staged = self.repositories.stage(&digest, &bytes).unwrap();
        let new = NewManifest { name: name.to_owned(), digest, row, tags: vec!["t".to_owned()], staged };
        if fetched {
            self.repositories.fetch_manifest(new).await.unwrap();
        } else {
            let _ = self.repositories.push_manifest(new, needs).await.unwrap();
        }
    }

    pub(super) fn files(&self) -> BTreeSet<Digest> {
        self.blobs.list().unwrap().into_iter().map(|(digest, _)| digest).collect()
    }

    /// The rows and bytes that are there, as the model names them, without their ages.
    fn check(&self, model: &Model) {
        assert_eq!(self.files(), model.bytes.keys().cloned().collect(), "files");
        let totals = self.repositories.records.totals().unwrap();
        let bytes = self.blobs.list().unwrap().iter().map(|(_, size)| size).sum::<u64>();
        assert_eq!((totals.count, totals.bytes), (model.bytes.len() as u64, bytes), "totals");
        for (repository, name) in REPOSITORIES.into_iter().enumerate() {
            for blob in 0..BLOBS {
                let row = Row::new(Kind::Blob, name, blob_digest(blob).as_str());
                let known = self.repositories.records.value(&row).unwrap().map(|value| value.is_fetched());
                let expected = model.blobs.get(&(repository, blob)).map(|(fetched, _)| *fetched);
                assert_eq!(known, expected, "blob {blob} of {name}");
            }
            for manifest in 0..MANIFESTS.len() {
                let digest = Digest::sha256(&manifest_bytes(manifest));
                let known = self.repositories.manifest(name, &digest).unwrap().is_some();
                assert_eq!(
                    known,
                    model.manifests.contains_key(&(repository, manifest)),
                    "manifest of {name}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
    #[test]
    fn garbage_goes_and_nothing_else(steps in proptest::collection::vec(step(), 1..30)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let config = KeepingConfig { upload_lease_seconds: 0, ..KeepingConfig::default() };
            let (mut subject, mut model) = (Subject::new(&config), Model::default());
            for step in steps {
                subject.step(step).await;
                model.step(step);
                subject.check(&model);
            }
        });
    }
}
