use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use orlop_conformance_oci::{Rig, differs, is_ours, script};

/// Writes `KIND {state}` to the end of a file.
fn hook(kind: &str, program: &Path, seen: &Path) -> Value {
    json!([{"path": program, "args": ["hook", kind], "env": [format!("SEEN={}", seen.display()), "PATH=/bin:/usr/bin"]}])
}

fn seen(path: &Path) -> Vec<(String, Value)> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .map(|line| {
            let (kind, state) = line.split_once(' ').unwrap();
            (kind.to_owned(), serde_json::from_str(state).unwrap())
        })
        .collect()
}

fn kinds(path: &Path) -> Vec<String> {
    seen(path).into_iter().map(|(kind, _)| kind).collect()
}

const TELL: &str = r#"state=$(cat); printf '%s %s\n' "$1" "$state" >> "$SEEN""#;

#[test]
fn six_kinds_at_their_moments_with_the_state() {
    let Some(rig) = Rig::new() else { return };
    let outside = rig.path("hook");
    script(&outside, TELL);
    script(&rig.rootfs().join("bin/hook"), TELL);
    let (out, inside) = (rig.path("seen"), rig.rootfs().join("tmp/seen"));
    rig.configure(|config| {
        config["hooks"] =
            json!({"startContainer": hook("startContainer", Path::new("/bin/hook"), Path::new("/tmp/seen"))});
        for kind in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
            config["hooks"][kind] = hook(kind, &outside, &out);
        }
    });
    rig.create().ok();
    let after_create = ["prestart", "createRuntime", "createContainer"];
    assert_eq!(kinds(&out)[..3], after_create);
    assert!(kinds(&inside).is_empty());
    let pid = rig.pid();
    rig.verb("start").ok();
    orlop_conformance_oci::wait_for("startContainer", || kinds(&inside) == ["startContainer"]);
    let all = ["prestart", "createRuntime", "createContainer", "poststart"];
    assert_eq!(kinds(&out), all);
    rig.call(&["delete", "--force", &rig.id]).ok();
    assert_eq!(kinds(&out)[4..], ["poststop"]);
    rig.assert_nothing_left();

    for (kind, state) in seen(&out).into_iter().chain(seen(&inside)) {
        assert_eq!(state["id"], rig.id.as_str(), "{kind}");
        if kind != "startContainer" || !differs("the state of startContainer hooks names the bundle") {
            assert_eq!(state["bundle"], rig.bundle().to_str().unwrap(), "{kind}");
        }
        assert_eq!(state["annotations"]["org.example.key"], "value", "{kind}");
        let status = state["status"].as_str().unwrap();
        let shown = state["pid"].as_u64().unwrap_or_default();
        match kind.as_str() {
            "prestart" | "createRuntime" => {
                assert_eq!(shown, u64::from(pid), "{kind}");
                // Older editions of the specification say created.
                assert!(matches!(status, "creating" | "created"), "{kind} {status}");
            }
            "createContainer" if is_ours() => assert_eq!((status, shown), ("creating", 1)),
            "startContainer" if is_ours() => assert_eq!((status, shown), ("created", 1)),
            // Debian's runc runs it at create.
            "poststart" if is_ours() => assert_eq!((status, shown), ("running", u64::from(pid))),
            "poststop" => assert_eq!((status, shown), ("stopped", 0)),
            _ => {}
        }
    }
}

#[test]
fn hooks_run_where_they_should_and_as_whom() {
    let Some(rig) = Rig::new() else { return };
    let program = rig.path("hook");
    script(&program, r#"{ pwd; readlink /proc/self/ns/mnt; readlink /proc/self/ns/net; } > "$2.$1""#);
    let inside =
        "#!/bin/sh\nid -u > /tmp/who; echo $FROM >> /tmp/who; grep CapEff /proc/self/status >> /tmp/who\n";
    fs::write(rig.rootfs().join("bin/hook"), inside).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(rig.rootfs().join("bin/hook"), mode).unwrap();
    std::os::unix::fs::chown(rig.rootfs().join("tmp"), Some(5), Some(5)).unwrap();
    let seen = rig.path("where");
    rig.configure(|config| {
        config["process"]["user"] = json!({"uid": 5, "gid": 5});
        config["process"]["capabilities"] = json!({});
        let one = |kind: &str| json!([{"path": program, "args": ["hook", kind, seen]}]);
        config["hooks"] = json!({
            "createRuntime": one("createRuntime"), "createContainer": one("createContainer"),
            "startContainer": [{"path": "/bin/hook"}],
        });
    });
    rig.up();
    let lines = |kind: &str| -> Vec<String> {
        let text = fs::read_to_string(format!("{}.{kind}", seen.display())).unwrap();
        text.lines().map(str::to_owned).collect()
    };
    let own = |kind: &str| {
        fs::read_link(format!("/proc/thread-self/ns/{kind}")).unwrap().to_string_lossy().into_owned()
    };
    let (runtime, container) = (lines("createRuntime"), lines("createContainer"));
    assert_eq!(runtime[1..], [own("mnt"), own("net")]);
    assert_ne!(container[1], own("mnt"));
    assert_ne!(container[2], own("net"));
    if is_ours() {
        assert_eq!(runtime[0], rig.bundle().to_str().unwrap());
    }
    orlop_conformance_oci::wait_for("startContainer", || rig.rootfs().join("tmp/who").exists());
    let who = || fs::read_to_string(rig.rootfs().join("tmp/who")).unwrap();
    orlop_conformance_oci::wait_for("it finished", || who().lines().count() == 3);
    let who = who();
    let who: Vec<&str> = who.lines().collect();
    assert_eq!(who[0], "5");
    assert!(who[2].ends_with("0000000000000000"), "{who:?}");
    if is_ours() {
        assert_eq!(who[1], "config");
    }
}

#[test]
fn a_hook_that_fails_undoes_the_container() {
    let Some(rig) = Rig::new() else { return };
    let (bad, tell, out) = (rig.path("bad"), rig.path("hook"), rig.path("seen"));
    script(&bad, "echo because of me >&2; exit 4");
    script(&tell, TELL);
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let _ = fs::remove_file(&out);
        rig.configure(|config| {
            config["hooks"] = json!({kind: [{"path": bad}], "poststop": hook("poststop", &tell, &out)});
        });
        let called = rig.create();
        if is_ours() {
            assert!(called.error.contains("because of me"), "{}", called.error);
            assert_eq!(kinds(&out), ["poststop"], "{kind}");
        }
        called.fails("");
        rig.assert_nothing_left();
    }
    if !is_ours() {
        return;
    }
    rig.configure(|config| config["hooks"] = json!({"startContainer": [{"path": "/bin/false"}]}));
    rig.create().ok();
    rig.verb("start").fails("startContainer hook /bin/false failed");
    rig.wait_for_status("stopped");
    rig.verb("delete").ok();
    rig.configure(|config| config["hooks"] = json!({"poststart": [{"path": bad}]}));
    rig.create().ok();
    rig.verb("start").fails("because of me");
    rig.wait_for_status("stopped");
    rig.verb("delete").ok();
    rig.configure(|config| config["hooks"] = json!({"poststop": [{"path": bad}]}));
    rig.create().ok();
    rig.verb("delete").ok();
    rig.assert_nothing_left();
    rig.configure(|config| config["hooks"] = json!({"createRuntime": [{"path": bad, "timeout": 5}]}));
    rig.run().fails("because of me");
    rig.assert_nothing_left();
}

#[test]
fn a_hook_that_hangs_is_cut() {
    let Some(rig) = Rig::new() else { return };
    let slow = rig.path("slow");
    script(&slow, "exec sleep 1000");
    rig.configure(|config| config["hooks"] = json!({"createRuntime": [{"path": slow, "timeout": 1}]}));
    let begun = std::time::Instant::now();
    rig.create().fails("");
    assert!(begun.elapsed() < std::time::Duration::from_secs(15));
    rig.assert_nothing_left();
}
