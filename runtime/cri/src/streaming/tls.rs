//! TLS of the streaming server, from files that may be replaced while it runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde::{Deserialize, Serialize};

/// Where the certificates are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TlsFiles {
    /// Certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// Authorities of client certificates, PEM; given, every client needs one.
    pub client_authorities: Option<PathBuf>,
}

impl TlsFiles {
    /// Reads them.
    pub(super) fn load(&self) -> anyhow::Result<ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
        let builder = match &self.client_authorities {
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path)? {
                    roots.add(certificate).with_context(|| {
                        format!("{} holds a certificate that cannot be an authority", path.display())
                    })?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build()?)
            }
            None => builder.with_no_client_auth(),
        };
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .with_context(|| format!("failed to read the key {}", self.key.display()))?;
        let mut config =
            builder.with_single_cert(certificates(&self.certificate)?, key).with_context(|| {
                format!("{} and {} do not fit together", self.certificate.display(), self.key.display())
            })?;
        // Upgrades are HTTP/1.1's.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    fn changed_at(&self) -> Vec<Option<SystemTime>> {
        let files = [Some(&self.certificate), Some(&self.key), self.client_authorities.as_ref()];
        let time = |path: &PathBuf| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        files.into_iter().flatten().map(time).collect()
    }
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

/// The configuration in force; a renewed certificate is taken up by the next client.
pub(super) struct Tls {
    files: TlsFiles,
    seen: Vec<Option<SystemTime>>,
    config: Arc<ServerConfig>,
}

impl Tls {
    pub(super) fn new(files: TlsFiles) -> anyhow::Result<Self> {
        // Looked at before they are read: a change in between is noticed next time.
        let seen = files.changed_at();
        let config = Arc::new(files.load()?);
        Ok(Self { files, seen, config })
    }

    /// For the next client. Files that cannot be read, half written ones say, leave the last good ones in force.
    pub(super) fn current(&mut self) -> Arc<ServerConfig> {
        let seen = self.files.changed_at();
        if seen != self.seen {
            match self.files.load() {
                Ok(config) => self.config = Arc::new(config),
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "the old certificates stay in use")
                }
            }
            self.seen = seen;
        }
        self.config.clone()
    }
}
