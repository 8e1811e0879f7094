//! Watches: history, then live changes, with bookmarks; or the whole state first (WatchList, KEP-3157).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use orlop_resources::Resource;
use orlop_resources::status::{self, ApiError};
use orlop_store::{At, Cache, Change, ChangeKind, Entry, PageRequest, Revision, Watch};
use rand::RngExt as _;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::list::{expired, parse_revision, wait_for};
use super::respond::{IncludeObject, bytes_of, include_object, object_of, partial, row, table};
use crate::body::{Reply, reply, stream};
use crate::context::{Context, Selection};
use crate::rules::accept::Shape;
use crate::rules::options;
use crate::state::prefix_in;

/// Upstream's `defaultBookmarkFrequency`.
const BOOKMARK_PERIOD: Duration = Duration::from_secs(60);
/// A watch without `timeoutSeconds` ends after 30 to 60 minutes, so that not all clients come back at once.
const MIN_REQUEST_SECONDS: u64 = 1800;
/// A frame carries as many events as are there, up to about this size.
const FRAME_BYTES: usize = 64 << 10;

/// GET with `watch`.
pub(crate) async fn watch(context: &Context) -> Result<Reply, ApiError> {
    let format = context.format(true)?;
    let include = include_object(context)?;
    let selection = context.selection()?;
    let bookmarks = context.query.flag("allowWatchBookmarks");
    let revision = parse_revision(context.query.get("resourceVersion"))?;
    options::refused("ListOptions", &options::watch_faults(&context.query))?;
    let initial = wants_initial_events(context, revision);
    if let Some(revision) = revision.filter(|revision| *revision > 0) {
        wait_for(context, revision).await?;
    }
    let seconds = context.query.number("timeoutSeconds").map_err(status::bad_request)?;
    let seconds = match seconds.and_then(|seconds| u64::try_from(seconds).ok()).filter(|seconds| *seconds > 0)
    {
        Some(seconds) => seconds,
        None => MIN_REQUEST_SECONDS + rand::rng().random_range(0..MIN_REQUEST_SECONDS),
    };
    let writer = Writer { resource: context.resource, shape: format.shape, include };
    let opened = open(context, &selection, revision, initial);
    let (first, watch) = match opened {
        Ok(opened) => opened,
        // Upstream answers a watch from a compacted revision with 200 and an ERROR event.
        Err(error) => {
            let event = json!({"type": "ERROR", "object": error.body}).to_string() + "\n";
            return Ok(reply(
                StatusCode::OK,
                "application/json",
                stream(futures::stream::iter([Bytes::from(event)])),
            ));
        }
    };
    let state = Stream {
        cache: context.api.cache.clone(),
        drain: context.api.drain.clone(),
        selection,
        writer,
        first: first.into(),
        end_of_first: (initial && bookmarks).then_some(watch.revision),
        replay: watch.replay.into(),
        changes: watch.changes,
        bookmarks,
        next_bookmark: Instant::now() + BOOKMARK_PERIOD,
        deadline: Instant::now() + Duration::from_secs(seconds),
        ended: false,
    };
    let chunks = futures::stream::unfold(state, |mut state| async move {
        state.next_frame().await.map(|frame| (frame, state))
    });
    Ok(reply(StatusCode::OK, "application/json", stream(chunks)))
}

/// Whether the state comes first. Revision 0 or none has always meant so; `sendInitialEvents` says it explicitly.
/// Without initial events a watch starts now, or where the client says.
fn wants_initial_events(context: &Context, revision: Option<Revision>) -> bool {
    match context.query.get("sendInitialEvents") {
        Some(_) => context.query.flag("sendInitialEvents"),
        None => revision.unwrap_or_default() == 0,
    }
}

fn open(
    context: &Context,
    selection: &Selection,
    revision: Option<Revision>,
    initial: bool,
) -> Result<(Vec<Arc<Entry>>, Watch), ApiError> {
    let prefix = prefix_in(context.resource, &context.info.namespace);
    let filter = {
        let selection = selection.clone();
        // Cheap refusals happen in the dispatcher, so that a queue only holds what its watcher wants.
        Arc::new(move |change: &Change| {
            selection.matches(&change.entry)
                || change.previous.as_deref().is_some_and(|previous| selection.matches(previous))
        })
    };
    if initial {
        let matches = |entry: &Entry| selection.matches(entry);
        let request = PageRequest { at: At::Now, prefix: &prefix, start: "", limit: 0, matches: &matches };
        let (page, watch) =
            context.api.cache.list_and_watch(&request, filter).map_err(|reason| expired(&reason))?;
        return Ok((page.entries, watch));
    }
    let since = revision.filter(|revision| *revision > 0);
    let watch = context.api.cache.watch(&prefix, since, filter).map_err(|reason| expired(&reason))?;
    Ok((Vec::new(), watch))
}

/// How events are written for one watcher.
struct Writer {
    resource: &'static Resource,
    shape: Shape,
    include: IncludeObject,
}

impl Writer {
    fn event(&self, out: &mut Vec<u8>, kind: &str, entry: &Entry) {
        out.extend_from_slice(b"{\"type\":\"");
        out.extend_from_slice(kind.as_bytes());
        out.extend_from_slice(b"\",\"object\":");
        match self.shape {
            Shape::Object => out.extend_from_slice(&bytes_of(self.resource, entry)),
            Shape::Partial => {
                out.extend_from_slice(partial(&object_of(self.resource, entry)).to_string().as_bytes())
            }
            Shape::Table => {
                let object = object_of(self.resource, entry);
                let metadata = json!({"resourceVersion": entry.mod_revision.to_string()});
                let table = table(self.resource, metadata, vec![row(self.resource, &object, self.include)]);
                out.extend_from_slice(table.to_string().as_bytes());
            }
        }
        out.extend_from_slice(b"}\n");
    }

    fn bookmark(&self, out: &mut Vec<u8>, revision: Revision, end_of_first: bool) {
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if end_of_first {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.shape {
            Shape::Object => {
                json!({"kind": self.resource.kind, "apiVersion": self.resource.api_version(), "metadata": metadata})
            }
            Shape::Partial => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
            }
            Shape::Table => {
                let object = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata});
                let list = json!({"resourceVersion": revision.to_string()});
                table(self.resource, list, vec![json!({"cells": [], "object": object})])
            }
        };
        out.extend_from_slice(json!({"type": "BOOKMARK", "object": object}).to_string().as_bytes());
        out.push(b'\n');
    }
}

/// A running watch: the state first if asked for, then the history, then what comes.
struct Stream {
    cache: Arc<Cache>,
    drain: orlop_daemon::Drain,
    selection: Selection,
    writer: Writer,
    first: VecDeque<Arc<Entry>>,
    end_of_first: Option<Revision>,
    replay: VecDeque<Arc<Change>>,
    changes: mpsc::Receiver<Arc<Change>>,
    bookmarks: bool,
    next_bookmark: Instant,
    deadline: Instant,
    ended: bool,
}

impl Stream {
    async fn next_frame(&mut self) -> Option<Bytes> {
        let mut out = Vec::new();
        self.fill(&mut out);
        while out.is_empty() {
            if self.ended {
                return None;
            }
            tokio::select! {
                biased;
                change = self.changes.recv() => match change {
                    Some(change) => {
                        self.write(&mut out, &change);
                        self.fill(&mut out);
                    }
                    // Too slow: the client starts again from its last revision.
                    None => self.ended = true,
                },
                () = tokio::time::sleep_until(self.deadline) => {
                    self.ended = true;
                    self.write_bookmark(&mut out);
                }
                () = self.drain.wait() => {
                    self.ended = true;
                    self.write_bookmark(&mut out);
                }
                () = tokio::time::sleep_until(self.next_bookmark), if self.bookmarks => {
                    self.next_bookmark = Instant::now() + BOOKMARK_PERIOD;
                    self.write_bookmark(&mut out);
                }
            }
        }
        Some(Bytes::from(out))
    }

    /// Writes what is there without waiting, up to a frame.
    fn fill(&mut self, out: &mut Vec<u8>) {
        while out.len() < FRAME_BYTES {
            if let Some(entry) = self.first.pop_front() {
                self.writer.event(out, "ADDED", &entry);
            } else if let Some(revision) = self.end_of_first.take() {
                self.writer.bookmark(out, revision, true);
            } else if let Some(change) = self.replay.pop_front() {
                self.write(out, &change);
            } else if let Ok(change) = self.changes.try_recv() {
                self.write(out, &change);
            } else {
                break;
            }
        }
    }

    /// An object may enter or leave the selection: for the watcher that is its beginning and its end.
    fn write(&self, out: &mut Vec<u8>, change: &Change) {
        let before = change.previous.as_deref().filter(|previous| self.selection.matches(previous));
        let after = self.selection.matches(&change.entry) && change.kind != ChangeKind::Deleted;
        match (before, after) {
            (None, true) => self.writer.event(out, "ADDED", &change.entry),
            (Some(_), true) => self.writer.event(out, "MODIFIED", &change.entry),
            (Some(_), false) if change.kind == ChangeKind::Deleted => {
                self.writer.event(out, "DELETED", &change.entry)
            }
            (Some(previous), false) => {
                self.writer.event(out, "DELETED", &previous.at_revision(change.revision()))
            }
            (None, false) => {}
        }
    }

    /// The revision is read first: every change up to it is then in the queue, and is written before the bookmark.
    fn write_bookmark(&mut self, out: &mut Vec<u8>) {
        if !self.bookmarks {
            return;
        }
        let revision = self.cache.revision();
        while let Ok(change) = self.changes.try_recv() {
            self.write(out, &change);
        }
        self.writer.bookmark(out, revision, false);
    }
}
