//! The HTTPS server on 10250 and the plain health check on 10248.
//!
//! Callers show a client certificate of the cluster's CA; only the API server's identity and `system:masters` may do anything.

mod identity;
mod log_requests;
mod routes;
mod stats;
mod tunnel;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use orlop_daemon::{Drain, Frame};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::Kubelet;
use identity::Caller;

const CONNECTION_LIMIT: usize = 512;
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

pub(crate) type Body = BoxBody<Bytes, std::io::Error>;
pub(crate) type Answer = Response<Body>;

/// A short text.
pub(crate) fn text(status: StatusCode, body: impl Into<String>) -> Answer {
    typed(status, "text/plain; charset=utf-8", body.into())
}

/// JSON.
pub(crate) fn json(value: &impl serde::Serialize) -> Answer {
    match serde_json::to_string(value) {
        Ok(body) => typed(StatusCode::OK, "application/json", body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

fn typed(status: StatusCode, kind: &'static str, body: String) -> Answer {
    let mut response =
        Response::new(Full::new(Bytes::from(body)).map_err(|never: Infallible| match never {}).boxed());
    *response.status_mut() = status;
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

/// Binds both ports and spawns their tasks.
pub(crate) async fn start(frame: &Frame, kubelet: &Arc<Kubelet>) -> anyhow::Result<()> {
    let config = &kubelet.config;
    let address: IpAddr = config.address.parse().context("address")?;
    let listener = TcpListener::bind(SocketAddr::new(address, config.port))
        .await
        .with_context(|| format!("failed to listen on {address}:{}", config.port))?;
    let tls = tokio_rustls::TlsAcceptor::from(Arc::new(identity::tls_config(config)?));
    frame.spawn("server", serve(kubelet.clone(), listener, tls));
    if config.healthz_port != 0 {
        let address: IpAddr = config.healthz_bind_address.parse().context("healthzBindAddress")?;
        let listener = TcpListener::bind(SocketAddr::new(address, config.healthz_port))
            .await
            .with_context(|| format!("failed to listen on {address}:{}", config.healthz_port))?;
        frame.spawn("healthz", serve_healthz(listener, frame.drain()));
    }
    Ok(())
}

async fn accept(listener: &TcpListener, drain: &Drain) -> Option<TcpStream> {
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let _ = stream.set_nodelay(true);
                    return Some(stream);
                }
                Err(error) => {
                    tracing::warn!(%error, "could not accept a connection");
                    if !drain.sleep(Duration::from_millis(200)).await {
                        return None;
                    }
                }
            },
            () = drain.wait() => return None,
        }
    }
}

async fn serve(
    kubelet: Arc<Kubelet>,
    listener: TcpListener,
    tls: tokio_rustls::TlsAcceptor,
) -> anyhow::Result<()> {
    let drain = kubelet.drain.clone();
    let limit = Arc::new(Semaphore::new(CONNECTION_LIMIT));
    while let Some(stream) = accept(&listener, &drain).await {
        let Ok(permit) = limit.clone().try_acquire_owned() else {
            tracing::warn!("too many connections, one is refused");
            continue;
        };
        let (kubelet, tls, drain) = (kubelet.clone(), tls.clone(), drain.clone());
        tokio::spawn(async move {
            let _permit = permit;
            tokio::select! {
                () = connection(kubelet, tls, stream) => {}
                () = drain.wait() => {}
            }
        });
    }
    Ok(())
}

async fn connection(kubelet: Arc<Kubelet>, tls: tokio_rustls::TlsAcceptor, stream: TcpStream) {
    let stream = match tokio::time::timeout(HANDSHAKE_LIMIT, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, "TLS handshake failed");
            return;
        }
        Err(_) => return,
    };
    let caller = Arc::new(Caller::of(stream.get_ref().1));
    let service = service_fn(move |request: Request<Incoming>| {
        let (kubelet, caller) = (kubelet.clone(), caller.clone());
        async move { Ok::<_, Infallible>(guarded(kubelet, &caller, request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(60))
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "connection ended");
    }
}

async fn guarded(kubelet: Arc<Kubelet>, caller: &Caller, request: Request<Incoming>) -> Answer {
    match caller.check(&kubelet.config) {
        Ok(()) => routes::answer(kubelet, request).await,
        Err((status, problem)) => text(status, problem),
    }
}

async fn serve_healthz(listener: TcpListener, drain: Drain) -> anyhow::Result<()> {
    let limit = Arc::new(Semaphore::new(16));
    while let Some(stream) = accept(&listener, &drain).await {
        let Ok(permit) = limit.clone().try_acquire_owned() else {
            continue;
        };
        tokio::spawn(async move {
            let _permit = permit;
            let service = service_fn(|request: Request<Incoming>| async move {
                let known =
                    request.method() == Method::GET && matches!(request.uri().path(), "/healthz" | "/livez");
                Ok::<_, Infallible>(if known {
                    text(StatusCode::OK, "ok")
                } else {
                    text(StatusCode::NOT_FOUND, "404 page not found\n")
                })
            });
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            let _ = tokio::time::timeout(HANDSHAKE_LIMIT, connection).await;
        });
    }
    Ok(())
}
