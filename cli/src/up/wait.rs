//! Waiting for a cluster to be Ready, and saying so.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::ListParams;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::layout::Layout;
use super::spec::ClusterSpec;

const POLL: Duration = Duration::from_millis(50);
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
const ANSWER_LIMIT_BYTES: u64 = 4096;
const LOG_TAIL_LINES: usize = 15;

/// Resolves once every node of the cluster is Ready.
pub(crate) async fn until_ready(
    layout: &Layout,
    spec: &ClusterSpec,
    deadline: Duration,
) -> anyhow::Result<()> {
    let client = orlop_kube::client_from_kubeconfig(&layout.admin_kubeconfig()).await?;
    let nodes: Api<Node> = Api::all(client);
    let end = Instant::now() + deadline;
    loop {
        let why = match silent_kubelet(layout, spec).await {
            Some(why) => Some(why),
            None => match nodes.list(&ListParams::default()).await {
                Ok(list) => missing(spec, &list.items),
                Err(error) => Some(format!("the API server does not answer: {error}")),
            },
        };
        let Some(why) = why else { return Ok(()) };
        if Instant::now() > end {
            bail!(
                "the cluster was not ready after {deadline:?}: {why}\nlogs are in {}",
                layout.logs().display()
            );
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The first node whose kubelet has not reported since it started: until then the store has the status of the run before.
async fn silent_kubelet(layout: &Layout, spec: &ClusterSpec) -> Option<String> {
    for node in &spec.nodes {
        let socket = layout.node_run(&node.name).join("kubelet-admin.sock");
        match tokio::time::timeout(ASK_TIMEOUT, ask_readyz(&socket)).await {
            Ok(Ok(answer)) if is_success(&answer) => {}
            Ok(Ok(_)) => return Some(format!("the kubelet of {} has not reported yet", node.name)),
            Ok(Err(error)) => return Some(format!("the kubelet of {} does not run yet: {error}", node.name)),
            Err(_) => return Some(format!("the kubelet of {} does not answer", node.name)),
        }
    }
    None
}

async fn ask_readyz(socket: &Path) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket).await?;
    // HTTP/1.0: the answer ends with the connection.
    stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    stream.take(ANSWER_LIMIT_BYTES).read_to_string(&mut answer).await?;
    Ok(answer)
}

/// By the status line (RFC 9112, section 4).
fn is_success(answer: &str) -> bool {
    answer.split_whitespace().nth(1) == Some("200")
}

/// The first node that is not Ready, and why.
fn missing(spec: &ClusterSpec, nodes: &[Node]) -> Option<String> {
    let known: BTreeMap<&str, &Node> =
        nodes.iter().filter_map(|node| Some((node.metadata.name.as_deref()?, node))).collect();
    spec.nodes.iter().find_map(|wanted| {
        let Some(node) = known.get(wanted.name.as_str()) else {
            return Some(format!("node {} has not registered", wanted.name));
        };
        let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
        let ready = conditions.into_iter().flatten().find(|condition| condition.type_ == "Ready");
        match ready {
            Some(condition) if condition.status == "True" => None,
            Some(condition) => {
                let message = condition.message.clone().unwrap_or_default();
                Some(format!("node {} is not Ready: {message}", wanted.name))
            }
            None => Some(format!("node {} has not reported yet", wanted.name)),
        }
    })
}

/// As [`until_ready`], and fails as soon as the background process ends.
pub(crate) async fn until_ready_or_ended(
    layout: &Layout,
    spec: &ClusterSpec,
    deadline: Duration,
    child: &mut Child,
    log: &Path,
) -> anyhow::Result<()> {
    tokio::select! {
        ready = until_ready(layout, spec, deadline) => ready,
        ended = ended(child, log) => ended,
    }
}

async fn ended(child: &mut Child, log: &Path) -> anyhow::Result<()> {
    loop {
        if let Some(status) = child.try_wait().context("failed to watch the background process")? {
            bail!("orlop up ended ({status}); the end of {}:\n{}", log.display(), tail(log));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Waits until the background process has prepared the cluster.
pub(crate) async fn for_spec(layout: &Layout, child: &mut Child, log: &Path) -> anyhow::Result<ClusterSpec> {
    loop {
        if let Some(status) = child.try_wait().context("failed to watch the background process")? {
            bail!("orlop up ended ({status}); the end of {}:\n{}", log.display(), tail(log));
        }
        // The lock is held and the file is there: it is this run's or the one that this run resumes.
        if super::lock::Lock::holder(layout).is_some()
            && layout.admin_kubeconfig().exists()
            && let Some(spec) = ClusterSpec::load(&layout.cluster_file())?
        {
            return Ok(spec);
        }
        tokio::time::sleep(POLL).await;
    }
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
}

/// Tells the user what is there and what to type next.
pub(crate) fn announce(layout: &Layout, spec: &ClusterSpec, started: Instant) -> anyhow::Result<()> {
    let nodes = match spec.nodes.len() {
        1 => "1 node is".to_owned(),
        count => format!("{count} nodes are"),
    };
    let seconds = started.elapsed().as_secs_f64();
    let kubeconfig = layout.admin_kubeconfig();
    let mut out = std::io::stdout().lock();
    writeln!(out, "Orlop is up: {nodes} Ready after {seconds:.1} s. Kubeconfig: {}", kubeconfig.display())?;
    writeln!(out, "Next:  export KUBECONFIG={}; kubectl get nodes", kubeconfig.display())?;
    out.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubelet_that_waits_is_not_ready() {
        assert!(is_success("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok"));
        assert!(!is_success("HTTP/1.0 503 Service Unavailable\r\n\r\nwaiting for: node-registered"));
        assert!(!is_success(""));
    }
}
