//! Follows one peer: its journal from where we were, bytes first, then the rows and the place in one change.
//!
//! A kill anywhere leaves whole blobs that no row names yet, and the old place: the same page is read again. What is here already is
//! neither fetched nor changed again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use http::StatusCode;
use orlop_daemon::Drain;
use orlop_daemon::backoff::Backoff;
use orlop_types::Digest;

use super::Peers;
use super::http_client::{PeerClient, PeerError};
use super::protocol::{ANSWER_LIMIT, Changes, Entry, Node, POLL_SECONDS, PREFIX};
use super::state::Peer;
use crate::error::RegistryError;
use crate::flights::Wanted;
use crate::keeping::Mode;
use crate::records::RecordsError;
use crate::registry::Registry;

/// Blobs that are fetched from a peer at the same time.
const PARALLEL: usize = 4;
/// To the head of an answer: a poll waits at the peer.
const PATIENCE: Duration = Duration::from_secs(POLL_SECONDS + 10);
const PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Between two looks whether maintenance is over.
const MAINTENANCE: Duration = Duration::from_secs(1);
/// Times that a blob is asked for before its row comes without it.
const TRIES: u32 = 5;
/// Blobs that failed and are counted.
const FAILED_LIMIT: usize = 1000;
/// A place is written down at the latest when it is so far ahead; without news it need not be at all.
const UNWRITTEN: u64 = 512;

/// Why the peer's changes are not all here.
#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error(transparent)]
    Records(#[from] RecordsError),
    #[error(
        "{url} is this mirror itself, or has a copy of its records: remove records.redb of one of the two"
    )]
    Same { url: String },
    #[error("blob {digest} of {url} is not to be had: {reason}")]
    Blob { url: String, digest: Digest, reason: String },
    #[error("content that was just fetched is gone again")]
    Again,
}

impl FollowError {
    /// Whether the peer answered.
    fn is_reached(&self) -> bool {
        !matches!(self, FollowError::Peer(PeerError::Unreachable { .. } | PeerError::Silent { .. }))
    }
}

pub(super) struct Follower {
    peers: Peers,
    peer: Arc<Peer>,
    registry: Arc<Registry>,
    /// Who the peer was at the last answer.
    epoch: Option<Node>,
    /// Everything up to here is on our disk.
    place: u64,
    /// The place as it is written down.
    written: u64,
    failed: HashMap<Digest, u32>,
}

impl Follower {
    pub(super) fn new(peers: Peers, peer: Arc<Peer>, registry: Arc<Registry>) -> Self {
        Self { peers, peer, registry, epoch: None, place: 0, written: 0, failed: HashMap::new() }
    }

    pub(super) async fn run(mut self, drain: Drain) -> anyhow::Result<()> {
        let mut backoff = Backoff::new(PAUSE, LONGEST_PAUSE);
        loop {
            // Nothing is written in maintenance; the peer's changes wait.
            if self.registry.keeper.mode() == Mode::Maintenance {
                drain.sleep(MAINTENANCE).await;
                if drain.is_draining() {
                    return Ok(());
                }
                continue;
            }
            let turn = tokio::select! {
                turn = self.turn() => turn,
                () = drain.wait() => return Ok(()),
            };
            match turn {
                Ok(()) => backoff.reset(),
                Err(error) => {
                    self.epoch = self.epoch.filter(|_| error.is_reached());
                    if self.peer.failed(&error.to_string(), error.is_reached()) {
                        tracing::warn!(peer = self.peer.url, %error, "the peer is not followed");
                    }
                    drain.sleep(backoff.pause()).await;
                }
            }
            if drain.is_draining() {
                return Ok(());
            }
        }
    }

    async fn turn(&mut self) -> Result<(), FollowError> {
        let (own, url) = (self.peers.inner.own, self.peer.url.clone());
        // A stranger answers at once and says who it is.
        let epoch = self.epoch.unwrap_or(Node(0));
        let path = format!("{PREFIX}changes?node={own}&epoch={epoch}&since={}", self.place);
        let response = self.peers.inner.client.get(&url, &path, 0, PATIENCE).await?;
        let text = PeerClient::read(&url, response, ANSWER_LIMIT).await?;
        let changes: Changes = serde_json::from_slice(&text)
            .map_err(|error| PeerError::Nonsense { url: url.clone(), reason: error.to_string() })?;
        if changes.node == own {
            return Err(FollowError::Same { url });
        }
        if self.epoch != Some(changes.node) {
            self.meet(&changes)?;
            return Ok(());
        }
        if changes.last < self.place {
            tracing::warn!(
                peer = url,
                "the peer's records are older than they were: all of them are read again"
            );
            (self.place, self.written) = (0, 0);
            return Ok(());
        }
        let lag = self.apply(&changes).await?;
        self.note(&changes, lag);
        Ok(())
    }

    fn meet(&mut self, changes: &Changes) -> Result<(), FollowError> {
        self.epoch = Some(changes.node);
        self.place = self.registry.repositories.records.cursor(changes.node.0)?;
        self.written = self.place;
        self.note(changes, Duration::ZERO);
        Ok(())
    }

    fn note(&self, changes: &Changes, lag: Duration) {
        let behind = changes.last.saturating_sub(self.place);
        if self.peer.answered(changes.node, behind, lag) {
            tracing::info!(peer = self.peer.url, node = %changes.node, behind, "the peer answers");
            self.peers.inner.returned.notify_one();
        }
    }

    /// Brings a page here; how old its last change is.
    async fn apply(&mut self, changes: &Changes) -> Result<Duration, FollowError> {
        let records = self.registry.repositories.records.clone();
        let mut news = Vec::new();
        for entry in &changes.changes {
            if !entry.is_sound() {
                tracing::warn!(peer = self.peer.url, row = ?entry.row, "a row that cannot be is left out");
                continue;
            }
            if records.cell(&entry.row)?.is_none_or(|ours| ours.stamp < entry.cell.stamp) {
                news.push(entry);
            }
        }
        let lost = self.fetch(&news).await?;
        let (node, through) = (changes.node.0, changes.through.max(self.place));
        if !news.is_empty() || through.saturating_sub(self.written) > UNWRITTEN {
            let rows: Vec<Entry> = news.iter().map(|entry| (*entry).clone()).collect();
            let merged = records.write(move |change| {
                // Bytes without a row may have been collected since they came.
                for (digest, _) in rows.iter().filter_map(Entry::content) {
                    if !lost.contains(&digest) && change.used_ms(&digest)?.is_none() {
                        return Ok(false);
                    }
                }
                for entry in rows {
                    // What an upstream gave it can give again.
                    let pushed = entry.cell.value.as_ref().is_some_and(|value| !value.is_fetched());
                    let owed = entry.content().filter(|(digest, _)| pushed && lost.contains(digest));
                    if let Some((digest, _)) = owed {
                        change.owe(digest.as_str())?;
                    }
                    change.merge(&entry.row, entry.cell)?;
                }
                change.set_cursor(node, through)?;
                Ok(true)
            });
            if !merged.await? {
                return Err(FollowError::Again);
            }
            self.written = through;
        }
        self.place = through;
        let stamp = changes.changes.last().map(|entry| entry.cell.stamp.ms());
        let age = stamp.map_or(0, |stamp| crate::records::now_ms().saturating_sub(stamp));
        Ok(Duration::from_millis(age))
    }

    /// Fetches what the rows name and is not here; the result is what is not to be had.
    async fn fetch(&mut self, news: &[&Entry]) -> Result<Vec<Digest>, FollowError> {
        // Whether it was pushed somewhere decides what happens when there is no room for it.
        let mut wanted: HashMap<Digest, (u64, bool)> = HashMap::new();
        for entry in news {
            let Some((digest, size)) = entry.content() else { continue };
            if !self.registry.repositories.holds(&digest)? {
                let pushed = entry.cell.value.as_ref().is_some_and(|value| !value.is_fetched());
                let known = wanted.entry(digest).or_insert((size, pushed));
                known.1 |= pushed;
            }
        }
        let mut fetches = futures::stream::iter(wanted)
            .map(|(digest, (size, pushed))| {
                let (peers, peer, registry) = (&self.peers, &self.peer, &self.registry);
                async move {
                    let outcome = replicate(peers, peer, registry, &digest, Some(size)).await;
                    (outcome, digest, pushed)
                }
            })
            .buffer_unordered(PARALLEL);
        let (mut lost, mut failures) = (Vec::new(), Vec::new());
        while let Some((outcome, digest, pushed)) = fetches.next().await {
            match outcome {
                Ok(true) => {}
                Ok(false) => lost.push(digest),
                // What an upstream can give again must not hold up what was pushed.
                Err(error) if !pushed && error.status == StatusCode::INSUFFICIENT_STORAGE => {
                    lost.push(digest)
                }
                Err(error) => failures.push((digest, error)),
            }
        }
        drop(fetches);
        let mut last = None;
        for (digest, error) in failures {
            match self.is_given_up(&digest, &error) {
                true => lost.push(digest),
                false => last = Some((digest, error.message)),
            }
        }
        if let Some((digest, reason)) = last {
            return Err(FollowError::Blob { url: self.peer.url.clone(), digest, reason });
        }
        for digest in &lost {
            self.failed.remove(digest);
            self.peer.metrics.missing.inc();
            tracing::warn!(peer = self.peer.url, %digest, "the bytes of a row are not to be had now: asked for again later");
        }
        Ok(lost)
    }

    /// One blob that never comes must not hold up all that follows. A full disk, or a peer that is gone, holds up everything anyway.
    fn is_given_up(&mut self, digest: &Digest, error: &RegistryError) -> bool {
        if error.status == StatusCode::INSUFFICIENT_STORAGE || error.status == StatusCode::TOO_MANY_REQUESTS {
            return false;
        }
        if self.failed.len() >= FAILED_LIMIT {
            self.failed.clear();
        }
        let tries = self.failed.entry(digest.clone()).or_default();
        *tries += 1;
        *tries >= TRIES
    }
}

/// Brings a blob here from a peer; false when the peer does not have it.
pub(super) async fn replicate(
    peers: &Peers,
    peer: &Arc<Peer>,
    registry: &Arc<Registry>,
    digest: &Digest,
    size: Option<u64>,
) -> Result<bool, RegistryError> {
    let began = Instant::now();
    registry.keeper.make_room(size.unwrap_or(0)).await?;
    // A flight of a client's may be joined, and end for reasons of its own.
    for _ in 0..2 {
        let source = peers.source(peer, digest);
        let wanted = Wanted { digest: digest.clone(), size, name: None, peers: vec![source], upstream: None };
        match registry.flights.blob(wanted)?.landed().await {
            Ok(()) => {
                tracing::debug!(peer = peer.url, %digest, elapsed = ?began.elapsed(), "blob replicated");
                return Ok(true);
            }
            Err(error) if error.status == StatusCode::NOT_FOUND => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}
