//! config-linux.md, "Control groups", on cgroup v2 alone: what each limit becomes (cgroup-v2.rst).

use std::fs;

use orlop_conformance_oci::{Kind, Rig, is_ours, is_unified, skip, wait_for};
use serde_json::{Value, json};

/// A container on a machine with v2 alone.
pub(crate) fn rig() -> Option<Rig> {
    if !is_unified() {
        skip("needs cgroup v2 alone");
        return None;
    }
    Rig::new()
}

/// A file of the container's group.
pub(crate) fn read(rig: &Rig, file: &str) -> String {
    let path = rig.group().unified_directory().unwrap().join(file);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.trim().to_owned()
}

/// Debian's crun leaves the group behind.
fn nothing_left_of_a_failure(rig: &Rig) {
    if rig.subject.kind == Kind::Crun {
        for directory in rig.cgroup_directories() {
            fs::remove_dir(directory).unwrap();
        }
    }
    rig.assert_nothing_left();
}

fn with_resources(rig: &Rig, resources: Value) {
    rig.configure(|config| {
        for (name, value) in resources.as_object().unwrap() {
            config["linux"]["resources"][name] = value.clone();
        }
    });
}

/// runc since 1.3.2 and crun since 1.23 convert so that 1024 becomes v2's default; Debian's are older.
fn is_weight(weight: &str, new: u32, old: u32) -> bool {
    weight == new.to_string() || !is_ours() && weight == old.to_string()
}

#[test]
fn each_limit_has_its_file() {
    let Some(rig) = rig() else { return };
    with_resources(
        &rig,
        json!({
            "memory": {"limit": 64 << 20, "swap": 96 << 20, "reservation": 16 << 20},
            "cpu": {"shares": 1024, "quota": 25_000, "period": 50_000, "cpus": "0", "mems": "0"},
            "pids": {"limit": 20},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}],
        }),
    );
    rig.up();
    for (file, value) in [
        ("memory.max", (64 << 20).to_string()),
        // v2 counts swap alone.
        ("memory.swap.max", (32 << 20).to_string()),
        ("memory.low", (16 << 20).to_string()),
        ("cpu.max", "25000 50000".to_owned()),
        ("cpuset.cpus", "0".to_owned()),
        ("cpuset.mems", "0".to_owned()),
        ("pids.max", "20".to_owned()),
        ("hugetlb.2MB.max", (4 << 20).to_string()),
    ] {
        assert_eq!(read(&rig, file), value, "{file}");
    }
    let weight = read(&rig, "cpu.weight");
    assert!(is_weight(&weight, 100, 39), "{weight}");
    if is_ours() {
        assert_eq!(read(&rig, "hugetlb.2MB.rsvd.max"), (4 << 20).to_string());
    }
}

#[test]
fn equal_limits_of_memory_and_both_leave_no_swap() {
    let Some(rig) = rig() else { return };
    with_resources(&rig, json!({"memory": {"limit": 32 << 20, "swap": 32 << 20}}));
    rig.up();
    assert_eq!(read(&rig, "memory.swap.max"), "0");
}

#[test]
fn no_limit_is_max() {
    let Some(rig) = rig() else { return };
    with_resources(
        &rig,
        json!({"memory": {"limit": -1, "swap": -1}, "cpu": {"quota": -1, "period": 50_000}, "pids": {"limit": -1}}),
    );
    rig.up();
    let seen = ["memory.max", "memory.swap.max", "cpu.max", "pids.max"].map(|file| read(&rig, file));
    assert_eq!(seen, ["max", "max", "max 50000", "max"]);
}

#[test]
fn input_and_output_have_weights_and_limits() {
    let Some(rig) = rig() else { return };
    let Ok(device) = fs::read_to_string("/sys/block/ram0/dev") else {
        return skip("needs the disk /dev/ram0");
    };
    let (major, minor) = device.trim().split_once(':').unwrap();
    let number = |text: &str| text.parse::<i64>().unwrap();
    let (major, minor) = (number(major), number(minor));
    let limit = |rate: u64| json!([{"major": major, "minor": minor, "rate": rate}]);
    with_resources(
        &rig,
        json!({"blockIO": {
            "weight": 500, "throttleReadBpsDevice": limit(1 << 20), "throttleWriteIOPSDevice": limit(100),
        }}),
    );
    rig.up();
    let limits = read(&rig, "io.max");
    assert!(limits.contains("rbps=1048576") && limits.contains("wiops=100"), "{limits}");
    let weight = rig.group().unified_directory().unwrap().join("io.bfq.weight");
    if !weight.exists() {
        assert_eq!(read(&rig, "io.weight"), "default 4950");
    }
}

#[test]
fn the_unified_map_is_written_as_it_is() {
    let Some(rig) = rig() else { return };
    with_resources(
        &rig,
        json!({
            "pids": {"limit": 20},
            "unified": {"memory.high": "50331648", "memory.oom.group": "1", "pids.max": "30", "cpu.weight": "77"},
        }),
    );
    rig.up();
    let seen = ["memory.high", "memory.oom.group", "cpu.weight"].map(|file| read(&rig, file));
    assert_eq!(seen, ["50331648", "1", "77"]);
    if rig.subject.kind != Kind::Crun {
        assert_eq!(read(&rig, "pids.max"), "30", "the map overrules what is converted");
    }
}

#[test]
fn the_unified_map_reaches_no_other_group() {
    let Some(rig) = rig() else { return };
    for file in ["../memory.max", "nothing.such", "memory.nothing"] {
        with_resources(&rig, json!({"unified": {file: "1"}}));
        let created = rig.create();
        assert_ne!(created.code, 0, "{file}");
        assert!(!is_ours() || created.error.contains(file), "{file}: {}", created.error);
        nothing_left_of_a_failure(&rig);
    }
    if is_ours() {
        with_resources(&rig, json!({"unified": {"cgroup.procs": "1"}}));
        rig.create().fails("cgroup.procs");
        rig.assert_nothing_left();
    }
}

#[test]
fn what_version_2_has_not_is_refused() {
    let Some(rig) = rig() else { return };
    for (resources, text) in [
        (json!({"cpu": {"realtimeRuntime": 95_000, "realtimePeriod": 100_000}}), "realtime"),
        (json!({"memory": {"swap": 64 << 20}}), "memory"),
        (json!({"memory": {"limit": 64 << 20, "swap": 32 << 20}}), "memory"),
        (json!({"rdma": {"no-such-device": {"hcaHandles": 3}}}), "rdma"),
    ] {
        if !is_ours() && resources.get("memory").is_none() {
            // Debian's runc ignores realtime, Debian's crun RDMA.
            continue;
        }
        with_resources(&rig, resources);
        rig.create().fails(text);
        nothing_left_of_a_failure(&rig);
    }
}

#[test]
fn update_changes_every_kind() {
    let Some(rig) = rig() else { return };
    with_resources(&rig, json!({"memory": {"limit": 64 << 20, "swap": 64 << 20}}));
    rig.up();
    let update = |resources: Value| {
        rig.call_with_input(&["update", "--resources", "-", &rig.id], &resources.to_string()).ok();
    };
    // Both grow, then both shrink.
    for (limit, swap) in [(128_i64 << 20, 192_i64 << 20), (32 << 20, 32 << 20)] {
        update(json!({"memory": {"limit": limit, "swap": swap}}));
        let seen = (read(&rig, "memory.max"), read(&rig, "memory.swap.max"));
        assert_eq!(seen, (limit.to_string(), (swap - limit).to_string()));
    }
    update(
        json!({"memory": {"reservation": 8 << 20}, "cpu": {"shares": 512, "cpus": "0"}, "pids": {"limit": 9}}),
    );
    assert_eq!(["memory.low", "cpuset.cpus", "pids.max"].map(|file| read(&rig, file)), ["8388608", "0", "9"]);
    let weight = read(&rig, "cpu.weight");
    assert!(is_weight(&weight, 59, 20), "{weight}");
    update(json!({"cpu": {"quota": 20_000, "period": 50_000}}));
    assert_eq!(read(&rig, "cpu.max"), "20000 50000");
    if is_ours() {
        update(json!({"cpu": {"period": 100_000}}));
        assert_eq!(read(&rig, "cpu.max"), "20000 100000");
        update(
            json!({"cpu": {"burst": 10_000}, "unified": {"memory.high": "30000000", "memory.oom.group": "1"}}),
        );
        // Whole pages.
        assert_eq!(read(&rig, "memory.high"), (30_000_000 / 4096 * 4096).to_string());
        assert_eq!(read(&rig, "cpu.max.burst"), "10000");
        rig.call_with_input(&["update", "-r", "-", &rig.id], r#"{"unified":{"../x":"1"}}"#).fails("../x");
    }
}

#[test]
fn the_number_of_processes_is_limited() {
    let Some(rig) = rig() else { return };
    with_resources(&rig, json!({"pids": {"limit": 3}}));
    rig.up();
    let called = rig.exec(&[], &["sh", "-c", "sleep 5 & sleep 5 & sleep 5 & sleep 5 &"]);
    assert!(called.error.contains("fork") || called.code != 0, "{:?} {:?}", called.out, called.error);
    assert!(read(&rig, "pids.events").starts_with("max ") && read(&rig, "pids.events") != "max 0");
}

#[test]
fn the_oom_killer_takes_the_whole_group_when_asked() {
    let Some(rig) = rig() else { return };
    rig.configure(|config| {
        // Outside of a PID namespace, where nothing dies with the first process.
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "pid");
        config["linux"]["resources"]["memory"] = json!({"limit": 16 << 20, "swap": 16 << 20});
        config["linux"]["resources"]["unified"] = json!({"memory.oom.group": "1"});
        let eat = "sleep 1000 & while [ ! -e /tmp/go ]; do sleep 0.05; done; sh -c 'a=x; while :; do a=$a$a; done'; sleep 1000";
        config["process"]["args"] = json!(["sh", "-c", eat]);
    });
    rig.up();
    fs::write(rig.rootfs().join("tmp/go"), "").unwrap();
    rig.wait_for_status("stopped");
    wait_for("all are dead", || rig.group().processes().is_empty());
    let events = read(&rig, "memory.events");
    assert!(!events.contains("oom_group_kill 0"), "{events}");
    rig.verb("delete").ok();
    rig.assert_nothing_left();
}

#[test]
fn events_tell_of_limits() {
    let Some(rig) = rig() else { return };
    if rig.subject.kind == Kind::Crun {
        return skip("crun has no events");
    }
    with_resources(
        &rig,
        json!({"memory": {"limit": 64 << 20, "swap": 96 << 20}, "pids": {"limit": 20}, "cpu": {"quota": 50_000, "period": 100_000}}),
    );
    rig.up();
    let event: Value = serde_json::from_str(&rig.call(&["events", "--stats", &rig.id]).ok()).unwrap();
    let data = &event["data"];
    assert_eq!(data["pids"]["limit"], 20);
    assert_eq!(data["memory"]["usage"]["limit"], 64 << 20);
    assert!(data["memory"]["usage"]["usage"].as_u64().unwrap() > 0);
    assert!(data["memory"]["raw"]["anon"].as_u64().is_some(), "{data}");
    assert!(data["cpu"]["usage"]["total"].as_u64().unwrap() > 0);
    if is_ours() {
        // Microseconds in the kernel, nanoseconds here: more than a bare start takes.
        assert!(data["cpu"]["usage"]["total"].as_u64().unwrap() > 100_000, "{data}");
        assert!(data["hugetlb"]["2MB"].is_object(), "{data}");
    }
}
