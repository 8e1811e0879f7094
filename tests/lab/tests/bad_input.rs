//! Bad input gets an error that names what was wrong; a full disk loses nothing.

use std::process::Command;

use orlop_tests::{Cluster, eventually, run, try_run};

#[test]
fn bad_input_is_refused_by_name() {
    let cluster = Cluster::start(&[]);
    malformed_objects(&cluster);
    wrong_image(&cluster);
    port_conflict(&cluster);
    bad_archives(&cluster);
    cluster.down_clean();
}

fn refused(cluster: &Cluster, arguments: &[&str], input: &str, wanted: &str) {
    let output = cluster.try_kubectl(arguments, input);
    assert!(
        output.code != 0 && output.stderr.contains(wanted),
        "{wanted:?} expected, got: {}",
        output.stderr
    );
}

fn malformed_objects(cluster: &Cluster) {
    let create = ["create", "-f", "-"];
    refused(cluster, &create, "apiVersion: v1\nkind: Pod\nmetadata: {name: a", "error");
    let misspelt = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containrs: [], containers: [{name: c, image: busybox}]}";
    refused(cluster, &create, misspelt, r#"unknown field "spec.containrs""#);
    let warned = cluster.try_kubectl(&["create", "--validate=warn", "--dry-run=server", "-f", "-"], misspelt);
    assert!(
        warned.code == 0 && warned.stderr.contains(r#"unknown field "spec.containrs""#),
        "{}",
        warned.stderr
    );
    let upper =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: Upper}\nspec: {containers: [{name: c, image: busybox}]}";
    refused(cluster, &create, upper, "a lowercase RFC 1123 subdomain must consist of");
    let empty = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: []}";
    refused(cluster, &create, empty, "spec.containers: Required value");
    let wrong = "apiVersion: v1\nkind: ReplicationController\nmetadata: {name: a}\nspec: {replicas: many}";
    refused(cluster, &["create", "--validate=ignore", "-f", "-"], wrong, "replicas");
    refused(
        cluster,
        &["get", "pod", "absent"],
        "",
        r#"Error from server (NotFound): pods "absent" not found"#,
    );
    let body = try_run(
        cluster.kubectl_command().args(["create", "--raw", "/api/v1/namespaces/default/pods", "-f", "-"]),
        "{\"apiVersion\": \"v1\", ",
    );
    assert!(body.code != 0 && body.stderr.contains("BadRequest"), "{}", body.stderr);
}

fn wrong_image(cluster: &Cluster) {
    cluster.create(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: noimage}\nspec: {containers: [{name: c, image: '127.0.0.1:1/absent:1'}]}",
    );
    for wanted in ["ErrImagePull", "ImagePullBackOff"] {
        eventually(wanted, 60, || {
            let pod = cluster.get(&["pod", "noimage"]);
            let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
            if waiting["reason"] == wanted && !waiting["message"].as_str().unwrap_or_default().is_empty() {
                Ok(())
            } else {
                Err(pod["status"].to_string())
            }
        });
    }
    let description = cluster.kubectl(&["describe", "pod", "noimage"]);
    assert!(description.contains("127.0.0.1:1/absent:1") && description.contains("Failed"), "{description}");
    cluster.create("apiVersion: v1\nkind: Pod\nmetadata: {name: badname}\nspec: {containers: [{name: c, image: 'Not A Name'}]}");
    eventually("InvalidImageName", 30, || {
        let pod = cluster.get(&["pod", "badname"]);
        let reason = &pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"];
        if reason == "InvalidImageName" { Ok(()) } else { Err(pod["status"].to_string()) }
    });
    cluster.kubectl(&["delete", "pod", "noimage", "badname", "--timeout=30s"]);
}

fn port_conflict(cluster: &Cluster) {
    for name in ["first", "second"] {
        cluster.create(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{terminationGracePeriodSeconds: 1, hostNetwork: true, containers: [{{name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, '1000'], ports: [{{containerPort: 8099, hostPort: 8099}}]}}]}}"
        ));
    }
    eventually("the second pod waits for the port", 30, || {
        let pod = cluster.get(&["pod", "second"]);
        let conditions = pod["status"]["conditions"].to_string();
        if conditions.contains("free ports for the requested pod ports") { Ok(()) } else { Err(conditions) }
    });
    let service = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{type: NodePort, ports: [{{port: 80, nodePort: 30080}}]}}"
        )
    };
    cluster.create(&service("one"));
    refused(cluster, &["create", "-f", "-"], &service("two"), "provided port is already allocated");
    cluster.kubectl(&["delete", "pod", "first", "second", "--timeout=60s"]);
}

fn bad_archives(cluster: &Cluster) {
    let directory = tempfile::tempdir().expect("a directory");
    let good = std::fs::read(orlop_tests::image::busybox()).expect("an image");
    let before = run(cluster.orlop("image").arg("ls"));
    for (name, content) in [
        ("cut.tar", &good[..good.len() / 2]),
        ("noise.tar", b"this is no archive".as_slice()),
        ("empty.tar", b""),
    ] {
        let path = directory.path().join(name);
        std::fs::write(&path, content).expect("a file");
        let output = try_run(cluster.orlop("image").arg("import").arg(&path), "");
        assert!(output.code != 0 && output.stderr.contains(name), "{name}: {}", output.stderr);
    }
    assert_eq!(run(cluster.orlop("image").arg("ls")), before, "nothing was stored");
}

/// The store's file system is a small one of its own: an ext4 image on a loop device would need a module, tmpfs does not.
#[test]
fn a_full_disk_refuses_writes_and_loses_nothing() {
    let cluster = Cluster::prepare(&[]);
    let store = cluster.data().join("master");
    std::fs::create_dir_all(&store).expect("the store's directory");
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=24m", "tmpfs"]).arg(&store));
    cluster.up();
    let filler = "x".repeat(700_000);
    let map = |number: u32| {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: fill-{number}}}\ndata: {{a: {filler}}}")
    };
    let mut kept = 0;
    let refusal = (0..200)
        .find_map(|number| {
            let output = cluster.try_kubectl(&["create", "-f", "-"], &map(number));
            if output.code == 0 {
                kept += 1;
                return None;
            }
            Some(output.stderr)
        })
        .expect("the disk fills up");
    assert!(refusal.contains("space"), "{refusal}");
    let list = cluster.get(&["configmaps"]);
    let count = list["items"].as_array().map_or(0, |items| {
        items
            .iter()
            .filter(|item| item["metadata"]["name"].as_str().unwrap_or_default().starts_with("fill-"))
            .count()
    });
    assert_eq!(count, kept, "reads go on and every acknowledged object is there");
    run(Command::new("mount").args(["-o", "remount,size=200m"]).arg(&store));
    eventually("writes work again", 30, || {
        let output = cluster.try_kubectl(&["create", "configmap", "after"], "");
        if output.code == 0 { Ok(()) } else { Err(output.stderr) }
    });
    cluster.down_clean();
}
