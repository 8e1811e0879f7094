//! config.md, "Process".

use orlop_conformance_oci::{Rig, differs, grant, skip};
use serde_json::json;

fn field(text: &str, name: &str) -> String {
    let line =
        text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
    line[name.len()..].trim_start_matches(':').trim().to_owned()
}

fn bits(text: &str, name: &str) -> u64 {
    u64::from_str_radix(&field(text, name), 16).unwrap()
}

#[test]
fn arguments_environment_and_directory() {
    let Some(rig) = Rig::new() else { return };
    rig.configure(|config| {
        let process = &mut config["process"];
        process["args"] =
            json!(["sh", "-c", "echo \"$0|$1|$2|$A|$EMPTY|$PWD\"; env", "name", "two words", "*"]);
        process["env"] = json!(["PATH=/bin", "A=b=c", "EMPTY="]);
        process["cwd"] = "/tmp".into();
    });
    let out = rig.run().ok();
    assert!(out.starts_with("name|two words|*|b=c||/tmp\n"), "{out}");
    // Nothing of the caller's environment but what every runtime adds.
    let allowed = ["PATH", "A", "EMPTY", "HOME", "PWD", "SHLVL", "OLDPWD", "container"];
    for line in out.lines().skip(1) {
        assert!(allowed.contains(&line.split('=').next().unwrap()), "{line}");
    }
    let out = rig.shell("pwd", |config| config["process"]["cwd"] = "/made/by/the/runtime".into()).ok();
    assert_eq!(out, "/made/by/the/runtime\n");
    rig.assert_nothing_left();
}

#[test]
fn user_groups_and_umask() {
    let Some(rig) = Rig::new() else { return };
    let line =
        "id -u; id -g; grep ^Groups /proc/self/status; umask; touch /tmp/made; stat -c '%u %g %a' /tmp/made";
    std::fs::set_permissions(rig.rootfs().join("tmp"), std::os::unix::fs::PermissionsExt::from_mode(0o1777))
        .unwrap();
    let out = rig
        .shell(line, |config| {
            config["process"]["user"] =
                json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 0o27});
        })
        .ok();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!((lines[0], lines[1], lines[3], lines[4]), ("1000", "1001", "0027", "1000 1001 640"), "{out}");
    let groups: Vec<&str> = lines[2].split_whitespace().skip(1).filter(|group| *group != "1001").collect();
    assert_eq!(groups, ["5", "6"], "{out}");
}

#[test]
fn limits_of_resources() {
    let Some(rig) = Rig::new() else { return };
    let limits = json!([
        {"type": "RLIMIT_NOFILE", "soft": 777, "hard": 888}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 4096},
        {"type": "RLIMIT_AS", "soft": 1_u64 << 32, "hard": 1_u64 << 33}, {"type": "RLIMIT_NPROC", "soft": 99, "hard": 99},
    ]);
    rig.configure(|config| config["process"]["rlimits"] = limits.clone());
    let look = ["cat", "/proc/self/limits"];
    rig.up();
    let exec = rig.exec(&[], &look).ok();
    rig.call(&["delete", "--force", &rig.id]).ok();
    let mut seen =
        vec![rig.shell("cat /proc/self/limits", |config| config["process"]["rlimits"] = limits).ok()];
    if !differs("exec has the container's rlimits") {
        seen.push(exec);
    }
    for out in seen {
        let numbers = |name: &str| {
            let row = field(&out, name);
            row.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(numbers("Max open files"), ["777", "888"]);
        assert_eq!(numbers("Max core file size"), ["0", "4096"]);
        assert_eq!(numbers("Max address space"), ["4294967296", "8589934592"]);
        assert_eq!(numbers("Max processes"), ["99", "99"]);
    }
    for bad in [
        json!([{"type": "RLIMIT_TEST", "soft": 1, "hard": 1}]),
        json!([{"type": "RLIMIT_NOFILE", "soft": 2, "hard": 1}]),
    ] {
        assert_ne!(rig.shell("true", |config| config["process"]["rlimits"] = bad.clone()).code, 0, "{bad}");
        rig.assert_nothing_left();
    }
    let twice = json!([
        {"type": "RLIMIT_NOFILE", "soft": 1, "hard": 1}, {"type": "RLIMIT_NOFILE", "soft": 2, "hard": 2},
    ]);
    assert_ne!(rig.shell("true", |config| config["process"]["rlimits"] = twice).code, 0);
}

#[test]
fn five_sets_of_capabilities() {
    let Some(rig) = Rig::new() else { return };
    let out = rig
        .shell("cat /proc/self/status", |config| {
            config["process"]["capabilities"] = json!({
                "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"], "permitted": ["CAP_CHOWN", "CAP_KILL"],
                "effective": ["CAP_CHOWN"], "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"],
            });
            config["process"]["user"] = json!({"uid": 5, "gid": 5});
        })
        .ok();
    let (chown, kill, raw) = (1, 1 << 5, 1 << 13);
    assert_eq!(bits(&out, "CapBnd"), chown | kill | raw);
    assert_eq!(bits(&out, "CapInh"), kill);
    assert_eq!(bits(&out, "CapAmb"), kill);
    // After execve by somebody else than root only the ambient stay.
    assert_eq!((bits(&out, "CapPrm"), bits(&out, "CapEff")), (kill, kill));

    let out = rig
        .shell("cat /proc/self/status", |config| {
            config["process"].as_object_mut().unwrap().remove("capabilities");
        })
        .ok();
    assert_eq!((bits(&out, "CapEff"), bits(&out, "CapPrm"), bits(&out, "CapBnd")), (0, 0, 0));
}

#[test]
fn an_unknown_capability_is_refused_or_left_out() {
    let Some(rig) = Rig::new() else { return };
    let called = rig.shell("cat /proc/self/status", |config| grant(config, &["CAP_CHOWN", "CAP_TEST"]));
    if called.code == 0 {
        assert_eq!(bits(&called.out, "CapEff"), 1);
    }
    rig.assert_nothing_left();
}

#[test]
fn the_oom_killers_preference() {
    let Some(rig) = Rig::new() else { return };
    let line = "cat /proc/self/oom_score_adj";
    assert_eq!(rig.shell(line, |config| config["process"]["oomScoreAdj"] = 321.into()).ok(), "321\n");
}

#[test]
fn no_new_privileges() {
    let Some(rig) = Rig::new() else { return };
    for (wanted, seen) in [(json!(true), "1"), (json!(false), "0"), (json!(null), "0")] {
        let out = rig
            .shell("cat /proc/self/status", |config| {
                let process = config["process"].as_object_mut().unwrap();
                process.remove("noNewPrivileges");
                if !wanted.is_null() {
                    process.insert("noNewPrivileges".into(), wanted.clone());
                }
            })
            .ok();
        assert_eq!(field(&out, "NoNewPrivs"), seen, "{wanted}");
    }
}

#[test]
fn an_apparmor_profile() {
    let Some(rig) = Rig::new() else { return };
    if !std::path::Path::new("/sys/kernel/security/apparmor").exists() {
        skip("needs AppArmor");
        return;
    }
    let called =
        rig.shell("true", |config| config["process"]["apparmorProfile"] = "orlop-no-such-profile".into());
    assert_ne!(called.code, 0);
    rig.assert_nothing_left();
}

#[test]
fn scheduler_and_io_priority() {
    let Some(rig) = Rig::new() else { return };
    if differs("process.scheduler and process.ioPriority") {
        return;
    }
    let out = rig
        .shell("cat /proc/self/stat; ionice", |config| {
            config["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 4});
            config["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
        })
        .ok();
    let fields: Vec<&str> =
        out.lines().next().unwrap().rsplit(')').next().unwrap().split_whitespace().collect();
    // proc_pid_stat(5): nice is 19, policy 41; the first here is 3.
    assert_eq!((fields[16], fields[38]), ("4", "3"), "{out}");
    assert!(out.contains("best-effort: prio 6"), "{out}");
}
