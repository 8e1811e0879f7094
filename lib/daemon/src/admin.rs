//! The admin socket: HTTP/1.1 over a unix socket that only root can open.
//!
//! | request | answer |
//! |---|---|
//! | `GET /healthz` | `ok` |
//! | `GET /readyz` | `ok`, or 503 with the names of the guards that are missing |
//! | `GET /metrics` | OpenMetrics text |
//! | `GET /dump` | the daemon's state as one JSON object |
//! | `PUT /commands/NAME` | what the daemon offers there; the body of PUT is its argument, 409 says what is wrong |
//! | `GET /loglevel`, `PUT /loglevel` | the log filter; the body of PUT is the new one (at most 4096 bytes) |

use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixListener;

use crate::{Frame, telemetry};

const BODY_LIMIT_BYTES: usize = 4096;
const CONNECTION_LIMIT: usize = 16;
const REQUEST_SECONDS: u64 = 10;

pub(crate) fn serve(frame: &Frame, path: &Path) -> anyhow::Result<()> {
    let listener = bind(path)?;
    let drain = frame.drain();
    let served = frame.clone();
    let path = path.to_owned();
    frame.spawn("admin", async move {
        let limit = std::sync::Arc::new(tokio::sync::Semaphore::new(CONNECTION_LIMIT));
        loop {
            let (stream, _) = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!(%error, "admin socket could not accept");
                        if !drain.sleep(Duration::from_millis(200)).await { break }
                        continue;
                    }
                },
                () = drain.wait() => break,
            };
            let Ok(permit) = limit.clone().try_acquire_owned() else {
                continue;
            };
            let frame = served.clone();
            tokio::spawn(async move {
                let _permit = permit;
                let service = hyper::service::service_fn(move |request| answer(frame.clone(), request));
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                let _ = tokio::time::timeout(Duration::from_secs(REQUEST_SECONDS), connection).await;
            });
        }
        let _ = std::fs::remove_file(&path);
        Ok(())
    });
    Ok(())
}

fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("failed to create {}", parent.display()))?;
    }
    // A predecessor that was killed leaves its socket file.
    let _ = std::fs::remove_file(path);
    let listener =
        UnixListener::bind(path).with_context(|| format!("failed to listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn answer(frame: Frame, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let response = match (request.method(), request.uri().path()) {
        (&Method::GET, "/healthz" | "/livez") => text(StatusCode::OK, "ok".to_owned()),
        (&Method::GET, "/readyz") => readyz(&frame),
        (&Method::GET, "/metrics") => text(StatusCode::OK, frame.metrics_text()),
        (&Method::GET, "/dump") => dump(&frame),
        (&Method::GET, "/loglevel") => text(StatusCode::OK, telemetry::filter()),
        (&Method::PUT, "/loglevel") => set_log_level(request).await,
        (&Method::PUT, path) if path.starts_with("/commands/") => command(&frame, request).await,
        _ => text(StatusCode::NOT_FOUND, "known: /healthz /readyz /metrics /dump /loglevel".to_owned()),
    };
    Ok(response)
}

fn readyz(frame: &Frame) -> Response<Full<Bytes>> {
    let missing = frame.ready().missing();
    if missing.is_empty() {
        text(StatusCode::OK, "ok".to_owned())
    } else {
        text(StatusCode::SERVICE_UNAVAILABLE, format!("waiting for: {}", missing.join(", ")))
    }
}

fn dump(frame: &Frame) -> Response<Full<Bytes>> {
    let sections: serde_json::Map<_, _> =
        frame.dumps().iter().map(|(name, dump)| ((*name).to_owned(), dump())).collect();
    let mut response = text(StatusCode::OK, serde_json::Value::Object(sections).to_string());
    response
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    response
}

async fn command(frame: &Frame, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let commands = frame.commands();
    let name = request.uri().path().trim_start_matches("/commands/").to_owned();
    let Some(run) = commands.get(name.as_str()).cloned() else {
        let known = commands.keys().copied().collect::<Vec<_>>().join(" ");
        return text(StatusCode::NOT_FOUND, format!("{name:?} is no command; known: {known}"));
    };
    let body = match body(request).await {
        Ok(body) => body,
        Err(response) => return response,
    };
    // Apart from the connection, whose time is bounded: what was begun is ended.
    match tokio::spawn(run(body)).await {
        Ok(Ok(answer)) => text(StatusCode::OK, answer),
        Ok(Err(error)) => text(StatusCode::CONFLICT, error),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("command {name} broke: {error}")),
    }
}

async fn body(request: Request<Incoming>) -> Result<String, Response<Full<Bytes>>> {
    match Limited::new(request.into_body(), BODY_LIMIT_BYTES).collect().await {
        Ok(body) => Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned()),
        Err(error) => Err(text(StatusCode::BAD_REQUEST, format!("could not read the body: {error}"))),
    }
}

async fn set_log_level(request: Request<Incoming>) -> Response<Full<Bytes>> {
    let body = match body(request).await {
        Ok(body) => body,
        Err(response) => return response,
    };
    match telemetry::set_filter(body.trim()) {
        Ok(()) => text(StatusCode::OK, telemetry::filter()),
        Err(error) => text(StatusCode::BAD_REQUEST, error),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
}
