//! Bodies of requests and answers.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{Stream, StreamExt as _};
use http::{HeaderValue, Response, StatusCode, header};
use http_body::{Body as _, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited, StreamBody};
use orlop_resources::status::{self, ApiError};
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Whatever a body may fail with.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;
/// A body of either direction.
pub(crate) type Body = UnsyncBoxBody<Bytes, BodyError>;
/// An answer.
pub(crate) type Reply = Response<Body>;

/// Upstream's limit for a request's body.
const REQUEST_LIMIT_BYTES: usize = 3 << 20;
/// All bodies at once, in KiB.
const ROOM_KIB: usize = 32 << 10;
const ROOM_WAIT: Duration = Duration::from_secs(10);
/// Upstream's limit for requests that are not long-running.
const BODY_WAIT: Duration = Duration::from_secs(60);
const RETRY_SECONDS: u32 = 1;

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

pub(crate) fn stream(chunks: impl Stream<Item = Bytes> + Send + 'static) -> Body {
    StreamBody::new(chunks.map(|chunk| Ok(Frame::data(chunk)))).boxed_unsync()
}

/// The room that all request bodies together have: a storm of large ones waits instead of filling the memory, which a parsed
/// body takes up several times over.
pub(crate) struct Room {
    left: Arc<Semaphore>,
    wait: Duration,
}

impl Default for Room {
    fn default() -> Self {
        Self { left: Arc::new(Semaphore::new(ROOM_KIB)), wait: ROOM_WAIT }
    }
}

impl Room {
    /// Waits for room for a body; it is taken until the result is dropped.
    ///
    /// # Errors
    /// 429 when others keep it for too long.
    pub(crate) async fn take(&self, bytes: u64) -> Result<OwnedSemaphorePermit, ApiError> {
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        let taken = tokio::time::timeout(self.wait, self.left.clone().acquire_many_owned(kib)).await;
        taken.ok().and_then(Result::ok).ok_or_else(|| {
            status::too_many_requests("Too many requests, please try again later.", RETRY_SECONDS)
        })
    }
}

/// How large a body may be; one without a length may be as large as any.
pub(crate) fn largest(body: &Body) -> u64 {
    body.size_hint().upper().unwrap_or(u64::MAX).min(REQUEST_LIMIT_BYTES as u64)
}

/// Reads a whole request body, for as long as a request may take.
pub(crate) async fn read(body: Body) -> Result<Bytes, ApiError> {
    read_within(body, BODY_WAIT).await
}

async fn read_within(body: Body, wait: Duration) -> Result<Bytes, ApiError> {
    let read = tokio::time::timeout(wait, collect(body)).await;
    read.unwrap_or_else(|_| Err(status::timeout("the body of the request did not arrive in time", 0)))
}

async fn collect(body: Body) -> Result<Bytes, ApiError> {
    // Boxed here: inside of an async block the compiler cannot prove that this future may move between threads.
    let collected: BoxFuture<'static, _> = Box::pin(Limited::new(body, REQUEST_LIMIT_BYTES).collect());
    match collected.await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(status::request_entity_too_large(format!("limit is {REQUEST_LIMIT_BYTES}")))
        }
        Err(error) => Err(status::bad_request(format!("could not read the body of the request: {error}"))),
    }
}

pub(crate) fn reply(code: StatusCode, content_type: &'static str, body: Body) -> Reply {
    let mut reply = Response::new(body);
    *reply.status_mut() = code;
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    reply
}

pub(crate) fn json(code: StatusCode, bytes: impl Into<Bytes>) -> Reply {
    reply(code, "application/json", full(bytes))
}

pub(crate) fn json_value(code: StatusCode, value: &Value) -> Reply {
    let mut bytes = value.to_string().into_bytes();
    bytes.push(b'\n');
    json(code, bytes)
}

pub(crate) fn text(code: StatusCode, text: impl Into<String>) -> Reply {
    reply(code, "text/plain; charset=utf-8", full(text.into()))
}

/// The answer that an error is.
pub(crate) fn failure(error: &ApiError) -> Reply {
    let code = StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut reply = json_value(code, &error.body);
    if let Some(seconds) = error.retry_after {
        reply.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn large_bodies_wait_for_room_and_are_refused_in_the_end() {
        let room = Room { wait: Duration::ZERO, ..Room::default() };
        let endless = StreamBody::new(futures::stream::pending::<Result<Frame<Bytes>, BodyError>>());
        let endless = endless.boxed_unsync();
        let large = largest(&endless);
        assert_eq!((large, largest(&full("abc"))), (REQUEST_LIMIT_BYTES as u64, 3));
        let mut taken = Vec::new();
        for _ in 0..ROOM_KIB * 1024 / REQUEST_LIMIT_BYTES {
            taken.push(room.take(large).await.unwrap());
        }
        let refused = room.take(large).await.unwrap_err();
        assert_eq!((refused.code, refused.reason(), refused.retry_after), (429, "TooManyRequests", Some(1)));
        assert!(room.take(0).await.is_ok() && room.take(5).await.is_ok());
        taken.pop();
        assert!(room.take(large).await.is_ok());
        let slow = read_within(endless, Duration::ZERO).await.unwrap_err();
        assert_eq!((slow.code, slow.reason()), (504, "Timeout"));
    }
}
