//! What every request handler shares.

use std::sync::Arc;

use orlop_resources::{Resource, resources};
use orlop_store::{Cache, Entry, Store};
use serde_json::Value;

use crate::body::Room;
use crate::config::Config;
use crate::kubelet::Kubelets;
use crate::metrics::Metrics;
use crate::rules::authorize::Pods;
use crate::token::Tokens;

/// The server's shared state; handlers hold it as `Arc`.
pub(crate) struct Api {
    pub(crate) config: Config,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) tokens: Tokens,
    pub(crate) kubelets: Option<Kubelets>,
    pub(crate) metrics: Metrics,
    pub(crate) frame: orlop_daemon::Frame,
    pub(crate) drain: orlop_daemon::Drain,
    pub(crate) room: Room,
    /// Held over choosing an address or port and storing the Service, so that nothing is given twice.
    pub(crate) allocation: tokio::sync::Mutex<()>,
}

/// Where the objects of a resource are kept; ends with a slash.
pub(crate) fn prefix(resource: &Resource) -> String {
    format!("/registry/{}/", resource.storage)
}

/// The prefix of a resource's objects, in one namespace when one is given.
pub(crate) fn prefix_in(resource: &Resource, namespace: &str) -> String {
    let prefix = prefix(resource);
    if resource.namespaced && !namespace.is_empty() { format!("{prefix}{namespace}/") } else { prefix }
}

pub(crate) fn key(resource: &Resource, namespace: &str, name: &str) -> String {
    format!("{}{name}", prefix_in(resource, namespace))
}

/// The row that owns the stored form of what is kept under a key.
pub(crate) fn owner_of(key: &str) -> Option<&'static Resource> {
    resources().iter().find(|row| {
        !row.storage.is_empty()
            && !row.is_view()
            && key
                .strip_prefix("/registry/")
                .and_then(|rest| rest.strip_prefix(row.storage))
                .is_some_and(|rest| rest.starts_with('/'))
    })
}

/// The core resource of this plural.
pub(crate) fn core(plural: &str) -> &'static Resource {
    orlop_resources::find("", "v1", plural)
        .expect("the table has every core resource that the server itself uses")
}

impl Api {
    /// An object of a core resource, or none.
    pub(crate) fn core_entry(&self, plural: &str, namespace: &str, name: &str) -> Option<Arc<Entry>> {
        self.cache.get(&key(core(plural), namespace, name))
    }
}

/// The object that an entry holds.
pub(crate) fn parse(entry: &Entry) -> Value {
    parse_bytes(&entry.bytes)
}

/// A stored object. Damage that the store's checksums did not find makes it null, which every reader treats as an empty object.
pub(crate) fn parse_bytes(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|error| {
        tracing::error!(%error, "a stored object is no JSON");
        Value::Null
    })
}

impl Pods for Api {
    fn is_on(&self, namespace: &str, pod: &str, node: &str) -> bool {
        let entry = self.core_entry("pods", namespace, pod);
        entry.is_some_and(|entry| entry.meta.field("spec.nodeName") == Some(node))
    }

    fn is_referenced(&self, namespace: &str, reference: &str, node: &str) -> bool {
        let matches = |entry: &Entry| {
            entry.meta.field("spec.nodeName") == Some(node)
                && entry.meta.references.iter().any(|used| **used == *reference)
        };
        let prefix = prefix_in(core("pods"), namespace);
        let request = orlop_store::PageRequest {
            at: orlop_store::At::Now,
            prefix: &prefix,
            start: "",
            limit: 1,
            matches: &matches,
        };
        !namespace.is_empty() && self.cache.list(&request).is_ok_and(|page| !page.entries.is_empty())
    }
}
