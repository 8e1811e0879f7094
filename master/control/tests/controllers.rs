//! The controllers against the real API server, in process.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod harness;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use harness::{Master, add_node, create, names, play_kubelets, renew, replication, say_ready, until};
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Event, Namespace, Node, Pod, ReplicationController, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Client};
use orlop_control::Config;
use serde_json::json;

const APP: &str = "app=web";

struct Apis {
    pods: Api<Pod>,
    controllers: Api<ReplicationController>,
    services: Api<Service>,
    slices: Api<EndpointSlice>,
    endpoints: Api<Endpoints>,
    events: Api<Event>,
}

fn apis(client: &Client) -> Apis {
    Apis {
        pods: Api::default_namespaced(client.clone()),
        controllers: Api::default_namespaced(client.clone()),
        services: Api::default_namespaced(client.clone()),
        slices: Api::default_namespaced(client.clone()),
        endpoints: Api::default_namespaced(client.clone()),
        events: Api::default_namespaced(client.clone()),
    }
}

async fn ready_replicas(controllers: &Api<ReplicationController>, name: &str) -> i32 {
    let status = controllers.get_status(name).await.unwrap().status.unwrap_or_default();
    status.ready_replicas.unwrap_or(0)
}

async fn ready_addresses(slices: &Api<EndpointSlice>, service: &str) -> usize {
    let selector = format!("kubernetes.io/service-name={service}");
    let list = slices.list(&kube::api::ListParams::default().labels(&selector)).await.unwrap();
    let endpoints = list.items.iter().flat_map(|slice| slice.endpoints.iter().flatten());
    endpoints
        .filter(|endpoint| endpoint.conditions.as_ref().is_some_and(|found| found.ready == Some(true)))
        .count()
}

#[tokio::test]
async fn a_replication_controller_with_a_service_lives_its_life() {
    let master = Master::start(Config::default());
    let client = master.client();
    let api = apis(&client);
    add_node(&client, "n1", "4").await;
    add_node(&client, "n2", "4").await;
    let kubelets = play_kubelets(client.clone());
    until("a default ServiceAccount", || async {
        let accounts: Api<ServiceAccount> = Api::default_namespaced(client.clone());
        accounts.get_opt("default").await.unwrap()
    })
    .await;
    let service = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"},
        "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}});
    create(&api.services, service).await;
    create(&api.controllers, replication("web", 4)).await;
    until("4 ready", || async { (ready_replicas(&api.controllers, "web").await == 4).then_some(()) }).await;
    until("4 addresses", || async { (ready_addresses(&api.slices, "web").await == 4).then_some(()) }).await;
    let pods = api.pods.list(&kube::api::ListParams::default().labels(APP)).await.unwrap().items;
    let on_first =
        pods.iter().filter(|pod| pod.spec.as_ref().unwrap().node_name.as_deref() == Some("n1")).count();
    assert_eq!((pods.len(), on_first), (4, 2), "spread over both nodes");
    let owner = &pods[0].metadata.owner_references.as_ref().unwrap()[0];
    assert_eq!((owner.kind.as_str(), owner.controller), ("ReplicationController", Some(true)));
    until("4 Endpoints addresses", || async {
        let subsets = api.endpoints.get("web").await.unwrap().subsets.unwrap_or_default();
        let [subset] = subsets.as_slice() else { return None };
        let port = &subset.ports.as_ref()?[0];
        (subset.addresses.as_ref()?.len() == 4 && port.port == 8080 && port.name.as_deref() == Some("http"))
            .then_some(())
    })
    .await;

    // A deleted pod is replaced within a second.
    let (victim, before) = (pods[0].metadata.name.clone().unwrap(), Instant::now());
    api.pods.delete(&victim, &DeleteParams::default()).await.unwrap();
    until("a replacement", || async {
        let now = names(&api.pods, APP).await;
        (now.len() == 4 && !now.contains(&victim)).then_some(())
    })
    .await;
    assert!(before.elapsed() < Duration::from_secs(1), "{:?}", before.elapsed());
    println!("replaced after {:?}", before.elapsed());

    // A relabelled pod is released and replaced; taken back when it fits again, at the cost of another.
    let moved = names(&api.pods, APP).await.remove(0);
    let relabel = |value: &str| Patch::Merge(json!({"metadata": {"labels": {"app": value}}}));
    api.pods.patch(&moved, &PatchParams::default(), &relabel("other")).await.unwrap();
    until("a release", || async {
        let pod = api.pods.get(&moved).await.unwrap();
        (pod.metadata.owner_references.is_none() && names(&api.pods, APP).await.len() == 4).then_some(())
    })
    .await;
    api.pods.patch(&moved, &PatchParams::default(), &relabel("web")).await.unwrap();
    until("4 again", || async {
        let settled = ready_replicas(&api.controllers, "web").await == 4;
        (settled && names(&api.pods, APP).await.len() == 4).then_some(())
    })
    .await;

    let scale = Patch::Merge(json!({"spec": {"replicas": 1}}));
    api.controllers.patch("web", &PatchParams::default(), &scale).await.unwrap();
    until("1 pod and 1 address", || async {
        (names(&api.pods, APP).await.len() == 1 && ready_addresses(&api.slices, "web").await == 1)
            .then_some(())
    })
    .await;
    let status = until("status of one", || async {
        let status = api.controllers.get("web").await.unwrap().status.unwrap();
        (status.replicas == 1 && status.available_replicas == Some(1)).then_some(status)
    })
    .await;
    assert_eq!((status.fully_labeled_replicas, status.observed_generation), (Some(1), Some(2)));

    api.controllers.delete("web", &DeleteParams::background()).await.unwrap();
    api.services.delete("web", &DeleteParams::default()).await.unwrap();
    until("everything collected", || async {
        let slices = names(&api.slices, "kubernetes.io/service-name=web").await;
        let left = names(&api.pods, APP).await.len() + slices.len();
        (left == 0 && api.endpoints.get_opt("web").await.unwrap().is_none()).then_some(())
    })
    .await;
    let reasons: BTreeSet<_> = api
        .events
        .list(&Default::default())
        .await
        .unwrap()
        .items
        .into_iter()
        .filter_map(|event| event.reason)
        .collect();
    for reason in ["SuccessfulCreate", "SuccessfulDelete", "Scheduled"] {
        assert!(reasons.contains(reason), "{reason} in {reasons:?}");
    }
    for metric in [
        "scheduler_schedule_attempts_total{result=\"scheduled\"}",
        "workqueue_depth",
        "scheduler_pending_pods",
    ] {
        assert!(master.metrics().contains(metric), "{metric}");
    }
    kubelets.abort();
}

#[tokio::test]
async fn owners_are_deleted_in_the_foreground_or_leave_orphans() {
    let master = Master::start(Config::default());
    let client = master.client();
    let api = apis(&client);
    add_node(&client, "n1", "4").await;
    let kubelets = play_kubelets(client.clone());
    for (name, parameters) in [("fore", DeleteParams::foreground()), ("orphan", DeleteParams::orphan())] {
        create(&api.controllers, replication(name, 2)).await;
        until("2 ready", || async { (ready_replicas(&api.controllers, name).await == 2).then_some(()) })
            .await;
        api.controllers.delete(name, &parameters).await.unwrap();
        until("the controller is gone", || async {
            api.controllers.get_opt(name).await.unwrap().is_none().then_some(())
        })
        .await;
    }
    assert!(names(&api.pods, "app=fore").await.is_empty());
    let orphans = api.pods.list(&kube::api::ListParams::default().labels("app=orphan")).await.unwrap().items;
    assert_eq!(orphans.len(), 2);
    assert!(
        orphans
            .iter()
            .all(|pod| pod.metadata.owner_references.is_none() && pod.metadata.deletion_timestamp.is_none())
    );
    // A new controller of the same selector takes them over instead of making its own.
    create(&api.controllers, replication("orphan", 2)).await;
    until("adoption", || async { (ready_replicas(&api.controllers, "orphan").await == 2).then_some(()) })
        .await;
    assert_eq!(
        names(&api.pods, "app=orphan").await,
        orphans.iter().map(|pod| pod.metadata.name.clone().unwrap()).collect::<Vec<_>>()
    );
    kubelets.abort();
}

#[tokio::test]
async fn a_namespace_is_furnished_and_emptied() {
    let master = Master::start(Config::default());
    let client = master.client();
    add_node(&client, "n1", "4").await;
    let kubelets = play_kubelets(client.clone());
    let namespaces: Api<Namespace> = Api::all(client.clone());
    create(&namespaces, json!({"metadata": {"name": "shop"}})).await;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "shop");
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "shop");
    let root = until("a root certificate and an account", || async {
        accounts.get_opt("default").await.unwrap()?;
        maps.get_opt("kube-root-ca.crt").await.unwrap()
    })
    .await;
    assert!(root.data.unwrap()["ca.crt"].contains("BEGIN CERTIFICATE"));
    maps.patch("kube-root-ca.crt", &PatchParams::default(), &Patch::Merge(json!({"data": {"ca.crt": "x"}})))
        .await
        .unwrap();
    until("the repaired certificate", || async {
        maps.get("kube-root-ca.crt").await.unwrap().data.unwrap()["ca.crt"].contains("BEGIN").then_some(())
    })
    .await;
    let controllers: Api<ReplicationController> = Api::namespaced(client.clone(), "shop");
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "shop");
    let services: Api<Service> = Api::namespaced(client.clone(), "shop");
    create(&secrets, json!({"metadata": {"name": "s"}, "stringData": {"a": "b"}})).await;
    create(
        &services,
        json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}}),
    )
    .await;
    create(&controllers, replication("web", 3)).await;
    until("3 ready", || async { (ready_replicas(&controllers, "web").await == 3).then_some(()) }).await;
    let before = Instant::now();
    namespaces.delete("shop", &DeleteParams::default()).await.unwrap();
    until("the namespace is gone", || async {
        namespaces.get_opt("shop").await.unwrap().is_none().then_some(())
    })
    .await;
    println!("emptied after {:?}", before.elapsed());
    assert!(secrets.list(&Default::default()).await.unwrap().items.is_empty());
    let pods: Api<Pod> = Api::namespaced(client.clone(), "shop");
    assert!(pods.list(&Default::default()).await.unwrap().items.is_empty());
    kubelets.abort();
}

#[tokio::test]
async fn a_silent_node_leaves_service_and_comes_back() {
    let config =
        Config { node_monitor_grace_period_seconds: 2, node_monitor_period_seconds: 1, ..Config::default() };
    let master = Master::start(config);
    let client = master.client();
    let api = apis(&client);
    let first = add_node(&client, "n1", "4").await;
    let second = add_node(&client, "n2", "4").await;
    let range = |node: &Node| node.spec.as_ref().unwrap().pod_cidr.clone().unwrap();
    assert_eq!((range(&first).as_str(), range(&second).as_str()), ("10.244.0.0/24", "10.244.1.0/24"));
    let kubelets = play_kubelets(client.clone());
    let renewing = tokio::spawn({
        let client = client.clone();
        async move {
            loop {
                renew(&client, "n1").await;
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        }
    });
    create(
        &api.services,
        json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}}),
    )
    .await;
    create(&api.controllers, replication("web", 2)).await;
    let nodes: Api<Node> = Api::all(client.clone());
    let taints = || async {
        let taints = nodes.get("n2").await.unwrap().spec.unwrap().taints.unwrap_or_default();
        taints.into_iter().map(|taint| format!("{}:{}", taint.key, taint.effect)).collect::<Vec<_>>()
    };
    until("taints of an unreachable node", || async {
        (taints().await
            == ["node.kubernetes.io/unreachable:NoSchedule", "node.kubernetes.io/unreachable:NoExecute"])
        .then_some(())
    })
    .await;
    let conditions = nodes.get("n2").await.unwrap().status.unwrap().conditions.unwrap();
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready").unwrap();
    assert_eq!((ready.status.as_str(), ready.reason.as_deref()), ("Unknown", Some("NodeStatusUnknown")));
    assert_eq!(ready.message.as_deref(), Some("Kubelet stopped posting node status."));
    until("only one address", || async { (ready_addresses(&api.slices, "web").await == 1).then_some(()) })
        .await;
    // The default toleration of 300 s keeps the pod object on the node.
    assert_eq!(names(&api.pods, APP).await.len(), 2);
    renew(&client, "n2").await;
    say_ready(&client, "n2").await;
    until("no taints", || async { taints().await.is_empty().then_some(()) }).await;
    // A pod that bears nothing leaves at once when its node is tainted.
    nodes
        .patch(
            "n1",
            &PatchParams::default(),
            &Patch::Merge(json!({"spec": {"taints": [{"key": "k", "effect": "NoExecute"}]}})),
        )
        .await
        .unwrap();
    until("all pods on the other node", || async {
        let pods = api.pods.list(&kube::api::ListParams::default().labels(APP)).await.unwrap().items;
        let away =
            pods.iter().filter(|pod| pod.spec.as_ref().unwrap().node_name.as_deref() != Some("n1")).count();
        renew(&client, "n2").await;
        (pods.len() == 2 && away == 2).then_some(())
    })
    .await;
    renewing.abort();
    kubelets.abort();
}

#[tokio::test]
async fn a_pod_without_room_says_why_and_waits_for_a_node() {
    let master = Master::start(Config { pod_max_backoff_seconds: 1, ..Config::default() });
    let client = master.client();
    let api = apis(&client);
    add_node(&client, "n1", "1").await;
    let kubelets = play_kubelets(client.clone());
    until("an account", || async {
        let accounts: Api<ServiceAccount> = Api::default_namespaced(client.clone());
        accounts.get_opt("default").await.unwrap()
    })
    .await;
    let pod = |name: &str, cpu: &str| {
        json!({"metadata": {"name": name}, "spec": {"containers": [
            {"name": "c", "image": "test", "resources": {"requests": {"cpu": cpu}}},
        ]}})
    };
    create(&api.pods, pod("big", "2")).await;
    let condition = until("a refusal", || async {
        let conditions = api.pods.get("big").await.unwrap().status?.conditions?;
        conditions.into_iter().find(|condition| condition.type_ == "PodScheduled")
    })
    .await;
    assert_eq!((condition.status.as_str(), condition.reason.as_deref()), ("False", Some("Unschedulable")));
    let message = condition.message.unwrap();
    assert!(message.starts_with("0/1 nodes are available: 1 Insufficient cpu. preemption: "), "{message}");
    until("an event", || async {
        let events = api.events.list(&Default::default()).await.unwrap().items;
        events.into_iter().find(|event| event.reason.as_deref() == Some("FailedScheduling"))
    })
    .await;
    add_node(&client, "n2", "4").await;
    until("a place on the new node", || async {
        let node = api.pods.get("big").await.unwrap().spec.unwrap().node_name;
        (node.as_deref() == Some("n2")).then_some(())
    })
    .await;
    let before = Instant::now();
    create(&api.pods, pod("small", "100m")).await;
    until("bound", || async { api.pods.get("small").await.unwrap().spec.unwrap().node_name }).await;
    println!("bound after {:?}", before.elapsed());
    kubelets.abort();
}

#[tokio::test]
async fn a_restart_doubles_nothing() {
    let master = Master::start(Config::default());
    let client = master.client();
    add_node(&client, "n1", "8").await;
    let kubelets = play_kubelets(client.clone());
    let api = apis(&client);
    create(
        &api.services,
        json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}}),
    )
    .await;
    create(&api.controllers, replication("web", 30)).await;
    // In the middle of the creation.
    until("some pods", || async { (names(&api.pods, APP).await.len() > 3).then_some(()) }).await;
    kubelets.abort();
    let _ = kubelets.await;
    drop((api, client));
    let master = master.restart(Config::default()).await;
    let client = master.client();
    let api = apis(&client);
    let kubelets = play_kubelets(client.clone());
    until("30 ready", || async { (ready_replicas(&api.controllers, "web").await == 30).then_some(()) }).await;
    until("30 addresses", || async { (ready_addresses(&api.slices, "web").await == 30).then_some(()) }).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(names(&api.pods, APP).await.len(), 30);
    assert_eq!(names(&api.slices, "kubernetes.io/service-name=web").await.len(), 1);
    kubelets.abort();
}
