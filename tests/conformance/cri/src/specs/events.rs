//! GetContainerEvents: what evented PLEG lives on (KEP-3386).

use anyhow::{Context as _, ensure};
use orlop_cri::v1;
use orlop_cri::v1::ContainerEventType::{
    ContainerCreatedEvent, ContainerDeletedEvent, ContainerStartedEvent, ContainerStoppedEvent,
};

use crate::spec::{EVENTUALLY, Test};

crate::specs![life_of_a_container, life_of_a_pod, exit_code_is_told, two_listeners];

type Events = tonic::Streaming<v1::ContainerEventResponse>;

async fn listen(t: &Test) -> anyhow::Result<Events> {
    // The answer's head comes with the first event where the server sends it lazily: not awaited before something happens.
    let mut runtime = t.cri.runtime();
    let listening = tokio::time::timeout(EVENTUALLY, runtime.get_container_events(v1::GetEventsRequest {}));
    Ok(listening.await.context("no stream of events")??.into_inner())
}

/// The next events of an object, until the last of `wanted`; they must be `wanted`.
async fn expect(
    events: &mut Events,
    id: &str,
    wanted: &[v1::ContainerEventType],
) -> anyhow::Result<Vec<v1::ContainerEventResponse>> {
    let mut seen: Vec<v1::ContainerEventResponse> = Vec::new();
    while seen.len() < wanted.len() {
        let next = tokio::time::timeout(EVENTUALLY, events.message()).await;
        let kinds = || seen.iter().map(v1::ContainerEventResponse::container_event_type).collect::<Vec<_>>();
        let event = next.with_context(|| format!("only {:?}", kinds()))??.context("the stream ended")?;
        if event.container_id == id {
            seen.push(event);
        }
    }
    let kinds: Vec<_> = seen.iter().map(v1::ContainerEventResponse::container_event_type).collect();
    ensure!(kinds == wanted, "{kinds:?}");
    ensure!(seen.iter().all(|event| event.created_at > 0), "an event without a time");
    Ok(seen)
}

async fn life_of_a_container(t: &Test) -> anyhow::Result<()> {
    let mut events = listen(t).await?;
    let pod = t.pod().await?;
    let id = t.running(&pod).await?;
    t.cri.stop(&id, 0).await?;
    t.cri.remove(&id).await?;
    let wanted = [ContainerCreatedEvent, ContainerStartedEvent, ContainerStoppedEvent, ContainerDeletedEvent];
    let seen = expect(&mut events, &id, &wanted).await?;
    let of_pod = seen[1].pod_sandbox_status.clone().context("no status of the pod")?;
    ensure!(of_pod.id == pod.id && of_pod.metadata == pod.config.metadata, "{of_pod:?}");
    ensure!(seen[1].containers_statuses.iter().any(|status| status.id == id), "{:?}", seen[1]);
    Ok(())
}

async fn life_of_a_pod(t: &Test) -> anyhow::Result<()> {
    let mut events = listen(t).await?;
    let pod = t.pod().await?;
    t.cri.stop_pod(&pod.id).await?;
    t.cri.remove_pod(&pod.id).await?;
    let wanted = [ContainerCreatedEvent, ContainerStartedEvent, ContainerStoppedEvent, ContainerDeletedEvent];
    expect(&mut events, &pod.id, &wanted).await.map(drop)
}

async fn exit_code_is_told(t: &Test) -> anyhow::Result<()> {
    let mut events = listen(t).await?;
    let pod = t.pod().await?;
    let command = ["sh", "-c", "exit 17"].map(str::to_owned).to_vec();
    let id = t.running_with(&pod, |config| config.command = command).await?;
    let wanted = [ContainerCreatedEvent, ContainerStartedEvent, ContainerStoppedEvent];
    let seen = expect(&mut events, &id, &wanted).await?;
    let status = seen[2].containers_statuses.iter().find(|status| status.id == id).context("no status")?;
    ensure!(status.exit_code == 17, "{status:?}");
    Ok(())
}

async fn two_listeners(t: &Test) -> anyhow::Result<()> {
    let (mut one, mut other) = (listen(t).await?, listen(t).await?);
    let pod = t.pod().await?;
    let id = t.running(&pod).await?;
    let wanted = [ContainerCreatedEvent, ContainerStartedEvent];
    expect(&mut one, &id, &wanted).await?;
    expect(&mut other, &id, &wanted).await.map(drop)
}
