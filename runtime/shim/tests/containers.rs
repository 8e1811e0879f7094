//! Lives of containers: create, start, exit codes, signals, stop, limits, cleaning up.

#![expect(clippy::unwrap_used, reason = "tests")]

mod rig;

use orlop_shim::client::ClientError;
use orlop_shim::protocol::{ErrorKind, Phase, Request, Response};
use rig::Pod;

fn kind<T: std::fmt::Debug>(result: Result<T, ClientError>) -> (ErrorKind, String) {
    match result {
        Err(ClientError::Refused { kind, message }) => (kind, message),
        other => panic!("{other:?}"),
    }
}

#[test]
fn runs_and_logs_and_tells_exit_codes() {
    needs_root!();
    let pod = Pod::start();
    let request = pod.container(
        "c1",
        &["sh", "-c", "echo out; echo err >&2; hostname; echo $WHO $HOME; printf end; exit 7"],
        |_| {},
    );
    let state = pod.create(request.clone()).unwrap();
    assert_eq!(state.phase, Phase::Created);
    assert!(state.pid.is_some() && state.started_at == 0);
    assert_eq!(pod.create(request).unwrap().pid, state.pid, "create is idempotent");
    assert_eq!(pod.start_container("c1").unwrap().phase, Phase::Running);
    let exit = pod.wait("c1");
    assert_eq!((exit.code, exit.oom_killed), (7, false));
    let mut log = pod.log("c1");
    log.sort();
    assert_eq!(log, ["stderr F err", "stdout F me /root", "stdout F out", "stdout F pod-1", "stdout P end"]);
    assert_eq!(kind(pod.start_container("c1")).0, ErrorKind::WrongState);
    pod.stop("c1", 1000);
    pod.remove("c1");
    pod.remove("c1");
    assert_eq!(kind(pod.start_container("c1")).0, ErrorKind::NotFound);
    pod.end();
}

#[test]
fn is_isolated() {
    needs_root!();
    let pod = Pod::start();
    let script = "grep -E 'Seccomp:|NoNewPrivs|CapBnd|CapEff' /proc/self/status; mkdir /x && echo made; ls /dev/shm; \
                  cat /proc/sys/net/ipv4/ip_unprivileged_port_start; ps | wc -l; ls /proc/self/fd; pwd; \
                  mknod /tmp/tty c 4 64 && cat /tmp/tty; touch /dev/shm/seen";
    pod.run_with("c1", &["sh", "-c", script], |config| {
        config["process"]["cwd"] = "/made/for/me".into();
        config["linux"]["seccomp"] = serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]});
    });
    assert_ne!(pod.wait("c1").code, 127);
    let log = pod.log("c1");
    let has = |text: &str| log.iter().any(|line| line.contains(text));
    assert!(has("Seccomp:\t2") && has("NoNewPrivs:\t0"), "{log:?}");
    assert!(has("CapBnd:\t0000000008000020") && has("CapEff:\t0000000008000020"), "{log:?}");
    assert!(has("mkdir") && !has("made\n"), "{log:?}");
    assert!(has("stdout F /made/for/me"), "{log:?}");
    assert!(has("/tmp/tty") && has("not permitted"), "the device policy: {log:?}");
    let descriptors: Vec<_> = log
        .iter()
        .filter(|line| line.len() == "stdout F 0".len() && line.ends_with(|c: char| c.is_ascii_digit()))
        .collect();
    assert!(descriptors.len() <= 6, "descriptors leaked in: {log:?}");
    pod.run("c2", &["ls", "/dev/shm"]);
    pod.wait("c2");
    assert_eq!(pod.log("c2"), ["stdout F seen"], "one /dev/shm for the pod");
    pod.end();
}

#[test]
fn users_and_streams_of_their_own() {
    needs_root!();
    let pod = Pod::start();
    pod.run_with(
        "c1",
        &["sh", "-c", "id; echo $HOME; echo again > /dev/stdout; grep CapEff /proc/self/status"],
        |config| {
            config["process"]["user"] = serde_json::json!({"uid": 33, "gid": 33, "additionalGids": [5, 7]});
            config["process"]["noNewPrivileges"] = true.into();
        },
    );
    assert_eq!(pod.wait("c1").code, 0);
    let log = pod.log("c1");
    assert!(
        log[0].contains("uid=33(web) gid=33(web) groups=33(web),5,7") || log[0].contains("groups=5,7"),
        "{log:?}"
    );
    assert_eq!(log[1..3], ["stdout F /home/web", "stdout F again"]);
    // Permitted sets do not survive execve of another user without ambient ones (capabilities(7)).
    assert!(log[3].contains("0000000000000000"), "{log:?}");
    pod.end();
}

#[test]
fn a_program_that_cannot_start_fails_the_start() {
    needs_root!();
    let pod = Pod::start();
    for (id, program, code) in [("c1", "no-such-program", 127), ("c2", "/bin/not-executable", 126)] {
        pod.create(pod.container(id, &[program], |_| {})).unwrap();
        let (kind, message) = kind(pod.start_container(id));
        assert_eq!(kind, ErrorKind::Failed);
        assert!(message.contains(program), "{message}");
        assert_eq!(pod.wait(id).code, code);
        pod.remove(id);
    }
    pod.end();
}

#[test]
fn a_failed_start_may_be_removed_at_once() {
    needs_root!();
    let pod = Pod::start();
    for round in 0..30 {
        let id = format!("c{round}");
        pod.create(pod.container(&id, &["no-such-program"], |_| {})).unwrap();
        let mut client = pod.client();
        // On one connection and without a look at anything in between: the process's end is still on its way.
        assert!(client.call(&Request::Start { id: id.clone() }).is_err());
        assert!(matches!(client.call(&Request::Remove { id }).unwrap(), Response::Ok));
    }
    pod.end();
}

#[test]
fn a_container_that_cannot_be_made_leaves_nothing() {
    needs_root!();
    let pod = Pod::start();
    for change in [
        (|config| config["mounts"][0]["source"] = "/no/such".into()) as fn(&mut serde_json::Value),
        |config| config["mounts"][0]["type"] = "nonsense".into(),
        |config| config["process"]["args"] = serde_json::json!([]),
        |config| config["linux"]["seccomp"] = serde_json::json!({"defaultAction": "SCMP_ACT_NOTIFY"}),
    ] {
        let mut config_was_bad = false;
        let request = pod.container("c1", &["true"], |config| {
            change(config);
            config_was_bad = config["mounts"][0]["source"] != "/no/such";
        });
        let result = pod.create(request);
        if config_was_bad {
            assert_eq!(kind(result).0, ErrorKind::Failed);
            assert!(!pod.state_dir().join("containers/c1").exists());
        } else {
            pod.remove("c1");
        }
    }
    // And the name is free again.
    pod.run("c1", &["true"]);
    assert_eq!(pod.wait("c1").code, 0);
    pod.end();
}

#[test]
fn an_image_whose_dev_is_a_link_is_refused() {
    needs_root!();
    let pod = Pod::start();
    let bait = tempfile::tempdir().unwrap();
    let root = pod.directory.path().join("root");
    std::fs::remove_dir(root.join("dev")).unwrap();
    std::os::unix::fs::symlink(bait.path(), root.join("dev")).unwrap();
    let (_, message) = kind(pod.create(pod.container("c1", &["true"], |_| {})));
    assert!(message.contains("/dev of the image"), "{message}");
    assert_eq!(std::fs::read_dir(bait.path()).unwrap().count(), 0);
    pod.end();
}

#[test]
fn stops_politely_then_not() {
    needs_root!();
    let pod = Pod::start();
    pod.run(
        "polite",
        &["sh", "-c", "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done"],
    );
    pod.run("rude", &["sh", "-c", "trap '' TERM; echo ready; sleep 1000"]);
    pod.run("forks", &["sh", "-c", "sleep 1000 & sleep 1000 & sleep 1000"]);
    while pod.log("polite").is_empty() || pod.log("rude").is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    pod.stop("polite", 20_000);
    pod.stop("rude", 100);
    pod.stop("forks", 0);
    assert_eq!(pod.wait("polite").code, 3);
    assert_eq!(pod.log("polite"), ["stdout F ready", "stdout F bye"]);
    assert_eq!(pod.wait("rude").code, 137);
    assert_eq!(pod.wait("forks").code, 137);
    pod.create(pod.container("never", &["true"], |_| {})).unwrap();
    pod.stop("never", 60_000);
    assert_eq!(pod.wait("never").code, 137);
    pod.end();
}

#[test]
fn signals_and_removal_rules() {
    needs_root!();
    let pod = Pod::start();
    pod.run("c1", &["sleep", "1000"]);
    assert_eq!(kind(pod.call(&Request::Remove { id: "c1".into() })).0, ErrorKind::WrongState);
    assert_eq!(
        kind(pod.call(&Request::Signal { id: "c1".into(), signal: 99, all: false })).0,
        ErrorKind::Invalid
    );
    assert_eq!(
        kind(pod.call(&Request::Signal { id: "x".into(), signal: 9, all: false })).0,
        ErrorKind::NotFound
    );
    pod.call(&Request::Signal { id: "c1".into(), signal: 9, all: true }).unwrap();
    assert_eq!(pod.wait("c1").code, 137);
    pod.create(pod.container("c2", &["true"], |_| {})).unwrap();
    pod.remove("c2");
    assert_eq!(
        kind(pod.create(pod.container("ok", &["true"], |_| {}).with_id("../x"))).0,
        ErrorKind::Invalid
    );
    pod.end();
}

trait WithId {
    fn with_id(self, id: &str) -> Self;
}

impl WithId for orlop_shim::protocol::CreateContainer {
    fn with_id(mut self, id: &str) -> Self {
        self.id = id.into();
        self
    }
}

#[test]
fn tells_when_memory_ran_out() {
    needs_root!();
    let pod = Pod::start();
    pod.run_with("c1", &["sh", "-c", "x=x; while :; do x=$x$x$x; done"], |config| {
        config["linux"]["resources"]["memory"] = serde_json::json!({"limit": 16 << 20, "swap": 16 << 20});
    });
    let exit = pod.wait("c1");
    assert_eq!((exit.code, exit.oom_killed), (137, true));
    pod.run("c2", &["sleep", "1000"]);
    let Response::Stats(stats) = pod.call(&Request::Stats { id: "c2".into() }).unwrap() else { panic!() };
    assert!(stats.memory_bytes > 0 && stats.pids == 1 && stats.cpu_nanos > 0, "{stats:?}");
    pod.end();
}

#[test]
fn a_low_oom_score_is_better_than_none() {
    needs_root!();
    let pod = Pod::start();
    pod.run_with("c1", &["cat", "/proc/self/oom_score_adj"], |config| {
        config["process"]["oomScoreAdj"] = (-997).into()
    });
    pod.run_with("c2", &["cat", "/proc/self/oom_score_adj"], |config| {
        config["process"]["oomScoreAdj"] = 500.into()
    });
    assert_eq!((pod.wait("c1").code, pod.wait("c2").code), (0, 0));
    assert_eq!(pod.log("c2"), ["stdout F 500"]);
    pod.end();
}

#[test]
fn containers_may_share_one_pid_namespace() {
    needs_root!();
    let pod = Pod::start_with(|config| config.shared_pid_namespace = true);
    let shared = |config: &mut serde_json::Value| {
        config["linux"]["namespaces"][1] = serde_json::json!({"type": "pid", "path": "pod"})
    };
    pod.run_with("c1", &["sh", "-c", "sleep 1000 & sleep 1000"], shared);
    pod.run_with("c2", &["ps"], shared);
    assert_eq!(pod.wait("c2").code, 0);
    let log = pod.log("c2");
    assert!(
        log.iter().any(|line| line.contains("sleep 1000")) && log.iter().any(|line| line.contains("reaper")),
        "{log:?}"
    );
    pod.stop("c1", 0);
    pod.remove("c1");
    pod.end();
}

#[test]
fn a_hundred_containers_leave_nothing() {
    needs_root!();
    let pod = Pod::start();
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", pod.shim_pid)).unwrap().count();
    let before = descriptors();
    for round in 0..100 {
        let id = format!("c{round}");
        pod.run(&id, &["sh", "-c", "sleep 1000 & exec true"]);
        pod.wait(&id);
        pod.remove(&id);
    }
    assert!(std::fs::read_dir(pod.state_dir().join("containers")).unwrap().next().is_none());
    // The last client's connection may be about to close.
    for _ in 0..100 {
        if descriptors() > before {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
    assert_eq!(descriptors(), before, "descriptors");
    let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", pod.shim_pid)).unwrap();
    assert!(!mounts.contains("/rootfs"), "mounts in the shim");
    let status = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", pod.shim_pid)).unwrap();
    println!("shim memory:\n{status}");
    pod.end();
}
