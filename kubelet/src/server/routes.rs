//! What may be asked, and which part answers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use k8s_openapi::api::core::v1 as core;
use orlop_cri::v1 as cri;
use orlop_kube::Key;

use super::{Answer, json, log_requests, stats, text, tunnel};
use crate::Kubelet;
use crate::labels;
use crate::pod::model;

/// Query parameters in order; a name may come more than once (`command`).
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(query: Option<&str>) -> Self {
        let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(name), decode(value))
                })
                .collect(),
        )
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(known, _)| known == name).map(|(_, value)| value.clone()).collect()
    }

    /// `1`, `true` and the like.
    pub(crate) fn is_on(&self, name: &str) -> bool {
        matches!(self.get(name), Some("1" | "true" | "True" | "TRUE" | "t"))
    }
}

/// Percent decoding of a query or a path segment.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut output = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while index < bytes.len() {
        let hex = (bytes[index] == b'%').then(|| text.get(index + 1..index + 3)).flatten();
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                output.push(byte);
                index += 3;
            }
            None => {
                output.push(if bytes[index] == b'+' { b' ' } else { bytes[index] });
                index += 1;
            }
        }
    }
    String::from_utf8_lossy(&output).into_owned()
}

/// Answers an allowed caller.
pub(crate) async fn answer(kubelet: Arc<Kubelet>, request: Request<Incoming>) -> Answer {
    let path = request.uri().path().to_owned();
    let parts: Vec<String> = path.split('/').filter(|part| !part.is_empty()).map(decode).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let query = Query::parse(request.uri().query());
    match parts.as_slice() {
        ["healthz" | "livez"] => text(StatusCode::OK, "ok"),
        ["pods"] => pods(&kubelet),
        ["metrics"] => text(StatusCode::OK, kubelet.frame.metrics_text()),
        ["configz"] => json(&serde_json::json!({"kubeletconfig": kubelet.config})),
        ["stats", "summary"] => stats::summary(&kubelet).await,
        ["containerLogs", namespace, pod, container] => {
            log_requests::answer(&kubelet, namespace, pod, container, &query).await
        }
        ["exec", namespace, pod, container] | ["exec", namespace, pod, _, container] => {
            match container_id(&kubelet, namespace, pod, container).await {
                Ok(id) => exec(&kubelet, request, &query, id).await,
                Err(problem) => *problem,
            }
        }
        ["attach", namespace, pod, container] | ["attach", namespace, pod, _, container] => {
            match container_id(&kubelet, namespace, pod, container).await {
                Ok(id) => attach(&kubelet, request, &query, id).await,
                Err(problem) => *problem,
            }
        }
        ["portForward", namespace, pod] | ["portForward", namespace, pod, _] => {
            port_forward(&kubelet, request, &query, namespace, pod).await
        }
        ["run", namespace, pod, container] | ["run", namespace, pod, _, container] => {
            run(&kubelet, &query, namespace, pod, container).await
        }
        _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

fn pods(kubelet: &Kubelet) -> Answer {
    let items: Vec<Arc<core::Pod>> = kubelet.pods.all().into_iter().map(|(_, pod)| pod).collect();
    let items: Vec<&core::Pod> = items.iter().map(Arc::as_ref).collect();
    json(&serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

/// A pod of this node.
pub(crate) fn find_pod(
    kubelet: &Kubelet,
    namespace: &str,
    name: &str,
) -> Result<Arc<core::Pod>, Box<Answer>> {
    let key = Key { namespace: namespace.to_owned(), name: name.to_owned() };
    kubelet.pods.get(&key).ok_or_else(|| {
        Box::new(text(
            StatusCode::NOT_FOUND,
            format!("pod {name:?} does not exist in namespace {namespace:?}"),
        ))
    })
}

/// Containers of a pod by name, newest first.
pub(crate) async fn containers(
    kubelet: &Kubelet,
    pod: &core::Pod,
    name: &str,
) -> Result<Vec<cri::Container>, Box<Answer>> {
    let selector = HashMap::from([
        (labels::POD_UID.to_owned(), model::uid(pod).to_owned()),
        (labels::CONTAINER_NAME.to_owned(), name.to_owned()),
    ]);
    let filter = cri::ContainerFilter { label_selector: selector, ..Default::default() };
    let request = cri::ListContainersRequest { filter: Some(filter) };
    match kubelet.runtime.list_containers(request).await {
        Ok(answer) => {
            let mut list = answer.containers;
            list.sort_by_key(|container| std::cmp::Reverse(container.created_at));
            Ok(list)
        }
        Err(error) => Err(Box::new(text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))),
    }
}

async fn container_id(
    kubelet: &Kubelet,
    namespace: &str,
    pod: &str,
    name: &str,
) -> Result<String, Box<Answer>> {
    let pod = find_pod(kubelet, namespace, pod)?;
    let list = containers(kubelet, &pod, name).await?;
    let running =
        list.into_iter().find(|container| container.state == cri::ContainerState::ContainerRunning as i32);
    running
        .map(|container| container.id)
        .ok_or_else(|| Box::new(text(StatusCode::NOT_FOUND, format!("container not found ({name:?})"))))
}

async fn exec(kubelet: &Kubelet, request: Request<Incoming>, query: &Query, container_id: String) -> Answer {
    let tty = query.is_on("tty");
    let call = cri::ExecRequest {
        container_id,
        cmd: query.all("command"),
        tty,
        stdin: query.is_on("input") || query.is_on("stdin"),
        stdout: query.is_on("output") || query.is_on("stdout"),
        stderr: !tty && (query.is_on("error") || query.is_on("stderr")),
    };
    match kubelet.runtime.exec(call).await {
        Ok(answer) => tunnel::forward(request, &answer.url).await,
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

async fn attach(
    kubelet: &Kubelet,
    request: Request<Incoming>,
    query: &Query,
    container_id: String,
) -> Answer {
    let tty = query.is_on("tty");
    let call = cri::AttachRequest {
        container_id,
        tty,
        stdin: query.is_on("input") || query.is_on("stdin"),
        stdout: query.is_on("output") || query.is_on("stdout"),
        stderr: !tty && (query.is_on("error") || query.is_on("stderr")),
    };
    match kubelet.runtime.attach(call).await {
        Ok(answer) => tunnel::forward(request, &answer.url).await,
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

async fn port_forward(
    kubelet: &Kubelet,
    request: Request<Incoming>,
    query: &Query,
    namespace: &str,
    pod: &str,
) -> Answer {
    let pod = match find_pod(kubelet, namespace, pod) {
        Ok(pod) => pod,
        Err(problem) => return *problem,
    };
    let selector = HashMap::from([(labels::POD_UID.to_owned(), model::uid(&pod).to_owned())]);
    let state = cri::PodSandboxStateValue { state: cri::PodSandboxState::SandboxReady as i32 };
    let filter = cri::PodSandboxFilter { label_selector: selector, state: Some(state), ..Default::default() };
    let sandboxes =
        match kubelet.runtime.list_pod_sandbox(cri::ListPodSandboxRequest { filter: Some(filter) }).await {
            Ok(answer) => answer.items,
            Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        };
    let Some(sandbox) = sandboxes.into_iter().max_by_key(|sandbox| sandbox.created_at) else {
        return text(StatusCode::NOT_FOUND, format!("pod {:?} is not running", model::name(&pod)));
    };
    let lists = query.all("port");
    let ports = lists.iter().flat_map(|list| list.split(',')).filter_map(|port| port.parse().ok());
    let call = cri::PortForwardRequest { pod_sandbox_id: sandbox.id, port: ports.collect() };
    match kubelet.runtime.port_forward(call).await {
        Ok(answer) => tunnel::forward(request, &answer.url).await,
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

async fn run(kubelet: &Kubelet, query: &Query, namespace: &str, pod: &str, container: &str) -> Answer {
    let id = match container_id(kubelet, namespace, pod, container).await {
        Ok(id) => id,
        Err(problem) => return *problem,
    };
    let command: Vec<String> = query.get("cmd").unwrap_or_default().split(' ').map(str::to_owned).collect();
    match kubelet.runtime.exec_sync(&id, &command, Duration::ZERO).await {
        Ok(answer) => {
            let output = [answer.stdout, answer.stderr].concat();
            let status =
                if answer.exit_code == 0 { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
            text(status, String::from_utf8_lossy(&output))
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let query = Query::parse(Some("command=sh&command=-c&command=echo+a%20%26b&tty=1&x"));
        assert_eq!(query.all("command"), ["sh", "-c", "echo a &b"]);
        assert!(query.is_on("tty"));
        assert!(!query.is_on("input"));
        assert_eq!(query.get("x"), Some(""));
        assert_eq!(decode("%zz%4"), "%zz%4");
    }
}
