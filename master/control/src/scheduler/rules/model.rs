use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use orlop_kube::Key;

use crate::model::{Node, Pod, Resources};

/// What a pod without requests counts for in scores, as upstream: 0.1 CPU and 200 MB.
const DEFAULT_MILLI_CPU: i64 = 100;
const DEFAULT_MEMORY_BYTES: i64 = 200 << 20;

/// A node with what is placed on it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place {
    /// Absent while only pods are known, not the node itself.
    pub(crate) node: Option<Arc<Node>>,
    pub(crate) pods: BTreeMap<Key, Arc<Pod>>,
    pub(crate) requested: Resources,
    /// Requests with upstream's defaults for pods that ask for nothing.
    pub(crate) weighed: Resources,
}

impl Place {
    fn recount(&mut self) {
        let (mut requested, mut weighed) = (Resources::default(), Resources::default());
        for pod in self.pods.values() {
            requested.add(&pod.requests);
            weighed.add(&weight(pod));
        }
        (self.requested, self.weighed) = (requested, weighed);
    }
}

/// A pod's requests for scores.
pub(crate) fn weight(pod: &Pod) -> Resources {
    let mut weight = pod.requests.clone();
    if weight.milli_cpu == 0 {
        weight.milli_cpu = DEFAULT_MILLI_CPU;
    }
    if weight.memory_bytes == 0 {
        weight.memory_bytes = DEFAULT_MEMORY_BYTES;
    }
    weight
}

/// The scheduler's view: nodes, placed pods and pods assumed to be placed (bound, but not yet seen so).
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    pub(crate) places: BTreeMap<String, Place>,
    /// Where each pod counts.
    located: HashMap<Key, String>,
    assumed: HashMap<Key, String>,
}

impl Cluster {
    /// Takes in a node, or its end.
    pub(crate) fn set_node(&mut self, name: &str, node: Option<Arc<Node>>) {
        let place = self.places.entry(name.to_owned()).or_default();
        place.node = node;
        self.drop_if_empty(name);
    }

    /// Takes in a pod as watched, or its end. An assumption stands until the watch shows the pod placed, gone or replaced.
    pub(crate) fn set_pod(&mut self, key: &Key, pod: Option<Arc<Pod>>) {
        let Some(pod) = pod.filter(|pod| !pod.is_finished()) else {
            self.assumed.remove(key);
            self.unlocate(key);
            return;
        };
        match &pod.node {
            Some(node) => {
                self.assumed.remove(key);
                let node = node.clone();
                self.locate(key, &node, pod);
            }
            None if self.assumed.get(key).is_some_and(|uid| *uid == pod.meta.uid) => {}
            None => {
                self.assumed.remove(key);
                self.unlocate(key);
            }
        }
    }

    /// Counts a pod on a node before the watch says so.
    pub(crate) fn assume(&mut self, key: &Key, pod: Arc<Pod>, node: &str) {
        self.assumed.insert(key.clone(), pod.meta.uid.clone());
        self.locate(key, node, pod);
    }

    /// The binding failed.
    pub(crate) fn forget(&mut self, key: &Key, uid: &str) {
        if self.assumed.get(key).is_some_and(|assumed| assumed == uid) {
            self.assumed.remove(key);
            self.unlocate(key);
        }
    }

    pub(crate) fn is_assumed(&self, key: &Key) -> bool {
        self.assumed.contains_key(key)
    }

    /// Whether a pod counts on some node.
    pub(crate) fn is_placed(&self, key: &Key) -> bool {
        self.located.contains_key(key)
    }

    /// Nodes that exist.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (&Arc<Node>, &Place)> {
        self.places.values().filter_map(|place| place.node.as_ref().map(|node| (node, place)))
    }

    fn locate(&mut self, key: &Key, node: &str, pod: Arc<Pod>) {
        if self.located.get(key).is_some_and(|before| before != node) {
            self.unlocate(key);
        }
        self.located.insert(key.clone(), node.to_owned());
        let place = self.places.entry(node.to_owned()).or_default();
        let before = place.pods.insert(key.clone(), pod.clone());
        if before.is_none_or(|before| before.requests != pod.requests) {
            place.recount();
        }
    }

    fn unlocate(&mut self, key: &Key) {
        let Some(node) = self.located.remove(key) else {
            return;
        };
        if let Some(place) = self.places.get_mut(&node) {
            place.pods.remove(key);
            place.recount();
        }
        self.drop_if_empty(&node);
    }

    fn drop_if_empty(&mut self, name: &str) {
        if self.places.get(name).is_some_and(|place| place.node.is_none() && place.pods.is_empty()) {
            self.places.remove(name);
        }
    }
}
