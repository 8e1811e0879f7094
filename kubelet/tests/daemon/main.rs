//! The kubelet in process, between a runtime and an API server that keep real state.

#![expect(clippy::unwrap_used, reason = "tests")]

mod fake_api;
mod fake_cri;

use std::path::Path;
use std::time::{Duration, Instant};

use fake_api::FakeApi;
use fake_cri::FakeCri;
use orlop_kubelet::{Authentication, Authorization, AuthorizationMode, Config, Enabled};
use serde_json::{Value, json};

struct Lab {
    api: FakeApi,
    cri: FakeCri,
    dir: tempfile::TempDir,
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Where the directory is on a disk, the kubelet made it a tmpfs.
        let _ = nix::mount::umount2(&self.path("memory"), nix::mount::MntFlags::MNT_DETACH);
    }
}

impl Lab {
    fn new() -> Self {
        let lab = Self { api: FakeApi::default(), cri: FakeCri::new(), dir: tempfile::tempdir().unwrap() };
        lab.cri.with(|state| state.images.insert("img:1".into()));
        lab.api.create(
            "services",
            json!({"metadata": {"name": "kubernetes", "namespace": "default"},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "https", "port": 443}]}}),
        );
        lab
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn config(&self, port: u16) -> Config {
        Config {
            node_name: "n1".into(),
            node_ip: "127.0.0.1".into(),
            root_dir: self.path("root"),
            memory_dir: self.path("memory"),
            pod_logs_dir: self.path("logs"),
            container_runtime_endpoint: format!("unix://{}", self.path("cri.sock").display()),
            cgroups_per_qos: false,
            address: "127.0.0.1".into(),
            port,
            healthz_port: 0,
            authentication: Authentication { anonymous: Enabled { enabled: true }, ..Default::default() },
            authorization: Authorization { mode: AuthorizationMode::AlwaysAllow },
            max_pods: 200,
            node_status_update_frequency: orlop_kubelet::GoDuration(Duration::from_millis(500)),
            ..Config::default()
        }
    }

    /// Runs the kubelet beside `test`, once; may be called again with the same state.
    fn run<F: Future<Output = ()> + Send + 'static>(
        &self,
        test: impl FnOnce(FakeApi, FakeCri, u16) -> F + Send + 'static,
    ) {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = self.config(port);
        let socket = self.path("cri.sock");
        let (api, cri) = (self.api.clone(), self.cri.clone());
        orlop_daemon::run(orlop_daemon::Settings::new("kubelet"), |frame| async move {
            cri.serve(&socket);
            let client = api.serve().await;
            orlop_kubelet::start_with_client(&frame, config, client).await?;
            let stop = frame.clone();
            frame.spawn("test", async move {
                test(api, cri, port).await;
                stop.shutdown();
                Ok(())
            });
            Ok(())
        })
        .unwrap();
    }
}

/// Waits for a condition, at most ten seconds.
async fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn pod(name: &str, mut spec: Value) -> Value {
    spec["nodeName"] = json!("n1");
    json!({"metadata": {"name": name, "namespace": "default", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec})
}

fn simple() -> Value {
    json!({"containers": [{"name": "a", "image": "img:1", "imagePullPolicy": "IfNotPresent"}]})
}

fn status(api: &FakeApi, name: &str) -> Value {
    api.get("pods", "default", name).map(|pod| pod["status"].clone()).unwrap_or_default()
}

fn is_ready(status: &Value) -> bool {
    status["conditions"]
        .as_array()
        .is_some_and(|list| list.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
}

async fn ready(api: &FakeApi, name: &str) -> Value {
    eventually("pod ready", || Some(status(api, name)).filter(is_ready)).await
}

#[test]
fn the_node_registers_and_becomes_ready() {
    let lab = Lab::new();
    lab.cri.with(|state| state.network_ready = false);
    lab.run(|api, cri, _| async move {
        let node = eventually("node", || api.get("nodes", "", "n1")).await;
        assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], "n1");
        let ready = |wanted: &'static str| {
            let api = api.clone();
            move || api.get("nodes", "", "n1").filter(is_ready_node(wanted))
        };
        eventually("NotReady", ready("False")).await;
        let since = Instant::now();
        cri.with(|state| state.network_ready = true);
        let node = eventually("Ready", ready("True")).await;
        assert!(since.elapsed() < Duration::from_secs(2));
        assert_eq!(node["status"]["nodeInfo"]["containerRuntimeVersion"], "fake://1");
        eventually("lease", || api.get("leases", "kube-node-lease", "n1")).await;
        // While the node could not be reached, the node lifecycle controller wrote this.
        let unknown = json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}});
        api.patch("nodes", "", "n1", &unknown);
        eventually("Ready again", ready("True")).await;
    });
}

fn is_ready_node(wanted: &'static str) -> impl Fn(&Value) -> bool {
    move |node| {
        node["status"]["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .any(|c| c["type"] == "Ready" && c["status"] == wanted)
    }
}

#[test]
fn a_pod_runs_with_its_environment_and_volumes_and_leaves_nothing() {
    let lab = Lab::new();
    let (root, memory, logs) = (lab.path("root"), lab.path("memory"), lab.path("logs"));
    lab.run(move |api, cri, port| async move {
        api.create("configmaps", json!({"metadata": {"name": "m", "namespace": "default"}, "data": {"k": "v"}}));
        api.create("services", json!({"metadata": {"name": "web", "namespace": "default"}, "spec": {"clusterIP": "10.96.0.9", "ports": [{"port": 80}]}}));
        let mut spec = simple();
        spec["containers"][0]["env"] = json!([{"name": "K", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]);
        spec["containers"][0]["volumeMounts"] = json!([{"name": "t", "mountPath": "/var/run/t"}, {"name": "e", "mountPath": "/e"}]);
        spec["volumes"] = json!([{"name": "e", "emptyDir": {}}, {"name": "t", "projected": {"sources": [
            {"serviceAccountToken": {"path": "token"}}, {"configMap": {"name": "m"}}]}}]);
        tokio::time::sleep(Duration::from_millis(300)).await;
        let since = Instant::now();
        let uid = api.create("pods", pod("p", spec))["metadata"]["uid"].as_str().unwrap().to_owned();
        let status = ready(&api, "p").await;
        println!("create to ready: {:?}", since.elapsed());
        assert_eq!(status["phase"], "Running");
        let id = cri.running("a").remove(0);
        assert_eq!(status["containerStatuses"][0]["containerID"], format!("fake://{id}"));
        let config = cri.with(|state| state.containers[&id].config.clone());
        let env: Vec<String> =
            config.envs.iter().map(|pair| format!("{}={}", pair.key, String::from_utf8_lossy(&pair.value))).collect();
        for wanted in ["K=v", "KUBERNETES_SERVICE_HOST=10.96.0.1", "WEB_PORT_80_TCP=tcp://10.96.0.9:80", &format!("IP={}", status["podIP"].as_str().unwrap())] {
            assert!(env.iter().any(|line| line == wanted), "{wanted} in {env:?}");
        }
        let token_dir = config.mounts.iter().find(|mount| mount.container_path == "/var/run/t").unwrap().host_path.clone();
        assert!(Path::new(&token_dir).starts_with(&memory));
        assert_eq!(std::fs::read_to_string(Path::new(&token_dir).join("token")).unwrap(), "the-token");
        assert_eq!(std::fs::read_to_string(Path::new(&token_dir).join("k")).unwrap(), "v");
        check_logs(port).await;
        let since = Instant::now();
        api.patch("pods", "default", "p", &json!({"metadata": {"deletionTimestamp": "2026-01-01T00:01:00Z", "deletionGracePeriodSeconds": 30}}));
        eventually("deleted", || api.get("pods", "default", "p").is_none().then_some(())).await;
        println!("delete to gone: {:?}", since.elapsed());
        for dir in [root.join("pods").join(&uid), memory.join("pods").join(&uid), logs.join(format!("default_p_{uid}"))] {
            eventually("nothing left", || (!dir.exists()).then_some(())).await;
        }
        assert!(cri.with(|state| state.sandboxes.is_empty() && state.containers.is_empty()));
        let reasons: Vec<String> = api.all("events").iter().map(|event| event["reason"].as_str().unwrap().to_owned()).collect();
        for wanted in ["Pulled", "Created", "Started", "Killing"] {
            assert!(reasons.iter().any(|reason| reason == wanted), "{wanted} in {reasons:?}");
        }
    });
}

async fn check_logs(port: u16) {
    let mut config = kube::Config::new(format!("https://127.0.0.1:{port}").parse().unwrap());
    config.accept_invalid_certs = true;
    let client = orlop_kube::client_from_config(config).unwrap();
    let get = |path: &str| http::Request::get(path).body(Vec::new()).unwrap();
    let logs =
        client.request_text(get("/containerLogs/default/p/a?tailLines=1&timestamps=true")).await.unwrap();
    assert_eq!(logs, "2026-01-01T00:00:00.000000000Z hello\n");
    assert!(client.request_text(get("/containerLogs/default/p/none")).await.is_err());
    assert!(client.request_text(get("/pods")).await.unwrap().contains("\"PodList\""));
}

#[test]
fn crashes_restart_and_back_off_and_probes_decide() {
    let lab = Lab::new();
    lab.run(|api, cri, _| async move {
        api.create("pods", pod("p", simple()));
        ready(&api, "p").await;
        cri.end(&cri.running("a").remove(0), 1);
        let status = eventually("restart", || {
            Some(status(&api, "p")).filter(|s| s["containerStatuses"][0]["restartCount"] == 1 && is_ready(s))
        })
        .await;
        assert_eq!(status["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 1);
        cri.end(&cri.running("a").remove(0), 1);
        eventually("back-off", || {
            Some(super_status(&api))
                .filter(|s| s["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff")
        })
        .await;

        let mut probed = simple();
        probed["containers"][0]["name"] = json!("b");
        probed["containers"][0]["readinessProbe"] =
            json!({"exec": {"command": ["ready"]}, "periodSeconds": 1});
        probed["containers"][0]["livenessProbe"] =
            json!({"exec": {"command": ["alive"]}, "periodSeconds": 1, "failureThreshold": 1});
        cri.with(|state| state.failing.insert("ready".into()));
        api.create("pods", pod("q", probed));
        eventually("running", || Some(status_of(&api, "q")).filter(|s| s["phase"] == "Running")).await;
        assert!(!is_ready(&status_of(&api, "q")));
        cri.with(|state| state.failing.clear());
        ready(&api, "q").await;
        cri.with(|state| state.failing.insert("alive".into()));
        eventually("killed", || {
            Some(status_of(&api, "q")).filter(|s| s["containerStatuses"][0]["restartCount"] == 1)
        })
        .await;
    });
}

fn super_status(api: &FakeApi) -> Value {
    status(api, "p")
}

fn status_of(api: &FakeApi, name: &str) -> Value {
    status(api, name)
}

#[test]
fn bad_images_and_what_does_not_fit_are_explained() {
    let lab = Lab::new();
    lab.run(|api, _, _| async move {
        let image = |image: &str| json!({"containers": [{"name": "a", "image": image}]});
        api.create("pods", pod("absent", image("absent:1")));
        api.create("pods", pod("bad", image("Bad Name")));
        let reason =
            |name: &str| status(&api, name)["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
        eventually("ErrImagePull", || (reason("absent") == "ErrImagePull").then_some(())).await;
        eventually("ImagePullBackOff", || (reason("absent") == "ImagePullBackOff").then_some(())).await;
        eventually("InvalidImageName", || (reason("bad") == "InvalidImageName").then_some(())).await;
        let message =
            status(&api, "absent")["containerStatuses"][0]["state"]["waiting"]["message"].to_string();
        assert!(message.contains("not found"), "{message}");
        let mut large = simple();
        large["containers"][0]["resources"] = json!({"requests": {"cpu": "1000"}});
        api.create("pods", pod("large", large));
        let status =
            eventually("rejected", || Some(status(&api, "large")).filter(|s| s["phase"] == "Failed")).await;
        assert_eq!(status["reason"], "OutOfcpu");
        let mut config = simple();
        config["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "late"}}]);
        api.create("pods", pod("config", config));
        eventually("config error", || (reason("config") == "CreateContainerConfigError").then_some(())).await;
        api.create("configmaps", json!({"metadata": {"name": "late", "namespace": "default"}, "data": {}}));
        ready(&api, "config").await;
    });
}

#[test]
fn jobs_end_and_stay_until_deleted() {
    let lab = Lab::new();
    lab.run(|api, cri, _| async move {
        let mut spec = simple();
        spec["restartPolicy"] = json!("Never");
        spec["initContainers"] = json!([{"name": "i", "image": "img:1"}]);
        api.create("pods", pod("job", spec));
        let init = eventually("init", || cri.running("i").pop()).await;
        assert!(cri.running("a").is_empty());
        cri.end(&init, 0);
        let main = eventually("main", || cri.running("a").pop()).await;
        cri.end(&main, 0);
        let status =
            eventually("succeeded", || Some(status(&api, "job")).filter(|s| s["phase"] == "Succeeded")).await;
        assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["reason"], "Completed");
        eventually("sandbox stopped", || {
            cri.with(|state| state.sandboxes.values().all(|sandbox| !sandbox.1)).then_some(())
        })
        .await;
        assert_eq!(cri.with(|state| state.containers.len()), 2);
    });
}

#[test]
fn a_restart_adopts_what_runs_and_ends_what_vanished() {
    let lab = Lab::new();
    lab.run(|api, _, _| async move {
        let mut probed = simple();
        probed["containers"][0]["readinessProbe"] =
            json!({"exec": {"command": ["ready"]}, "periodSeconds": 1, "failureThreshold": 3});
        api.create("pods", pod("stays", probed));
        api.create("pods", pod("goes", simple()));
        ready(&api, "stays").await;
        ready(&api, "goes").await;
    });
    let before = lab.cri.running("a");
    assert_eq!(before.len(), 2);
    lab.api.remove("pods", "default", "goes");
    lab.cri.with(|state| state.failing.insert("ready".into()));
    lab.run(move |api, cri, _| async move {
        eventually("orphan ended", || (cri.with(|state| state.sandboxes.len()) == 1).then_some(())).await;
        let after = cri.running("a");
        assert_eq!(after.len(), 1);
        assert!(before.contains(&after[0]));
        assert_eq!(status(&api, "stays")["containerStatuses"][0]["restartCount"], 0);
        // What the last kubelet said holds until the probe has failed as often as it must.
        assert!(is_ready(&status(&api, "stays")));
        eventually("not ready", || Some(()).filter(|()| !is_ready(&status(&api, "stays")))).await;
    });
}

#[test]
fn fifty_pods_at_once() {
    let lab = Lab::new();
    lab.run(|api, cri, _| async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let since = Instant::now();
        for index in 0..50 {
            api.create("pods", pod(&format!("p{index}"), simple()));
        }
        eventually("all ready", || {
            (api.all("pods").iter().all(|pod| is_ready(&pod["status"]))).then_some(())
        })
        .await;
        println!("fifty pods: {:?}", since.elapsed());
        assert_eq!(cri.running("a").len(), 50);
    });
}
