//! One request, with everything about it that was found out before its handler runs.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use orlop_resources::Resource;
use orlop_resources::selector::{FieldSelector, LabelSelector};
use orlop_resources::status::{self, ApiError};
use orlop_store::Entry;
use serde_json::Value;

use crate::body::Reply;
use crate::identity::Identity;
use crate::rules::accept::{self, Format};
use crate::rules::options::{self, FieldValidation};
use crate::rules::path::RequestInfo;
use crate::rules::query::Query;
use crate::state::{Api, key, parse};

/// A request for objects of a known resource.
pub(crate) struct Context {
    pub(crate) api: Arc<Api>,
    pub(crate) identity: Arc<Identity>,
    pub(crate) resource: &'static Resource,
    pub(crate) info: RequestInfo,
    pub(crate) query: Query,
    pub(crate) headers: HeaderMap,
    /// Texts for `Warning` headers.
    pub(crate) warnings: Vec<String>,
    /// Set for requests that want another protocol on the connection.
    pub(crate) upgrade: Option<hyper::upgrade::OnUpgrade>,
    pub(crate) body: Bytes,
}

impl Context {
    pub(crate) fn key(&self) -> String {
        key(self.resource, &self.info.namespace, &self.info.name)
    }

    pub(crate) fn not_found(&self) -> ApiError {
        status::not_found(self.resource, &self.info.name)
    }

    /// The stored object that the request names.
    pub(crate) fn entry(&self) -> Result<Arc<Entry>, ApiError> {
        self.api.cache.get(&self.key()).ok_or_else(|| self.not_found())
    }

    /// The stored object in the form of the requested resource.
    pub(crate) fn object_of(&self, entry: &Entry) -> Value {
        let mut object = parse(entry);
        self.resource.from_storage(&mut object);
        object
    }

    pub(crate) fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// What the answer should look like; 406 when nothing fits.
    pub(crate) fn format(&self, streaming: bool) -> Result<Format, ApiError> {
        accept::negotiate(self.header(header::ACCEPT), streaming)
            .ok_or_else(|| status::not_acceptable(accept::ACCEPTED))
    }

    pub(crate) fn dry_run(&self) -> Result<bool, ApiError> {
        options::dry_run(options::kind_of(self.info.verb), self.query.all("dryRun"))
    }

    pub(crate) fn field_validation(&self) -> Result<FieldValidation, ApiError> {
        options::field_validation(options::kind_of(self.info.verb), self.query.get("fieldValidation"))
    }

    pub(crate) fn selection(&self) -> Result<Selection, ApiError> {
        let labels = LabelSelector::parse(self.query.get("labelSelector").unwrap_or_default())
            .map_err(status::bad_request)?;
        let fields = FieldSelector::parse(self.query.get("fieldSelector").unwrap_or_default())
            .map_err(status::bad_request)?;
        for requirement in fields.requirements() {
            if !self.resource.supports_field(&requirement.field) {
                return Err(status::bad_request(self.resource.unsupported_field(&requirement.field)));
            }
        }
        // The old watch path names an object without a selector.
        let name = (!self.info.name.is_empty()).then(|| self.info.name.clone());
        Ok(Selection { resource: self.resource, labels, fields, name })
    }

    /// Adds the warnings to an answer (RFC 9111 calls them obsolete, Kubernetes clients print them).
    pub(crate) fn warn(&self, mut reply: Reply) -> Reply {
        for warning in &self.warnings {
            // A header holds one line.
            let warning = warning.replace(char::is_control, " ");
            let quoted = warning.replace('\\', "\\\\").replace('"', "\\\"");
            if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
                reply.headers_mut().append(header::WARNING, value);
            }
        }
        reply
    }
}

/// What a list or watch selects.
#[derive(Clone)]
pub(crate) struct Selection {
    resource: &'static Resource,
    labels: LabelSelector,
    fields: FieldSelector,
    name: Option<String>,
}

impl Selection {
    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything() && self.name.is_none()
    }

    pub(crate) fn matches(&self, entry: &Entry) -> bool {
        if self.name.as_deref().is_some_and(|name| name != &*entry.meta.name) {
            return false;
        }
        if !self.labels.is_everything() && !self.labels.matches(|key| entry.meta.label(key)) {
            return false;
        }
        if self.fields.is_everything() {
            return true;
        }
        if !self.resource.is_view() {
            return self.fields.matches(|field| entry.meta.field(field));
        }
        let mut object = parse(entry);
        self.resource.from_storage(&mut object);
        let fields = self.resource.selectable_fields(&object);
        self.fields
            .matches(|field| fields.iter().find(|(name, _)| *name == field).map(|(_, value)| value.as_str()))
    }
}
