use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use http::{HeaderValue, Method, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use orlop_types::{Digest, Reference};

use super::error::RegistryError;
use super::hosts::Host;
use super::transport::failure;
use super::{RegistryClient, pause};
use crate::Credential;
use crate::manifest::Descriptor;

/// Cuts in a row, with less than [`PROGRESS_BYTES`] between them, before a host is given up.
const CUT_LIMIT: u32 = 4;
/// A connection that carried so much before it was cut was of use.
const PROGRESS_BYTES: u64 = 1 << 20;

/// A blob on its way. A connection that breaks is taken up again where it was, at the same host or the next one.
///
/// The content is not verified here: it passes by once, and whoever writes it hashes it.
pub struct BlobDownload {
    client: RegistryClient,
    reference: Reference,
    descriptor: Descriptor,
    credential: Option<Credential>,
    hosts: Vec<Host>,
    host: usize,
    offset: u64,
    cuts: u32,
    body: Option<Incoming>,
    /// Bytes to throw away: the host ignored the range.
    skip: u64,
    /// Where the last connection started.
    started: u64,
    /// The host has no ranges, or wrong ones: the blob is asked for whole.
    whole: bool,
}

impl RegistryClient {
    /// Asks for the size of a blob, host by host.
    ///
    /// # Errors
    /// What the last host said.
    pub async fn blob_size(
        &self,
        reference: &Reference,
        digest: &Digest,
        credential: Option<&Credential>,
    ) -> Result<u64, RegistryError> {
        let what = format!("blob {digest} of {}", reference.name());
        let mut told = RegistryError::NotFound { what: what.clone(), host: reference.registry().to_owned() };
        for host in self.hosts(reference)?.iter().filter(|host| host.can_pull) {
            let path = format!("{}/blobs/{digest}", reference.repository());
            let call = self.call(host, Method::HEAD, &path);
            let response = match self.send_authorized(call, reference, credential).await {
                Ok(response) if response.status().is_success() => response,
                Ok(response) => {
                    let stall = self.inner.config.stall_timeout;
                    told = failure(&host.authority, &what, response, stall).await;
                    self.inner.transport.health.count_error(&host.authority, &told);
                    continue;
                }
                Err(error) => {
                    self.inner.transport.health.count_error(&host.authority, &error);
                    told = error;
                    continue;
                }
            };
            let length =
                response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
            match length {
                Some(length) => return Ok(length),
                None => {
                    let reason = "a blob without a length".to_owned();
                    told = RegistryError::Protocol { host: host.authority.clone(), reason };
                }
            }
        }
        Err(told)
    }

    /// Prepares to fetch a blob; nothing is sent yet. `skip_hosts` leaves out hosts that gave wrong content before.
    ///
    /// # Errors
    /// A hosts file that makes no sense, or no host left.
    pub fn download(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        credential: Option<&Credential>,
        skip_hosts: usize,
    ) -> Result<BlobDownload, RegistryError> {
        let mut hosts = self.hosts(reference)?;
        hosts.retain(|host| host.can_pull);
        if hosts.is_empty() {
            return Err(RegistryError::NoHost {
                registry: reference.registry().to_owned(),
                capability: "pull",
            });
        }
        if skip_hosts >= hosts.len() {
            let what = descriptor.digest.to_string();
            return Err(RegistryError::NotFound { what, host: reference.registry().to_owned() });
        }
        Ok(BlobDownload {
            client: self.clone(),
            reference: reference.clone(),
            descriptor: descriptor.clone(),
            credential: credential.cloned(),
            host: skip_hosts,
            hosts,
            offset: 0,
            cuts: 0,
            body: None,
            skip: 0,
            started: 0,
            whole: false,
        })
    }
}

impl BlobDownload {
    /// Leaves out what the caller has already.
    #[must_use]
    pub fn starting_at(mut self, offset: u64) -> Self {
        self.offset = offset.min(self.descriptor.size);
        self.started = self.offset;
        self
    }

    /// How many hosts there are; for `skip_hosts`.
    pub fn host_count(&self) -> usize {
        self.hosts.len()
    }

    /// Index of the host that is asked now.
    pub fn host_index(&self) -> usize {
        self.host
    }

    /// Name of the host that is asked now.
    pub fn host_name(&self) -> &str {
        &self.hosts[self.host].authority
    }

    /// The next bytes; none at the end, when exactly the announced size has passed. Not cancel safe: a dropped call may lose bytes.
    ///
    /// # Errors
    /// Every host failed; the last one's error.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            if self.offset == self.descriptor.size && (self.body.is_some() || self.offset > 0) {
                return Ok(None);
            }
            let result = match self.body.take() {
                None => self.connect().await.map(|()| None),
                Some(body) => {
                    let read = self.read(body).await;
                    if let Err(error) = &read {
                        self.client.inner.transport.observe_error(self.host_name(), error);
                    }
                    read
                }
            };
            match result {
                Ok(Some(chunk)) => return Ok(Some(chunk)),
                Ok(None) => {}
                Err(error) => {
                    self.client.inner.transport.health.count_error(self.host_name(), &error);
                    self.recover(error).await?;
                }
            }
            if self.descriptor.size == 0 && self.body.is_some() {
                return Ok(None);
            }
        }
    }

    async fn connect(&mut self) -> Result<(), RegistryError> {
        let host = &self.hosts[self.host];
        let path = format!("{}/blobs/{}", self.reference.repository(), self.descriptor.digest);
        let mut call = self.client.call(host, Method::GET, &path);
        let with_range = self.offset > 0 && !self.whole;
        if with_range {
            let range = format!("bytes={}-", self.offset);
            call.headers.insert(RANGE, HeaderValue::from_str(&range).expect("digits are a header"));
        }
        let response = self.client.send_authorized(call, &self.reference, self.credential.as_ref()).await?;
        let header = |name| response.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let size = self.descriptor.size;
        self.started = self.offset;
        self.skip = match response.status() {
            StatusCode::OK => {
                let length = header(CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
                if length.is_some_and(|length| length != size) {
                    return Err(self.protocol(&format!(
                        "a blob of {} bytes, {size} were announced",
                        length.unwrap_or(0)
                    )));
                }
                self.offset
            }
            StatusCode::PARTIAL_CONTENT if with_range => {
                match header(CONTENT_RANGE).and_then(content_range) {
                    Some((start, end, total))
                        if start <= self.offset
                            && end + 1 == size
                            && total.is_none_or(|total| total == size) =>
                    {
                        self.offset - start
                    }
                    _ => {
                        self.whole = true;
                        return Err(self.cut("a part that was not asked for"));
                    }
                }
            }
            StatusCode::RANGE_NOT_SATISFIABLE if with_range => {
                self.whole = true;
                return Err(self.cut("no part of the blob (416)"));
            }
            StatusCode::PARTIAL_CONTENT => return Err(self.protocol("a part that was not asked for")),
            _ => {
                let what = format!("blob {} of {}", self.descriptor.digest, self.reference.name());
                let stall = self.client.inner.config.stall_timeout;
                return Err(failure(&host.authority, &what, response, stall).await);
            }
        };
        self.body = Some(response.into_body());
        Ok(())
    }

    async fn read(&mut self, mut body: Incoming) -> Result<Option<Bytes>, RegistryError> {
        let stall = self.client.inner.config.stall_timeout;
        let host = || self.hosts[self.host].authority.clone();
        let frame = match tokio::time::timeout(stall, body.frame()).await {
            Err(_) => return Err(RegistryError::Timeout { host: host(), what: "data", after: stall }),
            Ok(Some(Err(error))) => {
                return Err(RegistryError::Cut { host: host(), reason: error.to_string() });
            }
            Ok(None) => {
                let reason = format!("{} of {} bytes arrived", self.offset, self.descriptor.size);
                return Err(RegistryError::Cut { host: host(), reason });
            }
            Ok(Some(Ok(frame))) => frame,
        };
        self.body = Some(body);
        let Ok(mut data) = frame.into_data() else { return Ok(None) };
        let transport = &self.client.inner.transport;
        transport.health.count_bytes(self.host_name(), data.len());
        if self.offset == self.started {
            transport.health.succeed(self.host_name());
        }
        let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(data.len());
        self.skip -= skipped as u64;
        let _ = data.split_to(skipped);
        if data.is_empty() {
            return Ok(None);
        }
        self.offset += data.len() as u64;
        if self.offset > self.descriptor.size {
            return Err(self.protocol(&format!("more than the announced {} bytes", self.descriptor.size)));
        }
        Ok(Some(data))
    }

    /// Decides where to go on after an error.
    async fn recover(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        self.body = None;
        let overrun = self.offset > self.descriptor.size;
        let limit = if self.offset > 0 { CUT_LIMIT } else { self.client.retries(&self.hosts[self.host]) };
        if self.offset - self.started >= PROGRESS_BYTES {
            self.cuts = 0;
        }
        self.started = self.offset;
        if error.may_retry() && self.cuts < limit {
            self.cuts += 1;
            tracing::debug!(digest = %self.descriptor.digest, offset = self.offset, %error, "download is taken up again");
            pause(self.cuts, error.retry_after()).await;
            return Ok(());
        }
        // Bytes that were handed out already cannot be taken back.
        if !overrun && self.host + 1 < self.hosts.len() {
            tracing::debug!(digest = %self.descriptor.digest, %error, "the next host is asked");
            self.host += 1;
            self.cuts = 0;
            self.whole = false;
            return Ok(());
        }
        Err(error)
    }

    fn cut(&self, reason: &str) -> RegistryError {
        RegistryError::Cut { host: self.hosts[self.host].authority.clone(), reason: reason.to_owned() }
    }

    fn protocol(&self, reason: &str) -> RegistryError {
        RegistryError::Protocol { host: self.hosts[self.host].authority.clone(), reason: reason.to_owned() }
    }
}

/// First and last position of `bytes START-END/SIZE`, and the size where it is known (RFC 9110 section 14.4).
fn content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, size) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let size = if size == "*" { None } else { Some(size.parse().ok()?) };
    let (start, end) = (start.parse().ok()?, end.parse().ok()?);
    (start <= end && end < u64::MAX && size.is_none_or(|size| end < size)).then_some((start, end, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (text, expected) in [
            ("bytes 5-9/10", Some((5, 9, Some(10)))),
            ("bytes 5-9/*", Some((5, 9, None))),
            ("bytes 5-9/9", None),
            ("bytes 9-5/10", None),
            ("bytes */10", None),
            ("bytes 0-18446744073709551615/*", None),
            ("bytes -1-5/10", None),
            ("items 5-9/10", None),
            ("", None),
        ] {
            assert_eq!(content_range(text), expected, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_range_makes_it_panic(text in "(bytes )?[0-9*/-]{0,50}") {
            let _ = content_range(&text);
        }
    }
}
