//! Wiring, health and metrics.

use std::sync::Arc;

use anyhow::Context as _;
use axum::body::Body;
use http::{Request, Response};
use orlop_daemon::Frame;

use crate::auth::{Auth, Caller, Host};
use crate::bundles::Bundles;
use crate::config::Config;
use crate::door::{Accounts, Busy, Client, Door, Record};
use crate::error::RegistryError;
use crate::registry::{Answer, Registry};

/// What answers requests.
pub(crate) struct Server {
    frame: Frame,
    registry: Arc<Registry>,
    accounts: Arc<Accounts>,
}

/// Starts the registry as tasks of the frame.
///
/// # Errors
/// The address, the directory or the certificate cannot be used.
pub async fn start(frame: &Frame, config: Config) -> anyhow::Result<()> {
    let config = config.with_named_default();
    let registry = Registry::open(&config, frame.drain())
        .with_context(|| format!("failed to open the registry in {}", config.root.display()))?;
    let (records, blobs) = (&registry.repositories.records, &registry.blobs);
    crate::older::take_over(&config.root, records, blobs).await?;
    let door = Door::open(frame, &config).await?;
    let accounts = Accounts::new(&mut frame.metrics(), config.access_log);
    frame.metrics().register(
        "mirror_upstream_blob_fetches",
        "Blobs fetched from upstreams",
        registry.flights.fetches.clone(),
    );
    registry.keeper.start(frame)?;
    if let Some(auth) = &registry.auth {
        frame.metrics().register(
            "mirror_auth_failures",
            "Credentials that were refused",
            auth.failures.clone(),
        );
    }
    let watched: Vec<_> = registry
        .auth
        .iter()
        .flat_map(Auth::watched)
        .chain(door.watched())
        .chain(registry.peers.watched())
        .collect();
    if !watched.is_empty() {
        frame.spawn("mirror-files", crate::watched::watch(watched, frame.drain()));
    }
    registry.upstream.register(&mut frame.metrics());
    let registry = Arc::new(registry);
    registry.peers.start(frame, &registry);
    let bundles = Bundles::open(&config)?;
    if let Some(bundles) = &bundles {
        bundles.clone().start(frame, &registry);
    }
    let server = Arc::new(Server { frame: frame.clone(), registry, accounts });
    // The frame keeps the dump, and the server the frame.
    let dumped = Arc::downgrade(&server);
    frame.dump("mirror", move || match dumped.upgrade() {
        Some(server) => {
            let registry = &server.registry;
            // What cannot be read now is missing in the dump, not the dump.
            let totals = registry.repositories.records.totals().ok();
            serde_json::json!({
                "uploads": registry.uploads.count(),
                "fetches": registry.flights.count(),
                "node": registry.peers.own(),
                "peers": registry.peers.dump(),
                "blobs": totals.map(|totals| totals.count),
                "blobBytes": totals.map(|totals| totals.bytes),
                "upstreams": registry.upstream.state(),
                "keeping": registry.keeper.state(),
                "bundles": bundles.as_ref().map(|bundles| bundles.state()),
            })
        }
        None => serde_json::Value::Null,
    });
    let tls = config.tls_cert_file.is_some();
    tracing::info!(listen = %config.listen, tls, root = %config.root.display(), "serving the registry");
    frame.spawn("mirror-listener", door.serve(server, frame.drain()));
    Ok(())
}

impl Server {
    /// Answers one request.
    pub(crate) async fn answer(&self, request: Request<Body>, client: &Client, busy: Busy) -> Response<Body> {
        let (request, mut record) = self.accounts.begin(request, client, busy);
        let response = match request.uri().path() {
            "/healthz" | "/livez" | "/readyz" => Response::new(Body::from("ok")),
            path if Registry::is_for_peers(path) => {
                self.registry.answer_peer(request, client).await.unwrap_or_else(RegistryError::into_response)
            }
            _ => self.admit(request, client, &mut record).await,
        };
        record.answer(response)
    }

    /// What is not for everybody.
    async fn admit(&self, request: Request<Body>, client: &Client, record: &mut Record) -> Response<Body> {
        let Some(auth) = &self.registry.auth else {
            return match request.uri().path() {
                "/metrics" => self.metrics(),
                _ => self.registry.answer(request, &Caller::default()).await,
            }
            .unwrap_or_else(RegistryError::into_response);
        };
        let host = Host::of(request.headers(), request.uri(), client);
        let answered = async {
            if request.uri().path() == "/token" {
                return auth.give_token(request, client).await;
            }
            let caller = auth.caller(request.headers(), client).await?;
            record.name(caller.user.as_ref());
            if request.uri().path() == "/metrics" {
                auth.permit_metrics(&caller, client)?;
                return self.metrics();
            }
            self.registry.answer(request, &caller).await
        };
        answered.await.unwrap_or_else(|error| {
            let challenge = error.challenge.as_ref().and_then(|parameters| auth.challenge(&host, parameters));
            let mut response = error.into_response();
            if let Some(challenge) = challenge {
                response.headers_mut().insert(http::header::WWW_AUTHENTICATE, challenge);
            }
            response
        })
    }

    fn metrics(&self) -> Answer {
        Ok(Response::new(Body::from(self.frame.metrics_text())))
    }
}
