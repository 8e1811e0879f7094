//! Asks upstream name servers, one after the other, over UDP and on truncation over TCP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use crate::Config;
use crate::cache::{Cache, Question};
use crate::metrics::Metrics;
use crate::upstreams::Upstreams;

/// What fits into one packet on any path (DNS flag day 2020).
const PAYLOAD_BYTES: u16 = 1232;
/// Upstreams asked for one query.
const ATTEMPTS: usize = 3;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForwardError {
    #[error("no upstream is configured")]
    NoUpstream,
    #[error("too many forwarded queries are under way")]
    Busy,
    #[error("upstream {upstream} did not answer in {milliseconds} ms")]
    Timeout { upstream: SocketAddr, milliseconds: u128 },
    #[error("failed to ask upstream {upstream}")]
    Io {
        upstream: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("failed to encode a query")]
    Encode(#[source] hickory_proto::ProtoError),
}

/// Shared by all queries.
pub(crate) struct Forwarder {
    upstreams: Upstreams,
    cache: Mutex<Cache>,
    permits: Semaphore,
    timeout: Duration,
    /// Index of the upstream that answered last.
    preferred: AtomicUsize,
    metrics: Metrics,
}

impl Forwarder {
    pub(crate) fn new(upstreams: Upstreams, config: &Config, metrics: Metrics) -> Self {
        let longest = Duration::from_secs(u64::from(config.cache_seconds));
        Self {
            upstreams,
            cache: Mutex::new(Cache::new(config.cache_entries, longest)),
            permits: Semaphore::new(config.max_forwarded),
            timeout: Duration::from_millis(u64::from(config.forward_timeout_milliseconds)),
            preferred: AtomicUsize::new(0),
            metrics,
        }
    }

    fn cache<R>(&self, act: impl FnOnce(&mut Cache) -> R) -> R {
        act(&mut self.cache.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The answer from the cache or from upstream; its id and question are not the client's.
    pub(crate) async fn resolve(&self, question: &Question) -> Result<Message, ForwardError> {
        if let Some((message, is_denial)) = self.cache(|cache| cache.get(question, Instant::now())) {
            self.metrics.cache_hit(is_denial);
            return Ok(message);
        }
        self.metrics.cache_miss();
        let Ok(_permit) = self.permits.try_acquire() else {
            self.metrics.forward_rejected();
            return Err(ForwardError::Busy);
        };
        let message = self.ask_all(question).await?;
        let (success, denial) = self.cache(|cache| {
            cache.put(question.clone(), &message, Instant::now());
            cache.counts()
        });
        self.metrics.cache_entries(success, denial);
        Ok(message)
    }

    async fn ask_all(&self, question: &Question) -> Result<Message, ForwardError> {
        let upstreams: Arc<Vec<SocketAddr>> = self.upstreams.load_full();
        let first = self.preferred.load(Ordering::Relaxed);
        let mut last = Err(ForwardError::NoUpstream);
        for step in 0..upstreams.len().min(ATTEMPTS) {
            let index = (first + step) % upstreams.len();
            let upstream = upstreams[index];
            let started = Instant::now();
            let result = self.ask(question, upstream).await;
            let rcode = result.as_ref().ok().map(|message| message.metadata.response_code.to_string());
            self.metrics.forwarded(upstream.to_string(), rcode, started.elapsed());
            match result {
                Ok(message)
                    if !matches!(
                        message.metadata.response_code,
                        ResponseCode::ServFail | ResponseCode::Refused
                    ) =>
                {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok(message);
                }
                // Another one may know better; if none does, this is the answer.
                Ok(message) => last = Ok(message),
                Err(error) => {
                    tracing::debug!(%upstream, name = %question.name, %error, "upstream failed");
                    if last.is_err() {
                        last = Err(error);
                    }
                }
            }
        }
        last
    }

    async fn ask(&self, question: &Question, upstream: SocketAddr) -> Result<Message, ForwardError> {
        let query = build(question);
        let bytes = query.to_vec().map_err(ForwardError::Encode)?;
        let io = |source| ForwardError::Io { upstream, source };
        let late = |_| ForwardError::Timeout { upstream, milliseconds: self.timeout.as_millis() };
        let over_udp = tokio::time::timeout(self.timeout, ask_udp(&query, &bytes, upstream));
        let answer = over_udp.await.map_err(late)?.map_err(io)?;
        if !answer.metadata.truncation {
            return Ok(answer);
        }
        let over_tcp = tokio::time::timeout(self.timeout, ask_tcp(&query, &bytes, upstream));
        over_tcp.await.map_err(late)?.map_err(io)
    }
}

fn build(question: &Question) -> Message {
    let mut query = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.metadata.checking_disabled = question.checking_disabled;
    let mut asked = Query::query(question.name.clone(), question.kind);
    asked.set_query_class(question.class);
    query.add_query(asked);
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD_BYTES).set_version(0).set_dnssec_ok(question.wants_dnssec);
    query.set_edns(edns);
    query
}

/// Id and question must be ours (RFC 5452, 9.1); the source is checked by the connected socket.
fn is_answer_to(query: &Message, answer: &Message) -> bool {
    answer.metadata.message_type == MessageType::Response
        && answer.metadata.id == query.metadata.id
        && answer.queries == query.queries
}

/// A fresh socket for every query: the kernel draws its port.
async fn ask_udp(query: &Message, bytes: &[u8], upstream: SocketAddr) -> std::io::Result<Message> {
    let any: IpAddr =
        if upstream.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(upstream).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; 4096];
    // Bounded by the caller's timeout: what is not our answer is passed over.
    loop {
        let length = socket.recv(&mut buffer).await?;
        match Message::from_vec(&buffer[..length]) {
            Ok(answer) if is_answer_to(query, &answer) => return Ok(answer),
            _ => {}
        }
    }
}

async fn ask_tcp(query: &Message, bytes: &[u8], upstream: SocketAddr) -> std::io::Result<Message> {
    let invalid = |text: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, text.to_owned());
    let mut stream = TcpStream::connect(upstream).await?;
    let length = u16::try_from(bytes.len()).map_err(|_| invalid("query too long"))?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(bytes);
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await?;
    let answer = Message::from_vec(&buffer).map_err(|error| invalid(&error.to_string()))?;
    if is_answer_to(query, &answer) { Ok(answer) } else { Err(invalid("answer to another question")) }
}
