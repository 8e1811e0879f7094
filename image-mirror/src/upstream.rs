//! What registries upstream say of manifests and tags. Only configured ones are asked.

use std::collections::BTreeMap;
use std::time::Duration;

use http::StatusCode;
use orlop_distribution::blobs::BlobStore;
use orlop_distribution::client::{
    ClientConfig, FetchedManifest, RegistryClient, RegistryError as ClientError,
};
use orlop_types::{Digest, Reference};

use crate::error::RegistryError;
use crate::flights::blocking;
use crate::repositories::{NewManifest, Repositories, manifest_row};

/// An upstream that does not answer is told to the client quickly: it has other hosts to ask.
const CONNECT: Duration = Duration::from_secs(3);
const FIRST_BYTE: Duration = Duration::from_secs(15);

/// The registries that are fetched from.
pub(crate) struct Upstream {
    client: RegistryClient,
    blobs: BlobStore,
    repositories: Repositories,
}

/// The client that asks them.
pub(crate) fn client(servers: BTreeMap<String, String>) -> RegistryClient {
    RegistryClient::new(ClientConfig {
        servers,
        connect_timeout: CONNECT,
        first_byte_timeout: FIRST_BYTE,
        retries: 1,
        ..ClientConfig::default()
    })
}

impl Upstream {
    pub(crate) fn new(client: RegistryClient, blobs: BlobStore, repositories: Repositories) -> Self {
        Self { client, blobs, repositories }
    }

    /// Fetches a manifest and keeps it, byte for byte, with the tag it was asked by.
    pub(crate) async fn manifest(
        &self,
        name: &str,
        reference: &Reference,
    ) -> Result<Digest, ClientErrorOrOurs> {
        let fetched = self.client.manifest(reference, None).await?;
        let digest = fetched.digest.clone();
        self.keep(name, reference.tag(), fetched).await?;
        Ok(digest)
    }

    async fn keep(
        &self,
        name: &str,
        tag: Option<&str>,
        fetched: FetchedManifest,
    ) -> Result<(), RegistryError> {
        let FetchedManifest { digest, media_type, bytes, manifest } = fetched;
        if let Some(tag) = tag
            && self.repositories.manifest(name, &digest)?.is_some()
            && self.blobs.size(&digest)?.is_some()
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
pub(crate) enum ClientErrorOrOurs {
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

/// What an upstream said, so that a client falls back to its next host.
pub(crate) fn refused(error: &ClientError, unknown: impl FnOnce() -> RegistryError) -> RegistryError {
    match error {
        // Registries answer so for repositories that do not exist, too.
        ClientError::NotFound { .. } | ClientError::Unauthorized { .. } => {
            tracing::debug!(%error, "the upstream does not have it");
            unknown()
        }
        ClientError::RateLimited { .. } => {
            RegistryError::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", error.to_string())
        }
        ClientError::Status { .. }
        | ClientError::NoHost { .. }
        | ClientError::Connect { .. }
        | ClientError::Timeout { .. }
        | ClientError::Cut { .. }
        | ClientError::Content { .. }
        | ClientError::Protocol { .. }
        | ClientError::Manifest(_)
        | ClientError::Hosts(_) => RegistryError::new(StatusCode::BAD_GATEWAY, "UNKNOWN", error.to_string()),
    }
}
