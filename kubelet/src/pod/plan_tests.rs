//! Plans as a table: given a pod and what was observed, the golden plan.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;

use super::model::{self, Container, Failure, Memory, Observed, Sandbox, State, Step, Waiting};
use super::plan::{Action, Round, plan, plan_stop};

pub(super) const NOW: i64 = 1_000_000;

pub(super) fn now() -> Timestamp {
    Timestamp::from_second(NOW).unwrap()
}

pub(super) fn pod(spec: serde_json::Value) -> core::Pod {
    serde_json::from_value(serde_json::json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 3}, "spec": spec}))
    .unwrap()
}

pub(super) fn sandbox(ready: bool) -> Sandbox {
    let ips = if ready { vec!["10.0.0.5".to_owned()] } else { Vec::new() };
    Sandbox { id: "s0".into(), attempt: 0, ready, created_at: 1, ips }
}

pub(super) fn container(
    pod: &core::Pod,
    name: &str,
    attempt: u32,
    state: State,
    exit_code: i32,
) -> Container {
    let hash = model::container(pod, name).map(|(_, spec)| model::hash(&spec)).unwrap_or_default();
    Container {
        id: format!("{name}-{attempt}"),
        name: name.into(),
        attempt,
        sandbox_id: "s0".into(),
        state,
        created_at: i64::from(attempt),
        started_at: (NOW - 100) * 1_000_000_000,
        finished_at: if state == State::Exited { (NOW - 2) * 1_000_000_000 } else { 0 },
        exit_code,
        reason: String::new(),
        message: String::new(),
        image: "img".into(),
        image_ref: "sha256:1".into(),
        hash,
        grace_seconds: None,
    }
}

pub(super) fn observed(mut containers: Vec<Container>) -> Observed {
    containers.sort_by_key(|container| std::cmp::Reverse(container.attempt));
    Observed { sandboxes: vec![sandbox(true)], containers }
}

fn show(round: &Round) -> String {
    let actions: Vec<String> = round
        .actions
        .iter()
        .map(|action| match action {
            Action::StopSandbox { id } => format!("stop-sandbox {id}"),
            Action::CreateSandbox { attempt } => format!("sandbox {attempt}"),
            Action::Start { name, attempt, crashed } => {
                format!("start {name} {attempt}{}", if *crashed { " crashed" } else { "" })
            }
            Action::Stop { id, grace_seconds, .. } => format!("stop {id} {grace_seconds}"),
            Action::Remove { id } => format!("remove {id}"),
            Action::RemoveSandbox { id } => format!("remove-sandbox {id}"),
        })
        .collect();
    actions.join(", ")
}

fn golden(spec: serde_json::Value, make: impl Fn(&core::Pod) -> Observed, expected: &str) {
    let pod = pod(spec);
    let round = plan(&pod, &make(&pod), &Memory::default(), now());
    assert_eq!(show(&round), expected);
}

#[test]
fn sandboxes() {
    let one = || serde_json::json!({"containers": [{"name": "a"}]});
    let never = || serde_json::json!({"containers": [{"name": "a"}], "restartPolicy": "Never"});
    golden(one(), |_| Observed::default(), "sandbox 0");
    golden(one(), |_| observed(vec![]), "start a 0");
    let dead = |pod: &core::Pod, state| Observed {
        sandboxes: vec![sandbox(false)],
        containers: vec![container(pod, "a", 0, state, 0)],
    };
    golden(one(), |pod| dead(pod, State::Running), "stop-sandbox s0, sandbox 1");
    golden(one(), |pod| dead(pod, State::Exited), "stop-sandbox s0, sandbox 1");
    golden(never(), |pod| dead(pod, State::Exited), "stop-sandbox s0");
    golden(
        one(),
        |_| Observed { sandboxes: vec![Sandbox { ips: vec![], ..sandbox(true) }], containers: vec![] },
        "stop-sandbox s0, sandbox 1",
    );
}

#[test]
fn restart_policies() {
    let spec = |policy: &str| serde_json::json!({"containers": [{"name": "a"}], "restartPolicy": policy});
    for (policy, code, expected) in [
        ("Always", 0, "start a 1 crashed"),
        ("Always", 1, "start a 1 crashed"),
        ("OnFailure", 0, ""),
        ("OnFailure", 1, "start a 1 crashed"),
        ("Never", 1, ""),
    ] {
        golden(spec(policy), |pod| observed(vec![container(pod, "a", 0, State::Exited, code)]), expected);
    }
    golden(spec("Always"), |pod| observed(vec![container(pod, "a", 0, State::Running, 0)]), "");
    golden(
        spec("Always"),
        |pod| observed(vec![container(pod, "a", 0, State::Created, 0)]),
        "remove a-0, start a 1",
    );
    let stale = |pod: &core::Pod| {
        observed(vec![Container { hash: "other".into(), ..container(pod, "a", 0, State::Running, 0) }])
    };
    golden(spec("Always"), stale, "stop a-0 30");
}

#[test]
fn init_containers_go_one_by_one_and_sidecars_go_on() {
    let spec = || {
        serde_json::json!({"initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}, {"name": "j"}],
            "containers": [{"name": "a"}, {"name": "b"}]})
    };
    golden(spec(), |_| observed(vec![]), "start i 0");
    golden(spec(), |pod| observed(vec![container(pod, "i", 0, State::Running, 0)]), "");
    golden(spec(), |pod| observed(vec![container(pod, "i", 0, State::Exited, 1)]), "start i 1 crashed");
    let after = |pod: &core::Pod, more: Vec<Container>| {
        observed(
            [vec![container(pod, "i", 0, State::Exited, 0), container(pod, "s", 0, State::Running, 0)], more]
                .concat(),
        )
    };
    golden(spec(), |pod| observed(vec![container(pod, "i", 0, State::Exited, 0)]), "start s 0");
    golden(spec(), |pod| after(pod, vec![]), "start j 0");
    golden(spec(), |pod| after(pod, vec![container(pod, "j", 0, State::Exited, 0)]), "start a 0, start b 0");
    // Once the pod is initialized, init containers are not run again though their records are gone.
    golden(
        spec(),
        |pod| {
            observed(vec![
                container(pod, "s", 0, State::Exited, 1),
                container(pod, "a", 0, State::Running, 0),
            ])
        },
        "start s 1 crashed, start b 0",
    );
}

#[test]
fn crashes_back_off_and_say_until_when() {
    let pod = pod(serde_json::json!({"containers": [{"name": "a"}]}));
    let observed =
        observed(vec![container(&pod, "a", 1, State::Exited, 1), container(&pod, "a", 0, State::Exited, 1)]);
    let mut memory = Memory::default();
    memory.crashes.insert(
        "a".into(),
        Step { pause: Duration::from_secs(20), updated: Timestamp::from_second(NOW - 5).unwrap() },
    );
    let round = plan(&pod, &observed, &memory, now());
    assert!(round.actions.is_empty(), "{}", show(&round));
    assert_eq!(round.wake_at, Some(Timestamp::from_second(NOW + 18).unwrap()));
    assert_eq!(
        round.waiting["a"],
        Waiting {
            reason: "CrashLoopBackOff".into(),
            message: "back-off 20s restarting failed container=a pod=p_n(u)".into()
        }
    );
    let later = Timestamp::from_second(NOW + 18).unwrap();
    assert_eq!(show(&plan(&pod, &observed, &memory, later)), "start a 2 crashed");
    // Nothing for twice the cap: forgotten.
    memory.crashes.insert(
        "a".into(),
        Step { pause: Duration::from_secs(300), updated: Timestamp::from_second(NOW - 700).unwrap() },
    );
    assert_eq!(show(&plan(&pod, &observed, &memory, now())), "start a 2 crashed");
    let third = super::plan_tests::observed(vec![
        container(&pod, "a", 2, State::Running, 0),
        container(&pod, "a", 1, State::Exited, 1),
        container(&pod, "a", 0, State::Exited, 1),
    ]);
    assert_eq!(show(&plan(&pod, &third, &Memory::default(), now())), "remove a-0");
}

#[test]
fn failures_wait_and_probes_stop() {
    let pod = pod(
        serde_json::json!({"containers": [{"name": "a", "livenessProbe": {"terminationGracePeriodSeconds": 7}}]}),
    );
    let mut memory = Memory::default();
    let waiting = Waiting { reason: "CreateContainerConfigError".into(), message: "m".into() };
    let step = Step { pause: Duration::from_secs(1), updated: now() };
    memory.failures.insert(
        "a".into(),
        Failure { waiting: waiting.clone(), retry_at: Timestamp::from_second(NOW + 1).unwrap(), step },
    );
    let round = plan(&pod, &observed(vec![]), &memory, now());
    assert_eq!((show(&round).as_str(), &round.waiting["a"]), ("", &waiting));
    let mut memory = Memory::default();
    memory.probes.failed.insert("a-0".into(), "liveness");
    let running = observed(vec![container(&pod, "a", 0, State::Running, 0)]);
    assert_eq!(show(&plan(&pod, &running, &memory, now())), "stop a-0 7");
    memory.stopping.insert("a-0".into(), NOW + 7);
    assert_eq!(show(&plan(&pod, &running, &memory, now())), "");
    let mut memory = Memory::default();
    memory.pulling.insert("a".into());
    assert_eq!(show(&plan(&pod, &observed(vec![]), &memory, now())), "");
}

#[test]
fn the_end_stops_sidecars_last_and_shortens_the_grace() {
    let pod = pod(
        serde_json::json!({"initContainers": [{"name": "s", "restartPolicy": "Always"}, {"name": "t", "restartPolicy": "Always"}],
        "containers": [{"name": "a"}]}),
    );
    let running = |name: &str| container(&pod, name, 0, State::Running, 0);
    let stop = |containers: Vec<Container>, memory: &Memory, deadline: i64| {
        let actions = plan_stop(Some(&pod), &observed(containers), memory, NOW, deadline);
        show(&Round { actions, ..Round::default() })
    };
    let mut memory = Memory::default();
    assert_eq!(stop(vec![running("s"), running("t"), running("a")], &memory, NOW + 30), "stop a-0 30");
    assert_eq!(stop(vec![running("s"), running("t")], &memory, NOW + 20), "stop t-0 20");
    assert_eq!(stop(vec![running("s")], &memory, NOW - 1), "stop s-0 0");
    assert_eq!(stop(vec![], &memory, NOW), "stop-sandbox s0");
    memory.stopping.insert("a-0".into(), NOW + 30);
    assert_eq!(stop(vec![running("a")], &memory, NOW + 30), "");
    assert_eq!(stop(vec![running("a")], &memory, NOW + 3), "stop a-0 3");
}
