//! What a worker lets run beside itself: pulls, hooks, stops, status writes. Each ends in one [`Done`].

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use kube::Api;
use kube::api::{Patch, PatchParams};
use orlop_cri::v1 as cri;

use super::model::{self, Container};
use crate::Kubelet;
use crate::events::Kind;
use crate::probe::check;

/// The least time that a container gets after its preStop hook (upstream: minimumGracePeriodInSeconds).
const MINIMUM_GRACE: Duration = Duration::from_secs(2);
const STATUS_LIMIT: Duration = Duration::from_secs(15);

/// How an operation ended.
#[derive(Debug)]
pub(crate) enum Done {
    /// An image was pulled, or not.
    Pulled { name: String, result: Result<String, String> },
    /// A postStart hook ended; with an error the container is stopped.
    Hooked { id: String, name: String, result: Result<(), String> },
    /// A container was asked to stop.
    Stopped { id: String, result: Result<(), String> },
    /// A status was written; `Ok(None)` when the pod is gone.
    Written { status: Box<core::PodStatus>, result: Result<Option<String>, String> },
}

/// Pulls with each credential until one works.
pub(crate) async fn pull(
    kubelet: Arc<Kubelet>,
    pod: Arc<core::Pod>,
    name: String,
    image: String,
    sandbox: cri::PodSandboxConfig,
) -> Done {
    let _permit = kubelet.pulls.acquire().await;
    kubelet.events.container(&pod, &name, Kind::Normal, "Pulling", format!("Pulling image {image:?}"));
    let started = std::time::Instant::now();
    let result = try_pull(&kubelet, &pod, &image, sandbox).await;
    match &result {
        Ok((_, bytes)) => {
            let message = format!(
                "Successfully pulled image {image:?} in {:.3}s ({:.3}s including waiting). Image size: {bytes} bytes.",
                started.elapsed().as_secs_f64(),
                started.elapsed().as_secs_f64()
            );
            kubelet.events.container(&pod, &name, Kind::Normal, "Pulled", message);
        }
        Err(error) => {
            let message = format!("Failed to pull image {image:?}: {error}");
            kubelet.events.container(&pod, &name, Kind::Warning, "Failed", message);
        }
    }
    Done::Pulled { name, result: result.map(|(image_ref, _)| image_ref) }
}

async fn try_pull(
    kubelet: &Kubelet,
    pod: &core::Pod,
    image: &str,
    sandbox: cri::PodSandboxConfig,
) -> Result<(String, u64), String> {
    let mut secrets = Vec::new();
    for reference in model::spec(pod).image_pull_secrets.iter().flatten() {
        // A secret that is missing does not stop a pull that may not need it.
        match kubelet.objects.secret(model::namespace(pod), &reference.name).await {
            Ok(Some(secret)) => secrets.push(secret),
            Ok(None) => {
                let message = format!(
                    "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                    reference.name
                );
                kubelet.events.pod(pod, None, Kind::Warning, "FailedToRetrieveImagePullSecret", message);
            }
            Err(error) => tracing::warn!(secret = reference.name, %error, "could not read a pull secret"),
        }
    }
    let mut auths: Vec<Option<cri::AuthConfig>> =
        crate::images::credentials(image, &secrets).into_iter().map(Some).collect();
    if auths.is_empty() {
        auths.push(None);
    }
    let mut last = String::new();
    for auth in auths {
        let spec = cri::ImageSpec { image: image.to_owned(), ..Default::default() };
        let request =
            cri::PullImageRequest { image: Some(spec), auth, sandbox_config: Some(sandbox.clone()) };
        match kubelet.runtime.pull_image(request).await {
            Ok(answer) => {
                return Ok((answer.image_ref.clone(), image_size(kubelet, &answer.image_ref).await));
            }
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}

async fn image_size(kubelet: &Kubelet, image_ref: &str) -> u64 {
    let spec = cri::ImageSpec { image: image_ref.to_owned(), ..Default::default() };
    let answer =
        kubelet.runtime.image_status(cri::ImageStatusRequest { image: Some(spec), verbose: false }).await;
    answer.ok().and_then(|answer| answer.image).map_or(0, |image| image.size)
}

/// Runs a postStart hook.
pub(crate) async fn post_start(
    kubelet: Arc<Kubelet>,
    pod: Arc<core::Pod>,
    id: String,
    name: String,
    address: String,
) -> Done {
    let result = match model::container(&pod, &name)
        .and_then(|(_, spec)| spec.lifecycle.clone())
        .and_then(|hooks| hooks.post_start)
    {
        Some(hook) => check::hook(&kubelet.runtime, &pod, &id, &name, &address, &hook).await,
        None => Ok(()),
    };
    Done::Hooked { id, name, result }
}

/// Stops one container: preStop hook, then the signal, within `grace`.
pub(crate) async fn stop(
    kubelet: Arc<Kubelet>,
    pod: Option<Arc<core::Pod>>,
    container: Container,
    address: String,
    grace: Duration,
    message: String,
) -> Done {
    let started = std::time::Instant::now();
    let mut left = grace;
    if let Some(pod) = &pod {
        kubelet.events.container(pod, &container.name, Kind::Normal, "Killing", message);
        let spec = model::container(pod, &container.name).map(|(_, spec)| spec);
        let hook = spec.and_then(|spec| spec.lifecycle.clone()).and_then(|hooks| hooks.pre_stop);
        if let Some(hook) = hook.filter(|_| !grace.is_zero()) {
            let run = check::hook(&kubelet.runtime, pod, &container.id, &container.name, &address, &hook);
            match tokio::time::timeout(grace, run).await {
                Ok(Err(error)) => {
                    kubelet.events.container(
                        pod,
                        &container.name,
                        Kind::Warning,
                        "FailedPreStopHook",
                        format!("PreStopHook failed: {error}"),
                    );
                }
                Err(_) => tracing::info!(container = container.name, "preStop hook took the whole grace"),
                Ok(Ok(())) => {}
            }
            left = grace.saturating_sub(started.elapsed()).max(MINIMUM_GRACE);
        }
    }
    let result = kubelet.runtime.stop_container(&container.id, left).await.map_err(|error| error.to_string());
    Done::Stopped { id: container.id, result }
}

/// Writes a status; the answer is the new resource version.
pub(crate) async fn write_status(
    kubelet: Arc<Kubelet>,
    namespace: String,
    name: String,
    patch: serde_json::Value,
    status: Box<core::PodStatus>,
) -> Done {
    let _permit = kubelet.status_writes.acquire().await;
    let pods = Api::<core::Pod>::namespaced(kubelet.client.clone(), &namespace);
    let params = PatchParams::default();
    let patch = Patch::Strategic(patch);
    let write = pods.patch_status(&name, &params, &patch);
    let result = match tokio::time::timeout(STATUS_LIMIT, write).await {
        Ok(Ok(pod)) => Ok(pod.metadata.resource_version),
        // Gone, or another pod of the same name (the UID in the patch does not match).
        Ok(Err(kube::Error::Api(answer))) if answer.code == 404 || answer.code == 409 => Ok(None),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the API server did not answer in time".to_owned()),
    };
    Done::Written { status, result }
}
