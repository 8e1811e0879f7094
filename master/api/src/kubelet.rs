//! Connections to kubelets: log streams and byte tunnels.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use http::{HeaderMap, HeaderName, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use orlop_resources::status::{self, ApiError};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde_json::Value;
use tokio::net::TcpStream;

use crate::body::{Reply, failure};
use crate::config::Config;
use crate::rules::encode::text;
use crate::state::{Api, parse};

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
const DEFAULT_PORT: u16 = 10250;
/// Of one connection, not of the request: they are not passed on (RFC 9110 section 7.6.1).
const HOP_BY_HOP: [&str; 6] = ["connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"];

/// How this server shows itself to kubelets.
pub(crate) struct Kubelets {
    tls: tokio_rustls::TlsConnector,
}

impl Kubelets {
    /// Reads the client certificate; none when the configuration has none.
    pub(crate) fn load(config: &Config) -> anyhow::Result<Option<Self>> {
        let (Some(certificate), Some(key)) =
            (&config.kubelet_client_cert_file, &config.kubelet_client_key_file)
        else {
            return Ok(None);
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?;
        let builder = match &config.kubelet_ca_file {
            Some(authority) => builder.with_root_certificates(roots(authority)?),
            None => builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified(provider))),
        };
        let tls = builder.with_client_auth_cert(certificates(certificate)?, private_key(key)?).with_context(
            || format!("failed to use the kubelet client certificate {}", certificate.display()),
        )?;
        Ok(Some(Self { tls: tokio_rustls::TlsConnector::from(Arc::new(tls)) }))
    }

    /// Sends a request to a node's kubelet and passes the answer on. When the kubelet switches protocols, both connections are joined.
    pub(crate) async fn proxy(
        &self,
        node: &Address,
        method: http::Method,
        path_and_query: &str,
        headers: &HeaderMap,
        upgrade: Option<hyper::upgrade::OnUpgrade>,
    ) -> Result<Reply, ApiError> {
        let failed = |error: &dyn std::fmt::Display| {
            let text =
                format!("error dialing backend: {error} (kubelet of node {} at {})", node.name, node.socket);
            ApiError::new(500, "InternalError", text, None)
        };
        let sent = async {
            let stream = TcpStream::connect(node.socket).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::IpAddress(node.socket.ip().into());
            let stream = self.tls.connect(name, stream).await?;
            anyhow::Ok(
                hyper::client::conn::http1::handshake::<_, Empty<bytes::Bytes>>(TokioIo::new(stream)).await?,
            )
        };
        let (mut sender, connection) = tokio::time::timeout(CONNECT_LIMIT, sent)
            .await
            .map_err(|error| failed(&error))?
            .map_err(|error| failed(&error))?;
        // Lives as long as the two ends talk; bounded by the limit of connections to this server.
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection to a kubelet ended");
            }
        });
        let request = self
            .request(node, method, path_and_query, headers, upgrade.is_some())
            .map_err(|error| failed(&error))?;
        let answered = tokio::time::timeout(ANSWER_LIMIT, sender.send_request(request)).await;
        let answer = answered.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
        match upgrade {
            Some(client) if answer.status() == StatusCode::SWITCHING_PROTOCOLS => Ok(join(client, answer)),
            _ => Ok(pass_on(answer).await),
        }
    }

    fn request(
        &self,
        node: &Address,
        method: http::Method,
        path_and_query: &str,
        headers: &HeaderMap,
        upgrade: bool,
    ) -> Result<Request<Empty<bytes::Bytes>>, http::Error> {
        let mut request = Request::builder().method(method).uri(path_and_query).body(Empty::new())?;
        for (name, value) in headers {
            // The client's proof is for this server alone.
            let secret =
                name == header::AUTHORIZATION || name == header::HOST || name == header::CONTENT_LENGTH;
            if !secret
                && (!is_hop_by_hop(name)
                    || (upgrade && (name == header::CONNECTION || name == header::UPGRADE)))
            {
                request.headers_mut().append(name.clone(), value.clone());
            }
        }
        request.headers_mut().insert(header::HOST, http::HeaderValue::from_str(&node.socket.to_string())?);
        Ok(request)
    }
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    HOP_BY_HOP.contains(&name.as_str())
}

/// The kubelet's 101, and behind it the bytes of both directions until one side ends.
fn join(client: hyper::upgrade::OnUpgrade, mut answer: Response<Incoming>) -> Reply {
    let mut reply = Response::new(crate::body::full(""));
    *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *reply.headers_mut() = std::mem::take(answer.headers_mut());
    let server = hyper::upgrade::on(answer);
    tokio::spawn(async move {
        let joined = async {
            let (server, client) = tokio::try_join!(server, client)?;
            let (mut server, mut client) = (TokioIo::new(server), TokioIo::new(client));
            tokio::io::copy_bidirectional(&mut client, &mut server).await?;
            anyhow::Ok(())
        };
        if let Err(error) = joined.await {
            tracing::debug!(%error, "tunnel to a kubelet ended");
        }
    });
    reply
}

/// A plain answer; an error of the kubelet becomes a Status with its words.
async fn pass_on(answer: Response<Incoming>) -> Reply {
    let (mut parts, body) = answer.into_parts();
    let hops: Vec<HeaderName> = parts.headers.keys().filter(|name| is_hop_by_hop(name)).cloned().collect();
    for name in hops {
        parts.headers.remove(name);
    }
    if parts.status.is_client_error() || parts.status.is_server_error() {
        let body = http_body_util::Limited::new(body, 64 << 10)
            .collect()
            .await
            .map(|body| body.to_bytes())
            .unwrap_or_default();
        let words = String::from_utf8_lossy(&body).trim().to_owned();
        let reason = match parts.status.as_u16() {
            400 => "BadRequest",
            404 => "NotFound",
            401 | 403 => "Forbidden",
            _ => "InternalError",
        };
        let words = if words.is_empty() { format!("the kubelet answered {}", parts.status) } else { words };
        return failure(&ApiError::new(parts.status.as_u16(), reason, words, None));
    }
    Response::from_parts(parts, body.map_err(Into::into).boxed_unsync())
}

/// Where a node's kubelet is.
pub(crate) struct Address {
    name: String,
    socket: SocketAddr,
}

impl Api {
    /// The address of a node's kubelet, from its Node object.
    pub(crate) fn kubelet_address(&self, node: &str) -> Result<Address, ApiError> {
        let entry = self
            .core_entry("nodes", "", node)
            .ok_or_else(|| status::not_found(crate::state::core("nodes"), node))?;
        let object = parse(&entry);
        let port = object.pointer("/status/daemonEndpoints/kubeletEndpoint/Port").and_then(Value::as_u64);
        let port =
            port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0).unwrap_or(DEFAULT_PORT);
        let addresses = object.pointer("/status/addresses").and_then(Value::as_array).into_iter().flatten();
        let address = addresses
            .filter(|address| text(address, "/type") == "InternalIP")
            .find_map(|address| text(address, "/address").parse::<IpAddr>().ok());
        match address {
            Some(address) => Ok(Address { name: node.to_owned(), socket: SocketAddr::new(address, port) }),
            None => Err(status::internal(format!(
                "no preferred addresses found; known addresses: [] (node {node})"
            ))),
        }
    }
}

pub(crate) fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| anyhow::anyhow!("{error}"))
        .with_context(|| format!("failed to read certificates from {}", path.display()))?;
    anyhow::ensure!(!certificates.is_empty(), "{} holds no certificate", path.display());
    Ok(certificates)
}

pub(crate) fn private_key(path: &Path) -> anyhow::Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(path)
        .map_err(|error| anyhow::anyhow!("{error}"))
        .with_context(|| format!("failed to read the key {}", path.display()))
}

pub(crate) fn roots(path: &Path) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .with_context(|| format!("{} holds a certificate that is no authority", path.display()))?;
    }
    Ok(roots)
}

/// Accepts any serving certificate, as upstream does without `--kubelet-certificate-authority`.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
