//! Black box below kubectl: what controllers and kubelets rely on, through the in-process client and curl.

#![allow(clippy::unwrap_used, reason = "tests")]

mod harness;

use std::collections::BTreeMap;
use std::time::Duration;

use futures::{AsyncBufReadExt as _, StreamExt as _, TryStreamExt as _};
use harness::{Master, text};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, ServiceAccount};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, PropagationPolicy};
use kube::runtime::watcher;
use serde_json::{Value, json};

const MASTERS: [&str; 1] = ["system:masters"];

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

fn raw(method: &str, uri: &str, body: Value) -> http::Request<Vec<u8>> {
    let request = http::Request::builder().method(method).uri(uri).header("content-type", "application/json");
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    request.body(body).unwrap()
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

#[test]
fn a_pod_lives_and_dies_as_upstream_says() {
    let master = Master::start();
    block_on(async {
        let client = master.server.client("system:kube-controller-manager", MASTERS);
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
        accounts
            .create(
                &PostParams::default(),
                &serde_json::from_value(json!({"metadata": {"name": "default"}})).unwrap(),
            )
            .await
            .unwrap();
        let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
        pods.create(&PostParams::default(), &serde_json::from_value(pod("a")).unwrap()).await.unwrap();
        let node = json!({"metadata": {"name": "n1"}});
        client.request::<Value>(raw("POST", "/api/v1/nodes", node)).await.unwrap();
        let binding = json!({"metadata": {"name": "a"}, "target": {"kind": "Node", "name": "n1"}});
        let bind = || {
            client.request::<Value>(raw("POST", "/api/v1/namespaces/default/pods/a/binding", binding.clone()))
        };
        bind().await.unwrap();
        let again = bind().await.unwrap_err().to_string();
        assert!(again.contains("already assigned to node"), "{again}");
        let bound = pods.get("a").await.unwrap();
        assert_eq!(bound.spec.as_ref().unwrap().node_name.as_deref(), Some("n1"));
        let selected = ListParams::default().fields("spec.nodeName=n1");
        assert_eq!(pods.list(&selected).await.unwrap().items.len(), 1);
        let status = json!({"status": {"phase": "Running"}, "spec": {"hostname": "ignored"}});
        let patched = pods.patch_status("a", &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
        assert_eq!(patched.status.unwrap().phase.as_deref(), Some("Running"));
        assert_eq!(patched.spec.unwrap().hostname, None);
        // Graceful: the object stays until the kubelet says that it is over.
        let dying = pods.delete("a", &DeleteParams::default()).await.unwrap().left().unwrap();
        assert!(dying.metadata.deletion_timestamp.is_some());
        assert_eq!(dying.metadata.deletion_grace_period_seconds, Some(30));
        let wrong = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() }
            .preconditions(kube::api::Preconditions { uid: Some("other".into()), resource_version: None });
        assert!(pods.delete("a", &wrong).await.unwrap_err().to_string().contains("does not match the UID"));
        pods.delete("a", &DeleteParams::default().grace_period(0)).await.unwrap();
        assert!(pods.get_opt("a").await.unwrap().is_none());
        // Finalizers hold an object back, and the last one lets it go.
        let mut held = pod("b");
        held["metadata"]["finalizers"] = json!(["example.com/hold"]);
        pods.create(&PostParams::default(), &serde_json::from_value(held).unwrap()).await.unwrap();
        pods.delete("b", &DeleteParams::default()).await.unwrap();
        assert!(pods.get("b").await.unwrap().metadata.deletion_timestamp.is_some());
        pods.patch("b", &PatchParams::default(), &Patch::Merge(json!({"metadata": {"finalizers": null}})))
            .await
            .unwrap();
        assert!(pods.get_opt("b").await.unwrap().is_none());
    });
}

#[test]
fn owners_are_noted_for_the_garbage_collector() {
    let master = Master::start();
    block_on(async {
        let client = master.server.client("admin", MASTERS);
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
        for (name, policy, finalizer) in [
            ("f", PropagationPolicy::Foreground, "foregroundDeletion"),
            ("o", PropagationPolicy::Orphan, "orphan"),
        ] {
            let map = ConfigMap {
                metadata: kube::core::ObjectMeta { name: Some(name.into()), ..Default::default() },
                ..Default::default()
            };
            maps.create(&PostParams::default(), &map).await.unwrap();
            let params = DeleteParams { propagation_policy: Some(policy), ..DeleteParams::default() };
            maps.delete(name, &params).await.unwrap();
            assert_eq!(maps.get(name).await.unwrap().metadata.finalizers.unwrap(), [finalizer]);
        }
    });
}

#[test]
fn namespaces_end_when_their_content_has() {
    let master = Master::start();
    block_on(async {
        let client = master.server.client("admin", MASTERS);
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let new = serde_json::from_value(json!({"metadata": {"name": "x"}})).unwrap();
        namespaces.create(&PostParams::default(), &new).await.unwrap();
        namespaces.delete("x", &DeleteParams::default()).await.unwrap();
        let dying = namespaces.get("x").await.unwrap();
        assert_eq!(dying.status.unwrap().phase.as_deref(), Some("Terminating"));
        let map = json!({"metadata": {"name": "late"}});
        let late = client
            .request::<Value>(raw("POST", "/api/v1/namespaces/x/configmaps", map))
            .await
            .unwrap_err()
            .to_string();
        assert!(late.contains("is being terminated"), "{late}");
        let finalize = json!({"metadata": {"name": "x"}, "spec": {"finalizers": []}});
        client.request::<Value>(raw("PUT", "/api/v1/namespaces/x/finalize", finalize)).await.unwrap();
        assert!(namespaces.get_opt("x").await.unwrap().is_none());
        let kept = namespaces.delete("default", &DeleteParams::default()).await.unwrap_err().to_string();
        assert!(kept.contains("may not be deleted"), "{kept}");
    });
}

#[test]
fn writers_conflict_and_watchers_see_every_change_in_order() {
    let master = Master::start();
    block_on(async {
        let client = master.server.client("admin", MASTERS);
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
        let config = watcher::Config::default().labels("app=x").streaming_lists();
        let stream = watcher::watcher(maps.clone(), config);
        let mut stream = std::pin::pin!(stream);
        let mut map = ConfigMap::default();
        map.metadata.name = Some("m".into());
        map.metadata.labels = Some(BTreeMap::from([("app".to_owned(), "x".to_owned())]));
        let created = maps.create(&PostParams::default(), &map).await.unwrap();
        let next = |event: watcher::Event<ConfigMap>| match event {
            watcher::Event::Apply(map) => format!("apply {}", map.data.unwrap_or_default().len()),
            watcher::Event::Delete(_) => "delete".to_owned(),
            watcher::Event::InitApply(map) => format!("init {}", map.metadata.name.unwrap()),
            other => format!("{other:?}").split(['(', ' ']).next().unwrap().to_owned(),
        };
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.push(next(stream.try_next().await.unwrap().unwrap()));
        }
        assert_eq!(seen, ["Init", "init m", "InitDone"]);
        let mut changed = created.clone();
        changed.data = Some(BTreeMap::from([("a".to_owned(), "1".to_owned())]));
        maps.replace("m", &PostParams::default(), &changed).await.unwrap();
        let stale = maps.replace("m", &PostParams::default(), &changed).await.unwrap_err();
        assert!(stale.to_string().contains("the object has been modified"), "{stale}");
        assert_eq!(next(stream.try_next().await.unwrap().unwrap()), "apply 1");
        // Leaving the selection is the end of the object for this watcher.
        let leave = Patch::Merge(json!({"metadata": {"labels": {"app": "y"}}}));
        maps.patch("m", &PatchParams::default(), &leave).await.unwrap();
        assert_eq!(next(stream.try_next().await.unwrap().unwrap()), "delete");
        let unchanged = maps.patch("m", &PatchParams::default(), &leave).await.unwrap();
        assert_eq!(
            unchanged.metadata.resource_version,
            maps.get("m").await.unwrap().metadata.resource_version
        );
        let gone = client.request::<Value>(raw(
            "GET",
            "/api/v1/configmaps?resourceVersion=999999&resourceVersionMatch=NotOlderThan",
            Value::Null,
        ));
        assert!(gone.await.unwrap_err().to_string().contains("Too large resource version"));
    });
}

#[test]
fn concurrent_patches_all_take_effect() {
    let master = Master::start();
    block_on(async {
        let client = master.server.client("admin", MASTERS);
        let maps: Api<ConfigMap> = Api::namespaced(client, "default");
        let map = ConfigMap {
            metadata: kube::core::ObjectMeta { name: Some("m".into()), ..Default::default() },
            ..Default::default()
        };
        maps.create(&PostParams::default(), &map).await.unwrap();
        let patches = (0..12).map(|number| {
            let maps = maps.clone();
            async move {
                let patch = Patch::Merge(json!({"data": {format!("k{number}"): "v"}}));
                maps.patch("m", &PatchParams::default(), &patch).await
            }
        });
        for outcome in futures::future::join_all(patches).await {
            outcome.unwrap();
        }
        assert_eq!(maps.get("m").await.unwrap().data.unwrap().len(), 12);
    });
}

#[test]
fn a_watch_from_before_the_restart_is_told_so_and_bookmarks_end_a_watch() {
    let master = Master::start();
    master.kubectl("create configmap a");
    let master = Master::start_in(master.stop());
    block_on(async {
        let client = master.server.client("admin", MASTERS);
        let old =
            http::Request::get("/api/v1/configmaps?watch=1&resourceVersion=2").body(Vec::new()).unwrap();
        let mut lines = client.request_stream(old).await.unwrap().lines();
        let line = lines.next().await.unwrap().unwrap();
        assert!(
            line.contains(r#""type":"ERROR""#)
                && line.contains("too old resource version")
                && line.contains("410"),
            "{line}"
        );
        let short = "/api/v1/configmaps?watch=1&timeoutSeconds=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
        let request = http::Request::get(short).body(Vec::new()).unwrap();
        let lines = client.request_stream(request).await.unwrap().lines().try_collect::<Vec<_>>();
        let lines = tokio::time::timeout(Duration::from_secs(5), lines).await.unwrap().unwrap();
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(
            lines[0].contains("ADDED")
                && lines[1].contains("k8s.io/initial-events-end")
                && lines[2].contains("BOOKMARK"),
            "{lines:?}"
        );
    });
}

#[test]
fn tokens_are_bound_reviewed_and_die_with_their_account() {
    let master = Master::start();
    master.kubectl("create serviceaccount robot");
    let token = master.kubectl("create token robot").trim().to_owned();
    let review = |token: String| {
        // The client wants the runtime, which only the caller's block has.
        let server = master.server.clone();
        async move {
            let client = server.client("admin", MASTERS);
            let body = json!({"spec": {"token": token}});
            client
                .request::<Value>(raw("POST", "/apis/authentication.k8s.io/v1/tokenreviews", body))
                .await
                .unwrap()["status"]
                .clone()
        }
    };
    let curl = |token: &str, path: &str| {
        let output = std::process::Command::new("curl")
            .args(["-s", "--cacert", &master.directory.path().join("ca.crt").display().to_string()])
            .args(["-H", &format!("Authorization: Bearer {token}")])
            .arg(format!("https://{}{path}", master.config.listen[0]))
            .output()
            .unwrap();
        text(&output)
    };
    block_on(async {
        let status = review(token.clone()).await;
        assert_eq!(status["user"]["username"], "system:serviceaccount:default:robot");
        assert!(curl(&token, "/apis").contains("APIGroupList"));
        let refused = curl(&token, "/api/v1/pods");
        assert!(
            refused.contains(r#"User \"system:serviceaccount:default:robot\" cannot list resource \"pods\""#),
            "{refused}"
        );
        assert!(curl("nonsense", "/api/v1/pods").contains(r#""code":401"#));
        assert!(curl("", "/livez").contains("ok"));
        master.kubectl("delete serviceaccount robot");
        assert_eq!(review(token.clone()).await["authenticated"], json!(false));
        assert!(curl(&token, "/apis").contains("Unauthorized"));
    });
}
