//! A whole master in process (API server, scheduler, controllers), and kubelets that only write statuses.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of this")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use orlop_api::Server;
use orlop_daemon::{Frame, Settings};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub struct Master {
    directory: Option<tempfile::TempDir>,
    frame: Frame,
    server: Server,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Master {
    pub fn start(control: orlop_control::Config) -> Self {
        let directory = tempfile::tempdir().unwrap();
        pki(directory.path());
        let (frame, server, thread) = run(directory.path(), control).expect("the master starts");
        Self { directory: Some(directory), frame, server, thread: Some(thread) }
    }

    /// Stops everything and starts it again over the same store.
    pub async fn restart(mut self, control: orlop_control::Config) -> Self {
        self.end();
        let directory = self.directory.take().unwrap();
        drop(self);
        // The store of a predecessor in the same process is closed a moment after the last handle is gone.
        for _ in 0..100 {
            if let Some((frame, server, thread)) = run(directory.path(), control.clone()) {
                return Self { directory: Some(directory), frame, server, thread: Some(thread) };
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the master does not start again");
    }

    /// A client with all rights; needs a runtime.
    pub fn client(&self) -> Client {
        self.server.client("admin", ["system:masters"])
    }

    pub fn metrics(&self) -> String {
        self.frame.metrics_text()
    }

    fn end(&mut self) {
        self.frame.shutdown();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        self.end();
    }
}

fn run(
    directory: &Path,
    control: orlop_control::Config,
) -> Option<(Frame, Server, std::thread::JoinHandle<()>)> {
    let path = |name: &str| directory.join(name);
    let api = orlop_api::Config {
        // An address for documentation (RFC 5737): nothing is ever sent there.
        advertise_address: Some("192.0.2.1".parse().unwrap()),
        listen: vec![SocketAddr::from(([127, 0, 0, 1], free_port()))],
        data_dir: path("master"),
        tls_cert_file: path("ca.crt"),
        tls_key_file: path("ca.key"),
        client_ca_file: path("ca.crt"),
        service_account_key_file: path("sa.key"),
        ..orlop_api::Config::default()
    };
    let control = orlop_control::Config { root_ca_file: Some(path("ca.crt")), ..control };
    let (sender, receiver) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        orlop_daemon::run(Settings::new("master"), |frame| async move {
            let server = orlop_api::start(&frame, &api).await?;
            let client = server.client("system:kube-controller-manager", ["system:masters"]);
            orlop_control::start(&frame, client, control).await?;
            sender.send((frame, server))?;
            Ok(())
        })
        .unwrap_or_else(|error| eprintln!("master: {error:#}"));
    });
    let (frame, server) = receiver.recv().ok()?;
    Some((frame, server, thread))
}

fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

fn pki(directory: &Path) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "test-ca");
    let authority = params.self_signed(&key).unwrap();
    std::fs::write(directory.join("ca.crt"), authority.pem()).unwrap();
    std::fs::write(directory.join("ca.key"), key.serialize_pem()).unwrap();
    std::fs::write(directory.join("sa.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
}

/// Asks until `check` gives something; panics with `what` after ten seconds.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, check: impl Fn() -> F) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Makes an object from JSON.
pub async fn create<K>(api: &Api<K>, object: Value) -> K
where
    K: kube::Resource + DeserializeOwned + serde::Serialize + Clone + std::fmt::Debug,
{
    let object: K = serde_json::from_value(object).unwrap();
    api.create(&PostParams::default(), &object).await.unwrap()
}

pub async fn names<K>(api: &Api<K>, selector: &str) -> Vec<String>
where
    K: kube::Resource + DeserializeOwned + Clone + std::fmt::Debug,
{
    let list = api.list(&ListParams::default().labels(selector)).await.unwrap();
    list.items.into_iter().map(|object| object.meta().name.clone().unwrap()).collect()
}

/// A node with its lease; returns when it has its pod range and no taint.
pub async fn add_node(client: &Client, name: &str, cpu: &str) -> Node {
    let nodes: Api<Node> = Api::all(client.clone());
    create(&nodes, json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}})).await;
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    create(
        &leases,
        json!({"metadata": {"name": name}, "spec": {
            "holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": micro_now(),
        }}),
    )
    .await;
    let status = json!({"status": {
        "allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "110", "ephemeral-storage": "10Gi"},
        "capacity": {"cpu": cpu, "memory": "8Gi", "pods": "110", "ephemeral-storage": "10Gi"},
    }});
    nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    say_ready(client, name).await;
    until("a node with a pod range and without taints", || async {
        let node = nodes.get(name).await.unwrap();
        let spec = node.spec.clone().unwrap_or_default();
        (spec.pod_cidr.is_some() && spec.taints.unwrap_or_default().is_empty()).then_some(node)
    })
    .await
}

/// What a kubelet says when all is well.
pub async fn say_ready(client: &Client, name: &str) {
    let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(k8s_openapi::jiff::Timestamp::now());
    let condition = |kind: &str, status: &str| json!({"type": kind, "status": status, "reason": "Test", "lastHeartbeatTime": now, "lastTransitionTime": now});
    let nodes: Api<Node> = Api::all(client.clone());
    let body = json!({"status": {"conditions": [
        condition("Ready", "True"), condition("MemoryPressure", "False"),
        condition("DiskPressure", "False"), condition("PIDPressure", "False"),
    ]}});
    nodes.patch_status(name, &PatchParams::default(), &Patch::Strategic(body)).await.unwrap();
}

pub async fn renew(client: &Client, name: &str) {
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    let body = json!({"spec": {"renewTime": micro_now()}});
    leases.patch(name, &PatchParams::default(), &Patch::Merge(body)).await.unwrap();
}

fn micro_now() -> Value {
    let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(k8s_openapi::jiff::Timestamp::now());
    json!(now)
}

/// Addresses go on over a restart, as the files of a real node make them.
static NEXT_ADDRESS: AtomicUsize = AtomicUsize::new(1);

/// Plays the kubelet of every node: bound pods become ready with an address, deleted ones go. Ends with its task.
pub fn play_kubelets(client: Client) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let mut given: BTreeSet<String> = BTreeSet::new();
        let all: Api<Pod> = Api::all(client.clone());
        loop {
            for pod in all.list(&ListParams::default()).await.unwrap().items {
                let name = pod.metadata.name.clone().unwrap();
                let uid = pod.metadata.uid.clone().unwrap();
                let pods: Api<Pod> =
                    Api::namespaced(client.clone(), pod.metadata.namespace.as_deref().unwrap());
                if pod.spec.as_ref().is_none_or(|spec| spec.node_name.is_none()) {
                    continue;
                }
                if pod.metadata.deletion_timestamp.is_some() {
                    let _ = pods.delete(&name, &DeleteParams::default().grace_period(0)).await;
                } else if pod.status.as_ref().is_none_or(|status| status.pod_ip.is_none())
                    && given.insert(uid)
                {
                    let next = NEXT_ADDRESS.fetch_add(1, Ordering::Relaxed);
                    let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                        k8s_openapi::jiff::Timestamp::now(),
                    );
                    let ip = format!("10.244.{}.{}", next / 250, next % 250 + 1);
                    let body = json!({"status": {
                        "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now}],
                    }});
                    let _ = pods.patch_status(&name, &PatchParams::default(), &Patch::Strategic(body)).await;
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
}

/// A ReplicationController of pods with the label `app: NAME`.
pub fn replication(name: &str, replicas: i32) -> Value {
    json!({"metadata": {"name": name}, "spec": {
        "replicas": replicas,
        "selector": {"app": name},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{
            "name": "c", "image": "test", "ports": [{"name": "http", "containerPort": 8080}],
            "resources": {"requests": {"cpu": "100m"}},
        }]}},
    }})
}
