//! config-linux.md, "Namespaces", "User namespace mappings", "Offset for Time Namespace".

use std::process::Stdio;

use orlop_conformance_oci::{
    Child, Rig, busybox, differs, drop_namespace, own_namespace, set_namespace, wait_for,
};
use serde_json::json;

const LOOK: &str = "for n in pid ipc uts mnt net cgroup; do readlink /proc/self/ns/$n; done";
const KINDS: [(&str, &str); 6] = [
    ("pid", "pid"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("mnt", "mount"),
    ("net", "network"),
    ("cgroup", "cgroup"),
];

#[test]
fn new_ones_for_those_that_are_listed() {
    let Some(rig) = Rig::new() else { return };
    let out = rig.shell(LOOK, |config| set_namespace(config, json!({"type": "cgroup"}))).ok();
    for ((name, _), seen) in KINDS.iter().zip(out.lines()) {
        assert_ne!(seen, own_namespace(name), "{name}");
    }
    let out = rig
        .shell("echo $$; cat /proc/self/cgroup", |config| set_namespace(config, json!({"type": "cgroup"})))
        .ok();
    assert!(out.starts_with("1\n"), "{out}");
    assert!(out.lines().skip(1).all(|line| line.ends_with(":/")), "{out}");
}

#[test]
fn the_callers_for_those_that_are_not() {
    let Some(rig) = Rig::new() else { return };
    for (name, kind) in KINDS.iter().filter(|(_, kind)| *kind != "mount") {
        let line = format!("readlink /proc/self/ns/{name}");
        let called = rig.shell(&line, |config| {
            drop_namespace(config, kind);
            if *kind == "network" {
                // sysfs shows a network namespace; only its owner mounts it.
                config["mounts"].as_array_mut().unwrap().retain(|mount| mount["type"] != "sysfs");
            }
        });
        assert_eq!(called.ok().trim(), own_namespace(name), "{name}");
    }
}

/// A process with namespaces of its own to join.
fn holder(options: &[&str]) -> Child {
    let mut command = std::process::Command::new(busybox());
    command.arg("unshare").args(options).arg(busybox()).args(["sleep", "1000"]);
    let child = Child(command.stdin(Stdio::null()).spawn().unwrap());
    let comm = format!("/proc/{}/cmdline", child.0.id());
    wait_for("it sleeps", || {
        std::fs::read_to_string(&comm)
            .is_ok_and(|text| text.contains("\0sleep\0") && !text.contains("unshare"))
    });
    child
}

#[test]
fn somebody_elses_by_path() {
    let Some(rig) = Rig::new() else { return };
    let held = holder(&["-n", "-u", "-i"]);
    let path = |name: &str| format!("/proc/{}/ns/{name}", held.0.id());
    rig.configure(|config| {
        for (name, kind) in [("net", "network"), ("uts", "uts"), ("ipc", "ipc")] {
            set_namespace(config, json!({"type": kind, "path": path(name)}));
        }
    });
    rig.up();
    let all = rig.exec(&[], &["sh", "-c", LOOK]).ok();
    for (name, _) in KINDS {
        let of = |pid: u32| {
            std::fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap().to_string_lossy().into_owned()
        };
        if ["net", "uts", "ipc"].contains(&name) {
            assert_eq!(of(rig.pid()), of(held.0.id()), "{name}");
        }
        assert!(all.contains(&of(rig.pid())), "exec is not in {name}: {all}");
    }
}

#[test]
fn another_containers_pids() {
    let Some(rig) = Rig::new() else { return };
    rig.up();
    let second = format!("{}-second", rig.id);
    let path = format!("/proc/{}/ns/pid", rig.pid());
    rig.configure(|config| {
        set_namespace(config, json!({"type": "pid", "path": path}));
        config["linux"]["cgroupsPath"] = format!("/{second}").into();
        config["process"]["args"] = json!(["sh", "-c", "echo $$; tr '\\0' ' ' < /proc/1/cmdline"]);
    });
    let bundle = rig.bundle();
    let out = rig.call(&["run", "-b", bundle.to_str().unwrap(), &second]).ok();
    assert!(!out.starts_with("1\n") && out.ends_with("sleep 1000 "), "{out}");
}

#[test]
fn bad_namespaces() {
    let Some(rig) = Rig::new() else { return };
    let held = holder(&["-n"]);
    let wrong = format!("/proc/{}/ns/net", held.0.id());
    for bad in [
        json!({"type": "uts", "path": wrong}),
        json!({"type": "network", "path": "/no/such/namespace"}),
        json!({"type": "network", "path": "/etc/hostname"}),
        json!({"type": "no-such-type"}),
    ] {
        assert_ne!(rig.shell("true", |config| set_namespace(config, bad.clone())).code, 0, "{bad}");
        rig.assert_nothing_left();
    }
    if !differs("duplicate namespaces are refused") {
        let called = rig.shell("true", |config| {
            config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "pid"}));
        });
        assert_ne!(called.code, 0);
    }
    rig.assert_nothing_left();
}

#[test]
fn user_ids_are_mapped() {
    let Some(rig) = Rig::new() else { return };
    rig.open_to_all();
    let mappings = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}, {"containerID": 1000, "hostID": 200_000, "size": 5}]);
    let line = "cat /proc/self/uid_map; echo -; cat /proc/self/gid_map; cat /proc/self/setgroups; touch /made; readlink /proc/self/ns/user";
    let out = rig
        .shell(line, |config| {
            set_namespace(config, json!({"type": "user"}));
            config["linux"]["uidMappings"] = mappings.clone();
            config["linux"]["gidMappings"] = mappings;
        })
        .ok();
    let numbers: Vec<&str> = out.split('-').next().unwrap().split_whitespace().collect();
    assert_eq!(numbers, ["0", "100000", "1000", "1000", "200000", "5"]);
    assert!(!out.contains(&own_namespace("user")) && out.contains("allow\n"), "{out}");
    let made = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(rig.rootfs().join("made")).unwrap());
    assert_eq!(made, 100_000);
    rig.assert_nothing_left();
}

#[test]
fn clocks_are_shifted() {
    let Some(rig) = Rig::new() else { return };
    if differs("time namespaces") {
        return;
    }
    rig.configure(|config| {
        set_namespace(config, json!({"type": "time"}));
        config["linux"]["timeOffsets"] =
            json!({"monotonic": {"secs": 7200, "nanosecs": 5}, "boottime": {"secs": 86400}});
    });
    rig.up();
    let look = ["cat", "/proc/self/timens_offsets", "/proc/uptime"];
    let out = rig.exec(&[], &look).ok();
    let words: Vec<&str> = out.split_whitespace().collect();
    assert_eq!(words[..6], ["monotonic", "7200", "5", "boottime", "86400", "0"], "{out}");
    let outside: f64 =
        std::fs::read_to_string("/proc/uptime").unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(words[6].parse::<f64>().unwrap() > outside + 80_000.0, "{out}");
}
