//! Events, in both of their groups. They are stored as core Events; `events.k8s.io` is a view of the same objects.

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::BASE;
use super::shape::{NAME, column, human, text_or};
use crate::fields::Errors;
use crate::resource::{Column, Field, Resource, StorageForm, text};

/// (core, `events.k8s.io`): the same field by two names (upstream `pkg/apis/events/v1/conversion.go`).
static NAMES: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("count", "deprecatedCount"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("source", "deprecatedSource"),
];
const NOTE_LIMIT_BYTES: usize = 1024;

fn rename(event: &mut Value, names: impl Iterator<Item = (&'static str, &'static str)>, api_version: &str) {
    let Some(map) = event.as_object_mut() else { return };
    let names: Vec<_> = names.collect();
    let renamed: Map<String, Value> = std::mem::take(map)
        .into_iter()
        .map(|(key, value)| match names.iter().find(|(from, _)| *from == key) {
            Some((_, to)) => ((*to).to_owned(), value),
            None => (key, value),
        })
        .collect();
    *map = renamed;
    if map.contains_key("apiVersion") {
        map.insert("apiVersion".to_owned(), Value::from(api_version));
    }
}

fn component(event: &Value, field: &str, source: &str) -> String {
    let reporting = text(event, field);
    if reporting.is_empty() { text(event, source) } else { reporting }
}

pub(super) const EVENTS: Resource = Resource {
    kind: "Event",
    list_kind: "EventList",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    storage: "events",
    definition: "io.k8s.api.core.v1.Event",
    schema: |generator| generator.subschema_for::<k8s_openapi::api::core::v1::Event>(),
    check: |event, errors| check(event, "involvedObject", errors),
    fields: &[
        Field { label: "involvedObject.kind", value: |event| text(event, "/involvedObject/kind") },
        Field { label: "involvedObject.namespace", value: |event| text(event, "/involvedObject/namespace") },
        Field { label: "involvedObject.name", value: |event| text(event, "/involvedObject/name") },
        Field { label: "involvedObject.uid", value: |event| text(event, "/involvedObject/uid") },
        Field {
            label: "involvedObject.apiVersion",
            value: |event| text(event, "/involvedObject/apiVersion"),
        },
        Field {
            label: "involvedObject.resourceVersion",
            value: |event| text(event, "/involvedObject/resourceVersion"),
        },
        Field { label: "involvedObject.fieldPath", value: |event| text(event, "/involvedObject/fieldPath") },
        Field { label: "reason", value: |event| text(event, "/reason") },
        Field { label: "reportingComponent", value: |event| text(event, "/reportingComponent") },
        Field {
            label: "source",
            value: |event| component(event, "/source/component", "/reportingComponent"),
        },
        Field { label: "type", value: |event| text(event, "/type") },
    ],
    columns: COLUMNS,
    cells,
    ..BASE
};

pub(super) const NEW_EVENTS: Resource = Resource {
    group: "events.k8s.io",
    definition: "io.k8s.api.events.v1.Event",
    schema: |generator| generator.subschema_for::<k8s_openapi::api::events::v1::Event>(),
    check: |event, errors| {
        check(event, "regarding", errors);
        if text(event, "/note").len() > NOTE_LIMIT_BYTES {
            errors.invalid("note", Value::from(""), "can have at most 1024 characters");
        }
    },
    fields: &[
        Field { label: "regarding.kind", value: |event| text(event, "/regarding/kind") },
        Field { label: "regarding.namespace", value: |event| text(event, "/regarding/namespace") },
        Field { label: "regarding.name", value: |event| text(event, "/regarding/name") },
        Field { label: "regarding.uid", value: |event| text(event, "/regarding/uid") },
        Field { label: "regarding.apiVersion", value: |event| text(event, "/regarding/apiVersion") },
        Field {
            label: "regarding.resourceVersion",
            value: |event| text(event, "/regarding/resourceVersion"),
        },
        Field { label: "regarding.fieldPath", value: |event| text(event, "/regarding/fieldPath") },
        Field { label: "reason", value: |event| text(event, "/reason") },
        Field { label: "reportingController", value: |event| text(event, "/reportingController") },
        Field { label: "type", value: |event| text(event, "/type") },
    ],
    cells: |event, now| {
        let mut core = event.clone();
        rename(&mut core, NAMES.iter().map(|(core, new)| (*new, *core)), "v1");
        cells(&core, now)
    },
    storage_form: Some(StorageForm {
        to_storage: |event| rename(event, NAMES.iter().map(|(core, new)| (*new, *core)), "v1"),
        from_storage: |event| rename(event, NAMES.iter().copied(), "events.k8s.io/v1"),
    }),
    ..EVENTS
};

fn check(event: &Value, involved: &str, errors: &mut Errors) {
    let namespace = text(event, "/metadata/namespace");
    let involved_namespace = text(event, &format!("/{involved}/namespace"));
    let fits = if involved_namespace.is_empty() {
        // What has no namespace, as a node, is told of in one of these.
        namespace == "default" || namespace == "kube-system"
    } else {
        namespace == involved_namespace
    };
    if !fits {
        errors.invalid(format!("{involved}.namespace"), involved_namespace, "does not match event.namespace");
    }
    if text(event, "/eventTime").is_empty() {
        return;
    }
    // A time with microseconds marks the new kind of event, which has more that must be said (KEP-383).
    let controller = if involved == "regarding" { "reportingController" } else { "reportingComponent" };
    for field in [controller, "reportingInstance", "action", "reason"] {
        if text(event, &format!("/{field}")).is_empty() {
            errors.required(if field == "reportingComponent" { "reportingController" } else { field }, "");
        }
    }
    let kind = text(event, "/type");
    if kind != "Normal" && kind != "Warning" {
        errors.invalid("type", "", &format!("has invalid value: {kind}"));
    }
}

const COLUMNS: &[Column] = &[
    column("Last Seen", "string", 0),
    column("Type", "string", 0),
    column("Reason", "string", 0),
    column("Object", "string", 0),
    column("Subobject", "string", 1),
    column("Source", "string", 1),
    column("Message", "string", 0),
    column("First Seen", "string", 1),
    column("Count", "string", 1),
    Column { priority: 1, ..NAME },
];

fn cells(event: &Value, now: Timestamp) -> Vec<Value> {
    let since_first_of = |pointers: &[&str]| {
        let time = pointers.iter().find_map(|pointer| text(event, pointer).parse::<Timestamp>().ok());
        Value::from(
            time.map_or_else(|| "<unknown>".to_owned(), |time| human(now.as_second() - time.as_second())),
        )
    };
    let (kind, name) =
        (text(event, "/involvedObject/kind").to_lowercase(), text(event, "/involvedObject/name"));
    let object = if name.is_empty() { kind } else { format!("{kind}/{name}") };
    let source = component(event, "/source/component", "/reportingComponent");
    let host = component(event, "/source/host", "/reportingInstance");
    let source = if host.is_empty() { source } else { format!("{source}, {host}") };
    let count = event
        .pointer("/series/count")
        .or_else(|| event.get("count"))
        .and_then(Value::as_i64)
        .unwrap_or(1)
        .max(1);
    vec![
        since_first_of(&["/series/lastObservedTime", "/lastTimestamp", "/firstTimestamp", "/eventTime"]),
        text_or(event, "/type", ""),
        text_or(event, "/reason", ""),
        Value::from(object),
        text_or(event, "/involvedObject/fieldPath", ""),
        Value::from(source),
        Value::from(text(event, "/message").trim()),
        since_first_of(&["/firstTimestamp", "/eventTime"]),
        Value::from(count),
        Value::from(text(event, "/metadata/name")),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn both_groups_are_the_same_events() {
        let core = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e", "namespace": "a"},
            "involvedObject": {"kind": "Pod", "name": "p", "namespace": "a"}, "reason": "Started", "message": "m", "type": "Normal",
            "source": {"component": "kubelet", "host": "n"}, "count": 2, "lastTimestamp": "2026-01-01T00:00:00Z"});
        let view = crate::find("events.k8s.io", "v1", "events").expect("in the table");
        let row = crate::find("", "v1", "events").expect("in the table");
        let mut event = core.clone();
        view.from_storage(&mut event);
        assert_eq!(event["apiVersion"], "events.k8s.io/v1");
        assert_eq!(event["regarding"]["name"], "p");
        assert_eq!(event["note"], "m");
        assert_eq!(event["deprecatedCount"], 2);
        assert_eq!(crate::schema::unknown_fields(view, &event), Vec::<String>::new());
        assert!(view.validate(&event, None, None).is_empty());
        let now = "2026-01-01T00:01:00Z".parse().expect("a time");
        assert_eq!(view.table_cells(&event, now), row.table_cells(&core, now));
        assert_eq!(
            row.table_cells(&core, now)[..4],
            [json!("60s"), json!("Normal"), json!("Started"), json!("pod/p")]
        );
        view.to_storage(&mut event);
        assert_eq!(event, core);
        assert_eq!(view.storage, row.storage);
    }

    #[test]
    fn new_events_say_more() {
        let event = json!({"metadata": {"name": "e", "namespace": "a"}, "regarding": {"namespace": "b"}, "eventTime": "2026-01-01T00:00:00.000000Z"});
        let view = crate::find("events.k8s.io", "v1", "events").expect("in the table");
        let fields: Vec<String> =
            view.validate(&event, None, None).into_iter().map(|error| error.field).collect();
        assert_eq!(
            fields,
            ["regarding.namespace", "reportingController", "reportingInstance", "action", "reason", "type"]
        );
    }
}
