//! Other mirrors: pairs, which hold the same content, and nodes, which fetch for each other (`nodes.rs`).
//!
//! ```text
//!   follow: GET changes?since=N (waits at the peer) -> bytes that are missing here -> rows and N in one change -> again
//!   a miss: own file -> content stores -> running flight -> pairs (peek) -> nodes (fetch) -> upstream
//! ```
//!
//! No quorum: each half takes pushes and fetches alone, and the later change of a row wins when they meet (`records/merge.rs`). A half
//! that was away reads what changed meanwhile; a wiped one has another identity, is unknown to everybody, and reads from the start.
//!
//! Invariants: rows of pushed content come with their bytes, unless the peer has lost them: then they are owed, and asked for again and
//! again; a poll's `since` says that everything up to it is on this disk, or owed; whoever waits for a peer waits for a bounded time and is never
//! waited for by that peer for the same blob, since only the half with the lower identity goes on while both ask (`serve.rs`).

mod fetch;
mod follow;
mod http_client;
mod keep;
mod nodes;
mod protocol;
mod serve;
mod state;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use orlop_daemon::{Drain, Frame};
use orlop_types::{Digest, Reference};
use tokio::sync::Notify;

use crate::config::Config;
use crate::registry::Registry;
use crate::watched::Refresh;

pub(crate) use fetch::PeerSource;
pub(crate) use http_client::PeerError;
pub(crate) use protocol::Node;

use http_client::PeerClient;
use nodes::Nodes;
use state::{Acknowledgements, Metrics, Peer};

/// How long a push that need not be replicated waits for a peer, so that the answer can say that it is.
const REPORT: Duration = Duration::from_millis(200);

/// The mirrors of this one's pair; cheap to clone.
#[derive(Clone)]
pub(crate) struct Peers {
    inner: Arc<Inner>,
}

struct Inner {
    own: Node,
    client: PeerClient,
    pairs: Vec<Arc<Peer>>,
    nodes: Option<Nodes>,
    acknowledgements: Acknowledgements,
    metrics: Metrics,
    strict: Option<Duration>,
    /// Everybody may pull everything: then programs of this machine need no secret.
    pulls_are_free: bool,
    drain: Drain,
    /// A peer that did not answer does again.
    returned: Notify,
}

impl Peers {
    pub(crate) fn open(config: &Config, own: u64, drain: Drain) -> anyhow::Result<Self> {
        let own = Node(own);
        let client = PeerClient::open(config.peer_token_file.as_deref(), config.peer_ca_file.as_deref(), own)
            .context("failed to prepare for peers")?;
        let metrics = Metrics::default();
        let pairs = config.peers.iter().map(|url| Arc::new(Peer::new(url, &metrics))).collect();
        let strict =
            config.strict_replication.then(|| Duration::from_secs(config.replication_timeout_seconds));
        let acknowledgements = Acknowledgements::default();
        let nodes = config.nodes.as_ref().map(|nodes| Nodes::open(config, nodes)).transpose()?;
        let returned = Notify::new();
        let pulls_are_free = config.auth.as_ref().is_none_or(|auth| auth.anonymous_pull);
        Ok(Self {
            inner: Arc::new(Inner {
                own,
                client,
                pairs,
                nodes,
                acknowledgements,
                metrics,
                strict,
                pulls_are_free,
                drain,
                returned,
            }),
        })
    }

    /// Starts to follow each peer.
    pub(crate) fn start(&self, frame: &Frame, registry: &Arc<Registry>) {
        self.inner.metrics.register(frame);
        for peer in &self.inner.pairs {
            let follower = follow::Follower::new(self.clone(), peer.clone(), registry.clone());
            frame.spawn(format!("mirror-peer {}", peer.url), follower.run(frame.drain()));
        }
        if !self.inner.pairs.is_empty() {
            frame.spawn("mirror-owed", keep::run(self.clone(), registry.clone(), frame.drain()));
        }
    }

    /// Who this mirror is to others.
    pub(crate) fn own(&self) -> Node {
        self.inner.own
    }

    /// For the state dump.
    pub(crate) fn dump(&self) -> serde_json::Value {
        self.inner.pairs.iter().map(|peer| peer.dump()).collect()
    }

    /// Where a blob may be had before its upstream is asked, after so many hops.
    pub(crate) fn sources(&self, name: &str, digest: &Digest, hops: u32) -> Vec<PeerSource> {
        let mut sources = self.halves(digest);
        sources.extend(self.nodes(digest.as_str(), name, "blobs", digest.as_str(), hops));
        sources
    }

    /// The other mirrors of the pair that may have these bytes.
    pub(crate) fn halves(&self, digest: &Digest) -> Vec<PeerSource> {
        let answering = self.inner.pairs.iter().filter(|peer| peer.may_answer());
        answering.map(|peer| self.source(peer, digest)).collect()
    }

    /// Whom to ask for a manifest before its upstream. Of a tag the other halves know no more than what came with their changes.
    pub(crate) fn sources_of_manifest(&self, name: &str, upstream: &Reference, hops: u32) -> Vec<PeerSource> {
        let mut sources = upstream.digest().map_or_else(Vec::new, |digest| self.halves(digest));
        let reference = upstream.identifier();
        sources.extend(self.nodes(&format!("{name} {reference}"), name, "manifests", reference, hops));
        sources
    }

    fn nodes(&self, key: &str, name: &str, kind: &str, reference: &str, hops: u32) -> Vec<PeerSource> {
        let Inner { nodes: Some(nodes), client, metrics, .. } = &*self.inner else { return Vec::new() };
        let path = nodes::path(name, kind, reference, hops);
        let source = |node| PeerSource::fetch(client.clone(), node, metrics.clone(), path.clone());
        nodes.plan(key, hops).into_iter().map(source).collect()
    }

    fn source(&self, peer: &Peer, digest: &Digest) -> PeerSource {
        PeerSource::peek(self.inner.client.clone(), peer, digest)
    }

    /// Files that are read again when they change.
    pub(crate) fn watched(&self) -> Option<Arc<dyn Refresh>> {
        self.inner.nodes.as_ref().map(|nodes| nodes.list.clone() as Arc<dyn Refresh>)
    }

    /// Whether a change is on a peer's disk, too, by what is known now; none without peers.
    pub(crate) fn has_acknowledged(&self, number: u64) -> Option<bool> {
        let Inner { pairs, acknowledgements, .. } = &*self.inner;
        (!pairs.is_empty()).then(|| acknowledgements.has(number))
    }

    /// Whether a change is on a peer's disk, too, after a little patience. The error is a push that must be replicated and is not.
    pub(crate) async fn replicated(&self, number: u64) -> Result<Option<bool>, Duration> {
        let Inner { pairs, acknowledgements, strict, .. } = &*self.inner;
        if pairs.is_empty() {
            return Ok(None);
        }
        let patience = match strict {
            Some(patience) => *patience,
            None if acknowledgements.is_anybody_there() => REPORT,
            None => Duration::ZERO,
        };
        let done = acknowledgements.wait(number, patience).await;
        match strict {
            Some(patience) if !done => Err(*patience),
            _ => Ok(Some(done)),
        }
    }
}
