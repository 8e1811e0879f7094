use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder};

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Idle this long, a connection is asked whether its peer is there: as client-go pings over HTTP/2.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(20);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;
/// What was sent must be acknowledged within this time.
const UNANSWERED_LIMIT: Duration = Duration::from_secs(30);

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
    let connector = config.rustls_https_connector_with_connector(connector()).map_err(ClientError::Client)?;
    let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().map_err(ClientError::Client)?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace))
}

/// A peer that vanished (a cut link, a machine without power) answers nothing, and a watch only waits: the kernel has to ask.
fn connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_LIMIT));
    connector.set_keepalive(Some(KEEPALIVE_IDLE));
    connector.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    connector.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    connector.set_tcp_user_timeout(Some(UNANSWERED_LIMIT));
    connector
}
