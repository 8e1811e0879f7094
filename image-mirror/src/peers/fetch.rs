//! A blob from a peer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use hyper::body::Incoming;
use orlop_types::Digest;

use super::http_client::{PeerClient, PeerError};
use super::nodes::NodePeer;
use super::protocol::PREFIX;
use super::state::{Metrics, Peer};

/// Another half keeps us waiting for its upstream's first bytes, a little shorter than this.
const PEEK: Duration = Duration::from_secs(22);
/// A node may ask other homes and its upstream, and that again, before it has an answer: who gives up early asks the upstream once more.
const FETCH: Duration = Duration::from_secs(40);

/// Somewhere that a blob may be.
#[derive(Clone)]
pub(crate) struct PeerSource {
    client: PeerClient,
    url: String,
    path: String,
    metrics: Metrics,
    /// Left out for a while when it does not answer.
    node: Option<Arc<NodePeer>>,
}

/// A blob on its way from there.
pub(crate) struct PeerBlob {
    url: String,
    metrics: Metrics,
    body: Incoming,
    size: u64,
    /// Bytes that the peer sends though we have them.
    skip: u64,
    left: u64,
}

impl PeerSource {
    /// What another half has or fetches anyway.
    pub(super) fn peek(client: PeerClient, peer: &Peer, digest: &Digest) -> Self {
        let (url, metrics) = (peer.url.clone(), peer.metrics.clone());
        Self { client, url, path: format!("{PREFIX}peek/blobs/{digest}"), metrics, node: None }
    }

    /// What a node has or fetches for us.
    pub(super) fn fetch(client: PeerClient, node: Arc<NodePeer>, metrics: Metrics, path: String) -> Self {
        Self { client, url: node.url.clone(), path, metrics, node: Some(node) }
    }

    async fn get(&self, offset: u64) -> Result<Response<Incoming>, PeerError> {
        let patience = if self.node.is_some() { FETCH } else { PEEK };
        let answer = self.client.get(&self.url, &self.path, offset, patience).await;
        if let (Some(node), Err(PeerError::Unreachable { .. } | PeerError::Silent { .. })) =
            (&self.node, &answer)
        {
            tracing::debug!(node = node.url, "the node does not answer and is left out for a while");
            node.rest();
        }
        answer
    }

    /// Asks for a whole document, with its type.
    pub(crate) async fn document(&self, limit: usize) -> Result<(Vec<u8>, Option<String>), PeerError> {
        let response = self.get(0).await?;
        let kind = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let kind = kind.map(str::to_owned);
        Ok((PeerClient::read(&self.url, response, limit).await?, kind))
    }

    /// Asks for the bytes from `offset` on.
    pub(crate) async fn open(&self, offset: u64, size: Option<u64>) -> Result<PeerBlob, PeerError> {
        let url = self.url.clone();
        let response = self.get(offset).await?;
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
            self.metrics.peek_hits.inc();
        }
        let body = response.into_body();
        Ok(PeerBlob {
            url,
            metrics: self.metrics.clone(),
            body,
            size: total,
            skip: offset - begin,
            left: length,
        })
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
                self.metrics.bytes.inc_by(data.len() as u64);
                return Ok(Some(data));
            }
        }
        Ok(None)
    }
}
