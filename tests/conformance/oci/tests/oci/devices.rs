//! config-linux.md, "Devices", "Default Devices", "Allowed Device list"; runtime-linux.md, "Dev symbolic links".

use orlop_conformance_oci::{Rig, add_mount, grant};
use serde_json::json;

const STAT: &str = "stat -c '%n %F %t:%T %a %u %g'";

#[test]
fn default_devices_and_links() {
    let Some(rig) = Rig::new() else { return };
    let line = format!(
        "{STAT} /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty; \
        for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done; echo x > /dev/null; head -c 2 /dev/zero | od -An -tx1; \
        echo through >> /dev/stdout"
    );
    let out = rig.shell(&line, |_| {}).ok();
    for (name, number) in [
        ("null", "1:3"),
        ("zero", "1:5"),
        ("full", "1:7"),
        ("random", "1:8"),
        ("urandom", "1:9"),
        ("tty", "5:0"),
    ] {
        assert!(
            out.contains(&format!("/dev/{name} character special file {number} 666 0 0\n")),
            "{name}: {out}"
        );
    }
    let links: Vec<&str> = out.lines().skip(6).take(5).collect();
    assert_eq!(links[..4], ["/proc/self/fd", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2"]);
    assert!(links[4].trim_start_matches("/dev/") == "pts/ptmx", "{out}");
    assert!(out.contains(" 00 00\n") && out.ends_with("through\n"), "{out}");
}

#[test]
fn listed_devices() {
    let Some(rig) = Rig::new() else { return };
    let out = rig
        .shell(&format!("{STAT} /dev/c /dev/deep/b /dev/p; echo x > /dev/c"), |config| {
            config["linux"]["devices"] = json!([
                {"path": "/dev/c", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 0, "gid": 7},
                {"path": "/dev/deep/b", "type": "b", "major": 7, "minor": 9, "fileMode": 0o600, "uid": 5, "gid": 6},
                {"path": "/dev/p", "type": "p", "fileMode": 0o622, "uid": 0, "gid": 0},
            ]);
        })
        .ok();
    assert!(out.contains("/dev/c character special file 1:3 640 0 7\n"), "{out}");
    assert!(out.contains("/dev/deep/b block special file 7:9 600 5 6\n"), "{out}");
    assert!(out.contains("/dev/p fifo 0:0 622 0 0\n"), "{out}");
    rig.assert_nothing_left();
}

#[test]
fn listed_devices_in_a_users_namespace_and_bound_ones() {
    let Some(rig) = Rig::new() else { return };
    // Bound from the host, as an unprivileged mount namespace has to.
    let out = rig
        .shell(&format!("{STAT} /dev/bound; echo x > /dev/bound"), |config| {
            add_mount(config, json!({"destination": "/dev/bound", "type": "bind", "source": "/dev/null", "options": ["bind"]}));
        })
        .ok();
    assert!(out.contains("character special file 1:3"), "{out}");
}

#[test]
fn what_is_not_allowed_cannot_be_opened() {
    let Some(rig) = Rig::new() else { return };
    let line = "mknod /tmp/tty c 4 64 && (: < /tmp/tty) 2>&1; true";
    let open = |rules: serde_json::Value| {
        let _ = std::fs::remove_file(rig.rootfs().join("tmp/tty"));
        rig.shell(line, |config| {
            grant(config, &["CAP_MKNOD"]);
            config["linux"]["resources"]["devices"] = rules;
        })
        .ok()
    };
    let deny = json!({"allow": false, "access": "rwm"});
    assert!(open(json!([deny])).contains("not permitted"));
    let only_write = json!([deny, {"allow": true, "type": "c", "major": 4, "minor": 64, "access": "wm"}]);
    assert!(open(only_write).contains("not permitted"));
    let read = json!([deny, {"allow": true, "type": "c", "major": 4, "minor": 64, "access": "rwm"}]);
    assert!(!open(read).contains("not permitted"));
    let all_of_it = json!([deny, {"allow": true, "type": "c", "major": 4, "access": "rwm"}]);
    assert!(!open(all_of_it).contains("not permitted"));
    rig.assert_nothing_left();
}
