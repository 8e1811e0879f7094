//! Pods through the API, from a thread inside the machine: the request's time without the start of a kubectl process.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures::future::try_join_all;
use futures::{StreamExt as _, TryStreamExt as _};
use orlop_kube::k8s_openapi::api::core::v1::{Node, Pod};
use orlop_kube::kube::api::{DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use orlop_kube::kube::{Api, Client};
use orlop_tests::{Cluster, Machine};
use serde_json::json;

use crate::cri::IMAGE;

const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);
/// While a server starts.
const FAST_POLL: Duration = Duration::from_millis(2);
/// Label of every pod that is measured.
const LABEL: &str = "app=perf";

/// Runs `work` with a client of the cluster on a thread that is inside the machine.
fn within<T: Send>(
    machine: &Machine,
    data: &Path,
    work: impl AsyncFnOnce(Client) -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    let inside = || {
        machine.enter().context("failed to enter the machine's network namespace")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            work(orlop_kube::client_from_kubeconfig(&data.join("admin.kubeconfig")).await?).await
        })
    };
    std::thread::scope(|scope| {
        let thread = scope.spawn(inside);
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A pod as the API takes it.
pub(crate) fn pod(name: &str) -> anyhow::Result<Pod> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "perf"}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "c", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "1000"],
            }],
        },
    }))?)
}

/// `count` pods with names that begin with `name`.
pub(crate) fn pods(name: &str, count: usize) -> anyhow::Result<Vec<Pod>> {
    (0..count).map(|number| pod(&format!("{name}-{number}"))).collect()
}

/// How the pods come to the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Creator {
    /// POST requests, all at once.
    Post,
    /// `kubectl create -f -`, its start included.
    Kubectl,
}

/// From the creation of the pods to the watch event that says that the last one is Running.
pub(crate) fn time_to_running(cluster: &Cluster, pods: &[Pod], creator: Creator) -> anyhow::Result<Duration> {
    within(&cluster.machine, &cluster.data(), async |client| {
        let api: Api<Pod> = Api::default_namespaced(client);
        let version = api.list(&ListParams::default()).await?.metadata.resource_version.unwrap_or_default();
        let mut events = api.watch(&WatchParams::default().labels(LABEL), &version).await?.boxed();
        let list = serde_json::to_string(&json!({"apiVersion": "v1", "kind": "List", "items": pods}))?;
        let started = Instant::now();
        match creator {
            Creator::Post => {
                let parameters = PostParams::default();
                try_join_all(pods.iter().map(|pod| api.create(&parameters, pod))).await?;
            }
            Creator::Kubectl => {
                let output = cluster.try_kubectl(&["create", "-f", "-"], &list);
                anyhow::ensure!(output.code == 0, "kubectl create: {}", output.stderr);
            }
        }
        let mut running = BTreeSet::new();
        while running.len() < pods.len() {
            let event = tokio::time::timeout(PATIENCE, events.try_next()).await;
            let event =
                event.with_context(|| format!("{} of {} pods are Running", running.len(), pods.len()))??;
            if let WatchEvent::Modified(pod) = event.context("the watch ended")?
                && pod.status.and_then(|status| status.phase).as_deref() == Some("Running")
            {
                running.insert(pod.metadata.name);
            }
        }
        Ok(started.elapsed())
    })
}

/// As the user of two shells sees it: `kubectl get -w` runs; from the start of `kubectl create` to its line Running.
pub(crate) fn time_to_kubectl_line(cluster: &Cluster, name: &str) -> anyhow::Result<Duration> {
    let (mut command, yaml) = (cluster.kubectl_command(), serde_json::to_string(&pod(name)?)?);
    command.args(["get", "pods", "-w", "--no-headers", "--field-selector", &format!("metadata.name={name}")]);
    let mut watch = Watch(command.stdout(Stdio::piped()).spawn().context("kubectl get -w")?);
    let output = watch.0.stdout.take().context("standard output is piped")?;
    // No pod is there yet, so it says nothing once it watches.
    std::thread::sleep(Duration::from_secs(1));
    let started = Instant::now();
    let created = cluster.try_kubectl(&["create", "-f", "-"], &yaml);
    anyhow::ensure!(created.code == 0, "kubectl create: {}", created.stderr);
    for line in BufReader::new(output).lines() {
        if line?.contains("Running") {
            return Ok(started.elapsed());
        }
    }
    anyhow::bail!("kubectl get -w ended before {name} was Running")
}

/// A kubectl that watches, ended on drop.
struct Watch(Child);

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Deletes every measured pod and waits until none is left.
pub(crate) fn delete_pods(cluster: &Cluster) -> anyhow::Result<()> {
    within(&cluster.machine, &cluster.data(), async |client| {
        let api: Api<Pod> = Api::default_namespaced(client);
        let selected = ListParams::default().labels(LABEL);
        let end = Instant::now() + PATIENCE;
        let _ = api.delete_collection(&DeleteParams::default(), &selected).await?;
        loop {
            let left = api.list(&selected).await?.items.len();
            if left == 0 {
                return Ok(());
            }
            anyhow::ensure!(Instant::now() < end, "{left} pods are not deleted");
            tokio::time::sleep(POLL).await;
        }
    })
}

/// Waits until the node is Ready by a report not older than `second` (Unix time) and accepts pods; whether it was so at once.
pub(crate) fn wait_node_ready(cluster: &Cluster, second: i64) -> anyhow::Result<bool> {
    within(&cluster.machine, &cluster.data(), async |client| {
        let api: Api<Node> = Api::all(client);
        let end = Instant::now() + PATIENCE;
        for attempt in 0_usize.. {
            let nodes = api.list(&ListParams::default()).await?.items;
            if nodes.iter().any(|node| is_ready_since(node, second)) {
                return Ok(attempt == 0);
            }
            anyhow::ensure!(Instant::now() < end, "the node is not Ready: {nodes:?}");
            tokio::time::sleep(FAST_POLL).await;
        }
        unreachable!("the loop has no end")
    })
}

fn is_ready_since(node: &Node, second: i64) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    taints.is_none_or(Vec::is_empty)
        && conditions.into_iter().flatten().any(|condition| {
            let reported = condition.last_heartbeat_time.as_ref();
            condition.type_ == "Ready"
                && condition.status == "True"
                && reported.is_some_and(|time| time.0.as_second() >= second)
        })
}

/// Waits until `/readyz` answers 200; the server may not listen yet.
pub(crate) fn wait_readyz(machine: &Machine, data: &Path) -> anyhow::Result<()> {
    within(machine, data, async |client| {
        let end = Instant::now() + PATIENCE;
        loop {
            let request = http::Request::get("/readyz").body(Vec::new())?;
            match client.request_text(request).await {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > end => {
                    return Err(error).context("the API server is not ready");
                }
                Err(_) => tokio::time::sleep(FAST_POLL).await,
            }
        }
    })
}
