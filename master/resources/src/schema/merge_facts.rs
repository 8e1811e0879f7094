//! How lists and maps of the API merge: facts of the API (`patchStrategy`, `patchMergeKey`, `listType` markers) that k8s-openapi's
//! schemas do not carry.

/// How a list field merges.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ListFact {
    /// Key of strategic merge; empty for lists of scalars that merge as sets.
    pub(crate) merge_key: &'static str,
    /// Whether only the patched keys of an element are kept (unions).
    pub(crate) retain_keys: bool,
    /// Keys of `x-kubernetes-list-map-keys`; empty for sets.
    pub(crate) map_keys: &'static [&'static str],
}

const fn by(merge_key: &'static str, map_keys: &'static [&'static str]) -> ListFact {
    ListFact { merge_key, retain_keys: false, map_keys }
}

const NAME: ListFact = by("name", &["name"]);
const TYPE: ListFact = by("type", &["type"]);
const IP: ListFact = by("ip", &["ip"]);
const SET: ListFact = by("", &[]);
const RETAIN: ListFact = ListFact { merge_key: "name", retain_keys: true, map_keys: &["name"] };

/// (last part of the definition's name, field, fact).
static LISTS: &[(&str, &str, ListFact)] = &[
    ("meta.v1.ObjectMeta", "ownerReferences", by("uid", &["uid"])),
    ("meta.v1.ObjectMeta", "finalizers", SET),
    ("core.v1.PodSpec", "containers", NAME),
    ("core.v1.PodSpec", "initContainers", NAME),
    ("core.v1.PodSpec", "ephemeralContainers", NAME),
    ("core.v1.PodSpec", "volumes", RETAIN),
    ("core.v1.PodSpec", "imagePullSecrets", NAME),
    ("core.v1.PodSpec", "hostAliases", IP),
    (
        "core.v1.PodSpec",
        "topologySpreadConstraints",
        by("topologyKey", &["topologyKey", "whenUnsatisfiable"]),
    ),
    ("core.v1.PodSpec", "schedulingGates", NAME),
    ("core.v1.PodSpec", "resourceClaims", RETAIN),
    ("core.v1.Container", "ports", by("containerPort", &["containerPort", "protocol"])),
    ("core.v1.Container", "env", NAME),
    ("core.v1.Container", "volumeMounts", by("mountPath", &["mountPath"])),
    ("core.v1.Container", "volumeDevices", by("devicePath", &["devicePath"])),
    ("core.v1.EphemeralContainer", "ports", by("containerPort", &["containerPort", "protocol"])),
    ("core.v1.EphemeralContainer", "env", NAME),
    ("core.v1.EphemeralContainer", "volumeMounts", by("mountPath", &["mountPath"])),
    ("core.v1.EphemeralContainer", "volumeDevices", by("devicePath", &["devicePath"])),
    ("core.v1.PodStatus", "conditions", TYPE),
    ("core.v1.PodStatus", "podIPs", IP),
    ("core.v1.PodStatus", "hostIPs", IP),
    ("core.v1.PodStatus", "resourceClaimStatuses", RETAIN),
    ("core.v1.ContainerStatus", "volumeMounts", by("mountPath", &["mountPath"])),
    ("core.v1.ContainerStatus", "allocatedResourcesStatus", NAME),
    ("core.v1.ServiceSpec", "ports", by("port", &["port", "protocol"])),
    ("core.v1.ServiceStatus", "conditions", TYPE),
    ("core.v1.ServiceAccount", "secrets", NAME),
    ("core.v1.ReplicationControllerStatus", "conditions", TYPE),
    ("core.v1.NamespaceStatus", "conditions", TYPE),
    ("core.v1.NodeSpec", "podCIDRs", SET),
    ("core.v1.NodeStatus", "conditions", TYPE),
    ("core.v1.NodeStatus", "addresses", TYPE),
    ("storage.v1.CSINodeSpec", "drivers", NAME),
];

/// Maps and objects that are replaced as a whole by server-side apply.
static ATOMIC_OBJECTS: &[&str] = &[
    "core.v1.SecretKeySelector",
    "core.v1.ConfigMapKeySelector",
    "core.v1.FileKeySelector",
    "core.v1.LocalObjectReference",
    "core.v1.ObjectReference",
    "core.v1.ObjectFieldSelector",
    "core.v1.ResourceFieldSelector",
    "core.v1.NodeSelector",
    "core.v1.NodeSelectorTerm",
    "core.v1.SecretReference",
    "core.v1.TypedLocalObjectReference",
    "core.v1.TopologySelectorTerm",
    "meta.v1.LabelSelector",
    "meta.v1.OwnerReference",
    "discovery.v1.EndpointPort",
];

static ATOMIC_MAPS: &[(&str, &str)] = &[
    ("core.v1.ServiceSpec", "selector"),
    ("core.v1.ReplicationControllerSpec", "selector"),
    ("core.v1.PodSpec", "nodeSelector"),
    ("node.v1.Scheduling", "nodeSelector"),
];

fn is(definition: &str, short: &str) -> bool {
    definition.ends_with(short) && definition[..definition.len() - short.len()].ends_with('.')
}

/// How this list merges; none means it is atomic.
pub(crate) fn list(definition: &str, field: &str) -> Option<ListFact> {
    LISTS.iter().find(|(short, name, _)| *name == field && is(definition, short)).map(|(_, _, fact)| *fact)
}

/// Whether objects of this definition are replaced as a whole.
pub(crate) fn is_atomic_object(definition: &str) -> bool {
    ATOMIC_OBJECTS.iter().any(|short| is(definition, short))
}

/// Whether this map is replaced as a whole.
pub(crate) fn is_atomic_map(definition: &str, field: &str) -> bool {
    ATOMIC_MAPS.iter().any(|(short, name)| *name == field && is(definition, short))
}
