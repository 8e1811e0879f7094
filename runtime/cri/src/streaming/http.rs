//! The HTTP side: token, protocol negotiation, 101, then the upgraded bytes go to their protocol.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::activity::Activity;
use super::streamer::{Place, Streamer};
use super::{Wish, port_forward, spdy_command, websocket};

const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_PROTOCOLS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");
const SPDY: &str = "SPDY/3.1";
const HEADER_SECONDS: u64 = 30;

/// Protocols of remote commands over SPDY, best first.
const COMMAND_SPDY: [&str; 4] =
    ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
const FORWARD_SPDY: [&str; 1] = ["portforward.k8s.io"];

type Answer = Response<Full<Bytes>>;

/// What belongs to one connection; cheap to clone.
#[derive(Clone)]
struct Client {
    streamer: Arc<Streamer>,
    activity: Arc<Activity>,
    place: Arc<Place>,
}

/// One request, and the session that it becomes.
pub(super) async fn serve_connection<T>(
    streamer: Arc<Streamer>,
    stream: T,
    activity: Arc<Activity>,
    place: Place,
) where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let client = Client { streamer, activity, place: Arc::new(place) };
    let service = hyper::service::service_fn(move |request| {
        let client = client.clone();
        async move { Ok::<_, Infallible>(answer(client, request)) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(hyper_util::rt::TokioTimer::new())
        .header_read_timeout(Duration::from_secs(HEADER_SECONDS))
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a session's connection failed");
    }
}

fn answer(client: Client, request: Request<Incoming>) -> Answer {
    let Some(wish) = client.streamer.take(request.uri().path()) else {
        return refuse(StatusCode::NOT_FOUND, "no such session: its URL was used or is too old");
    };
    let upgrade =
        request.headers().get(UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    if upgrade.eq_ignore_ascii_case("websocket") {
        upgrade_websocket(client, wish, request)
    } else if upgrade.eq_ignore_ascii_case(SPDY) {
        upgrade_spdy(client, wish, request)
    } else {
        refuse(StatusCode::BAD_REQUEST, "upgrade to websocket or SPDY/3.1 is required")
    }
}

/// Runs a session over the upgraded connection, until it ends or nothing has moved for too long.
fn begin<F>(
    client: Client,
    kind: &'static str,
    mut request: Request<Incoming>,
    session: impl FnOnce(Arc<Streamer>, TokioIo<hyper::upgrade::Upgraded>) -> F + Send + 'static,
) where
    F: Future<Output = ()> + Send,
{
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        // All of it: the place is taken until the session is over.
        let Client { streamer, activity, place: _place } = client;
        let upgraded = match upgraded.await {
            Ok(upgraded) => TokioIo::new(upgraded),
            Err(error) => return tracing::debug!(%error, "a session was not upgraded"),
        };
        let limit = streamer.idle_timeout();
        tokio::select! {
            () = session(streamer.clone(), upgraded) => {}
            () = activity.idle(limit) => {
                tracing::info!(kind, seconds = limit.as_secs(), "session ended: nothing moved for too long");
            }
        }
    });
}

fn refuse(status: StatusCode, text: &'static str) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response
}

/// Values of a header that may be repeated or hold a list.
fn listed(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|value| value.trim().to_owned())
        .filter(|value| !value.is_empty())
        .collect()
}

fn switching(protocol: &'static str) -> Answer {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(protocol));
    response
}

fn upgrade_websocket(client: Client, wish: Wish, request: Request<Incoming>) -> Answer {
    let headers = request.headers();
    let Some(key) = headers.get(SEC_WEBSOCKET_KEY).cloned() else {
        return refuse(StatusCode::BAD_REQUEST, "no Sec-WebSocket-Key");
    };
    if request.method() != Method::GET {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "a WebSocket is opened by GET");
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        // RFC 6455 section 4.4.
        let mut response =
            refuse(StatusCode::UPGRADE_REQUIRED, "only version 13 of WebSocket is spoken here");
        response.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return response;
    }
    let offered = listed(headers, &SEC_WEBSOCKET_PROTOCOL);
    let known: &[&'static str] = match wish {
        Wish::Exec { .. } | Wish::Attach { .. } => &websocket::COMMAND_PROTOCOLS,
        Wish::PortForward { .. } => &port_forward::WEBSOCKET_PROTOCOLS,
    };
    // The client's order is its preference (RFC 6455 section 1.9).
    let chosen = offered.iter().find_map(|offer| known.iter().copied().find(|name| name == offer));
    if chosen.is_none() && !offered.is_empty() {
        return refuse(StatusCode::BAD_REQUEST, "none of the offered subprotocols is spoken here");
    }
    let mut response = switching("websocket");
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()));
    response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept.expect("base64 is a header value"));
    if let Some(chosen) = chosen {
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(chosen));
    }
    let protocol = chosen.unwrap_or_default();
    begin(client, wish.kind(), request, move |streamer, upgraded| async move {
        let socket = websocket::accept(upgraded).await;
        match wish {
            Wish::PortForward { sandbox_id, ports } => {
                port_forward::over_websocket(streamer.shim(&sandbox_id), ports, protocol, socket).await;
            }
            command => websocket::run(&streamer, command, protocol, socket).await,
        }
    });
    response
}

fn upgrade_spdy(client: Client, wish: Wish, request: Request<Incoming>) -> Answer {
    let offered = listed(request.headers(), &STREAM_PROTOCOL);
    let known: &[&'static str] = match wish {
        Wish::Exec { .. } | Wish::Attach { .. } => &COMMAND_SPDY,
        Wish::PortForward { .. } => &FORWARD_SPDY,
    };
    let chosen = if offered.is_empty() {
        // Clients older than the negotiation speak the last of each list.
        known.last().copied()
    } else {
        known.iter().copied().find(|name| offered.iter().any(|offer| offer == name))
    };
    let Some(chosen) = chosen else {
        let mut response =
            refuse(StatusCode::FORBIDDEN, "none of the offered stream protocols is spoken here");
        for name in known {
            response.headers_mut().append(ACCEPTED_PROTOCOLS, HeaderValue::from_static(name));
        }
        return response;
    };
    let mut response = switching(SPDY);
    if !offered.is_empty() {
        response.headers_mut().insert(STREAM_PROTOCOL, HeaderValue::from_static(chosen));
    }
    begin(client, wish.kind(), request, move |streamer, upgraded| async move {
        match wish {
            Wish::PortForward { sandbox_id, .. } => {
                port_forward::over_spdy(streamer.shim(&sandbox_id), upgraded).await;
            }
            command => spdy_command::run(&streamer, command, chosen, upgraded).await,
        }
    });
    response
}
