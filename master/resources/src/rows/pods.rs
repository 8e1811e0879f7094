//! Pods.

use super::BASE;
use crate::resource::Resource;

pub(crate) const ROW: Resource = Resource {
    kind: "Pod",
    list_kind: "PodList",
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    categories: &["all"],
    storage: "pods",
    ..BASE
};
