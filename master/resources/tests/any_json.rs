//! Whatever JSON arrives, nothing panics, and defaults are filled in once.

use orlop_resources::{Resource, patch, resources, schema, selector};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// Names that occur in objects, so that random JSON gets past the first level.
const KEYS: &[&str] = &[
    "metadata",
    "name",
    "namespace",
    "labels",
    "annotations",
    "finalizers",
    "ownerReferences",
    "spec",
    "status",
    "data",
    "stringData",
    "containers",
    "initContainers",
    "template",
    "selector",
    "ports",
    "port",
    "targetPort",
    "nodePort",
    "clusterIP",
    "type",
    "image",
    "volumes",
    "volumeMounts",
    "env",
    "valueFrom",
    "resources",
    "limits",
    "requests",
    "cpu",
    "livenessProbe",
    "httpGet",
    "exec",
    "tolerations",
    "subsets",
    "addresses",
    "endpoints",
    "conditions",
    "containerStatuses",
    "state",
    "terminated",
    "waiting",
    "replicas",
    "items",
    "involvedObject",
    "count",
    "series",
    "taints",
    "$patch",
    "$retainKeys",
    "$setElementOrder/containers",
];

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        "[a-zA-Z0-9./:$-]{0,12}".prop_map(Value::from),
        Just(json!("2026-01-01T00:00:00Z")),
        Just(json!("None")),
        ".{0,4}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::vec((prop::sample::select(KEYS), inner), 0..6).prop_map(|members| {
                Value::Object(
                    members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<Map<_, _>>(),
                )
            }),
        ]
    })
}

fn exercise(row: &Resource, object: &Value, other: &Value) {
    let now = "2026-01-02T00:00:00Z".parse().expect("a time");
    schema::unknown_fields(row, object);
    let well_typed = schema::type_errors(row, object).is_none();
    let mut filled = object.clone();
    row.default(&mut filled);
    let once = filled.clone();
    row.default(&mut filled);
    if well_typed {
        assert_eq!(filled, once, "defaults of {} are filled in once", row.kind);
        assert_eq!(schema::unknown_fields(row, &filled), Vec::<String>::new());
    }
    row.prepare_create(&mut filled);
    row.validate(&filled, None, None);
    for subresource in [None, Some("status"), Some("finalize")] {
        let mut new = other.clone();
        row.prepare_update(&mut new, &filled, subresource);
        row.validate(&new, Some(&filled), subresource);
    }
    assert_eq!(
        row.table_cells(object, now).len(),
        row.table_columns().as_array().map_or(0, Vec::len).max(1),
        "{}",
        row.kind
    );
    row.selectable_fields(object);
    let mut stored = object.clone();
    row.to_storage(&mut stored);
    row.from_storage(&mut stored);
    let _ = patch::strategic(row, object, other);
    let _ = selector::LabelSelector::from_object(object);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn no_object_makes_a_row_panic(object in any_json(), other in any_json()) {
        for row in resources() {
            exercise(row, &object, &other);
        }
    }

    #[test]
    fn no_text_makes_a_parser_panic(text in "[a-z=!(),<>\\\\ \"{}:.\\[\\]0-9é]{0,40}") {
        let _ = selector::LabelSelector::parse(&text);
        let _ = selector::FieldSelector::parse(&text);
        let _ = schema::decode_json(text.as_bytes());
    }
}
