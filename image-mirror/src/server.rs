//! Sockets, TLS, health and metrics.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use axum::body::Body;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use orlop_daemon::prometheus_client::encoding::EncodeLabelSet;
use orlop_daemon::prometheus_client::metrics::counter::Counter;
use orlop_daemon::prometheus_client::metrics::family::Family;
use orlop_daemon::{Drain, Frame};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::auth::{Caller, Client, Host};
use crate::config::Config;
use crate::error::RegistryError;
use crate::registry::{Answer, Registry};

const HANDSHAKE: Duration = Duration::from_secs(10);
const HEADERS: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: String,
    code: u16,
}

struct Server {
    frame: Frame,
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
}

/// Starts the registry as tasks of the frame.
///
/// # Errors
/// The address, the directory or the certificate cannot be used.
pub async fn start(frame: &Frame, config: Config) -> anyhow::Result<()> {
    let registry = Registry::open(&config)
        .with_context(|| format!("failed to open the registry in {}", config.root.display()))?;
    let (records, blobs) = (&registry.repositories.records, &registry.blobs);
    crate::older::take_over(&config.root, records, blobs).await?;
    let tls = acceptor(&config)?;
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("failed to listen on {}", config.listen))?;
    let requests = Family::default();
    frame.metrics().register("mirror_http_requests", "Requests by method and code", requests.clone());
    frame.metrics().register(
        "mirror_upstream_blob_fetches",
        "Blobs fetched from upstreams",
        registry.flights.fetches.clone(),
    );
    registry.keeper.start(frame);
    if let Some(auth) = &registry.auth {
        frame.metrics().register(
            "mirror_auth_failures",
            "Credentials that were refused",
            auth.failures.clone(),
        );
        frame.spawn("mirror-files", crate::watched::watch(vec![auth.watched()], frame.drain()));
    }
    registry.upstream.seen.register(&mut frame.metrics());
    let server = Arc::new(Server { frame: frame.clone(), registry, requests });
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
                "blobs": totals.map(|totals| totals.count),
                "blobBytes": totals.map(|totals| totals.bytes),
                "keeping": registry.keeper.state(),
            })
        }
        None => serde_json::Value::Null,
    });
    tracing::info!(listen = %config.listen, tls = tls.is_some(), root = %config.root.display(), "serving the registry");
    frame.spawn("mirror-listener", listen(listener, tls, server, config.max_connections, frame.drain()));
    Ok(())
}

fn acceptor(config: &Config) -> anyhow::Result<Option<TlsAcceptor>> {
    let (Some(certificate), Some(key)) = (&config.tls_cert_file, &config.tls_key_file) else {
        return Ok(None);
    };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("failed to read the certificate {}", certificate.display()))?;
    let key = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("failed to read the key {}", key.display()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("the certificate and the key do not fit together")?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(tls))))
}

async fn listen(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    server: Arc<Server>,
    connections: usize,
    drain: Drain,
) -> anyhow::Result<()> {
    let limit = Arc::new(Semaphore::new(connections));
    loop {
        let (stream, address) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "could not accept");
                    drain.sleep(Duration::from_millis(200)).await;
                    continue;
                }
            },
            () = drain.wait() => return Ok(()),
        };
        // Small answers must not wait for the client's delayed acknowledgement.
        let _ = stream.set_nodelay(true);
        let Ok(permit) = limit.clone().try_acquire_owned() else {
            continue;
        };
        let (server, tls, drain) = (server.clone(), tls.clone(), drain.clone());
        let client = Client { address, tls: tls.is_some() };
        tokio::spawn(async move {
            let _permit = permit;
            match tls {
                None => serve(stream, client, server, drain).await,
                Some(tls) => match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
                    Ok(Ok(stream)) => serve(stream, client, server, drain).await,
                    Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
                    Err(_) => tracing::debug!("TLS handshake timed out"),
                },
            }
        });
    }
}

async fn serve<S>(stream: S, client: Client, server: Arc<Server>, drain: Drain)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (server, client) = (server.clone(), client.clone());
        async move { Ok::<_, Infallible>(server.answer(request.map(Body::new), &client).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => log_end(ended),
        () = drain.wait() => {
            connection.as_mut().graceful_shutdown();
            log_end(connection.await);
        }
    }
}

fn log_end<E: std::fmt::Display>(ended: Result<(), E>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

impl Server {
    async fn answer(&self, request: Request<Body>, client: &Client) -> Response<Body> {
        let started = Instant::now();
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let response = match path.as_str() {
            "/healthz" | "/livez" | "/readyz" => Response::new(Body::from("ok")),
            _ => self.admit(request, client).await,
        };
        let code = response.status().as_u16();
        self.requests.get_or_create(&RequestLabels { method: bounded(&method), code }).inc();
        let level = response.status() >= StatusCode::INTERNAL_SERVER_ERROR;
        tracing::debug!(%method, path, code, failed = level, elapsed = ?started.elapsed(), "request");
        response
    }
}

impl Server {
    /// What is not for everybody.
    async fn admit(&self, request: Request<Body>, client: &Client) -> Response<Body> {
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

/// Clients may invent methods; labels must not grow with them.
fn bounded(method: &http::Method) -> String {
    match method.as_str() {
        known @ ("GET" | "HEAD" | "PUT" | "POST" | "PATCH" | "DELETE") => known.to_owned(),
        _ => "other".to_owned(),
    }
}
