//! `/healthz` and `/livez` on a port of their own, as load balancers and probes ask kube-proxy.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use orlop_daemon::Frame;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::sync::Status;

const CONNECTION_LIMIT: usize = 32;
const REQUEST_SECONDS: u64 = 10;
/// Rules that are this long behind are a fault of the node.
const BEHIND_LIMIT: Duration = Duration::from_secs(120);

pub(crate) async fn serve(
    frame: &Frame,
    address: SocketAddr,
    status: watch::Receiver<Status>,
) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("failed to listen on {address} (healthzAddress)"))?;
    let drain = frame.drain();
    frame.spawn("proxy-health", async move {
        let limit = Arc::new(Semaphore::new(CONNECTION_LIMIT));
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = drain.wait() => return Ok(()),
            };
            let Ok((stream, _)) = accepted else {
                if !drain.sleep(Duration::from_millis(200)).await {
                    return Ok(());
                }
                continue;
            };
            let Ok(permit) = limit.clone().try_acquire_owned() else {
                continue;
            };
            let status = status.clone();
            tokio::spawn(async move {
                let _permit = permit;
                let service = hyper::service::service_fn(move |request| answer(status.clone(), request));
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                let _ = tokio::time::timeout(Duration::from_secs(REQUEST_SECONDS), connection).await;
            });
        }
    });
    Ok(())
}

async fn answer(
    status: watch::Receiver<Status>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (code, text) = match request.uri().path() {
        "/healthz" => health(&status.borrow(), Instant::now(), true),
        "/livez" => health(&status.borrow(), Instant::now(), false),
        _ => (StatusCode::NOT_FOUND, "known: /healthz /livez".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = code;
    Ok(response)
}

/// Live: not behind for too long. Healthy: also set once, so that traffic sent here finds rules.
fn health(status: &Status, now: Instant, needs_sync: bool) -> (StatusCode, String) {
    let behind = status.behind_since.is_some_and(|since| now.duration_since(since) > BEHIND_LIMIT);
    let healthy = !behind && (!needs_sync || status.in_sync.is_some());
    let code = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let ago = status.in_sync.map(|at| now.duration_since(at).as_secs());
    (
        code,
        serde_json::json!({"healthy": healthy, "lastSyncSecondsAgo": ago, "services": status.services})
            .to_string(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_follows_the_rules() {
        let now = Instant::now();
        let late = now + BEHIND_LIMIT + Duration::from_secs(1);
        let fresh = Status::default();
        assert_eq!(health(&fresh, now, true).0, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(health(&fresh, now, false).0, StatusCode::OK);
        let synced = Status { in_sync: Some(now), ..fresh };
        assert_eq!(health(&synced, late, true).0, StatusCode::OK);
        let behind = Status { behind_since: Some(now), ..synced };
        assert_eq!(health(&behind, now, true).0, StatusCode::OK);
        assert_eq!(health(&behind, late, false).0, StatusCode::SERVICE_UNAVAILABLE);
    }
}
