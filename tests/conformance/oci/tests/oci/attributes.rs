//! config.md "Linux Process" and config-linux.md: what a process is besides its user and rights, for the first one and for those of exec.

use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use orlop_conformance_oci::{Rig, differs, is_ours, skip};
use serde_json::{Value, json};

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

/// Field 41 of proc_pid_stat(5) and the nice value, field 19.
const SCHEDULER: &str = "cat /proc/self/stat | sed 's/.*) //' | awk '{print $39, $17}'";

#[test]
fn priorities() {
    let Some(rig) = ours_only() else { return };
    let script = format!("exec > /tmp/out; ionice; {SCHEDULER}; exec sleep 1000");
    rig.configure(|config| {
        config["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
        config["process"]["scheduler"] =
            json!({"policy": "SCHED_BATCH", "nice": 7, "flags": ["SCHED_FLAG_RESET_ON_FORK"]});
        shell(config, &script);
    });
    rig.up();
    let out = rig.rootfs().join("tmp/out");
    orlop_conformance_oci::wait_for("the program", || {
        std::fs::read_to_string(&out).is_ok_and(|text| text.lines().count() == 2)
    });
    // The flag is about what is better than usual; this is inherited.
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "best-effort: prio 6\n3 7\n");
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", rig.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    assert_eq!((fields[38], fields[16]), ("3", "7"), "SCHED_BATCH");

    let process = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"], "args": ["sh", "-c", format!("ionice; {SCHEDULER}")],
        "ioPriority": {"class": "IOPRIO_CLASS_IDLE", "priority": 0}, "scheduler": {"policy": "SCHED_IDLE"}});
    let file = rig.path("process.json");
    std::fs::write(&file, process.to_string()).unwrap();
    // The policy has no nice value of its own: the caller's stays.
    let own = std::fs::read_to_string("/proc/self/stat").unwrap();
    let nice = own.rsplit_once(')').unwrap().1.split_whitespace().nth(16).unwrap().to_owned();
    let seen = rig.exec(&["--process", file.to_str().unwrap()], &[]).ok();
    assert_eq!(seen, format!("idle\n5 {nice}\n"));
    rig.call(&["delete", "-f", &rig.id]).ok();

    rig.configure(|config| {
        config["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 9})
    });
    rig.create().fails("ioPriority.priority 9");
    rig.configure(|config| config["process"]["scheduler"] = json!({"policy": "SCHED_OTHER", "priority": 9}));
    rig.create().fails("scheduler.priority is not for the policy");
    rig.assert_nothing_left();
}

#[test]
fn personality() {
    if differs("personality") {
        return;
    }
    let Some(rig) = Rig::new() else { return };
    rig.configure(|config| {
        config["linux"]["personality"] = json!({"domain": "LINUX32"});
        config["process"]["args"] = json!(["/bin/busybox", "uname", "-m"]);
    });
    assert_eq!(rig.run().ok(), if cfg!(target_arch = "x86_64") { "i686\n" } else { "armv8l\n" });
    rig.configure(|config| config["linux"]["personality"] = json!({"domain": "LINUX32"}));
    rig.up();
    let machine = rig.exec(&[], &["/bin/busybox", "uname", "-m"]).ok();
    if is_ours() {
        assert_ne!(machine.trim(), std::env::consts::ARCH, "exec joins the execution domain too");
    }
    rig.call(&["delete", "-f", &rig.id]).ok();
    rig.assert_nothing_left();
}

#[test]
fn time_has_offsets() {
    let Some(rig) = ours_only() else { return };
    for with_user in [false, true] {
        rig.configure(|config| {
            let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.push(json!({"type": "time"}));
            if with_user {
                namespaces.push(json!({"type": "user"}));
                let map = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]);
                config["linux"]["uidMappings"] = map.clone();
                config["linux"]["gidMappings"] = map;
            }
            config["linux"]["timeOffsets"] =
                json!({"boottime": {"secs": 100_000_000}, "monotonic": {"secs": 7, "nanosecs": 5}});
        });
        rig.open_to_all();
        rig.up();
        let out = rig.exec(&[], &["sh", "-c", "cut -d. -f1 /proc/uptime; readlink /proc/self/ns/time; readlink /proc/1/ns/time; cat /proc/self/timens_offsets"]).ok();
        let lines: Vec<&str> = out.lines().collect();
        assert!(lines[0].parse::<u64>().unwrap() >= 100_000_000, "{out}");
        assert_eq!(lines[1], lines[2]);
        assert!(out.contains("100000000"), "{out}");
        rig.call(&["delete", "-f", &rig.id]).ok();
    }
    rig.configure(|config| config["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1}}));
    rig.create().fails("time");
    rig.assert_nothing_left();
}

#[test]
fn exec_runs_on_chosen_cpus() {
    let Some(rig) = ours_only() else { return };
    rig.configure(|config| config["process"]["execCPUAffinity"] = json!({"initial": "0", "final": "0-0"}));
    rig.up();
    let status = ["grep", "Cpus_allowed_list", "/proc/self/status"];
    assert!(rig.exec(&[], &status).ok().ends_with("\t0\n"));
    rig.call(&["delete", "-f", &rig.id]).ok();
    rig.configure(|config| config["process"]["execCPUAffinity"] = json!({"initial": "x"}));
    rig.create().fails("");
    rig.assert_nothing_left();
}

#[test]
fn security_modules_that_are_off() {
    let Some(rig) = ours_only() else { return };
    if std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        skip("SELinux is on");
    } else {
        rig.configure(|config| config["process"]["selinuxLabel"] = json!("system_u:system_r:container_t:s0"));
        rig.create().fails("SELinux is disabled");
        rig.configure(|config| {
            config["linux"]["mountLabel"] = json!("system_u:object_r:container_file_t:s0")
        });
        rig.create().fails("SELinux is disabled");
    }
    if std::fs::read_to_string("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|text| text.starts_with('Y'))
    {
        skip("AppArmor is on");
    } else {
        rig.configure(|config| config["process"]["apparmorProfile"] = json!("unconfined"));
        rig.create().fails("AppArmor is disabled");
    }
    rig.assert_nothing_left();
}

/// What an agent was sent: the state, and how many descriptors.
fn receive(listener: &UnixListener) -> (Value, Vec<i32>) {
    let (mut socket, _) = listener.accept().unwrap();
    let mut text = vec![0_u8; 64 * 1024];
    let mut space = nix::cmsg_space!([i32; 4]);
    let mut descriptors = Vec::new();
    let count = {
        let mut parts = [std::io::IoSliceMut::new(&mut text)];
        let message =
            recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)
                .unwrap();
        for control in message.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(received) = control {
                descriptors.extend(received);
            }
        }
        message.bytes
    };
    text.truncate(count);
    socket.read_to_end(&mut text).unwrap();
    (serde_json::from_slice(&text).unwrap(), descriptors)
}

#[test]
fn a_seccomp_agent_gets_the_listener() {
    let Some(rig) = ours_only() else { return };
    let path = rig.path("agent.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path, "listenerMetadata": "about it",
        "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
        "syscalls": [{"names": ["mkdir", "mkdirat", "sendmsg", "close"], "action": "SCMP_ACT_NOTIFY"}]});
    for no_new_privileges in [true, false] {
        rig.configure(|config| {
            config["linux"]["seccomp"] = profile.clone();
            config["process"]["noNewPrivileges"] = no_new_privileges.into();
            shell(config, "exec sleep 1000");
        });
        // The agent hears of every call named; it never answers, so the program stays at its first close().
        rig.create().ok();
        let agent = std::thread::scope(|scope| {
            let agent = scope.spawn(|| receive(&listener));
            rig.verb("start").ok();
            agent.join().unwrap()
        });
        let (state, descriptors) = agent;
        assert_eq!(descriptors.len(), 1);
        assert_eq!(state["fds"], json!(["seccompFd"]));
        assert_eq!(state["metadata"], "about it");
        assert_eq!(state["state"]["id"], rig.id.as_str());
        assert_eq!(state["state"]["annotations"]["org.example.key"], "value");
        assert_eq!(state["pid"], rig.pid());
        let link = std::fs::read_link(format!("/proc/self/fd/{}", descriptors[0])).unwrap();
        assert_eq!(link.to_str().unwrap(), "anon_inode:seccomp notify");
        nix::unistd::close(descriptors[0]).unwrap();
        rig.call(&["delete", "-f", &rig.id]).ok();
    }
    drop(listener);
    rig.create().fails("failed to connect to the seccomp agent");
    rig.configure(|config| {
        config["linux"]["seccomp"] = profile.clone();
        config["linux"]["seccomp"].as_object_mut().unwrap().remove("listenerPath");
    });
    rig.create().fails("needs linux.seccomp.listenerPath");
    rig.configure(|config| {
        config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": path});
    });
    rig.create().fails("cannot be the default action");
    rig.assert_nothing_left();
}

#[test]
fn readiness_is_passed_on() {
    let Some(rig) = ours_only() else { return };
    let path = rig.path("manager.sock");
    let manager = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    let heard = || {
        let mut text = [0_u8; 256];
        let count = manager.recv(&mut text).unwrap();
        String::from_utf8_lossy(&text[..count]).into_owned()
    };
    // The service in the container: the test itself, from its side of the bind.
    rig.configure(|config| {
        shell(config, "test \"$NOTIFY_SOCKET\" = /run/notify/notify.sock && exec sleep 1000")
    });
    let call = |arguments: &[&str]| {
        let mut command = rig.command(arguments);
        command.env("NOTIFY_SOCKET", &path);
        command
    };
    let bundle = rig.bundle();
    rig.finish(call(&["create", "-b", bundle.to_str().unwrap(), &rig.id])).ok();
    let pid = rig.pid();
    std::thread::scope(|scope| {
        let started = scope.spawn(|| rig.finish(call(&["start", &rig.id])));
        let inside = format!("/proc/{pid}/root/run/notify/notify.sock");
        orlop_conformance_oci::wait_for("the socket", || std::path::Path::new(&inside).exists());
        let service = std::os::unix::net::UnixDatagram::unbound().unwrap();
        orlop_conformance_oci::wait_for("a listener", || service.connect(&inside).is_ok());
        service.send(b"STATUS=almost").unwrap();
        service.send(b"STATUS=done\nREADY=1\n").unwrap();
        assert_eq!(heard(), "READY=1");
        assert_eq!(heard(), format!("MAINPID={pid}"));
        started.join().unwrap().ok();
    });
    assert_eq!(rig.status(), "running");
    rig.call(&["delete", "-f", &rig.id]).ok();

    // One that ends without a word keeps nobody waiting, and the foreground waits for its end alone.
    rig.configure(|config| config["process"]["args"] = json!(["true"]));
    rig.finish(call(&["run", "-d", "-b", bundle.to_str().unwrap(), &rig.id])).ok();
    rig.call(&["delete", "-f", &rig.id]).ok();
    rig.finish(call(&["run", "-b", bundle.to_str().unwrap(), &rig.id])).ok();
    rig.assert_nothing_left();
}

#[test]
fn a_pidfd_is_handed_over() {
    let Some(rig) = ours_only() else { return };
    let path = rig.path("pidfd.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let pid_of = |descriptor: i32| {
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")).unwrap();
        nix::unistd::close(descriptor).unwrap();
        text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse::<u32>().ok()).unwrap()
    };
    let receive = || {
        let (socket, _) = listener.accept().unwrap();
        let mut text = [0_u8; 16];
        let mut space = nix::cmsg_space!([i32; 1]);
        let mut parts = [std::io::IoSliceMut::new(&mut text)];
        let message =
            recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty()).unwrap();
        match message.cmsgs().unwrap().next() {
            Some(ControlMessageOwned::ScmRights(descriptors)) => descriptors[0],
            other => panic!("{other:?}"),
        }
    };
    let bundle = rig.bundle();
    let socket = path.to_str().unwrap();
    rig.call(&["create", "--pidfd-socket", socket, "-b", bundle.to_str().unwrap(), &rig.id]).ok();
    assert_eq!(pid_of(receive()), rig.pid());
    rig.verb("start").ok();
    let file = rig.path("pid");
    rig.exec(&["-d", "--pidfd-socket", socket, "--pid-file", file.to_str().unwrap()], &["sleep", "1000"])
        .ok();
    assert_eq!(pid_of(receive()).to_string(), std::fs::read_to_string(file).unwrap());
    rig.call(&["delete", "-f", &rig.id]).ok();
    rig.assert_nothing_left();
}

#[test]
fn exec_enters_groups_of_single_controllers() {
    let Some(rig) = ours_only() else { return };
    rig.up();
    rig.exec(&["--cgroup", "a", "--cgroup", "b"], &["true"]).fails("missing <controller>: prefix");
    rig.exec(&["--cgroup", "nothing:a"], &["true"]).fails("no cgroup v1 controller nothing");
    if orlop_conformance_oci::is_unified() {
        skip("cgroup v1");
    } else {
        let pids = std::path::Path::new("/sys/fs/cgroup/pids").join(rig.cgroup.trim_start_matches('/'));
        std::fs::create_dir(pids.join("inner")).unwrap();
        let groups = rig.exec(&["--cgroup", "pids:inner"], &["cat", "/proc/self/cgroup"]).ok();
        let line = |name: &str| groups.lines().find(|line| line.contains(name)).unwrap().to_owned();
        assert!(line(":pids:").ends_with(&format!("{}/inner", rig.cgroup)), "{groups}");
        assert!(line(":memory:").ends_with(&rig.cgroup), "{groups}");
        rig.exec(&["--cgroup", "pids:../x"], &["true"]).fails("not below");
    }
    rig.call(&["delete", "-f", &rig.id]).ok();
    rig.configure(|config| config["linux"]["intelRdt"] = json!({"closID": "x"}));
    rig.create().fails("linux.intelRdt is not supported");
    rig.assert_nothing_left();
}
