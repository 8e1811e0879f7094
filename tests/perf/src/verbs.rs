//! CRI's verbs one by one, both runtimes in turn.

use std::time::Instant;

use anyhow::Context as _;

use crate::cri::PodOrder;
use crate::interrupt;
use crate::peer::Peer;
use crate::pods::Runtimes;
use crate::report::{Measure, Row};
use crate::sample::Samples;

const REFERENCE: &str = "containerd + runc, same call";
/// Calls of ExecSync whose CPU time is taken together: one alone is near the clock's grain.
const EXECS: u32 = 20;

/// What is measured, in the order of [`Pod::run`], and the promise in milliseconds.
const LINES: [(&str, Option<f64>); 9] = [
    ("RunPodSandbox, host network", Some(10.0)),
    ("StopPodSandbox, host network", None),
    ("RunPodSandbox, bridge by CNI", Some(20.0)),
    ("CreateContainer, image present", None),
    ("StartContainer", Some(10.0)),
    ("ExecSync of /bin/true", None),
    ("ExecSync of /bin/true, CPU of runtime, shim and process", Some(5.0)),
    ("StopPodSandbox with a container that ends at once", Some(20.0)),
    ("RemovePodSandbox", None),
];

type Times = [Samples; LINES.len()];

/// Medians of `rounds` pods.
pub(crate) fn measure(runtimes: Runtimes, rounds: usize, rows: &mut Vec<Row>) -> anyhow::Result<()> {
    let (mut theirs, mut ours) = (Times::default(), Times::default());
    for round in 0..=rounds {
        interrupt::check()?;
        for (peer, times, name) in
            [(runtimes.containerd, &mut theirs, "containerd"), (runtimes.orlop, &mut ours, "orlop runtime")]
        {
            // The first round warms caches up and does not count, for anybody.
            let mut cold = Times::default();
            let times = if round == 0 { &mut cold } else { times };
            runtimes.runtime.block_on(one(peer, round, times)).context(name)?;
        }
    }
    for ((what, target), (ours, theirs)) in LINES.into_iter().zip(ours.into_iter().zip(theirs)) {
        rows.push(Row {
            what: what.to_owned(),
            target,
            ours: Measure::Time(ours),
            reference: Some((Measure::Time(theirs), REFERENCE)),
        });
    }
    Ok(())
}

async fn one(peer: &Peer, round: usize, times: &mut Times) -> anyhow::Result<()> {
    let cri = &peer.cri;
    let [host, plain] = ["host", "verbs"].map(|name| format!("{name}-{round}"));
    let host = PodOrder { host_network: true, ..peer.orders(&host, 1).remove(0) };
    let plain = peer.orders(&plain, 1).remove(0);
    let [run_host, stop_host, run, create, start, exec, cpu, stop, remove] = times;

    let pod = timed(run_host, cri.run_sandbox(&host)).await?;
    timed(stop_host, cri.stop_pod(&pod)).await?;
    cri.remove_pod(&pod).await?;

    let pod = timed(run, cri.run_sandbox(&plain)).await?;
    let id = timed(create, cri.create(&plain, &pod)).await?;
    timed(start, cri.start(&id)).await?;
    let before = peer.cpu()?;
    for _ in 0..EXECS {
        timed(exec, cri.exec_true(&id)).await?;
    }
    cpu.push(peer.cpu()?.saturating_sub(before) / EXECS);
    timed(stop, cri.stop_pod(&pod)).await?;
    timed(remove, cri.remove_pod(&pod)).await
}

async fn timed<T>(samples: &mut Samples, call: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let started = Instant::now();
    let answer = call.await?;
    samples.push(started.elapsed());
    Ok(answer)
}
