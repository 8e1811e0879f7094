use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Response};
use hyper::body::Incoming;
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
        self.of_hosts(reference, |host| async move { self.manifest_once(&host, reference, credential).await })
            .await
    }

    /// Asks for the digest of what a tag names, without fetching it; none when the registry does not say it.
    ///
    /// # Errors
    /// As [`RegistryClient::manifest`].
    pub async fn manifest_digest(
        &self,
        reference: &Reference,
        credential: Option<&Credential>,
    ) -> Result<Option<Digest>, RegistryError> {
        self.of_hosts(reference, |host| async move {
            let response = self.ask_manifest(Method::HEAD, &host, reference, credential).await?;
            Ok(announced(&response))
        })
        .await
    }

    /// Asks host by host.
    async fn of_hosts<T, F>(&self, reference: &Reference, ask: impl Fn(Host) -> F) -> Result<T, RegistryError>
    where
        F: Future<Output = Result<T, RegistryError>>,
    {
        let hosts = self.hosts(reference)?;
        let by_tag = reference.digest().is_none();
        let usable = hosts.iter().filter(|host| if by_tag { host.can_resolve } else { host.can_pull });
        let mut told: Option<RegistryError> = None;
        for host in usable {
            match self.of_host(host, &ask).await {
                Ok(answer) => return Ok(answer),
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

    async fn of_host<T, F>(&self, host: &Host, ask: &impl Fn(Host) -> F) -> Result<T, RegistryError>
    where
        F: Future<Output = Result<T, RegistryError>>,
    {
        let mut attempt = 0;
        loop {
            let answer = ask(host.clone()).await;
            if let Err(error) = &answer {
                self.inner.transport.health.count_error(&host.authority, error);
            }
            match answer {
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
        let response = self.ask_manifest(Method::GET, host, reference, credential).await?;
        let announced = announced(&response);
        let media_type = response.headers().get(CONTENT_TYPE);
        let media_type = media_type.and_then(|value| value.to_str().ok()).map(str::to_owned);
        let limit = usize::try_from(MANIFEST_LIMIT).unwrap_or(usize::MAX);
        let stall = self.inner.config.stall_timeout;
        let bytes = read_body(&host.authority, response, limit, stall).await;
        self.inner.transport.observe(&host.authority, &bytes);
        let bytes = Bytes::from(bytes?);
        self.inner.transport.health.count_bytes(&host.authority, bytes.len());
        let digest = verify(host, reference, announced, &bytes)?;
        // Parameters such as a charset are not part of the type.
        let media_type = media_type.as_deref().and_then(|text| text.split(';').next()).map(str::trim);
        let manifest = Manifest::parse(&bytes, media_type)?;
        Ok(FetchedManifest { digest, media_type: manifest.media_type().to_owned(), bytes, manifest })
    }

    async fn ask_manifest(
        &self,
        method: Method,
        host: &Host,
        reference: &Reference,
        credential: Option<&Credential>,
    ) -> Result<Response<Incoming>, RegistryError> {
        let path = format!("{}/manifests/{}", reference.repository(), reference.identifier());
        let mut call = self.call(host, method, &path);
        call.headers.insert(ACCEPT, HeaderValue::from_static(manifest::ACCEPT));
        let response = self.send_authorized(call, reference, credential).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(failure(&host.authority, &reference.to_string(), response, self.inner.config.stall_timeout).await)
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

/// The digest that an answer says its content has.
fn announced(response: &Response<Incoming>) -> Option<Digest> {
    response.headers().get("docker-content-digest")?.to_str().ok()?.parse().ok()
}

/// By digest the content must be that; by tag it must be what the registry announced.
fn verify(
    host: &Host,
    reference: &Reference,
    announced: Option<Digest>,
    bytes: &[u8],
) -> Result<Digest, RegistryError> {
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
