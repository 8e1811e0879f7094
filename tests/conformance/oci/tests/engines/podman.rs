//! Debian's podman.

use std::fs;
use std::process::Command;

use orlop_conformance_oci::{Called, Kind, is_unified};

use crate::bench::Bench;

struct Podman {
    bench: Bench,
}

impl Podman {
    fn new() -> Option<Self> {
        let bench = Bench::new(&["podman", "conmon"])?;
        let path = |name: &str| bench.rig.path(name);
        let containers = "[engine]\nevents_logger=\"none\"\n[containers]\nlog_driver=\"k8s-file\"\n\
            default_ulimits=[\"nofile=1024:1024\", \"nproc=4096:4096\"]\n";
        fs::write(path("containers.conf"), containers).unwrap();
        let storage = format!(
            "[storage]\ndriver=\"vfs\"\nrunroot={:?}\ngraphroot={:?}\n",
            path("runroot"),
            path("storage")
        );
        fs::write(path("storage.conf"), storage).unwrap();
        fs::create_dir(path("home")).unwrap();
        let podman = Self { bench };
        podman.call(&["import", "--quiet", podman.bench.image.to_str().unwrap(), "orlop-test:1"]).ok();
        Some(podman)
    }

    fn call(&self, arguments: &[&str]) -> Called {
        let rig = &self.bench.rig;
        let mut command = Command::new("podman");
        command
            .env("CONTAINERS_CONF", rig.path("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", rig.path("storage.conf"))
            .env("HOME", rig.path("home"))
            .arg("--root")
            .arg(rig.path("storage"))
            .arg("--runroot")
            .arg(rig.path("runroot"))
            .arg("--tmpdir")
            .arg(rig.path("podman"))
            .args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--runtime"])
            .arg(&self.bench.runtime)
            .args(arguments)
            .stdin(std::process::Stdio::null());
        self.bench.call(command)
    }

    /// `run` or `create` with what every container here has.
    fn run(&self, options: &[&str], program: &[&str]) -> Called {
        let mut arguments = vec!["run", "--cgroup-parent", &self.bench.rig.cgroup, "--network", "none"];
        arguments.extend(options);
        arguments.push("orlop-test:1");
        arguments.extend(program);
        self.call(&arguments)
    }
}

#[test]
fn a_containers_life() {
    let Some(podman) = Podman::new() else { return };
    assert_eq!(podman.run(&["--rm"], &["echo", "hello"]).ok(), "hello\n");
    let called = podman.run(&["--rm"], &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((called.code, called.out.as_str(), called.error.as_str()), (7, "out\n", "err\n"));
    assert_eq!(podman.run(&["--rm"], &["no-such-program"]).code, 127);
    assert_eq!(podman.run(&["--rm"], &["/tmp"]).code, 126);

    let script = "trap 'echo stopping; exit 4' TERM; echo ready; while :; do sleep 0.1; done";
    podman.run(&["-d", "--name", "one"], &["sh", "-c", script]).ok();
    orlop_conformance_oci::wait_for("it is ready", || podman.call(&["logs", "one"]).out.contains("ready"));
    let called = podman.call(&[
        "exec",
        "-e",
        "A=b",
        "-w",
        "/tmp",
        "-u",
        "5:6",
        "one",
        "sh",
        "-c",
        "echo $A $PWD; id -u; exit 3",
    ]);
    assert_eq!((called.code, called.out.as_str()), (3, "b /tmp\n5\n"), "{}", called.error);
    assert!(podman.call(&["top", "one", "args"]).ok().contains("sh -c"));
    podman.call(&["stop", "-t", "15", "one"]).ok();
    assert_eq!(
        podman.call(&["inspect", "one", "--format", "{{.State.Status}} {{.State.ExitCode}}"]).ok(),
        "exited 4\n"
    );
    assert_eq!(podman.call(&["logs", "one"]).ok(), "ready\nstopping\n");
    podman.call(&["start", "one"]).ok();
    podman.call(&["kill", "one"]).ok();
    assert_eq!(podman.call(&["wait", "one"]).ok(), "137\n");
    podman.call(&["rm", "one"]).ok();

    podman.run(&["-d", "--name", "two"], &["sleep", "1000"]).ok();
    podman.call(&["pause", "two"]).ok();
    assert_eq!(podman.call(&["inspect", "two", "--format", "{{.State.Status}}"]).ok(), "paused\n");
    podman.call(&["unpause", "two"]).ok();
    podman.call(&["rm", "--force", "-t", "0", "two"]).ok();
    assert_eq!(podman.call(&["ps", "--all", "--quiet"]).ok(), "");
    podman.bench.assert_nothing_left();
}

#[test]
fn limits_and_confinement() {
    let Some(podman) = Podman::new() else { return };
    let line = "grep -E 'CapBnd|Seccomp:|NoNewPrivs' /proc/self/status; touch /x; touch /t/x; touch /run/x; grep ' /t ' /proc/mounts; hostname; id -u";
    let options = [
        "--rm",
        "--memory",
        "64m",
        "--pids-limit",
        "50",
        "--cap-drop",
        "all",
        "--cap-add",
        "chown",
        "--read-only",
        "--tmpfs",
        "/t:size=1m,mode=1777",
        "--security-opt",
        "no-new-privileges",
        "--hostname",
        "inner",
        "--user",
        "9:9",
        "--oom-score-adj",
        "100",
    ];
    let called = podman.run(&options, &["sh", "-c", line]);
    let out = &called.out;
    assert!(
        out.contains("CapBnd:\t0000000000000001") && out.contains("NoNewPrivs:\t1"),
        "{out} {}",
        called.error
    );
    assert!(
        out.contains("Seccomp:\t2") && out.contains("size=1024k") && out.ends_with("inner\n9\n"),
        "{out}"
    );
    assert!(
        called.error.contains("/x: Read-only file system") && !called.error.contains("/t/x"),
        "{}",
        called.error
    );

    let file = if is_unified() {
        "/sys/fs/cgroup/memory.max"
    } else {
        "/sys/fs/cgroup/memory/memory.limit_in_bytes"
    };
    assert_eq!(podman.run(&["--rm", "--memory", "64m"], &["cat", file]).ok(), "67108864\n");
    // A container over its limit.
    let called = podman.run(
        &["--rm", "--memory", "16m", "--memory-swap", "16m"],
        &["sh", "-c", "a=x; while :; do a=$a$a; done"],
    );
    assert_eq!(called.code, 137, "{}", called.error);

    let profile = podman.bench.rig.path("profile.json");
    let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}"#;
    fs::write(&profile, text).unwrap();
    let option = format!("seccomp={}", profile.display());
    let called = podman.run(&["--rm", "--security-opt", &option], &["mkdir", "/tmp/x"]);
    assert!(called.code == 1 && called.error.contains("not permitted"), "{}", called.error);
    podman.run(&["--rm", "--security-opt", "seccomp=unconfined"], &["mkdir", "/tmp/x"]).ok();

    // What an image has below a tmpfs comes along, and a volume is shared.
    let volume = podman.bench.rig.path("volume");
    fs::create_dir(&volume).unwrap();
    let option = format!("{}:/v", volume.display());
    let out = podman
        .run(
            &["--rm", "--tmpfs", "/bin2", "-v", &option],
            &["sh", "-c", "echo in > /v/file; ls /bin/busybox"],
        )
        .ok();
    assert_eq!(out, "/bin/busybox\n");
    assert_eq!(fs::read_to_string(volume.join("file")).unwrap(), "in\n");
    podman.bench.assert_nothing_left();
}

#[test]
fn a_user_namespace() {
    let Some(podman) = Podman::new() else { return };
    // The way to the storage is root's alone in a temporary directory.
    podman.bench.rig.open_to_all();
    let options = ["--rm", "--uidmap", "0:100000:5000", "--gidmap", "0:100000:5000"];
    let called = podman.run(&options, &["sh", "-c", "id -u; cat /proc/self/uid_map"]);
    if podman.bench.rig.subject.kind != Kind::Ours && called.code != 0 {
        orlop_conformance_oci::skip(&format!("podman with a user namespace: {}", called.error.trim()));
        return;
    }
    let out = called.ok();
    assert_eq!(out.split_whitespace().collect::<Vec<_>>(), ["0", "0", "100000", "5000"]);
    podman.bench.assert_nothing_left();
}
