use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;
use crate::{find, resources};

fn row(plural: &str) -> &'static Resource {
    find("", "v1", plural).expect("in the table")
}

#[test]
fn unknown_fields_have_paths() {
    let pod = json!({"kind": "Pod", "apiVersion": "v1", "foo": 1, "metadata": {"name": "a", "labels": {"any": "x"}, "nmae": "b"},
        "spec": {"containers": [{"name": "c"}, {"name": "d", "img": "x", "resources": {"limits": {"any": "1"}}}], "volumes": [{"name": "v", "secret": {"x": {}}}]}});
    assert_eq!(
        unknown_fields(row("pods"), &pod),
        ["foo", "metadata.nmae", "spec.containers[1].img", "spec.volumes[0].secret.x"]
    );
}

#[test]
fn wrong_types_are_described_as_upstream_does() {
    let table = [
        (
            json!({"spec": {"replicas": "2"}}),
            "json: cannot unmarshal string into Go struct field ReplicationControllerSpec.spec.replicas of type int32",
        ),
        (
            json!({"spec": {"replicas": 1.5}}),
            "json: cannot unmarshal number 1.5 into Go struct field ReplicationControllerSpec.spec.replicas of type int32",
        ),
        (
            json!({"spec": []}),
            "json: cannot unmarshal array into Go struct field ReplicationController.spec of type v1.ReplicationControllerSpec",
        ),
        (
            json!({"metadata": {"labels": {"a": 1}}}),
            "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
        ),
        (
            json!({"metadata": {"creationTimestamp": "noon"}}),
            "parsing time \"noon\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"noon\" as \"2006\"",
        ),
        (
            json!({"spec": {"template": {"spec": {"containers": [{"resources": {"limits": {"cpu": "lots"}}}]}}}}),
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
        (
            json!({"spec": {"template": {"spec": {"containers": [{"ports": [{"containerPort": "80"}]}]}}}}),
            "json: cannot unmarshal string into Go struct field ContainerPort.spec.template.spec.containers.ports.containerPort of type int32",
        ),
        (json!([1]), "json: cannot unmarshal array into Go value of type v1.ReplicationController"),
    ];
    for (object, wanted) in table {
        assert_eq!(type_errors(row("replicationcontrollers"), &object).as_deref(), Some(wanted));
    }
    let fine = json!({"metadata": {"labels": null, "creationTimestamp": null}, "spec": {"replicas": 3, "unknown": {}}});
    assert_eq!(type_errors(row("replicationcontrollers"), &fine), None);
    assert_eq!(
        type_errors(row("secrets"), &json!({"data": {"a": "!"}})).as_deref(),
        Some("illegal base64 data at input byte 0")
    );
}

#[test]
fn normal_form_is_what_a_typed_decoder_keeps() {
    let mut pod = json!({"metadata": {"name": "a", "labels": {}, "creationTimestamp": null, "x": 1},
        "spec": {"containers": [{"name": "c", "args": [], "env": [{"name": "E", "value": ""}], "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}}}],
                 "volumes": [{"name": "v", "emptyDir": {}}], "securityContext": {}}});
    normalize(row("pods"), &mut pod);
    assert_eq!(
        pod,
        json!({"metadata": {"name": "a"},
            "spec": {"containers": [{"name": "c", "env": [{"name": "E", "value": ""}], "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}}}],
                     "volumes": [{"name": "v", "emptyDir": {}}], "securityContext": {}}})
    );
}

fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(target)) = map.get("$ref") {
                found.insert(target.clone());
            }
            map.values().for_each(|value| references(value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

#[test]
fn version_two_is_closed_and_marked() {
    let document: Value = serde_json::from_slice(openapi_v2()).expect("is JSON");
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    for target in &found {
        assert!(document.pointer(&target[1..].replace('~', "~0")).is_some(), "{target}");
    }
    let containers = &document["definitions"]["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
    for row in resources() {
        let kind = &document["definitions"][row.definition]["x-kubernetes-group-version-kind"][0]["kind"];
        assert_eq!(kind, row.kind, "{}", row.definition);
        if row.verbs.contains(&"patch") {
            let marked = document["paths"].as_object().expect("paths").values().any(|path| {
                path.pointer("/patch/x-kubernetes-group-version-kind/kind") == Some(&json!(row.kind))
                    && path.pointer("/patch/parameters").and_then(Value::as_array).is_some_and(|list| {
                        ["fieldValidation", "dryRun"]
                            .iter()
                            .all(|name| list.iter().any(|one| one["name"] == *name))
                    })
            });
            assert!(marked, "{}", row.kind);
        }
    }
}

#[test]
fn version_three_is_closed_for_each_group() {
    let index = openapi_v3_index();
    let paths = index["paths"].as_object().expect("paths");
    assert!(paths.contains_key("api/v1") && paths.contains_key("apis/discovery.k8s.io/v1"));
    for path in paths.keys() {
        let document: Value = serde_json::from_slice(&openapi_v3(path).expect("is there")).expect("is JSON");
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        assert!(!found.is_empty());
        for target in &found {
            assert!(document.pointer(&target[1..]).is_some(), "{path} {target}");
        }
    }
    assert_eq!(openapi_v3("apis/none/v1"), None);
    assert_eq!(index, openapi_v3_index(), "the hash is stable");
}

#[test]
fn times_are_stored_in_upstreams_forms() {
    for (given, second, micro) in [
        ("2026-01-01T00:00:00+00:00", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00.000000Z"),
        ("2026-01-01T02:00:00.1234567+02:00", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00.123456Z"),
    ] {
        let mut lease = json!({"metadata": {"creationTimestamp": given}, "spec": {"renewTime": given}});
        normalize(find("coordination.k8s.io", "v1", "leases").expect("in the table"), &mut lease);
        assert_eq!(lease, json!({"metadata": {"creationTimestamp": second}, "spec": {"renewTime": micro}}));
    }
}
