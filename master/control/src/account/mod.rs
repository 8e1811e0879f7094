//! What every namespace holds from the start: the ServiceAccount `default` and the cluster's root certificate.

use std::sync::Arc;

use anyhow::Context as _;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use orlop_kube::Key;

use crate::api::{self, Act as _, ApplyError};
use crate::model::{ConfigMap, HasMeta};
use crate::queue::{Next, WorkQueue, spawn_workers};
use crate::watch::{Route, Routes};
use crate::{Config, Context};

const DEFAULT_ACCOUNT: &str = "default";

/// Reads the root certificate that is published; `None` without a configured file.
pub(crate) fn read_root_ca(config: &Config) -> anyhow::Result<Option<Arc<str>>> {
    let Some(path) = &config.root_ca_file else {
        return Ok(None);
    };
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("failed to read rootCaFile {}", path.display()))?;
    anyhow::ensure!(
        text.contains("-----BEGIN CERTIFICATE-----"),
        "rootCaFile {} holds no PEM certificate",
        path.display()
    );
    Ok(Some(text.into()))
}

/// Starts both controllers.
pub(crate) fn start(context: &Context, routes: &mut Routes, root_ca: Option<Arc<str>>) {
    start_accounts(context, routes);
    if let Some(root_ca) = root_ca {
        start_root_ca(context, routes, root_ca);
    }
}

fn add_namespace_when<V: HasMeta + Send + Sync + 'static>(
    route: &mut Route<V>,
    queue: &Arc<WorkQueue>,
    name: &'static str,
) {
    let queue = queue.clone();
    route.on(move |key, _, _| {
        if key.name == name {
            queue.add(Key { namespace: String::new(), name: key.namespace.clone() });
        }
    });
}

fn start_accounts(context: &Context, routes: &mut Routes) {
    let queue = WorkQueue::new("serviceaccount", &context.queues);
    routes.namespaces.on({
        let queue = queue.clone();
        move |key, _, _| queue.add(key.clone())
    });
    add_namespace_when(&mut routes.accounts, &queue, DEFAULT_ACCOUNT);
    let watches = context.watches.clone();
    let ready = move || {
        let watches = watches.clone();
        async move {
            watches.namespaces.synced().await;
            watches.accounts.synced().await;
        }
    };
    let context = context.clone();
    let (frame, workers) = (context.frame.clone(), context.config.concurrency);
    spawn_workers(&frame, "serviceaccount", &queue, workers, ready, move |key| {
        let context = context.clone();
        async move { ensure_account(&context, &key.name).await }
    });
}

fn is_active(context: &Context, namespace: &str) -> bool {
    let key = Key { namespace: String::new(), name: namespace.to_owned() };
    context.watches.namespaces.get(&key).is_some_and(|namespace| namespace.is_active())
}

/// An object that exists already or a namespace that ends meanwhile is as good as made.
fn made<T>(result: Result<T, kube::Error>, act: impl FnOnce() -> String) -> Result<bool, ApplyError> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if api::is_already_there(&error) || api::is_namespace_terminating(&error) => Ok(false),
        Err(error) => Err::<(), _>(error).act_or_gone(act).map(|done| done.is_some()),
    }
}

async fn ensure_account(context: &Context, namespace: &str) -> Result<Next, ApplyError> {
    let key = Key { namespace: namespace.to_owned(), name: DEFAULT_ACCOUNT.to_owned() };
    if !is_active(context, namespace) || context.watches.accounts.get(&key).is_some() {
        return Ok(Next::Done);
    }
    let account = core::ServiceAccount {
        metadata: ObjectMeta {
            name: Some(DEFAULT_ACCOUNT.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        ..core::ServiceAccount::default()
    };
    let api: Api<core::ServiceAccount> = Api::namespaced(context.client.clone(), namespace);
    let created = api.create(&api::post(), &account).await;
    if made(created, || format!("create ServiceAccount {key}"))? {
        tracing::info!(namespace, "default ServiceAccount created");
    }
    Ok(Next::Done)
}

fn start_root_ca(context: &Context, routes: &mut Routes, root_ca: Arc<str>) {
    let queue = WorkQueue::new("root_ca_cert_publisher", &context.queues);
    routes.namespaces.on({
        let queue = queue.clone();
        move |key, _, _| queue.add(key.clone())
    });
    add_namespace_when(&mut routes.config_maps, &queue, ConfigMap::ROOT_CA_NAME);
    let watches = context.watches.clone();
    let ready = move || {
        let watches = watches.clone();
        async move {
            watches.namespaces.synced().await;
            watches.config_maps.synced().await;
        }
    };
    let context = context.clone();
    let (frame, workers) = (context.frame.clone(), context.config.concurrency);
    spawn_workers(&frame, "root-ca-publisher", &queue, workers, ready, move |key| {
        let (context, root_ca) = (context.clone(), root_ca.clone());
        async move { ensure_root_ca(&context, &key.name, &root_ca).await }
    });
}

async fn ensure_root_ca(context: &Context, namespace: &str, root_ca: &str) -> Result<Next, ApplyError> {
    let key = Key { namespace: namespace.to_owned(), name: ConfigMap::ROOT_CA_NAME.to_owned() };
    let existing = context.watches.config_maps.get(&key);
    let is_current = existing.as_ref().is_some_and(|map| map.root_ca.as_deref() == Some(root_ca));
    if !is_active(context, namespace) || is_current {
        return Ok(Next::Done);
    }
    let api: Api<core::ConfigMap> = Api::namespaced(context.client.clone(), namespace);
    if existing.is_some() {
        let body = serde_json::json!({"data": {"ca.crt": root_ca}});
        let patched = api.patch(&key.name, &api::patch(), &api::merge(body)).await;
        patched.act_or_gone(|| format!("update ConfigMap {key}"))?;
        tracing::info!(namespace, "root certificate updated");
        return Ok(Next::Done);
    }
    let map = core::ConfigMap {
        metadata: ObjectMeta {
            name: Some(key.name.clone()),
            namespace: Some(namespace.to_owned()),
            annotations: Some(
                [(
                    "kubernetes.io/description".to_owned(),
                    "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints \
                     such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across \
                     distributions of Kubernetes clusters."
                        .to_owned(),
                )]
                .into(),
            ),
            ..ObjectMeta::default()
        },
        data: Some([("ca.crt".to_owned(), root_ca.to_owned())].into()),
        ..core::ConfigMap::default()
    };
    if made(api.create(&api::post(), &map).await, || format!("create ConfigMap {key}"))? {
        tracing::info!(namespace, "root certificate published");
    }
    Ok(Next::Done)
}
