//! The push side: blobs and manifests into a registry (distribution-spec, "Push").
//!
//! Only the registry itself (or the server that stands for it) is pushed to, never a mirror of the hosts file.

use bytes::Bytes;
use http::header::{CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE};
use http::{HeaderValue, Method, Response, StatusCode, Uri};
use hyper::body::Incoming;
use orlop_types::{Digest, Reference};

use super::error::RegistryError;
use super::hosts::Host;
use super::transport::{Call, failure, resolve};
use super::{RegistryClient, pause};
use crate::Credential;

/// Bytes of one request of an upload: what is sent again after a cut.
pub const CHUNK_BYTES: usize = 8 << 20;
/// Most bytes that a registry may want in one request (`OCI-Chunk-Min-Length`).
const CHUNK_LIMIT: usize = 64 << 20;

/// What starting an upload came to.
pub enum Started {
    /// The registry had the blob in the other repository: nothing is to be sent.
    Mounted,
    /// The content is to be sent.
    Upload(Box<BlobUpload>),
}

/// An upload under way. Dropped without [`BlobUpload::finish`], the registry forgets it in its own time.
pub struct BlobUpload {
    client: RegistryClient,
    host: Host,
    reference: Reference,
    credential: Option<Credential>,
    location: String,
    offset: u64,
    chunk: usize,
}

impl RegistryClient {
    /// Whether the registry has a blob in this repository.
    ///
    /// # Errors
    /// Anything but yes and no.
    pub async fn has_blob(
        &self,
        target: &Reference,
        digest: &Digest,
        credential: Option<&Credential>,
    ) -> Result<bool, RegistryError> {
        Ok(self.head(target, &format!("blobs/{digest}"), credential).await?.is_some())
    }

    /// The digest of the manifest that the registry has under a tag or digest; none when it has no such manifest.
    ///
    /// # Errors
    /// Anything but yes and no.
    pub async fn stored_manifest(
        &self,
        target: &Reference,
        credential: Option<&Credential>,
    ) -> Result<Option<Digest>, RegistryError> {
        let response = self.head(target, &format!("manifests/{}", target.identifier()), credential).await?;
        let Some(response) = response else { return Ok(None) };
        let told = header(&response, "docker-content-digest").and_then(|text| text.parse().ok());
        Ok(target.digest().cloned().or(told))
    }

    async fn head(
        &self,
        target: &Reference,
        what: &str,
        credential: Option<&Credential>,
    ) -> Result<Option<Response<Incoming>>, RegistryError> {
        let host = self.server(target)?;
        let path = format!("{}/{what}", target.repository());
        let answer = self.push_once(target, credential, what, || {
            let mut call = self.call(&host, Method::HEAD, &path);
            let accept = HeaderValue::from_static(crate::manifest::ACCEPT);
            call.headers.insert(http::header::ACCEPT, accept);
            call
        });
        match answer.await {
            Ok(response) => Ok(Some(response)),
            Err(RegistryError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Starts an upload; with `mount`, asks to take the blob over from that repository of the same registry, or from anywhere in it.
    ///
    /// # Errors
    /// What the registry said.
    pub async fn start_upload(
        &self,
        target: &Reference,
        mount: Option<(&Digest, Option<&str>)>,
        credential: Option<&Credential>,
    ) -> Result<Started, RegistryError> {
        let host = self.server(target)?;
        let path = format!("{}/blobs/uploads/", target.repository());
        let answer = self.push_once(target, credential, "upload", || {
            let mut call = self.call(&host, Method::POST, &path);
            if let Some((digest, from)) = mount {
                call.url = with_query(&call.url, &format!("mount={digest}"));
                if let Some(from) = from {
                    call.url = with_query(&call.url, &format!("from={from}"));
                }
            }
            call
        });
        let response = answer.await?;
        match response.status() {
            StatusCode::CREATED => Ok(Started::Mounted),
            _ => {
                let wanted = header(&response, "oci-chunk-min-length").and_then(|text| text.parse().ok());
                let url = self.call(&host, Method::POST, &path).url;
                let location = location(&host, &url, &response)?;
                Ok(Started::Upload(Box::new(BlobUpload {
                    client: self.clone(),
                    reference: target.clone(),
                    credential: credential.cloned(),
                    location,
                    offset: 0,
                    chunk: wanted.unwrap_or(0).clamp(CHUNK_BYTES, CHUNK_LIMIT),
                    host,
                })))
            }
        }
    }

    /// Stores a manifest: under the tag of `target` where it has one, else by its digest. Tells whether the registry noted what the
    /// manifest refers to; where it did not, the tag schema of referrers is the client's work.
    ///
    /// # Errors
    /// What the registry said, or that it stored something else.
    pub async fn put_manifest(
        &self,
        target: &Reference,
        digest: &Digest,
        media_type: &str,
        bytes: Bytes,
        credential: Option<&Credential>,
    ) -> Result<bool, RegistryError> {
        let host = self.server(target)?;
        let kind = HeaderValue::from_str(media_type).map_err(|_| RegistryError::Protocol {
            host: host.authority.clone(),
            reason: format!("the media type {media_type:?} does not fit into a header"),
        })?;
        let path = format!("{}/manifests/{}", target.repository(), target.tag().unwrap_or(digest.as_str()));
        let answer = self.push_once(target, credential, "manifest", || {
            let mut call = self.call(&host, Method::PUT, &path);
            call.headers.insert(CONTENT_TYPE, kind.clone());
            call.body = bytes.clone();
            call
        });
        let response = answer.await?;
        match header(&response, "docker-content-digest").and_then(|text| text.parse::<Digest>().ok()) {
            Some(stored) if stored.algorithm() == digest.algorithm() && stored != *digest => {
                let reason = format!("it was stored as {stored}");
                Err(RegistryError::Content { host: host.authority, digest: digest.clone(), reason })
            }
            _ => Ok(response.headers().contains_key("oci-subject")),
        }
    }

    /// The one host that is pushed to.
    fn server(&self, target: &Reference) -> Result<Host, RegistryError> {
        let no_host = || RegistryError::NoHost { registry: target.registry().to_owned(), capability: "push" };
        self.hosts(target)?.pop().ok_or_else(no_host)
    }

    /// Sends an idempotent request, again after errors that may pass; the answer is a success.
    async fn push_once<'a>(
        &self,
        target: &Reference,
        credential: Option<&Credential>,
        what: &str,
        call: impl Fn() -> Call<'a>,
    ) -> Result<Response<Incoming>, RegistryError> {
        let mut attempt = 0;
        loop {
            match self.push_exchange(target, credential, what, call()).await {
                Err(error) if error.may_retry() && attempt < self.inner.config.retries => {
                    attempt += 1;
                    pause(attempt, error.retry_after()).await;
                }
                result => return result,
            }
        }
    }

    async fn push_exchange(
        &self,
        target: &Reference,
        credential: Option<&Credential>,
        what: &str,
        call: Call<'_>,
    ) -> Result<Response<Incoming>, RegistryError> {
        let host = call.host.authority.clone();
        let response = self.send_authorized(call, target, credential).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let what = format!("{what} of {}", target.name());
        Err(failure(&host, &what, response, self.inner.config.stall_timeout).await)
    }
}

impl BlobUpload {
    /// How many bytes each call of [`BlobUpload::append`] should carry.
    pub fn chunk_bytes(&self) -> usize {
        self.chunk
    }

    /// Sends the next bytes; after a cut the registry is asked how far it got.
    ///
    /// # Errors
    /// What the registry said last.
    pub async fn append(&mut self, bytes: Bytes) -> Result<(), RegistryError> {
        let start = self.offset;
        let end = start + bytes.len() as u64;
        let mut attempt = 0;
        while self.offset < end {
            let sent = usize::try_from(self.offset - start).unwrap_or(usize::MAX);
            match self.patch(bytes.slice(sent..)).await {
                Ok(()) => {}
                Err(error) if is_worth_asking(&error) && attempt < self.client.inner.config.retries => {
                    attempt += 1;
                    pause(attempt, error.retry_after()).await;
                    self.take_up(start, end, error).await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends the last bytes and names the whole.
    ///
    /// # Errors
    /// What the registry said last, for example that the content has another digest.
    pub async fn finish(mut self, rest: Bytes, digest: &Digest) -> Result<(), RegistryError> {
        let start = self.offset;
        let end = start + rest.len() as u64;
        let mut attempt = 0;
        loop {
            let sent = usize::try_from(self.offset - start).unwrap_or(usize::MAX);
            let body = rest.slice(sent..);
            let mut call =
                self.request(Method::PUT, &with_query(&self.location, &format!("digest={digest}")));
            if !body.is_empty() {
                self.add_content(&mut call, body);
            }
            let answer =
                self.client.push_exchange(&self.reference, self.credential.as_ref(), "upload", call).await;
            match answer {
                Ok(_) => return Ok(()),
                Err(error) if is_worth_asking(&error) && attempt < self.client.inner.config.retries => {
                    attempt += 1;
                    pause(attempt, error.retry_after()).await;
                    // The answer may have been lost after the work was done.
                    let credential = self.credential.as_ref();
                    if self.client.has_blob(&self.reference, digest, credential).await? {
                        return Ok(());
                    }
                    self.take_up(start, end, error).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn patch(&mut self, body: Bytes) -> Result<(), RegistryError> {
        let length = body.len() as u64;
        let mut call = self.request(Method::PATCH, &self.location);
        self.add_content(&mut call, body);
        let response =
            self.client.push_exchange(&self.reference, self.credential.as_ref(), "upload", call).await?;
        self.location = location(&self.host, &self.location, &response)?;
        self.offset += length;
        Ok(())
    }

    /// Asks how far an upload is, and goes on there if the bytes after it are still at hand.
    async fn take_up(&mut self, start: u64, end: u64, error: RegistryError) -> Result<(), RegistryError> {
        let call = self.request(Method::GET, &self.location);
        let answer =
            self.client.push_exchange(&self.reference, self.credential.as_ref(), "upload", call).await;
        let Ok(response) = answer else { return Err(error) };
        let reached = header(&response, RANGE.as_str()).and_then(reached).unwrap_or(0);
        // A range of "0-0" is also what registries say of an upload without content.
        let reached = if reached == 1 && self.offset == 0 { 0 } else { reached };
        if reached < start || reached > end {
            return Err(error);
        }
        self.location = location(&self.host, &self.location, &response)?;
        self.offset = reached;
        Ok(())
    }

    fn request(&self, method: Method, url: &str) -> Call<'_> {
        Call { url: url.to_owned(), ..self.client.call(&self.host, method, "") }
    }

    fn add_content(&self, call: &mut Call<'_>, body: Bytes) {
        let last = self.offset + (body.len() as u64).saturating_sub(1);
        let range = format!("{}-{last}", self.offset);
        call.headers.insert(CONTENT_RANGE, HeaderValue::from_str(&range).expect("digits are a header"));
        call.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        call.body = body;
    }
}

/// A chunk out of order is told by 416 and mended as a cut is.
fn is_worth_asking(error: &RegistryError) -> bool {
    error.may_retry() || matches!(error, RegistryError::Status { status: 416, .. })
}

fn header<'a>(response: &'a Response<Incoming>, name: &str) -> Option<&'a str> {
    response.headers().get(name).and_then(|value| value.to_str().ok())
}

/// Where an upload goes on. The credential travels with it, so it must stay at the same host.
fn location(host: &Host, url: &str, response: &Response<Incoming>) -> Result<String, RegistryError> {
    let protocol = |reason: String| RegistryError::Protocol { host: host.authority.clone(), reason };
    let Some(text) = header(response, LOCATION.as_str()) else { return Ok(url.to_owned()) };
    next_location(url, text).map_err(protocol)
}

fn next_location(url: &str, text: &str) -> Result<String, String> {
    let base: Uri = url.parse().map_err(|error| format!("URL {url:?}: {error}"))?;
    let next = resolve(&base, text).ok_or_else(|| format!("an upload at {text:?}"))?;
    if next.authority() != base.authority() {
        return Err(format!("an upload that goes on at another host, {next}"));
    }
    // Behind a proxy that takes off TLS, registries name themselves http.
    let scheme = base.scheme_str().unwrap_or("https");
    let path = next.path_and_query().map_or("/", |path| path.as_str());
    Ok(format!("{scheme}://{}{path}", base.authority().map_or("", |authority| authority.as_str())))
}

fn with_query(url: &str, more: &str) -> String {
    format!("{url}{}{more}", if url.contains('?') { '&' } else { '?' })
}

/// Bytes that `0-LAST` (or `bytes=0-LAST`) says have arrived.
fn reached(text: &str) -> Option<u64> {
    let (first, last) = text.trim().trim_start_matches("bytes=").split_once('-')?;
    if first != "0" {
        return None;
    }
    last.parse::<u64>().ok()?.checked_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uploads_go_on_at_the_same_host() {
        let url = "https://r:5000/v2/x/blobs/uploads/?ns=z";
        for (text, expected) in [
            ("/v2/x/blobs/uploads/1?_state=a", Some("https://r:5000/v2/x/blobs/uploads/1?_state=a")),
            ("http://r:5000/u/1", Some("https://r:5000/u/1")),
            ("1?a=b", Some("https://r:5000/v2/x/blobs/uploads/1?a=b")),
            ("https://evil/u", None),
            ("file:///u", None),
        ] {
            assert_eq!(next_location(url, text).ok().as_deref(), expected, "{text}");
        }
        assert_eq!(with_query("http://r/u?a=b", "digest=c"), "http://r/u?a=b&digest=c");
        assert_eq!(with_query("http://r/u", "digest=c"), "http://r/u?digest=c");
    }

    #[test]
    fn how_far_an_upload_got() {
        for (text, expected) in [
            ("0-9", Some(10)),
            ("bytes=0-9", Some(10)),
            ("1-9", None),
            ("0-18446744073709551615", None),
            ("x", None),
        ] {
            assert_eq!(reached(text), expected, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_header_makes_it_panic(text in ".{0,60}") {
            let _ = (reached(&text), next_location("https://r/v2/", &text));
        }
    }
}
