//! Black-box tests for OCI runtimes with runc's command line, filed by section of the runtime specification.
//!
//! ```text
//!   SUBJECT  a path, a name on PATH (runc, crun), or "orlop" ($ORLOP_BIN oci); absent: this crate's own build of ours
//!   BUSYBOX  a static busybox that becomes every container's root file system; absent: /bin/busybox
//!   ORLOP_SKIPS  a file that gets one line per test, or part of one, that was not run and why
//! ```
//!
//! All of it must pass on ours and on Debian's runc and crun, else the test is wrong. What a peer lacks stands by name and with its reason in
//! [`subject::DIFFERENCES`]. A test runs in a mount namespace of its own; nothing of it reaches the machine's mount table.
//!
//! The test program (`cargo nextest list` names it, `target/…/deps/oci-*`) is one static file. In a guest without Rust it needs `/proc`,
//! `/sys` with control groups, a writable `/tmp`, `BUSYBOX`, `SUBJECT`, and a root that pivot_root(2) takes (not the initramfs itself):
//! `SUBJECT=/orlop-oci BUSYBOX=/bin/busybox ./oci --test-threads=2`.
//!
//! `tests/engines.rs` runs Debian's podman and containerd on top of the subject.
//!
//! # What others test, and where it is here
//!
//! Groups of runtime-tools' `validation/` and of youki's contest, ticked off:
//!
//! | theirs | here |
//! |---|---|
//! | create, start, state, delete, kill, kill_no_effect, killsig, pidfile, lifecycle, config_updates_without_affect, delete_resources, delete_only_create_resources, misc_props | `lifecycle`, `operations`, `failures` |
//! | hooks, hooks_stdin, prestart, create_runtime, start_container_env, poststart, poststop, each with `_fail` | `hooks` |
//! | process, process_user, process_rlimits(_fail), process_capabilities(_bounding, _fail), process_oom_score_adj, linux_process_apparmor_profile, scheduler, io_priority | `process` |
//! | root_readonly_true, no_pivot, prohibit_symlink | `root`, `escapes` |
//! | mounts, mounts_recursive, linux_rootfs_propagation, idmap | `mounts`, `propagation`, `idmap` |
//! | hostname, domainname, linux_sysctl, personality | `hostname`, `sysctl`, `personality` |
//! | default, linux_devices, devices, linux_masked_paths, linux_readonly_paths | `devices`, `mounts`, `paths` |
//! | linux_ns_nopath, linux_ns_path, linux_ns_path_type, linux_ns_itype, linux_uid_mappings, uid_mappings, time_ns | `namespaces`, `idmap` |
//! | linux_cgroups_{blkio, cpus, devices, hugetlb, memory, network, pids} and `_relative`, tlb, cgroups v2, update | `cgroups`, `limits`, `devices`, `v2_limits`, `v2_groups` |
//! | linux_seccomp, exec seccomp | `seccomp`, `exec` |
//! | exec, exec_env, fd_control | `exec`, `escapes` |
//! | linux_mount_label (SELinux), intel_rdt, memory_policy, net_devices, exec_cpu_affinity, seccomp_notify, checkpoint_restore | not here: the kernel of the test machine, or ours, has none of it |
#![expect(clippy::unwrap_used, reason = "a test program")]

mod rig;
pub mod subject;

pub use rig::{
    Called, Child, Rig, add_mount, busybox, cgroup_hierarchies, drop_namespace, grant, has_limits,
    is_unified, own_namespace, script, set_namespace, skip, wait_for,
};
pub use subject::{Kind, Subject, differs, is_ours};
