//! The graph of owners and dependents, and what must happen to one object of it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use orlop_kube::Key;

use crate::model::{Meta, Owner};

pub(crate) const FOREGROUND: &str = "foregroundDeletion";
pub(crate) const ORPHAN: &str = "orphan";

/// An object of the graph: a few hundred bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Object {
    /// Plural name of its kind.
    pub(crate) plural: Arc<str>,
    pub(crate) key: Key,
    pub(crate) uid: String,
    pub(crate) owners: Vec<Owner>,
    pub(crate) deleting: bool,
    pub(crate) foreground: bool,
    pub(crate) orphan: bool,
    pub(crate) finalizers: Vec<String>,
    pub(crate) resource_version: String,
}

impl Object {
    fn of(plural: Arc<str>, key: &Key, meta: &Meta) -> Self {
        let has = |name: &str| meta.finalizers.iter().any(|finalizer| finalizer == name);
        Self {
            plural,
            key: key.clone(),
            uid: meta.uid.clone(),
            owners: meta.owners.clone(),
            deleting: meta.deleting.is_some(),
            foreground: has(FOREGROUND),
            orphan: has(ORPHAN),
            finalizers: meta.finalizers.clone(),
            resource_version: meta.resource_version.clone(),
        }
    }

    fn waits_for_dependents(&self) -> bool {
        self.deleting && self.foreground
    }
}

/// How an owner reference stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OwnerState {
    /// It exists.
    Solid,
    /// It exists, is being deleted in the foreground and waits for this object.
    Waiting,
    /// It is gone, or another object has its name now.
    Absent,
    /// Not in the graph: only the API can tell.
    Unknown,
}

/// How the dependents of a deleted object are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Propagation {
    Orphan,
    Foreground,
    Background,
}

/// What must happen to an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Nothing,
    /// Look at these objects instead.
    Look(Vec<String>),
    /// Free these dependents from their reference to the object, then drop its finalizer.
    ReleaseDependents(Vec<String>),
    /// Drop the finalizer: nothing blocks any more.
    Unblock,
    /// Drop the references to these owners.
    DropOwners(Vec<String>),
    Delete(Propagation),
}

/// All known objects by uid.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    objects: HashMap<String, Object>,
    dependents: HashMap<String, BTreeSet<String>>,
    plurals: BTreeSet<Arc<str>>,
}

impl Graph {
    /// Takes in a new or changed object; returns the uids to look at.
    pub(crate) fn put(&mut self, plural: &str, key: &Key, meta: &Meta) -> Vec<String> {
        let plural = self.intern(plural);
        let object = Object::of(plural, key, meta);
        let uid = object.uid.clone();
        let before = self.objects.insert(uid.clone(), object.clone());
        let mut look = Vec::new();
        for owner in before.iter().flat_map(|before| &before.owners) {
            if !object.owners.iter().any(|kept| kept.uid == owner.uid) {
                self.unlink(&owner.uid, &uid);
                look.push(owner.uid.clone());
            }
        }
        for owner in &object.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
        }
        let owners_changed = before.as_ref().is_none_or(|before| before.owners != object.owners);
        let ends = object.deleting && (object.foreground || object.orphan);
        if (owners_changed && !object.owners.is_empty()) || ends {
            look.push(uid);
        }
        look
    }

    /// An object is gone; returns the uids to look at: its dependents, and owners that may have waited for it.
    pub(crate) fn remove(&mut self, uid: &str) -> Vec<String> {
        let Some(object) = self.objects.remove(uid) else {
            return Vec::new();
        };
        let mut look: Vec<_> = self.dependents.get(uid).into_iter().flatten().cloned().collect();
        for owner in &object.owners {
            self.unlink(&owner.uid, uid);
            if self.objects.get(&owner.uid).is_some_and(Object::waits_for_dependents) {
                look.push(owner.uid.clone());
            }
        }
        look
    }

    pub(crate) fn get(&self, uid: &str) -> Option<&Object> {
        self.objects.get(uid)
    }

    pub(crate) fn len(&self) -> usize {
        self.objects.len()
    }

    fn intern(&mut self, plural: &str) -> Arc<str> {
        if let Some(known) = self.plurals.get(plural) {
            return known.clone();
        }
        let fresh: Arc<str> = plural.into();
        self.plurals.insert(fresh.clone());
        fresh
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    fn dependents_of(&self, uid: &str) -> impl Iterator<Item = &Object> {
        self.dependents.get(uid).into_iter().flatten().filter_map(|dependent| self.objects.get(dependent))
    }

    fn is_blocked(&self, uid: &str) -> bool {
        self.dependents_of(uid)
            .any(|object| object.owners.iter().any(|owner| owner.uid == uid && owner.blocks_deletion))
    }

    /// How the owners of an object stand as far as the graph knows.
    pub(crate) fn owner_states(&self, object: &Object) -> Vec<OwnerState> {
        object
            .owners
            .iter()
            .map(|owner| match self.objects.get(&owner.uid) {
                // An owner in another namespace is none (names are only valid within the own one).
                Some(found)
                    if !found.key.namespace.is_empty() && found.key.namespace != object.key.namespace =>
                {
                    OwnerState::Absent
                }
                Some(found) if found.waits_for_dependents() && owner.blocks_deletion => OwnerState::Waiting,
                Some(_) => OwnerState::Solid,
                None => OwnerState::Unknown,
            })
            .collect()
    }

    /// What must happen to an object, given how its owners stand (none may be unknown any more).
    pub(crate) fn plan(&self, object: &Object, owners: &[OwnerState]) -> Action {
        if object.deleting {
            return self.plan_deleted(object);
        }
        if object.owners.is_empty() {
            return Action::Nothing;
        }
        let with = |state: OwnerState| {
            let pairs = object.owners.iter().zip(owners).filter(move |(_, found)| **found == state);
            pairs.map(|(owner, _)| owner.uid.clone()).collect::<Vec<_>>()
        };
        if owners.iter().any(|state| matches!(state, OwnerState::Solid | OwnerState::Unknown)) {
            let mut drop = with(OwnerState::Absent);
            drop.extend(with(OwnerState::Waiting));
            return if drop.is_empty() { Action::Nothing } else { Action::DropOwners(drop) };
        }
        if !with(OwnerState::Waiting).is_empty() && self.dependents_of(&object.uid).next().is_some() {
            return Action::Delete(Propagation::Foreground);
        }
        Action::Delete(match (object.orphan, object.foreground) {
            (true, _) => Propagation::Orphan,
            (_, true) => Propagation::Foreground,
            _ => Propagation::Background,
        })
    }

    fn plan_deleted(&self, object: &Object) -> Action {
        let dependents = || self.dependents_of(&object.uid).map(|dependent| dependent.uid.clone()).collect();
        if object.orphan {
            Action::ReleaseDependents(dependents())
        } else if !object.foreground {
            Action::Nothing
        } else if self.is_blocked(&object.uid) {
            Action::Look(dependents())
        } else {
            Action::Unblock
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(uid: &str, blocks: bool) -> Owner {
        Owner {
            api_version: "v1".into(),
            kind: "ReplicationController".into(),
            name: uid.into(),
            uid: uid.into(),
            controller: true,
            blocks_deletion: blocks,
        }
    }

    fn meta(uid: &str, owners: &[Owner], finalizers: &[&str], deleting: bool) -> Meta {
        Meta {
            name: uid.into(),
            namespace: "d".into(),
            uid: uid.into(),
            owners: owners.to_vec(),
            finalizers: finalizers.iter().map(|name| (*name).to_owned()).collect(),
            deleting: deleting.then_some(jiff::Timestamp::UNIX_EPOCH),
            ..Meta::default()
        }
    }

    fn put(graph: &mut Graph, meta: &Meta) -> Vec<String> {
        graph.put("things", &Key { namespace: "d".into(), name: meta.name.clone() }, meta)
    }

    fn plan(graph: &Graph, uid: &str) -> Action {
        let object = graph.get(uid).unwrap();
        let states: Vec<_> = graph
            .owner_states(object)
            .into_iter()
            .map(|state| if state == OwnerState::Unknown { OwnerState::Absent } else { state })
            .collect();
        graph.plan(object, &states)
    }

    #[test]
    fn background_deletes_dependents_whose_owners_are_all_gone() {
        let mut graph = Graph::default();
        put(&mut graph, &meta("rc", &[], &[], false));
        assert_eq!(put(&mut graph, &meta("pod", &[owner("rc", true)], &[], false)), ["pod"]);
        put(&mut graph, &meta("other", &[], &[], false));
        put(&mut graph, &meta("shared", &[owner("rc", true), owner("other", false)], &[], false));
        assert_eq!(plan(&graph, "pod"), Action::Nothing);
        assert_eq!(graph.remove("rc"), ["pod", "shared"]);
        assert_eq!(plan(&graph, "pod"), Action::Delete(Propagation::Background));
        assert_eq!(plan(&graph, "shared"), Action::DropOwners(vec!["rc".into()]));
    }

    #[test]
    fn foreground_waits_for_blocking_dependents_only() {
        let mut graph = Graph::default();
        put(&mut graph, &meta("rc", &[], &[], false));
        put(&mut graph, &meta("pod", &[owner("rc", true)], &[], false));
        put(&mut graph, &meta("loose", &[owner("rc", false)], &[], false));
        assert_eq!(put(&mut graph, &meta("rc", &[], &[FOREGROUND], true)), ["rc"]);
        assert_eq!(plan(&graph, "rc"), Action::Look(vec!["loose".into(), "pod".into()]));
        assert_eq!(plan(&graph, "pod"), Action::Delete(Propagation::Background));
        assert_eq!(plan(&graph, "loose"), Action::Nothing);
        assert_eq!(graph.remove("pod"), ["rc"]);
        assert_eq!(plan(&graph, "rc"), Action::Unblock);
    }

    #[test]
    fn orphans_are_released_before_the_owner_goes() {
        let mut graph = Graph::default();
        put(&mut graph, &meta("pod", &[owner("rc", true)], &[], false));
        put(&mut graph, &meta("rc", &[], &[ORPHAN], true));
        assert_eq!(plan(&graph, "rc"), Action::ReleaseDependents(vec!["pod".into()]));
        assert_eq!(put(&mut graph, &meta("pod", &[], &[], false)), ["rc"]);
        assert_eq!(plan(&graph, "rc"), Action::ReleaseDependents(Vec::new()));
    }

    #[test]
    fn a_chain_in_foreground_goes_foreground() {
        let mut graph = Graph::default();
        put(&mut graph, &meta("top", &[], &[FOREGROUND], true));
        put(&mut graph, &meta("middle", &[owner("top", true)], &[], false));
        put(&mut graph, &meta("leaf", &[owner("middle", true)], &[], false));
        assert_eq!(plan(&graph, "middle"), Action::Delete(Propagation::Foreground));
    }
}
