//! Kubeconfig files with everything inline, so that one file is enough to carry away.

use std::path::Path;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::file::write_atomic;
use super::pki::{Authority, CertificateFiles};

/// Writes a kubeconfig for `user` that talks to `server`, for example `https://10.0.0.1:6443`.
pub(crate) fn write(
    path: &Path,
    authority: &Authority,
    server: &str,
    user: &str,
    files: &CertificateFiles,
) -> anyhow::Result<()> {
    let encode = |path: &Path| -> anyhow::Result<String> {
        Ok(STANDARD
            .encode(std::fs::read(path).with_context(|| format!("failed to read {}", path.display()))?))
    };
    let config = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "orlop", "cluster": {
            "server": server,
            "certificate-authority-data": STANDARD.encode(authority.certificate_pem()),
        }}],
        "users": [{"name": user, "user": {
            "client-certificate-data": encode(&files.certificate)?,
            "client-key-data": encode(&files.key)?,
        }}],
        "contexts": [{"name": "orlop", "context": {"cluster": "orlop", "user": user}}],
        "current-context": "orlop",
    });
    // JSON is YAML: kubectl, client-go and kube read it.
    write_atomic(path, &serde_json::to_vec_pretty(&config)?, 0o600)
}
