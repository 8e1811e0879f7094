//! Names outside the cluster: asked of upstream servers, one after the other, with a small cache before them.
//!
//! Each question goes out from a socket of its own (a fresh random port) with a random id (RFC 5452).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, Record, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use crate::config::Config;
use crate::message::plain;
use crate::metrics::Metrics;

const TRY: Duration = Duration::from_secs(2);
const ROUNDS: usize = 2;
const PAYLOAD_BYTES: u16 = 1232;
const MESSAGE_BYTES: usize = 65_535;

/// What an upstream said.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    pub code: ResponseCode,
    pub answers: Vec<Record>,
    pub authorities: Vec<Record>,
}

/// The upstreams with their cache.
pub(crate) struct Forwarder {
    upstreams: Vec<SocketAddr>,
    in_flight: Semaphore,
    cache: Mutex<HashMap<(String, RecordType), (Instant, Instant, Said)>>,
    cache_entries: usize,
    cache_limit: Duration,
    metrics: Metrics,
}

impl Forwarder {
    pub(crate) fn new(config: &Config, metrics: Metrics) -> Self {
        let own: Vec<IpAddr> = config.listen.iter().map(SocketAddr::ip).collect();
        let upstreams =
            if config.upstreams.is_empty() { nameservers(&config.resolv_conf, &own) } else { config.upstreams.clone() };
        tracing::info!(?upstreams, "names outside the cluster are forwarded");
        Self {
            upstreams,
            in_flight: Semaphore::new(config.max_forwarded),
            cache: Mutex::default(),
            cache_entries: config.cache_entries,
            cache_limit: Duration::from_secs(config.cache_seconds.into()),
            metrics,
        }
    }

    /// Asks for a name. `None`: no upstream, none answered, or too many questions are under way.
    pub(crate) async fn ask(&self, name: &Name, kind: RecordType) -> Option<Said> {
        let key = (plain(name), kind);
        if let Some(said) = self.cached(&key) {
            self.metrics.cache_hits.inc();
            return Some(said);
        }
        self.metrics.cache_misses.inc();
        let Ok(_permit) = self.in_flight.try_acquire() else {
            self.metrics.forward_rejects.inc();
            return None;
        };
        for _ in 0..ROUNDS {
            for upstream in &self.upstreams {
                self.metrics.forward_requests.inc();
                match tokio::time::timeout(TRY, exchange(*upstream, name, kind)).await {
                    Ok(Ok(said)) if said.code != ResponseCode::ServFail && said.code != ResponseCode::Refused => {
                        self.keep(key, &said);
                        return Some(said);
                    }
                    Ok(Ok(said)) => tracing::debug!(%upstream, code = %said.code, "upstream refused"),
                    Ok(Err(error)) => tracing::debug!(%upstream, %error, "upstream failed"),
                    Err(_) => tracing::debug!(%upstream, "upstream timed out"),
                }
            }
        }
        None
    }

    fn cached(&self, key: &(String, RecordType)) -> Option<Said> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let (stored, expires, said) = cache.get(key)?;
        let now = Instant::now();
        if *expires <= now {
            cache.remove(key);
            return None;
        }
        let age = u32::try_from(now.duration_since(*stored).as_secs()).unwrap_or(u32::MAX);
        let mut said = said.clone();
        for record in said.answers.iter_mut().chain(&mut said.authorities) {
            record.ttl = record.ttl.saturating_sub(age);
        }
        Some(said)
    }

    fn keep(&self, key: (String, RecordType), said: &Said) {
        let shortest = said.answers.iter().chain(&said.authorities).map(|record| record.ttl).min();
        // Without any record nothing says how long it holds (RFC 2308 5): it is not kept.
        let Some(seconds) = shortest.filter(|seconds| *seconds > 0) else { return };
        let now = Instant::now();
        let life = Duration::from_secs(seconds.into()).min(self.cache_limit);
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= self.cache_entries {
            cache.retain(|_, (_, expires, _)| *expires > now);
        }
        if cache.len() < self.cache_entries {
            cache.insert(key, (now, now + life, said.clone()));
        }
        self.metrics.cache_entries.set(i64::try_from(cache.len()).unwrap_or(i64::MAX));
    }
}

async fn exchange(upstream: SocketAddr, name: &Name, kind: RecordType) -> std::io::Result<Said> {
    let id = rand::random();
    let mut question = Message::new(id, MessageType::Query, OpCode::Query);
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(name.clone(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD_BYTES);
    question.edns = Some(edns);
    let bytes = question.to_vec().map_err(std::io::Error::other)?;
    let any: SocketAddr = match upstream {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(upstream).await?;
    socket.send(&bytes).await?;
    let mut buffer = vec![0; usize::from(PAYLOAD_BYTES)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Whatever does not belong to our question is somebody else's, or a forgery: keep listening.
        let Some(reply) = matching(&buffer[..length], &question) else { continue };
        if !reply.metadata.truncation {
            return Ok(said(reply));
        }
        return exchange_tcp(upstream, &bytes, &question).await;
    }
}

async fn exchange_tcp(upstream: SocketAddr, bytes: &[u8], question: &Message) -> std::io::Result<Said> {
    let mut stream = TcpStream::connect(upstream).await?;
    let length = u16::try_from(bytes.len()).map_err(std::io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await?;
    let length = usize::from(stream.read_u16().await?).min(MESSAGE_BYTES);
    let mut buffer = vec![0; length];
    stream.read_exact(&mut buffer).await?;
    matching(&buffer, question).map(said).ok_or_else(|| std::io::Error::other("answer to another question"))
}

fn matching(bytes: &[u8], question: &Message) -> Option<Message> {
    let reply = Message::from_vec(bytes).ok()?;
    let same = reply.metadata.id == question.metadata.id
        && reply.metadata.message_type == MessageType::Response
        && reply.queries == question.queries;
    same.then_some(reply)
}

fn said(reply: Message) -> Said {
    Said { code: reply.metadata.response_code, answers: reply.answers, authorities: reply.authorities }
}

/// The name servers of a resolver file, without ourselves: a loop would eat the node.
fn nameservers(path: &Path, own: &[IpAddr]) -> Vec<SocketAddr> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "no resolver file: names outside the cluster do not resolve");
            return Vec::new();
        }
    };
    let words = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let addresses = words.filter_map(|word| word.trim().parse::<IpAddr>().ok());
    addresses.filter(|address| !own.contains(address)).map(|address| (address, 53).into()).collect()
}
