//! The API server: HTTPS in front of the store.
//!
//! ```text
//!   connection -> authenticate -> authorize -> decode -> defaults -> admission -> validate -> compare and swap in the store
//!                                                                                                   |
//!   list, watch, get  <------------------- watch cache (bytes, encoded once) <---- revision order --'
//! ```
//!
//! What a kind is comes from the table in `orlop-resources`; nothing here knows a kind unless it is about more than one object:
//! [`admission`] (namespaces, accounts, addresses), [`subresource`] (binding, scale, tokens, logs), `bootstrap`.
//! Pure decisions are in [`rules`].
//!
//! Invariants:
//! - Every way in passes [`service::answer`]: HTTPS, plain loopback HTTP and the in-process client of the controllers.
//! - An error is a `metav1.Status` with upstream's words.
//! - A request that changed something is answered after the change is durable and visible in the cache.
//! - Anonymous requests reach health and version only.
//! - A namespace is checked when an object is created; what slips in while it is being deleted, its controller finds.
//!
//! It deliberately does not run controllers, and does not know Linux.
//!
//! Tasks: one per listener, one per connection (bounded), `cache-trim`, `store-watch` (ends the process when the store is gone).
//! Read next: `service.rs`, then `rest/create.rs`.

mod admission;
mod authenticate;
mod body;
mod bootstrap;
mod config;
mod context;
mod documents;
mod identity;
mod kubelet;
mod metrics;
mod rest;
mod rules;
mod server;
mod service;
mod state;
mod subresource;
mod token;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use http_body_util::BodyExt as _;
use orlop_daemon::Frame;
use orlop_daemon::config::Validate as _;
use orlop_resources::resources;
use orlop_store::{Cache, EmbeddedStore, Store as _};

pub use config::Config;
pub use identity::Identity;

use state::{Api, owner_of, parse_bytes, prefix};

const STORE_FILE: &str = "objects.redb";
const TRIM_PERIOD: Duration = Duration::from_secs(30);

/// The running server.
#[derive(Clone)]
pub struct Server {
    api: Arc<Api>,
}

/// Opens the store, creates what every cluster has, and starts serving.
///
/// # Errors
/// A configuration that cannot work, a file that cannot be read, an address that cannot be bound: the error names it.
pub async fn start(frame: &Frame, config: &Config) -> anyhow::Result<Server> {
    let problems = config.problems();
    anyhow::ensure!(problems.is_empty(), "invalid configuration: {}", problems.join("; "));
    let tokens = token::Tokens::load(&config.service_account_key_file, &config.issuer)?;
    let kubelets = kubelet::Kubelets::load(config)?;
    let tls = server::tls(config)?;
    let (store, cache) = open_store(frame, config).await?;
    let api = Arc::new(Api {
        config: config.clone(),
        store,
        cache,
        tokens,
        kubelets,
        metrics: metrics::Metrics::register(&mut frame.metrics()),
        frame: frame.clone(),
        drain: frame.drain(),
        room: body::Room::default(),
        allocation: tokio::sync::Mutex::new(()),
    });
    bootstrap::start(frame, &api).await?;
    server::listen(frame, &api, tls).await?;
    watch_over(frame, &api);
    Ok(Server { api })
}

async fn open_store(
    frame: &Frame,
    config: &Config,
) -> anyhow::Result<(Arc<dyn orlop_store::Store>, Arc<Cache>)> {
    std::fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("failed to create the data directory {}", config.data_dir.display()))?;
    let store = EmbeddedStore::open(&config.data_dir.join(STORE_FILE)).await?;
    let prefixes = resources().iter().filter(|row| !row.storage.is_empty() && !row.is_view()).map(prefix);
    let cache = Cache::new(prefixes, |key, bytes| match owner_of(key) {
        Some(owner) => rules::describe::describe(owner, &parse_bytes(bytes)),
        None => orlop_store::Meta::default(),
    });
    let revision = store.follow("/registry/", cache.sink()).await?;
    tracing::info!(revision, "store is open");
    let watched = store.clone();
    let drain = frame.drain();
    frame.spawn("store-watch", async move {
        tokio::select! {
            () = watched.ended() => anyhow::bail!("the store's writer ended"),
            () = drain.wait() => Ok(()),
        }
    });
    Ok((Arc::new(store), cache))
}

fn watch_over(frame: &Frame, api: &Arc<Api>) {
    let (cache, drain) = (api.cache.clone(), frame.drain());
    frame.spawn("cache-trim", async move {
        while drain.sleep(TRIM_PERIOD).await {
            cache.trim();
        }
        Ok(())
    });
    let cache = api.cache.clone();
    frame.dump("store", move || {
        let prefixes: serde_json::Map<_, _> = cache
            .counts()
            .into_iter()
            .map(|(prefix, objects, history, watchers)| {
                (prefix, serde_json::json!({"objects": objects, "history": history, "watchers": watchers}))
            })
            .collect();
        serde_json::json!({"revision": cache.revision(), "prefixes": prefixes})
    });
}

impl Server {
    /// A client inside this process: the same service as over HTTPS, without socket and TLS. The identity is taken on trust.
    /// Must be called inside the async runtime.
    pub fn client<G>(&self, user: &str, groups: G) -> kube::Client
    where
        G: IntoIterator,
        G::Item: Into<String>,
    {
        let identity = Arc::new(Identity::authenticated(user, groups.into_iter().map(Into::into)));
        let api = self.api.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let (api, identity) = (api.clone(), identity.clone());
            async move {
                let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
                Ok::<_, std::convert::Infallible>(service::answer(api, Some(identity), request).await)
            }
        });
        kube::Client::new(service, "default")
    }
}
