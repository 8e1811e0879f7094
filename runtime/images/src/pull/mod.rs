//! Fetching an image: manifest, configuration, layers.
//!
//! ```text
//!   manifest -> configuration -> layers, in parallel: download -> hash + write -> blob
//!                                                           \-> inflate + unpack -> staged layer
//!            -> in order, bottom first: fit onto the layers below, commit -> records
//! ```
//!
//! A pull that is asked for again while it runs is joined; it ends when the last one who waits goes away. Layers that two pulls
//! share are downloaded once. A layer that means something else on top of those below is unpacked again, in order.

mod feed;
mod layer;
mod progress;

pub use progress::PullProgress;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared};
use orlop_distribution::Credential;
use orlop_distribution::client::{ClientConfig, FetchedManifest, RegistryClient};
use orlop_distribution::manifest::{
    CONFIG_LIMIT, ConfigSummary, Descriptor, ImageManifest, Manifest, ManifestError, Platform, chain_ids,
    is_image_config,
};
use orlop_distribution::policy::Policy;
use orlop_types::{Digest, Reference};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::catalog::NameRecord;
use crate::layers::StagedLayer;
use crate::lease::Lease;
use crate::store::Inner;
use crate::unpack::Budget;
use crate::{Config, ImageError, ImageErrorKind, ImageRecord};
use layer::LayerPlan;
use progress::{Progress, Pulls};

/// Indexes may nest, but nobody nests deeper.
const DEPTH_LIMIT: usize = 4;

type Outcome = Result<ImageRecord, Arc<ImageError>>;
type Flight = Shared<BoxFuture<'static, Outcome>>;
type WeakFlight = WeakShared<BoxFuture<'static, Outcome>>;

/// What pulls share.
pub(crate) struct Puller {
    client: RegistryClient,
    downloads: Semaphore,
    flights: Mutex<HashMap<(String, Option<Credential>), WeakFlight>>,
    /// One per layer that is being fetched.
    locks: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
    pulls: Pulls,
    policy: Option<PathBuf>,
    image_bytes: u64,
}

impl Puller {
    pub(crate) fn new(config: &Config) -> Self {
        let client = ClientConfig {
            hosts_dir: config.hosts_dir.clone(),
            mirror: config.mirror.clone(),
            stall_timeout: Duration::from_secs(config.pull_progress_timeout_seconds.max(1)),
            ..ClientConfig::default()
        };
        Self {
            client: RegistryClient::new(client),
            downloads: Semaphore::new(config.max_concurrent_downloads.clamp(1, 64)),
            flights: Mutex::default(),
            locks: Mutex::default(),
            pulls: Pulls::default(),
            policy: config.signature_policy.clone(),
            image_bytes: config.max_unpacked_image_bytes,
        }
    }

    /// What runs now.
    pub(crate) fn progress(&self) -> Vec<PullProgress> {
        self.pulls.list()
    }

    /// Asks the policy file, which is read each time: it may change without a restart. A file that cannot be read refuses everything.
    fn check_policy(&self, reference: &Reference) -> Result<(), ImageError> {
        let Some(path) = &self.policy else { return Ok(()) };
        let refused =
            |reason: String| ImageError::Policy { image: reference.to_string(), path: path.clone(), reason };
        let text = std::fs::read_to_string(path).map_err(|error| refused(error.to_string()))?;
        let policy = Policy::parse(&text).map_err(|error| refused(error.to_string()))?;
        policy.check(reference).map_err(|error| refused(error.to_string()))
    }

    fn lock_of(&self, digest: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = locks.get(digest).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::default();
        locks.insert(digest.clone(), Arc::downgrade(&lock));
        lock
    }
}

/// Runs file work where blocking is allowed.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(ImageError::Interrupted(error.to_string())))
}

/// Joins a running pull of the same reference with the same credential, or starts one.
pub(crate) async fn pull(
    inner: &Arc<Inner>,
    reference: &Reference,
    credential: Option<Credential>,
) -> Result<ImageRecord, ImageError> {
    let flight = join_flight(inner, reference, credential);
    flight.await.map_err(|error| match Arc::try_unwrap(error) {
        Ok(error) => error,
        Err(shared) => ImageError::Joined(shared),
    })
}

fn join_flight(inner: &Arc<Inner>, reference: &Reference, credential: Option<Credential>) -> Flight {
    let key = (reference.to_string(), credential.clone());
    let mut flights = inner.puller.flights.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(flight) =
        flights.get(&key).and_then(WeakShared::upgrade).filter(|flight| flight.peek().is_none())
    {
        return flight;
    }
    flights.retain(|_, flight| flight.upgrade().is_some());
    let reference = reference.clone();
    let owner = Arc::clone(inner);
    let flight: Flight = async move {
        let started = std::time::Instant::now();
        let result = run(&owner, &reference, credential.as_ref()).await;
        if result.as_ref().is_err_and(|error| error.kind() == ImageErrorKind::NoSpace) {
            // Layers that came already are kept for the next attempt, unless others need the space.
            let owner = Arc::clone(&owner);
            let collected = blocking(move || owner.collect_garbage()).await;
            if let Err(error) = collected {
                tracing::warn!(%error, "space is not given back");
            }
        }
        let milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        match &result {
            Ok(image) => tracing::info!(image = %reference, id = %image.id, bytes = image.size, milliseconds, "image pulled"),
            Err(error) => tracing::debug!(image = %reference, %error, milliseconds, "image not pulled"),
        }
        if result.is_ok() {
            // Nobody waits for the disk. A kill before it is done costs nothing, a loss of power costs the unpacking.
            tokio::task::spawn_blocking(move || {
                if let Err(error) = owner.layers.settle() {
                    tracing::warn!(%error, "layers are not on disk yet");
                }
            });
        }
        result.map_err(Arc::new)
    }
    .boxed()
    .shared();
    if let Some(weak) = flight.downgrade() {
        flights.insert(key, weak);
    }
    flight
}

/// What the registry says about the image before any layer is fetched.
struct Resolved {
    target: Digest,
    indexes: Vec<Digest>,
    manifest_digest: Digest,
    manifest_size: u64,
    manifest: ImageManifest,
    config: ConfigSummary,
}

struct Pull<'a> {
    inner: &'a Arc<Inner>,
    lease: Arc<Lease>,
    reference: &'a Reference,
    credential: Option<&'a Credential>,
    progress: Progress<'a>,
    budget: Arc<Budget>,
    /// One layer failed: the others stop.
    cancelled: CancellationToken,
}

async fn run(
    inner: &Arc<Inner>,
    reference: &Reference,
    credential: Option<&Credential>,
) -> Result<ImageRecord, ImageError> {
    let (owner, wanted) = (Arc::clone(inner), reference.clone());
    let lease = blocking(move || {
        owner.puller.check_policy(&wanted)?;
        Lease::new(&owner.paths)
    });
    let pull = Pull {
        inner,
        lease: Arc::new(lease.await?),
        reference,
        credential,
        progress: inner.puller.pulls.begin(reference.to_string()),
        budget: Arc::new(Budget::new(inner.puller.image_bytes)),
        cancelled: CancellationToken::new(),
    };
    let resolved = pull.resolve().await?;
    let chain = chain_ids(&resolved.config.rootfs.diff_ids);
    let plans: Vec<LayerPlan> = resolved
        .manifest
        .layers
        .iter()
        .zip(&resolved.config.rootfs.diff_ids)
        .enumerate()
        .map(|(index, (layer, diff_id))| LayerPlan {
            layer: layer.clone(),
            diff_id: diff_id.clone(),
            chain: chain[..=index].to_vec(),
        })
        .collect();
    pull.progress.set_layers(plans.len());
    let staged = pull.fetch_layers(&plans).await?;
    let owner = Arc::clone(inner);
    let (lease, budget) = (Arc::clone(&pull.lease), Arc::clone(&pull.budget));
    let records = records(reference, &resolved, &chain);
    blocking(move || {
        for (plan, staged) in plans.iter().zip(staged) {
            owner.settle_layer(&lease, plan, staged, &budget)?;
        }
        owner.commit_records(&records)?;
        let id = resolved.manifest.config.digest.to_string();
        let found = owner.catalog.snapshot()?.images.get(&id).cloned();
        found.ok_or(ImageError::Unknown(id))
    })
    .await
}

impl Pull<'_> {
    fn failed(&self, source: impl Into<orlop_distribution::client::RegistryError>) -> ImageError {
        ImageError::Registry { reference: self.reference.to_string(), source: source.into() }
    }

    /// All layers at once. After a failure the others stop, and have stopped when this returns.
    async fn fetch_layers(&self, plans: &[LayerPlan]) -> Result<Vec<Option<StagedLayer>>, ImageError> {
        let first_error = Mutex::new(None);
        let fetches = plans.iter().map(|plan| async {
            let result = self.fetch_layer(plan).await;
            match result {
                Ok(staged) => {
                    self.progress.layer_done();
                    Some(staged)
                }
                Err(error) => {
                    self.cancelled.cancel();
                    first_error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    None
                }
            }
        });
        let fetched = futures::future::join_all(fetches).await;
        match first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(fetched.into_iter().flatten().collect()),
        }
    }

    /// Follows the reference down to this machine's manifest and its configuration; all documents are stored.
    async fn resolve(&self) -> Result<Resolved, ImageError> {
        let host = Platform::host();
        let mut fetched = self.fetch_manifest(self.reference).await?;
        let target = fetched.digest.clone();
        let mut indexes = Vec::new();
        for _ in 0..DEPTH_LIMIT {
            match fetched.manifest {
                Manifest::Index(index) => {
                    indexes.push(fetched.digest);
                    let chosen = index.choose(&host).map_err(|error| self.failed(error))?;
                    let (expected, chosen) = (chosen.size, self.reference.with_digest(chosen.digest.clone()));
                    fetched = self.fetch_manifest(&chosen).await?;
                    let actual = fetched.bytes.len();
                    if actual as u64 != expected {
                        let reason = format!("it has {actual} bytes, the index says {expected}");
                        return Err(self.failed(ManifestError::Malformed(reason)));
                    }
                }
                Manifest::Image(manifest) => {
                    if !is_image_config(&manifest.config.media_type) {
                        return Err(
                            self.failed(ManifestError::NotAnImage(manifest.config.media_type.clone()))
                        );
                    }
                    manifest.check_layers().map_err(|error| self.failed(error))?;
                    let config = self.fetch_config(&manifest, &host).await?;
                    return Ok(Resolved {
                        target,
                        indexes,
                        manifest_digest: fetched.digest,
                        manifest_size: fetched.bytes.len() as u64,
                        manifest: *manifest,
                        config,
                    });
                }
            }
        }
        Err(self.failed(ManifestError::Malformed("indexes are nested too deeply".to_owned())))
    }

    async fn fetch_manifest(&self, reference: &Reference) -> Result<FetchedManifest, ImageError> {
        let client = &self.inner.puller.client;
        let fetched =
            client.manifest(reference, self.credential).await.map_err(|error| self.failed(error))?;
        self.store(&fetched.digest, fetched.bytes.clone()).await?;
        Ok(fetched)
    }

    async fn store(&self, digest: &Digest, content: bytes::Bytes) -> Result<(), ImageError> {
        let (inner, lease, digest) = (Arc::clone(self.inner), Arc::clone(&self.lease), digest.clone());
        blocking(move || {
            lease.keep_blob(&digest)?;
            Ok(inner.blobs.put(lease.session(), &digest, &content)?)
        })
        .await
    }

    async fn fetch_config(
        &self,
        manifest: &ImageManifest,
        host: &Platform,
    ) -> Result<ConfigSummary, ImageError> {
        let descriptor = &manifest.config;
        if descriptor.size > CONFIG_LIMIT {
            let reason = format!("the image configuration has {} bytes", descriptor.size);
            return Err(self.failed(ManifestError::Malformed(reason)));
        }
        let content = self.fetch_small(descriptor).await?;
        let config = ConfigSummary::parse(&content, manifest, host).map_err(|error| self.failed(error))?;
        // Parsed in full now, so that nothing is stored that cannot be listed.
        let parsed = serde_json::from_slice::<oci_spec::image::ImageConfiguration>(&content);
        parsed.map_err(|error| {
            self.failed(ManifestError::Malformed(format!("image configuration: {error}")))
        })?;
        self.store(&descriptor.digest, content.into()).await?;
        Ok(config)
    }

    /// A blob that fits into memory, from the first host that gives the right content.
    async fn fetch_small(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        let mut skip = 0;
        loop {
            let client = &self.inner.puller.client;
            let download = client.download(self.reference, descriptor, self.credential, skip);
            let mut download = download.map_err(|error| self.failed(error))?;
            let mut content = Vec::new();
            while let Some(chunk) = download.chunk().await.map_err(|error| self.failed(error))? {
                content.extend_from_slice(&chunk);
            }
            match descriptor.digest.verify(&content) {
                Ok(()) => return Ok(content),
                Err(error) if download.host_index() + 1 < download.host_count() => {
                    tracing::warn!(host = download.host_name(), %error, "wrong content, the next host is asked");
                    skip = download.host_index() + 1;
                }
                Err(error) => {
                    return Err(self.failed(layer::wrong_content(&download, &descriptor.digest, &error)));
                }
            }
        }
    }
}

fn records(reference: &Reference, resolved: &Resolved, chain: &[Digest]) -> Vec<NameRecord> {
    let manifest = &resolved.manifest;
    let size = resolved.manifest_size + manifest.size().unwrap_or(0);
    let mut names = vec![reference.with_digest(resolved.target.clone()).to_string()];
    if reference.digest().is_none() {
        names.push(reference.to_string());
    }
    let record = |name| NameRecord {
        version: 1,
        name,
        target: resolved.target.clone(),
        indexes: resolved.indexes.clone(),
        manifest: resolved.manifest_digest.clone(),
        config: manifest.config.digest.clone(),
        layers: manifest.layers.iter().map(|layer| layer.digest.clone()).collect(),
        chain: chain.to_vec(),
        size,
        pinned: false,
    };
    names.into_iter().map(record).collect()
}
