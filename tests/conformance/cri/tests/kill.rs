//! The runtime is killed with -9 at random points of what a kubelet does, and started again. Nothing is lost or doubled as the
//! client sees it, and nothing is left at the end.
//!
//! `KILLS=N` kills (40), `SEED=N` at other points. Only ours: containerd promises less.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use orlop_conformance_cri::host::Host;
use orlop_conformance_cri::load::{answered, pod_config, turn};
use orlop_conformance_cri::spec::{image, left_after, on_machine};
use orlop_conformance_cri::subject::{Kind, Subject};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// The longest wait for the next kill: longer than a pod's life on a machine with nothing else to do.
const LONGEST: Duration = Duration::from_millis(1200);

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().map_or(otherwise, |text| text.parse().expect("a number"))
}

fn program() -> PathBuf {
    let built = PathBuf::from(env!("CARGO_BIN_EXE_cri-subject"));
    std::env::var_os("ORLOP_BIN").map_or(built, PathBuf::from)
}

#[test]
fn killed_at_any_point() {
    let seed = number("SEED", 20_261_125);
    let kills = number("KILLS", 40);
    eprintln!("replay with SEED={seed} KILLS={kills}");
    let host = Host::new("kill").unwrap();
    on_machine(host, async move |host| {
        tokio::task::LocalSet::new().run_until(kills_in_a_row(host, seed, kills)).await;
    });
}

async fn kills_in_a_row(host: Host, seed: u64, kills: u64) {
    let mut subject = Subject::start(Kind::Orlop, host, program()).await.unwrap();
    let cri = subject.client().unwrap();
    cri.pull(&image("busybox")).await.unwrap();
    // The first pod leaves the bridge behind, which is the machine's.
    let logs = subject.host.path("logs");
    let warm = pod_config("warm", subject.host.pod_cgroup("warm"), &logs);
    let (calls, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    turn(&cri, &warm, &calls).await.unwrap();
    let before = subject.host.inventory();
    let images_before = files_of_images(&subject);
    let mut loops = tokio::task::JoinSet::new();
    for worker in 0..3 {
        let (cri, calls, over) = (subject.client().unwrap(), calls.clone(), over.clone());
        let name = format!("pod-{worker}");
        let config = pod_config(&name, subject.host.pod_cgroup(&name), &logs);
        loops.spawn_local(async move {
            while !over.load(Ordering::Relaxed) {
                turn(&cri, &config, &calls).await?;
            }
            anyhow::Ok(())
        });
    }
    let (cri_of_images, over_of_images, calls_of_images) =
        (subject.client().unwrap(), over.clone(), calls.clone());
    loops.spawn_local(async move {
        let names = ["volume", "different-1", "same:1", "same:2"].map(image);
        while !over_of_images.load(Ordering::Relaxed) {
            for name in &names {
                calls_of_images.fetch_add(1, Ordering::Relaxed);
                answered("PullImage", async || cri_of_images.pull(name).await).await?;
                let known = answered("ImageStatus", async || cri_of_images.image(name).await).await?;
                anyhow::ensure!(known.is_some(), "{name} was pulled and is not there");
            }
            for name in &names {
                answered("RemoveImage", async || cri_of_images.remove_image(name).await).await?;
            }
        }
        Ok(())
    });
    let mut random = StdRng::seed_from_u64(seed);
    for kill in 0..kills {
        tokio::time::sleep(LONGEST.mul_f64(random.random::<f64>())).await;
        subject.kill();
        subject.launch().await.unwrap_or_else(|error| panic!("SEED={seed}, kill {kill}: {error:#}"));
        if let Some(ended) = loops.try_join_next() {
            panic!("SEED={seed}, kill {kill}: {:?}\n{}", ended.unwrap(), last_lines(&subject.log()));
        }
    }
    over.store(true, Ordering::Relaxed);
    while let Some(ended) = loops.join_next().await {
        ended.unwrap().unwrap_or_else(|error| {
            panic!("SEED={seed}: {error:#}\n{}", last_lines(&subject.log()));
        });
    }
    eprintln!("{kills} kills in {} calls", calls.load(Ordering::Relaxed));
    // One start more: what a cut call left is swept there.
    subject.kill();
    subject.launch().await.unwrap();
    let mut left = left_after(&subject, &before).await;
    // The last daemon itself.
    let daemon = format!("process {} ", subject.pid().unwrap());
    left.retain(|line| !line.starts_with(&daemon));
    assert!(left.is_empty(), "SEED={seed}: left behind: {left:#?}");
    let images = files_of_images(&subject);
    let new: Vec<&PathBuf> = images.difference(&images_before).collect();
    assert!(new.is_empty(), "SEED={seed}: files of images left behind: {new:#?}");
    let leases =
        subject.host.run(&["sh", "-c", &format!("ls {}/suite", subject.host.path("ipam").display())]);
    assert!(
        !leases.stdout.lines().any(|name| name.starts_with("10.88.")),
        "SEED={seed}: addresses are still leased: {}",
        leases.stdout
    );
}

/// Blobs, layers, staging files and snapshots; the records' own names.
fn files_of_images(subject: &Subject) -> std::collections::BTreeSet<PathBuf> {
    let root = subject.host.path("root");
    subject.host.inventory().files.into_iter().filter(|path| path.starts_with(&root)).collect()
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}
