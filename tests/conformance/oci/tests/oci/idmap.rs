//! config-linux.md "User namespace mappings" and config.md "Linux mount options": who owns what, and how mounts spread.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};

use orlop_conformance_oci::{Rig, differs, is_ours, skip};
use serde_json::{Value, json};

const FIRST: u32 = 100_000;

fn map(host: u32) -> Value {
    json!([{"containerID": 0, "hostID": host, "size": 65_536}])
}

fn add_user_namespace(config: &mut Value) {
    config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    config["linux"]["uidMappings"] = map(FIRST);
    config["linux"]["gidMappings"] = map(FIRST);
}

fn add_mount(config: &mut Value, mount: Value) {
    config["mounts"].as_array_mut().unwrap().push(mount);
}

/// A rig whose container runs `script`; nothing for subjects that lack what is tested.
fn ours_only() -> Option<Rig> {
    if !is_ours() {
        skip("recent runtimes only");
        return None;
    }
    Rig::new()
}

fn shell(config: &mut Value, script: &str) {
    config["process"]["args"] = json!(["sh", "-c", script]);
}

#[test]
fn sources_need_not_be_reachable_for_the_containers_root() {
    let Some(rig) = ours_only() else { return };
    // Its directory is the machine's root's alone.
    let source = rig.path("volume");
    fs::create_dir_all(source.join("below")).unwrap();
    fs::write(source.join("file"), "text").unwrap();
    chown(rig.rootfs(), Some(FIRST), Some(FIRST)).unwrap();
    rig.configure(|config| {
        add_user_namespace(config);
        add_mount(config, json!({"destination": "/v", "type": "none", "source": source, "options": ["rbind", "ro", "noexec"]}));
        add_mount(config, json!({"destination": "/f", "type": "bind", "source": source.join("file"), "options": ["bind"]}));
        shell(config, "cat /v/file /f; touch /v/x || echo read only; grep ' /v ' /proc/mounts; ls -lnd /dev /tmp /v");
    });
    let out = rig.run().ok();
    assert!(out.starts_with("texttextread only"), "{out}");
    assert!(out.contains("ro,noexec,"), "{out}");
    // A tmpfs of its own, and a file of the machine's root.
    assert!(out.contains("0        0") && out.contains("65534    65534"), "{out}");
    rig.assert_nothing_left();
}

#[test]
fn mounts_are_mapped_by_the_containers_namespace_or_their_own() {
    let Some(rig) = ours_only() else { return };
    let source = rig.path("volume");
    fs::create_dir(&source).unwrap();
    chown(&source, Some(7), Some(8)).unwrap();
    fs::set_permissions(&source, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    rig.open_to_all();
    let own = json!({"destination": "/b", "type": "bind", "source": source, "options": ["bind", "ridmap"],
        "uidMappings": [{"containerID": 7, "hostID": FIRST + 70, "size": 1}],
        "gidMappings": [{"containerID": 8, "hostID": FIRST + 80, "size": 1}]});
    rig.configure(|config| {
        add_user_namespace(config);
        add_mount(
            config,
            json!({"destination": "/a", "type": "bind", "source": source, "options": ["bind", "idmap"]}),
        );
        add_mount(config, own.clone());
        shell(config, "stat -c %u:%g /a /b; touch /a/made; stat -c %u /a/made");
    });
    assert_eq!(rig.run().ok(), "7:8\n70:80\n0\n");
    assert_eq!(fs::metadata(source.join("made")).unwrap().uid(), 0);

    // In a container without a user namespace.
    rig.configure(|config| {
        add_mount(config, own);
        shell(config, "stat -c %u:%g /b");
    });
    assert_eq!(rig.run().ok(), format!("{}:{}\n", FIRST + 70, FIRST + 80));
    rig.configure(|config| {
        add_mount(
            config,
            json!({"destination": "/a", "type": "bind", "source": source, "options": ["bind", "idmap"]}),
        );
    });
    rig.create().fails("needs a container with a user namespace");
    rig.configure(|config| {
        add_mount(
            config,
            json!({"destination": "/a", "type": "tmpfs", "source": "tmpfs", "options": ["idmap"]}),
        );
    });
    rig.create().fails("only bind mounts can be idmapped");
    rig.assert_nothing_left();
}

#[test]
fn exec_and_hooks_of_a_container_with_a_user_namespace() {
    let Some(rig) = Rig::new() else { return };
    rig.open_to_all();
    let seen = rig.path("seen");
    rig.configure(|config| {
        add_user_namespace(config);
        // In the machine's mount namespace, whoever prepared what.
        let script = format!("readlink /proc/self/ns/mnt > {}", seen.display());
        config["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]});
    });
    rig.up();
    let own = fs::read_link("/proc/thread-self/ns/mnt").unwrap();
    assert_eq!(fs::read_to_string(seen).unwrap().trim(), own.to_str().unwrap());
    let out = rig
        .exec(
            &[],
            &[
                "sh",
                "-c",
                "id -u; cat /proc/self/uid_map; readlink /proc/self/ns/user; readlink /proc/1/ns/user",
            ],
        )
        .ok();
    let words: Vec<&str> = out.split_whitespace().collect();
    assert_eq!(words[..4], ["0", "0", "100000", "65536"]);
    assert_eq!(words[4], words[5]);
    assert_eq!(fs::metadata(format!("/proc/{}", rig.pid())).unwrap().uid(), FIRST);
    rig.exec(&["-u", "70000"], &["true"]).fails("");

    // Another container joins it by its path.
    if differs("joining a user namespace by its path") {
        return;
    }
    let path = format!("/proc/{}/ns/user", rig.pid());
    let other = Rig::new().unwrap();
    other.open_to_all();
    other.configure(|config| {
        config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user", "path": path}));
        shell(config, "cat /proc/self/uid_map; ls -lnd /dev");
    });
    let out = other.run().ok();
    assert!(out.contains("100000      65536") && out.contains(" 0        0 "), "{out}");
    other.assert_nothing_left();
    rig.call(&["delete", "-f", &rig.id]).ok();
    rig.assert_nothing_left();
}

#[test]
fn maps_are_demanded_and_checked() {
    let Some(rig) = ours_only() else { return };
    rig.configure(|config| {
        config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    });
    rig.create().fails("needs linux.uidMappings");
    rig.configure(|config| {
        add_user_namespace(config);
        config["linux"]["gidMappings"] =
            json!([{"containerID": 0, "hostID": 5, "size": 2}, {"containerID": 1, "hostID": 9, "size": 2}]);
    });
    rig.create().fails("failed to make the user namespace");
    rig.configure(|config| {
        add_user_namespace(config);
        config["process"]["user"]["uid"] = json!(70_000);
    });
    rig.create().fails("user 70000 is not mapped");
    rig.assert_nothing_left();
}

#[test]
fn a_tmpfs_can_begin_with_what_it_covers() {
    let Some(rig) = ours_only() else { return };
    let covered = rig.rootfs().join("etc/deep/er");
    fs::create_dir_all(&covered).unwrap();
    fs::write(covered.join("file"), "text").unwrap();
    chown(covered.join("file"), Some(5), Some(6)).unwrap();
    std::os::unix::fs::symlink("deep/er/file", rig.rootfs().join("etc/link")).unwrap();
    let script = "cat /etc/link; stat -c %u:%g:%a /etc/deep/er/file /etc; echo new > /etc/new; grep ' /etc ' /proc/mounts";
    rig.configure(|config| {
        add_mount(config, json!({"destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "nosuid", "size=1m"]}));
        shell(config, script);
    });
    let out = rig.run().ok();
    assert!(out.starts_with("text5:6:644\n0:0:755\ntmpfs /etc tmpfs rw,nosuid,"), "{out}");
    assert!(!rig.rootfs().join("etc/new").exists());
    rig.configure(|config| {
        add_mount(
            config,
            json!({"destination": "/etc", "type": "ramfs", "source": "x", "options": ["tmpcopyup"]}),
        );
    });
    rig.create().fails("tmpcopyup is only allowed for tmpfs");
    rig.assert_nothing_left();
}

#[test]
fn attributes_reach_what_is_mounted_below() {
    let Some(rig) = ours_only() else { return };
    let source = rig.path("volume");
    fs::create_dir_all(source.join("below")).unwrap();
    nix::mount::mount(
        Some("t"),
        &source.join("below"),
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        None::<&str>,
    )
    .unwrap();
    for (options, top, below) in [
        (json!(["rbind", "ro"]), "ro,", "rw,"),
        (json!(["rbind", "rro"]), "ro,", "ro,"),
        (
            json!(["rbind", "rro", "rnosuid", "rnodev", "rnoexec", "rnoatime"]),
            "ro,nosuid,nodev,noexec,noatime",
            "ro,nosuid,nodev,noexec,noatime",
        ),
        (json!(["rbind", "rnosymfollow"]), "nosymfollow", "nosymfollow"),
    ] {
        for with_user in [false, true] {
            rig.configure(|config| {
                if with_user {
                    add_user_namespace(config);
                }
                add_mount(
                    config,
                    json!({"destination": "/v", "type": "none", "source": source, "options": options}),
                );
                shell(config, "grep ' /v' /proc/mounts");
            });
            if with_user {
                rig.open_to_all();
            }
            let out = rig.run().ok();
            let lines: Vec<&str> = out.lines().collect();
            assert!(lines[0].contains(top) && lines[1].contains(below), "{options} {out}");
        }
    }
    nix::mount::umount(&source.join("below")).unwrap();
    rig.assert_nothing_left();
}

#[test]
fn propagation_is_as_asked() {
    let Some(rig) = ours_only() else { return };
    let source = rig.path("volume");
    fs::create_dir(&source).unwrap();
    let bind = nix::mount::MsFlags::MS_BIND;
    nix::mount::mount(Some(&source), &source, None::<&str>, bind, None::<&str>).unwrap();
    nix::mount::mount(None::<&str>, &source, None::<&str>, nix::mount::MsFlags::MS_SHARED, None::<&str>)
        .unwrap();
    let found = |options: Value, root: Option<&str>| {
        rig.configure(|config| {
            add_mount(
                config,
                json!({"destination": "/v", "type": "none", "source": source, "options": options}),
            );
            if let Some(root) = root {
                config["linux"]["rootfsPropagation"] = root.into();
            }
            shell(config, "grep -E ' /(v)? (ro|rw)' /proc/self/mountinfo");
        });
        let out = rig.run().ok();
        let kind = |place: &str| {
            let line = out.lines().find(|line| line.contains(place)).unwrap().to_owned();
            ["shared:", "master:", "unbindable"]
                .into_iter()
                .filter(|word| line.contains(word))
                .collect::<Vec<_>>()
                .join(" ")
        };
        (kind(" /v "), kind(" / "))
    };
    assert_eq!(found(json!(["rbind"]), None).0, "master:");
    assert_eq!(found(json!(["rbind", "rprivate"]), None).0, "");
    assert_eq!(found(json!(["bind", "private"]), None).0, "");
    assert_eq!(found(json!(["rbind", "rslave"]), None).0, "master:");
    assert_eq!(found(json!(["rbind", "rshared"]), Some("rshared")).0, "shared:");
    assert_eq!(found(json!(["rbind", "unbindable"]), None).0, "unbindable");
    assert_eq!(found(json!(["rbind"]), Some("rprivate")).0, "");
    assert_eq!(found(json!(["rbind", "rprivate"]), Some("unbindable")).1, "unbindable");
    assert_eq!(found(json!(["rbind", "rprivate"]), Some("shared")).1, "shared:");

    // What a container mounts below a shared one appears outside.
    rig.configure(|config| {
        add_mount(
            config,
            json!({"destination": "/v", "type": "none", "source": source, "options": ["rbind", "rshared"]}),
        );
        config["linux"]["rootfsPropagation"] = "rshared".into();
        let capabilities = json!(["CAP_SYS_ADMIN"]);
        for set in ["bounding", "effective", "permitted"] {
            config["process"]["capabilities"][set] = capabilities.clone();
        }
        shell(config, "mkdir /v/m && mount -t tmpfs t /v/m && touch /v/m/seen");
    });
    rig.run().ok();
    assert!(source.join("m/seen").exists());
    nix::mount::umount(&source.join("m")).unwrap();
    nix::mount::umount(&source).unwrap();
    rig.assert_nothing_left();
}
