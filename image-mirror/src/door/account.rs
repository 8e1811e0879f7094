//! What is counted and logged of each request.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::{Frame, SizeHint};
use orlop_daemon::prometheus_client::encoding::EncodeLabelSet;
use orlop_daemon::prometheus_client::metrics::counter::Counter;
use orlop_daemon::prometheus_client::metrics::family::Family;
use orlop_daemon::prometheus_client::metrics::gauge::Gauge;
use orlop_daemon::prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use orlop_daemon::prometheus_client::registry::Registry as Metrics;
use tokio::time::Sleep;

use super::{Busy, Client};
use crate::query::parameter;

/// Between two pieces of a pushed body.
const STALL: Duration = Duration::from_secs(60);
/// What a client may go on sending after it was refused: many read the answer only then, and a connection that is reset loses it.
const DISCARDED_BYTES: usize = 1 << 20;
const DISCARDED_TIME: Duration = Duration::from_secs(5);
/// An answer up to this long counts as sent when it is handed over: the kernel's buffer takes it.
const SHORT_BYTES: u64 = 64 << 10;
/// Bytes of a path that are logged.
const LOGGED_BYTES: usize = 1024;
/// Half a millisecond to about four minutes.
const BUCKETS: u16 = 10;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabel {
    method: &'static str,
}

/// Clients may invent methods; labels must not grow with them.
const METHODS: [&str; 7] = ["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "other"];

fn known(method: &Method) -> usize {
    METHODS.iter().position(|known| *known == method.as_str()).unwrap_or(METHODS.len() - 1)
}

/// The metrics of requests.
pub(crate) struct Accounts {
    requests: Family<RequestLabels, Counter>,
    seconds: [Histogram; METHODS.len()],
    running: Gauge,
    sent: Counter,
    received: Counter,
    log: bool,
}

impl Accounts {
    pub(crate) fn new(metrics: &mut Metrics, log: bool) -> Arc<Self> {
        let seconds: Family<MethodLabel, Histogram> =
            Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.0005, 4.0, BUCKETS)));
        let accounts = Self {
            requests: Family::default(),
            seconds: METHODS.map(|method| seconds.get_or_create(&MethodLabel { method }).clone()),
            running: Gauge::default(),
            sent: Counter::default(),
            received: Counter::default(),
            log,
        };
        metrics.register("mirror_http_requests", "Requests by method and code", accounts.requests.clone());
        metrics.register(
            "mirror_http_request_duration_seconds",
            "From the head of a request to the end of its answer",
            seconds,
        );
        metrics.register("mirror_http_requests_in_flight", "Requests under way", accounts.running.clone());
        metrics.register("mirror_http_sent_bytes", "Bytes of bodies sent", accounts.sent.clone());
        metrics.register("mirror_http_received_bytes", "Bytes of bodies received", accounts.received.clone());
        Arc::new(accounts)
    }

    /// Begins the record of a request, and watches its body.
    pub(crate) fn begin(
        self: &Arc<Self>,
        request: Request<Body>,
        client: &Client,
        busy: Busy,
    ) -> (Request<Body>, Record) {
        self.running.inc();
        let line = self.log.then(|| Box::new(Line::new(&request, client)));
        let record = Record {
            accounts: self.clone(),
            method: known(request.method()),
            code: 0,
            started: Instant::now(),
            sent: 0,
            whole: false,
            line,
            _busy: busy,
        };
        let request = match request.body().is_end_stream() {
            true => request,
            false => {
                let expects = request.headers().contains_key(http::header::EXPECT);
                request.map(|body| Body::new(Arriving::new(body, STALL, self.received.clone(), expects)))
            }
        };
        (request, record)
    }
}

/// What is logged. Of the query only the registry is taken: the rest may be secret.
struct Line {
    method: Method,
    path: String,
    registry: Option<String>,
    client: std::net::SocketAddr,
    user: Option<Arc<str>>,
    cache: Option<String>,
}

impl Line {
    fn new(request: &Request<Body>, client: &Client) -> Self {
        let path = request.uri().path();
        Self {
            method: request.method().clone(),
            path: path[..path.floor_char_boundary(LOGGED_BYTES)].to_owned(),
            registry: request.uri().query().and_then(|query| parameter(query, "ns")),
            client: client.address,
            user: client.user.clone(),
            cache: None,
        }
    }
}

/// A request under way. It is counted when this is dropped: its answer is sent, or the client is gone.
pub(crate) struct Record {
    accounts: Arc<Accounts>,
    method: usize,
    code: u16,
    started: Instant,
    sent: u64,
    whole: bool,
    line: Option<Box<Line>>,
    _busy: Busy,
}

impl Record {
    /// Who asks.
    pub(crate) fn name(&mut self, user: Option<&Arc<str>>) {
        if let (Some(line), Some(user)) = (&mut self.line, user) {
            line.user = Some(user.clone());
        }
    }

    /// The answer, with this record until its last byte.
    pub(crate) fn answer(mut self, response: Response<Body>) -> Response<Body> {
        self.code = response.status().as_u16();
        if let Some(line) = &mut self.line {
            let cache = response.headers().get("orlop-cache").and_then(|value| value.to_str().ok());
            line.cache = cache.map(str::to_owned);
        }
        match response.body().size_hint().exact() {
            Some(length) if length <= SHORT_BYTES => {
                (self.sent, self.whole) = (length, true);
                response
            }
            _ => response.map(|inner| Body::new(Leaving { inner, record: self })),
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let accounts = &self.accounts;
        let elapsed = self.started.elapsed();
        accounts.running.dec();
        accounts.seconds[self.method].observe(elapsed.as_secs_f64());
        accounts.sent.inc_by(self.sent);
        let labels = RequestLabels { method: METHODS[self.method], code: self.code };
        accounts.requests.get_or_create(&labels).inc();
        if let Some(line) = &self.line {
            tracing::info!(
                target: "mirror::access",
                method = %line.method,
                path = line.path,
                registry = line.registry,
                code = self.code,
                bytes = self.sent,
                whole = self.whole,
                milliseconds = elapsed.as_micros() as f64 / 1000.0,
                client = %line.client,
                user = line.user.as_deref(),
                cache = line.cache,
                "request"
            );
        }
    }
}

/// A body on its way out.
struct Leaving {
    inner: Body,
    record: Record,
}

impl HttpBody for Leaving {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                self.record.sent += frame.data_ref().map_or(0, Bytes::len) as u64;
                self.record.whole = self.inner.is_end_stream();
            }
            Poll::Ready(None) => self.record.whole = true,
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A body on its way in. It is cut when nothing comes for long.
struct Arriving {
    inner: Body,
    stall: Duration,
    /// Runs while the client is waited for, and only then: the disk may be slow too.
    waits: Option<Pin<Box<Sleep>>>,
    received: Counter,
    /// Nothing more is wanted of it, not even to throw it away.
    ended: bool,
}

impl Arriving {
    /// A client that asks before he sends (`expects`) reads the answer first, and may not send at all then.
    fn new(inner: Body, stall: Duration, received: Counter, expects: bool) -> Self {
        Self { inner, stall, waits: None, received, ended: expects }
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        if self.ended || self.inner.is_end_stream() {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(discard(std::mem::take(&mut self.inner)));
        }
    }
}

/// Bounded in bytes and time; after that the connection or stream is reset.
async fn discard(mut body: Body) {
    let read = async {
        let mut bytes = 0;
        while let Some(Ok(frame)) = body.frame().await {
            bytes += frame.data_ref().map_or(0, Bytes::len);
            if bytes > DISCARDED_BYTES {
                return;
            }
        }
    };
    // Either way it is dropped now.
    let _ = tokio::time::timeout(DISCARDED_TIME, read).await;
}

impl HttpBody for Arriving {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(context) {
            this.waits = None;
            match &frame {
                Some(Ok(frame)) => {
                    this.received.inc_by(frame.data_ref().map_or(0, Bytes::len) as u64);
                }
                Some(Err(_)) | None => this.ended = true,
            }
            return Poll::Ready(frame);
        }
        let stall = this.stall;
        let waits = this.waits.get_or_insert_with(|| Box::pin(tokio::time::sleep(stall)));
        match waits.as_mut().poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => {
                this.ended = true;
                let error = format!("no byte came for {} seconds", stall.as_secs());
                Poll::Ready(Some(Err(axum::Error::new(std::io::Error::other(error)))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_that_stalls_is_cut() {
        let (sender, mut receiver) = tokio::sync::mpsc::channel::<Result<Bytes, std::io::Error>>(1);
        let stream = futures::stream::poll_fn(move |context| receiver.poll_recv(context));
        let received = Counter::default();
        let stall = Duration::from_millis(20);
        let mut body = Arriving::new(Body::from_stream(stream), stall, received.clone(), false);
        for _ in 0..3 {
            // The reader may take his time.
            tokio::time::sleep(2 * stall).await;
            sender.send(Ok(Bytes::from_static(b"piece"))).await.unwrap();
            let frame = body.frame().await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), "piece");
        }
        assert!(body.frame().await.unwrap().unwrap_err().to_string().contains("no byte came"));
        assert_eq!(received.get(), 15);
        drop(sender);
    }
}
