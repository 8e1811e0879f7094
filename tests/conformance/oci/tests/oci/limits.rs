use std::fs;

use orlop_conformance_oci::{Rig, differs, has_limits, is_ours, wait_for};

#[test]
fn update_is_seen_in_the_control_group() {
    if !has_limits() {
        return;
    }
    let Some(rig) = Rig::new() else { return };
    rig.configure(|config| {
        config["linux"]["resources"]["memory"] = serde_json::json!({"limit": 64 << 20});
        config["linux"]["resources"]["pids"] = serde_json::json!({"limit": 20});
    });
    rig.up();
    let memory = || rig.cgroup_file(("memory", "memory.limit_in_bytes"), "memory.max");
    let pids = || rig.cgroup_file(("pids", "pids.max"), "pids.max");
    assert_eq!((memory(), pids()), ((64 << 20).to_string(), "20".to_owned()));
    let devices = rig.cgroup_file(("devices", "devices.list"), "cgroup.controllers");

    if differs("limits of -1 and all options of update") {
        return;
    }
    rig.call(&["update", "--memory", "33554432", "--pids-limit", "10", &rig.id]).ok();
    assert_eq!((memory(), pids()), ((32 << 20).to_string(), "10".to_owned()));
    rig.call(&["update", "--cpu-share", "512", "--cpu-quota", "20000", "--cpu-period", "50000", &rig.id])
        .ok();
    let cpu = |file: &str| rig.cgroup_file(("cpu", file), "cpu.max");
    let seen = (cpu("cpu.shares"), cpu("cpu.cfs_quota_us"), cpu("cpu.cfs_period_us"));
    assert!(seen == ("512".into(), "20000".into(), "50000".into()) || seen.0 == "20000 50000", "{seen:?}");

    let resources = r#"{"memory":{"limit":134217728},"cpu":{"quota":-1},"pids":{"limit":-1}}"#;
    rig.call_with_input(&["update", "--resources", "-", &rig.id], resources).ok();
    assert_eq!(memory(), "134217728");
    if is_ours() {
        assert_eq!(pids(), "max");
    }
    let file = rig.path("resources.json");
    fs::write(&file, r#"{"memory":{"limit":33554432,"swap":67108864}}"#).unwrap();
    rig.call(&["update", "-r", file.to_str().unwrap(), &rig.id]).ok();
    assert_eq!(memory(), "33554432");
    // Both grow: the order of writes matters to the kernel.
    fs::write(&file, r#"{"memory":{"limit":134217728,"swap":268435456}}"#).unwrap();
    rig.call(&["update", "-r", file.to_str().unwrap(), &rig.id]).ok();
    assert_eq!(memory(), "134217728");
    // The device policy is as it was.
    assert_eq!(rig.cgroup_file(("devices", "devices.list"), "cgroup.controllers"), devices);
    rig.call(&["update", "--memory", "lots", &rig.id]).fails("lots");
    fs::write(&file, "{").unwrap();
    rig.call(&["update", "-r", file.to_str().unwrap(), &rig.id]).fails("");
}

#[test]
fn paused_and_resumed() {
    let Some(rig) = Rig::new() else { return };
    rig.configure_program(&["sh", "-c", "while :; do echo x >> /tmp/beat; sleep 0.01; done"]);
    rig.up();
    let beats = || fs::read_to_string(rig.rootfs().join("tmp/beat")).map_or(0, |text| text.len());
    wait_for("it beats", || beats() > 0);
    rig.verb("pause").ok();
    assert_eq!(rig.status(), "paused");
    let before = beats();
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(beats(), before);
    if !differs("exec in a paused container is refused") {
        rig.exec(&[], &["true"]).fails("paused");
    }
    rig.verb("resume").ok();
    assert_eq!(rig.status(), "running");
    wait_for("it beats again", || beats() > before);
    if is_ours() {
        rig.verb("resume").fails("not paused");
    }
    if differs("a paused container can be killed") {
        rig.call(&["delete", "--force", &rig.id]).ok();
        return;
    }
    // A paused one dies too.
    rig.verb("pause").ok();
    rig.call(&["kill", &rig.id, "KILL"]).ok();
    rig.wait_for_status("stopped");
    rig.verb("pause").fails("not running");
    rig.verb("delete").ok();
    rig.assert_nothing_left();

    rig.up();
    rig.verb("pause").ok();
    rig.call(&["delete", "--force", &rig.id]).ok();
    rig.assert_nothing_left();
}

#[test]
fn events_show_what_is_used() {
    let Some(rig) = Rig::new() else { return };
    if differs("events") {
        return;
    }
    rig.up();
    let text = rig.call(&["events", "--stats", &rig.id]).ok();
    let event: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&event["type"], &event["id"]), (&"stats".into(), &rig.id.as_str().into()));
    // The kernel counts what ended until it has cleaned up.
    if has_limits() {
        assert!(event["data"]["pids"]["current"].as_u64().unwrap() >= 1);
        assert!(event["data"]["memory"]["usage"]["usage"].as_u64().unwrap() > 0);
    }
    assert!(event["data"]["cpu"]["usage"]["total"].as_u64().unwrap() > 0);
}

#[test]
fn events_end_with_the_container_and_tell_of_oom() {
    if !has_limits() || differs("events") {
        return;
    }
    let Some(rig) = Rig::new() else { return };
    rig.configure(|config| {
        config["linux"]["resources"]["memory"] = serde_json::json!({"limit": 8 << 20, "swap": 8 << 20});
        let eat = "while [ ! -e /tmp/go ]; do sleep 0.05; done; a=x; while :; do a=$a$a; done";
        config["process"]["args"] = serde_json::json!(["sh", "-c", eat]);
    });
    rig.up();
    let mut command = rig.command(&["events", "--interval", "100ms", &rig.id]);
    let out = rig.path("events");
    command.stdout(fs::File::create(&out).unwrap());
    let mut child = orlop_conformance_oci::Child(command.spawn().unwrap());
    let seen = || fs::read_to_string(&out).unwrap();
    wait_for("the first event", || seen().contains("\"stats\""));
    fs::write(rig.rootfs().join("tmp/go"), "").unwrap();
    rig.wait_for_status("stopped");
    wait_for("the OOM event", || seen().contains("\"oom\""));
    if is_ours() {
        assert!(child.0.wait().unwrap().success());
    }
}
