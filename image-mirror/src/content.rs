//! Manifests, blobs and referrers: what is pulled, and what a pushed manifest must fulfil.

use std::collections::HashSet;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt as _;
use http::{HeaderMap, Response, StatusCode, header};
use orlop_distribution::blobs::BlobError;
use orlop_distribution::client::FetchedManifest;
use orlop_distribution::manifest::{MANIFEST_LIMIT, Manifest, OCI_INDEX};
use orlop_types::{Digest, Reference};
use tokio_util::io::ReaderStream;

use crate::door::{Outbox, WORTH_BYTES};
use crate::error::RegistryError;
use crate::flights::Wanted;
use crate::keeping::Mode;
use crate::namespace::Origin;
use crate::peers::PeerSource;
use crate::query::{parameter, parameters};
use crate::ranges::{Range, none_match, wanted};
use crate::recent::{Kept, Recent};
use crate::registry::{Answer, Registry, created, empty, json, parse_digest, set};
use crate::repositories::{NewManifest, Number, manifest_row};
use crate::route::{TagOrDigest, is_tag};
use crate::upstream::Source;

/// Read from the disk at one time while a blob is sent.
const READ_BYTES: usize = 256 << 10;
/// Most bytes of a pushed manifest, as Docker's registry has it.
const PUSH_LIMIT: usize = 4 << 20;
/// Most bytes of one that are read to be refused.
const DRAIN_LIMIT: usize = 16 << 20;
/// Tags that are set with one manifest.
const TAG_LIMIT: usize = 64;
/// The type of a manifest that says nothing.
const UNKNOWN_TYPE: &str = "application/octet-stream";

/// How a manifest or blob is asked for.
#[derive(Clone, Copy, Default)]
pub(crate) struct Ask<'o> {
    /// Without its bytes.
    pub(crate) head: bool,
    /// How many nodes sent it on.
    pub(crate) hops: u32,
    /// What takes files, where the connection can send them.
    pub(crate) outbox: Option<&'o Outbox>,
}

impl Registry {
    pub(crate) async fn get_manifest(
        &self,
        name: &str,
        reference: &TagOrDigest,
        origin: Option<&Origin>,
        headers: &HeaderMap,
        ask: Ask<'_>,
    ) -> Answer {
        let generation = self.repositories.records.generation();
        // Without an upstream a name says the same until the records change.
        let key = match (origin, reference) {
            (None, TagOrDigest::Tag(tag)) => Some(manifest_key(name, tag)),
            _ => None,
        };
        let kept = key.as_deref().and_then(|key| self.recent.get(key, generation));
        let key = key.filter(|_| kept.is_none());
        let (kept, source) = match (kept, origin.and_then(|origin| origin.manifest(reference))) {
            (Some(kept), _) => (kept, None),
            (None, Some(upstream)) => {
                let (digest, source) = self.resolve_or_fetch(name, reference, &upstream, ask.hops).await?;
                // What was fetched just now changed the records.
                let generation = self.repositories.records.generation();
                (self.manifest_here(name, &digest, origin, generation).await?, Some(source))
            }
            (None, None) => {
                let digest = self.resolve(name, reference)?;
                (self.manifest_here(name, &digest, None, generation).await?, None)
            }
        };
        if let Some(key) = key {
            self.recent.keep(key, &kept);
        }
        if none_match(headers, &kept.etag) {
            return Ok(marked(not_modified(&kept.digest), source));
        }
        self.keeper.pulled(&kept.digest);
        Ok(marked(kept.whole(ask.head), source))
    }

    /// A manifest of the repository, from memory or from the disk.
    async fn manifest_here(
        &self,
        name: &str,
        digest: &Digest,
        origin: Option<&Origin>,
        generation: u64,
    ) -> Result<Arc<Kept>, RegistryError> {
        let key = manifest_key(name, digest.as_str());
        if let Some(kept) = self.recent.get(&key, generation) {
            return Ok(kept);
        }
        let Some(row) = self.repositories.manifest(name, digest)? else {
            return Err(self.unknown(name, digest.as_str()));
        };
        let Some(bytes) = self.read_manifest(name, digest, origin).await? else {
            return Err(self.unknown(name, digest.as_str()));
        };
        let kept = Arc::new(Kept::new(generation, digest, &row.media_type, bytes));
        self.recent.keep(key, &kept);
        Ok(kept)
    }

    /// The bytes of a manifest that a row names; what is damaged or lost here is asked for at the other half and upstream.
    async fn read_manifest(
        &self,
        name: &str,
        digest: &Digest,
        origin: Option<&Origin>,
    ) -> Result<Option<Vec<u8>>, RegistryError> {
        match self.blobs.read(digest, MANIFEST_LIMIT) {
            Ok(Some(bytes)) => return Ok(Some(bytes)),
            Ok(None) | Err(BlobError::Digest(_)) => self.keeper.inspect(digest).await,
            Err(error) => return Err(error.into()),
        }
        let peers = self.peers.halves(digest);
        if !peers.is_empty() && self.keeper.mode() != Mode::Maintenance {
            let wanted = Wanted { digest: digest.clone(), size: None, name: None, peers, upstream: None };
            if self.flights.blob(wanted)?.landed().await.is_ok() {
                return Ok(self.blobs.read(digest, MANIFEST_LIMIT)?);
            }
        }
        let upstream = origin.and_then(|origin| origin.manifest(&TagOrDigest::Digest(digest.clone())));
        let Some(upstream) = upstream else { return Ok(None) };
        self.upstream.manifest(name, &upstream, None).await?;
        Ok(self.blobs.read(digest, MANIFEST_LIMIT)?)
    }

    /// By digest nobody is asked again, and a pushed tag is ours; of a fetched tag the upstream knows more.
    async fn resolve_or_fetch(
        &self,
        name: &str,
        reference: &TagOrDigest,
        upstream: &Reference,
        hops: u32,
    ) -> Result<(Digest, Source), RegistryError> {
        if let TagOrDigest::Digest(digest) = reference
            && self
                .recent
                .get(&manifest_key(name, digest.as_str()), self.repositories.records.generation())
                .is_some()
        {
            self.upstream.seen.manifest(upstream.registry(), Source::Hit);
            return Ok((digest.clone(), Source::Hit));
        }
        let here = match reference {
            TagOrDigest::Digest(digest) => Some((digest.clone(), false)),
            TagOrDigest::Tag(tag) => self.repositories.tag(name, tag)?,
        };
        let here = match here {
            Some((digest, fetched)) if self.upstream.is_here(name, &digest)? => Some((digest, fetched)),
            _ => None,
        };
        match here {
            Some((digest, false)) => {
                self.upstream.seen.manifest(upstream.registry(), Source::Hit);
                Ok((digest, Source::Hit))
            }
            here => {
                for mirror in self.peers.sources_of_manifest(name, upstream, hops) {
                    if let Some(found) = self.manifest_of_mirror(name, upstream, &mirror).await? {
                        return Ok(found);
                    }
                }
                self.upstream.manifest(name, upstream, here.map(|(digest, _)| digest)).await
            }
        }
    }

    /// What another mirror says of a manifest; none when it says nothing that is of use.
    async fn manifest_of_mirror(
        &self,
        name: &str,
        upstream: &Reference,
        mirror: &PeerSource,
    ) -> Result<Option<(Digest, Source)>, RegistryError> {
        let limit = usize::try_from(MANIFEST_LIMIT).unwrap_or(usize::MAX);
        let document = mirror.document(limit).await;
        let Ok((bytes, kind)) =
            document.inspect_err(|error| tracing::debug!(%upstream, %error, "no manifest"))
        else {
            return Ok(None);
        };
        let digest = upstream.digest().cloned().unwrap_or_else(|| Digest::sha256(&bytes));
        // The other half knows bytes only.
        let kind = kind.filter(|kind| kind != UNKNOWN_TYPE);
        let manifest = Manifest::parse(&bytes, kind.as_deref());
        let (Ok(()), Ok(manifest)) = (digest.verify(&bytes), manifest) else { return Ok(None) };
        let media_type = kind.unwrap_or_else(|| manifest.media_type().to_owned());
        let fetched = FetchedManifest { digest: digest.clone(), media_type, bytes: bytes.into(), manifest };
        self.upstream.keep(name, upstream.tag(), fetched).await?;
        self.upstream.seen.manifest(upstream.registry(), Source::Miss);
        Ok(Some((digest, Source::Miss)))
    }

    pub(crate) async fn put_manifest(
        &self,
        name: &str,
        reference: &TagOrDigest,
        query: &str,
        headers: &HeaderMap,
        body: Body,
    ) -> Answer {
        let tags = pushed_tags(reference, query)?;
        let bytes = document(body).await?;
        let stated = match reference {
            TagOrDigest::Digest(digest) => Some(digest.clone()),
            TagOrDigest::Tag(_) => parameter(query, "digest").map(|text| parse_digest(&text)).transpose()?,
        };
        let digest = stated.unwrap_or_else(|| Digest::sha256(&bytes));
        digest.verify(&bytes).map_err(|error| RegistryError::digest_invalid(error.to_string()))?;
        let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let given = given.and_then(|value| value.split(';').next()).map(str::trim);
        let manifest = Manifest::parse(&bytes, given)
            .map_err(|error| RegistryError::manifest_invalid(error.to_string()))?;
        let media_type = given.unwrap_or_else(|| manifest.media_type());
        let row = manifest_row(&manifest, media_type, bytes.len() as u64, false);
        let subject = row.subject.clone();
        self.keeper.make_room(row.size).await?;
        let (repositories, staging) = (self.repositories.clone(), digest.clone());
        let staged = tokio::task::spawn_blocking(move || repositories.stage(&staging, &bytes)).await;
        let staged = staged.map_err(|error| RegistryError::internal("store a manifest", error))??;
        // Every blob of an image must be here; an index may be pushed before its images are.
        let needs = match &manifest {
            Manifest::Image(_) => row.parts.iter().map(|part| part.digest.clone()).collect(),
            Manifest::Index(_) => Vec::new(),
        };
        let new =
            NewManifest { name: name.to_owned(), digest: digest.clone(), row, tags: tags.clone(), staged };
        let stored = self.repositories.push_manifest(new, needs).await?;
        let number = stored.map_err(|missing| {
            let message =
                format!("blob {missing} of the manifest is not in repository {name}: push it first");
            RegistryError::new(StatusCode::NOT_FOUND, "MANIFEST_BLOB_UNKNOWN", message)
        })?;
        tracing::info!(repository = name, ?reference, %digest, "manifest stored");
        let mut response = created(&format!("/v2/{name}/manifests/{digest}"), &digest);
        if let Some(subject) = subject {
            set(&mut response, "oci-subject", subject.as_str());
        }
        self.report_replication(number, &mut response).await?;
        if matches!(reference, TagOrDigest::Digest(_)) && !tags.is_empty() {
            set(&mut response, "oci-tag", &tags.join(", "));
        }
        Ok(response)
    }

    /// A push is answered when it is on this disk; strict ones when it is on a peer's, too.
    async fn report_replication(
        &self,
        number: Number,
        response: &mut Response<Body>,
    ) -> Result<(), RegistryError> {
        let replicated = self.peers.replicated(number).await.map_err(|waited| {
            let message = format!(
                "the image is stored here, but no peer had it after {}s, and strictReplication is set: push again when the peer is back",
                waited.as_secs()
            );
            RegistryError::new(StatusCode::SERVICE_UNAVAILABLE, "UNKNOWN", message)
        })?;
        if let Some(replicated) = replicated {
            set(response, "orlop-replicated", if replicated { "true" } else { "false" });
        }
        Ok(())
    }

    pub(crate) async fn delete_manifest(&self, name: &str, reference: &TagOrDigest) -> Answer {
        let removed = match reference {
            TagOrDigest::Tag(tag) => self.repositories.remove_tag(name, tag).await?,
            TagOrDigest::Digest(digest) => self.repositories.remove_manifest(name, digest).await?,
        };
        if removed {
            return Ok(empty(StatusCode::ACCEPTED));
        }
        let shown = match reference {
            TagOrDigest::Tag(tag) => tag.clone(),
            TagOrDigest::Digest(digest) => digest.to_string(),
        };
        Err(self.unknown(name, &shown))
    }

    pub(crate) async fn get_blob(
        &self,
        name: &str,
        digest: &Digest,
        origin: Option<&Origin>,
        headers: &HeaderMap,
        ask: Ask<'_>,
    ) -> Answer {
        let Ask { head, outbox, .. } = ask;
        let generation = self.repositories.records.generation();
        let key = blob_key(name, digest, origin.is_some());
        if !head && let Some(kept) = self.recent.get(&key, generation) {
            self.keeper.pulled(digest);
            return self.hit(origin, kept.part(headers)?);
        }
        // What an upstream gave for one repository it gives for the others: only pushed blobs belong to theirs.
        let known = origin.is_some()
            || self.repositories.has_blob(name, digest)?
            || self.repositories.manifest(name, digest)?.is_some();
        if !known {
            return Err(RegistryError::blob_unknown(digest.as_str()));
        }
        let mut file = self.blobs.open_blob(digest)?;
        if file.is_none() {
            self.keeper.inspect(digest).await;
        }
        if file.is_some() {
            match head {
                // A client that pushes asks so, and leaves out what it is told to be here.
                true if !self.keeper.promised(digest).await => file = None,
                true => {}
                false => self.keeper.pulled(digest),
            }
        }
        if let Some(file) = file {
            let size = file.metadata().map_err(|error| RegistryError::internal("read a blob", error))?.len();
            if origin.is_some() && !self.repositories.has_blob(name, digest)? {
                self.keeper.adopt(name, digest, size);
            }
            if head {
                return answer_blob(digest, size, headers, |_, _| Ok(Body::empty()));
            }
            if !Recent::takes(size) {
                let answer = answer_blob(digest, size, headers, |begin, length| match outbox {
                    Some(outbox) if length >= WORTH_BYTES => Ok(outbox.body(file, begin, length)),
                    _ => send(file, begin, length),
                })?;
                return self.hit(origin, answer);
            }
            match self.blobs.read(digest, size) {
                Ok(Some(bytes)) => {
                    let kept = Arc::new(Kept::new(generation, digest, UNKNOWN_TYPE, bytes));
                    self.recent.keep(key, &kept);
                    return self.hit(origin, kept.part(headers)?);
                }
                Ok(None) | Err(BlobError::Digest(_)) => self.keeper.inspect(digest).await,
                Err(error) => return Err(error.into()),
            }
        }
        // A client that pushes must not leave out what only a runtime has.
        let found = if origin.is_some() || !head { self.stores.find(digest).await? } else { None };
        if let Some(file) = found {
            let size = file.metadata().map_err(|error| RegistryError::internal("read a blob", error))?.len();
            return answer_blob(digest, size, headers, |begin, length| match head {
                true => Ok(Body::empty()),
                false => send(file, begin, length),
            });
        }
        self.fetch_blob(name, digest, origin, headers, ask).await
    }

    /// Counts what an upstream was not asked for.
    fn hit(&self, origin: Option<&Origin>, answer: Response<Body>) -> Answer {
        if let Some(origin) = origin {
            let bytes = answer.headers().get(header::CONTENT_LENGTH);
            let bytes = bytes.and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or(0);
            self.upstream.seen.blob(origin.registry(), Source::Hit, bytes);
        }
        Ok(answer)
    }

    /// What is not here: from other mirrors, or from upstream.
    async fn fetch_blob(
        &self,
        name: &str,
        digest: &Digest,
        origin: Option<&Origin>,
        headers: &HeaderMap,
        ask: Ask<'_>,
    ) -> Answer {
        let Ask { head, hops, .. } = ask;
        let upstream = origin.and_then(|origin| origin.blob(digest));
        let size = self.repositories.blob_size(name, digest)?;
        if let (true, Some(upstream)) = (head, &upstream) {
            // A client that asks before it fetches must not be told "no": a chained mirror would believe it.
            let size = match size {
                Some(size) => size,
                None => self.flights.blob_size(upstream, digest).await?,
            };
            return answer_blob(digest, size, headers, |_, _| Ok(Body::empty()));
        }
        let peers = match self.keeper.mode() {
            Mode::Normal | Mode::ReadOnly => self.peers.sources(name, digest, hops),
            Mode::Maintenance => Vec::new(),
        };
        if upstream.is_none() && peers.is_empty() {
            return Err(RegistryError::blob_unknown(digest.as_str()));
        }
        self.keeper.pulled(digest);
        if !self.flights.is_running(digest) {
            self.keeper.make_room(size.unwrap_or(0)).await?;
        }
        let wanted = Wanted { digest: digest.clone(), size, name: Some(name.to_owned()), peers, upstream };
        let growing = self.flights.blob(wanted)?.ready().await?;
        if let Some(origin) = origin {
            self.upstream.seen.blob(origin.registry(), Source::Miss, 0);
        }
        answer_blob(digest, growing.size(), headers, |begin, length| match head {
            true => Ok(Body::empty()),
            false => Ok(growing.body(begin, length)),
        })
    }

    pub(crate) async fn list_referrers(
        &self,
        name: &str,
        digest: &Digest,
        origin: Option<&Origin>,
        query: &str,
    ) -> Answer {
        let mut found = self.repositories.referrers(name, digest)?;
        if let Some(subject) = origin.and_then(|origin| origin.blob(digest)) {
            let theirs = self.upstream.referrers(&subject).await;
            let here: HashSet<Digest> = found.iter().map(|descriptor| descriptor.digest.clone()).collect();
            found.extend(theirs.into_iter().filter(|descriptor| !here.contains(&descriptor.digest)));
        }
        let wanted = parameter(query, "artifactType");
        if let Some(wanted) = &wanted {
            found.retain(|descriptor| descriptor.artifact_type.as_ref() == Some(wanted));
        }
        let index = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found});
        let mut response = json(OCI_INDEX, &index);
        if wanted.is_some() {
            set(&mut response, "oci-filters-applied", "artifactType");
        }
        Ok(response)
    }
}

/// What is kept of a manifest under a tag or digest.
fn manifest_key(name: &str, reference: &str) -> String {
    [name, "@", reference].concat()
}

/// A blob that an upstream gives is found in each of its repositories, so it is kept apart.
fn blob_key(name: &str, digest: &Digest, fetched: bool) -> String {
    [name, if fetched { "<" } else { "=" }, digest.as_str()].concat()
}

impl Kept {
    /// The whole or a part of it.
    fn part(&self, headers: &HeaderMap) -> Answer {
        let index = |position: u64| usize::try_from(position).unwrap_or(usize::MAX);
        answer_blob(&self.digest, self.bytes.len() as u64, headers, |begin, length| {
            Ok(Body::from(self.bytes.slice(index(begin)..index(begin + length))))
        })
    }
}

/// A pushed document. What is too much is read to some length before it is refused: a client that is still sending may not see an
/// answer that comes before.
async fn document(body: Body) -> Result<Bytes, RegistryError> {
    let mut stream = body.into_data_stream();
    let (mut bytes, mut length) = (Vec::new(), 0);
    while let Some(chunk) = stream.next().await {
        let chunk =
            chunk.map_err(|error| RegistryError::manifest_invalid(format!("the body was cut: {error}")))?;
        length += chunk.len();
        if length <= PUSH_LIMIT {
            bytes.extend_from_slice(&chunk);
        } else {
            bytes = Vec::new();
        }
        if length > DRAIN_LIMIT {
            break;
        }
    }
    if length > PUSH_LIMIT {
        let message = format!("at most {PUSH_LIMIT} bytes are taken");
        return Err(RegistryError::new(StatusCode::PAYLOAD_TOO_LARGE, "MANIFEST_INVALID", message));
    }
    Ok(bytes.into())
}

/// The tags that a pushed manifest gets: the one of the path, or those of `tag` parameters beside a digest (end-7b).
fn pushed_tags(reference: &TagOrDigest, query: &str) -> Result<Vec<String>, RegistryError> {
    if let TagOrDigest::Tag(tag) = reference {
        return Ok(vec![tag.clone()]);
    }
    let tags: Vec<String> = parameters(query, "tag").take(TAG_LIMIT + 1).collect();
    if tags.len() > TAG_LIMIT {
        let message = format!("at most {TAG_LIMIT} tags are taken with one manifest");
        return Err(RegistryError::new(StatusCode::URI_TOO_LONG, "UNSUPPORTED", message));
    }
    match tags.iter().find(|tag| !is_tag(tag)) {
        Some(tag) => Err(RegistryError::manifest_invalid(format!("the tag {tag:?} breaks the grammar"))),
        None => Ok(tags),
    }
}

/// Says where a pulled manifest came from, and that it may be old (RFC 7234 section 5.5.1).
fn marked(mut response: Response<Body>, source: Option<Source>) -> Response<Body> {
    if let Some(source) = source {
        set(&mut response, "orlop-cache", source.name());
        if source == Source::Stale {
            set(&mut response, "warning", "110 - \"Response is Stale\"");
        }
    }
    response
}

/// The client has it already.
fn not_modified(digest: &Digest) -> Response<Body> {
    let mut response = empty(StatusCode::NOT_MODIFIED);
    set(&mut response, "docker-content-digest", digest.as_str());
    set(&mut response, "etag", &format!("\"{digest}\""));
    response
}

/// Status and headers of a blob, or of the part that was asked for; `body` makes what is sent.
pub(crate) fn answer_blob(
    digest: &Digest,
    size: u64,
    headers: &HeaderMap,
    body: impl FnOnce(u64, u64) -> Result<Body, RegistryError>,
) -> Answer {
    let etag = format!("\"{digest}\"");
    if none_match(headers, &etag) {
        return Ok(not_modified(digest));
    }
    let (status, begin, length) = match wanted(headers, &etag, size) {
        Range::Whole => (StatusCode::OK, 0, size),
        Range::Part { begin, end } => (StatusCode::PARTIAL_CONTENT, begin, end - begin + 1),
        Range::Outside => {
            let mut response = empty(StatusCode::RANGE_NOT_SATISFIABLE);
            set(&mut response, "content-range", &format!("bytes */{size}"));
            return Ok(response);
        }
    };
    let mut response = Response::new(body(begin, length)?);
    *response.status_mut() = status;
    set(&mut response, "content-type", UNKNOWN_TYPE);
    set(&mut response, "content-length", &length.to_string());
    set(&mut response, "accept-ranges", "bytes");
    set(&mut response, "docker-content-digest", digest.as_str());
    set(&mut response, "etag", &format!("\"{digest}\""));
    if status == StatusCode::PARTIAL_CONTENT {
        set(&mut response, "content-range", &format!("bytes {begin}-{}/{size}", begin + length - 1));
    }
    Ok(response)
}

/// Small blobs in one piece, large ones in a stream.
pub(crate) fn send(mut file: std::fs::File, begin: u64, length: u64) -> Result<Body, RegistryError> {
    file.seek(SeekFrom::Start(begin)).map_err(|error| RegistryError::internal("read a blob", error))?;
    if length <= READ_BYTES as u64 {
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(READ_BYTES));
        file.take(length)
            .read_to_end(&mut bytes)
            .map_err(|error| RegistryError::internal("read a blob", error))?;
        return Ok(Body::from(Bytes::from(bytes)));
    }
    let reader = tokio::io::AsyncReadExt::take(tokio::fs::File::from_std(file), length);
    Ok(Body::from_stream(ReaderStream::with_capacity(reader, READ_BYTES)))
}
