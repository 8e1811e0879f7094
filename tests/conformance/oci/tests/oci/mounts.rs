//! config.md, "Mounts", and config-linux.md, "Default Filesystems".

use std::fs;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use orlop_conformance_oci::{Rig, add_mount, differs};
use serde_json::{Value, json};

/// The fields of a mount table's line for that mount point, the last one mounted there.
fn options_of<'a>(table: &'a str, target: &str) -> &'a str {
    let found = table.lines().rfind(|line| line.split(' ').nth(1) == Some(target));
    found.unwrap_or_else(|| panic!("no {target} in {table}")).split(' ').nth(3).unwrap()
}

fn has(options: &str, wanted: &str) -> bool {
    options.split(',').any(|option| option == wanted)
}

#[test]
fn options_of_a_tmpfs() {
    let Some(rig) = Rig::new() else { return };
    let table = ["ro", "nosuid", "nodev", "noexec", "noatime", "nodiratime", "sync", "dirsync"];
    for given in table {
        let out = rig
            .shell("cat /proc/mounts", |config| {
                let options = json!([given, "size=64k", "mode=1750"]);
                add_mount(
                    config,
                    json!({"destination": "/m", "type": "tmpfs", "source": "mine", "options": options}),
                );
            })
            .ok();
        let options = options_of(&out, "/m");
        assert!(
            has(options, given) && has(options, "size=64k") && has(options, "mode=1750"),
            "{given}: {options}"
        );
        for other in ["nosuid", "nodev", "noexec"] {
            assert!(other == given || !has(options, other), "{given}: {options}");
        }
    }
}

#[test]
fn binds_of_files_and_directories() {
    let Some(rig) = Rig::new() else { return };
    let source = rig.path("source");
    fs::create_dir_all(source.join("deep")).unwrap();
    fs::write(source.join("deep/file"), "bound").unwrap();
    let bind = |from: &Path, to: &str, more: &[&str]| {
        let mut options = vec!["bind"];
        options.extend(more);
        json!({"destination": to, "type": "bind", "source": from, "options": options})
    };
    let line = "cat /new/dir/deep/file /new/file; echo w > /new/dir/written; \
        for o in ro nosuid nodev noexec; do touch /$o/x 2>/dev/null && rm /$o/x && echo writes $o; done; cat /proc/mounts";
    let out = rig
        .shell(line, |config| {
            add_mount(config, bind(&source, "/new/dir", &[]));
            add_mount(config, bind(&source.join("deep/file"), "/new/file", &[]));
            for option in ["ro", "nosuid", "nodev", "noexec"] {
                add_mount(config, bind(&source, &format!("/{option}"), &[option]));
            }
        })
        .ok();
    assert!(out.starts_with("boundboundwrites nosuid\nwrites nodev\nwrites noexec\n"), "{out}");
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        assert!(has(options_of(&out, &format!("/{option}")), option), "{out}");
    }
    assert_eq!(fs::read_to_string(source.join("written")).unwrap(), "w\n");
    // Mount points were made in the root file system.
    assert!(rig.rootfs().join("new/dir").is_dir() && rig.rootfs().join("new/file").is_file());
    rig.assert_nothing_left();
}

#[test]
fn sources_may_be_relative_to_the_bundle() {
    let Some(rig) = Rig::new() else { return };
    fs::create_dir(rig.bundle().join("beside")).unwrap();
    fs::write(rig.bundle().join("beside/file"), "relative").unwrap();
    let change = |config: &mut Value| {
        add_mount(
            config,
            json!({"destination": "/m", "type": "none", "source": "beside", "options": ["rbind"]}),
        );
    };
    assert_eq!(rig.shell("cat /m/file", change).ok(), "relative");
}

/// A directory with a mount inside, in this thread's namespace.
fn nested(rig: &Rig) -> std::path::PathBuf {
    let top = rig.path("top");
    fs::create_dir_all(top.join("sub")).unwrap();
    mount(Some("tmpfs"), &top.join("sub"), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    fs::write(top.join("sub/file"), "deep").unwrap();
    top
}

#[test]
fn rbind_takes_what_is_mounted_below_and_bind_does_not() {
    let Some(rig) = Rig::new() else { return };
    let top = nested(&rig);
    for (option, seen) in [("rbind", "deep"), ("bind", "")] {
        let called = rig.shell("cat /m/sub/file", |config| {
            add_mount(
                config,
                json!({"destination": "/m", "type": "bind", "source": top, "options": [option]}),
            );
        });
        assert_eq!(called.out, seen, "{option}");
    }
    // Without the recursive form only the top changes.
    let out = rig
        .shell("touch /m/x || touch /m/sub/x && echo below", |config| {
            add_mount(
                config,
                json!({"destination": "/m", "type": "bind", "source": top, "options": ["rbind", "ro"]}),
            );
        })
        .ok();
    assert_eq!(out, "below\n");
}

#[test]
fn recursive_attributes() {
    let Some(rig) = Rig::new() else { return };
    if differs("recursive mount attributes") {
        return;
    }
    let top = nested(&rig);
    for (given, seen) in [
        ("rro", "ro"),
        ("rnosuid", "nosuid"),
        ("rnodev", "nodev"),
        ("rnoexec", "noexec"),
        ("rnodiratime", "nodiratime"),
        ("rnoatime", "noatime"),
    ] {
        let called = rig.shell("cat /proc/mounts", |config| {
            add_mount(
                config,
                json!({"destination": "/m", "type": "bind", "source": top, "options": ["rbind", given]}),
            );
        });
        let out = called.ok();
        for target in ["/m", "/m/sub"] {
            assert!(has(options_of(&out, target), seen), "{given} {target}: {out}");
        }
    }
}

#[test]
fn in_the_order_of_the_list() {
    let Some(rig) = Rig::new() else { return };
    let out = rig
        .shell("cat /proc/mounts; ls /m", |config| {
            add_mount(config, json!({"destination": "/m", "type": "tmpfs", "source": "first"}));
            add_mount(config, json!({"destination": "/m/inner", "type": "tmpfs", "source": "second"}));
            add_mount(config, json!({"destination": "/m", "type": "tmpfs", "source": "third"}));
        })
        .ok();
    let order: Vec<&str> = out
        .lines()
        .filter_map(|line| line.split(' ').next())
        .filter(|name| ["first", "second", "third"].contains(name))
        .collect();
    assert_eq!(order, ["first", "second", "third"]);
    assert!(!out.contains("inner\n"), "{out}");
}

#[test]
fn links_on_the_way_lead_inside() {
    let Some(rig) = Rig::new() else { return };
    fs::create_dir(rig.rootfs().join("real")).unwrap();
    std::os::unix::fs::symlink("/real", rig.rootfs().join("link")).unwrap();
    let out = rig
        .shell("cat /proc/mounts", |config| {
            add_mount(config, json!({"destination": "/link/m", "type": "tmpfs", "source": "mine"}));
        })
        .ok();
    assert!(out.contains("mine /real/m tmpfs"), "{out}");
    assert!(rig.rootfs().join("real/m").is_dir());
}

#[test]
fn file_systems_of_the_kernel() {
    let Some(rig) = Rig::new() else { return };
    let line =
        "cat /proc/mounts; cat /proc/1/comm; ls /sys/kernel >/dev/null && ls -d /dev/mqueue /dev/pts/ptmx";
    let out = rig
        .shell(line, |config| {
            add_mount(config, json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid"]}));
            add_mount(config, json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["mode=1777", "size=65536k"]}));
        })
        .ok();
    for (target, kind) in [
        ("/proc", "proc"),
        ("/dev", "tmpfs"),
        ("/dev/pts", "devpts"),
        ("/sys", "sysfs"),
        ("/dev/mqueue", "mqueue"),
        ("/dev/shm", "tmpfs"),
    ] {
        assert!(out.lines().any(|line| line.contains(&format!(" {target} {kind} "))), "{target}: {out}");
    }
    assert!(out.ends_with("sh\n/dev/mqueue\n/dev/pts/ptmx\n"), "{out}");
}

#[test]
fn control_groups_read_only_and_only_ones_own() {
    let Some(rig) = Rig::new() else { return };
    let line = "cat /proc/mounts; find /sys/fs/cgroup -maxdepth 2 -name cgroup.procs | head -1 | xargs cat; \
        mkdir /sys/fs/cgroup/memory/x 2>&1; mkdir /sys/fs/cgroup/x 2>&1; true";
    let out = rig
        .shell(line, |config| {
            let options = json!(["nosuid", "noexec", "nodev", "relatime", "ro"]);
            add_mount(config, json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": options}));
        })
        .ok();
    let kind = if orlop_conformance_oci::is_unified() { " cgroup2 " } else { " cgroup " };
    let groups: Vec<&str> = out.lines().filter(|line| line.contains(kind)).collect();
    assert!(!groups.is_empty(), "{out}");
    for line in &groups {
        assert!(has(line.split(' ').nth(3).unwrap(), "ro"), "{line}");
    }
    assert!(out.contains("Read-only file system"), "{out}");
}

#[test]
fn what_cannot_be_mounted_is_an_error() {
    let Some(rig) = Rig::new() else { return };
    for bad in [
        json!({"destination": "/m", "type": "no-such-type", "source": "x"}),
        json!({"destination": "/m", "type": "bind", "source": "/no/such/source", "options": ["bind"]}),
        json!({"destination": "/m", "type": "tmpfs", "source": "x", "options": ["size=lots"]}),
    ] {
        assert_ne!(rig.shell("true", |config| add_mount(config, bad.clone())).code, 0, "{bad}");
        rig.assert_nothing_left();
    }
}

#[test]
fn a_tmpfs_with_what_was_there() {
    let Some(rig) = Rig::new() else { return };
    fs::create_dir(rig.rootfs().join("full")).unwrap();
    fs::write(rig.rootfs().join("full/file"), "copied").unwrap();
    let out = rig
        .shell("cat /full/file; touch /full/new", |config| {
            add_mount(
                config,
                json!({"destination": "/full", "type": "tmpfs", "source": "x", "options": ["tmpcopyup"]}),
            );
        })
        .ok();
    assert_eq!(out, "copied");
    assert!(!rig.rootfs().join("full/new").exists());
}
