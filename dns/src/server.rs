//! Sockets: one UDP socket and one TCP listener per address.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use orlop_daemon::backoff::Backoff;
use orlop_daemon::{Drain, Frame};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use crate::Config;
use crate::answer::{Responder, Step, Transport};

/// Larger than any query has reason to be; a longer datagram is cut and then malformed.
const DATAGRAM_BYTES: usize = 4096;
const FIRST_BIND_RETRY: Duration = Duration::from_millis(50);
const LAST_BIND_RETRY: Duration = Duration::from_secs(2);

/// Starts the tasks; they wait until their address can be bound.
pub(crate) fn start(frame: &Frame, responder: &Arc<Responder>, config: &Arc<Config>) {
    let queries = Arc::new(Semaphore::new(config.max_concurrent_queries));
    let connections = Arc::new(Semaphore::new(config.max_connections));
    for address in config.listen.iter().copied() {
        let guard = frame.ready().guard(format!("dns-udp-{address}"));
        let (task, drain, queries) = (responder.clone(), frame.drain(), queries.clone());
        frame.spawn(format!("dns-udp-{address}"), async move {
            let bound = bind(address, &drain, |address| async move { UdpSocket::bind(address).await }).await;
            if let Some(socket) = bound {
                guard.set();
                serve_udp(Arc::new(socket), &task, &queries, &drain).await;
            }
            Ok(())
        });
        let guard = frame.ready().guard(format!("dns-tcp-{address}"));
        let (task, drain, connections) = (responder.clone(), frame.drain(), connections.clone());
        let idle = Duration::from_secs(u64::from(config.tcp_idle_seconds));
        frame.spawn(format!("dns-tcp-{address}"), async move {
            let bound =
                bind(address, &drain, |address| async move { TcpListener::bind(address).await }).await;
            if let Some(listener) = bound {
                guard.set();
                serve_tcp(listener, &task, &connections, idle, &drain).await;
            }
            Ok(())
        });
    }
}

/// Binds as soon as the address is there and free; `None` when draining.
async fn bind<T, F>(address: SocketAddr, drain: &Drain, open: impl Fn(SocketAddr) -> F) -> Option<T>
where
    F: Future<Output = std::io::Result<T>>,
{
    let mut backoff = Backoff::new(FIRST_BIND_RETRY, LAST_BIND_RETRY);
    let mut is_told = false;
    loop {
        match open(address).await {
            Ok(bound) => {
                tracing::info!(%address, "DNS listening");
                return Some(bound);
            }
            Err(error) if is_told => tracing::debug!(%address, %error, "cannot listen, trying again"),
            Err(error) => {
                is_told = true;
                tracing::warn!(%address, %error, "cannot listen, trying again");
            }
        }
        if !drain.sleep(backoff.pause()).await {
            return None;
        }
    }
}

async fn serve_udp(
    socket: Arc<UdpSocket>,
    responder: &Arc<Responder>,
    queries: &Arc<Semaphore>,
    drain: &Drain,
) {
    let mut buffer = vec![0; DATAGRAM_BYTES];
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            () = drain.wait() => return,
        };
        let (length, client) = match received {
            Ok(received) => received,
            Err(error) => {
                // For example an ICMP error of an earlier answer.
                tracing::debug!(%error, "receive failed");
                if !drain.sleep(Duration::from_millis(1)).await {
                    return;
                }
                continue;
            }
        };
        match responder.step(&buffer[..length], Transport::Udp, client.ip()) {
            Step::Drop => {}
            Step::Answer(bytes) => send(&socket, &bytes, client).await,
            Step::Forward(pending) => {
                // Above the bound the client asks again: dropping is UDP's own backpressure.
                let Ok(permit) = queries.clone().try_acquire_owned() else {
                    continue;
                };
                let (socket, responder) = (socket.clone(), responder.clone());
                tokio::spawn(async move {
                    let _permit = permit;
                    let bytes = responder.finish(*pending).await;
                    send(&socket, &bytes, client).await;
                });
            }
        }
    }
}

async fn send(socket: &UdpSocket, bytes: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(bytes, client).await {
        tracing::debug!(%client, %error, "answer not sent");
    }
}

async fn serve_tcp(
    listener: TcpListener,
    responder: &Arc<Responder>,
    connections: &Arc<Semaphore>,
    idle: Duration,
    drain: &Drain,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.wait() => return,
        };
        let (stream, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                if !drain.sleep(Duration::from_millis(100)).await {
                    return;
                }
                continue;
            }
        };
        // Above the bound a connection is closed at once.
        let Ok(permit) = connections.clone().try_acquire_owned() else {
            continue;
        };
        let (responder, drain) = (responder.clone(), drain.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let ended = tokio::select! {
                ended = serve_connection(stream, client, &responder, idle) => ended,
                () = drain.wait() => Ok(()),
            };
            if let Err(error) = ended {
                tracing::debug!(%client, %error, "connection ended");
            }
        });
    }
}

/// Queries of one connection, one after the other (RFC 7766 allows pipelining; answers keep the order).
async fn serve_connection(
    mut stream: TcpStream,
    client: SocketAddr,
    responder: &Responder,
    idle: Duration,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let late = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
    loop {
        let read = async {
            let length = stream.read_u16().await?;
            let mut buffer = vec![0; usize::from(length)];
            stream.read_exact(&mut buffer).await?;
            Ok::<_, std::io::Error>(buffer)
        };
        let buffer = match tokio::time::timeout(idle, read).await.map_err(late)? {
            Ok(buffer) => buffer,
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        };
        let bytes = match responder.step(&buffer, Transport::Tcp, client.ip()) {
            Step::Drop => return Ok(()),
            Step::Answer(bytes) => bytes,
            Step::Forward(pending) => responder.finish(*pending).await,
        };
        let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend_from_slice(&bytes[..usize::from(length)]);
        tokio::time::timeout(idle, stream.write_all(&framed)).await.map_err(late)??;
    }
}
