//! The operations of the API, derived from the table: what both OpenAPI versions describe as paths.

use serde_json::{Value, json};

use super::definitions;
use crate::resource::{Resource, Subresource};

/// One method at one path.
pub(super) struct Operation {
    pub(super) method: &'static str,
    pub(super) action: &'static str,
    pub(super) id: String,
    pub(super) description: String,
    /// (group, version, kind)
    pub(super) kind: (&'static str, &'static str, &'static str),
    /// Definition of the body, if there is one.
    pub(super) body: Option<String>,
    /// Definition of the answer; none is a plain string.
    pub(super) answer: Option<String>,
    pub(super) consumes: &'static [&'static str],
    pub(super) query: &'static [Query],
    pub(super) tag: String,
}

/// A query parameter.
pub(super) struct Query {
    pub(super) name: &'static str,
    pub(super) kind: &'static str,
    pub(super) description: &'static str,
}

/// One path.
pub(super) struct Path {
    pub(super) path: String,
    pub(super) namespaced: bool,
    pub(super) named: bool,
    pub(super) operations: Vec<Operation>,
}

const fn query(name: &'static str, kind: &'static str, description: &'static str) -> Query {
    Query { name, kind, description }
}

const DRY_RUN: Query = query(
    "dryRun",
    "string",
    "When present, indicates that modifications should not be persisted. Valid values are: - All: all dry run stages will be processed",
);
const FIELD_MANAGER: Query = query(
    "fieldManager",
    "string",
    "fieldManager is a name associated with the actor or entity that is making these changes.",
);
const FIELD_VALIDATION: Query = query(
    "fieldValidation",
    "string",
    "fieldValidation instructs the server on how to handle objects in the request containing unknown or duplicate fields. Valid values are: Ignore, Warn, Strict.",
);
static WRITE: &[Query] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION];
static PATCH: &[Query] = &[
    DRY_RUN,
    FIELD_MANAGER,
    FIELD_VALIDATION,
    query("force", "boolean", "Force is going to \"force\" Apply requests."),
];
static LIST: &[Query] = &[
    query(
        "allowWatchBookmarks",
        "boolean",
        "allowWatchBookmarks requests watch events with type \"BOOKMARK\".",
    ),
    query(
        "continue",
        "string",
        "The continue option should be set when retrieving more results from the server.",
    ),
    query(
        "fieldSelector",
        "string",
        "A selector to restrict the list of returned objects by their fields. Defaults to everything.",
    ),
    query(
        "labelSelector",
        "string",
        "A selector to restrict the list of returned objects by their labels. Defaults to everything.",
    ),
    query("limit", "integer", "limit is a maximum number of responses to return for a list call."),
    query(
        "resourceVersion",
        "string",
        "resourceVersion sets a constraint on what resource versions a request may be served from.",
    ),
    query(
        "resourceVersionMatch",
        "string",
        "resourceVersionMatch determines how resourceVersion is applied to list calls.",
    ),
    query("sendInitialEvents", "boolean", "`sendInitialEvents=true` may be set together with `watch=true`."),
    query("timeoutSeconds", "integer", "Timeout for the list/watch call."),
    query(
        "watch",
        "boolean",
        "Watch for changes to the described resources and return them as a stream of add, update, and remove notifications.",
    ),
];
static DELETE: &[Query] = &[
    DRY_RUN,
    query("gracePeriodSeconds", "integer", "The duration in seconds before the object should be deleted."),
    query("orphanDependents", "boolean", "Deprecated: please use the PropagationPolicy."),
    query("propagationPolicy", "string", "Whether and how garbage collection will be performed."),
];
static DELETE_COLLECTION: &[Query] = &[
    query(
        "continue",
        "string",
        "The continue option should be set when retrieving more results from the server.",
    ),
    DRY_RUN,
    query(
        "fieldSelector",
        "string",
        "A selector to restrict the list of returned objects by their fields. Defaults to everything.",
    ),
    query("gracePeriodSeconds", "integer", "The duration in seconds before the object should be deleted."),
    query(
        "labelSelector",
        "string",
        "A selector to restrict the list of returned objects by their labels. Defaults to everything.",
    ),
    query("limit", "integer", "limit is a maximum number of responses to return for a list call."),
    query("propagationPolicy", "string", "Whether and how garbage collection will be performed."),
    query(
        "resourceVersion",
        "string",
        "resourceVersion sets a constraint on what resource versions a request may be served from.",
    ),
];

static JSON: &[&str] = &["application/json", "application/yaml"];
static PATCHES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// Every path of these rows.
pub(super) fn paths<'a>(
    rows: impl Iterator<Item = &'static Resource> + 'a,
) -> impl Iterator<Item = Path> + 'a {
    rows.flat_map(row_paths)
}

/// `/api/v1` or `/apis/GROUP/VERSION`.
pub(super) fn base_path(row: &Resource) -> String {
    if row.group.is_empty() {
        format!("/api/{}", row.version)
    } else {
        format!("/apis/{}/{}", row.group, row.version)
    }
}

/// The group version extension of an operation.
pub(super) fn kind_extension(operation: &Operation) -> Value {
    let (group, version, kind) = operation.kind;
    json!({"group": group, "version": version, "kind": kind})
}

fn row_paths(row: &'static Resource) -> Vec<Path> {
    let base = base_path(row);
    let mut paths = Vec::new();
    let scope = if row.namespaced { "/namespaces/{namespace}" } else { "" };
    let collection = format!("{base}{scope}/{}", row.plural);
    if row.namespaced && row.verbs.contains(&"list") {
        let mut everywhere = operation(row, "list", "get", None);
        everywhere.id = format!("list{}{}ForAllNamespaces", tag(row), row.kind);
        paths.push(Path {
            path: format!("{base}/{}", row.plural),
            namespaced: false,
            named: false,
            operations: vec![everywhere],
        });
    }
    let on_collection = select(
        row,
        &[
            ("list", "list", "get"),
            ("create", "post", "post"),
            ("deletecollection", "deletecollection", "delete"),
        ],
    );
    if !on_collection.is_empty() {
        paths.push(Path {
            path: collection.clone(),
            namespaced: row.namespaced,
            named: false,
            operations: on_collection,
        });
    }
    let on_object = select(
        row,
        &[
            ("get", "get", "get"),
            ("update", "put", "put"),
            ("patch", "patch", "patch"),
            ("delete", "delete", "delete"),
        ],
    );
    if !on_object.is_empty() {
        paths.push(Path {
            path: format!("{collection}/{{name}}"),
            namespaced: row.namespaced,
            named: true,
            operations: on_object,
        });
    }
    for subresource in row.subresources {
        let operations = subresource_operations(row, subresource);
        let path = format!("{collection}/{{name}}/{}", subresource.name);
        paths.push(Path { path, namespaced: row.namespaced, named: true, operations });
    }
    paths
}

fn select(row: &'static Resource, choices: &[(&str, &'static str, &'static str)]) -> Vec<Operation> {
    choices
        .iter()
        .filter(|(verb, _, _)| row.verbs.contains(verb))
        .map(|(_, action, method)| operation(row, action, method, None))
        .collect()
}

fn subresource_operations(row: &'static Resource, subresource: &'static Subresource) -> Vec<Operation> {
    let connects = subresource.kind.ends_with("Options");
    let mut operations = Vec::new();
    for (verb, action, method) in [
        ("get", "get", "get"),
        ("create", "post", "post"),
        ("update", "put", "put"),
        ("patch", "patch", "patch"),
    ] {
        if subresource.verbs.contains(&verb) {
            let action = if connects { "connect" } else { action };
            operations.push(operation(row, action, method, Some(subresource)));
        }
    }
    operations
}

fn operation(
    row: &'static Resource,
    action: &'static str,
    method: &'static str,
    subresource: Option<&'static Subresource>,
) -> Operation {
    let definition = match subresource {
        None => Some(row.definition.to_owned()),
        Some(subresource) if subresource.kind == row.kind => Some(row.definition.to_owned()),
        Some(subresource) => {
            definitions::of_kind(subresource.group, subresource.version, subresource.kind).map(str::to_owned)
        }
    };
    let kind = subresource
        .map_or((row.group, row.version, row.kind), |found| (found.group, found.version, found.kind));
    let meta = definitions::META;
    let (body, answer, query, consumes): (
        Option<String>,
        Option<String>,
        &'static [Query],
        &'static [&'static str],
    ) = match action {
        "list" => (None, Some(definitions::list_name(row)), LIST, &[]),
        "post" | "put" => (definition.clone(), definition, WRITE, JSON),
        "patch" => (Some(format!("{meta}.Patch")), definition, PATCH, PATCHES),
        "delete" | "deletecollection" => {
            let query = if action == "delete" { DELETE } else { DELETE_COLLECTION };
            (Some(format!("{meta}.DeleteOptions")), Some(format!("{meta}.Status")), query, JSON)
        }
        _ => (None, definition, &[], &[]),
    };
    Operation {
        method,
        action,
        id: operation_id(row, action, method, subresource),
        description: format!(
            "{action} {} of the specified {}",
            subresource.map_or("objects", |found| found.name),
            row.kind
        ),
        kind,
        body,
        answer,
        consumes,
        query,
        tag: tag(row),
    }
}

/// `CoreV1`, `DiscoveryV1`.
fn tag(row: &Resource) -> String {
    let group = if row.group.is_empty() { "core" } else { row.group.split('.').next().unwrap_or_default() };
    format!("{}{}", capital(group), capital(row.version))
}

fn operation_id(row: &Resource, action: &str, method: &str, subresource: Option<&Subresource>) -> String {
    let verb = match action {
        "post" => "create".to_owned(),
        "get" => "read".to_owned(),
        "put" => "replace".to_owned(),
        "connect" => format!("connect{}", capital(method)),
        other => other.to_owned(),
    };
    let verb = if verb == "deletecollection" { "deleteCollection".to_owned() } else { verb };
    let scope = if row.namespaced { "Namespaced" } else { "" };
    let part = subresource.map_or(String::new(), |found| capital(found.name));
    format!("{verb}{}{scope}{}{part}", tag(row), row.kind)
}

fn capital(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or(String::new(), |first| first.to_uppercase().chain(characters).collect())
}
