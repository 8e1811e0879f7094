//! One kind of object: the row and what is derived from it.

use jiff::Timestamp;
use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::fields::{Errors, FieldError};
use crate::rows::metadata;

/// One kind of the API.
pub struct Resource {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// API version within the group, as `v1`.
    pub version: &'static str,
    /// Kind, as `Pod`.
    pub kind: &'static str,
    /// Kind of the list, as `PodList`; empty for kinds that cannot be listed.
    pub list_kind: &'static str,
    /// Path segment, as `pods`.
    pub plural: &'static str,
    /// Lower case singular, as `pod`.
    pub singular: &'static str,
    /// Abbreviations clients accept.
    pub short_names: &'static [&'static str],
    /// Groupings clients accept, as `all`.
    pub categories: &'static [&'static str],
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Verbs on the objects themselves.
    pub verbs: &'static [&'static str],
    /// Further endpoints below an object.
    pub subresources: &'static [Subresource],
    /// Key prefix in the store. Rows that are views of the same objects share it; empty for kinds that are answered, not stored.
    pub storage: &'static str,
    pub(crate) definition: &'static str,
    pub(crate) schema: fn(&mut SchemaGenerator) -> Schema,
    pub(crate) status: StatusRule,
    pub(crate) generation: bool,
    pub(crate) name: NameRule,
    pub(crate) defaults: fn(&mut Value),
    pub(crate) create: fn(&mut Value),
    pub(crate) update: fn(&mut Value, &Value, Option<&str>),
    pub(crate) check: fn(&Value, &mut Errors),
    pub(crate) check_update: fn(&Value, &Value, Option<&str>, &mut Errors),
    pub(crate) fields: &'static [Field],
    pub(crate) columns: &'static [Column],
    pub(crate) cells: fn(&Value, Timestamp) -> Vec<Value>,
    pub(crate) storage_form: Option<StorageForm>,
}

/// An endpoint below an object.
pub struct Subresource {
    /// Path segment, as `status`.
    pub name: &'static str,
    /// Group of the kind it takes and gives.
    pub group: &'static str,
    /// Version of that kind.
    pub version: &'static str,
    /// The kind itself.
    pub kind: &'static str,
    /// Verbs on it.
    pub verbs: &'static [&'static str],
}

/// How a view's objects are stored: the way there, and the way back.
pub(crate) struct StorageForm {
    pub(crate) to_storage: fn(&mut Value),
    pub(crate) from_storage: fn(&mut Value),
}

/// What happens to `status` outside of the status subresource.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum StatusRule {
    /// The kind has no status.
    None,
    /// Cleared on create, kept on update; written only through the subresource.
    Isolated,
}

/// Which grammar `metadata.name` follows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum NameRule {
    /// RFC 1123 subdomain.
    Subdomain,
    /// RFC 1123 label.
    Label,
    /// RFC 1035 label: a Service's name is a part of host names that must not begin with a digit.
    ServiceLabel,
    /// The kind has no name of its own (reviews).
    Free,
}

/// A field clients may select on.
pub(crate) struct Field {
    pub(crate) label: &'static str,
    pub(crate) value: fn(&Value) -> String,
}

/// A printed column (`metav1.TableColumnDefinition`).
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) format: &'static str,
    pub(crate) description: &'static str,
    pub(crate) priority: u8,
}

impl Resource {
    /// `v1` or `group/version`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `pods` or `endpointslices.discovery.k8s.io`, as error texts name it.
    pub fn group_resource(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// The subresource of this name.
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|subresource| subresource.name == name)
    }

    /// Brings an object into the form upstream's decoder gives it (see `schema::normalize`) and fills in upstream's v1 defaults.
    /// Idempotent. Unknown fields go, so whoever reports them looks before.
    pub fn default(&self, object: &mut Value) {
        if object.is_object() {
            crate::schema::normalize(self, object);
            (self.defaults)(object);
        }
    }

    /// What the server owns is reset: status, generation.
    pub fn prepare_create(&self, object: &mut Value) {
        let Some(map) = object.as_object_mut() else { return };
        if self.status == StatusRule::Isolated {
            map.insert("status".to_owned(), json!({}));
        }
        if self.generation {
            metadata_of(map).insert("generation".to_owned(), json!(1));
        }
        (self.create)(object);
    }

    /// Status isolation in both directions, and the generation.
    ///
    /// `subresource` is the endpoint the update came through. What `metadata` the server owns (uid, creationTimestamp, …) is the
    /// caller's.
    pub fn prepare_update(&self, new: &mut Value, old: &Value, subresource: Option<&str>) {
        if !new.is_object() {
            return;
        }
        if self.status == StatusRule::Isolated {
            isolate_status(new, old, subresource);
        }
        (self.update)(new, old, subresource);
        if self.generation {
            self.bump_generation(new, old);
        }
    }

    fn bump_generation(&self, new: &mut Value, old: &Value) {
        let generation = old.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(1);
        let deletion_began = new.pointer("/metadata/deletionTimestamp").is_some()
            && old.pointer("/metadata/deletionTimestamp").is_none();
        let changed = desired(new) != desired(old) || deletion_began;
        if let Some(map) = new.as_object_mut() {
            metadata_of(map)
                .insert("generation".to_owned(), json!(if changed { generation + 1 } else { generation }));
        }
    }

    /// Everything wrong with an object; with `old`, also what an update may not change.
    pub fn validate(&self, new: &Value, old: Option<&Value>, subresource: Option<&str>) -> Vec<FieldError> {
        let mut errors = Errors::new();
        if self.name != NameRule::Free {
            metadata::check(self, new, &mut errors);
        }
        if let Some(old) = old {
            metadata::check_update(new, old, &mut errors);
        }
        (self.check)(new, &mut errors);
        if let Some(old) = old {
            (self.check_update)(new, old, subresource, &mut errors);
        }
        errors.into_vec()
    }

    /// What field selectors see: always name and namespace, then what the kind adds.
    pub fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        let mut fields = vec![("metadata.name", text(object, "/metadata/name"))];
        if self.namespaced {
            fields.push(("metadata.namespace", text(object, "/metadata/namespace")));
        }
        fields.extend(self.fields.iter().map(|field| (field.label, (field.value)(object))));
        fields
    }

    /// Whether a field selector may name this field.
    pub fn supports_field(&self, field: &str) -> bool {
        field == "metadata.name"
            || (field == "metadata.namespace" && self.namespaced)
            || self.fields.iter().any(|known| known.label == field)
    }

    /// Why a field selector may not name this field: kinds with fields of their own have their own text upstream.
    pub fn unsupported_field(&self, field: &str) -> String {
        if self.fields.is_empty() {
            let field = crate::status::quote(field);
            return format!(
                "{field} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
            );
        }
        format!("field label not supported: {field}")
    }

    /// The columns as `metav1.TableColumnDefinition`s.
    pub fn table_columns(&self) -> Value {
        let columns = self.columns.iter().map(|column| {
            json!({"name": column.name, "type": column.kind, "format": column.format,
                   "description": column.description, "priority": column.priority})
        });
        Value::Array(columns.collect())
    }

    /// One row's cells, in the order of the columns.
    pub fn table_cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        (self.cells)(object, now)
    }

    /// Whether the stored form differs from this row's form (the row is a second view of another row's objects).
    pub fn is_view(&self) -> bool {
        self.storage_form.is_some()
    }

    /// From this row's form to the stored form.
    pub fn to_storage(&self, object: &mut Value) {
        if let Some(form) = &self.storage_form {
            (form.to_storage)(object);
        }
    }

    /// From the stored form to this row's form.
    pub fn from_storage(&self, object: &mut Value) {
        if let Some(form) = &self.storage_form {
            (form.from_storage)(object);
        }
    }
}

/// What a user asks for: the `spec`, or for kinds without one everything that is neither metadata nor status.
fn desired(object: &Value) -> Vec<(&str, &Value)> {
    if let Some(spec) = object.get("spec") {
        return vec![("spec", spec)];
    }
    let members = object.as_object().into_iter().flatten();
    let mut members: Vec<(&str, &Value)> = members
        .map(|(key, value)| (key.as_str(), value))
        .filter(|(key, _)| !["apiVersion", "kind", "metadata", "status"].contains(key))
        .collect();
    members.sort_by_key(|(key, _)| *key);
    members
}

fn isolate_status(new: &mut Value, old: &Value, subresource: Option<&str>) {
    let Some(map) = new.as_object_mut() else { return };
    if subresource == Some("status") {
        // Only status comes from the request; of metadata, labels and annotations may come along, as upstream allows.
        for (key, value) in old.as_object().into_iter().flatten() {
            if key != "status" && key != "metadata" {
                map.insert(key.clone(), value.clone());
            }
        }
        let unknown: Vec<String> = map
            .keys()
            .filter(|key| {
                key.as_str() != "status" && key.as_str() != "metadata" && old.get(key.as_str()).is_none()
            })
            .cloned()
            .collect();
        for key in unknown {
            map.shift_remove(&key);
        }
        let deletion = old.pointer("/metadata/deletionTimestamp").cloned();
        let metadata = metadata_of(map);
        match deletion {
            Some(deletion) => metadata.insert("deletionTimestamp".to_owned(), deletion),
            None => metadata.shift_remove("deletionTimestamp"),
        };
        return;
    }
    match old.get("status") {
        Some(status) => map.insert("status".to_owned(), status.clone()),
        None => map.shift_remove("status"),
    };
}

pub(crate) fn metadata_of(map: &mut Map<String, Value>) -> &mut Map<String, Value> {
    let metadata = map.entry("metadata").or_insert_with(|| json!({}));
    if !metadata.is_object() {
        *metadata = json!({});
    }
    metadata.as_object_mut().expect("was just made an object")
}

/// The scalar at a pointer as text; empty where there is none.
pub(crate) fn text(object: &Value, pointer: &str) -> String {
    match object.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(flag)) => flag.to_string(),
        Some(Value::Number(number)) => number.to_string(),
        _ => String::new(),
    }
}
