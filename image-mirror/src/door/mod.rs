//! Connections: how many there are, how long they may take, and what they are encrypted with.
//!
//! Invariant: whoever stops sending or reading, at whatever byte, loses his connection after a written time.

mod account;
mod sending;
mod tls;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use orlop_daemon::prometheus_client::metrics::counter::Counter;
use orlop_daemon::prometheus_client::metrics::gauge::Gauge;
use orlop_daemon::{Drain, Frame};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;

use crate::config::Config;
use crate::error::RegistryError;
use crate::namespace::StandIn;
use crate::server::Server;
use crate::watched::Refresh;

use self::sending::Sending;
use self::tls::Tls;

pub(crate) use self::account::{Accounts, Record};
pub(crate) use self::sending::{Outbox, WORTH_BYTES};

const HANDSHAKE: Duration = Duration::from_secs(10);
const HEADERS: Duration = Duration::from_secs(30);
/// A connection without a request is closed after once to twice this.
const IDLE: Duration = Duration::from_secs(60);
/// What a closing connection gets to send its last bytes.
const LAST_BYTES: Duration = Duration::from_secs(5);
/// A client that takes nothing of what was sent to him for so long is gone.
const UNREAD: Duration = Duration::from_secs(120);
const STREAMS: u32 = 128;
/// How long a connection too many waits for another one to end, and how many are told so afterwards at one time.
const FULL_WAIT: Duration = Duration::from_millis(500);
const TURNED_AWAY: usize = 32;

/// The other end of a connection.
pub(crate) struct Client {
    pub(crate) address: SocketAddr,
    /// The upstream that the address is for.
    stand_in: Option<StandIn>,
    /// What takes files for it, where nothing lies between them and the socket.
    outbox: Option<Outbox>,
    pub(crate) tls: bool,
    /// Who his certificate says he is.
    pub(crate) user: Option<Arc<str>>,
    requests: AtomicU64,
    busy: AtomicUsize,
}

impl Client {
    pub(crate) fn new(address: SocketAddr, tls: bool, user: Option<Arc<str>>) -> Self {
        let (requests, busy) = Default::default();
        Self { address, stand_in: None, outbox: None, tls, user, requests, busy }
    }
}

/// A request under way; the connection is not idle while it is there.
pub(crate) struct Busy(Arc<Client>);

impl Busy {
    fn new(client: Arc<Client>) -> Self {
        client.requests.fetch_add(1, Ordering::Relaxed);
        client.busy.fetch_add(1, Ordering::Relaxed);
        Self(client)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        // The end of a request is a sign of life too.
        self.0.requests.fetch_add(1, Ordering::Relaxed);
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where connections come in.
pub(crate) struct Door {
    listeners: Vec<(TcpListener, Option<StandIn>)>,
    tls: Option<Arc<Tls>>,
    limit: Arc<Semaphore>,
    turned_away: Arc<Semaphore>,
    connections: Gauge,
    refused: Counter,
}

impl Door {
    /// Listens; what arrives waits until [`Door::serve`].
    pub(crate) async fn open(frame: &Frame, config: &Config) -> anyhow::Result<Self> {
        let expiry = Gauge::default();
        let tls = tls::open(config, expiry.clone())?;
        let mut listeners = Vec::new();
        let of_upstreams =
            config.listeners.iter().map(|own| (own.listen, Some(StandIn(own.upstream.as_str().into()))));
        for (address, stand_in) in std::iter::once((config.listen, None)).chain(of_upstreams) {
            let listener = TcpListener::bind(address)
                .await
                .map_err(|error| anyhow::anyhow!("failed to listen on {address}: {error}"))?;
            listeners.push((listener, stand_in));
        }
        let (connections, refused) = (Gauge::default(), Counter::default());
        let mut metrics = frame.metrics();
        if tls.is_some() {
            metrics.register(
                "mirror_tls_certificate_expiry_timestamp_seconds",
                "When the certificate ends",
                expiry,
            );
        }
        metrics.register("mirror_connections", "Connections now", connections.clone());
        metrics.register("mirror_connections_refused", "Connections above the limit", refused.clone());
        Ok(Self {
            listeners,
            tls,
            limit: Arc::new(Semaphore::new(config.max_connections)),
            turned_away: Arc::new(Semaphore::new(TURNED_AWAY)),
            connections,
            refused,
        })
    }

    /// The files that are read again when they change.
    pub(crate) fn watched(&self) -> Option<Arc<dyn Refresh>> {
        self.tls.clone().map(|tls| tls as Arc<dyn Refresh>)
    }

    /// Serves until the drain.
    pub(crate) async fn serve(self, server: Arc<Server>, drain: Drain) -> anyhow::Result<()> {
        loop {
            let ((stream, address), stand_in) = tokio::select! {
                (accepted, stand_in) = self.next() => match accepted {
                    Ok(accepted) => (accepted, stand_in),
                    Err(error) => {
                        tracing::warn!(%error, "could not accept");
                        drain.sleep(Duration::from_millis(200)).await;
                        continue;
                    }
                },
                () = drain.wait() => return Ok(()),
            };
            let Some((permit, server)) = self.place(&server).await else {
                continue;
            };
            prepare(&stream);
            let tls = self.tls.as_ref().map(|tls| TlsAcceptor::from((*tls.get()).clone()));
            let (drain, connections) = (drain.clone(), self.connections.clone());
            tokio::spawn(async move {
                let _permit = permit;
                connections.inc();
                accept(stream, (address, stand_in), tls, server, drain).await;
                connections.dec();
            });
        }
    }

    /// The next connection at any of the addresses.
    async fn next(&self) -> (std::io::Result<(TcpStream, SocketAddr)>, Option<StandIn>) {
        let accepts = self
            .listeners
            .iter()
            .map(|(listener, stand_in)| Box::pin(async move { (listener.accept().await, stand_in.clone()) }));
        futures::future::select_all(accepts).await.0
    }

    /// A place for one more connection. Without a server in it there is none, but it can be told so.
    async fn place(&self, server: &Arc<Server>) -> Option<(OwnedSemaphorePermit, Option<Arc<Server>>)> {
        let permit = match self.limit.clone().try_acquire_owned() {
            Ok(permit) => Some(permit),
            // Others queue in the kernel meanwhile.
            Err(_) => tokio::time::timeout(FULL_WAIT, self.limit.clone().acquire_owned())
                .await
                .ok()
                .and_then(Result::ok),
        };
        if let Some(permit) = permit {
            return Some((permit, Some(server.clone())));
        }
        self.refused.inc();
        Some((self.turned_away.clone().try_acquire_owned().ok()?, None))
    }
}

/// What the kernel does by itself.
fn prepare(stream: &TcpStream) {
    // Small answers must not wait for the client's delayed acknowledgement.
    let _ = stream.set_nodelay(true);
    let unread = u32::try_from(UNREAD.as_millis()).unwrap_or(u32::MAX);
    let _ = rustix::net::sockopt::set_tcp_user_timeout(stream, unread);
}

async fn accept(
    stream: TcpStream,
    (address, stand_in): (SocketAddr, Option<StandIn>),
    tls: Option<TlsAcceptor>,
    server: Option<Arc<Server>>,
    drain: Drain,
) {
    let client = |tls, user, outbox| Arc::new(Client { stand_in, outbox, ..Client::new(address, tls, user) });
    let Some(tls) = tls else {
        let outbox = Outbox::default();
        let stream = Sending::new(stream, outbox.clone());
        return serve(stream, client(false, None, Some(outbox)), server, drain).await;
    };
    match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
        Ok(Ok(stream)) => {
            let user = tls::user(stream.get_ref().1);
            serve(stream, client(true, user, None), server, drain).await;
        }
        Ok(Err(error)) => tracing::debug!(client = %address, %error, "TLS handshake failed"),
        Err(_) => tracing::debug!(client = %address, "TLS handshake timed out"),
    }
}

async fn serve<S>(stream: S, client: Arc<Client>, server: Option<Arc<Server>>, drain: Drain)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let full = server.is_none();
    let of_requests = client.clone();
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (server, client) = (server.clone(), of_requests.clone());
        async move {
            Ok::<_, Infallible>(match server {
                Some(server) => {
                    let (busy, mut request) = (Busy::new(client.clone()), request.map(Body::new));
                    if let Some(stand_in) = &client.stand_in {
                        request.extensions_mut().insert(stand_in.clone());
                    }
                    // HTTP/2 puts frames around pieces.
                    if request.version() == Version::HTTP_11
                        && let Some(outbox) = &client.outbox
                    {
                        request.extensions_mut().insert(outbox.clone());
                    }
                    server.answer(request, &client, busy).await
                }
                None => too_many(),
            })
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(STREAMS);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return log_end(ended),
        () = idle(&client, IDLE), if !full => {}
        // What is told that there is no place must not take one for long.
        () = tokio::time::sleep(LAST_BYTES), if full => {}
        () = drain.wait() => {
            connection.as_mut().graceful_shutdown();
            return log_end(connection.await);
        }
    }
    connection.as_mut().graceful_shutdown();
    if let Ok(ended) = tokio::time::timeout(LAST_BYTES, connection).await {
        log_end(ended);
    }
}

/// Waits until a connection has had no request for once to twice a time.
async fn idle(client: &Client, time: Duration) {
    let mut before = None;
    loop {
        let now = client.requests.load(Ordering::Relaxed);
        if before == Some(now) && client.busy.load(Ordering::Relaxed) == 0 {
            return;
        }
        before = Some(now);
        tokio::time::sleep(time).await;
    }
}

fn too_many() -> Response<Body> {
    let message = "all connections are in use: try again later";
    let error = RegistryError::new(StatusCode::SERVICE_UNAVAILABLE, "TOOMANYREQUESTS", message);
    let mut response = error.into_response();
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

fn log_end<E: std::fmt::Display>(ended: Result<(), E>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_is_idle_without_requests_only() {
        let client = Arc::new(Client::new(SocketAddr::from(([127, 0, 0, 1], 1)), false, None));
        let time = Duration::from_millis(5);
        let busy = Busy::new(client.clone());
        let waits = tokio::time::timeout(20 * time, idle(&client, time)).await;
        assert!(waits.is_err(), "a request is under way");
        drop(busy);
        idle(&client, time).await;
    }
}
