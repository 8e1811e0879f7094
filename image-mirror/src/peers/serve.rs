//! What other mirrors ask of this one.

use std::time::Duration;

use axum::body::Body;
use http::request::Parts;
use http::{HeaderMap, Method, Request, StatusCode, header};
use orlop_types::Digest;

use super::Peers;
use super::protocol::{Changes, Entry, NODE_HEADER, Node, PAGE_BYTES, PAGE_ROWS, POLL_SECONDS, PREFIX};
use crate::content::{answer_blob, send};
use crate::door::Client;
use crate::error::RegistryError;
use crate::query::parameter;
use crate::registry::{Answer, Registry, json, parse_digest};

fn refused(status: StatusCode, message: &str) -> RegistryError {
    RegistryError::new(status, "DENIED", message)
}

fn wrong(message: String) -> RegistryError {
    RegistryError::new(StatusCode::BAD_REQUEST, "UNSUPPORTED", message)
}

impl Peers {
    /// Whoever knows the pair's secret is a mirror of it; without one, whoever is on this machine, if he may pull everything anyway.
    fn admit(&self, request: &Parts, client: &Client) -> Result<(), RegistryError> {
        match self.inner.client.token() {
            Some(token) => {
                let shown = request.headers.get(header::AUTHORIZATION);
                if shown.is_some_and(|shown| token.fits(shown)) {
                    return Ok(());
                }
                Err(refused(StatusCode::UNAUTHORIZED, "only mirrors of this one's pair are answered here"))
            }
            None => {
                if self.inner.pulls_are_free && client.address.ip().to_canonical().is_loopback() {
                    return Ok(());
                }
                let message = match self.inner.pulls_are_free {
                    true => "other machines are answered here only with a peerTokenFile",
                    false => "where pulls are not free, mirrors are answered only with a peerTokenFile",
                };
                Err(refused(StatusCode::FORBIDDEN, message))
            }
        }
    }
}

impl Registry {
    /// Whether a path is one that mirrors ask each other.
    pub(crate) fn is_for_peers(path: &str) -> bool {
        path.starts_with(PREFIX)
    }

    /// Answers another mirror.
    pub(crate) async fn answer_peer(&self, request: Request<Body>, client: &Client) -> Answer {
        let (request, _) = request.into_parts();
        self.peers.admit(&request, client)?;
        let path = request.uri.path();
        let rest = path.strip_prefix(PREFIX).unwrap_or_default();
        let query = request.uri.query().unwrap_or_default();
        if request.method != Method::GET {
            return Err(RegistryError::unsupported("mirrors only ask"));
        }
        if let Some(path) = rest.strip_prefix("fetch") {
            let hops = parameter(query, "hop").and_then(|text| text.parse().ok());
            let hops = hops.ok_or_else(|| wrong("hop is no number".to_owned()))?;
            return self.answer_node(path, &request.headers, hops).await;
        }
        match rest.split('/').collect::<Vec<_>>().as_slice() {
            ["changes"] => self.tell_changes(query).await,
            ["peek", "blobs", digest] => self.tell_blob(&parse_digest(digest)?, &request.headers).await,
            _ => Err(RegistryError::new(StatusCode::NOT_FOUND, "UNSUPPORTED", "no such endpoint")),
        }
    }

    async fn tell_changes(&self, query: &str) -> Answer {
        let text = |name: &str| parameter(query, name).unwrap_or_default();
        let asker: Node = text("node").parse().map_err(wrong)?;
        let epoch: Node = text("epoch").parse().map_err(wrong)?;
        let since: u64 = text("since").parse().map_err(|_| wrong("since is no number".to_owned()))?;
        let (records, own) = (&self.repositories.records, self.peers.inner.own);
        if asker == own {
            let message =
                format!("mirror {own} asks itself, or a copy of it: remove records.redb of one of the two");
            return Err(RegistryError::new(StatusCode::CONFLICT, "UNSUPPORTED", message));
        }
        if epoch != own {
            return answer(&Changes { node: own, last: records.last(), through: 0, changes: Vec::new() });
        }
        if since <= records.last() {
            self.peers.inner.acknowledgements.note(asker, since);
            let patience = Duration::from_secs(POLL_SECONDS);
            tokio::select! {
                () = records.wait_past(since, patience) => {}
                () = self.peers.inner.drain.wait() => {}
            }
        }
        let page = records.changes(since, PAGE_ROWS, PAGE_BYTES)?;
        let changes = page.changes.into_iter().map(|(row, cell)| Entry { row, cell }).collect();
        answer(&Changes { node: own, last: page.last, through: page.through, changes })
    }

    async fn tell_blob(&self, digest: &Digest, headers: &HeaderMap) -> Answer {
        if let Some(file) = self.blobs.open_blob(digest)? {
            let size = file.metadata().map_err(|error| RegistryError::internal("read a blob", error))?.len();
            return answer_blob(digest, size, headers, |begin, length| send(file, begin, length));
        }
        if let Some(file) = self.stores.find(digest).await? {
            let size = file.metadata().map_err(|error| RegistryError::internal("read a blob", error))?.len();
            return answer_blob(digest, size, headers, |begin, length| send(file, begin, length));
        }
        let asker = headers.get(NODE_HEADER).and_then(|value| value.to_str().ok()?.parse().ok());
        let growing = self.flights.peek(digest, self.peers.inner.own, asker).await;
        let growing = growing.ok_or_else(|| RegistryError::blob_unknown(digest.as_str()))?;
        answer_blob(digest, growing.size(), headers, |begin, length| Ok(growing.body(begin, length)))
    }
}

fn answer(changes: &Changes) -> Answer {
    let value = serde_json::to_value(changes);
    Ok(json("application/json", &value.map_err(|error| RegistryError::internal("tell the changes", error))?))
}
