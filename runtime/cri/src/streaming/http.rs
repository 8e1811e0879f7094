//! The HTTP side: token, protocol negotiation, 101, then the upgraded bytes go to their protocol.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::{Wish, port_forward, spdy_command, websocket};
use crate::runtime::Runtime;

const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_PROTOCOLS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");
const SPDY: &str = "SPDY/3.1";
const HEADER_SECONDS: u64 = 30;

/// Protocols of remote commands over SPDY, best first.
const COMMAND_SPDY: [&str; 4] =
    ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
const FORWARD_SPDY: [&str; 1] = ["portforward.k8s.io"];

type Answer = Response<Full<Bytes>>;

pub(super) async fn serve_connection(
    runtime: Arc<Runtime>,
    stream: TcpStream,
    permit: Arc<OwnedSemaphorePermit>,
) {
    let service = hyper::service::service_fn(move |request| {
        let (runtime, permit) = (runtime.clone(), permit.clone());
        async move { Ok::<_, Infallible>(answer(runtime, request, permit)) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(hyper_util::rt::TokioTimer::new())
        .header_read_timeout(std::time::Duration::from_secs(HEADER_SECONDS))
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a session's connection failed");
    }
}

fn answer(runtime: Arc<Runtime>, request: Request<Incoming>, permit: Arc<OwnedSemaphorePermit>) -> Answer {
    let Some(wish) = runtime.streams.take(request.uri().path()) else {
        return refuse(StatusCode::NOT_FOUND, "no such session: its URL was used or is too old");
    };
    let upgrade =
        request.headers().get(UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    if upgrade.eq_ignore_ascii_case("websocket") {
        upgrade_websocket(runtime, wish, request, permit)
    } else if upgrade.eq_ignore_ascii_case(SPDY) {
        upgrade_spdy(runtime, wish, request, permit)
    } else {
        refuse(StatusCode::BAD_REQUEST, "upgrade to websocket or SPDY/3.1 is required")
    }
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

fn upgrade_websocket(
    runtime: Arc<Runtime>,
    wish: Wish,
    mut request: Request<Incoming>,
    permit: Arc<OwnedSemaphorePermit>,
) -> Answer {
    let Some(key) = request.headers().get(SEC_WEBSOCKET_KEY).cloned() else {
        return refuse(StatusCode::BAD_REQUEST, "no Sec-WebSocket-Key");
    };
    let offered = listed(request.headers(), &SEC_WEBSOCKET_PROTOCOL);
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
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let _permit = permit;
        match upgraded.await {
            Ok(upgraded) => {
                let socket = websocket::accept(TokioIo::new(upgraded)).await;
                match wish {
                    Wish::PortForward { sandbox_id, ports } => {
                        port_forward::over_websocket(
                            &runtime,
                            &sandbox_id,
                            ports,
                            chosen.unwrap_or_default(),
                            socket,
                        )
                        .await;
                    }
                    command => websocket::run(&runtime, command, chosen.unwrap_or_default(), socket).await,
                }
            }
            Err(error) => tracing::debug!(%error, "a session was not upgraded"),
        }
    });
    response
}

fn upgrade_spdy(
    runtime: Arc<Runtime>,
    wish: Wish,
    mut request: Request<Incoming>,
    permit: Arc<OwnedSemaphorePermit>,
) -> Answer {
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
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let _permit = permit;
        match upgraded.await {
            Ok(upgraded) => match wish {
                Wish::PortForward { sandbox_id, .. } => {
                    port_forward::over_spdy(&runtime, &sandbox_id, TokioIo::new(upgraded)).await;
                }
                command => spdy_command::run(&runtime, command, chosen, TokioIo::new(upgraded)).await,
            },
            Err(error) => tracing::debug!(%error, "a session was not upgraded"),
        }
    });
    response
}
