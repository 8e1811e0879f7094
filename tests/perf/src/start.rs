//! Starts: `orlop up` to node Ready, the master's process, the release binary's size.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orlop_tests::{Cluster, eventually, orlop_binary};

use crate::api;
use crate::daemon::Daemon;
use crate::etcd::Etcd;
use crate::interrupt;
use crate::peer::CNI_PLUGINS;
use crate::report::{Measure, Row};
use crate::sample::Samples;

const STOP_SECONDS: u64 = 60;

/// Whole clusters made new and resumed, in turn with starts of etcd; the last cluster is up, and etcd runs.
pub(crate) fn measure(rounds: usize, etcd: &mut Etcd, rows: &mut Vec<Row>) -> anyhow::Result<Cluster> {
    let [mut new, mut existing, mut master, mut reference] = [const { Samples::new() }; 4];
    etcd.start()?;
    let mut last = None;
    for _ in 0..rounds {
        interrupt::check()?;
        if let Some(cluster) = last.take() {
            Cluster::down_clean(cluster);
        }
        let cluster = Cluster::prepare(&[]);
        new.push(up(&cluster)?);
        stop(&cluster)?;
        master.push(start_master(&cluster)?);
        etcd.stop();
        reference.push(etcd.start()?);
        existing.push(up(&cluster)?);
        last = Some(cluster);
    }
    let row = |what: &str, target, ours, reference| Row {
        what: what.to_owned(),
        target,
        ours: Measure::Time(ours),
        reference,
    };
    rows.push(row("`orlop up` to node Ready, new data directory", Some(3000.0), new, None));
    rows.push(row("`orlop up` to node Ready, existing data directory", Some(2000.0), existing, None));
    let etcd = (Measure::Time(reference), "etcd alone, without kube-apiserver");
    rows.push(row(
        "master's process start to its first ready answer, existing data",
        None,
        master,
        Some(etcd),
    ));
    last.context("at least one round")
}

/// `orlop up` until it says Ready, and until that is true: the store also has what the run before reported.
fn up(cluster: &Cluster) -> anyhow::Result<Duration> {
    // Reports carry whole seconds.
    std::thread::sleep(Duration::from_millis(1100));
    let second = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let started = Instant::now();
    cluster.up();
    let returned = started.elapsed();
    let at_once = api::wait_node_ready(cluster, i64::try_from(second)?)?;
    Ok(if at_once { returned } else { started.elapsed() })
}

/// Ends `orlop up` as a user would, and keeps everything.
fn stop(cluster: &Cluster) -> anyhow::Result<()> {
    let pid =
        std::fs::read_to_string(cluster.data().join("up.lock")).context("the lock names the process")?;
    let pid: i32 = pid.trim().parse()?;
    kill(Pid::from_raw(pid), Signal::SIGTERM)?;
    eventually("orlop up has ended", STOP_SECONDS, || {
        let is_gone = std::fs::read_link(format!("/proc/{pid}/exe")).is_err();
        if is_gone { Ok(()) } else { Err(format!("process {pid} runs")) }
    });
    Ok(())
}

/// The master alone, with the configuration that `up` wrote.
fn start_master(cluster: &Cluster) -> anyhow::Result<Duration> {
    let (binary, log) = (orlop_binary(), cluster.data().join("log/perf-master.log"));
    let config = format!("--config={}", cluster.data().join("master.yaml").display());
    let started = Instant::now();
    let words = [binary.to_str().context("a UTF-8 path")?, "master", &config];
    let _master = Daemon::start(&cluster.machine, &words, &log)?;
    api::wait_readyz(&cluster.machine, &cluster.data())?;
    Ok(started.elapsed())
}

/// Our one file beside the files that the reference peers of this benchmark were.
pub(crate) fn size(rows: &mut Vec<Row>) -> anyhow::Result<()> {
    let find = |name: &str| {
        let directories = ["/usr/bin", "/usr/sbin", CNI_PLUGINS];
        directories.map(|directory| Path::new(directory).join(name)).into_iter().find(|path| path.exists())
    };
    let mut reference = 0.0;
    for name in ["containerd", "containerd-shim-runc-v2", "runc", "bridge", "host-local", "loopback", "etcd"]
    {
        let path = find(name).with_context(|| format!("{name} is not installed"))?;
        reference += megabytes(&path)?;
    }
    let name = "containerd + containerd-shim-runc-v2 + runc + CNI bridge, host-local, loopback + etcd (no kubelet, kube-proxy, \
        CNI daemon, DNS, kube-apiserver, scheduler, controllers)";
    rows.push(Row {
        what: "release binary".to_owned(),
        target: Some(30.0),
        ours: Measure::Size(megabytes(&orlop_binary())?),
        reference: Some((Measure::Size(reference), name)),
    });
    Ok(())
}

fn megabytes(path: &Path) -> anyhow::Result<f64> {
    Ok(std::fs::metadata(path).with_context(|| format!("{}", path.display()))?.len() as f64 / 1e6)
}
