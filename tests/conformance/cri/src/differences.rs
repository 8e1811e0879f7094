//! What a subject is known not to do, with the reason. On containerd an entry that passes fails the run: the table stays true.

use crate::subject::Kind;

/// One known difference.
#[derive(Clone, Copy, Debug)]
pub struct Difference {
    kind: Kind,
    area: &'static str,
    spec: &'static str,
    /// Whether it shows in every run.
    pub always: bool,
    /// Why.
    pub reason: &'static str,
}

const fn containerd(area: &'static str, spec: &'static str, reason: &'static str) -> Difference {
    Difference { kind: Kind::Containerd, area, spec, always: true, reason }
}

const fn containerd_sometimes(area: &'static str, spec: &'static str, reason: &'static str) -> Difference {
    Difference { always: false, ..containerd(area, spec, reason) }
}

/// Every spec of an area.
const EVERY: &str = "*";
const METRICS_IN_1_6: &str = "containerd 1.6 does not know CRI metrics (since 2.1)";
const VOLUMES_IN_1_6: &str = "containerd 1.6 does not know image volumes (since 2.1)";

/// The table.
pub const DIFFERENCES: &[Difference] = &[
    containerd("runtime_info", "runtime_config", "containerd 1.6 does not know RuntimeConfig (since 2.0)"),
    containerd_sometimes(
        "containers",
        "times",
        "containerd 1.6 notes the start after the end of a short process",
    ),
    containerd(
        "containers",
        "stop_signal_of_the_container",
        "containerd 1.6 does not know ContainerConfig.stop_signal",
    ),
    containerd("idempotence", "stop_unknown_pod", "containerd 1.6 answers NotFound (fixed in 1.7)"),
    containerd("idempotence", "stop_unknown_container", "containerd 1.6 answers NotFound (fixed in 1.7)"),
    containerd_sometimes(
        "idempotence",
        "stops_at_once",
        "two StopPodSandbox at once race for the pod's network",
    ),
    containerd_sometimes(
        "resources",
        "out_of_memory",
        "containerd 1.6 may see the exit before the kernel's word on memory",
    ),
    containerd_sometimes(
        "logs",
        "nothing_is_lost",
        "containerd 1.6 loses what is left in the pipe of a container that ends",
    ),
    containerd(
        "streaming",
        "exec_over_websocket_v5",
        "containerd's server of sessions does not know version 5",
    ),
    containerd(
        "streaming",
        "port_forward_through_a_tunnel",
        "containerd's server of sessions does not know the tunnel (KEP-4006)",
    ),
    containerd(
        "pods",
        "containers_in_status",
        "containerd 1.6 does not know PodSandboxStatusResponse.containers_statuses",
    ),
    containerd("pods", "unknown_status", "its error does not name the pod"),
    containerd(
        "exec",
        "large_output",
        "16 MiB and their frame do not fit into containerd's own message limit",
    ),
    containerd(
        "exec",
        "a_child_that_stays",
        "containerd 1.6 waits for the pipes' end (drain_exec_sync_io_timeout came with 1.7)",
    ),
    containerd(
        "namespaces",
        "orphans_are_reaped",
        "its pause image is busybox's sleep here, which reaps nothing",
    ),
    containerd("resources", "update_ended", "runc takes limits for a container that has ended"),
    containerd("resources", "cdi_device", "containerd 1.6 does not know CDI"),
    containerd("resources", "cdi_device_that_is_missing", "containerd 1.6 does not know CDI"),
    containerd(
        "security",
        "sys_of_the_privileged",
        "the pause container's read-only sysfs is one superblock with the pod's",
    ),
    containerd("security", "ambient_capabilities", "containerd 1.6 does not know add_ambient_capabilities"),
    containerd("security", "unknown_capability", "runc passes over a capability that it does not know"),
    containerd("users", "groups_of_the_status", "containerd 1.6 does not know ContainerStatus.user"),
    containerd("images", "filter_by_name", "containerd passes over the filter of ListImages"),
    containerd("images", "filter_that_finds_nothing", "containerd passes over the filter of ListImages"),
    containerd(
        "images",
        "same_identifier_everywhere",
        "containerd 1.6 does not know ContainerStatus.image_id",
    ),
    containerd_sometimes(
        "images",
        "file_system_shrinks",
        "containerd counts a removed snapshot until its own collection ran",
    ),
    containerd("stats", "metric_descriptors", METRICS_IN_1_6),
    containerd("stats", "pod_metrics", METRICS_IN_1_6),
    containerd("stats", "metrics_have_descriptors", METRICS_IN_1_6),
    containerd("events", EVERY, "containerd 1.6 does not know GetContainerEvents (since 1.7)"),
    containerd("streaming_lists", EVERY, "containerd does not know the Stream… calls (KEP-5825)"),
    containerd("image_volumes", "digest_in_the_status", VOLUMES_IN_1_6),
    containerd("image_volumes", "mounted_read_only", VOLUMES_IN_1_6),
    containerd("image_volumes", "not_read_only_is_refused", VOLUMES_IN_1_6),
    containerd("image_volumes", "sub_path", VOLUMES_IN_1_6),
    containerd("image_volumes", "unknown_image", VOLUMES_IN_1_6),
    containerd("image_volumes", "image_in_use_stays", VOLUMES_IN_1_6),
];

/// The entry of a spec.
pub fn of(kind: Kind, area: &str, spec: &str) -> Option<&'static Difference> {
    DIFFERENCES
        .iter()
        .find(|entry| entry.kind == kind && entry.area == area && [spec, EVERY].contains(&entry.spec))
}
