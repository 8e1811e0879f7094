//! config.md, "Root".

use orlop_conformance_oci::{Rig, add_mount, differs};
use serde_json::json;

#[test]
fn read_only_or_not() {
    let Some(rig) = Rig::new() else { return };
    let line = "touch /file 2>&1; touch /tmp/file && echo written";
    let out = rig
        .shell(line, |config| {
            config["root"]["readonly"] = true.into();
            add_mount(config, json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}));
        })
        .ok();
    assert!(out.contains("Read-only file system") && out.ends_with("written\n"), "{out}");
    assert!(!rig.rootfs().join("file").exists());
    rig.shell("touch /file", |config| config["root"]["readonly"] = false.into()).ok();
    assert!(rig.rootfs().join("file").exists());
    rig.assert_nothing_left();
}

#[test]
fn by_absolute_path_and_by_link() {
    let Some(rig) = Rig::new() else { return };
    std::fs::write(rig.rootfs().join("mark"), "here").unwrap();
    let absolute = rig.rootfs();
    assert_eq!(rig.shell("cat /mark", |config| config["root"]["path"] = json!(absolute)).ok(), "here");
    if differs("root.path may be a link") {
        return;
    }
    std::os::unix::fs::symlink("rootfs", rig.bundle().join("link")).unwrap();
    assert_eq!(rig.shell("cat /mark", |config| config["root"]["path"] = "link".into()).ok(), "here");
    rig.assert_nothing_left();
}

#[test]
fn nothing_of_the_old_root_is_in_reach() {
    let Some(rig) = Rig::new() else { return };
    let out = rig.shell("cd /; cd ..; cd ../..; ls -d bin proc; cat /proc/self/mountinfo", |_| {}).ok();
    assert!(out.starts_with("bin\nproc\n"), "{out}");
    let bundle = rig.bundle();
    for line in out.lines().skip(2) {
        let target = line.split(' ').nth(4).unwrap();
        assert!(!target.starts_with(bundle.to_str().unwrap()), "{line}");
        let known = ["/", "/proc", "/dev", "/sys"];
        assert!(known.iter().any(|top| target == *top || target.starts_with(&format!("{top}/"))), "{line}");
    }
}
