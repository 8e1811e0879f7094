//! A blob from a peer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use hyper::body::Incoming;
use orlop_types::Digest;

use super::http_client::{PeerClient, PeerError};
use super::protocol::PREFIX;
use super::state::Peer;

/// A peer may wait for its upstream's first bytes.
const PATIENCE: Duration = Duration::from_secs(15);

/// Somewhere that a blob may be.
#[derive(Clone)]
pub(crate) struct PeerSource {
    client: PeerClient,
    peer: Arc<Peer>,
    path: String,
}

/// A blob on its way from there.
pub(crate) struct PeerBlob {
    url: String,
    peer: Arc<Peer>,
    body: Incoming,
    size: u64,
    /// Bytes that the peer sends though we have them.
    skip: u64,
    left: u64,
}

impl PeerSource {
    pub(super) fn peek(client: PeerClient, peer: Arc<Peer>, digest: Digest) -> Self {
        Self { client, peer, path: format!("{PREFIX}peek/blobs/{digest}") }
    }

    /// Asks for the bytes from `offset` on.
    pub(crate) async fn open(&self, offset: u64, size: Option<u64>) -> Result<PeerBlob, PeerError> {
        let url = self.peer.url.clone();
        let response = self.client.get(&url, &self.path, offset, PATIENCE).await?;
        let header = |name| response.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let length = header(header::CONTENT_LENGTH).and_then(|text| text.parse::<u64>().ok());
        let nonsense = |reason: &str| PeerError::Nonsense { url: url.clone(), reason: reason.to_owned() };
        let length = length.ok_or_else(|| nonsense("a blob without a length"))?;
        let (begin, total) = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = header(header::CONTENT_RANGE).and_then(|text| text.strip_prefix("bytes "));
                let range = range.and_then(|range| {
                    let (begin, rest) = range.split_once('-')?;
                    Some((begin.parse::<u64>().ok()?, rest.split_once('/')?.1.parse::<u64>().ok()?))
                });
                range.ok_or_else(|| nonsense("a part of a blob that does not say which"))?
            }
            _ => (0, length),
        };
        if begin > offset || begin.checked_add(length) != Some(total) {
            return Err(nonsense("a part of a blob that was not asked for"));
        }
        if size.is_some_and(|size| size != total) {
            return Err(nonsense("a blob of another size"));
        }
        if offset == 0 {
            self.peer.metrics.peek_hits.inc();
        }
        let body = response.into_body();
        Ok(PeerBlob { url, peer: self.peer.clone(), body, size: total, skip: offset - begin, left: length })
    }
}

impl PeerBlob {
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The next bytes; none when all have come.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, PeerError> {
        while self.left > 0 {
            let Some(mut data) = PeerClient::chunk(&self.url, &mut self.body).await? else {
                let reason = format!("the answer ends {} bytes early", self.left);
                return Err(PeerError::Unreachable { url: self.url.clone(), reason });
            };
            self.left = self.left.saturating_sub(data.len() as u64);
            let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(data.len());
            self.skip -= skipped as u64;
            let _ = data.split_to(skipped);
            if !data.is_empty() {
                self.peer.metrics.bytes.inc_by(data.len() as u64);
                return Ok(Some(data));
            }
        }
        Ok(None)
    }
}
