//! Bodies of requests and answers.

use std::convert::Infallible;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{Stream, StreamExt as _};
use http::{HeaderValue, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited, StreamBody};
use orlop_resources::status::{self, ApiError};
use serde_json::Value;

/// Whatever a body may fail with.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;
/// A body of either direction.
pub(crate) type Body = UnsyncBoxBody<Bytes, BodyError>;
/// An answer.
pub(crate) type Reply = Response<Body>;

/// Upstream's limit for a request's body.
const REQUEST_LIMIT_BYTES: usize = 3 << 20;

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

pub(crate) fn stream(chunks: impl Stream<Item = Bytes> + Send + 'static) -> Body {
    StreamBody::new(chunks.map(|chunk| Ok(Frame::data(chunk)))).boxed_unsync()
}

/// Reads a whole request body.
pub(crate) async fn read(body: Body) -> Result<Bytes, ApiError> {
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
