use std::fs;

use serde_json::Value;

use orlop_conformance_oci::{Kind, Rig, differs, is_ours};

#[test]
fn bad_bundles() {
    let Some(rig) = Rig::new() else { return };
    let config = rig.bundle().join("config.json");
    let good = fs::read_to_string(&config).unwrap();
    fs::write(&config, &good[..good.len() / 2]).unwrap();
    rig.create().fails("EOF");
    rig.assert_nothing_left();
    fs::remove_file(&config).unwrap();
    rig.create().fails("config.json");
    rig.assert_nothing_left();
    fs::write(&config, &good).unwrap();
    rig.call(&["create", "-b", "/nonexistent", &rig.id]).fails("/nonexistent");
    rig.configure(|config| config["root"]["path"] = "missing".into());
    rig.create().fails("missing");
    rig.assert_nothing_left();
    if differs("process.cwd must be absolute") {
        return;
    }
    rig.configure(|config| config["process"]["cwd"] = "relative".into());
    rig.create().fails("absolute path");
    rig.assert_nothing_left();
}

#[test]
fn bad_ids() {
    let Some(rig) = Rig::new() else { return };
    let bundle = rig.bundle();
    for id in ["..", "a/b", "../../escape", "a b"] {
        if id == "a b" && differs("ids with spaces are refused") {
            continue;
        }
        rig.call(&["create", "-b", bundle.to_str().unwrap(), id]).fails("invalid");
        rig.call(&["state", id]).fails("");
    }
    assert!(rig.call(&["create", "-b", bundle.to_str().unwrap(), ""]).code != 0);
    rig.assert_nothing_left();
}

#[test]
fn unknown_containers() {
    let Some(rig) = Rig::new() else { return };
    for verb in ["start", "state", "kill", "delete", "ps", "events", "pause", "resume", "update"] {
        if verb == "events" && differs("events") {
            continue;
        }
        rig.verb(verb).fails("does not exist");
    }
    rig.exec(&[], &["true"]).fails("does not exist");
}

#[test]
fn programs_that_do_not_exist() {
    let Some(rig) = Rig::new() else { return };
    for (program, text) in [("nope", "executable file not found in $PATH"), ("/nope", "no such file")] {
        rig.configure_program(&[program]);
        let called = rig.create();
        assert_ne!(called.code, 0);
        let as_runc = called.error.to_lowercase().contains(&text.to_lowercase());
        assert!(as_runc || called.kind == Kind::Crun, "{}", called.error);
        rig.assert_nothing_left();
        let called = rig.run();
        assert_ne!(called.code, 0);
        rig.assert_nothing_left();
    }
    fs::write(rig.rootfs().join("bin/plain"), "not executable").unwrap();
    rig.configure_program(&["/bin/plain"]);
    let error = rig.create().error;
    assert!(error.to_lowercase().contains("permission denied"), "{error}");
    rig.assert_nothing_left();
}

#[test]
fn a_program_that_the_kernel_refuses_is_reported_by_start() {
    use std::os::unix::fs::PermissionsExt;
    let Some(rig) = Rig::new() else { return };
    if !is_ours() {
        return;
    }
    let path = rig.rootfs().join("bin/strange");
    fs::write(&path, "\u{1}\u{2}neither script nor binary").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    rig.configure_program(&["/bin/strange"]);
    rig.create().ok();
    rig.verb("start").fails("Exec format error");
    rig.wait_for_status("stopped");
    rig.verb("delete").ok();
    rig.assert_nothing_left();
}

#[test]
fn the_log_has_the_error_as_containerd_reads_it() {
    let Some(rig) = Rig::new() else { return };
    let log = rig.path("log.json");
    let call = |format: &str| {
        rig.call(&["--log", log.to_str().unwrap(), "--log-format", format, "state", &rig.id]).fails("exist");
        fs::read_to_string(&log).unwrap()
    };
    let text = call("json");
    let line: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(line["level"], "error");
    assert!(line["msg"].as_str().unwrap().contains("does not exist") || rig.subject.kind == Kind::Crun);
    assert!(line["time"].as_str().unwrap().contains('T'));
    // Appended to, never truncated.
    let text = call("text");
    assert_eq!(text.lines().count(), 2);
    let of_logrus = text.lines().last().unwrap().contains("level=error msg=\"");
    assert!(of_logrus || rig.subject.kind == Kind::Crun, "{text}");
}

#[test]
fn what_is_not_supported_says_so() {
    let Some(rig) = Rig::new() else { return };
    if !is_ours() {
        return;
    }
    for (arguments, text) in [
        (&["checkpoint", "--image-path", "/x", "a"][..], "checkpoint is not supported"),
        (&["restore", "a"], "restore is not supported"),
        (&["--systemd-cgroup", "list"], "--systemd-cgroup"),
        (&["--rootless=true", "list"], "rootless"),
        (&["exec", "--cgroup", "cpu:/x", "a", "true"], "does not exist"),
        (&["frobnicate"], "frobnicate"),
    ] {
        rig.call(arguments).fails(text);
    }
    for arguments in [&["--rootless", "list"][..], &["--rootless=maybe", "list"]] {
        assert_ne!(rig.call(arguments).code, 0);
    }
    assert_eq!(rig.call(&["--rootless=auto", "--debug", "list", "-q"]).ok(), "");
    rig.configure(|config| config["process"]["selinuxLabel"] = "a:b:c".into());
    rig.create().fails("SELinux");
    rig.configure(|config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "mount");
    });
    rig.create().fails("mount namespace");
    rig.configure(|config| config["linux"]["cgroupsPath"] = "system.slice:a:b".into());
    rig.create().fails("cgroupsPath");
    rig.assert_nothing_left();
}

#[test]
fn a_control_group_with_processes_is_not_taken() {
    let Some(rig) = Rig::new() else { return };
    if !is_ours() {
        return;
    }
    rig.up();
    let first = rig.pid();
    let bundle = rig.bundle();
    rig.call(&["create", "-b", bundle.to_str().unwrap(), "second"]).fails("not empty");
    assert_eq!((rig.status().as_str(), rig.pid()), ("running", first));
    assert!(!rig.root().join("second").exists());
}

#[test]
fn a_creation_that_died_can_be_removed() {
    let Some(rig) = Rig::new() else { return };
    if !is_ours() {
        return;
    }
    rig.create().ok();
    rig.call(&["kill", &rig.id, "KILL"]).ok();
    rig.wait_for_status("stopped");
    let path = rig.root().join(&rig.id).join("state.json");
    let mut state: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    state["init"] = Value::Null;
    fs::write(&path, state.to_string()).unwrap();
    assert_eq!(rig.status(), "creating");
    rig.verb("start").fails("creating");
    rig.call(&["delete", "--force", &rig.id]).ok();
    rig.assert_nothing_left();
    // Not even a record.
    fs::create_dir(rig.root().join(&rig.id)).unwrap();
    rig.create().ok();
    rig.verb("delete").ok();
    fs::create_dir(rig.root().join(&rig.id)).unwrap();
    rig.call(&["delete", "--force", &rig.id]).ok();
    rig.assert_nothing_left();
}

#[test]
fn version_features_and_spec() {
    let Some(rig) = Rig::new() else { return };
    assert!(rig.call(&["--version"]).ok().contains("spec: 1."));
    let config = rig.bundle().join("config.json");
    fs::remove_file(&config).unwrap();
    rig.call(&["spec", "--bundle", rig.bundle().to_str().unwrap()]).ok();
    rig.call(&["spec", "--bundle", rig.bundle().to_str().unwrap()]).fails("exists");
    let mut spec: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    // Runs as it is, but for the terminal.
    spec["process"]["terminal"] = false.into();
    spec["process"]["args"] = serde_json::json!(["sh", "-c", "exit 5"]);
    spec["linux"]["cgroupsPath"] = rig.cgroup.as_str().into();
    fs::write(&config, spec.to_string()).unwrap();
    assert_eq!(rig.run().code, 5);
    rig.assert_nothing_left();
    if is_ours() {
        let text = rig.call(&["--systemd-cgroup", "features"]).ok();
        let features: Value = serde_json::from_str(&text).unwrap();
        assert!(features["hooks"].as_array().unwrap().contains(&"startContainer".into()));
        assert_eq!(features["linux"]["seccomp"]["enabled"], true);
    }
}
