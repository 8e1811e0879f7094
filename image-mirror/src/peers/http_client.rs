//! Requests to other mirrors: bounded in time, with the pair's secret.

use std::error::Error as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use orlop_types::Digest;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::protocol::{NODE_HEADER, Node};

/// Mirrors of a pair are near.
const CONNECT: Duration = Duration::from_secs(2);
/// Without a byte of an answer's body.
const STALL: Duration = Duration::from_secs(10);
const IDLE: Duration = Duration::from_secs(60);
/// Debian's bundle: what the operator trusts on this machine.
const SYSTEM_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// A shorter secret can be guessed.
const TOKEN_LEAST_BYTES: usize = 16;

/// Why a peer did not give what was asked for.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum PeerError {
    #[error("{url} cannot be reached: {reason}")]
    Unreachable { url: String, reason: String },
    #[error("{url} gave no {what} for {}s", .after.as_secs())]
    Silent { url: String, what: &'static str, after: Duration },
    #[error("{url} refuses this mirror ({status}): give both halves the same peerTokenFile")]
    Refused { url: String, status: u16 },
    #[error("{url} does not have it")]
    Missing { url: String },
    #[error("{url} answered {status}")]
    Status { url: String, status: u16 },
    #[error("{url} gave an answer that makes no sense: {reason}")]
    Nonsense { url: String, reason: String },
}

/// The secret that mirrors show each other; compared by its hash, so that the time tells nothing of it.
#[derive(Clone)]
pub(crate) struct Token {
    hash: Digest,
    header: HeaderValue,
}

impl Token {
    pub(crate) fn read(file: &Path) -> anyhow::Result<Self> {
        let shown = file.display();
        let mode =
            std::fs::metadata(file).with_context(|| format!("failed to read {shown}"))?.permissions().mode();
        anyhow::ensure!(
            mode & 0o077 == 0,
            "others may read the secret in {shown} (mode {:o}): chmod 600 {shown}",
            mode & 0o777
        );
        let text = std::fs::read_to_string(file).with_context(|| format!("failed to read {shown}"))?;
        let text = text.trim();
        anyhow::ensure!(
            text.len() >= TOKEN_LEAST_BYTES,
            "the secret in {shown} is shorter than {TOKEN_LEAST_BYTES} bytes: make one with openssl rand -hex 32"
        );
        let header = HeaderValue::from_str(&format!("Bearer {text}"));
        let mut header = header.with_context(|| format!("the secret in {shown} is no text of one line"))?;
        header.set_sensitive(true);
        Ok(Self { hash: Digest::sha256(header.as_bytes()), header })
    }

    pub(crate) fn fits(&self, authorization: &HeaderValue) -> bool {
        Digest::sha256(authorization.as_bytes()) == self.hash
    }
}

/// Asks other mirrors; cheap to clone.
#[derive(Clone)]
pub(crate) struct PeerClient {
    http: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    token: Option<Token>,
    own: HeaderValue,
}

impl PeerClient {
    pub(crate) fn open(token: Option<&Path>, ca: Option<&Path>, own: Node) -> anyhow::Result<Self> {
        let token = token.map(Token::read).transpose()?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots(ca)?)
            .with_no_client_auth();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT));
        tcp.set_keepalive(Some(Duration::from_secs(30)));
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            // One transfer, one connection: no window of HTTP/2 to be tuned.
            .enable_http1()
            .wrap_connector(tcp);
        let http = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(8)
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .build(connector);
        let own = HeaderValue::from_str(&own.to_string()).expect("hexadecimal digits are a header");
        Ok(Self { http, token, own })
    }

    pub(crate) fn token(&self) -> Option<&Token> {
        self.token.as_ref()
    }

    /// GETs a path below a mirror's base URL; `patience` is for the head of the answer.
    pub(crate) async fn get(
        &self,
        base: &str,
        path: &str,
        from: u64,
        patience: Duration,
    ) -> Result<Response<Incoming>, PeerError> {
        let url = base.to_owned();
        let mut request = Request::get(format!("{}{path}", base.trim_end_matches('/')))
            .header(NODE_HEADER, &self.own)
            .header(header::USER_AGENT, "orlop");
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, &token.header);
        }
        if from > 0 {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        let request = request.body(Empty::new());
        let request =
            request.map_err(|error| PeerError::Nonsense { url: url.clone(), reason: error.to_string() })?;
        let answer = tokio::time::timeout(patience, self.http.request(request)).await;
        let response = match answer {
            Err(_) => return Err(PeerError::Silent { url, what: "answer", after: patience }),
            Ok(Err(error)) => return Err(PeerError::Unreachable { url, reason: chain(&error) }),
            Ok(Ok(response)) => response,
        };
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            StatusCode::NOT_FOUND => Err(PeerError::Missing { url }),
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                Err(PeerError::Refused { url, status: status.as_u16() })
            }
            status => Err(PeerError::Status { url, status: status.as_u16() }),
        }
    }

    /// The next bytes of a body; none at its end.
    pub(crate) async fn chunk(base: &str, body: &mut Incoming) -> Result<Option<Bytes>, PeerError> {
        loop {
            let url = || base.to_owned();
            return match tokio::time::timeout(STALL, body.frame()).await {
                Err(_) => Err(PeerError::Silent { url: url(), what: "data", after: STALL }),
                Ok(None) => Ok(None),
                Ok(Some(Err(error))) => {
                    Err(PeerError::Unreachable { url: url(), reason: format!("the answer was cut: {error}") })
                }
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => Ok(Some(data)),
                    // Trailers.
                    Err(_) => continue,
                },
            };
        }
    }

    /// A whole body of at most `limit` bytes.
    pub(crate) async fn read(
        base: &str,
        response: Response<Incoming>,
        limit: usize,
    ) -> Result<Vec<u8>, PeerError> {
        let mut body = response.into_body();
        let mut content = Vec::new();
        while let Some(data) = Self::chunk(base, &mut body).await? {
            if content.len() + data.len() > limit {
                let reason = format!("a document of more than {limit} bytes");
                return Err(PeerError::Nonsense { url: base.to_owned(), reason });
            }
            content.extend_from_slice(&data);
        }
        Ok(content)
    }
}

fn roots(ca: Option<&Path>) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let read = |path: &Path| {
        CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .with_context(|| format!("failed to read the certificates in {}", path.display()))
    };
    match ca {
        Some(path) => {
            for certificate in read(path)? {
                roots
                    .add(certificate)
                    .with_context(|| format!("a certificate in {} is damaged", path.display()))?;
            }
            anyhow::ensure!(!roots.is_empty(), "no certificate is in {}", path.display());
        }
        None => {
            // Without it no https peer is trusted, and its error says so.
            roots.add_parsable_certificates(read(Path::new(SYSTEM_BUNDLE)).unwrap_or_default());
        }
    }
    Ok(roots)
}

fn chain(error: &hyper_util::client::legacy::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_ours_alone_and_long() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        let write = |text: &str, mode| {
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            Token::read(&file)
        };
        assert!(write("0123456789abcdef\n", 0o644).err().unwrap().to_string().contains("chmod 600"));
        assert!(write("short\n", 0o600).err().unwrap().to_string().contains("shorter"));
        let token = write("0123456789abcdef\n", 0o600).unwrap();
        assert!(token.fits(&HeaderValue::from_static("Bearer 0123456789abcdef")));
        assert!(!token.fits(&HeaderValue::from_static("Bearer 0123456789abcdeg")));
        assert!(!token.fits(&HeaderValue::from_static("")));
    }
}
