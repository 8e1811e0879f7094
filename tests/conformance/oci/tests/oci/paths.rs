//! config-linux.md, "Masked Paths" and "Readonly Paths".

use std::fs;

use orlop_conformance_oci::Rig;
use serde_json::json;

#[test]
fn masked() {
    let Some(rig) = Rig::new() else { return };
    fs::create_dir(rig.rootfs().join("secret")).unwrap();
    fs::write(rig.rootfs().join("secret/file"), "hidden").unwrap();
    fs::write(rig.rootfs().join("file"), "hidden").unwrap();
    let line = "cat /file /proc/uptime; ls -A /secret /proc/acpi /proc/fs; echo over; echo w > /file; touch /secret/w 2>&1; true";
    let out = rig
        .shell(line, |config| {
            config["linux"]["maskedPaths"] =
                json!(["/file", "/secret", "/proc/uptime", "/proc/fs", "/not/there"]);
        })
        .out;
    assert!(!out.contains("hidden") && !out.contains("ext4"), "{out}");
    assert!(out.contains("over\n") && out.contains("Read-only file system"), "{out}");
    assert_eq!(fs::read_to_string(rig.rootfs().join("file")).unwrap(), "hidden");
    assert!(!rig.rootfs().join("secret/w").exists() && !rig.rootfs().join("not").exists());
    rig.assert_nothing_left();
}

#[test]
fn read_only() {
    let Some(rig) = Rig::new() else { return };
    fs::create_dir(rig.rootfs().join("directory")).unwrap();
    fs::write(rig.rootfs().join("file"), "kept\n").unwrap();
    let line = "echo x > /file; touch /directory/x; echo 1 > /proc/sys/kernel/msgmax; cat /file; touch /tmp/x && echo other";
    let called = rig.shell(line, |config| {
        config["linux"]["readonlyPaths"] = json!(["/file", "/directory", "/proc/sys", "/not/there"]);
    });
    assert_eq!(called.out, "kept\nother\n");
    assert_eq!(called.error.to_lowercase().matches("read-only file system").count(), 3, "{}", called.error);
    rig.assert_nothing_left();
}

#[test]
fn hold_for_exec() {
    let Some(rig) = Rig::new() else { return };
    rig.configure(|config| {
        config["linux"]["maskedPaths"] = json!(["/proc/uptime"]);
        config["linux"]["readonlyPaths"] = json!(["/proc/sys"]);
    });
    rig.up();
    assert_eq!(rig.exec(&[], &["cat", "/proc/uptime"]).ok(), "");
    assert_ne!(rig.exec(&[], &["sh", "-c", "echo 5 > /proc/sys/kernel/msgmax"]).code, 0);
}
