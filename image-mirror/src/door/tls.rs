//! The certificate that is shown, and those of clients.

use std::sync::Arc;

use anyhow::Context as _;
use orlop_daemon::prometheus_client::metrics::gauge::Gauge;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;

use crate::auth::is_user_name;
use crate::config::{ClientAuth, Config};
use crate::watched::Watched;

/// What connections are encrypted with, as the files say it now.
pub(crate) type Tls = Watched<Arc<rustls::ServerConfig>>;

/// None where no certificate is configured. `expiry` is set to the certificate's end at each reading.
pub(crate) fn open(config: &Config, expiry: Gauge) -> anyhow::Result<Option<Arc<Tls>>> {
    let (Some(certificate), Some(key)) = (&config.tls_cert_file, &config.tls_key_file) else {
        return Ok(None);
    };
    let mut files = vec![certificate.clone(), key.clone()];
    files.extend(config.client_ca_file.clone());
    let client_auth = config.client_auth;
    let parse = move |contents: &[Vec<u8>]| {
        let (server, end) = server_config(contents, client_auth)?;
        expiry.set(end);
        Ok(server)
    };
    Ok(Some(Arc::new(Watched::open("certificate", files, parse)?)))
}

/// From certificate, key and perhaps the authorities of clients; with the second when the certificate ends.
fn server_config(
    contents: &[Vec<u8>],
    client_auth: ClientAuth,
) -> anyhow::Result<(Arc<rustls::ServerConfig>, i64)> {
    let chain = certificates(&contents[0]).context("the certificate is not PEM")?;
    let leaf = chain.first().context("the certificate file holds none")?;
    let end = x509_parser::parse_x509_certificate(leaf)
        .context("the certificate is damaged")?
        .1
        .validity()
        .not_after
        .timestamp();
    let key = PrivateKeyDer::from_pem_slice(&contents[1]).context("the key is not PEM")?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?;
    let builder = match contents.get(2) {
        None => builder.with_no_client_auth(),
        Some(authorities) => builder.with_client_cert_verifier(verifier(authorities, client_auth, provider)?),
    };
    let mut tls =
        builder.with_single_cert(chain, key).context("the certificate and the key do not fit together")?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok((Arc::new(tls), end))
}

fn verifier(
    authorities: &[u8],
    client_auth: ClientAuth,
    provider: Arc<rustls::crypto::CryptoProvider>,
) -> anyhow::Result<Arc<dyn ClientCertVerifier>> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(authorities).context("clientCaFile is not PEM")? {
        roots.add(authority).context("clientCaFile holds a certificate that cannot be used")?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = match client_auth {
        ClientAuth::Request => builder.allow_unauthenticated(),
        ClientAuth::Require => builder,
    };
    builder.build().context("clientCaFile cannot be used")
}

fn certificates(pem: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    Ok(CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>()?)
}

/// Who a client's certificate says he is: its common name.
pub(super) fn user(connection: &rustls::ServerConnection) -> Option<Arc<str>> {
    let certificate = connection.peer_certificates()?.first()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    is_user_name(name).then(|| name.into())
}
