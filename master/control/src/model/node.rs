use jiff::Timestamp;
use k8s_openapi::api::coordination::v1 as coordination;
use k8s_openapi::api::core::v1 as core;

use super::{HasMeta, Meta, Resources};

/// A taint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taint {
    /// Key.
    pub key: String,
    /// Value, maybe empty.
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
    /// When a NoExecute taint was set.
    pub added: Option<Timestamp>,
}

/// A node condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// For example `Ready`.
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Reason.
    pub reason: String,
    /// When the kubelet last wrote it.
    pub heartbeat: Option<Timestamp>,
}

/// A Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Metadata.
    pub meta: Meta,
    /// `spec.unschedulable`.
    pub unschedulable: bool,
    /// Taints.
    pub taints: Vec<Taint>,
    /// What pods may ask for.
    pub allocatable: Resources,
    /// Pod ranges.
    pub pod_cidrs: Vec<String>,
    /// Conditions.
    pub conditions: Vec<Condition>,
}

impl HasMeta for Node {
    fn meta(&self) -> &Meta {
        &self.meta
    }
}

impl Node {
    /// Projects a Node.
    pub fn of(object: &core::Node) -> Self {
        let spec = object.spec.as_ref();
        let status = object.status.as_ref();
        let allocatable = status.and_then(|status| status.allocatable.as_ref().or(status.capacity.as_ref()));
        let single = spec.and_then(|spec| spec.pod_cidr.clone()).filter(|cidr| !cidr.is_empty());
        let list = spec.and_then(|spec| spec.pod_cidrs.clone()).unwrap_or_default();
        Self {
            meta: Meta::of(&object.metadata),
            unschedulable: spec.and_then(|spec| spec.unschedulable).unwrap_or(false),
            taints: spec.and_then(|spec| spec.taints.as_ref()).into_iter().flatten().map(taint).collect(),
            allocatable: allocatable.map(Resources::of).unwrap_or_default(),
            pod_cidrs: if list.is_empty() { single.into_iter().collect() } else { list },
            conditions: status
                .and_then(|status| status.conditions.as_ref())
                .into_iter()
                .flatten()
                .map(condition)
                .collect(),
        }
    }

    /// One condition.
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.kind == kind)
    }
}

fn taint(object: &core::Taint) -> Taint {
    Taint {
        key: object.key.clone(),
        value: object.value.clone().unwrap_or_default(),
        effect: object.effect.clone(),
        added: object.time_added.as_ref().map(|time| time.0),
    }
}

fn condition(object: &core::NodeCondition) -> Condition {
    Condition {
        kind: object.type_.clone(),
        status: object.status.clone(),
        reason: object.reason.clone().unwrap_or_default(),
        heartbeat: object.last_heartbeat_time.as_ref().map(|time| time.0),
    }
}

/// A Lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// Metadata.
    pub meta: Meta,
    /// When its holder last renewed it.
    pub renewed: Option<Timestamp>,
}

impl HasMeta for Lease {
    fn meta(&self) -> &Meta {
        &self.meta
    }
}

impl Lease {
    /// Projects a Lease.
    pub fn of(object: &coordination::Lease) -> Self {
        let renewed = object.spec.as_ref().and_then(|spec| spec.renew_time.as_ref()).map(|time| time.0);
        Self { meta: Meta::of(&object.metadata), renewed }
    }
}

/// A Namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Metadata.
    pub meta: Meta,
    /// `spec.finalizers`.
    pub finalizers: Vec<String>,
    /// Conditions as (type, status, reason, message).
    pub conditions: Vec<(String, String, String, String)>,
}

impl HasMeta for Namespace {
    fn meta(&self) -> &Meta {
        &self.meta
    }
}

impl Namespace {
    /// Projects a Namespace.
    pub fn of(object: &core::Namespace) -> Self {
        let conditions =
            object.status.as_ref().and_then(|status| status.conditions.as_ref()).into_iter().flatten();
        Self {
            meta: Meta::of(&object.metadata),
            finalizers: object.spec.as_ref().and_then(|spec| spec.finalizers.clone()).unwrap_or_default(),
            conditions: conditions
                .map(|condition| {
                    (
                        condition.type_.clone(),
                        condition.status.clone(),
                        condition.reason.clone().unwrap_or_default(),
                        condition.message.clone().unwrap_or_default(),
                    )
                })
                .collect(),
        }
    }

    /// Not being deleted.
    pub fn is_active(&self) -> bool {
        self.meta.deleting.is_none()
    }
}
