use std::fs;
use std::process::Stdio;

use serde_json::Value;

use orlop_conformance_oci::{Child, Kind, Rig, differs, is_ours, wait_for};

#[test]
fn run_passes_output_and_exit_code_on_and_leaves_nothing() {
    let Some(rig) = Rig::new() else { return };
    rig.configure_program(&["sh", "-c", "echo out; echo err >&2; exit 3"]);
    let called = rig.run();
    assert_eq!((called.code, called.out.as_str(), called.error.as_str()), (3, "out\n", "err\n"));
    rig.assert_nothing_left();
}

#[test]
fn run_of_a_killed_program_exits_with_128_and_the_signal() {
    let Some(rig) = Rig::new() else { return };
    let bundle = rig.bundle();
    let command = &mut rig.command(&["run", "-b", bundle.to_str().unwrap(), &rig.id]);
    let mut child = Child(command.stdout(Stdio::null()).spawn().unwrap());
    wait_for("it runs", || {
        let called = rig.verb("state");
        called.code == 0 && called.out.contains("\"running\"")
    });
    rig.call(&["kill", &rig.id, "KILL"]).ok();
    assert_eq!(child.0.wait().unwrap().code(), Some(137));
    rig.assert_nothing_left();
}

#[test]
fn run_forwards_signals() {
    let Some(rig) = Rig::new() else { return };
    rig.configure_program(&[
        "sh",
        "-c",
        "trap 'exit 9' USR1; echo ready > /tmp/ready; while :; do sleep 0.1; done",
    ]);
    let bundle = rig.bundle();
    let command = &mut rig.command(&["run", "-b", bundle.to_str().unwrap(), &rig.id]);
    let mut child = Child(command.stdout(Stdio::null()).spawn().unwrap());
    wait_for("it is ready", || rig.rootfs().join("tmp/ready").exists());
    orlop_linux::process::send_signal(child.0.id().try_into().unwrap(), libc::SIGUSR1).unwrap();
    assert_eq!(child.0.wait().unwrap().code(), Some(9));
    rig.assert_nothing_left();
}

#[test]
fn a_whole_life() {
    let Some(rig) = Rig::new() else { return };
    let pid_file = rig.path("pid");
    rig.call(&[
        "create",
        "-b",
        rig.bundle().to_str().unwrap(),
        "--pid-file",
        pid_file.to_str().unwrap(),
        "--no-new-keyring",
        &rig.id,
    ])
    .ok();
    let state = rig.state();
    assert_eq!(state["status"], "created");
    assert_eq!(state["id"], rig.id.as_str());
    assert_eq!(state["bundle"], rig.bundle().to_str().unwrap());
    // An addition of runc's.
    assert!(state["rootfs"] == rig.rootfs().to_str().unwrap() || rig.subject.kind == Kind::Crun);
    assert_eq!(state["annotations"]["org.example.key"], "value");
    assert!(state["ociVersion"].as_str().unwrap().starts_with("1."));
    assert!(state["created"].as_str().unwrap().contains('T'));
    let pid = rig.pid();
    assert_eq!(fs::read_to_string(&pid_file).unwrap(), pid.to_string());
    rig.create().fails("container with given ID already exists");

    rig.verb("start").ok();
    assert_eq!((rig.status().as_str(), rig.pid()), ("running", pid));
    wait_for("the program runs", || {
        fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap() == ["sleep", "1000", ""].join("\0")
    });
    rig.verb("start").fails("cannot start an already running container");
    rig.verb("delete").fails("is not stopped");

    rig.call(&["kill", &rig.id, "SIGKILL"]).ok();
    rig.wait_for_status("stopped");
    assert_eq!(rig.pid(), 0);
    rig.verb("kill").fails("container not running");
    rig.verb("start").fails("cannot start a container that has stopped");
    rig.exec(&[], &["true"]).fails("cannot exec in a stopped container");
    rig.verb("delete").ok();
    rig.verb("state").fails("does not exist");
    rig.assert_nothing_left();
}

#[test]
fn a_created_container_can_be_deleted_and_killed() {
    let Some(rig) = Rig::new() else { return };
    rig.create().ok();
    rig.verb("delete").ok();
    rig.assert_nothing_left();
    rig.create().ok();
    rig.call(&["kill", &rig.id, "9"]).ok();
    rig.wait_for_status("stopped");
    rig.verb("delete").ok();
    rig.assert_nothing_left();
}

#[test]
fn delete_by_force_kills() {
    let Some(rig) = Rig::new() else { return };
    rig.configure_program(&["sh", "-c", "trap '' TERM; sleep 1000 & while :; do sleep 0.1; done"]);
    rig.up();
    rig.call(&["delete", "--force", &rig.id]).ok();
    rig.assert_nothing_left();
    rig.call(&["delete", "--force", &rig.id]).ok();
    rig.verb("delete").fails("does not exist");
}

#[test]
fn kill_all_reaches_every_process() {
    let Some(rig) = Rig::new() else { return };
    if differs("kill --all in the host's PID namespace") {
        return;
    }
    // In the host's PID namespace, where nothing dies with the first process.
    rig.configure(|config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "pid");
        config["process"]["args"] = serde_json::json!(["sh", "-c", "sleep 1000 & sleep 1000 & wait"]);
    });
    rig.up();
    let pids = || {
        let text = rig.call(&["ps", "-f", "json", &rig.id]).ok();
        // Debian's runc shows none as null.
        serde_json::from_str::<Option<Vec<u32>>>(&text).unwrap().unwrap_or_default()
    };
    wait_for("three processes", || pids().len() == 3);
    rig.call(&["kill", "--all", &rig.id, "KILL"]).ok();
    rig.wait_for_status("stopped");
    wait_for("no processes", || pids().is_empty());
    rig.verb("delete").ok();
    rig.assert_nothing_left();
}

#[test]
fn survivors_of_the_first_process_go_with_the_container() {
    let Some(rig) = Rig::new() else { return };
    rig.configure(|config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "pid");
        config["process"]["args"] = serde_json::json!(["sh", "-c", "sleep 1000 & exit 0"]);
    });
    rig.up();
    rig.wait_for_status("stopped");
    rig.verb("delete").ok();
    rig.assert_nothing_left();
}

#[test]
fn lists_containers_and_processes() {
    let Some(rig) = Rig::new() else { return };
    assert_eq!(rig.call(&["list", "-q"]).ok(), "");
    let none: Option<Vec<Value>> = serde_json::from_str(&rig.call(&["list", "-f", "json"]).ok()).unwrap();
    assert!(none.is_none_or(|list| list.is_empty()));
    rig.up();
    assert_eq!(rig.call(&["list", "--quiet"]).ok(), format!("{}\n", rig.id));
    let all: Vec<Value> = serde_json::from_str(&rig.call(&["list", "--format", "json"]).ok()).unwrap();
    assert_eq!((all.len(), &all[0]["status"], &all[0]["owner"]), (1, &"running".into(), &"root".into()));
    let table = rig.call(&["list"]).ok();
    let mut lines = table.lines();
    let title: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert!(title == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"] || rig.subject.kind == Kind::Crun);
    assert!(lines.next().unwrap().contains("running"));

    let pid = rig.pid();
    let pids: Vec<u32> = serde_json::from_str(&rig.call(&["ps", "--format", "json", &rig.id]).ok()).unwrap();
    assert_eq!(pids, [pid]);
    let table = rig.verb("ps").ok();
    assert!(
        table.lines().count() == 2 && (table.contains("sleep 1000") || rig.subject.kind == Kind::Crun),
        "{table}"
    );
}

#[test]
fn a_stranger_with_the_same_pid_is_left_alone() {
    let Some(rig) = Rig::new() else { return };
    if !is_ours() {
        return;
    }
    rig.up();
    rig.call(&["kill", &rig.id, "KILL"]).ok();
    rig.wait_for_status("stopped");
    // As if the pid had been given to somebody else meanwhile.
    let stranger = Child(
        std::process::Command::new(orlop_conformance_oci::busybox()).args(["sleep", "1000"]).spawn().unwrap(),
    );
    let path = rig.root().join(&rig.id).join("state.json");
    let mut state: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    state["init"]["pid"] = stranger.0.id().into();
    fs::write(&path, state.to_string()).unwrap();

    assert_eq!((rig.status().as_str(), rig.pid()), ("stopped", 0));
    rig.call(&["kill", &rig.id, "KILL"]).fails("container not running");
    rig.exec(&[], &["true"]).fails("cannot exec in a stopped container");
    rig.call(&["delete", "--force", &rig.id]).ok();
    assert!(fs::read_to_string(format!("/proc/{}/stat", stranger.0.id())).unwrap().contains(") S"));
    rig.assert_nothing_left();
}

#[test]
fn run_detached_and_kept() {
    let Some(rig) = Rig::new() else { return };
    let bundle = rig.bundle();
    rig.call(&["run", "--detach", "--bundle", bundle.to_str().unwrap(), &rig.id]).ok();
    assert_eq!(rig.status(), "running");
    rig.call(&["delete", "-f", &rig.id]).ok();
    rig.assert_nothing_left();
    if !is_ours() {
        // --keep is newer than Debian's.
        return;
    }
    rig.configure_program(&["true"]);
    rig.call(&["run", "--keep", "-b", bundle.to_str().unwrap(), &rig.id]).ok();
    assert_eq!(rig.status(), "stopped");
    rig.verb("delete").ok();
    rig.assert_nothing_left();
}

#[test]
fn state_is_private_and_streams_are_inherited() {
    use std::os::unix::fs::PermissionsExt;
    let Some(rig) = Rig::new() else { return };
    rig.configure_program(&["cat"]);
    let bundle = rig.bundle();
    let called = rig.call_with_input(&["run", "-b", bundle.to_str().unwrap(), &rig.id], "through\n");
    assert_eq!(called.ok(), "through\n");
    rig.create().ok();
    for path in [rig.root(), rig.root().join(&rig.id)] {
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
        assert!(mode == 0o700 || !is_ours() && mode & 0o006 == 0, "{path:?}: {mode:o}");
    }
}

#[test]
fn one_start_of_many_wins() {
    let Some(rig) = Rig::new() else { return };
    if !is_ours() {
        return;
    }
    for _ in 0..5 {
        rig.create().ok();
        let spawn = || rig.command(&["start", &rig.id]).stderr(Stdio::null()).spawn().unwrap();
        let mut children: Vec<_> = (0..4).map(|_| Child(spawn())).collect();
        let good =
            children.iter_mut().filter_map(|child| child.0.wait().ok()).filter(|status| status.success());
        assert_eq!(good.count(), 1);
        assert_eq!(rig.status(), "running");
        // Created again while it is being removed: either refused or made, never half of each.
        let mut removal = Child(rig.command(&["delete", "-f", &rig.id]).spawn().unwrap());
        let again = rig.create();
        assert!(removal.0.wait().unwrap().success());
        assert_eq!(rig.verb("state").code == 0, again.code == 0, "{}", again.error);
        rig.call(&["delete", "-f", &rig.id]).ok();
        rig.assert_nothing_left();
    }
}

#[test]
fn a_dead_containers_group_may_be_somebody_elses() {
    let Some(rig) = Rig::new() else { return };
    if !is_ours() {
        return;
    }
    rig.up();
    rig.call(&["kill", &rig.id, "KILL"]).ok();
    rig.wait_for_status("stopped");
    wait_for("an empty group", || rig.call(&["ps", "-f", "json", &rig.id]).ok().trim() == "[]");
    let bundle = rig.bundle();
    let second = format!("{}-second", rig.id);
    rig.call(&["run", "-d", "-b", bundle.to_str().unwrap(), &second]).ok();
    // The group stays, and so does the process in it.
    rig.verb("delete").fails("control groups");
    assert!(rig.call(&["state", &second]).ok().contains("\"running\""));
    rig.call(&["delete", "-f", &second]).ok();
    rig.verb("delete").ok();
    rig.assert_nothing_left();
}

#[test]
fn a_creator_that_is_killed_leaves_what_delete_removes() {
    let Some(rig) = Rig::new() else { return };
    if !is_ours() {
        return;
    }
    let slow = rig.path("slow");
    orlop_conformance_oci::script(&slow, "touch \"$0.runs\"; exec sleep 3");
    rig.configure(|config| config["hooks"] = serde_json::json!({"createRuntime": [{"path": slow}]}));
    let bundle = rig.bundle();
    let mut creator =
        Child(rig.command(&["create", "-b", bundle.to_str().unwrap(), &rig.id]).spawn().unwrap());
    wait_for("the hook runs", || rig.path("slow.runs").exists());
    creator.0.kill().unwrap();
    creator.0.wait().unwrap();
    assert_eq!(rig.status(), "creating");
    rig.call(&["delete", "--force", &rig.id]).ok();
    rig.assert_nothing_left();
}

#[test]
fn in_a_user_namespace() {
    let Some(rig) = Rig::new() else { return };
    rig.configure(|config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.push(serde_json::json!({"type": "user"}));
        for ids in ["uidMappings", "gidMappings"] {
            config["linux"][ids] = serde_json::json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
        }
    });
    // Reachable for the container's root, who is nobody outside.
    rig.open_to_all();
    rig.up();
    assert_eq!(rig.exec(&[], &["id", "-u"]).ok(), "0\n");
    let map = rig.exec(&[], &["cat", "/proc/self/uid_map"]).ok();
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "100000", "65536"]);
    let outside = fs::read_to_string(format!("/proc/{}/status", rig.pid())).unwrap();
    assert!(outside.contains("Uid:\t100000\t"), "{outside}");
    rig.call(&["delete", "-f", &rig.id]).ok();
    rig.assert_nothing_left();
}
