//! Logs, exec, attach and port-forward: passed to the kubelet of the pod's node.

use orlop_resources::status::{self, ApiError};
use serde_json::Value;

use crate::body::Reply;
use crate::context::Context;
use crate::rules::encode::text;
use crate::rules::query::encode;
use crate::state::parse;

/// GET pods/NAME/log.
pub(super) async fn log(context: &mut Context) -> Result<Reply, ApiError> {
    let pod = parse(&*context.entry()?);
    let container = container(context, &pod)?;
    let passed = [
        "follow",
        "previous",
        "sinceSeconds",
        "sinceTime",
        "timestamps",
        "tailLines",
        "limitBytes",
        "stream",
    ];
    let query: Vec<(String, String)> = context
        .query
        .iter()
        .filter(|(key, _)| passed.contains(key))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    if text(&pod, "/spec/nodeName").is_empty() {
        // Upstream: a pod that runs nowhere yet has an empty log.
        return Ok(crate::body::text(http::StatusCode::OK, ""));
    }
    let path = path_of("containerLogs", context, Some(&container), &query);
    send(context, &pod, "GET", &path).await
}

/// GET or POST of exec, attach and portforward: the answer is another protocol on the same connection.
pub(super) async fn tunnel(context: &mut Context, method: &str) -> Result<Reply, ApiError> {
    let pod = parse(&*context.entry()?);
    let node = text(&pod, "/spec/nodeName");
    if node.is_empty() {
        let text = format!("pod {} does not have a host assigned", context.info.name);
        return Err(status::bad_request(text));
    }
    if context.upgrade.is_none() || !context.headers.contains_key(http::header::UPGRADE) {
        return Err(status::bad_request("Upgrade request required"));
    }
    let path = match context.info.subresource.as_str() {
        "portforward" => {
            let ports: Vec<(String, String)> =
                context.query.all("ports").map(|port| ("port".to_owned(), port.to_owned())).collect();
            path_of("portForward", context, None, &ports)
        }
        kind => {
            if matches!(text(&pod, "/status/phase"), "Succeeded" | "Failed") {
                let phase = text(&pod, "/status/phase");
                return Err(status::bad_request(format!(
                    "cannot {kind} in or attach to a container in a completed pod; current phase is {phase}"
                )));
            }
            let container = container(context, &pod)?;
            path_of(kind, context, Some(&container), &streams(context))
        }
    };
    send(context, &pod, method, &path).await
}

/// The kubelet's names for what PodExecOptions and PodAttachOptions say.
fn streams(context: &Context) -> Vec<(String, String)> {
    let mut query = Vec::new();
    for (ours, theirs) in [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")] {
        if context.query.flag(ours) {
            query.push((theirs.to_owned(), "1".to_owned()));
        }
    }
    query.extend(context.query.all("command").map(|word| ("command".to_owned(), word.to_owned())));
    query
}

fn path_of(kind: &str, context: &Context, container: Option<&str>, query: &[(String, String)]) -> String {
    let mut path = format!("/{kind}/{}/{}", encode(&context.info.namespace), encode(&context.info.name));
    if let Some(container) = container {
        path.push('/');
        path.push_str(&encode(container));
    }
    let query: Vec<String> = query.iter().map(|(key, value)| format!("{key}={}", encode(value))).collect();
    if !query.is_empty() {
        path.push('?');
        path.push_str(&query.join("&"));
    }
    path
}

async fn send(context: &mut Context, pod: &Value, method: &str, path: &str) -> Result<Reply, ApiError> {
    let Some(kubelets) = &context.api.kubelets else {
        return Err(status::service_unavailable(
            "this server has no client certificate for kubelets: set kubeletClientCertFile and kubeletClientKeyFile",
        ));
    };
    let address = context.api.kubelet_address(text(pod, "/spec/nodeName"))?;
    let method = if method == "POST" { http::Method::POST } else { http::Method::GET };
    let upgrade = context.upgrade.take().filter(|_| context.headers.contains_key(http::header::UPGRADE));
    kubelets.proxy(&address, method, path, &context.headers, upgrade).await
}

/// The container that the request means: named, or the only one.
fn container(context: &Context, pod: &Value) -> Result<String, ApiError> {
    let names = |kind: &str| -> Vec<String> {
        let list = pod.pointer(&format!("/spec/{kind}")).and_then(Value::as_array).into_iter().flatten();
        list.map(|container| text(container, "/name").to_owned()).collect()
    };
    let (containers, init, ephemeral) =
        (names("containers"), names("initContainers"), names("ephemeralContainers"));
    let name = &context.info.name;
    match context.query.get("container") {
        Some(wanted) if containers.iter().chain(&init).chain(&ephemeral).any(|one| one == wanted) => {
            Ok(wanted.to_owned())
        }
        Some(wanted) => Err(status::bad_request(format!("container {wanted} is not valid for pod {name}"))),
        None if containers.len() == 1 => Ok(containers[0].clone()),
        None => {
            let mut text = format!(
                "a container name must be specified for pod {name}, choose one of: [{}]",
                containers.join(" ")
            );
            if !init.is_empty() {
                text.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
            }
            Err(status::bad_request(text))
        }
    }
}
