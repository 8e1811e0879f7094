//! Lists: consistent at one revision, in pages if asked, written from the shared bytes.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use bytes::Bytes;
use http::StatusCode;
use orlop_resources::status::{self, ApiError};
use orlop_store::{At, Entry, Expired, Page, PageRequest};
use serde_json::{Map, Value, json};

use super::respond::{bytes_of, include_object, object_of, partial, row, table, written};
use crate::body::{Reply, reply, stream};
use crate::context::Context;
use crate::rules::accept::{Format, Shape};
use crate::rules::options;
use crate::state::prefix_in;

/// How long a request waits for a revision that is not there yet (upstream's `blockTimeout`).
const REVISION_WAIT: Duration = Duration::from_secs(3);

/// Where a list starts and which state it shows.
pub(super) struct Position {
    at: At,
    /// First key after the prefix.
    start: String,
}

/// All objects that are selected.
pub(crate) async fn list(context: &Context) -> Result<Reply, ApiError> {
    let format = context.format(false)?;
    options::refused("ListOptions", &options::list_faults(&context.query))?;
    let include = include_object(context)?;
    let selection = context.selection()?;
    let limit = context.query.number("limit").map_err(status::bad_request)?.unwrap_or_default();
    // A negative limit is none, as upstream.
    let limit = usize::try_from(limit).unwrap_or_default();
    let prefix = prefix_in(context.resource, &context.info.namespace);
    let position = position(context).await?;
    let page = {
        let start =
            if position.start.is_empty() { String::new() } else { format!("{prefix}{}", position.start) };
        let matches = |entry: &Entry| selection.matches(entry);
        let request =
            PageRequest { at: position.at, prefix: &prefix, start: &start, limit, matches: &matches };
        context.api.cache.list(&request).map_err(|expired| expired_page(&expired, &position))?
    };
    let metadata = list_metadata(&page, &prefix, limit, selection.is_everything());
    if format == Format::default() {
        return Ok(stream_list(context, page.entries, &metadata));
    }
    let shaped = match format.shape {
        Shape::Table => {
            let rows = page
                .entries
                .iter()
                .map(|entry| row(context.resource, &object_of(context.resource, entry), include));
            table(context.resource, metadata, rows.collect())
        }
        Shape::Partial => {
            let items: Vec<Value> =
                page.entries.iter().map(|entry| partial(&object_of(context.resource, entry))).collect();
            json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "items": items})
        }
        Shape::Object => {
            let items: Vec<Value> =
                page.entries.iter().map(|entry| object_of(context.resource, entry)).collect();
            json!({"kind": context.resource.list_kind, "apiVersion": context.resource.api_version(), "metadata": metadata, "items": items})
        }
    };
    written(StatusCode::OK, &shaped, format.yaml)
}

/// Reads `resourceVersion`, `resourceVersionMatch` and `continue`, and waits until that state is there.
async fn position(context: &Context) -> Result<Position, ApiError> {
    let now = Position { at: At::Now, start: String::new() };
    if let Some(token) = context.query.get("continue") {
        if context.query.get("resourceVersion").is_some_and(|revision| revision != "0") {
            return Err(status::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        return continued(token);
    }
    let given = context.query.get("resourceVersion");
    let matching = context.query.get("resourceVersionMatch");
    let revision = parse_revision(given)?;
    let Some(revision) = revision else { return Ok(now) };
    wait_for(context, revision).await?;
    if matching == Some("Exact") {
        return Ok(Position { at: At::Revision(revision), start: String::new() });
    }
    Ok(now)
}

pub(super) fn parse_revision(given: Option<&str>) -> Result<Option<u64>, ApiError> {
    given
        .map(|text| {
            text.parse().map_err(|_| {
                status::bad_request(format!(
                    "resourceVersion: Invalid value: {text:?}: invalid resource version"
                ))
            })
        })
        .transpose()
}

/// Waits for a revision that the client saw elsewhere; gives up after [`REVISION_WAIT`].
pub(super) async fn wait_for(context: &Context, revision: u64) -> Result<(), ApiError> {
    let cache = &context.api.cache;
    match tokio::time::timeout(REVISION_WAIT, cache.wait_for(revision)).await {
        Ok(()) => Ok(()),
        Err(_) => Err(status::too_large_resource_version(revision, cache.revision())),
    }
}

/// A token is upstream's: base64url of `{"v":"meta.k8s.io/v1","rv":N,"start":"KEY"}`.
fn continued(token: &str) -> Result<Position, ApiError> {
    let invalid = || status::bad_request("continue key is not valid: it was not given out by this server");
    let bytes = BASE64.decode(token.trim_end_matches('=')).map_err(|_| invalid())?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|_| invalid())?;
    if value.get("v").and_then(Value::as_str) != Some("meta.k8s.io/v1") {
        return Err(invalid());
    }
    let start = value.get("start").and_then(Value::as_str).ok_or_else(invalid)?;
    if start.is_empty() || start.starts_with('/') || start.split('/').any(|part| part == "..") {
        return Err(invalid());
    }
    // -1 is upstream's "inconsistent continue": the rest of the list as it is now.
    let at = match value.get("rv").and_then(Value::as_i64) {
        Some(-1) => At::Now,
        Some(revision) if revision > 0 => At::Revision(revision.unsigned_abs()),
        _ => return Err(invalid()),
    };
    Ok(Position { at, start: start.to_owned() })
}

fn token(revision: i64, start: &str) -> String {
    BASE64.encode(json!({"v": "meta.k8s.io/v1", "rv": revision, "start": start}).to_string())
}

pub(super) fn expired(expired: &Expired) -> ApiError {
    status::gone_expired(format!("too old resource version: {} ({})", expired.requested, expired.oldest))
}

/// A continued list that came too late may go on with the newest state, if the client wants that.
fn expired_page(reason: &Expired, position: &Position) -> ApiError {
    if position.start.is_empty() {
        return expired(reason);
    }
    let mut error = status::gone_expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list without the \
         continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the \
         provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first \
         chunk was returned and now may show up in the list.",
    );
    error.body["metadata"]["continue"] = Value::from(token(-1, &position.start));
    error
}

fn list_metadata(page: &Page, prefix: &str, limit: usize, everything: bool) -> Value {
    let mut metadata = Map::new();
    metadata.insert("resourceVersion".to_owned(), Value::from(page.revision.to_string()));
    if let Some(next) = &page.next {
        let start = next.strip_prefix(prefix).unwrap_or(next);
        let revision = i64::try_from(page.revision).unwrap_or(i64::MAX);
        metadata.insert("continue".to_owned(), Value::from(token(revision, start)));
        if everything && limit > 0 {
            metadata.insert("remainingItemCount".to_owned(), Value::from(page.remaining));
        }
    }
    Value::Object(metadata)
}

/// Writes the list piece by piece; the items are the cache's own bytes.
fn stream_list(context: &Context, entries: Vec<Arc<Entry>>, metadata: &Value) -> Reply {
    let resource = context.resource;
    let head = format!(
        "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
        resource.list_kind,
        resource.api_version()
    );
    let count = entries.len();
    let items = entries.into_iter().enumerate().map(move |(index, entry)| {
        let bytes = bytes_of(resource, &entry);
        if index + 1 == count { vec![bytes] } else { vec![bytes, Bytes::from_static(b",")] }
    });
    let chunks = std::iter::once(vec![Bytes::from(head)])
        .chain(items)
        .chain(std::iter::once(vec![Bytes::from_static(b"]}\n")]));
    let body = stream(futures::stream::iter(Gather { chunks: chunks.flatten(), limit_bytes: 64 << 10 }));
    reply(StatusCode::OK, "application/json", body)
}

/// Joins small pieces into frames: a frame per comma would cost more than the copy.
struct Gather<I> {
    chunks: I,
    limit_bytes: usize,
}

impl<I: Iterator<Item = Bytes>> Iterator for Gather<I> {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let first = self.chunks.next()?;
        if first.len() >= self.limit_bytes {
            return Some(first);
        }
        let mut joined = Vec::with_capacity(self.limit_bytes.min(8 << 10));
        joined.extend_from_slice(&first);
        while joined.len() < self.limit_bytes {
            let Some(next) = self.chunks.next() else { break };
            joined.extend_from_slice(&next);
        }
        Some(Bytes::from(joined))
    }
}
