//! A GET that only its status matters of; certificates are not verified (as upstream: the pod is probed, not trusted).

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::check::dial_problem;

/// What to ask for.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) https: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
}

#[derive(Debug)]
struct AnyCertificate(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
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
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A verifier that takes every certificate: only for probes, whose outcome is a status code and not a secret.
pub(crate) fn any_certificate() -> Arc<dyn ServerCertVerifier> {
    Arc::new(AnyCertificate(Arc::new(rustls::crypto::ring::default_provider())))
}

fn connector() -> Result<tokio_rustls::TlsConnector, String> {
    static CONNECTOR: OnceLock<tokio_rustls::TlsConnector> = OnceLock::new();
    if let Some(connector) = CONNECTOR.get() {
        return Ok(connector.clone());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(any_certificate())
        .with_no_client_auth();
    Ok(CONNECTOR.get_or_init(|| tokio_rustls::TlsConnector::from(Arc::new(config))).clone())
}

impl Request {
    fn bracketed_host(&self) -> String {
        if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() }
    }

    /// As Go's client names a request in its errors.
    pub(crate) fn shown(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };
        format!("Get \"{scheme}://{}:{}{}\"", self.bracketed_host(), self.port, self.path)
    }
}

/// The status code of a GET. Redirects are not followed: a 3xx is the answer.
pub(crate) async fn get(request: &Request) -> Result<u16, String> {
    let Request { host, port, .. } = request;
    let (bracketed, shown) = (request.bracketed_host(), request.shown());
    let stream = TcpStream::connect((host.as_str(), *port))
        .await
        .map_err(|error| format!("{shown}: dial tcp {bracketed}:{port}: {}", dial_problem(&error)))?;
    let result = if request.https {
        let name = ServerName::try_from(host.clone()).map_err(|error| format!("{shown}: {error}"))?;
        let stream = connector()?.connect(name, stream).await.map_err(|error| format!("{shown}: {error}"))?;
        send(stream, request, &bracketed).await
    } else {
        send(stream, request, &bracketed).await
    };
    result.map_err(|error| format!("{shown}: {error}"))
}

async fn send<S>(stream: S, request: &Request, host: &str) -> Result<u16, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let mut builder = http::Request::get(&request.path);
    let has = |name: &str| request.headers.iter().any(|(known, _)| known.eq_ignore_ascii_case(name));
    if !has("host") {
        builder = builder.header("host", format!("{host}:{}", request.port));
    }
    if !has("user-agent") {
        builder = builder.header("user-agent", "kube-probe/1.36");
    }
    if !has("accept") {
        builder = builder.header("accept", "*/*");
    }
    for (name, value) in &request.headers {
        builder = builder.header(name, value);
    }
    let get = builder
        .header("connection", "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    // The connection lives exactly as long as the request is awaited. It may end together with the answer: then the answer counts.
    let mut answer = std::pin::pin!(sender.send_request(get));
    let answered = tokio::select! {
        answered = &mut answer => answered,
        ended = connection => match ended {
            Ok(()) => answer.await,
            Err(error) => return Err(error.to_string()),
        },
    };
    Ok(answered.map_err(|error| error.to_string())?.status().as_u16())
}
