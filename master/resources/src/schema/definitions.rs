//! Upstream's named definitions, from k8s-openapi's types.

use k8s_openapi::api::{authentication, autoscaling, core, policy};
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use k8s_openapi::apimachinery::pkg::version;
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::merge_facts;
use crate::resource::Resource;

pub(crate) const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
pub(crate) const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
pub(crate) const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
pub(crate) const REF: &str = "#/definitions/";

/// Kinds of subresources and options, by definition.
static OTHER_KINDS: &[(&str, &str, &str, &str)] = &[
    ("io.k8s.api.autoscaling.v1.Scale", "autoscaling", "v1", "Scale"),
    ("io.k8s.api.policy.v1.Eviction", "policy", "v1", "Eviction"),
    ("io.k8s.api.authentication.v1.TokenRequest", "authentication.k8s.io", "v1", "TokenRequest"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.Status", "", "v1", "Status"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.APIGroup", "", "v1", "APIGroup"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.APIGroupList", "", "v1", "APIGroupList"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.APIResourceList", "", "v1", "APIResourceList"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.APIVersions", "", "v1", "APIVersions"),
];

/// The definition of a subresource's kind, if it has a schema.
pub(crate) fn of_kind(group: &str, version: &str, kind: &str) -> Option<&'static str> {
    let other = OTHER_KINDS
        .iter()
        .find(|(_, g, v, k)| *g == group && *v == version && *k == kind)
        .map(|found| found.0);
    other.or_else(|| crate::rows::by_kind(group, version, kind).map(|row| row.definition))
}

/// The definitions that these rows reach, by name, as OpenAPI v2 writes them.
pub(crate) fn generate<'a>(rows: impl Iterator<Item = &'a Resource>) -> Vec<(String, Value)> {
    let mut generator = SchemaSettings::draft07()
        .with(|settings| settings.definitions_path = "/definitions".into())
        .into_generator();
    let mut lists = Vec::new();
    let mut kinds: Vec<(&str, &str, &str, &str)> = OTHER_KINDS.to_vec();
    for row in rows {
        (row.schema)(&mut generator);
        kinds.push((row.definition, row.group, row.version, row.kind));
        for subresource in row.subresources {
            subresource_schema(&mut generator, subresource.kind);
        }
        if !row.list_kind.is_empty() {
            lists.push((list_name(row), list_definition(row)));
        }
    }
    machinery(&mut generator);
    let mut definitions: Vec<(String, Value)> = generator.take_definitions(false).into_iter().collect();
    for (name, definition) in &mut definitions {
        finish(name, definition);
        if let Some((_, group, version, kind)) = kinds.iter().find(|found| found.0 == name) {
            definition["x-kubernetes-group-version-kind"] =
                json!([{"group": group, "version": version, "kind": kind}]);
        }
    }
    definitions.extend(lists);
    definitions.sort_by(|left, right| left.0.cmp(&right.0));
    definitions
}

/// Definition name of a row's list.
pub(crate) fn list_name(row: &Resource) -> String {
    format!("{}List", row.definition)
}

fn machinery(generator: &mut SchemaGenerator) {
    generator.subschema_for::<meta::DeleteOptions>();
    generator.subschema_for::<meta::Status>();
    generator.subschema_for::<meta::ListMeta>();
    generator.subschema_for::<meta::Patch>();
    generator.subschema_for::<meta::APIGroup>();
    generator.subschema_for::<meta::APIGroupList>();
    generator.subschema_for::<meta::APIResourceList>();
    generator.subschema_for::<meta::APIVersions>();
    generator.subschema_for::<version::Info>();
}

fn subresource_schema(generator: &mut SchemaGenerator, kind: &str) {
    match kind {
        "Scale" => drop(generator.subschema_for::<autoscaling::v1::Scale>()),
        "Eviction" => drop(generator.subschema_for::<policy::v1::Eviction>()),
        "TokenRequest" => drop(generator.subschema_for::<authentication::v1::TokenRequest>()),
        "Binding" => drop(generator.subschema_for::<core::v1::Binding>()),
        _ => {}
    }
}

fn list_definition(row: &Resource) -> Value {
    json!({
        "description": format!("{} is a list of {} objects.", row.list_kind, row.kind),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"description": "APIVersion defines the versioned schema of this representation of an object.", "type": "string"},
            "items": {"description": format!("The list of {}.", row.plural), "type": "array",
                      "items": {"$ref": format!("{REF}{}", row.definition)}},
            "kind": {"description": "Kind is a string value representing the REST resource this object represents.", "type": "string"},
            "metadata": {"description": "Standard list metadata.", "$ref": format!("{REF}{META}.ListMeta")},
        },
        "x-kubernetes-group-version-kind": [{"group": row.group, "version": row.version, "kind": row.list_kind}],
    })
}

fn finish(name: &str, definition: &mut Value) {
    let Some(map) = definition.as_object_mut() else {
        return;
    };
    if map.shift_remove("x-kubernetes-int-or-string").is_some() {
        map.insert("type".to_owned(), json!("string"));
        if name == INT_OR_STRING {
            map.insert("format".to_owned(), json!("int-or-string"));
        }
        return;
    }
    if merge_facts::is_atomic_object(name) {
        map.insert("x-kubernetes-map-type".to_owned(), json!("atomic"));
    }
    let Some(properties) = map.get_mut("properties").and_then(Value::as_object_mut) else {
        return;
    };
    for (field, schema) in properties {
        if let Some(schema) = schema.as_object_mut() {
            add_merge_facts(name, field, schema);
        }
    }
}

fn add_merge_facts(definition: &str, field: &str, schema: &mut Map<String, Value>) {
    if merge_facts::is_atomic_map(definition, field) {
        schema.insert("x-kubernetes-map-type".to_owned(), json!("atomic"));
        return;
    }
    if schema.get("type") != Some(&json!("array")) {
        return;
    }
    let Some(fact) = merge_facts::list(definition, field) else {
        schema.insert("x-kubernetes-list-type".to_owned(), json!("atomic"));
        return;
    };
    if fact.map_keys.is_empty() {
        schema.insert("x-kubernetes-list-type".to_owned(), json!("set"));
    } else {
        schema.insert("x-kubernetes-list-type".to_owned(), json!("map"));
        schema.insert("x-kubernetes-list-map-keys".to_owned(), json!(fact.map_keys));
    }
    if !fact.merge_key.is_empty() {
        schema.insert("x-kubernetes-patch-merge-key".to_owned(), json!(fact.merge_key));
    }
    let strategy = if fact.retain_keys { "merge,retainKeys" } else { "merge" };
    schema.insert("x-kubernetes-patch-strategy".to_owned(), json!(strategy));
}
