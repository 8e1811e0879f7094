//! Events, best effort: one task, a bounded inbox, repeated events counted instead of repeated.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::{Api, Client};
use orlop_daemon::Frame;
use tokio::sync::mpsc;

use crate::api;
use crate::model::Meta;

const INBOX: usize = 1024;
const REMEMBERED: usize = 4096;
const FORGET_AFTER: Duration = Duration::from_secs(600);

/// Whether something went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Severity {
    Normal,
    Warning,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Said {
    about: Subject,
    severity: Severity,
    reason: &'static str,
    message: String,
}

/// The object that an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Subject {
    kind: &'static str,
    namespace: String,
    name: String,
    uid: String,
    resource_version: String,
}

impl Subject {
    pub(crate) fn new(kind: &'static str, meta: &Meta) -> Self {
        Self {
            kind,
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
        }
    }
}

/// Where a controller drops its events.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    inbox: mpsc::Sender<Said>,
}

struct Written {
    name: String,
    count: i32,
    at: tokio::time::Instant,
}

impl Recorder {
    /// Starts the writing task; `component` is what `kubectl describe` shows in its From column.
    pub(crate) fn start(frame: &Frame, client: &Client, component: &'static str) -> Self {
        let (inbox, mut outbox) = mpsc::channel::<Said>(INBOX);
        let (client, drain) = (client.clone(), frame.drain());
        frame.spawn(format!("events-{component}"), async move {
            let mut written: HashMap<Said, Written> = HashMap::new();
            loop {
                let said = tokio::select! {
                    said = outbox.recv() => said,
                    () = drain.wait() => None,
                };
                let Some(said) = said else { return Ok(()) };
                if written.len() >= REMEMBERED {
                    written.retain(|_, entry| entry.at.elapsed() < FORGET_AFTER);
                    if written.len() >= REMEMBERED {
                        written.clear();
                    }
                }
                if let Err(error) = write(&client, component, &said, &mut written).await {
                    tracing::debug!(component, reason = said.reason, error = %api::message(&error), "event not written");
                }
            }
        });
        Self { inbox }
    }

    /// Records an event; dropped when the inbox is full, events are best effort by contract.
    pub(crate) fn say(&self, about: Subject, severity: Severity, reason: &'static str, message: String) {
        let mut message = message;
        // The API server's limit on an event's message is 1024 bytes.
        if message.len() > 1024 {
            let end = (0..=1021).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
            message.truncate(end);
            message.push_str("...");
        }
        let _ = self.inbox.try_send(Said { about, severity, reason, message });
    }
}

async fn write(
    client: &Client,
    component: &'static str,
    said: &Said,
    written: &mut HashMap<Said, Written>,
) -> Result<(), kube::Error> {
    let namespace = if said.about.namespace.is_empty() { "default" } else { &said.about.namespace };
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    let now = Timestamp::now();
    // The version of the object differs between repeats of the same event.
    let mut identity = said.clone();
    identity.about.resource_version.clear();
    if let Some(entry) = written.get_mut(&identity) {
        entry.count = entry.count.saturating_add(1);
        entry.at = tokio::time::Instant::now();
        let body = serde_json::json!({ "count": entry.count, "lastTimestamp": Time(now) });
        match events.patch(&entry.name, &api::patch(), &api::merge(body)).await {
            Ok(_) => return Ok(()),
            // It has expired meanwhile.
            Err(error) if api::is_not_found(&error) => drop(written.remove(&identity)),
            Err(error) => return Err(error),
        }
    }
    let event = build(component, said, namespace, now);
    let name = event.metadata.name.clone().unwrap_or_default();
    events.create(&api::post(), &event).await?;
    written.insert(identity, Written { name, count: 1, at: tokio::time::Instant::now() });
    Ok(())
}

fn build(component: &'static str, said: &Said, namespace: &str, now: Timestamp) -> Event {
    let about = &said.about;
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{:x}", about.name, now.as_nanosecond())),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(about.kind.to_owned()),
            name: Some(about.name.clone()),
            namespace: Some(about.namespace.clone()).filter(|namespace| !namespace.is_empty()),
            uid: Some(about.uid.clone()),
            resource_version: Some(about.resource_version.clone()).filter(|version| !version.is_empty()),
            field_path: None,
        },
        type_: Some(if said.severity == Severity::Normal { "Normal" } else { "Warning" }.to_owned()),
        reason: Some(said.reason.to_owned()),
        message: Some(said.message.clone()),
        source: Some(EventSource { component: Some(component.to_owned()), host: None }),
        reporting_component: Some(component.to_owned()),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        ..Event::default()
    }
}
