//! Exec, attach and port-forward: the request goes to the runtime's streaming server unchanged, and after the upgrade so do the bytes.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::header::HOST;
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{Answer, text};

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Headers that are between the caller and us only.
const OURS: [&str; 3] = ["host", "authorization", "content-length"];

/// Forwards to the address that CRI gave.
pub(crate) async fn forward(request: Request<Incoming>, url: &str) -> Answer {
    match try_forward(request, url).await {
        Ok(answer) => answer,
        Err(problem) => text(StatusCode::BAD_GATEWAY, format!("the runtime's streaming server: {problem}")),
    }
}

async fn try_forward(mut request: Request<Incoming>, url: &str) -> Result<Answer, String> {
    let uri: Uri = url.parse().map_err(|_| format!("{url:?} is no URL"))?;
    if uri.scheme_str() != Some("http") {
        return Err(format!("{url:?}: only http is spoken to the runtime"));
    }
    let authority = uri.authority().ok_or_else(|| format!("{url:?} names no host"))?.clone();
    let address = (authority.host().trim_matches(['[', ']']).to_owned(), authority.port_u16().unwrap_or(80));
    let connect = TcpStream::connect(address);
    let stream = tokio::time::timeout(CONNECT_LIMIT, connect)
        .await
        .map_err(|_| "no connection in time")?
        .map_err(|e| e.to_string())?;
    let _ = stream.set_nodelay(true);
    let handshake =
        hyper::client::conn::http1::Builder::new().preserve_header_case(true).handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(|error| error.to_string())?;
    // Lives as long as the session it carries.
    tokio::spawn(connection.with_upgrades());
    let mut outward = Request::builder()
        .method(request.method().clone())
        .uri(uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str))
        .header(HOST, authority.as_str())
        .body(Empty::<Bytes>::new().map_err(|never: Infallible| -> io::Error { match never {} }))
        .map_err(|error| error.to_string())?;
    for (name, value) in request.headers() {
        if !OURS.contains(&name.as_str()) {
            outward.headers_mut().append(name, value.clone());
        }
    }
    let mut inward = sender.send_request(outward).await.map_err(|error| error.to_string())?;
    if inward.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (parts, body) = inward.into_parts();
        return Ok(Response::from_parts(parts, body.map_err(io::Error::other).boxed()));
    }
    let caller = hyper::upgrade::on(&mut request);
    let runtime = hyper::upgrade::on(&mut inward);
    tokio::spawn(async move {
        let _sender = sender;
        match tokio::try_join!(caller, runtime) {
            Ok((caller, runtime)) => {
                let copied =
                    tokio::io::copy_bidirectional(&mut TokioIo::new(caller), &mut TokioIo::new(runtime))
                        .await;
                tracing::debug!(?copied, "streaming session ended");
            }
            Err(error) => tracing::debug!(%error, "streaming session did not begin"),
        }
    });
    let (parts, _) = inward.into_parts();
    let empty = Empty::<Bytes>::new().map_err(|never: Infallible| -> io::Error { match never {} });
    Ok(Response::from_parts(parts, empty.boxed()))
}

#[cfg(test)]
mod tests {
    use hyper::service::service_fn;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// Reads one request's head.
    async fn head(stream: &mut TcpStream) -> String {
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") {
            bytes.push(stream.read_u8().await.unwrap());
        }
        String::from_utf8(bytes).unwrap()
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_after_the_upgrade() {
        let streaming = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/exec/token?x=1", streaming.local_addr().unwrap());
        let runtime = tokio::spawn(async move {
            let (mut stream, _) = streaming.accept().await.unwrap();
            let asked = head(&mut stream).await;
            stream
                .write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4\r\n\r\n")
                .await
                .unwrap();
            let mut received = [0; 4];
            stream.read_exact(&mut received).await.unwrap();
            stream.write_all(b"pong").await.unwrap();
            (asked, received)
        });
        let kubelet = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = kubelet.local_addr().unwrap();
        tokio::spawn(async move {
            let (stream, _) = kubelet.accept().await.unwrap();
            let service = service_fn(move |request| {
                let url = url.clone();
                async move { Ok::<_, Infallible>(forward(request, &url).await) }
            });
            let server =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            let _ = server.with_upgrades().await;
        });
        let mut caller = TcpStream::connect(address).await.unwrap();
        let request = "POST /exec/n/p/c?command=sh HTTP/1.1\r\nHost: kubelet\r\nAuthorization: Bearer secret\r\n\
                       Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4\r\nContent-Length: 0\r\n\r\n";
        caller.write_all(request.as_bytes()).await.unwrap();
        let answer = head(&mut caller).await.to_lowercase();
        assert!(answer.starts_with("http/1.1 101"), "{answer}");
        assert!(
            answer.contains("upgrade: spdy/3.1") && answer.contains("x-stream-protocol-version: v4"),
            "{answer}"
        );
        caller.write_all(b"ping").await.unwrap();
        let mut received = [0; 4];
        caller.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"pong");
        let (asked, sent) = runtime.await.unwrap();
        assert_eq!(&sent, b"ping");
        let asked = asked.to_lowercase();
        assert!(asked.starts_with("post /exec/token?x=1 "), "{asked}");
        assert!(asked.contains("upgrade: spdy/3.1") && !asked.contains("secret"), "{asked}");
    }
}
