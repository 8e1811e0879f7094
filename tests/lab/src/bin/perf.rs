//! The numbers of SPECIFICATION.md, measured on a lab machine: `cargo run --release --package orlop-tests --bin perf`.
//!
//! Timings are medians of several runs, beside what is promised; these machines are noisy, so nothing is asserted.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;
use std::time::{Duration, Instant};

use orlop_tests::{Cluster, eventually, orlop_binary};

const PODS: usize = 50;
const STARTS: usize = 9;

fn main() -> std::io::Result<()> {
    let mut rows = Vec::new();
    let cluster = Cluster::prepare(&[]);
    rows.push(("up to node Ready, new data directory", "3 s", show(timed(|| drop(cluster.up())))));
    stop(&cluster);
    rows.push(("up to node Ready, existing data directory", "2 s", show(timed(|| drop(cluster.up())))));
    cluster.import(&orlop_tests::image::busybox());
    std::thread::sleep(Duration::from_secs(3));
    for (name, kibibytes) in memory(&cluster) {
        let target = if name == "master" { "40 MB" } else { "60 MB for all node daemons" };
        rows.push((name, target, format!("{:.1} MB", kibibytes / 1024.0)));
    }
    let mut starts: Vec<Duration> = (0..STARTS).map(|number| start_one(&cluster, number)).collect();
    starts.sort();
    rows.push(("create of a pod to Running, median", "300 ms", show(starts[STARTS / 2])));
    rows.push(("shim, proportional memory of one", "2 MB", shim(&cluster)));
    rows.push(("50 pods created at once, all Running", "10 s", show(timed(|| start_many(&cluster)))));
    let size = std::fs::metadata(orlop_binary())?.len();
    rows.push(("binary", "30 MB", format!("{:.1} MB", size as f64 / 1e6)));
    let mut out = std::io::stdout().lock();
    for (what, target, measured) in rows {
        writeln!(out, "{what:45} {measured:>12}   promised {target}")?;
    }
    Ok(())
}

fn timed(work: impl FnOnce()) -> Duration {
    let started = Instant::now();
    work();
    started.elapsed()
}

fn show(duration: Duration) -> String {
    format!("{:.0} ms", duration.as_secs_f64() * 1000.0)
}

fn stop(cluster: &Cluster) {
    let pid = std::fs::read_to_string(cluster.data().join("up.lock")).expect("the lock file");
    orlop_tests::run(std::process::Command::new("kill").args(["-TERM", pid.trim()]));
    eventually("up has ended", 60, || {
        let gone = std::fs::read_link(format!("/proc/{}/exe", pid.trim())).is_err();
        if gone { Ok(()) } else { Err("running".to_owned()) }
    });
}

fn pod(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: perf}}}}\nspec: {{terminationGracePeriodSeconds: 0, \
         containers: [{{name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, '1000']}}]}}\n---\n"
    )
}

/// From the create call to the Running event, as a watch sees it.
fn start_one(cluster: &Cluster, number: usize) -> Duration {
    let name = format!("one-{number}");
    let mut watch = cluster.kubectl_command();
    watch.args(["get", "pods", "-w", "--no-headers", "--field-selector", &format!("metadata.name={name}")]);
    let mut watch = watch.stdout(Stdio::piped()).spawn().expect("kubectl get -w");
    let lines = BufReader::new(watch.stdout.take().expect("stdout")).lines();
    std::thread::sleep(Duration::from_millis(500));
    let started = Instant::now();
    cluster.create(&pod(&name));
    for line in lines {
        if line.expect("a line").contains("Running") {
            break;
        }
    }
    let elapsed = started.elapsed();
    watch.kill().expect("kubectl runs");
    watch.wait().expect("kubectl ended");
    elapsed
}

fn start_many(cluster: &Cluster) {
    cluster.create(&(0..PODS).map(|number| pod(&format!("many-{number}"))).collect::<String>());
    eventually("all pods are Running", 120, || {
        let list = cluster.get(&["pods"]);
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let running = items.iter().filter(|item| item["status"]["phase"] == "Running").count();
        if running == PODS + STARTS { Ok(()) } else { Err(format!("{running} are Running")) }
    });
}

/// Private and a fair share of shared memory of each daemon, in KiB (smaps_rollup, Pss).
fn memory(cluster: &Cluster) -> BTreeMap<&'static str, f64> {
    let mut found = BTreeMap::new();
    for (name, pattern) in [
        ("master", "master --config="),
        ("runtime", "runtime --config="),
        ("kubelet", "kubelet --config="),
        ("network", "network --config="),
    ] {
        let pattern = format!("{pattern}{}", cluster.data().display());
        found.insert(name, processes(&pattern).iter().map(|pid| pss(pid)).sum());
    }
    found
}

fn shim(cluster: &Cluster) -> String {
    let suffix = cluster.data().display().to_string();
    let shims = processes("shim --config");
    let total: f64 = shims.iter().map(|pid| pss(pid)).sum();
    if shims.is_empty() {
        format!("none of {suffix}")
    } else {
        format!("{:.2} MB", total / 1024.0 / shims.len() as f64)
    }
}

fn processes(pattern: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&command).replace('\0', " ").contains(pattern) {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    found
}

fn pss(pid: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|line| line.split_whitespace().next()).and_then(|number| number.parse().ok()).unwrap_or(0.0)
}
