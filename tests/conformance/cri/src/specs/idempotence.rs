//! Stopping and removing what is not there, or twice, is no error (api.proto).

use anyhow::ensure;
use futures::future::join_all;
use orlop_cri::v1;

use crate::spec::{Test, image};

crate::specs![
    stop_unknown_pod,
    stop_pod_twice,
    remove_unknown_pod,
    remove_pod_twice,
    stop_unknown_container,
    stop_container_twice,
    remove_unknown_container,
    remove_container_twice,
    remove_unknown_image,
    remove_image_twice,
    stop_created_container,
    stops_at_once,
    removals_at_once,
    pull_twice,
];

async fn stop_unknown_pod(t: &Test) -> anyhow::Result<()> {
    t.cri.stop_pod("no-such-pod").await
}

async fn stop_pod_twice(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    for _ in 0..2 {
        t.cri.stop_pod(&pod.id).await?;
        ensure!(t.cri.pod_status(&pod.id).await?.state() == v1::PodSandboxState::SandboxNotready, "it runs");
    }
    Ok(())
}

async fn remove_unknown_pod(t: &Test) -> anyhow::Result<()> {
    t.cri.remove_pod("no-such-pod").await
}

async fn remove_pod_twice(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    t.cri.stop_pod(&pod.id).await?;
    t.cri.remove_pod(&pod.id).await?;
    t.cri.remove_pod(&pod.id).await
}

async fn stop_unknown_container(t: &Test) -> anyhow::Result<()> {
    t.cri.stop("no-such-container", 0).await
}

async fn stop_container_twice(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.running(&pod).await?;
    t.cri.stop(&id, 0).await?;
    let first = t.cri.container_status(&id).await?;
    t.cri.stop(&id, 10).await?;
    ensure!(t.cri.container_status(&id).await? == first, "the second stop changed something");
    Ok(())
}

async fn remove_unknown_container(t: &Test) -> anyhow::Result<()> {
    t.cri.remove("no-such-container").await
}

async fn remove_container_twice(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.running(&pod).await?;
    t.cri.remove(&id).await?;
    t.cri.remove(&id).await
}

async fn remove_unknown_image(t: &Test) -> anyhow::Result<()> {
    let id = "0".repeat(64);
    t.cri.remove_image(&id).await?;
    t.cri.remove_image(&id).await?;
    t.cri.remove_image(&image("no-such-image")).await
}

async fn remove_image_twice(t: &Test) -> anyhow::Result<()> {
    t.cri.pull(&image("different-1")).await?;
    t.cri.remove_image(&image("different-1")).await?;
    t.cri.remove_image(&image("different-1")).await
}

async fn stop_created_container(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.create(&pod, t.container_config(&pod, &["sleep", "100"])).await?;
    t.cri.stop(&id, 0).await
}

async fn stops_at_once(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.running(&pod).await?;
    for stopped in join_all((0..5).map(|_| t.cri.stop(&id, 0))).await {
        stopped?;
    }
    for stopped in join_all((0..5).map(|_| t.cri.stop_pod(&pod.id))).await {
        stopped?;
    }
    Ok(())
}

async fn removals_at_once(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.running(&pod).await?;
    t.cri.stop(&id, 0).await?;
    let answers = join_all((0..5).map(|_| t.cri.remove(&id))).await;
    ensure!(answers.iter().any(Result::is_ok), "{answers:?}");
    // A loser may be told that somebody is at it; its retry is not.
    t.cri.remove(&id).await
}

async fn pull_twice(t: &Test) -> anyhow::Result<()> {
    let first = t.cri.pull(&image("different-2")).await?;
    ensure!(t.cri.pull(&image("different-2")).await? == first, "another image");
    t.cri.remove_image(&image("different-2")).await
}
