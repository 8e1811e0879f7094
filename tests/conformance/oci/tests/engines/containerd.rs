//! Debian's containerd with `io.containerd.runc.v2`, driven by `ctr`.

use std::fs;
use std::process::{Command, Stdio};

use orlop_conformance_oci::{Called, Child, wait_for};

use crate::bench::Bench;

struct Containerd {
    /// Ends before the bench is looked at.
    daemon: Option<Child>,
    bench: Bench,
}

const IMAGE: &str = "localhost/orlop-test:1";

impl Containerd {
    fn new() -> Option<Self> {
        let bench = Bench::new(&["containerd", "ctr", "containerd-shim-runc-v2", "podman"])?;
        let path = |name: &str| bench.rig.path(name);
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n\
            disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n\
            [grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
            path("root-directory"),
            path("state-directory"),
            path("c.sock"),
            path("t.sock")
        );
        fs::write(path("config.toml"), config).unwrap();
        let log = fs::File::create(path("containerd.log")).unwrap();
        let mut command = Command::new("containerd");
        command.arg("--config").arg(path("config.toml")).stdin(Stdio::null());
        let daemon = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let containerd = Self { daemon: Some(Child(daemon)), bench };
        wait_for("containerd answers", || containerd.call(&["version"]).code == 0);
        let archive = containerd.archive();
        containerd.call(&["images", "import", "--snapshotter", "native", &archive]).ok();
        Some(containerd)
    }

    /// An OCI archive made by somebody else.
    fn archive(&self) -> String {
        let rig = &self.bench.rig;
        let archive = rig.path("archive.tar");
        let storage = format!(
            "[storage]\ndriver=\"vfs\"\nrunroot={:?}\ngraphroot={:?}\n",
            rig.path("pr"),
            rig.path("pg")
        );
        fs::write(rig.path("storage.conf"), storage).unwrap();
        let podman = |arguments: &[&std::ffi::OsStr]| {
            let mut command = Command::new("podman");
            command.env("CONTAINERS_STORAGE_CONF", rig.path("storage.conf")).env("HOME", rig.path(""));
            self.bench.call({
                command.args(arguments);
                command
            })
        };
        podman(&["import".as_ref(), self.bench.image.as_os_str(), IMAGE.as_ref()]).ok();
        podman(&[
            "save".as_ref(),
            "--format".as_ref(),
            "oci-archive".as_ref(),
            "-o".as_ref(),
            archive.as_os_str(),
            IMAGE.as_ref(),
        ])
        .ok();
        archive.to_str().unwrap().to_owned()
    }

    fn call(&self, arguments: &[&str]) -> Called {
        let rig = &self.bench.rig;
        let mut command = Command::new("ctr");
        command.arg("--address").arg(rig.path("c.sock")).args(["--namespace", &rig.id]).args(arguments);
        command.stdin(Stdio::null());
        self.bench.call(command)
    }

    fn run(&self, options: &[&str], id: &str, program: &[&str]) -> Called {
        let runtime = self.bench.runtime.to_str().unwrap().to_owned();
        let mut arguments = vec!["run", "--snapshotter", "native", "--runtime", "io.containerd.runc.v2"];
        arguments.extend(["--runc-binary", &runtime]);
        arguments.extend(options);
        arguments.extend([IMAGE, id]);
        arguments.extend(program);
        self.call(&arguments)
    }

    fn status(&self, id: &str) -> String {
        let table = self.call(&["tasks", "ls"]).ok();
        let line = table.lines().find(|line| line.starts_with(id));
        line.and_then(|line| line.split_whitespace().last()).unwrap_or_default().to_owned()
    }
}

#[test]
fn a_containers_life() {
    let Some(mut containerd) = Containerd::new() else { return };
    let called = containerd.run(&["--rm"], "one", &["/bin/sh", "-c", "echo out; exit 5"]);
    assert_eq!((called.code, called.out.as_str()), (5, "out\n"), "{}", called.error);
    let called = containerd.run(&["--rm"], "bad", &["/no/such/program"]);
    assert!(called.code != 0 && called.error.to_lowercase().contains("no such file"), "{}", called.error);

    containerd.run(&["--detach", "--memory-limit", "67108864"], "two", &["/bin/sleep", "1000"]).ok();
    assert_eq!(containerd.status("two"), "RUNNING");
    let called =
        containerd.call(&["tasks", "exec", "--exec-id", "e1", "two", "/bin/sh", "-c", "echo inside; exit 3"]);
    assert_eq!((called.code, called.out.as_str()), (3, "inside\n"), "{}", called.error);
    assert!(containerd.call(&["tasks", "ps", "two"]).ok().lines().count() >= 2);
    assert!(containerd.call(&["tasks", "metrics", "two"]).ok().contains("memory"));
    containerd.call(&["tasks", "pause", "two"]).ok();
    assert_eq!(containerd.status("two"), "PAUSED");
    containerd.call(&["tasks", "resume", "two"]).ok();
    assert_eq!(containerd.status("two"), "RUNNING");
    containerd.call(&["tasks", "kill", "--signal", "SIGKILL", "two"]).ok();
    wait_for("it stops", || containerd.status("two") == "STOPPED");
    // Its exit code is the program's.
    let deleted = containerd.call(&["tasks", "delete", "two"]);
    assert!(deleted.error.contains("137"), "{}", deleted.error);
    containerd.call(&["containers", "delete", "two"]).ok();

    let status = containerd.daemon.as_mut().map(|daemon| {
        let pid = i32::try_from(daemon.0.id()).unwrap();
        orlop_linux::process::send_signal(pid, libc::SIGTERM).unwrap();
        daemon.0.wait().unwrap()
    });
    assert!(status.unwrap().success());
    containerd.bench.assert_nothing_left();
}
