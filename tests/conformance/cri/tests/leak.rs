//! A hundred pods come and go, ten at a time. The machine is as before: no cgroup, mount, namespace, interface, file or process
//! more, and no descriptor of the daemon's.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;
use std::sync::atomic::AtomicU64;

use orlop_conformance_cri::host::Host;
use orlop_conformance_cri::load::{pod_config, turn};
use orlop_conformance_cri::spec::{image, left_after, on_machine};
use orlop_conformance_cri::subject::{Kind, Subject};

/// The daemon may keep a little of what it did in memory: freed pages that its allocator holds, not pods.
const GROWTH_BYTES: u64 = 32 << 20;

#[test]
fn a_hundred_pods() {
    let built = PathBuf::from(env!("CARGO_BIN_EXE_cri-subject"));
    let program = std::env::var_os("ORLOP_BIN").map_or(built, PathBuf::from);
    let host = Host::new("leak").unwrap();
    on_machine(host, async move |host| {
        let subject = Subject::start(Kind::Orlop, host, program).await.unwrap();
        let cri = subject.client().unwrap();
        cri.pull(&image("busybox")).await.unwrap();
        let logs = subject.host.path("logs");
        let calls = AtomicU64::new(0);
        let round = async |round: usize| {
            let configs: Vec<_> = (0..10)
                .map(|number| {
                    let name = format!("pod-{round}-{number}");
                    // Parents of their own that nobody made, one that a kubelet made, one that pods share.
                    let parent = match number {
                        0 => "kubelets".to_owned(),
                        1..=4 => format!("shared/{}", number % 2),
                        _ => format!("{name}/deep"),
                    };
                    pod_config(&name, subject.host.pod_cgroup(&parent), &logs)
                })
                .collect();
            let turns = configs.iter().map(|config| turn(&cri, config, &calls));
            futures::future::try_join_all(turns).await.unwrap();
        };
        subject.host.make_pod_cgroup("kubelets").unwrap();
        // Threads, the bridge and the caches of the first pods are not leaks.
        round(0).await;
        let before = subject.host.inventory();
        let (descriptors, memory) = (descriptors(&subject), memory(&subject));
        for number in 1..=10 {
            round(number).await;
        }
        let left = left_after(&subject, &before).await;
        assert!(left.is_empty(), "left behind: {left:#?}");
        let kept = subject.host.directories_of(&subject.host.pod_cgroup("kubelets"));
        assert_eq!(kept.len(), 1, "a kubelet's cgroup is its own to remove: {kept:?}");
        let mut now = self::descriptors(&subject);
        for _ in 0..200 {
            if now.len() <= descriptors.len() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            now = self::descriptors(&subject);
        }
        assert!(now.len() <= descriptors.len(), "{descriptors:#?}, then {now:#?}");
        let grown = self::memory(&subject).saturating_sub(memory);
        eprintln!("the daemon: {} descriptors, {memory} bytes, {grown} more after 100 pods", now.len());
        assert!(grown < GROWTH_BYTES, "{memory} bytes, {grown} more after 100 pods");
    });
}

fn descriptors(subject: &Subject) -> Vec<String> {
    let directory = format!("/proc/{}/fd", subject.pid().unwrap());
    let entries = std::fs::read_dir(directory).unwrap().flatten();
    let links = entries.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let mut all: Vec<String> = links.map(|link| link.to_string_lossy().into_owned()).collect();
    all.sort();
    all
}

/// Anonymous memory, in bytes.
fn memory(subject: &Subject) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", subject.pid().unwrap())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}
