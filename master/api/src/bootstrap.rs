//! What every cluster has from its first moment. Idempotent: what is there is left, what is stale is corrected.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use orlop_daemon::Frame;
use orlop_resources::Resource;
use serde_json::{Value, json};

use crate::identity::Identity;
use crate::rest::{Target, create_object, update_object};
use crate::state::{Api, core, key};

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// How often it is looked whether everything is still there (upstream's `kubernetesservice` controller looks as often).
const PERIOD: Duration = Duration::from_secs(10);

/// Creates what is missing, and from now on whatever somebody deletes or changes.
pub(crate) async fn start(frame: &Frame, api: &Arc<Api>) -> anyhow::Result<()> {
    bootstrap(api).await?;
    if reachable(api).is_none() {
        tracing::warn!("no advertiseAddress that others can reach: the Service kubernetes has no endpoints");
    }
    let (api, drain) = (api.clone(), frame.drain());
    frame.spawn("bootstrap", async move {
        while drain.sleep(PERIOD).await {
            if let Err(error) = bootstrap(&api).await {
                tracing::warn!(error = %format!("{error:#}"), "could not put back what every cluster has");
            }
        }
        Ok(())
    });
    Ok(())
}

/// Nobody else reaches a loopback address, and an endpoint must not have one.
fn reachable(api: &Api) -> Option<IpAddr> {
    api.config.advertised().filter(|address| !address.is_loopback())
}

/// Creates the namespaces, the Service `kubernetes` with its endpoints, and the Service of the cluster's DNS.
pub(crate) async fn bootstrap(api: &Api) -> anyhow::Result<()> {
    for name in NAMESPACES {
        ensure(api, core("namespaces"), "", json!({"metadata": {"name": name}}), &[]).await?;
    }
    ensure(api, core("services"), "default", kubernetes_service(api), &["/spec/ports"]).await?;
    if let Some(address) = api.config.cluster_dns {
        let service = json!({
            "metadata": {
                "name": "kube-dns",
                "labels": {"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS"},
            },
            "spec": {
                "clusterIP": address.to_string(),
                "ports": [
                    {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
                    {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
                ],
            },
        });
        ensure(api, core("services"), "kube-system", service, &["/spec/ports"]).await?;
    }
    match reachable(api) {
        Some(address) => endpoints(api, address).await,
        None => Ok(()),
    }
}

fn kubernetes_service(api: &Api) -> Value {
    json!({
        "metadata": {"name": "kubernetes", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "type": "ClusterIP", "sessionAffinity": "None",
            "clusterIP": api.config.kubernetes_address().to_string(),
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": api.config.port()}],
        },
    })
}

/// The addresses behind the Service `kubernetes`: this server.
async fn endpoints(api: &Api, address: IpAddr) -> anyhow::Result<()> {
    let port = api.config.port();
    let endpoints = json!({
        "metadata": {"name": "kubernetes", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{
            "addresses": [{"ip": address.to_string()}],
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        }],
    });
    ensure(api, core("endpoints"), "default", endpoints, &["/subsets"]).await?;
    let slices = orlop_resources::find("discovery.k8s.io", "v1", "endpointslices")
        .context("no endpointslices in the table")?;
    let slice = json!({
        "metadata": {"name": "kubernetes", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": if address.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{"addresses": [address.to_string()], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    });
    ensure(api, slices, "default", slice, &["/endpoints", "/ports"]).await
}

/// Creates the object, or makes the named parts of the existing one what they should be.
async fn ensure(
    api: &Api,
    resource: &'static Resource,
    namespace: &str,
    object: Value,
    corrected: &[&str],
) -> anyhow::Result<()> {
    let identity = Identity::superuser("system:apiserver");
    let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let key = key(resource, namespace, &name);
    let failed = || format!("failed to create {} {name}", resource.singular);
    if api.cache.get(&key).is_none() {
        let created = create_object(api, &identity, resource, namespace, object, false).await;
        return created.map(|_| ()).with_context(failed);
    }
    if corrected.is_empty() {
        return Ok(());
    }
    let target = Target { resource, key: &key, name: &name, subresource: None, dry_run: false };
    let mut correct = |current: &Value| {
        let mut new = current.clone();
        for pointer in corrected {
            let (parent, member) = pointer.rsplit_once('/').unwrap_or(("", pointer));
            if let (Some(parent), Some(wanted)) =
                (new.pointer_mut(parent).and_then(Value::as_object_mut), object.pointer(pointer))
            {
                parent.insert(member.to_owned(), wanted.clone());
            }
        }
        Ok(new)
    };
    update_object(api, &identity, target, &mut correct).await.map(|_| ()).with_context(failed)
}
