//! config-linux.md, "Rootfs Mount Propagation", and the propagation options of config.md, "Linux mount options".

use std::fs;

use nix::mount::{MsFlags, mount};
use orlop_conformance_oci::{Rig, add_mount, differs};
use serde_json::json;

/// The optional fields of a mount (proc(5), mountinfo).
fn peers(table: &str, target: &str) -> String {
    let line = table
        .lines()
        .rfind(|line| line.split(' ').nth(4) == Some(target))
        .unwrap_or_else(|| panic!("no {target}: {table}"));
    line.split(" - ").next().unwrap().split(' ').skip(6).collect::<Vec<_>>().join(" ")
}

/// A shared mount of this thread's namespace.
fn shared(path: &std::path::Path) {
    fs::create_dir_all(path).unwrap();
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    mount(None::<&str>, path, None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
}

#[test]
fn of_the_root() {
    let Some(rig) = Rig::new() else { return };
    for (given, seen) in
        [("private", ""), ("rprivate", ""), ("shared", "shared:"), ("unbindable", "unbindable")]
    {
        if !seen.is_empty() && differs("rootfsPropagation shared and unbindable") {
            continue;
        }
        let out = rig
            .shell("cat /proc/self/mountinfo", |config| config["linux"]["rootfsPropagation"] = given.into())
            .ok();
        let fields = peers(&out, "/");
        let same = if seen.is_empty() { fields.is_empty() } else { fields.starts_with(seen) };
        assert!(same, "{given}: {fields:?}");
        rig.assert_nothing_left();
    }
    if differs("an unknown rootfsPropagation is refused") {
        return;
    }
    let called = rig.shell("true", |config| config["linux"]["rootfsPropagation"] = "none-such".into());
    assert_ne!(called.code, 0);
    rig.assert_nothing_left();
}

#[test]
fn of_a_mount() {
    let Some(rig) = Rig::new() else { return };
    let source = rig.path("source");
    shared(&source);
    for (given, seen) in [
        ("rshared", "shared:"),
        ("rslave", "master:"),
        ("rprivate", ""),
        ("slave", "master:"),
        ("shared", "shared:"),
        ("private", ""),
    ] {
        if !seen.is_empty() && differs("propagation of single mounts") {
            continue;
        }
        let out = rig
            .shell("cat /proc/self/mountinfo", |config| {
                add_mount(config, json!({"destination": "/m", "type": "bind", "source": source, "options": ["rbind", given]}));
            })
            .ok();
        let fields = peers(&out, "/m");
        let same = if seen.is_empty() { fields.is_empty() } else { fields.contains(seen) };
        assert!(same, "{given}: {fields:?}");
    }
}

#[test]
fn later_mounts_come_in_where_they_should() {
    let Some(rig) = Rig::new() else { return };
    let source = rig.path("source");
    shared(&source);
    fs::create_dir(source.join("later")).unwrap();
    rig.configure(|config| {
        for name in ["rslave", "rprivate"] {
            add_mount(config, json!({"destination": format!("/{name}"), "type": "bind", "source": source, "options": ["rbind", name]}));
        }
        config["linux"]["rootfsPropagation"] = "rslave".into();
    });
    rig.up();
    mount(Some("tmpfs"), &source.join("later"), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    fs::write(source.join("later/file"), "seen").unwrap();
    assert_eq!(rig.exec(&[], &["cat", "/rslave/later/file"]).ok(), "seen");
    assert_ne!(rig.exec(&[], &["cat", "/rprivate/later/file"]).code, 0);
    rig.call(&["delete", "--force", &rig.id]).ok();
}
