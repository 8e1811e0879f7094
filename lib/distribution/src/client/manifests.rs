use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method};
use orlop_types::{Digest, Reference};

use super::error::RegistryError;
use super::hosts::Host;
use super::transport::{Call, failure, read_body};
use super::{RegistryClient, pause};
use crate::Credential;
use crate::manifest::{self, MANIFEST_LIMIT, Manifest};

/// A manifest as a registry gave it, verified.
#[derive(Clone, Debug)]
pub struct FetchedManifest {
    /// Digest of the bytes.
    pub digest: Digest,
    /// Media type as stated in the document or by its shape.
    pub media_type: String,
    /// The document; its bytes must be kept as they are.
    pub bytes: Bytes,
    /// The document, parsed.
    pub manifest: Manifest,
}

impl RegistryClient {
    /// Fetches the manifest or index that a reference names: by digest where it has one, else by tag.
    ///
    /// # Errors
    /// What the last host said, or the first error that no other host can change.
    pub async fn manifest(
        &self,
        reference: &Reference,
        credential: Option<&Credential>,
    ) -> Result<FetchedManifest, RegistryError> {
        let hosts = self.hosts(reference)?;
        let by_tag = reference.digest().is_none();
        let usable = hosts.iter().filter(|host| if by_tag { host.can_resolve } else { host.can_pull });
        let mut told: Option<RegistryError> = None;
        for host in usable {
            match self.manifest_from(host, reference, credential).await {
                Ok(manifest) => return Ok(manifest),
                Err(error) => {
                    tracing::debug!(host = %host.authority, reference = %reference, %error, "no manifest from this host");
                    // "not found" by the registry says more than a mirror that is down, and the registry comes last.
                    told = Some(error);
                }
            }
        }
        let capability = if by_tag { "resolve" } else { "pull" };
        Err(told.unwrap_or_else(|| RegistryError::NoHost {
            registry: reference.registry().to_owned(),
            capability,
        }))
    }

    async fn manifest_from(
        &self,
        host: &Host,
        reference: &Reference,
        credential: Option<&Credential>,
    ) -> Result<FetchedManifest, RegistryError> {
        let mut attempt = 0;
        loop {
            match self.manifest_once(host, reference, credential).await {
                Err(error) if error.may_retry() && attempt < self.retries(host) => {
                    attempt += 1;
                    pause(attempt, error.retry_after()).await;
                }
                result => return result,
            }
        }
    }

    /// A mirror gets no second chance: the next host is quicker.
    pub(super) fn retries(&self, host: &Host) -> u32 {
        if host.is_own || host.is_last { self.inner.config.retries } else { 0 }
    }

    async fn manifest_once(
        &self,
        host: &Host,
        reference: &Reference,
        credential: Option<&Credential>,
    ) -> Result<FetchedManifest, RegistryError> {
        let path = format!("{}/manifests/{}", reference.repository(), reference.identifier());
        let mut call = self.call(host, Method::GET, &path);
        call.headers.insert(ACCEPT, HeaderValue::from_static(manifest::ACCEPT));
        let response = self.send_authorized(call, reference.repository(), credential).await?;
        let stall = self.inner.config.stall_timeout;
        if !response.status().is_success() {
            return Err(failure(&host.authority, &reference.to_string(), response, stall).await);
        }
        let text = |name: &str| {
            response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        let announced = text("docker-content-digest");
        let media_type = text(CONTENT_TYPE.as_str());
        let limit = usize::try_from(MANIFEST_LIMIT).unwrap_or(usize::MAX);
        let bytes = Bytes::from(read_body(&host.authority, response, limit, stall).await?);
        let digest = verify(host, reference, announced.as_deref(), &bytes)?;
        // Parameters such as a charset are not part of the type.
        let media_type = media_type.as_deref().and_then(|text| text.split(';').next()).map(str::trim);
        let manifest = Manifest::parse(&bytes, media_type)?;
        Ok(FetchedManifest { digest, media_type: manifest.media_type().to_owned(), bytes, manifest })
    }

    pub(super) fn call<'a>(&self, host: &'a Host, method: Method, path: &str) -> Call<'a> {
        let url = match &host.namespace {
            Some(namespace) => format!("{}/{path}?ns={namespace}", host.url),
            None => format!("{}/{path}", host.url),
        };
        let connect_timeout: Duration = host.dial_timeout.unwrap_or(self.inner.config.connect_timeout);
        Call { host, method, url, headers: HeaderMap::new(), body: Bytes::new(), connect_timeout }
    }
}

/// By digest the content must be that; by tag it must be what the registry announced.
fn verify(
    host: &Host,
    reference: &Reference,
    announced: Option<&str>,
    bytes: &[u8],
) -> Result<Digest, RegistryError> {
    let announced = announced.and_then(|text| text.parse::<Digest>().ok());
    let expected = reference.digest().cloned().or(announced);
    let Some(expected) = expected else { return Ok(Digest::sha256(bytes)) };
    match expected.verify(bytes) {
        Ok(()) => Ok(expected),
        Err(error) => Err(RegistryError::Content {
            host: host.authority.clone(),
            digest: expected,
            reason: error.to_string(),
        }),
    }
}
