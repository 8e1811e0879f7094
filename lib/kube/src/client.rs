use std::path::{Path, PathBuf};

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The kubeconfig could not be read or parsed.
    #[error("failed to load kubeconfig {path}")]
    Load {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// The client could not be set up, for example because a certificate is not PEM.
    #[error("failed to set up the API client")]
    Client(#[source] kube::Error),
}

/// A client for the current context of a kubeconfig file. Connects on first use and reconnects by itself.
///
/// # Errors
/// [`ClientError`] names the file or what in it cannot be used.
pub async fn client_from_kubeconfig(path: &Path) -> Result<Client, ClientError> {
    let load = |source| ClientError::Load { path: path.to_owned(), source };
    let kubeconfig = Kubeconfig::read_from(path).map_err(load)?;
    let config =
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(load)?;
    client_from_config(config)
}

/// As [`client_from_kubeconfig`], from a loaded configuration.
///
/// # Errors
/// [`ClientError::Client`].
pub fn client_from_config(config: Config) -> Result<Client, ClientError> {
    // The process may hold several rustls users; the first one to ask installs the one provider there is.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::try_from(config).map_err(ClientError::Client)
}
