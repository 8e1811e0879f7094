//! kill -9 of every daemon, one by one and all at once, while a client calls a Service ten times a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use orlop_tests::{Cluster, Machine, eventually, try_run};

/// Calls the Service until it is told to stop; every call is a new connection.
struct Caller {
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicU32>,
    thread: std::thread::JoinHandle<Vec<String>>,
}

impl Caller {
    fn start(machine: &Machine, url: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let calls = Arc::new(AtomicU32::new(0));
        let mut curl = machine.command("curl");
        curl.args(["-s", "-m", "3", "-o", "/dev/null", "-w", "%{http_code}", url]);
        let (stopped, counted) = (stop.clone(), calls.clone());
        let thread = std::thread::spawn(move || {
            let mut failures = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let output = try_run(&mut curl, "");
                let number = counted.fetch_add(1, Ordering::Relaxed);
                if output.stdout != "200" {
                    failures.push(format!("call {number}: exit {}, status {}", output.code, output.stdout));
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            failures
        });
        Self { stop, calls, thread }
    }

    fn finish(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        assert!(self.calls.load(Ordering::Relaxed) > 20, "the caller hardly called");
        self.thread.join().expect("the caller")
    }
}

/// Pids of the cluster's daemons with the given subcommand.
fn daemons(cluster: &Cluster, subcommand: &str) -> Vec<String> {
    let pattern = format!("{} --config={}", subcommand, cluster.data().display());
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&command).replace('\0', " ").contains(&pattern) {
            pids.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    pids
}

fn kill(pids: &[String]) {
    assert!(!pids.is_empty());
    for pid in pids {
        let pid = nix::unistd::Pid::from_raw(pid.parse().expect("a pid"));
        match nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL) {
            // It ended with its supervisor, which was killed before it.
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(error) => panic!("kill {pid}: {error}"),
        }
    }
}

fn pods(cluster: &Cluster) -> String {
    cluster.kubectl(&["get", "pods", "-o", "jsonpath={range .items[*]}{.metadata.uid} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount};{end}"])
}

fn settled(cluster: &Cluster, before: &str) {
    eventually("the API answers and the pods are as before", 60, || {
        let output = cluster.try_kubectl(&["get", "--raw", "/readyz"], "");
        if output.code != 0 {
            return Err(output.stderr);
        }
        let node =
            cluster.try_kubectl(&["wait", "node", "--all", "--for=condition=Ready", "--timeout=30s"], "");
        if node.code != 0 {
            return Err(node.stderr);
        }
        let now = pods(cluster);
        if now == before { Ok(()) } else { Err(format!("before {before}\nnow    {now}")) }
    });
}

#[test]
fn no_request_fails_and_nothing_is_doubled_or_lost() {
    let cluster = Cluster::start(&[]);
    cluster.kubectl(&["create", "-f", cluster.example("nginx-rc.yaml").to_str().unwrap()]);
    cluster.kubectl(&["create", "-f", cluster.example("nginx-svc.yaml").to_str().unwrap()]);
    cluster.ready_pods("app=nginx", 2, 60);
    let address =
        cluster.get(&["service", "nginx"])["spec"]["clusterIP"].as_str().expect("a cluster IP").to_owned();
    let url = format!("http://{address}/");
    eventually("the Service answers", 20, || {
        let output = try_run(cluster.machine.command("curl").args(["-s", "-m", "2", &url]), "");
        if output.code == 0 { Ok(()) } else { Err(output.code.to_string()) }
    });
    let before = pods(&cluster);
    let caller = Caller::start(&cluster.machine, &url);
    for daemon in ["runtime", "kubelet", "network", "master", "node"] {
        kill(&daemons(&cluster, daemon));
        // The supervisor has it back before its effects are looked at.
        eventually("the daemon is back", 20, || {
            if daemons(&cluster, daemon).is_empty() { Err(daemon.into()) } else { Ok(()) }
        });
        settled(&cluster, &before);
    }
    let all: Vec<String> = ["runtime", "kubelet", "network", "master", "node"]
        .iter()
        .flat_map(|daemon| daemons(&cluster, daemon))
        .collect();
    let up = std::fs::read_to_string(cluster.data().join("up.lock")).expect("the lock file");
    kill(&[vec![up.trim().to_owned()], all].concat());
    std::thread::sleep(Duration::from_secs(3));
    cluster.up();
    settled(&cluster, &before);
    // Late effects of the restarts would show now.
    std::thread::sleep(Duration::from_secs(5));
    settled(&cluster, &before);
    let failures = caller.finish();
    assert!(failures.is_empty(), "{} requests failed: {failures:#?}", failures.len());
    cluster.down_clean();
}
