//! Discovery documents, legacy and aggregated, derived from the table.

use serde_json::{Map, Value, json};

use crate::resource::{Resource, Subresource};
use crate::rows::resources;

/// `/api`: the core group's versions.
pub fn api_versions(server_address: &str) -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"],
           "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}]})
}

/// `/apis`.
pub fn group_list() -> Value {
    let groups: Vec<Value> =
        group_names().into_iter().filter(|name| !name.is_empty()).map(group_body).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/GROUP`.
pub fn group(name: &str) -> Option<Value> {
    if name.is_empty() || !group_names().contains(&name) {
        return None;
    }
    let mut body = Map::new();
    body.insert("kind".to_owned(), json!("APIGroup"));
    body.insert("apiVersion".to_owned(), json!("v1"));
    if let Value::Object(group) = group_body(name) {
        body.extend(group);
    }
    Some(Value::Object(body))
}

/// `/api/v1` and `/apis/GROUP/VERSION`.
pub fn resource_list(group: &str, version: &str) -> Option<Value> {
    let rows: Vec<&Resource> = rows_of(group, version).collect();
    if rows.is_empty() {
        return None;
    }
    let mut entries = Vec::new();
    for row in rows {
        // A kind with only subresources (none today) or only create (bindings) is listed all the same, as upstream does.
        entries.push(entry(row));
        entries.extend(row.subresources.iter().map(|subresource| subresource_entry(row, subresource)));
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    Some(
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": entries}),
    )
}

/// `/api` or `/apis` as an `apidiscovery.k8s.io/v2` list.
pub fn aggregated(core: bool) -> Value {
    let items: Vec<Value> = group_names()
        .into_iter()
        .filter(|name| name.is_empty() == core)
        .map(|name| {
            let versions: Vec<Value> =
                versions_of(name).into_iter().map(|version| aggregated_version(name, version)).collect();
            let metadata = if name.is_empty() {
                json!({"creationTimestamp": null})
            } else {
                json!({"name": name, "creationTimestamp": null})
            };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

/// The groups served, the core group (empty) first.
pub fn group_names() -> Vec<&'static str> {
    let mut names: Vec<&'static str> = Vec::new();
    for row in resources() {
        if !names.contains(&row.group) {
            names.push(row.group);
        }
    }
    names
}

/// The versions served of a group, the preferred one first.
pub fn versions_of(group: &str) -> Vec<&'static str> {
    let mut versions: Vec<&'static str> = Vec::new();
    for row in resources().iter().filter(|row| row.group == group) {
        if !versions.contains(&row.version) {
            versions.push(row.version);
        }
    }
    versions
}

fn rows_of(group: &str, version: &str) -> impl Iterator<Item = &'static Resource> {
    resources().iter().filter(move |row| row.group == group && row.version == version)
}

fn group_body(name: &str) -> Value {
    let versions: Vec<Value> = versions_of(name)
        .into_iter()
        .map(|version| json!({"groupVersion": format!("{name}/{version}"), "version": version}))
        .collect();
    let preferred = versions.first().cloned().unwrap_or(Value::Null);
    json!({"name": name, "versions": versions, "preferredVersion": preferred})
}

fn entry(row: &Resource) -> Value {
    let mut entry = json!({"name": row.plural, "singularName": row.singular, "namespaced": row.namespaced,
                           "kind": row.kind, "verbs": row.verbs});
    if !row.short_names.is_empty() {
        entry["shortNames"] = json!(row.short_names);
    }
    if !row.categories.is_empty() {
        entry["categories"] = json!(row.categories);
    }
    entry
}

fn subresource_entry(row: &Resource, subresource: &Subresource) -> Value {
    let mut entry = json!({"name": format!("{}/{}", row.plural, subresource.name), "singularName": "",
                           "namespaced": row.namespaced});
    if (subresource.group, subresource.version) != (row.group, row.version) {
        entry["group"] = json!(subresource.group);
        entry["version"] = json!(subresource.version);
    }
    entry["kind"] = json!(subresource.kind);
    entry["verbs"] = json!(subresource.verbs);
    entry
}

fn aggregated_version(group: &str, version: &str) -> Value {
    let resources: Vec<Value> = rows_of(group, version).map(aggregated_resource).collect();
    json!({"version": version, "resources": resources, "freshness": "Current"})
}

fn aggregated_resource(row: &Resource) -> Value {
    let mut resource = json!({"resource": row.plural,
        "responseKind": {"group": row.group, "version": row.version, "kind": row.kind},
        "scope": if row.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": row.singular, "verbs": row.verbs});
    if !row.short_names.is_empty() {
        resource["shortNames"] = json!(row.short_names);
    }
    if !row.categories.is_empty() {
        resource["categories"] = json!(row.categories);
    }
    if !row.subresources.is_empty() {
        let subresources = row.subresources.iter().map(|subresource| {
            json!({"subresource": subresource.name,
                   "responseKind": {"group": subresource.group, "version": subresource.version, "kind": subresource.kind},
                   "verbs": subresource.verbs})
        });
        resource["subresources"] = Value::Array(subresources.collect());
    }
    resource
}
