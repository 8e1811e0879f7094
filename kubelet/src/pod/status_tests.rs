//! Statuses as a table.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;

use super::model::{Container, Memory, Observed, State, Waiting};
use super::plan_tests::{container, now, observed, pod};
use super::status::{Facts, Verdict, status};

struct Given<'a> {
    pod: &'a core::Pod,
    observed: Observed,
    memory: Memory,
    waiting: BTreeMap<String, Waiting>,
    before: core::PodStatus,
    ended: bool,
    verdict: Option<Verdict>,
}

fn given(pod: &core::Pod, containers: Vec<Container>) -> Given<'_> {
    Given {
        pod,
        observed: observed(containers),
        memory: Memory::default(),
        waiting: BTreeMap::new(),
        before: core::PodStatus::default(),
        ended: false,
        verdict: None,
    }
}

fn compute(given: &Given<'_>) -> core::PodStatus {
    status(&Facts {
        pod: given.pod,
        before: &given.before,
        observed: &given.observed,
        memory: &given.memory,
        waiting: &given.waiting,
        host_ips: &["10.1.0.1".to_owned()],
        runtime: "orlop",
        ending: given.ended,
        ended: given.ended,
        verdict: given.verdict.as_ref(),
        now: now(),
    })
}

fn show(status: &core::PodStatus) -> String {
    let conditions = status.conditions.iter().flatten().map(|condition| {
        let name: String = condition.type_.chars().filter(|c| c.is_uppercase()).collect();
        format!("{name}={}", &condition.status[..1])
    });
    let containers = status
        .init_container_statuses
        .iter()
        .flatten()
        .chain(status.container_statuses.iter().flatten())
        .map(|container| {
            let state = container.state.clone().unwrap_or_default();
            let state = match (state.running, state.waiting, state.terminated) {
                (Some(_), ..) => "running".to_owned(),
                (_, Some(waiting), _) => waiting.reason.unwrap_or_default(),
                (.., Some(ended)) => format!("{}:{}", ended.reason.unwrap_or_default(), ended.exit_code),
                _ => "none".to_owned(),
            };
            let last = container
                .last_state
                .clone()
                .unwrap_or_default()
                .terminated
                .map(|last| format!("<{}", last.exit_code))
                .unwrap_or_default();
            format!(
                "{}#{} {state}{last}{}",
                container.name,
                container.restart_count,
                if container.ready { " ready" } else { "" }
            )
        });
    let phase = status.phase.clone().unwrap_or_default();
    format!(
        "{phase} [{}] {}",
        containers.collect::<Vec<_>>().join("; "),
        conditions.collect::<Vec<_>>().join(" ")
    )
}

#[test]
fn phases_and_conditions() {
    let simple = pod(serde_json::json!({"containers": [{"name": "a"}]}));
    let never =
        pod(serde_json::json!({"containers": [{"name": "a"}, {"name": "b"}], "restartPolicy": "Never"}));
    let init = pod(serde_json::json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}));
    let running = |pod, name: &str| container(pod, name, 0, State::Running, 0);
    let exited = |pod, name: &str, code| container(pod, name, 0, State::Exited, code);
    let table = [
        (given(&simple, vec![]), "Pending [a#0 ContainerCreating] PRTSC=T I=T R=F CR=F PS=T"),
        (
            given(&simple, vec![running(&simple, "a")]),
            "Running [a#0 running ready] PRTSC=T I=T R=T CR=T PS=T",
        ),
        (
            given(&simple, vec![exited(&simple, "a", 0)]),
            "Running [a#0 Completed:0] PRTSC=T I=T R=F CR=F PS=T",
        ),
        (
            given(&simple, vec![container(&simple, "a", 1, State::Running, 0), exited(&simple, "a", 2)]),
            "Running [a#1 running<2 ready] PRTSC=T I=T R=T CR=T PS=T",
        ),
        (
            given(&never, vec![exited(&never, "a", 0), running(&never, "b")]),
            "Running [a#0 Completed:0; b#0 running ready] PRTSC=T I=T R=F CR=F PS=T",
        ),
        (
            given(&never, vec![exited(&never, "a", 0), exited(&never, "b", 0)]),
            "Succeeded [a#0 Completed:0; b#0 Completed:0] PRTSC=T I=T R=F CR=F PS=T",
        ),
        (
            given(&never, vec![exited(&never, "a", 0), exited(&never, "b", 3)]),
            "Failed [a#0 Completed:0; b#0 Error:3] PRTSC=T I=T R=F CR=F PS=T",
        ),
        (
            given(&init, vec![]),
            "Pending [i#0 PodInitializing; a#0 PodInitializing] PRTSC=T I=F R=F CR=F PS=T",
        ),
        (
            given(&init, vec![running(&init, "i")]),
            "Pending [i#0 running; a#0 PodInitializing] PRTSC=T I=F R=F CR=F PS=T",
        ),
        (
            given(&init, vec![exited(&init, "i", 0), running(&init, "a")]),
            "Running [i#0 Completed:0 ready; a#0 running ready] PRTSC=T I=T R=T CR=T PS=T",
        ),
    ];
    for (index, (given, expected)) in table.iter().enumerate() {
        assert_eq!(show(&compute(given)), *expected, "row {index}");
    }
}

#[test]
fn back_offs_show_as_waiting_with_the_last_end() {
    let pod = pod(serde_json::json!({"containers": [{"name": "a"}]}));
    let mut given = given(&pod, vec![container(&pod, "a", 3, State::Exited, 7)]);
    given.waiting.insert("a".into(), Waiting { reason: "CrashLoopBackOff".into(), message: "m".into() });
    assert_eq!(show(&compute(&given)), "Running [a#3 CrashLoopBackOff<7] PRTSC=T I=T R=F CR=F PS=T");
}

#[test]
fn readiness_follows_the_probe() {
    let pod =
        pod(serde_json::json!({"containers": [{"name": "a", "readinessProbe": {}, "startupProbe": {}}]}));
    let mut given = given(&pod, vec![container(&pod, "a", 0, State::Running, 0)]);
    given.memory.probes.ready.insert("a-0".into());
    let status = compute(&given);
    assert!(!status.container_statuses.as_ref().unwrap()[0].ready);
    given.memory.probes.started.insert("a-0".into());
    let status = compute(&given);
    assert!(status.container_statuses.as_ref().unwrap()[0].ready);
    let again = compute(&Given { before: status.clone(), ..given });
    assert_eq!(again, status);
}

fn pod_that_initializes() -> core::Pod {
    pod(serde_json::json!({
        "initContainers": [{"name": "i"}, {"name": "j"}], "containers": [{"name": "a"}], "restartPolicy": "Never"
    }))
}

#[test]
fn ends() {
    let pod = pod(serde_json::json!({"containers": [{"name": "a"}]}));
    let mut ended = given(&pod, vec![container(&pod, "a", 0, State::Exited, 137)]);
    ended.ended = true;
    assert!(show(&compute(&ended)).starts_with("Failed [a#0 Error:137]"));
    ended.observed.containers[0].exit_code = 0;
    assert!(show(&compute(&ended)).starts_with("Succeeded [a#0 Completed:0]"));
    let mut deadline = given(&pod, vec![container(&pod, "a", 0, State::Running, 0)]);
    deadline.verdict =
        Some(Verdict { rejected: false, reason: "DeadlineExceeded".into(), message: "m".into() });
    let status = compute(&deadline);
    assert_eq!(
        (status.phase.as_deref(), status.reason.as_deref()),
        (Some("Failed"), Some("DeadlineExceeded"))
    );
    // A container that never ran because initialization failed has not ended either.
    let never = pod_that_initializes();
    let mut failed = given(&never, vec![container(&never, "i", 0, State::Exited, 1)]);
    failed.ended = true;
    assert_eq!(
        show(&compute(&failed)),
        "Failed [i#0 Error:1; j#0 PodInitializing; a#0 PodInitializing] PRTSC=T I=F R=F CR=F PS=T"
    );
    let mut untouched = given(&never, vec![]);
    untouched.ended = true;
    assert!(
        show(&compute(&untouched))
            .starts_with("Failed [i#0 ContainerStatusUnknown:137; j#0 PodInitializing; a#0 PodInitializing]")
    );
    // A container that vanished while it ran is counted as lost.
    let before = compute(&given(&pod, vec![container(&pod, "a", 0, State::Running, 0)]));
    let lost = Given { before, ..given(&pod, vec![]) };
    assert!(
        show(&compute(&lost)).starts_with("Running [a#0 ContainerCreating<137]"),
        "{}",
        show(&compute(&lost))
    );
}
