//! The Stream… calls: the lists in parts (KEP-5825). What they say is what the lists say.

use std::collections::{BTreeSet, HashMap};

use anyhow::ensure;
use orlop_cri::v1;

use crate::client::image_spec;
use crate::spec::{Test, image};

crate::specs![
    pods,
    pods_by_state,
    pods_by_label,
    pods_not_there,
    containers,
    containers_by_pod,
    containers_by_state,
    several_containers,
    removed_containers,
    container_stats,
    container_stats_by_label,
    pod_stats,
    pod_stats_unfiltered,
    pod_stats_by_label,
    pod_metrics,
    all_images,
    images_by_name,
];

/// All parts of a stream in one list.
macro_rules! whole {
    ($service:expr, $call:ident, $request:expr, $field:ident) => {{
        let mut stream = $service.$call($request).await?.into_inner();
        let mut all = Vec::new();
        while let Some(part) = stream.message().await? {
            all.extend(part.$field);
        }
        all
    }};
}

type Ids = BTreeSet<String>;

async fn pod_ids(t: &Test, filter: v1::PodSandboxFilter) -> anyhow::Result<Ids> {
    let request = v1::StreamPodSandboxesRequest { filter: Some(filter) };
    let all = whole!(t.cri.runtime(), stream_pod_sandboxes, request, pod_sandboxes);
    Ok(all.into_iter().map(|pod| pod.id).collect())
}

async fn container_ids(t: &Test, filter: v1::ContainerFilter) -> anyhow::Result<Ids> {
    let request = v1::StreamContainersRequest { filter: Some(filter) };
    let all = whole!(t.cri.runtime(), stream_containers, request, containers);
    Ok(all.into_iter().map(|container| container.id).collect())
}

async fn stats_ids(t: &Test, filter: v1::ContainerStatsFilter) -> anyhow::Result<Ids> {
    let request = v1::StreamContainerStatsRequest { filter: Some(filter) };
    let all = whole!(t.cri.runtime(), stream_container_stats, request, container_stats);
    Ok(all.into_iter().filter_map(|stats| stats.attributes).map(|attributes| attributes.id).collect())
}

async fn pod_stats_ids(t: &Test, filter: Option<v1::PodSandboxStatsFilter>) -> anyhow::Result<Ids> {
    let request = v1::StreamPodSandboxStatsRequest { filter };
    let all = whole!(t.cri.runtime(), stream_pod_sandbox_stats, request, pod_sandbox_stats);
    Ok(all.into_iter().filter_map(|stats| stats.attributes).map(|attributes| attributes.id).collect())
}

fn only(id: &str) -> Ids {
    Ids::from([id.to_owned()])
}

async fn pods(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let filter = v1::PodSandboxFilter { id: pod.id.clone(), ..Default::default() };
    ensure!(pod_ids(t, filter).await? == only(&pod.id), "not exactly the one");
    Ok(())
}

async fn pods_by_state(t: &Test) -> anyhow::Result<()> {
    let (pod, stopped) = (t.pod().await?, t.pod().await?);
    t.cri.stop_pod(&stopped.id).await?;
    let state = Some(v1::PodSandboxStateValue { state: v1::PodSandboxState::SandboxReady.into() });
    let found = pod_ids(t, v1::PodSandboxFilter { state, ..Default::default() }).await?;
    ensure!(found.contains(&pod.id) && !found.contains(&stopped.id), "{found:?}");
    Ok(())
}

async fn pods_by_label(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let label_selector = pod.config.labels.clone();
    let found = pod_ids(t, v1::PodSandboxFilter { label_selector, ..Default::default() }).await?;
    ensure!(found == only(&pod.id), "{found:?}");
    let label_selector = HashMap::from([("spec".to_owned(), "no".to_owned())]);
    ensure!(
        pod_ids(t, v1::PodSandboxFilter { label_selector, ..Default::default() }).await?.is_empty(),
        "some"
    );
    Ok(())
}

async fn pods_not_there(t: &Test) -> anyhow::Result<()> {
    let filter = v1::PodSandboxFilter { id: "no-such-pod".into(), ..Default::default() };
    ensure!(pod_ids(t, filter).await?.is_empty(), "some");
    Ok(())
}

async fn containers(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.running(&pod).await?;
    let filter = v1::ContainerFilter { id: id.clone(), ..Default::default() };
    ensure!(container_ids(t, filter).await? == only(&id), "not exactly the one");
    Ok(())
}

async fn containers_by_pod(t: &Test) -> anyhow::Result<()> {
    let (pod, other) = (t.pod().await?, t.pod().await?);
    let id = t.running(&pod).await?;
    t.running(&other).await?;
    let filter = v1::ContainerFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() };
    ensure!(container_ids(t, filter).await? == only(&id), "not exactly the one");
    Ok(())
}

async fn containers_by_state(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.running(&pod).await?;
    let ended = t.ended_with(&pod, |config| config.command = vec!["true".into()]).await?.id;
    let state = Some(v1::ContainerStateValue { state: v1::ContainerState::ContainerRunning.into() });
    let found = container_ids(t, v1::ContainerFilter { state, ..Default::default() }).await?;
    ensure!(found.contains(&id) && !found.contains(&ended), "{found:?}");
    Ok(())
}

async fn several_containers(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let mut ids = Ids::new();
    for _ in 0..3 {
        ids.insert(t.create(&pod, t.container_config(&pod, &["true"])).await?);
    }
    let filter = v1::ContainerFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() };
    ensure!(container_ids(t, filter).await? == ids, "not exactly the three");
    Ok(())
}

async fn removed_containers(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.create(&pod, t.container_config(&pod, &["true"])).await?;
    t.cri.remove(&id).await?;
    ensure!(
        container_ids(t, v1::ContainerFilter { id, ..Default::default() }).await?.is_empty(),
        "still there"
    );
    Ok(())
}

async fn container_stats(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.running(&pod).await?;
    let filter = v1::ContainerStatsFilter { id: id.clone(), ..Default::default() };
    ensure!(stats_ids(t, filter).await? == only(&id), "not exactly the one");
    Ok(())
}

async fn container_stats_by_label(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let labels = |value: &str| HashMap::from([("stream".to_owned(), value.to_owned())]);
    let id = t.running_with(&pod, |config| config.labels = labels("yes")).await?;
    for (value, wanted) in [("yes", only(&id)), ("no", Ids::new())] {
        let filter = v1::ContainerStatsFilter { label_selector: labels(value), ..Default::default() };
        let found = stats_ids(t, filter).await?;
        ensure!(found == wanted, "{value}: {found:?}");
    }
    Ok(())
}

async fn pod_stats(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let filter = v1::PodSandboxStatsFilter { id: pod.id.clone(), ..Default::default() };
    ensure!(pod_stats_ids(t, Some(filter)).await? == only(&pod.id), "not exactly the one");
    Ok(())
}

async fn pod_stats_unfiltered(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    ensure!(pod_stats_ids(t, None).await?.contains(&pod.id), "it is missing");
    Ok(())
}

async fn pod_stats_by_label(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let label_selector = pod.config.labels.clone();
    let filter = v1::PodSandboxStatsFilter { label_selector, ..Default::default() };
    ensure!(pod_stats_ids(t, Some(filter)).await? == only(&pod.id), "not exactly the one");
    Ok(())
}

async fn pod_metrics(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    t.running(&pod).await?;
    let request = v1::StreamPodSandboxMetricsRequest {};
    let all = whole!(t.cri.runtime(), stream_pod_sandbox_metrics, request, pod_sandbox_metrics);
    ensure!(all.iter().any(|metrics| metrics.pod_sandbox_id == pod.id), "it is missing");
    Ok(())
}

async fn all_images(t: &Test) -> anyhow::Result<()> {
    let request = v1::StreamImagesRequest { filter: None };
    let all = whole!(t.cri.images(), stream_images, request, images);
    ensure!(all.iter().any(|known| known.repo_tags.contains(&image("busybox"))), "it is missing");
    Ok(())
}

async fn images_by_name(t: &Test) -> anyhow::Result<()> {
    let filter = Some(v1::ImageFilter { image: Some(image_spec(&image("busybox"))) });
    let request = v1::StreamImagesRequest { filter };
    let all = whole!(t.cri.images(), stream_images, request, images);
    ensure!(all.len() == 1 && all[0].repo_tags.contains(&image("busybox")), "{all:?}");
    Ok(())
}
