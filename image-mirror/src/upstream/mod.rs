//! What registries upstream say of manifests and tags. Only configured ones are asked.
//!
//! ```text
//!   tag --fresh?--> as it is here                    (hit)
//!       --HEAD--> the same digest                    (revalidated)
//!              \-> another one --GET--> kept         (miss)
//!              \-> no answer, or too late --> as it was last seen (stale); nothing here --> the error
//! ```
//!
//! What is here by digest, and a tag that was pushed, are not asked for. However many clients want the same at the same time, one request
//! is made, and it goes on when they leave.

mod asks;
mod config;
mod hosts;
mod lists;
mod memory;
mod seen;

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use orlop_daemon::prometheus_client::registry::Registry as Metrics;
use orlop_distribution::blobs::BlobStore;
use orlop_distribution::client::{
    ClientConfig, FetchedManifest, RegistryClient, RegistryError as ClientError,
};
use orlop_distribution::manifest::Descriptor;
use orlop_types::{Digest, Reference};

use crate::config::Config;
use crate::error::RegistryError;
use crate::flights::blocking;
use crate::repositories::{NewManifest, Repositories, manifest_row};

use asks::{Asks, Unasked};
pub(crate) use config::problems;
pub use config::{UpstreamCredential, UpstreamListener, UpstreamTimeouts};
use hosts::Hosts;
use lists::Lists;
use memory::{Memory, Said};
pub(crate) use seen::{Seen, Source};

/// Who has the tag as it was last seen waits no longer for news; the question goes on.
const PATIENCE: Duration = Duration::from_secs(5);

/// Silences in a row after which an upstream is left alone for a while.
const REST_AFTER: u32 = 3;

/// The registries that are fetched from.
#[derive(Clone)]
pub(crate) struct Upstream {
    client: RegistryClient,
    blobs: BlobStore,
    repositories: Repositories,
    memory: Arc<Memory>,
    asks: Arc<Asks<Result<(Digest, Source), ClientErrorOrOurs>>>,
    tags: Arc<Lists<String>>,
    referrers: Arc<Lists<Descriptor>>,
    hosts: Hosts,
    pub(crate) seen: Seen,
}

/// The client that asks them.
pub(crate) fn client(config: &Config) -> RegistryClient {
    let timeouts = &config.upstream_timeouts;
    RegistryClient::new(ClientConfig {
        servers: config.upstreams.clone(),
        hosts_dir: config.hosts_directory.clone(),
        credentials: config.credential_sources(),
        connect_timeout: Duration::from_secs(timeouts.connect_seconds),
        first_byte_timeout: Duration::from_secs(timeouts.first_byte_seconds),
        stall_timeout: Duration::from_secs(timeouts.stall_seconds),
        retries: 1,
        rest_after: REST_AFTER,
        ..ClientConfig::default()
    })
}

impl Upstream {
    pub(crate) fn new(
        config: &Config,
        client: RegistryClient,
        blobs: BlobStore,
        repositories: Repositories,
    ) -> Self {
        let memory = Memory::new(
            Duration::from_secs(config.tag_freshness_seconds),
            Duration::from_secs(config.negative_cache_seconds),
        );
        let (memory, asks, seen) = (Arc::new(memory), Arc::default(), Seen::default());
        let freshness = Duration::from_secs(config.tag_freshness_seconds);
        let (tags, referrers) = (Arc::new(Lists::new(freshness)), Arc::new(Lists::new(freshness)));
        let hosts = Hosts::new(config, client.clone());
        Self { client, blobs, repositories, memory, asks, tags, referrers, hosts, seen }
    }

    pub(crate) fn register(&self, metrics: &mut Metrics) {
        self.seen.register(metrics);
        metrics.register_collector(Box::new(self.hosts.clone()));
    }

    /// For the dump.
    pub(crate) fn state(&self) -> serde_json::Value {
        self.hosts.state()
    }

    /// What a tag or digest names; `here` is what a fetched tag named when it was last seen. An upstream that does not answer, or has
    /// deleted the tag, does not take away what is here.
    pub(crate) async fn manifest(
        &self,
        name: &str,
        reference: &Reference,
        here: Option<Digest>,
    ) -> Result<(Digest, Source), RegistryError> {
        let what = reference.to_string();
        let said = match (self.memory.recall(&what, Instant::now()), &here) {
            (Some(Said::Is(digest)), Some(here)) if digest == *here => Ok((digest, Source::Hit)),
            (Some(Said::Refused(error)), _) => Err(ClientErrorOrOurs::Upstream(error)),
            (Some(Said::Is(_)) | None, _) => self.ask(&what, name, reference, here.clone()).await,
        };
        let unknown = || RegistryError::manifest_unknown(reference.identifier());
        let found = match (said, here) {
            (Ok(found), _) => found,
            (Err(ClientErrorOrOurs::Ours(error)), _) => return Err(error),
            (Err(ClientErrorOrOurs::Upstream(error)), Some(digest)) => {
                tracing::info!(%reference, %error, "served as it was last seen");
                (digest, Source::Stale)
            }
            (Err(ClientErrorOrOurs::Upstream(error)), None) => return Err(refused(&error, unknown)),
        };
        self.seen.manifest(reference.registry(), found.1);
        Ok(found)
    }

    async fn ask(
        &self,
        what: &str,
        name: &str,
        reference: &Reference,
        here: Option<Digest>,
    ) -> Result<(Digest, Source), ClientErrorOrOurs> {
        let (this, owned) = (self.clone(), (name.to_owned(), reference.clone(), here.clone()));
        let answer = self.asks.once(what, move || async move {
            let (name, reference, here) = owned;
            this.find(&name, &reference, here).await
        });
        let answer = match here {
            None => answer.await,
            Some(digest) => match tokio::time::timeout(PATIENCE, answer).await {
                Ok(answer) => answer,
                Err(_) => return Ok((digest, Source::Stale)),
            },
        };
        answer.unwrap_or_else(|unasked| {
            let message = match unasked {
                Unasked::Busy => "too many manifests are asked for at the same time: try again later",
                Unasked::Failed => "the question was given up: try again",
            };
            Err(RegistryError::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", message).into())
        })
    }

    /// The size of a blob; what the upstream does not have is not asked for again for a while.
    pub(crate) async fn blob_size(&self, reference: &Reference, digest: &Digest) -> Result<u64, ClientError> {
        let what = format!("blob {reference}");
        if let Some(Said::Refused(error)) = self.memory.recall(&what, Instant::now()) {
            return Err(error);
        }
        let size = self.client.blob_size(reference, digest, None).await;
        if let Err(error) = &size
            && is_missing(error)
        {
            self.memory.note(&what, Said::Refused(error.clone()), Instant::now());
        }
        size
    }

    /// The tags that the upstream has, as far as it says.
    pub(crate) async fn tags(&self, repository: &Reference) -> Option<Result<Arc<Vec<String>>, ClientError>> {
        let (client, asked) = (self.client.clone(), repository.clone());
        self.tags.get(&repository.name(), move || async move { client.tags(&asked, None).await }).await
    }

    /// What refers to a manifest upstream, as far as it says.
    pub(crate) async fn referrers(&self, subject: &Reference) -> Vec<Descriptor> {
        let Some(digest) = subject.digest().cloned() else { return Vec::new() };
        let (client, asked) = (self.client.clone(), subject.clone());
        let ask = move || async move { client.referrers(&asked, &digest, None).await };
        match self.referrers.get(&subject.to_string(), ask).await {
            Some(Ok(list)) => list.to_vec(),
            Some(Err(error)) => {
                tracing::debug!(%subject, %error, "only the referrers that are here");
                Vec::new()
            }
            None => Vec::new(),
        }
    }

    /// Asks, and remembers the answer.
    async fn find(
        &self,
        name: &str,
        reference: &Reference,
        here: Option<Digest>,
    ) -> Result<(Digest, Source), ClientErrorOrOurs> {
        let has_copy = here.is_some();
        let found = self.revalidate_or_fetch(name, reference, here).await;
        let said = match &found {
            Ok((digest, _)) => Some(Said::Is(digest.clone())).filter(|_| reference.digest().is_none()),
            // Without a copy here, an error that may pass is worth asking again.
            Err(ClientErrorOrOurs::Upstream(error)) => {
                Some(Said::Refused(error.clone())).filter(|_| has_copy || is_missing(error))
            }
            Err(ClientErrorOrOurs::Ours(_)) => None,
        };
        if let Some(said) = said {
            self.memory.note(&reference.to_string(), said, Instant::now());
        }
        found
    }

    async fn revalidate_or_fetch(
        &self,
        name: &str,
        reference: &Reference,
        here: Option<Digest>,
    ) -> Result<(Digest, Source), ClientErrorOrOurs> {
        if let (Some(tag), Some(here)) = (reference.tag(), here) {
            // HEAD does not count against Docker Hub's limit of pulls.
            match self.client.manifest_digest(reference, None).await {
                Ok(Some(digest)) if digest == here => return Ok((digest, Source::Revalidated)),
                Ok(Some(digest)) if self.is_here(name, &digest)? => {
                    self.repositories
                        .set_fetched_tag(name, tag, &digest)
                        .await
                        .map_err(RegistryError::from)?;
                    return Ok((digest, Source::Miss));
                }
                Ok(_) => {}
                Err(ClientError::Status { status: 400..500, .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let fetched = self.client.manifest(reference, None).await?;
        let digest = fetched.digest.clone();
        self.keep(name, reference.tag(), fetched).await?;
        Ok((digest, Source::Miss))
    }

    /// Whether a repository has a manifest, whole.
    pub(crate) fn is_here(&self, name: &str, digest: &Digest) -> Result<bool, RegistryError> {
        Ok(self.repositories.manifest(name, digest)?.is_some() && self.blobs.size(digest)?.is_some())
    }

    /// Keeps a manifest with the tag that it was asked by.
    pub(crate) async fn keep(
        &self,
        name: &str,
        tag: Option<&str>,
        fetched: FetchedManifest,
    ) -> Result<(), RegistryError> {
        let FetchedManifest { digest, media_type, bytes, manifest } = fetched;
        if let Some(tag) = tag
            && self.is_here(name, &digest)?
        {
            return Ok(self.repositories.set_fetched_tag(name, tag, &digest).await?);
        }
        let row = manifest_row(&manifest, &media_type, bytes.len() as u64, true);
        let (repositories, staging) = (self.repositories.clone(), digest.clone());
        let staged = blocking(move || repositories.stage(&staging, &bytes)).await?;
        let tags = tag.into_iter().map(str::to_owned).collect();
        let new = NewManifest { name: name.to_owned(), digest, row, tags, staged };
        Ok(self.repositories.fetch_manifest(new).await?)
    }
}

/// The upstream's error apart from ours: a tag that is here already is served in spite of the first.
#[derive(Clone)]
enum ClientErrorOrOurs {
    Upstream(ClientError),
    Ours(RegistryError),
}

impl From<ClientError> for ClientErrorOrOurs {
    fn from(error: ClientError) -> Self {
        ClientErrorOrOurs::Upstream(error)
    }
}

impl From<RegistryError> for ClientErrorOrOurs {
    fn from(error: RegistryError) -> Self {
        ClientErrorOrOurs::Ours(error)
    }
}

/// Registries answer so for repositories that do not exist, too.
fn is_missing(error: &ClientError) -> bool {
    matches!(error, ClientError::NotFound { .. } | ClientError::Unauthorized { .. })
}

/// What an upstream said, so that a client falls back to its next host.
pub(crate) fn refused(error: &ClientError, unknown: impl FnOnce() -> RegistryError) -> RegistryError {
    let refusal = match error {
        ClientError::NotFound { .. } | ClientError::Unauthorized { .. } => {
            tracing::debug!(%error, "the upstream does not have it");
            unknown()
        }
        ClientError::RateLimited { .. } | ClientError::Resting { limited: true, .. } => {
            RegistryError::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", error.to_string())
        }
        ClientError::Resting { limited: false, .. } => {
            RegistryError::new(StatusCode::SERVICE_UNAVAILABLE, "UNKNOWN", error.to_string())
        }
        ClientError::Timeout { .. } => {
            RegistryError::new(StatusCode::GATEWAY_TIMEOUT, "UNKNOWN", error.to_string())
        }
        ClientError::Status { .. }
        | ClientError::NoHost { .. }
        | ClientError::Connect { .. }
        | ClientError::Cut { .. }
        | ClientError::Content { .. }
        | ClientError::Protocol { .. }
        | ClientError::Manifest(_)
        | ClientError::Hosts(_) => RegistryError::new(StatusCode::BAD_GATEWAY, "UNKNOWN", error.to_string()),
    };
    RegistryError { retry_after: error.retry_after(), ..refusal }
}
