//! Sockets: a task per UDP socket, a task per TCP listener, a short task per forwarded question and per connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use hickory_proto::op::{Message, ResponseCode};
use orlop_daemon::Drain;
use orlop_daemon::backoff::Backoff;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use crate::forward::Forwarder;
use crate::message::{self, Verdict};
use crate::metrics::{Metrics, RequestLabels, ResponseLabels};
use crate::model::Zone;

const DATAGRAM_BYTES: usize = 4096;
/// RFC 7766 6.2.3: idle connections are closed.
const IDLE: Duration = Duration::from_secs(10);
const BIND_FIRST: Duration = Duration::from_millis(50);
const BIND_CAP: Duration = Duration::from_secs(2);

/// Everything that answering needs; shared by all tasks.
pub(crate) struct Responder {
    /// `None` until the watches are synced.
    pub zone: ArcSwapOption<Zone>,
    pub forwarder: Forwarder,
    pub metrics: Metrics,
    pub ttl_seconds: u32,
    pub pending: Arc<Semaphore>,
}

impl Responder {
    /// The answer, or the forward that leads to it.
    fn decide(&self, query: &Message) -> Verdict {
        message::decide(query, self.zone.load().as_deref(), self.ttl_seconds)
    }

    async fn finish(&self, query: &Message, verdict: Verdict) -> Message {
        let (mut reply, name) = match verdict {
            Verdict::Answer(reply) => return reply,
            Verdict::Forward { reply, name } => (reply, name),
        };
        let Some(question) = query.queries.first() else { return reply };
        match self.forwarder.ask(&name, question.query_type()).await {
            Some(said) => {
                reply.metadata.response_code = said.code;
                reply.answers.extend(said.answers);
                reply.authorities.extend(said.authorities);
            }
            None if reply.answers.is_empty() => reply.metadata.response_code = ResponseCode::ServFail,
            // The alias itself is known, and worth more than nothing.
            None => {}
        }
        reply
    }

    fn count(&self, query: &Message, reply: &Message, proto: &'static str, started: Instant) {
        let kind = query.queries.first().map_or("other", |question| known_type(&question.query_type().to_string()));
        self.metrics.requests.get_or_create(&RequestLabels { proto, r#type: kind }).inc();
        let rcode = reply.metadata.response_code.to_str().to_owned();
        self.metrics.responses.get_or_create(&ResponseLabels { rcode }).inc();
        self.metrics.duration.observe(started.elapsed().as_secs_f64());
    }
}

fn known_type(name: &str) -> &'static str {
    const KNOWN: [&str; 12] =
        ["A", "AAAA", "SRV", "PTR", "CNAME", "TXT", "NS", "SOA", "MX", "ANY", "HTTPS", "SVCB"];
    KNOWN.into_iter().find(|known| *known == name).unwrap_or("other")
}

/// Binds, and tries again while the address is not there yet or a predecessor still holds it.
pub(crate) async fn bind(address: SocketAddr, drain: &Drain) -> Option<(UdpSocket, TcpListener)> {
    let mut backoff = Backoff::new(BIND_FIRST, BIND_CAP);
    loop {
        let bound = async { Ok::<_, std::io::Error>((UdpSocket::bind(address).await?, TcpListener::bind(address).await?)) };
        match bound.await {
            Ok(sockets) => return Some(sockets),
            Err(error) => tracing::debug!(%address, %error, "could not listen, trying again"),
        }
        if !drain.sleep(backoff.pause()).await {
            return None;
        }
    }
}

pub(crate) async fn serve_udp(socket: UdpSocket, responder: Arc<Responder>, drain: Drain) -> anyhow::Result<()> {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; DATAGRAM_BYTES];
    loop {
        let (length, peer) = tokio::select! {
            received = socket.recv_from(&mut buffer) => match received {
                Ok(received) => received,
                // An ICMP error of an earlier answer shows here; it says nothing about the socket.
                Err(error) => {
                    tracing::debug!(%error, "could not receive");
                    continue;
                }
            },
            () = drain.wait() => return Ok(()),
        };
        let started = Instant::now();
        let query = match message::decode(&buffer[..length]) {
            Ok(query) => query,
            Err(None) => continue,
            Err(Some(error)) => {
                send(&socket, peer, error.to_vec().ok()).await;
                continue;
            }
        };
        match responder.decide(&query) {
            Verdict::Answer(reply) => {
                responder.count(&query, &reply, "udp", started);
                send(&socket, peer, message::encode(&reply, &query, true)).await;
            }
            verdict @ Verdict::Forward { .. } => {
                // Above the limit the client's own retry is the queue.
                let Ok(permit) = responder.pending.clone().try_acquire_owned() else { continue };
                let (socket, responder) = (socket.clone(), responder.clone());
                tokio::spawn(async move {
                    let _permit = permit;
                    let reply = responder.finish(&query, verdict).await;
                    responder.count(&query, &reply, "udp", started);
                    send(&socket, peer, message::encode(&reply, &query, true)).await;
                });
            }
        }
    }
}

async fn send(socket: &UdpSocket, peer: SocketAddr, bytes: Option<Vec<u8>>) {
    let Some(bytes) = bytes else { return };
    if let Err(error) = socket.send_to(&bytes, peer).await {
        tracing::debug!(%peer, %error, "could not answer");
    }
}

pub(crate) async fn serve_tcp(
    listener: TcpListener,
    responder: Arc<Responder>,
    connections: Arc<Semaphore>,
    drain: Drain,
) -> anyhow::Result<()> {
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "could not accept");
                    drain.sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = drain.wait() => return Ok(()),
        };
        let Ok(permit) = connections.clone().try_acquire_owned() else { continue };
        let responder = responder.clone();
        tokio::spawn(async move {
            let _permit = permit;
            if let Err(error) = converse(stream, &responder).await {
                tracing::debug!(%error, "connection ended");
            }
        });
    }
}

/// Questions of one connection, one after the other (RFC 7766).
async fn converse(mut stream: TcpStream, responder: &Responder) -> std::io::Result<()> {
    loop {
        let read = async {
            let mut bytes = vec![0; usize::from(stream.read_u16().await?)];
            stream.read_exact(&mut bytes).await?;
            Ok::<_, std::io::Error>(bytes)
        };
        let bytes = tokio::time::timeout(IDLE, read).await.map_err(std::io::Error::other)??;
        let started = Instant::now();
        let (query, reply) = match message::decode(&bytes) {
            Ok(query) => {
                let reply = responder.finish(&query, responder.decide(&query)).await;
                responder.count(&query, &reply, "tcp", started);
                (query, reply)
            }
            Err(Some(error)) => (error.clone(), error),
            Err(None) => return Ok(()),
        };
        let Some(bytes) = message::encode(&reply, &query, false) else { return Ok(()) };
        let Ok(length) = u16::try_from(bytes.len()) else { return Ok(()) };
        let write = stream.write_all(&[&length.to_be_bytes()[..], &bytes].concat()).await;
        write?;
    }
}
