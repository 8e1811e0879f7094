//! The Container Runtime Interface as a black box, filed by area as critest files it. The subject is `orlop runtime` (`ORLOP_BIN`, or
//! the crate's own small stand-in) or, with `SUBJECT=containerd`, Debian's containerd 1.6 with runc: a spec that upstream fails is
//! wrong, or is in the table of [`differences`] with its reason.
//!
//! ```text
//!   tests/suite.rs   one test per area: Host → Registry → Subject → specs, several at once → what is left?
//!   tests/kill.rs    kill -9 at random points        tests/leak.rs   a hundred pods        tests/hostile.rs  hostile values
//! ```
//!
//! `cargo nextest run -p orlop-conformance-cri` runs all on ours; `SPEC=text` picks specs by name. Each area has a machine of its
//! own ([`host`]): nothing of this one is touched. Images come from Debian's docker-registry on that machine's loopback.
//!
//! Invariant: the suite asks by gRPC, SPDY and WebSocket alone; it imports nothing of the runtime (only the stand-in binary does).
//!
//! # critest's specs (kubernetes-sigs/cri-tools, `pkg/validate`), and where they are here
//!
//! | critest | specs | here |
//! |---|---|---|
//! | Runtime info: version, conditions | 2 | `runtime_info` `version` `conditions` |
//! | PodSandbox: run, stop, remove, attributes | 4 | `pods` `run` `stop` `remove` `attributes` |
//! | PodSandbox: safe, unsafe sysctls | 2 | `pods` `safe_sysctls` `unsafe_sysctls` |
//! | PodSandbox: metric descriptors, metrics | 2 | `stats` `metric_descriptors` `pod_metrics` `metrics_have_descriptors` |
//! | Container: create, attributes, start, stop, remove created/running/stopped | 7 | `containers` `create` `attributes` `start` `stop` `remove_*` |
//! | Container: execSync, with timeout | 2 | `exec` `output_and_exit_code` `timeout_ends_the_command` |
//! | Container: stats listed (one, started, nil filter, three, by labels) | 5 | `stats` `container_stats` `listed_*` |
//! | Container: volume, volume behind a link | 2 | `mounts` `host_path` `host_path_that_is_a_link` |
//! | Container: log, reopened log | 2 | `logs` `lines` `reopen` |
//! | Mount propagation: rprivate, rshared, rslave | 3 | `mounts` `propagation_*` |
//! | Container OOM | 1 | `resources` `out_of_memory` |
//! | Mount readonly: non-recursive, recursive, three refusals | 5 | `mounts` `read_only_is_not_recursive` `recursive_*` |
//! | Idempotence: stop/remove unknown, twice, of pods, containers, images | 7 | `idempotence` |
//! | Image manager: by tag, timeout, without tag, by digest, references, users, 3 images, 3 tags, removals | 10 | `images` `by_tag` `times_out` `without_tag` `by_digest` `all_kinds_of_references` `user_of_the_configuration` `three_images_have_their_tags` `one_image_has_three_tags` `removed_*` |
//! | Image consistency: gone and there at once, simultaneous removals | 3 | `images` `gone_at_once` `there_at_once` `removals_at_once` |
//! | Image identifier consistency | 2 | `images` `same_identifier_*` |
//! | Image volume: digest, read-only, refusal, subPath, missing subPath | 5 | `image_volumes` |
//! | Multiple containers: network, log, exec | 3 | `networking` `containers_share`, `logs` `two_containers`, `containers` `two_containers` |
//! | Networking: DNS, hostname, container port, host port | 4 | `networking` `dns_config` `hostname` `container_port` `host_port` |
//! | Streaming: exec, exec with terminal, attach, port-forward, in the host network | 5 | `streaming` `exec` `exec_with_terminal` `attach` `port_forward*` |
//! | Streaming list: pods 4, containers 7 (2 of stats), pod stats 3, pod metrics 1, images 2 | 17 | `streaming_lists`, one each |
//! | Security context, namespaces: host/pod/container PID, IPC, network | 7 | `namespaces` `pid_*` `ipc_*`, `networking` `host_network` `pod_network_is_its_own` |
//! | Security context: groups, user, user name, group, group without user | 5 | `users` |
//! | Security context: root read-only or not, privileged or not, capabilities, masked and read-only paths | 10 | `security` `root_*` `privileged` `not_privileged` `capability_*` `all_capabilities_*` `masked_paths` `read_only_paths` |
//! | SupplementalGroupsPolicy: merge, strict | 2 | `users` `groups_merged` `groups_strict` |
//! | Seccomp: unconfined, localhost, default, nil, three of the host name | 7 | `security` `seccomp_*` |
//! | NoNewPrivs: true, false | 2 | `security` `no_new_privileges` `new_privileges` |
//! | User namespaces: pod, node, two mappings, no root, container, target | 6 | `namespaces` `users_*` |
//! | AppArmor: 3 fields × unloaded, enforced, permissive | 9 | `security` `apparmor_*` (skipped by name where the kernel has none: never run so far) |
//! | SELinux | 8 | `security` `selinux` (the same; only that a level reaches the process) |
//! | NRI | 13 | not here: the runtime speaks no NRI |
//!
//! Beyond critest: events, limits and their change, devices, CDI, exit codes, graces and signals, partial log lines, concurrent
//! creations, WebSocket v4 and v5, tunnels, large data, paths that try to leave a root, and what is left behind after each area.

pub mod client;
pub mod differences;
pub mod host;
pub mod images;
pub mod load;
pub mod registry;
pub mod spdy;
pub mod spec;
pub mod specs;
pub mod subject;
pub mod websocket;
