//! Listeners and connections.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use http::Request;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use orlop_daemon::Frame;
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::authenticate::from_certificate;
use crate::body::Reply;
use crate::config::Config;
use crate::identity::Identity;
use crate::kubelet::{certificates, private_key, roots};
use crate::service::answer;
use crate::state::Api;

/// Connections at once, over all listeners.
const CONNECTION_LIMIT: usize = 4096;
/// Requests at once on one HTTP/2 connection (upstream's default).
const STREAM_LIMIT: u32 = 250;
/// What is written ahead of a client that does not read, for each connection or stream: hyper's 400 KiB would be 400 MB for a
/// thousand stuck watchers.
const SEND_BUFFER_BYTES: usize = 64 << 10;
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
const HEADER_LIMIT: Duration = Duration::from_secs(32);

/// How a connection is made into identities.
#[derive(Clone)]
enum Door {
    Tls(tokio_rustls::TlsAcceptor),
    /// Plain HTTP on loopback.
    Superuser,
}

/// TLS with optional client certificates; HTTP/2 or HTTP/1.1.
pub(crate) fn tls(config: &Config) -> anyhow::Result<tokio_rustls::TlsAcceptor> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots(&config.client_ca_file)?),
        provider.clone(),
    )
    .allow_unauthenticated()
    .build()
    .context("failed to use the client certificate authority")?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&config.tls_cert_file)?, private_key(&config.tls_key_file)?)
        .with_context(|| {
            format!("failed to use the serving certificate {}", config.tls_cert_file.display())
        })?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tokio_rustls::TlsAcceptor::from(Arc::new(tls)))
}

/// Binds every configured address; the first error names it.
pub(crate) async fn listen(
    frame: &Frame,
    api: &Arc<Api>,
    tls: tokio_rustls::TlsAcceptor,
) -> anyhow::Result<()> {
    let limit = Arc::new(Semaphore::new(CONNECTION_LIMIT));
    for address in &api.config.listen {
        let listener = bind(*address).await?;
        serve(
            frame,
            format!("https-{address}"),
            listener,
            Door::Tls(tls.clone()),
            api.clone(),
            limit.clone(),
        );
    }
    if api.config.insecure_port != 0 {
        let address = SocketAddr::from(([127, 0, 0, 1], api.config.insecure_port));
        let listener = bind(address).await?;
        tracing::warn!(%address, "plain HTTP is on: every process of this machine is a superuser of the cluster");
        serve(frame, format!("http-{address}"), listener, Door::Superuser, api.clone(), limit);
    }
    Ok(())
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("failed to listen on {address}"))?;
    tracing::info!(%address, "listening");
    Ok(listener)
}

fn serve(
    frame: &Frame,
    name: String,
    listener: TcpListener,
    door: Door,
    api: Arc<Api>,
    limit: Arc<Semaphore>,
) {
    let drain = frame.drain();
    frame.spawn(name, async move {
        loop {
            let Ok(permit) = limit.clone().acquire_owned().await else {
                return Ok(());
            };
            let stream = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        // For example no file descriptors left: others will be closed.
                        tracing::warn!(%error, "could not accept a connection");
                        if !drain.sleep(Duration::from_millis(100)).await { return Ok(()) }
                        continue;
                    }
                },
                () = drain.wait() => return Ok(()),
            };
            let (door, api) = (door.clone(), api.clone());
            // Bounded by the permits.
            tokio::spawn(async move {
                let _permit = permit;
                if let Err(error) = connection(stream, door, api).await {
                    tracing::debug!(error = %format!("{error:#}"), "connection ended");
                }
            });
        }
    });
}

async fn connection(stream: TcpStream, door: Door, api: Arc<Api>) -> anyhow::Result<()> {
    // Answers are small and interactive: waiting for more bytes costs 40 ms each.
    stream.set_nodelay(true)?;
    match door {
        Door::Tls(acceptor) => {
            let stream = tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(stream))
                .await
                .context("TLS handshake")??;
            let certificate =
                stream.get_ref().1.peer_certificates().and_then(|certificates| certificates.first());
            let identity = certificate.and_then(from_certificate).map(Arc::new);
            requests(stream, identity, api).await
        }
        Door::Superuser => {
            requests(stream, Some(Arc::new(Identity::superuser("system:unsecured"))), api).await
        }
    }
}

async fn requests<S>(stream: S, identity: Option<Arc<Identity>>, api: Arc<Api>) -> anyhow::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let drain = api.drain.clone();
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (api, identity) = (api.clone(), identity.clone());
        async move {
            let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
            Ok::<Reply, Infallible>(answer(api, identity, request).await)
        }
    });
    let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_LIMIT)
        .max_buf_size(SEND_BUFFER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAM_LIMIT)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(15));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = drain.wait() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    ended.map_err(|error| anyhow::anyhow!("{error}"))
}
