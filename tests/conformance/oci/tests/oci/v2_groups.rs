//! config-linux.md, "Control groups", on cgroup v2 alone: where processes are, what may be seen and done inside, and what goes away.

use std::fs;
use std::path::{Path, PathBuf};

use orlop_conformance_oci::{Kind, Rig, is_ours, skip, wait_for};
use serde_json::json;

use crate::v2_limits::{read, rig};

const GROUPS: &str = "/sys/fs/cgroup";

/// With a cgroup namespace and the hierarchy mounted.
fn with_hierarchy(rig: &Rig, access: &str, program: &str) {
    rig.configure(|config| {
        config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "cgroup"}));
        config["mounts"].as_array_mut().unwrap().push(json!({
            "destination": GROUPS, "type": "cgroup", "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "relatime", access],
        }));
        config["process"]["args"] = json!(["sh", "-c", program]);
    });
}

/// The first process goes into a group below the container's, whose children then get controllers: a nested manager does that.
const NEST: &str = "mkdir /sys/fs/cgroup/inner && echo 1 > /sys/fs/cgroup/inner/cgroup.procs \
    && echo +pids > /sys/fs/cgroup/cgroup.subtree_control && echo ready > /tmp/ready; sleep 1000";

fn nested(rig: &Rig) {
    with_hierarchy(rig, "rw", NEST);
    rig.up();
    wait_for("it has nested groups", || rig.rootfs().join("tmp/ready").exists());
}

#[test]
fn every_controller_comes_down_to_the_container() {
    let Some(mut rig) = rig() else { return };
    let parent = format!("/{}-parent", rig.id);
    rig.cgroup = format!("{parent}/middle/{}", rig.id);
    rig.configure(|_| {});
    rig.up();
    let wanted = ["cpu", "cpuset", "io", "memory", "pids", "hugetlb"];
    let has_all = |text: &str| wanted.iter().all(|name| text.split_whitespace().any(|word| word == *name));
    let controllers = read(&rig, "cgroup.controllers");
    assert!(has_all(&controllers), "{controllers}");
    // The container's own group has processes, so its children have none unless it makes room.
    assert_eq!(read(&rig, "cgroup.subtree_control"), "");
    let above = fs::read_to_string(format!("{GROUPS}{parent}/cgroup.subtree_control")).unwrap();
    assert!(has_all(&above), "{above}");
    let pid = rig.pid();
    let place = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert_eq!(place, format!("0::{}\n", rig.cgroup));
    rig.call(&["delete", "--force", &rig.id]).ok();
    rig.assert_nothing_left();
    for directory in [format!("{parent}/middle"), parent] {
        let _ = fs::remove_dir(format!("{GROUPS}{directory}"));
    }
}

#[test]
fn a_cgroup_namespace_begins_at_the_container() {
    let Some(rig) = rig() else { return };
    with_hierarchy(&rig, "ro", "cat /proc/self/cgroup; ls /sys/fs/cgroup; mkdir /sys/fs/cgroup/x");
    let called = rig.run();
    assert!(called.out.starts_with("0::/\n"), "{}", called.out);
    assert!(called.out.contains("cgroup.procs") && !called.out.contains("orlop"), "{}", called.out);
    assert!(called.error.contains("Read-only file system"), "{}", called.error);
    assert_ne!(called.code, 0);
    rig.assert_nothing_left();
}

#[test]
fn exec_finds_a_place_beside_nested_groups() {
    let Some(rig) = rig() else { return };
    if rig.subject.kind == Kind::Crun {
        return skip("Debian's crun is ended by a signal here");
    }
    nested(&rig);
    assert_eq!(read(&rig, "cgroup.subtree_control"), "pids");
    // The container's group may hold no process now ("No Internal Process Constraint").
    for _ in 0..2 {
        let place = rig.exec(&[], &["cat", "/proc/self/cgroup"]).ok();
        assert_eq!(place, "0::/inner\n");
    }
    let processes: Vec<u32> = serde_json::from_str(&rig.call(&["ps", "-f", "json", &rig.id]).ok()).unwrap();
    assert!(processes.contains(&rig.pid()), "{processes:?}");
    rig.call(&["kill", &rig.id, "KILL"]).ok();
    rig.wait_for_status("stopped");
    rig.verb("delete").ok();
    rig.assert_nothing_left();
}

#[test]
fn nested_groups_are_paused_and_resumed() {
    let Some(rig) = rig() else { return };
    nested(&rig);
    rig.verb("pause").ok();
    assert_eq!(rig.status(), "paused");
    assert!(read(&rig, "inner/cgroup.events").contains("frozen 1"));
    assert_eq!(read(&rig, "cgroup.freeze"), "1");
    rig.verb("resume").ok();
    assert_eq!(rig.status(), "running");
    assert!(read(&rig, "inner/cgroup.events").contains("frozen 0"));
    rig.verb("pause").ok();
    rig.call(&["delete", "--force", &rig.id]).ok();
    rig.assert_nothing_left();
}

#[test]
fn kill_all_reaches_nested_groups() {
    let Some(rig) = rig() else { return };
    rig.configure(|config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "pid");
        config["process"]["args"] = json!(["sh", "-c", "sleep 1000 & sleep 1000 & wait"]);
    });
    rig.up();
    wait_for("three processes", || rig.group().processes().len() == 3);
    let group = rig.group().unified_directory().unwrap();
    for (number, pid) in rig.group().processes().iter().skip(1).enumerate() {
        let inner: PathBuf = group.join(format!("a{number}/b"));
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("cgroup.procs"), pid.to_string()).unwrap();
    }
    assert_eq!(rig.group().processes().len(), 3);
    rig.call(&["kill", "--all", &rig.id, "KILL"]).ok();
    rig.wait_for_status("stopped");
    wait_for("no processes", || rig.group().processes().is_empty());
    rig.verb("delete").ok();
    rig.assert_nothing_left();
}

#[test]
fn a_group_that_was_frozen_before_is_refused() {
    let Some(rig) = rig() else { return };
    let group = Path::new(GROUPS).join(rig.cgroup.trim_start_matches('/'));
    fs::create_dir(&group).unwrap();
    fs::write(group.join("cgroup.freeze"), "1").unwrap();
    if rig.subject.kind != Kind::Crun {
        // Debian's crun waits for ever.
        assert_ne!(rig.create().code, 0);
    }
    fs::write(group.join("cgroup.freeze"), "0").unwrap();
    fs::remove_dir(&group).unwrap();
}

#[test]
fn the_root_of_a_user_namespace_manages_its_own_group() {
    let Some(rig) = rig() else { return };
    if !is_ours() {
        return skip("later runtimes only");
    }
    rig.open_to_all();
    let script = "mkdir /sys/fs/cgroup/inner && echo 1 > /sys/fs/cgroup/inner/cgroup.procs \
        && echo +memory > /sys/fs/cgroup/cgroup.subtree_control && cat /sys/fs/cgroup/inner/cgroup.controllers; \
        echo 1 > /sys/fs/cgroup/memory.max; rmdir /sys/fs/cgroup/inner";
    with_hierarchy(&rig, "rw", script);
    let path = rig.bundle().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    for maps in ["uidMappings", "gidMappings"] {
        config["linux"][maps] = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    }
    fs::write(&path, config.to_string()).unwrap();
    let called = rig.run();
    assert_eq!(called.out, "memory\n", "{}", called.error);
    // Its limits stay its parent's business (cgroup-v2.rst, "Delegation").
    assert!(called.error.contains("ermission denied"), "{}", called.error);
    rig.assert_nothing_left();
}

#[test]
fn devices_are_those_of_the_rules() {
    let Some(rig) = rig() else { return };
    rig.configure(|config| {
        for set in ["bounding", "effective", "permitted"] {
            config["process"]["capabilities"][set].as_array_mut().unwrap().push(json!("CAP_MKNOD"));
        }
        // A loop device, which nobody has by default: reading is allowed.
        config["linux"]["resources"]["devices"] = json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "b", "major": 7, "minor": 0, "access": "rm"},
        ]);
    });
    rig.up();
    let shell = |line: &str| rig.exec(&[], &["sh", "-c", line]);
    shell("head -c 1 /dev/zero > /dev/null && head -c 1 /dev/urandom > /dev/null").ok();
    shell("mknod /tmp/loop b 7 0").ok();
    // No disk is behind the loop device; the device itself may be opened.
    let called = shell("head -c 1 /tmp/loop");
    assert!(!called.error.contains("Operation not permitted"), "{}", called.error);
    let called = shell("echo x > /tmp/loop");
    assert!(called.error.contains("Operation not permitted"), "{}", called.error);
    if is_ours() {
        // Making is allowed as in runc's own default, opening is not.
        shell("mknod /tmp/serial c 4 64").ok();
        let called = shell("head -c 1 /tmp/serial");
        assert!(called.error.contains("Operation not permitted"), "{}", called.error);
    }
    rig.call(&["update", "--memory", "67108864", &rig.id]).ok();
    let called = shell("echo x > /tmp/loop");
    assert!(
        called.error.contains("Operation not permitted"),
        "the policy outlives an update: {}",
        called.error
    );
}
