//! runtime.md, "Lifecycle", "Operations", "Errors", "Warnings": what is not in `lifecycle`.

use std::fs;

use orlop_conformance_oci::{Rig, add_mount, differs, wait_for};
use serde_json::json;

#[test]
fn changes_after_create_have_no_effect() {
    let Some(rig) = Rig::new() else { return };
    rig.configure_program(&["sh", "-c", "echo old > /tmp/said; sleep 1000"]);
    rig.create().ok();
    rig.configure(|config| {
        config["process"]["args"] = json!(["sh", "-c", "echo new > /tmp/said"]);
        config["hostname"] = "new".into();
    });
    rig.verb("start").ok();
    wait_for("it speaks", || {
        fs::read_to_string(rig.rootfs().join("tmp/said")).is_ok_and(|text| !text.is_empty())
    });
    assert_eq!(fs::read_to_string(rig.rootfs().join("tmp/said")).unwrap(), "old\n");
}

#[test]
fn create_does_not_run_the_program() {
    let Some(rig) = Rig::new() else { return };
    rig.configure_program(&["touch", "/tmp/ran"]);
    rig.create().ok();
    // Everything that is set up is set up now; the program waits.
    assert_eq!(rig.status(), "created");
    assert!(!rig.rootfs().join("tmp/ran").exists());
    rig.verb("start").ok();
    rig.wait_for_status("stopped");
    assert!(rig.rootfs().join("tmp/ran").exists());
    rig.verb("delete").ok();
    rig.assert_nothing_left();
}

#[test]
fn delete_removes_what_create_made_and_nothing_else() {
    let Some(rig) = Rig::new() else { return };
    let volume = rig.path("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("file"), "kept").unwrap();
    rig.configure(|config| {
        add_mount(
            config,
            json!({"destination": "/v", "type": "bind", "source": volume, "options": ["bind"]}),
        );
        config["process"]["args"] = json!(["sh", "-c", "echo own > /kept; echo more > /v/more"]);
    });
    rig.up();
    rig.wait_for_status("stopped");
    rig.verb("delete").ok();
    assert_eq!(fs::read_to_string(volume.join("file")).unwrap(), "kept");
    assert_eq!(fs::read_to_string(volume.join("more")).unwrap(), "more\n");
    assert_eq!(fs::read_to_string(rig.rootfs().join("kept")).unwrap(), "own\n");
    assert!(rig.bundle().join("config.json").exists());
    rig.assert_nothing_left();
}

#[test]
fn signals_arrive() {
    let Some(rig) = Rig::new() else { return };
    let names = [("TERM", "15"), ("SIGUSR1", "10"), ("12", "12"), ("HUP", "1"), ("RTMIN+3", "37")];
    let traps: String =
        names.iter().map(|(_, number)| format!("trap 'echo {number} > /tmp/got' {number}; ")).collect();
    rig.configure_program(&["sh", "-c", &format!("{traps} echo > /tmp/ready; while :; do sleep 0.05; done")]);
    rig.up();
    wait_for("it is ready", || rig.rootfs().join("tmp/ready").exists());
    for (name, number) in names {
        if name.starts_with("RT") && differs("real-time signals by name") {
            continue;
        }
        rig.call(&["kill", &rig.id, name]).ok();
        wait_for(name, || {
            fs::read_to_string(rig.rootfs().join("tmp/got")).is_ok_and(|text| text.trim() == number)
        });
        assert_eq!(rig.status(), "running");
    }
    if !differs("unknown signals are refused") {
        assert_ne!(rig.call(&["kill", &rig.id, "NO-SUCH"]).code, 0);
    }
}

#[test]
fn without_a_process() {
    let Some(rig) = Rig::new() else { return };
    rig.configure(|config| {
        config.as_object_mut().unwrap().remove("process");
    });
    // A runtime may refuse at create, or at start (runtime.md, "Start").
    let refused = rig.create().code != 0 || rig.verb("start").code != 0;
    assert!(refused);
    rig.call(&["delete", "--force", &rig.id]);
    rig.assert_nothing_left();
}

#[test]
fn arguments_are_needed() {
    let Some(rig) = Rig::new() else { return };
    for verb in ["create", "start", "state", "kill", "delete", "exec"] {
        assert_ne!(rig.call(&[verb]).code, 0, "{verb}");
    }
    for bad in [json!("7.0.0"), json!("not a version")] {
        if differs("ociVersion is checked") {
            break;
        }
        rig.configure(|config| config["ociVersion"] = bad.clone());
        assert_ne!(rig.create().code, 0, "{bad}");
        rig.assert_nothing_left();
    }
}
