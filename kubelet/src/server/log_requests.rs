//! `/containerLogs/NS/POD/CONTAINER`.

use std::path::PathBuf;

use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::{Response, StatusCode};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;
use orlop_cri::v1 as cri;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use super::routes::{Query, containers, find_pod};
use super::{Answer, text};
use crate::Kubelet;
use crate::container::config;
use crate::labels;
use crate::logs::{Options, follow};
use crate::pod::model;

/// Chunks that wait for the client.
const CHUNKS: usize = 8;

fn options(query: &Query) -> Result<Options, String> {
    let number = |name: &str| -> Result<Option<u64>, String> {
        query
            .get(name)
            .filter(|text| !text.is_empty())
            .map(|text| {
                text.parse::<u64>().map_err(|_| format!("invalid {name}: {text:?} is no whole number"))
            })
            .transpose()
    };
    let since_seconds = number("sinceSeconds")?
        .map(|seconds| Timestamp::now() - SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(0)));
    let since_time = match query.get("sinceTime").filter(|text| !text.is_empty()) {
        Some(text) => Some(text.parse::<Timestamp>().map_err(|error| format!("invalid sinceTime: {error}"))?),
        None => None,
    };
    Ok(Options {
        follow: query.is_on("follow"),
        timestamps: query.is_on("timestamps"),
        tail_lines: match query.get("tailLines") {
            Some("all") => None,
            _ => number("tailLines")?,
        },
        limit_bytes: number("limitBytes")?,
        since: since_seconds.or(since_time),
        stream: query
            .get("stream")
            .filter(|stream| !stream.is_empty() && *stream != "All")
            .map(str::to_lowercase),
    })
}

/// Streams a log.
pub(crate) async fn answer(
    kubelet: &Kubelet,
    namespace: &str,
    pod: &str,
    name: &str,
    query: &Query,
) -> Answer {
    let options = match options(query) {
        Ok(options) => options,
        Err(problem) => return text(StatusCode::UNPROCESSABLE_ENTITY, problem),
    };
    let pod = match find_pod(kubelet, namespace, pod) {
        Ok(pod) => pod,
        Err(problem) => return *problem,
    };
    if model::container(&pod, name).is_none() {
        return text(
            StatusCode::BAD_REQUEST,
            format!("container {name} is not valid for pod {}", model::name(&pod)),
        );
    }
    let list = match containers(kubelet, &pod, name).await {
        Ok(list) => list,
        Err(problem) => return *problem,
    };
    let container = match choose(&pod, name, list, query.is_on("previous")) {
        Ok(container) => container,
        Err(problem) => return text(StatusCode::BAD_REQUEST, problem),
    };
    let path = log_path(kubelet, &pod, name, &container);
    let (sender, receiver) = mpsc::channel(CHUNKS);
    // Ends with the client: the channel closes when the response is dropped.
    tokio::spawn(follow::send(kubelet.runtime.clone(), container.id, path, options, sender));
    let body = StreamBody::new(ReceiverStream::new(receiver).map(|chunk| chunk.map(Frame::data)));
    let mut response = Response::new(BodyExt::boxed(body));
    response
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static("text/plain"));
    response
}

fn choose(
    pod: &core::Pod,
    name: &str,
    list: Vec<cri::Container>,
    previous: bool,
) -> Result<cri::Container, String> {
    let mut started =
        list.into_iter().filter(|container| container.state != cri::ContainerState::ContainerCreated as i32);
    if previous {
        let newest = started.next();
        // A container that waits to be restarted is its own previous run.
        let waits = newest.as_ref().is_some_and(|c| c.state == cri::ContainerState::ContainerExited as i32)
            && is_waiting(pod, name);
        let found = if waits { newest } else { started.next() };
        return found.ok_or_else(|| {
            format!("previous terminated container {name:?} in pod {:?} not found", model::name(pod))
        });
    }
    started.next().ok_or_else(|| {
        let reason = waiting_reason(pod, name).unwrap_or_else(|| "ContainerCreating".to_owned());
        let reason = match reason.as_str() {
            "ErrImagePull" => "image can't be pulled",
            "ImagePullBackOff" => "trying and failing to pull image",
            reason => reason,
        };
        format!("container {name:?} in pod {:?} is waiting to start: {reason}", model::name(pod))
    })
}

fn waiting_reason(pod: &core::Pod, name: &str) -> Option<String> {
    let status = pod.status.as_ref()?;
    let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    let found = all.filter(|status| status.name == name).find_map(|status| status.state.clone()?.waiting)?;
    Some(found.reason.unwrap_or_default())
}

fn is_waiting(pod: &core::Pod, name: &str) -> bool {
    waiting_reason(pod, name).is_some()
}

fn log_path(kubelet: &Kubelet, pod: &core::Pod, name: &str, container: &cri::Container) -> PathBuf {
    let attempt = container.annotations.get(labels::RESTART_COUNT).and_then(|text| text.parse::<u32>().ok());
    let attempt = attempt.or(container.metadata.as_ref().map(|metadata| metadata.attempt)).unwrap_or(0);
    kubelet.config.pod_logs_dir.join(config::log_directory(pod)).join(name).join(format!("{attempt}.log"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_waits_says_why_in_upstreams_words() {
        for (waiting, expected) in [
            (Some("ImagePullBackOff"), "trying and failing to pull image"),
            (Some("ErrImagePull"), "image can't be pulled"),
            (Some("PodInitializing"), "PodInitializing"),
            (None, "ContainerCreating"),
        ] {
            let state = serde_json::json!({"waiting": {"reason": waiting, "message": "never shown"}});
            let pod: core::Pod = serde_json::from_value(serde_json::json!({
                "metadata": {"name": "p"},
                "status": {"containerStatuses": waiting.map(|_| serde_json::json!([{
                    "name": "c", "state": state, "image": "", "imageID": "", "ready": false, "restartCount": 0
                }]))}
            }))
            .unwrap();
            let expected = format!("container \"c\" in pod \"p\" is waiting to start: {expected}");
            assert_eq!(choose(&pod, "c", Vec::new(), false).unwrap_err(), expected);
        }
    }
}
