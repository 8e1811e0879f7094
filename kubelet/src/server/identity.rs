//! Serving certificate, callers' certificates, and who may call.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use hyper::StatusCode;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};

use crate::config::{AuthorizationMode, Config};

/// The API server's identity towards kubelets, as kubeadm and our own master name it.
const API_SERVER: &str = "kube-apiserver-kubelet-client";
const MASTERS: &str = "system:masters";

/// Who is at the other end of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Caller {
    /// Common name and organizations of a verified certificate.
    certificate: Option<(String, Vec<String>)>,
}

impl Caller {
    /// Reads the certificate that the handshake verified.
    pub(crate) fn of(connection: &ServerConnection) -> Self {
        let first = connection.peer_certificates().and_then(|chain| chain.first());
        Self { certificate: first.and_then(|der| subject(der)) }
    }

    /// `Err` with 401 for nobody and 403 for somebody else.
    pub(crate) fn check(&self, config: &Config) -> Result<(), (StatusCode, String)> {
        let allow_all = config.authorization.mode == AuthorizationMode::AlwaysAllow;
        match &self.certificate {
            None if allow_all && config.authentication.anonymous.enabled => Ok(()),
            None => Err((StatusCode::UNAUTHORIZED, "Unauthorized".to_owned())),
            Some((name, groups))
                if allow_all || name == API_SERVER || groups.iter().any(|group| group == MASTERS) =>
            {
                Ok(())
            }
            Some((name, _)) => Err((
                StatusCode::FORBIDDEN,
                format!("Forbidden (user={name}, verb=*, resource=nodes, subresource=proxy)"),
            )),
        }
    }
}

fn subject(der: &[u8]) -> Option<(String, Vec<String>)> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups =
        subject.iter_organization().filter_map(|group| group.as_str().ok().map(str::to_owned)).collect();
    Some((name, groups))
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let read = || format!("failed to read certificates from {}", path.display());
    let list: Vec<_> = CertificateDer::pem_file_iter(path)
        .with_context(read)?
        .collect::<Result<_, _>>()
        .with_context(read)?;
    anyhow::ensure!(!list.is_empty(), "{} holds no certificate", path.display());
    Ok(list)
}

/// TLS of the server: certificates of callers are asked for, not demanded; who shows none gets 401 with words.
pub(crate) fn tls_config(config: &Config) -> anyhow::Result<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match &config.authentication.x509.client_ca_file {
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).with_context(|| {
                    format!("{} holds a certificate that cannot be an authority", path.display())
                })?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .allow_unauthenticated()
                .build()?;
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    let (chain, key) = serving_certificate(config)?;
    let mut tls =
        builder.with_single_cert(chain, key).context("the serving certificate and its key do not fit")?;
    // Streams upgrade, which HTTP/2 does not do.
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(tls)
}

fn serving_certificate(
    config: &Config,
) -> anyhow::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    if let (Some(certificate), Some(key)) = (&config.tls_cert_file, &config.tls_private_key_file) {
        let key = PrivateKeyDer::from_pem_file(key)
            .with_context(|| format!("failed to read the key {}", key.display()))?;
        return Ok((certificates(certificate)?, key));
    }
    // As upstream without serverTLSBootstrap: self-signed, anew at each start.
    let names = vec![config.node_name.clone(), config.node_ip.clone()];
    let made =
        rcgen::generate_simple_self_signed(names).context("failed to make a self-signed certificate")?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    Ok((vec![made.cert.der().clone()], key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_api_server_and_masters() {
        let config = Config::default();
        let caller = |name: &str, groups: &[&str]| Caller {
            certificate: Some((name.into(), groups.iter().map(|&group| group.into()).collect())),
        };
        assert!(caller(API_SERVER, &[]).check(&config).is_ok());
        assert!(caller("admin", &[MASTERS]).check(&config).is_ok());
        assert_eq!(
            caller("system:node:n2", &["system:nodes"]).check(&config).unwrap_err().0,
            StatusCode::FORBIDDEN
        );
        assert_eq!(Caller::default().check(&config).unwrap_err().0, StatusCode::UNAUTHORIZED);
        assert!(tls_config(&Config { node_name: "n".into(), node_ip: "10.0.0.1".into(), ..config }).is_ok());
    }

    /// A handshake with a certificate of the cluster's CA, of another CA, and without one.
    #[tokio::test]
    async fn certificates_of_callers_are_verified() {
        let dir = tempfile::tempdir().unwrap();
        let authority = |name: &str| {
            let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            let key = rcgen::KeyPair::generate().unwrap();
            let pem = params.self_signed(&key).unwrap().pem();
            (rcgen::Issuer::new(params, key), pem)
        };
        let (ours, pem) = authority("ours");
        let (theirs, _) = authority("theirs");
        let ca = dir.path().join("ca.crt");
        std::fs::write(&ca, pem).unwrap();
        let mut config = Config { node_name: "n".into(), node_ip: "10.0.0.1".into(), ..Config::default() };
        config.authentication.x509.client_ca_file = Some(ca);
        let server = Arc::new(tls_config(&config).unwrap());
        assert_eq!(handshake(&server, Some(&ours)).await.unwrap().check(&config), Ok(()));
        assert!(handshake(&server, Some(&theirs)).await.is_none());
        let nobody = handshake(&server, None).await.unwrap();
        assert_eq!(nobody.check(&config).unwrap_err().0, StatusCode::UNAUTHORIZED);
    }

    async fn handshake(
        server: &Arc<ServerConfig>,
        issuer: Option<&rcgen::Issuer<'_, rcgen::KeyPair>>,
    ) -> Option<Caller> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(crate::probe::http::any_certificate());
        let client = match issuer {
            Some(issuer) => {
                let key = rcgen::KeyPair::generate().unwrap();
                let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
                params.distinguished_name.push(rcgen::DnType::CommonName, API_SERVER);
                params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
                let certificate = params.signed_by(&key, issuer).unwrap();
                let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
                builder.with_client_auth_cert(vec![certificate.der().clone()], der).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        let (near, far) = tokio::io::duplex(64 * 1024);
        let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
        let name = rustls::pki_types::ServerName::try_from("n").unwrap();
        let (_client, accepted) = tokio::join!(
            async {
                let stream = connector.connect(name, near).await;
                // Kept open: the server may still be reading the certificate.
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                stream
            },
            tokio_rustls::TlsAcceptor::from(server.clone()).accept(far)
        );
        accepted.ok().map(|stream| Caller::of(stream.get_ref().1))
    }
}
