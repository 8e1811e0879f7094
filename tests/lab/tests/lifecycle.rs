//! Up, down, up again: resumed, repaired, and nothing left behind.

use std::process::Command;

use orlop_tests::{Cluster, Leftovers, eventually, run, try_run};

const SLEEPER: &str = "
apiVersion: v1
kind: Pod
metadata: {name: sleeper, labels: {app: sleeper}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, '100000']}
";

fn identity(cluster: &Cluster) -> String {
    cluster.kubectl(&["get", "pod", "sleeper", "-o", "jsonpath={.metadata.uid} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}"])
}

/// Stops `orlop up` the way a user does.
fn stop_up(cluster: &Cluster) {
    let pid = std::fs::read_to_string(cluster.data().join("up.lock")).expect("the lock file");
    run(Command::new("kill").args(["-TERM", pid.trim()]));
    eventually("orlop up has ended", 60, || {
        if std::path::Path::new("/proc").join(pid.trim()).join("exe").exists() {
            Err("running".into())
        } else {
            Ok(())
        }
    });
}

#[test]
fn a_second_up_adopts_the_pods() {
    let cluster = Cluster::start(&[]);
    cluster.create(SLEEPER);
    cluster.ready_pods("app=sleeper", 1, 60);
    let before = identity(&cluster);
    let second = try_run(cluster.orlop("up").arg("--detach"), "");
    assert!(second.code != 0 && second.stderr.contains("already"), "{}", second.stderr);
    stop_up(&cluster);
    let said = cluster.up();
    assert!(said.contains("1 node is Ready"), "{said}");
    cluster.ready_pods("app=sleeper", 1, 60);
    assert_eq!(identity(&cluster), before, "the pod was adopted, not restarted");
    let other = try_run(cluster.orlop("up").args(["--detach", "--pod-cidr=10.7.0.0/16"]), "");
    assert!(other.code != 0, "another range is refused");
    cluster.down_clean();
}

#[test]
fn down_removes_everything_even_after_kill_9_and_twice() {
    let cluster = Cluster::start(&[]);
    cluster.create(SLEEPER);
    cluster.ready_pods("app=sleeper", 1, 60);
    kill_everything(&cluster);
    cluster.down();
    cluster.down();
    let left = Leftovers::of(&cluster.data());
    assert!(left.is_empty(), "left behind:\n{}", left.join("\n"));
    let links = cluster.machine.run(&["ip", "-o", "link"]);
    let names: Vec<&str> = links.lines().filter_map(|line| line.split(": ").nth(1)).collect();
    assert_eq!(names, ["lo", "uplink0"], "interfaces");
    let tables = cluster.machine.run(&["nft", "list", "tables"]);
    assert!(!tables.contains("orlop"), "{tables}");
    assert!(!cluster.machine.run(&["ip", "address"]).contains("10.96.0.10"), "the DNS address is gone");
}

/// Kills every process of the cluster, the shims and containers too, as a power cut would.
fn kill_everything(cluster: &Cluster) {
    for process in
        Leftovers::of(&cluster.data()).iter().filter_map(|line| line.strip_prefix("process /proc/"))
    {
        let pid = process.split(':').next().unwrap_or_default();
        let _ = try_run(Command::new("kill").args(["-9", pid]), "");
    }
}

#[test]
fn ranges_that_overlap_a_route_are_refused() {
    let cluster = Cluster::prepare(&[]);
    let output = try_run(cluster.orlop("up").args(["--detach", "--pod-cidr=192.0.2.0/24"]), "");
    assert!(output.code != 0);
    assert!(output.stderr.contains("overlaps this machine's route to 192.0.2.0/24"), "{}", output.stderr);
}
