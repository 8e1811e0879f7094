//! Time to Running and memory of pods: the whole of Orlop through its API, and both runtimes by CRI alone, in turn.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use orlop_tests::{Cluster, run};
use tokio::runtime::Runtime;

use crate::api::{self, Creator};
use crate::memory::{Resident, processes};
use crate::peer::Peer;
use crate::report::{Measure, Row};
use crate::sample::Samples;
use crate::{SETTLE, interrupt};

/// Pods that are created at once.
const MANY: usize = 50;
/// Pods that stand while the memory of their shims is measured.
const IDLE: usize = 10;

pub(crate) const REFERENCE: &str = "containerd + runc by CRI alone, without kubelet and API server";

/// Both runtimes below CRI.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Runtimes<'subjects> {
    /// Drives CRI.
    pub runtime: &'subjects Runtime,
    /// containerd with runc.
    pub containerd: &'subjects Peer,
    /// `orlop runtime`.
    pub orlop: &'subjects Peer,
}

/// The cluster and both runtimes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subjects<'subjects> {
    /// All of Orlop.
    pub cluster: &'subjects Cluster,
    /// By CRI alone.
    pub runtimes: Runtimes<'subjects>,
}

impl Subjects<'_> {
    /// Runs pods through CRI alone, and removes them.
    fn run_by_cri(&self, peer: &Peer, name: &str, count: usize) -> anyhow::Result<Duration> {
        let runtime = self.runtimes.runtime;
        let (elapsed, pods) = runtime.block_on(peer.cri.run_pods(&peer.orders(name, count), count))?;
        runtime.block_on(peer.cri.remove_pods(&pods))?;
        Ok(elapsed)
    }

    /// Runs pods through the API, and deletes them.
    fn run_by_api(&self, name: &str, count: usize, creator: Creator) -> anyhow::Result<Duration> {
        let elapsed = api::time_to_running(self.cluster, &api::pods(name, count)?, creator)?;
        api::delete_pods(self.cluster)?;
        Ok(elapsed)
    }
}

/// One pod after the other.
pub(crate) fn one(subjects: Subjects, rounds: usize, rows: &mut Vec<Row>) -> anyhow::Result<()> {
    let [mut kubectl, mut post, mut containerd, mut orlop, mut client] = [const { Samples::new() }; 5];
    for round in 0..=rounds {
        interrupt::check()?;
        let name = format!("one-{round}");
        let times = (
            subjects.run_by_api(&name, 1, Creator::Post).context("our pod by POST")?,
            subjects.run_by_cri(subjects.runtimes.containerd, &name, 1).context("containerd")?,
            api::time_to_kubectl_line(subjects.cluster, &format!("line-{round}"))
                .context("our pod by kubectl")?,
            subjects.run_by_cri(subjects.runtimes.orlop, &name, 1).context("orlop runtime")?,
            time_of_kubectl(subjects.cluster),
        );
        api::delete_pods(subjects.cluster)?;
        // The first round warms caches up and does not count, for anybody.
        if round > 0 {
            post.push(times.0);
            containerd.push(times.1);
            kubectl.push(times.2);
            orlop.push(times.3);
            client.push(times.4);
        }
    }
    let reference = || Some((Measure::Time(containerd.clone()), REFERENCE));
    let row =
        |what: String, target, ours| Row { what, target, ours: Measure::Time(ours), reference: reference() };
    rows.push(row(
        "POST of a pod (image present) to Running, as seen by a watch, median".to_owned(),
        Some(300.0),
        post,
    ));
    let what = format!(
        "`kubectl create` of a pod to `kubectl get -w` saying Running, median; a kubectl that does nothing takes {:.0} ms",
        client.median()
    );
    rows.push(row(what, Some(300.0), kubectl));
    rows.push(row(
        "one pod by `orlop runtime` by CRI alone, same CNI plugins, median".to_owned(),
        None,
        orlop,
    ));
    Ok(())
}

fn time_of_kubectl(cluster: &Cluster) -> Duration {
    let started = Instant::now();
    run(cluster.kubectl_command().args(["version", "--client"]));
    started.elapsed()
}

/// Fifty pods at once.
pub(crate) fn many(subjects: Subjects, rounds: usize, rows: &mut Vec<Row>) -> anyhow::Result<()> {
    let [mut kubectl, mut post, mut containerd, mut orlop] = [const { Samples::new() }; 4];
    for round in 0..rounds {
        interrupt::check()?;
        let name = |how: &str| format!("many-{how}-{round}");
        post.push(subjects.run_by_api(&name("post"), MANY, Creator::Post).context("our pods by POST")?);
        containerd.push(
            subjects.run_by_cri(subjects.runtimes.containerd, &name("cri"), MANY).context("containerd")?,
        );
        kubectl.push(
            subjects.run_by_api(&name("kubectl"), MANY, Creator::Kubectl).context("our pods by kubectl")?,
        );
        orlop
            .push(subjects.run_by_cri(subjects.runtimes.orlop, &name("cri"), MANY).context("orlop runtime")?);
    }
    let reference = || Some((Measure::Time(containerd.clone()), REFERENCE));
    let row = |what: &str, target, ours| Row {
        what: format!("{MANY} pods {what}"),
        target,
        ours: Measure::Time(ours),
        reference: reference(),
    };
    rows.push(row("created at once on one node by POST, all Running", Some(10_000.0), post));
    rows.push(row("created by one `kubectl create`, all Running", Some(10_000.0), kubectl));
    rows.push(row("at once by `orlop runtime` by CRI alone, same CNI plugins", None, orlop));
    Ok(())
}

/// Idle memory of what stands beside the containers of ten pods.
pub(crate) fn memory(subjects: Subjects, rows: &mut Vec<Row>) -> anyhow::Result<()> {
    api::time_to_running(subjects.cluster, &api::pods("idle", IDLE)?, Creator::Post)?;
    let run =
        |peer: &Peer| subjects.runtimes.runtime.block_on(peer.cri.run_pods(&peer.orders("idle", IDLE), IDLE));
    let (theirs, ours) = (run(subjects.runtimes.containerd)?.1, run(subjects.runtimes.orlop)?.1);
    std::thread::sleep(SETTLE);
    let shims = crate::idle::state_directory(subjects.cluster)?;
    let shims = processes(|line| line.contains(" shim ") && line.contains(&shims))?;
    anyhow::ensure!(shims.len() == IDLE, "{} shims of {IDLE} pods", shims.len());
    let name = "containerd-shim-runc-v2 + infra container (busybox sleep as pause), per pod";
    let reference = Resident::of(&subjects.runtimes.containerd.pod_overhead_pids()?)?.per(IDLE);
    for (what, target, pids) in [
        (format!("idle resident memory, a shim ({IDLE} pods, their sum / {IDLE})"), Some(2.0), shims),
        (
            "the same below `orlop runtime` by CRI alone".to_owned(),
            None,
            subjects.runtimes.orlop.pod_overhead_pids()?,
        ),
    ] {
        rows.push(Row {
            what,
            target,
            ours: Measure::Memory(Resident::of(&pids)?.per(IDLE)),
            reference: Some((Measure::Memory(reference), name)),
        });
    }
    subjects.runtimes.runtime.block_on(subjects.runtimes.containerd.cri.remove_pods(&theirs))?;
    subjects.runtimes.runtime.block_on(subjects.runtimes.orlop.cri.remove_pods(&ours))?;
    api::delete_pods(subjects.cluster)
}
