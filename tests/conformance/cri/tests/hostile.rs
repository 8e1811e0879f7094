//! Requests that no kubelet sends: random and hostile values in every field. The daemon answers each, with an error that names
//! what was wrong or with something that can be removed again; it never panics, never hangs, and leaves nothing.
//!
//! `CASES=N` requests (300), `SEED=N` other ones: the same commit is judged by the same requests each time.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;
use std::time::Duration;

use orlop_conformance_cri::client::{Cri, code, image_spec};
use orlop_conformance_cri::host::Host;
use orlop_conformance_cri::load::{container_config, pod_config};
use orlop_conformance_cri::spec::{image, left_after, on_machine, resources, security, security_of_pod};
use orlop_conformance_cri::subject::{Kind, Subject};
use orlop_cri::v1;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use tonic::Code;

/// An answer that takes longer does not come.
const PATIENCE: Duration = Duration::from_secs(60);

fn text() -> BoxedStrategy<String> {
    prop_oneof![
        Just(String::new()),
        Just("..".to_owned()),
        Just("../../../../etc/orlop-hostile".to_owned()),
        Just("/../../../orlop-hostile".to_owned()),
        Just("a\0b".to_owned()),
        Just("\n".to_owned()),
        Just("a\nnameserver 6.6.6.6".to_owned()),
        Just("-rf".to_owned()),
        Just("%s%n$(reboot)`reboot`".to_owned()),
        Just("x".repeat(300)),
        Just("x/".repeat(3000)),
        Just("x".repeat(200_000)),
        Just("\u{202e}\u{0}\u{feff}ä".to_owned()),
        "\\PC{0,20}",
        "[a-z0-9/.:@-]{1,30}",
    ]
    .boxed()
}

fn integer() -> BoxedStrategy<i64> {
    prop_oneof![
        Just(i64::MIN),
        Just(-1),
        Just(0),
        Just(1),
        Just(i64::from(i32::MAX)),
        Just(i64::from(u32::MAX) + 1),
        Just(i64::MAX),
        any::<i64>()
    ]
    .boxed()
}

fn choice() -> BoxedStrategy<i32> {
    prop_oneof![Just(-1), Just(i32::MIN), Just(i32::MAX), Just(99), 0..5_i32].boxed()
}

/// Values that a change puts somewhere.
#[derive(Clone, Debug)]
struct Hostile {
    text: String,
    other: String,
    number: i64,
    small: i32,
    choice: i32,
}

fn hostile() -> impl Strategy<Value = Hostile> {
    (text(), text(), integer(), any::<i32>(), choice())
        .prop_map(|(text, other, number, small, choice)| Hostile { text, other, number, small, choice })
}

/// A field, how it is spoilt, and words of which an error must say one.
struct Change<C> {
    field: &'static str,
    words: &'static [&'static str],
    apply: fn(&mut C, &Hostile),
}

fn mapping(h: &Hostile) -> v1::IdMapping {
    let [host_id, container_id, length] =
        [h.number, h.number.wrapping_mul(3), h.number.wrapping_add(7)].map(|value| value as u32);
    v1::IdMapping { host_id, container_id, length }
}

const POD_CHANGES: &[Change<v1::PodSandboxConfig>] = &[
    Change { field: "metadata", words: &["metadata"], apply: |c, _| c.metadata = None },
    Change {
        field: "name",
        words: &["name"],
        apply: |c, h| c.metadata.get_or_insert_default().name = h.text.clone(),
    },
    Change {
        field: "uid",
        words: &["uid"],
        apply: |c, h| c.metadata.get_or_insert_default().uid = h.text.clone(),
    },
    Change {
        field: "namespace",
        words: &["namespace"],
        apply: |c, h| c.metadata.get_or_insert_default().namespace = h.text.clone(),
    },
    Change {
        field: "hostname",
        words: &["hostname", "host name"],
        apply: |c, h| c.hostname = h.text.clone(),
    },
    Change {
        field: "log_directory",
        words: &["log_directory", "log directory"],
        apply: |c, h| c.log_directory = h.text.clone(),
    },
    Change {
        field: "dns_config",
        words: &["dns"],
        apply: |c, h| {
            c.dns_config = Some(v1::DnsConfig {
                servers: vec![h.text.clone()],
                searches: vec![h.other.clone()],
                options: vec![h.text.clone()],
            });
        },
    },
    Change {
        field: "port_mappings",
        words: &["port"],
        apply: |c, h| {
            c.port_mappings = vec![v1::PortMapping {
                protocol: h.choice,
                container_port: h.small,
                host_port: h.small.wrapping_add(1),
                host_ip: h.text.clone(),
            }];
        },
    },
    Change {
        field: "labels",
        words: &["label"],
        apply: |c, h| drop(c.labels.insert(h.text.clone(), h.other.clone())),
    },
    Change {
        field: "annotations",
        words: &["annotation"],
        apply: |c, h| drop(c.annotations.insert(h.text.clone(), h.other.clone())),
    },
    Change {
        field: "cgroup_parent",
        words: &["cgroup"],
        apply: |c, h| c.linux.get_or_insert_default().cgroup_parent = h.text.clone(),
    },
    Change {
        field: "sysctls",
        words: &["sysctl"],
        apply: |c, h| drop(c.linux.get_or_insert_default().sysctls.insert(h.text.clone(), h.other.clone())),
    },
    Change {
        field: "sysctls value",
        words: &["sysctl", "kernel.shm_rmid_forced"],
        apply: |c, h| {
            let sysctls = &mut c.linux.get_or_insert_default().sysctls;
            sysctls.insert("kernel.shm_rmid_forced".into(), h.text.clone());
        },
    },
    Change {
        field: "namespace_options",
        words: &["namespace", "target", "mode", "pid", "ipc", "network"],
        apply: |c, h| {
            security_of_pod(c).namespace_options = Some(v1::NamespaceOption {
                network: h.choice,
                pid: h.small,
                ipc: h.choice.wrapping_add(1),
                target_id: h.text.clone(),
                userns_options: None,
            });
        },
    },
    Change {
        field: "userns_options",
        words: &["user", "mapping"],
        apply: |c, h| {
            security_of_pod(c).namespace_options.get_or_insert_default().userns_options =
                Some(v1::UserNamespace {
                    mode: h.choice,
                    uids: vec![mapping(h)],
                    gids: vec![mapping(h), mapping(h)],
                });
        },
    },
    Change { field: "no linux part", words: &[], apply: |c, _| c.linux = None },
];

const CONTAINER_CHANGES: &[Change<v1::ContainerConfig>] = &[
    Change { field: "metadata", words: &["name", "metadata"], apply: |c, _| c.metadata = None },
    Change {
        field: "name",
        words: &["name"],
        apply: |c, h| c.metadata.get_or_insert_default().name = h.text.clone(),
    },
    Change { field: "image", words: &["image"], apply: |c, h| c.image = Some(image_spec(&h.text)) },
    Change { field: "no image", words: &["image"], apply: |c, _| c.image = None },
    Change {
        field: "command",
        words: &["command", "process", "start", "exec", "args"],
        apply: |c, h| c.command = vec![h.text.clone()],
    },
    Change {
        field: "args",
        words: &["arg", "command", "start", "exec"],
        apply: |c, h| c.args = vec![h.text.clone(), h.other.clone()],
    },
    Change {
        field: "working_dir",
        words: &["working", "directory", "cwd"],
        apply: |c, h| c.working_dir = h.text.clone(),
    },
    Change {
        field: "envs",
        words: &["env"],
        apply: |c, h| {
            c.envs = vec![v1::KeyValue { key: h.text.clone(), value: h.other.clone().into_bytes() }]
        },
    },
    Change {
        field: "mounts container_path",
        words: &["mount"],
        apply: |c, h| {
            c.mounts = vec![v1::Mount {
                container_path: h.text.clone(),
                host_path: "/usr".into(),
                readonly: true,
                ..Default::default()
            }];
        },
    },
    Change {
        field: "mounts host_path",
        words: &["mount", "host path"],
        apply: |c, h| {
            let host_path = format!("/nowhere\0{}", h.text);
            c.mounts = vec![v1::Mount { container_path: "/data".into(), host_path, ..Default::default() }];
        },
    },
    Change {
        field: "mounts propagation",
        words: &["mount", "propagation"],
        apply: |c, h| {
            c.mounts = vec![v1::Mount {
                container_path: "/data".into(),
                host_path: "/usr".into(),
                propagation: h.small,
                readonly: true,
                ..Default::default()
            }];
        },
    },
    Change {
        field: "mounts mappings",
        words: &["mount", "mapping"],
        apply: |c, h| {
            c.mounts = vec![v1::Mount {
                container_path: "/data".into(),
                host_path: "/usr".into(),
                readonly: true,
                uid_mappings: vec![mapping(h)],
                ..Default::default()
            }];
        },
    },
    Change {
        field: "mounts image_sub_path",
        words: &["mount", "image", "path"],
        apply: |c, h| {
            c.mounts = vec![v1::Mount {
                container_path: "/data".into(),
                readonly: true,
                image: Some(image_spec(&image("busybox"))),
                image_sub_path: h.text.clone(),
                ..Default::default()
            }];
        },
    },
    Change {
        field: "devices",
        words: &["device"],
        apply: |c, h| {
            c.devices = vec![v1::Device {
                container_path: h.text.clone(),
                host_path: "/dev/null".into(),
                permissions: h.other.clone(),
            }];
        },
    },
    Change {
        field: "devices host_path",
        words: &["device"],
        apply: |c, h| {
            c.devices = vec![v1::Device {
                container_path: "/dev/x".into(),
                host_path: h.text.clone(),
                permissions: "rwm".into(),
            }];
        },
    },
    Change {
        field: "CDI_devices",
        words: &["cdi", "device"],
        apply: |c, h| c.cdi_devices = vec![v1::CdiDevice { name: h.text.clone() }],
    },
    Change { field: "log_path", words: &["log"], apply: |c, h| c.log_path = h.text.clone() },
    Change { field: "stop_signal", words: &["signal"], apply: |c, h| c.stop_signal = h.small },
    Change {
        field: "capabilities",
        words: &["capabilit"],
        apply: |c, h| {
            security(c).capabilities = Some(v1::Capability {
                add_capabilities: vec![h.text.clone()],
                drop_capabilities: vec![h.other.clone()],
                add_ambient_capabilities: vec![h.text.clone()],
            });
        },
    },
    Change {
        field: "run_as_user",
        words: &["user", "uid"],
        apply: |c, h| security(c).run_as_user = Some(v1::Int64Value { value: h.number }),
    },
    Change {
        field: "run_as_group",
        words: &["group", "gid", "user"],
        apply: |c, h| security(c).run_as_group = Some(v1::Int64Value { value: h.number }),
    },
    Change {
        field: "run_as_username",
        words: &["user"],
        apply: |c, h| security(c).run_as_username = h.text.clone(),
    },
    Change {
        field: "supplemental_groups",
        words: &["group", "gid"],
        apply: |c, h| security(c).supplemental_groups = vec![h.number, 5, i64::from(h.small)],
    },
    Change {
        field: "supplemental_groups_policy",
        words: &["polic", "group"],
        apply: |c, h| security(c).supplemental_groups_policy = h.small,
    },
    Change {
        field: "masked_paths",
        words: &["mask", "path"],
        apply: |c, h| security(c).masked_paths = vec![h.text.clone(), h.other.clone()],
    },
    Change {
        field: "readonly_paths",
        words: &["read", "path"],
        apply: |c, h| security(c).readonly_paths = vec![h.text.clone(), h.other.clone()],
    },
    Change {
        field: "seccomp",
        words: &["seccomp"],
        apply: |c, h| {
            security(c).seccomp =
                Some(v1::SecurityProfile { profile_type: h.choice, localhost_ref: h.text.clone() });
        },
    },
    Change {
        field: "apparmor",
        words: &["apparmor"],
        apply: |c, h| {
            security(c).apparmor =
                Some(v1::SecurityProfile { profile_type: h.choice, localhost_ref: h.text.clone() });
        },
    },
    Change {
        field: "namespace_options",
        words: &["namespace", "target", "container", "mode"],
        apply: |c, h| {
            security(c).namespace_options = Some(v1::NamespaceOption {
                network: h.choice,
                pid: h.choice,
                ipc: h.small,
                target_id: h.text.clone(),
                userns_options: None,
            });
        },
    },
    Change {
        field: "cpu",
        words: &["cpu"],
        apply: |c, h| {
            let limits = resources(c);
            (limits.cpu_period, limits.cpu_quota, limits.cpu_shares) =
                (h.number, i64::from(h.small), h.number);
        },
    },
    Change { field: "cpuset", words: &["cpuset"], apply: |c, h| resources(c).cpuset_cpus = h.text.clone() },
    Change {
        field: "cpuset_mems",
        words: &["cpuset"],
        apply: |c, h| resources(c).cpuset_mems = h.text.clone(),
    },
    Change {
        field: "memory",
        words: &["memory"],
        apply: |c, h| {
            let limits = resources(c);
            (limits.memory_limit_in_bytes, limits.memory_swap_limit_in_bytes) =
                (h.number, i64::from(h.small));
        },
    },
    Change { field: "oom_score_adj", words: &["oom"], apply: |c, h| resources(c).oom_score_adj = h.number },
    Change {
        field: "unified",
        words: &["unified", "cgroup"],
        apply: |c, h| drop(resources(c).unified.insert(h.text.clone(), h.other.clone())),
    },
    Change {
        field: "hugepage_limits",
        words: &["huge"],
        apply: |c, h| {
            resources(c).hugepage_limits =
                vec![v1::HugepageLimit { page_size: h.text.clone(), limit: h.number as u64 }];
        },
    },
    Change { field: "no linux part", words: &[], apply: |c, _| c.linux = None },
];

struct Judge {
    problems: Vec<String>,
}

impl Judge {
    /// Whether an answer came, and an error is one that helps.
    fn check(&mut self, what: &str, words: &[&str], h: &Hostile, answer: &anyhow::Result<()>) {
        let Err(error) = answer else { return };
        let said = format!("{error:#}");
        let shown: String = said.chars().take(300).collect();
        let mut h = h.clone();
        h.text = h.text.chars().take(60).collect();
        h.other = h.other.chars().take(60).collect();
        let mut problem = |why: &str| self.problems.push(format!("{what}: {why}: {shown:?} for {h:?}"));
        if said.contains("does not answer") {
            problem("hangs");
        } else if said.contains("panicked")
            || said.contains("transport error")
            || code(error) == Code::Cancelled
        {
            problem("the daemon suffered");
        } else if !words.is_empty() && !words.iter().any(|word| said.to_lowercase().contains(word)) {
            problem("the error does not name the field");
        } else if said.len() > 4096 {
            problem("the error repeats too much");
        }
    }
}

async fn within<T>(call: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::time::timeout(PATIENCE, call)
        .await
        .unwrap_or_else(|_| Err(anyhow::anyhow!("the daemon does not answer")))
}

async fn pod_case(
    cri: &Cri,
    mut config: v1::PodSandboxConfig,
    change: usize,
    h: &Hostile,
    judge: &mut Judge,
) {
    let change = &POD_CHANGES[change % POD_CHANGES.len()];
    (change.apply)(&mut config, h);
    let answer = within(cri.run_pod(config)).await;
    if let Ok(id) = &answer {
        let gone = within(async {
            cri.stop_pod(id).await?;
            cri.remove_pod(id).await
        });
        judge.check(
            &format!("removing a pod with {}", change.field),
            &["nothing can excuse this"],
            h,
            &gone.await,
        );
    }
    judge.check(&format!("RunPodSandbox with {}", change.field), change.words, h, &answer.map(drop));
}

async fn container_case(
    cri: &Cri,
    pod: (&str, &v1::PodSandboxConfig),
    mut config: v1::ContainerConfig,
    change: usize,
    h: &Hostile,
    judge: &mut Judge,
) {
    let change = &CONTAINER_CHANGES[change % CONTAINER_CHANGES.len()];
    (change.apply)(&mut config, h);
    let answer = within(async {
        let id = cri.create(pod.0, pod.1, config).await?;
        let started = cri.start(&id).await;
        cri.stop(&id, 0).await?;
        cri.remove(&id).await?;
        started
    });
    judge.check(&format!("CreateContainer with {}", change.field), change.words, h, &answer.await);
}

/// Every other call with an id or a name that nobody gave out.
async fn stranger_case(cri: &Cri, h: &Hostile, judge: &mut Judge) {
    let id = h.text.clone();
    let request = v1::UpdateContainerResourcesRequest { container_id: id.clone(), ..Default::default() };
    let mut runtime = cri.runtime();
    let answers: Vec<(&str, anyhow::Result<()>)> = vec![
        ("StopPodSandbox", within(cri.stop_pod(&id)).await),
        ("RemovePodSandbox", within(cri.remove_pod(&id)).await),
        ("PodSandboxStatus", within(cri.pod_status(&id)).await.map(drop)),
        ("StartContainer", within(cri.start(&id)).await),
        ("StopContainer", within(cri.stop(&id, h.number)).await),
        ("RemoveContainer", within(cri.remove(&id)).await),
        ("ContainerStatus", within(cri.container_status(&id)).await.map(drop)),
        ("ExecSync", within(cri.exec(&id, &[&h.other], h.number)).await.map(drop)),
        ("ListImages", within(cri.list_images(Some(&id))).await.map(drop)),
        ("ImageStatus", within(cri.image(&id)).await.map(drop)),
        ("RemoveImage", within(cri.remove_image(&id)).await),
        (
            "UpdateContainerResources",
            within(async { Ok(runtime.update_container_resources(request).await?) }).await.map(drop),
        ),
    ];
    for (call, answer) in answers {
        judge.check(call, &[], h, &answer);
    }
}

#[test]
fn hostile_requests() {
    let number = |name: &str, otherwise: u64| {
        std::env::var(name).ok().map_or(otherwise, |text| text.parse().expect("a number"))
    };
    let seed = number("SEED", 20_261_125);
    let cases = number("CASES", 300);
    eprintln!("replay with SEED={seed} CASES={cases}");
    let built = PathBuf::from(env!("CARGO_BIN_EXE_cri-subject"));
    let program = std::env::var_os("ORLOP_BIN").map_or(built, PathBuf::from);
    let host = Host::new("hostile").unwrap();
    on_machine(host, async move |host| {
        let subject = Subject::start(Kind::Orlop, host, program).await.unwrap();
        let cri = subject.client().unwrap();
        cri.pull(&image("busybox")).await.unwrap();
        let logs = subject.host.path("logs");
        let standing = pod_config("standing", subject.host.pod_cgroup("standing"), &logs);
        let pod = cri.run_pod(standing.clone()).await.unwrap();
        let (before, pid) = (subject.host.inventory(), subject.pid());
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let mut runner = TestRunner::new_with_rng(Config::default(), random);
        let mut judge = Judge { problems: Vec::new() };
        for case in 0..cases {
            let h = hostile().new_tree(&mut runner).unwrap().current();
            let change = (0..1000_usize).new_tree(&mut runner).unwrap().current();
            let name = format!("case-{case}");
            match case % 5 {
                0 | 1 => {
                    let config = pod_config(&name, subject.host.pod_cgroup(&name), &logs);
                    pod_case(&cri, config, change, &h, &mut judge).await;
                }
                2 | 3 => {
                    let config = container_config(&name, &["sleep", "1000"]);
                    container_case(&cri, (&pod, &standing), config, change, &h, &mut judge).await;
                }
                _ => stranger_case(&cri, &h, &mut judge).await,
            }
        }
        let alive = cri.container_status("none").await;
        assert!(alive.is_err_and(|error| code(&error) == Code::NotFound), "SEED={seed}: the daemon is gone");
        assert_eq!(subject.pid(), pid);
        let log = subject.log();
        assert!(!log.contains("panicked"), "SEED={seed}: a panic:\n{log}");
        let left = left_after(&subject, &before).await;
        if !left.is_empty() {
            judge.problems.push(format!("left behind: {left:#?}"));
        }
        let parents = ["/orlop-hostile", "/etc/orlop-hostile"].map(|path| subject.host.directories_of(path));
        if parents.iter().any(|directories| !directories.is_empty()) {
            judge.problems.push(format!("left behind: {parents:?}"));
        }
        assert!(judge.problems.is_empty(), "SEED={seed} CASES={cases}:\n{}", judge.problems.join("\n"));
    });
}
