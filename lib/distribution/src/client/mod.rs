//! Registry client: manifests and blobs by HTTP (OCI distribution-spec 1.1), over mirrors and the registry itself.
//!
//! ```text
//!   reference -> hosts (hosts.toml, mirror, registry) -> per host: request -> 401? token, again -> redirects -> answer
//! ```
//!
//! Invariants: a credential goes to the image's own registry (or the server it was given for) and to the token service that this
//! host names, never to a mirror or behind a redirect; plain HTTP only where it is stated or on loopback; every wait has a bound
//! (connect, first byte, stall); content is compared with its digest before anybody sees it.

mod auth;
mod challenge;
mod download;
mod error;
mod health;
mod hosts;
mod manifests;
mod push;
mod referrers;
mod tags;
mod tls;
mod transport;

pub use download::BlobDownload;
pub use error::RegistryError;
pub use health::HostHealth;
pub use hosts::{Host, HostsError, HostsFile, plan_hosts, read_hosts};
pub use manifests::FetchedManifest;
pub use push::{BlobUpload, CHUNK_BYTES, Started};

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use orlop_types::Reference;

use crate::CredentialSource;
use crate::keyring::Keyring;
use auth::Tokens;
use transport::Transport;

/// Bounds and sources of a [`RegistryClient`].
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// containerd's `certs.d` layout.
    pub hosts_dir: Option<PathBuf>,
    /// Base URL of a mirror that is asked first for everything.
    pub mirror: Option<String>,
    /// Base URLs of registries that are not where their name says; a hosts file of such a registry
    /// may say more of that server, or name another one.
    pub servers: BTreeMap<String, String>,
    /// Certificate authorities of `servers`, PEM; none are the public ones.
    pub servers_ca: Vec<PathBuf>,
    /// Where the credentials of registries are that a call brings none for.
    pub credentials: BTreeMap<String, CredentialSource>,
    /// To a TCP and TLS connection, unless a hosts file says otherwise.
    pub connect_timeout: Duration,
    /// From the request to the head of the answer.
    pub first_byte_timeout: Duration,
    /// Without a byte of the body.
    pub stall_timeout: Duration,
    /// Attempts per host after the first one, for errors that may pass.
    pub retries: u32,
    /// Failures in a row after which a host is left alone for a while, 2 s to a minute; its wish to be left alone (`Retry-After`) is
    /// heeded, too, up to 5 min. 0: it is always asked.
    pub rest_after: u32,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            hosts_dir: None,
            mirror: None,
            servers: BTreeMap::new(),
            servers_ca: Vec::new(),
            credentials: BTreeMap::new(),
            connect_timeout: Duration::from_secs(10),
            first_byte_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(30),
            retries: 2,
            rest_after: 0,
        }
    }
}

/// A client for every registry; cheap to clone. Connections and tokens are kept.
#[derive(Clone)]
pub struct RegistryClient {
    inner: Arc<Inner>,
}

struct Inner {
    config: ClientConfig,
    transport: Transport,
    tokens: Tokens,
    keyring: Keyring,
}

impl RegistryClient {
    /// A client that has not talked to anybody yet.
    pub fn new(config: ClientConfig) -> Self {
        let transport = Transport::new(config.first_byte_timeout, config.rest_after);
        let keyring = Keyring::new(config.credentials.clone());
        Self { inner: Arc::new(Inner { config, transport, tokens: Tokens::default(), keyring }) }
    }

    /// What was seen of a host, `host[:port]`; none when it was not asked yet.
    pub fn health(&self, host: &str) -> Option<HostHealth> {
        self.inner.transport.health.of(host, Instant::now())
    }

    /// The hosts to ask for a reference, in order. The hosts file is read each time: it may change without a restart.
    ///
    /// # Errors
    /// A hosts file that makes no sense.
    fn hosts(&self, reference: &Reference) -> Result<Vec<Host>, RegistryError> {
        let Inner { config, .. } = &*self.inner;
        let file = match (config.servers.get(reference.registry()), &config.hosts_dir) {
            (Some(url), None) => Some(HostsFile::of_server(url, &config.servers_ca)),
            (Some(url), Some(directory)) => Some(match read_hosts(directory, reference.registry())? {
                Some(file) => file.with_server(url),
                None => HostsFile::of_server(url, &config.servers_ca),
            }),
            (None, Some(directory)) => read_hosts(directory, reference.registry())?,
            (None, None) => None,
        };
        Ok(plan_hosts(reference.registry(), file, self.inner.config.mirror.as_deref())?)
    }
}

/// A pause before attempt `attempt` (from 1): what the host wants, else doubling from a quarter second to four, with jitter.
async fn pause(attempt: u32, wanted: Option<Duration>) {
    let step = Duration::from_millis(250).saturating_mul(1 << attempt.min(4).saturating_sub(1));
    let jittered = step.mul_f64(0.5 + rand::random::<f64>() / 2.0);
    tokio::time::sleep(wanted.unwrap_or(jittered).min(error::RETRY_AFTER_LIMIT)).await;
}
