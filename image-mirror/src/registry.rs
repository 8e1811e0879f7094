//! The registry behind the routes: one method per endpoint and verb.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::{Body, HttpBody};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use orlop_daemon::Drain;
use orlop_distribution::blobs::{BlobStore, Durability};
use orlop_types::{Algorithm, Digest};

use crate::auth::{Auth, Caller};
use crate::config::Config;
use crate::content::Ask;
use crate::error::RegistryError;
use crate::flights::Flights;
use crate::keeping::{Keeper, Mode};
use crate::namespace::{self, Origin, StandIn};
use crate::peers::Peers;
use crate::query::{decode_path, parameter};
use crate::recent::Recent;
use crate::records::Records;
use crate::repositories::Repositories;
use crate::route::{Route, TagOrDigest, Unroutable, route};
use crate::stores::Stores;
use crate::uploads::Uploads;
use crate::upstream::{Upstream, refused};

pub(crate) type Answer = Result<Response<Body>, RegistryError>;

/// Repositories in one answer, when the client does not say how many and at most.
const CATALOG_DEFAULT: usize = 100;
const CATALOG_LIMIT: usize = 1000;

/// Content and uploads.
pub(crate) struct Registry {
    pub(crate) blobs: BlobStore,
    pub(crate) repositories: Repositories,
    pub(crate) uploads: Uploads,
    pub(crate) upstream: Upstream,
    pub(crate) flights: Arc<Flights>,
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) recent: Recent,
    /// None where nobody is asked who he is.
    pub(crate) auth: Option<Auth>,
    pub(crate) peers: Peers,
    pub(crate) stores: Stores,
    upstreams: BTreeMap<String, String>,
    default_upstream: Option<String>,
    takes_pushes: bool,
}

impl Registry {
    pub(crate) fn open(config: &Config, drain: Drain) -> anyhow::Result<Self> {
        // Bytes are synced before the records' thread puts them in their place.
        let blobs = BlobStore::open(&config.root, Durability::Caller)?;
        let uploads = Uploads::open(blobs.clone(), config.max_uploads)?;
        let repositories =
            Repositories::open(Records::open(&config.root)?, blobs.clone(), config.keeping.upload_lease_ms());
        let client = crate::upstream::client(config);
        let upstream = Upstream::new(config, client.clone(), blobs.clone(), repositories.clone());
        let flights = Flights::new(client, upstream.clone(), blobs.clone(), repositories.clone());
        let keeper = Keeper::open(&config.root, &config.keeping, config.mode, repositories.clone())?;
        let peers = Peers::open(config, repositories.records.node(), drain)?;
        Ok(Self {
            keeper: Arc::new(keeper),
            recent: Recent::default(),
            peers,
            stores: Stores::new(&config.content_stores),
            repositories,
            blobs,
            upstream,
            flights: Arc::new(flights),
            auth: config.auth.as_ref().map(|auth| Auth::open(auth, &config.root)).transpose()?,
            upstreams: config.upstreams.clone(),
            default_upstream: config.default_upstream.clone(),
            uploads,
            takes_pushes: config.takes_pushes(),
        })
    }

    /// Answers one request.
    pub(crate) async fn answer(&self, request: Request<Body>, caller: &Caller) -> Answer {
        let (parts, body) = request.into_parts();
        let query = parts.uri.query().unwrap_or_default();
        let read = matches!(parts.method, Method::GET | Method::HEAD);
        let mode = self.keeper.mode();
        if let Some(refusal) = mode.refusal().filter(|_| !read) {
            return Err(refusal);
        }
        if !self.takes_pushes && !read {
            let message = "this registry takes no pushes: its operator may set anonymousPush: true";
            return Err(RegistryError::new(StatusCode::FORBIDDEN, "DENIED", message));
        }
        let path = decode_path(parts.uri.path()).ok_or_else(|| unroutable(Unroutable::Unknown))?;
        let (path, registry) = namespace::split(&path, parameter(query, "ns"), &self.upstreams)?;
        let mut route = route(&path).map_err(unroutable)?;
        let registry = match registry {
            None if read => self.stand_in(&route, parts.extensions.get())?,
            given => given,
        };
        if let Some(auth) = &self.auth {
            auth.permit(caller, &parts.method, &route, registry.as_deref())?;
        }
        let origin = namespace::apply(&mut route, registry, &self.upstreams);
        if mode == Mode::Maintenance && origin.is_some() {
            let answered = self.answer_route(route, &parts, caller, None, body).await;
            return answered.map_err(|error| mode.miss(error));
        }
        self.answer_route(route, &parts, caller, origin.as_ref(), body).await
    }

    /// The upstream that is meant without a registry. What was pushed is ours; and only of a repository that somebody pulled from are
    /// blobs asked for, because who pushes asks for them first.
    fn stand_in(&self, route: &Route, of_address: Option<&StandIn>) -> Result<Option<String>, RegistryError> {
        let upstream = of_address.map(|StandIn(name)| name.as_ref()).or(self.default_upstream.as_deref());
        let (Some(upstream), Some(name)) = (upstream, namespace::read_name(route)) else { return Ok(None) };
        if self.repositories.exists(name)? {
            return Ok(None);
        }
        let pulled = !matches!(route, Route::Blob { .. })
            || self.repositories.exists(&format!("{upstream}/{name}"))?;
        Ok(pulled.then(|| upstream.to_owned()))
    }

    /// Answers another node, which asks as a client does, `hops` nodes away from one.
    pub(crate) async fn answer_node(&self, path: &str, headers: &HeaderMap, hops: u32) -> Answer {
        let path = decode_path(path).ok_or_else(|| unroutable(Unroutable::Unknown))?;
        let (path, registry) = namespace::split(&path, None, &self.upstreams)?;
        let mut route = route(&path).map_err(unroutable)?;
        let origin = namespace::apply(&mut route, registry, &self.upstreams);
        let origin = origin.as_ref().filter(|_| self.keeper.mode() != Mode::Maintenance);
        match route {
            Route::Manifest { name, reference } => {
                self.get_manifest(&name, &reference, origin, headers, Ask { hops, ..Ask::default() }).await
            }
            Route::Blob { name, digest } => {
                self.get_blob(&name, &digest, origin, headers, Ask { hops, ..Ask::default() }).await
            }
            _ => Err(unroutable(Unroutable::Unknown)),
        }
    }

    async fn answer_route(
        &self,
        route: Route,
        parts: &Parts,
        caller: &Caller,
        origin: Option<&Origin>,
        body: Body,
    ) -> Answer {
        let query = parts.uri.query().unwrap_or_default();
        match (route, &parts.method) {
            (Route::Base, &Method::GET | &Method::HEAD) => Ok(base()),
            (Route::Catalog, &Method::GET | &Method::HEAD) => self.list_repositories(query),
            (Route::Manifest { name, reference }, &Method::GET | &Method::HEAD) => {
                let head = parts.method == Method::HEAD;
                self.get_manifest(&name, &reference, origin, &parts.headers, Ask { head, ..Ask::default() })
                    .await
            }
            (Route::Manifest { name, reference }, &Method::PUT) => {
                self.put_manifest(&name, &reference, query, &parts.headers, body).await
            }
            (Route::Manifest { name, reference }, &Method::DELETE) => {
                self.delete_manifest(&name, &reference).await
            }
            (Route::Blob { name, digest }, &Method::GET | &Method::HEAD) => {
                let head = parts.method == Method::HEAD;
                let ask = Ask { head, hops: 0, outbox: parts.extensions.get() };
                self.get_blob(&name, &digest, origin, &parts.headers, ask).await
            }
            (Route::Blob { name, digest }, &Method::DELETE) => self.delete_blob(&name, &digest).await,
            (Route::Uploads { name }, &Method::POST) => self.start_upload(&name, query, caller, body).await,
            (Route::Upload { name, session }, &Method::GET) => self.upload_status(&name, &session).await,
            (Route::Upload { name, session }, &Method::PATCH) => {
                self.append_upload(&name, &session, &parts.headers, body).await
            }
            (Route::Upload { name, session }, &Method::PUT) => {
                self.finish_upload(&name, &session, query, &parts.headers, body).await
            }
            (Route::Upload { name, session }, &Method::DELETE) => {
                self.uploads.find(&name, &session)?;
                self.uploads.cancel(&session);
                Ok(empty(StatusCode::NO_CONTENT))
            }
            (Route::Tags { name }, &Method::GET | &Method::HEAD) => {
                self.list_tags(&name, origin, query).await
            }
            (Route::Referrers { name, digest }, &Method::GET | &Method::HEAD) => {
                self.list_referrers(&name, &digest, origin, query).await
            }
            (_, method) => Err(RegistryError::unsupported(format!("{method} is not possible here"))),
        }
    }

    async fn start_upload(&self, name: &str, query: &str, caller: &Caller, body: Body) -> Answer {
        if let Some(digest) = parameter(query, "mount") {
            let digest: Digest = parse_digest(&digest)?;
            if self.mount(name, &digest, parameter(query, "from"), caller).await? {
                return Ok(created(&format!("/v2/{name}/blobs/{digest}"), &digest));
            }
        }
        let algorithm = match parameter(query, "digest-algorithm").as_deref() {
            None | Some("sha256") => Algorithm::Sha256,
            Some("sha512") => Algorithm::Sha512,
            Some(other) => {
                let message = format!("digest-algorithm {other:?} is not known: use sha256 or sha512");
                return Err(RegistryError::digest_invalid(message));
            }
        };
        self.keeper.make_room(known_size(&body)).await?;
        let session = self.uploads.start(name, algorithm)?;
        let Some(digest) = parameter(query, "digest") else {
            return Ok(accepted(name, &session, 0));
        };
        // Everything in one request (specification, "Single POST").
        let finished = async {
            let digest = parse_digest(&digest)?;
            let upload = self.uploads.find(name, &session)?;
            upload.append(&session, None, body).await?;
            self.commit(name, &session, &digest).await
        };
        let result = finished.await;
        self.uploads.cancel(&session);
        result
    }

    /// Without `from`, from wherever it is ("Mounting a blob from another repository").
    async fn mount(
        &self,
        name: &str,
        digest: &Digest,
        from: Option<String>,
        caller: &Caller,
    ) -> Result<bool, RegistryError> {
        let from = match from.filter(|from| !from.is_empty()) {
            Some(from) => {
                crate::route::repository(&from.split('/').collect::<Vec<_>>()).is_ok().then_some(from)
            }
            None => self.repositories.holder(digest)?,
        };
        let readable = |from: &String| self.auth.as_ref().is_none_or(|auth| auth.may_pull(caller, from));
        match from.filter(readable) {
            Some(from) => Ok(self.repositories.mount_blob(name, &from, digest).await?),
            None => Ok(false),
        }
    }

    async fn upload_status(&self, name: &str, session: &str) -> Answer {
        let size = self.uploads.find(name, session)?.size(session).await?;
        let mut response = accepted(name, session, size);
        *response.status_mut() = StatusCode::NO_CONTENT;
        Ok(response)
    }

    async fn append_upload(&self, name: &str, session: &str, headers: &HeaderMap, body: Body) -> Answer {
        let upload = self.uploads.find(name, session)?;
        self.keeper.make_room(known_size(&body)).await?;
        let size = upload.append(session, content_range(headers)?, body).await?;
        Ok(accepted(name, session, size))
    }

    async fn finish_upload(
        &self,
        name: &str,
        session: &str,
        query: &str,
        headers: &HeaderMap,
        body: Body,
    ) -> Answer {
        let upload = self.uploads.find(name, session)?;
        let digest = parameter(query, "digest")
            .ok_or_else(|| RegistryError::digest_invalid("the parameter digest is missing"))?;
        let digest = parse_digest(&digest)?;
        self.keeper.make_room(known_size(&body)).await?;
        upload.append(session, content_range(headers)?, body).await?;
        self.commit(name, session, &digest).await
    }

    async fn commit(&self, name: &str, session: &str, digest: &Digest) -> Answer {
        let upload = self.uploads.find(name, session)?;
        let staged = self.uploads.finish(&upload, session, digest).await?;
        self.keeper.make_room(staged.size()).await?;
        let number = self.repositories.keep_blob(name, staged, false).await?;
        tracing::info!(repository = name, %digest, "blob stored");
        let mut response = created(&format!("/v2/{name}/blobs/{digest}"), digest);
        if let Some(replicated) = self.peers.has_acknowledged(number) {
            set(&mut response, "orlop-replicated", if replicated { "true" } else { "false" });
        }
        Ok(response)
    }

    async fn delete_blob(&self, name: &str, digest: &Digest) -> Answer {
        // The bytes may belong to other repositories too: only the record goes.
        if !self.repositories.remove_blob(name, digest).await? {
            return Err(RegistryError::blob_unknown(digest.as_str()));
        }
        Ok(empty(StatusCode::ACCEPTED))
    }

    async fn list_tags(&self, name: &str, origin: Option<&Origin>, query: &str) -> Answer {
        let last = parameter(query, "last");
        let mut tags = self.repositories.tags(name, last.as_deref(), usize::MAX)?;
        let theirs = match origin.and_then(Origin::name) {
            Some(repository) => self.upstream.tags(&repository).await,
            None => None,
        };
        match theirs {
            Some(Ok(theirs)) => {
                tags.extend(
                    theirs.iter().filter(|tag| last.as_ref().is_none_or(|last| *tag > last)).cloned(),
                );
                tags.sort();
                tags.dedup();
            }
            Some(Err(error)) if !self.repositories.exists(name)? => {
                return Err(refused(&error, || RegistryError::name_unknown(name)));
            }
            None if !self.repositories.exists(name)? => return Err(RegistryError::name_unknown(name)),
            Some(Err(_)) | None => {}
        }
        let mut next = None;
        if let Some(limit) = parameter(query, "n") {
            let limit = count(&limit)?;
            if tags.len() > limit {
                tags.truncate(limit);
                next = tags
                    .last()
                    .map(|last| format!("</v2/{name}/tags/list?n={limit}&last={last}>; rel=\"next\""));
            }
        }
        let mut response = json("application/json", &serde_json::json!({"name": name, "tags": tags}));
        if let Some(value) = next.and_then(|next| HeaderValue::from_str(&next).ok()) {
            response.headers_mut().insert(header::LINK, value);
        }
        Ok(response)
    }

    /// As Docker's registry lists its repositories.
    fn list_repositories(&self, query: &str) -> Answer {
        let limit = match parameter(query, "n") {
            None => CATALOG_DEFAULT,
            Some(text) => count(&text)?.min(CATALOG_LIMIT),
        };
        let last = parameter(query, "last");
        let mut names = self.repositories.names(last.as_deref(), limit + 1)?;
        let more = limit > 0 && names.len() > limit;
        names.truncate(limit);
        let mut response = json("application/json", &serde_json::json!({"repositories": names}));
        if let Some(last) = names.last().filter(|_| more) {
            set(&mut response, "link", &format!("</v2/_catalog?n={limit}&last={last}>; rel=\"next\""));
        }
        Ok(response)
    }

    /// The digest of a manifest, by tag or as given.
    pub(crate) fn resolve(&self, name: &str, reference: &TagOrDigest) -> Result<Digest, RegistryError> {
        match reference {
            TagOrDigest::Digest(digest) => Ok(digest.clone()),
            TagOrDigest::Tag(tag) => {
                let found = self.repositories.tag(name, tag)?;
                found.map(|(digest, _)| digest).ok_or_else(|| self.unknown(name, tag))
            }
        }
    }

    pub(crate) fn unknown(&self, name: &str, reference: &str) -> RegistryError {
        if self.repositories.exists(name).unwrap_or(false) {
            RegistryError::manifest_unknown(reference)
        } else {
            RegistryError::name_unknown(name)
        }
    }
}

/// What does not fit is refused before it is sent, where the client says how much it is.
fn known_size(body: &Body) -> u64 {
    HttpBody::size_hint(body).lower()
}

/// The parameter `n` of a list.
fn count(text: &str) -> Result<usize, RegistryError> {
    text.parse().map_err(|_| {
        let message = format!("n={text:?} is no number of entries");
        RegistryError::new(StatusCode::BAD_REQUEST, "UNSUPPORTED", message)
    })
}

fn unroutable(why: Unroutable) -> RegistryError {
    match why {
        Unroutable::Unknown => RegistryError::new(StatusCode::NOT_FOUND, "UNSUPPORTED", "no such endpoint"),
        Unroutable::Name => RegistryError::new(
            StatusCode::NOT_FOUND,
            "NAME_INVALID",
            "the repository name breaks the grammar",
        ),
        Unroutable::Digest => RegistryError::digest_invalid("the digest is not sha256:HEX or sha512:HEX"),
        Unroutable::Tag => {
            RegistryError::new(StatusCode::NOT_FOUND, "MANIFEST_INVALID", "the tag breaks the grammar")
        }
    }
}

pub(crate) fn parse_digest(text: &str) -> Result<Digest, RegistryError> {
    text.parse().map_err(|error| RegistryError::digest_invalid(format!("{text:?} is no digest: {error}")))
}

fn content_range(headers: &HeaderMap) -> Result<Option<(u64, u64)>, RegistryError> {
    crate::ranges::content_range(headers).map_err(|()| {
        let message = "Content-Range must be BEGIN-END";
        RegistryError::new(StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID", message)
    })
}

fn base() -> Response<Body> {
    let mut response = json("application/json", &serde_json::json!({}));
    let version = HeaderValue::from_static("registry/2.0");
    response.headers_mut().insert("docker-distribution-api-version", version);
    response
}

pub(crate) fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

pub(crate) fn json(content_type: &'static str, value: &serde_json::Value) -> Response<Body> {
    let mut response = Response::new(Body::from(value.to_string()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

pub(crate) fn set(response: &mut Response<Body>, name: &'static str, value: &str) {
    // Names, digests and numbers are ASCII without control characters.
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

pub(crate) fn created(location: &str, digest: &Digest) -> Response<Body> {
    let mut response = empty(StatusCode::CREATED);
    set(&mut response, "location", location);
    set(&mut response, "docker-content-digest", digest.as_str());
    response
}

fn accepted(name: &str, session: &str, size: u64) -> Response<Body> {
    let mut response = empty(StatusCode::ACCEPTED);
    set(&mut response, "location", &format!("/v2/{name}/blobs/uploads/{session}"));
    set(&mut response, "docker-upload-uuid", session);
    set(&mut response, "range", &format!("0-{}", size.saturating_sub(1)));
    response
}
