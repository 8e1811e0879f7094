use std::fs;

use serde_json::json;

use orlop_conformance_oci::{Rig, differs, is_ours, wait_for};

#[test]
fn output_exit_code_and_options() {
    let Some(rig) = Rig::new() else { return };
    rig.up();
    let called = rig.exec(&[], &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((called.code, called.out.as_str(), called.error.as_str()), (7, "out\n", "err\n"));
    assert_eq!(rig.exec(&[], &["sh", "-c", "kill -9 $$"]).code, 137);
    if differs("exec --env adds to the container's environment") {
        return;
    }
    let options = ["--env", "A=b", "--env", "FROM=exec", "--cwd", "/tmp"];
    assert_eq!(rig.exec(&options, &["sh", "-c", "echo $A $FROM $PWD"]).ok(), "b exec /tmp\n");
    assert_eq!(rig.exec(&["--user", "7:8"], &["sh", "-c", "id -u; id -g"]).ok(), "7\n8\n");
    let groups = rig.exec(&["-u", "7:8", "-g", "99"], &["grep", "^Groups", "/proc/self/status"]).ok();
    assert!(groups.contains("99"), "{groups}");
    let called = rig.call_with_input(&["exec", &rig.id, "cat"], "in and out\n");
    assert_eq!(called.ok(), "in and out\n");
    rig.exec(&["--user", "nobody"], &["true"]).fails("");
    rig.exec(&["--cwd", "relative"], &["true"]).fails("");
}

#[test]
fn a_missing_program_is_255() {
    let Some(rig) = Rig::new() else { return };
    rig.up();
    let called = rig.exec(&[], &["nope"]);
    assert_eq!(called.code, if is_ours() { 255 } else { called.code });
    called.fails("executable file not found in $PATH");
    assert_eq!(rig.status(), "running");
}

#[test]
fn privileges_are_the_containers() {
    let Some(rig) = Rig::new() else { return };
    rig.configure(|config| config["process"]["noNewPrivileges"] = false.into());
    rig.up();
    let status = |options: &[&str], field: &str| {
        let line = rig.exec(options, &["grep", field, "/proc/self/status"]).ok();
        line.split_whitespace().last().unwrap().to_owned()
    };
    let chown = u64::from_str_radix(&status(&[], "CapEff"), 16).unwrap();
    assert_eq!(chown, 1 << 0 | 1 << 5 | 1 << 6 | 1 << 7);
    if differs("exec --cap adds to the container's capabilities") {
        return;
    }
    let more = u64::from_str_radix(&status(&["--cap", "CAP_NET_RAW"], "CapEff"), 16).unwrap();
    assert_eq!(more, chown | 1 << 13);
    assert_eq!(status(&[], "NoNewPrivs"), "0");
    assert_eq!(status(&["--no-new-privs"], "NoNewPrivs"), "1");
}

#[test]
fn the_filter_holds_for_both() {
    let Some(rig) = Rig::new() else { return };
    rig.configure(|config| {
        config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}],
        });
        config["process"]["args"] =
            json!(["sh", "-c", "mkdir /tmp/init; grep Seccomp: /proc/self/status > /tmp/seen; sleep 1000"]);
    });
    rig.up();
    wait_for("it looked", || {
        fs::read_to_string(rig.rootfs().join("tmp/seen")).is_ok_and(|seen| seen.trim().ends_with('2'))
    });
    assert!(!rig.rootfs().join("tmp/init").exists());
    let called = rig.exec(&["--user", "7"], &["mkdir", "/tmp/exec"]);
    assert_ne!(called.code, 0);
    assert!(called.error.contains("not permitted"), "{}", called.error);
    assert!(rig.exec(&[], &["grep", "Seccomp:", "/proc/self/status"]).ok().trim().ends_with('2'));
}

#[test]
fn the_session_keyring_is_the_containers() {
    let Some(rig) = Rig::new() else { return };
    if differs("exec joins the container's session keyring") {
        return;
    }
    let look = ["sh", "-c", "grep _ses. /proc/keys > /tmp/keys; sleep 1000"];
    rig.configure_program(&look);
    rig.up();
    let seen = || fs::read_to_string(rig.rootfs().join("tmp/keys")).unwrap_or_default();
    wait_for("it looked", || !seen().is_empty());
    let serial = |text: &str| {
        let line = text.lines().find(|line| line.contains(&rig.id)).map(str::to_owned);
        line.and_then(|line| line.split_whitespace().next().map(str::to_owned))
    };
    let inits = serial(&seen());
    assert!(inits.is_some(), "{}", seen());
    assert_eq!(serial(&rig.exec(&[], &["grep", "_ses.", "/proc/keys"]).ok()), inits);
    rig.call(&["delete", "--force", &rig.id]).ok();
    let (bundle, other) = (rig.bundle(), format!("{}-other", rig.id));
    rig.call(&["run", "-d", "--no-new-keyring", "-b", bundle.to_str().unwrap(), &other]).ok();
    assert!(!rig.call(&["exec", &other, "cat", "/proc/keys"]).ok().contains(&other));
    rig.call(&["delete", "-f", &other]).ok();
}

#[test]
fn by_file_and_detached() {
    let Some(rig) = Rig::new() else { return };
    rig.up();
    let file = rig.path("process.json");
    let process = json!({
        "user": {"uid": 3, "gid": 4}, "args": ["sh", "-c", "id -u > /tmp/who; pwd >> /tmp/who; exec sleep 999"],
        "env": ["PATH=/bin"], "cwd": "/tmp",
    });
    fs::create_dir(rig.rootfs().join("tmp/open")).unwrap();
    fs::write(&file, process.to_string()).unwrap();
    std::os::unix::fs::chown(rig.rootfs().join("tmp"), Some(3), Some(4)).unwrap();
    let pid_file = rig.path("exec.pid");
    rig.call(&[
        "exec",
        "--process",
        file.to_str().unwrap(),
        "--detach",
        "--pid-file",
        pid_file.to_str().unwrap(),
        &rig.id,
    ])
    .ok();
    let pid: u32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    wait_for("it runs", || {
        fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap() == ["sleep", "999", ""].join("\0")
    });
    assert_eq!(fs::read_to_string(rig.rootfs().join("tmp/who")).unwrap(), "3\n/tmp\n");
    let pids: Vec<u32> = serde_json::from_str(&rig.call(&["ps", "-f", "json", &rig.id]).ok()).unwrap();
    assert!(pids.contains(&pid) && pids.len() == 2, "{pids:?}");
    fs::write(&file, "{").unwrap();
    rig.call(&["exec", "-p", file.to_str().unwrap(), &rig.id]).fails("");
    rig.call(&["delete", "--force", &rig.id]).ok();
    wait_for("it is gone", || {
        !fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|text| !text.is_empty())
    });
    rig.assert_nothing_left();
}

#[test]
fn preserved_descriptors_come_through_and_others_do_not() {
    let Some(rig) = Rig::new() else { return };
    rig.up();
    let given = rig.path("given");
    fs::write(&given, "given\n").unwrap();
    // A shell opens the numbers; Rust's own would close on exec.
    let shell = |tail: &str| {
        let mut command = std::process::Command::new(orlop_conformance_oci::busybox());
        let subject = rig.subject.line();
        let root = rig.root();
        let line = format!("exec {subject} --root {} exec {tail}", root.display());
        command.args(["sh", "-c", &line]).stdin(std::process::Stdio::null());
        rig.finish(command)
    };
    let (id, given) = (&rig.id, given.display());
    let kept = shell(&format!("--preserve-fds 1 {id} sh -c 'cat <&3' 3<{given} 4<{given}"));
    assert_eq!(kept.ok(), "given\n");
    let listed = shell(&format!("{id} sh -c 'echo /proc/self/fd/*' 3<{given} 4<{given}")).ok();
    assert!(!listed.contains("/4"), "{listed}");
    if orlop_conformance_oci::is_ours() {
        // Go's own descriptors are in the way of runc's check.
        shell(&format!("--preserve-fds 2 {id} true 3<{given} 4<&-")).fails("not open");
    }
}

#[test]
fn sockets_of_activation_come_through() {
    let Some(rig) = Rig::new() else { return };
    rig.configure_program(&["sh", "-c", "echo $LISTEN_FDS; cat <&3"]);
    let given = rig.path("given");
    fs::write(&given, "given\n").unwrap();
    let shell = |pid: &str| {
        let (subject, root, bundle) = (rig.subject.line(), rig.root(), rig.bundle());
        let line = format!(
            "LISTEN_FDS=1 LISTEN_PID={pid} exec {} --root {} run -b {} {} 3<{}",
            subject,
            root.display(),
            bundle.display(),
            rig.id,
            given.display()
        );
        let mut command = std::process::Command::new(orlop_conformance_oci::busybox());
        command.args(["sh", "-c", &line]).stdin(std::process::Stdio::null());
        rig.finish(command)
    };
    if differs("LISTEN_FDS reaches the program") {
        return;
    }
    assert_eq!(shell("$$").ok(), "1\ngiven\n");
    // Meant for another process.
    let called = shell("1");
    assert!(called.out.trim().is_empty() && called.code != 0, "{}", called.out);
    rig.assert_nothing_left();
}

#[test]
fn in_a_group_below_the_containers() {
    let Some(rig) = Rig::new() else { return };
    if differs("exec --cgroup") {
        return;
    }
    rig.up();
    rig.exec(&["--cgroup", "below"], &["true"]).fails("");
    rig.exec(&["--cgroup", "../../escape"], &["true"]).fails("");
    let group = rig.group();
    let (directory, unified) = group.controller_directory("pids").unwrap();
    fs::create_dir(directory.join("below")).unwrap();
    let seen = rig.exec(&["--cgroup", "below"], &["cat", "/proc/self/cgroup"]).ok();
    let own = format!("{}/below", rig.cgroup);
    let line = seen.lines().find(|line| line.contains(if unified { "0::" } else { ":pids:" })).unwrap();
    assert!(line.ends_with(&own), "{seen}");
    rig.call(&["delete", "-f", &rig.id]).ok();
    rig.assert_nothing_left();
}
