//! Events: recorded without waiting, sent by one task, repeated ones counted on one object (client-go: EventCorrelator).

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use tokio::sync::mpsc;

use crate::pod::model;

const QUEUE_LIMIT: usize = 1024;
const KNOWN_LIMIT: usize = 4096;
const SEND_LIMIT: Duration = Duration::from_secs(10);

/// Weight of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Normal,
    Warning,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

#[derive(Clone, Debug)]
struct Occurrence {
    object: core::ObjectReference,
    kind: Kind,
    reason: String,
    message: String,
    at: Timestamp,
}

/// Records events; cheap to clone. A full queue drops the event: events are best effort by definition.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    queue: mpsc::Sender<Occurrence>,
}

/// The receiving end, for [`send_all`].
pub(crate) struct Queue(mpsc::Receiver<Occurrence>);

pub(crate) fn channel() -> (Events, Queue) {
    let (sender, receiver) = mpsc::channel(QUEUE_LIMIT);
    (Events { queue: sender }, Queue(receiver))
}

impl Events {
    fn record(&self, object: core::ObjectReference, kind: Kind, reason: &str, message: String) {
        tracing::debug!(object = object.name.as_deref(), reason, message, "event");
        let occurrence =
            Occurrence { object, kind, reason: reason.to_owned(), message, at: Timestamp::now() };
        if self.queue.try_send(occurrence).is_err() {
            tracing::warn!(reason, "too many events, one is dropped");
        }
    }

    /// An event of a pod, or of one of its containers: `field` is for example `spec.containers{nginx}`.
    pub(crate) fn pod(
        &self,
        pod: &core::Pod,
        field: Option<String>,
        kind: Kind,
        reason: &str,
        message: impl Into<String>,
    ) {
        let object = core::ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(model::namespace(pod).to_owned()),
            name: Some(model::name(pod).to_owned()),
            uid: pod.metadata.uid.clone(),
            resource_version: pod.metadata.resource_version.clone(),
            field_path: field,
        };
        self.record(object, kind, reason, message.into());
    }

    /// As [`Events::pod`], for a container by name.
    pub(crate) fn container(
        &self,
        pod: &core::Pod,
        name: &str,
        kind: Kind,
        reason: &str,
        message: impl Into<String>,
    ) {
        let list = match model::container(pod, name) {
            Some((model::Role::App, _)) | None => "containers",
            Some((model::Role::Ephemeral, _)) => "ephemeralContainers",
            Some(_) => "initContainers",
        };
        self.pod(pod, Some(format!("spec.{list}{{{name}}}")), kind, reason, message);
    }

    /// An event of the node.
    pub(crate) fn node(&self, name: &str, kind: Kind, reason: &str, message: impl Into<String>) {
        let object = core::ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(name.to_owned()),
            // Upstream uses the node's name as UID, and describe looks for it.
            uid: Some(name.to_owned()),
            ..Default::default()
        };
        self.record(object, kind, reason, message.into());
    }
}

type Identity = (Option<String>, Option<String>, Kind, String, String);

struct Known {
    name: String,
    namespace: String,
    count: i32,
}

/// Sends until the drain starts.
pub(crate) async fn send_all(
    mut queue: Queue,
    client: kube::Client,
    node: String,
    drain: orlop_daemon::Drain,
) {
    let mut known: HashMap<Identity, Known> = HashMap::new();
    let mut order: VecDeque<Identity> = VecDeque::new();
    loop {
        let occurrence = tokio::select! {
            occurrence = queue.0.recv() => occurrence,
            () = drain.wait() => return,
        };
        let Some(occurrence) = occurrence else { return };
        let identity = (
            occurrence.object.uid.clone(),
            occurrence.object.field_path.clone(),
            occurrence.kind,
            occurrence.reason.clone(),
            occurrence.message.clone(),
        );
        let send = send(&client, &node, &occurrence, known.get_mut(&identity));
        match tokio::time::timeout(SEND_LIMIT, send).await {
            Ok(Ok(Some(fresh))) => {
                if known.insert(identity.clone(), fresh).is_none() {
                    order.push_back(identity);
                }
                if order.len() > KNOWN_LIMIT
                    && let Some(oldest) = order.pop_front()
                {
                    known.remove(&oldest);
                }
            }
            Ok(Ok(None)) => {}
            Ok(Err(error)) => tracing::debug!(%error, reason = occurrence.reason, "event not sent"),
            Err(_) => tracing::debug!(reason = occurrence.reason, "event not sent in time"),
        }
    }
}

async fn send(
    client: &kube::Client,
    node: &str,
    occurrence: &Occurrence,
    known: Option<&mut Known>,
) -> Result<Option<Known>, kube::Error> {
    let at = Time(Timestamp::from_second(occurrence.at.as_second()).unwrap_or(occurrence.at));
    if let Some(known) = known {
        known.count += 1;
        let events = Api::<core::Event>::namespaced(client.clone(), &known.namespace);
        let patch =
            serde_json::json!({"count": known.count, "lastTimestamp": at, "message": occurrence.message});
        match events.patch(&known.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error),
            Ok(_) => return Ok(None),
        }
    }
    let namespace = occurrence.object.namespace.clone().unwrap_or_else(|| "default".to_owned());
    let object = occurrence.object.name.clone().unwrap_or_default();
    let name = format!("{object}.{:016x}", occurrence.at.as_nanosecond());
    let event = core::Event {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(namespace.clone()),
            ..Default::default()
        },
        involved_object: occurrence.object.clone(),
        reason: Some(occurrence.reason.clone()),
        message: Some(occurrence.message.clone()),
        type_: Some(occurrence.kind.name().to_owned()),
        count: Some(1),
        first_timestamp: Some(at.clone()),
        last_timestamp: Some(at),
        source: Some(core::EventSource {
            component: Some("kubelet".to_owned()),
            host: Some(node.to_owned()),
        }),
        reporting_component: Some("kubelet".to_owned()),
        reporting_instance: Some(node.to_owned()),
        ..Default::default()
    };
    let events = Api::<core::Event>::namespaced(client.clone(), &namespace);
    events.create(&PostParams::default(), &event).await?;
    Ok(Some(Known { name, namespace, count: 1 }))
}
