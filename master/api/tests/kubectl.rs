//! Black box: real kubectl over real HTTPS.

#![allow(clippy::unwrap_used, reason = "tests")]

mod harness;

use harness::{Master, text};

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: nginx}}
spec:
  containers: [{name: nginx, image: "nginx:1.25", ports: [{containerPort: 80}]}]
"#;

fn account(master: &Master) {
    master.kubectl("create serviceaccount default");
}

#[test]
fn objects_are_created_shown_changed_and_deleted() {
    let master = Master::start();
    account(&master);
    assert!(master.kubectl("get namespaces").contains("kube-node-lease"));
    assert_eq!(master.kubectl_with("create -f -", POD), "pod/web created\n");
    assert!(master.refused("create -f -", POD).contains("AlreadyExists"));
    let wide = master.kubectl("get pods -o wide");
    assert!(wide.contains("NOMINATED NODE") && wide.contains("0/1") && wide.contains("Pending"), "{wide}");
    let yaml = master.kubectl("get pod web -o yaml");
    for expected in [
        "kube-api-access-",
        "tolerationSeconds: 300",
        "serviceAccountName: default",
        "imagePullPolicy: IfNotPresent",
        "phase: Pending",
    ] {
        assert!(yaml.contains(expected), "{expected} in\n{yaml}");
    }
    assert!(master.kubectl("describe pod web").contains("Containers:"));
    master.kubectl("label pod web tier=front");
    master.kubectl("annotate pod web note=x");
    assert_eq!(master.kubectl("get pods -l tier=front,app!=x -o name"), "pod/web\n");
    assert_eq!(master.kubectl("get pods -l 'app in (a,b)' -o name"), "");
    assert_eq!(master.kubectl("get pods --field-selector status.phase=Pending -o name"), "pod/web\n");
    assert!(master.refused("get pods --field-selector spec.foo=x", "").contains("field label not supported"));
    let image = "get pod web -o 'jsonpath={.spec.containers[0].image}'";
    for (kind, patch) in [
        ("strategic", r#"{"spec":{"containers":[{"name":"nginx","image":"nginx:2"}]}}"#),
        ("merge", r#"{"metadata":{"labels":{"tier":null}}}"#),
        ("json", r#"[{"op":"add","path":"/metadata/labels/x","value":"y"}]"#),
    ] {
        master.kubectl(&format!("patch pod web --type {kind} -p '{patch}'"));
    }
    assert_eq!(master.kubectl(image), "nginx:2");
    assert_eq!(master.kubectl("get pod web -o 'jsonpath={.metadata.labels}'"), r#"{"app":"nginx","x":"y"}"#);
    assert!(
        master
            .refused("patch pod web -p '{\"spec\":{\"hostNetwork\":true}}'", "")
            .contains("Forbidden: pod updates may not change fields")
    );
    assert!(master.kubectl("delete pod web").contains("deleted"));
    assert!(
        master.refused("get pod web", "").contains("Error from server (NotFound): pods \"web\" not found")
    );
}

#[test]
fn apply_dry_run_explain_and_replace() {
    let master = Master::start();
    account(&master);
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: '1', b: '2'}\n";
    assert!(master.kubectl_with("apply -f -", map).contains("configmap/c created"));
    assert!(master.kubectl_with("apply -f -", map).contains("unchanged"));
    assert!(master.kubectl_with("apply -f -", &map.replace(", b: '2'", "")).contains("configured"));
    assert_eq!(master.kubectl("get cm c -o 'jsonpath={.data}'"), r#"{"a":"1"}"#);
    assert!(master.kubectl_with("replace -f -", map).contains("replaced"));
    assert!(
        master
            .kubectl_with("create --dry-run=server -f -", &map.replace("name: c", "name: d"))
            .contains("d created")
    );
    assert!(master.refused("get cm d", "").contains("NotFound"));
    let apply = master.refused("apply --server-side -f -", map);
    assert!(apply.contains("server-side apply"), "{apply}");
    assert!(master.kubectl("explain pod.spec.containers.image").contains("Container image name"));
    let resources = master.kubectl("api-resources");
    assert!(
        resources.contains("replicationcontrollers") && resources.contains("endpointslices"),
        "{resources}"
    );
    assert!(master.kubectl("version").contains("v1.36.0"));
    assert!(master.kubectl("auth can-i delete pods").contains("yes"));
    assert!(master.kubectl("auth can-i --list").contains("*.*"));
    assert!(master.kubectl("get --raw /readyz?verbose").contains("readyz check passed"));
}

#[test]
fn bad_input_is_answered_with_what_is_wrong() {
    let master = Master::start();
    account(&master);
    let unknown = POD.replace("spec:", "spec:\n  foo: 1");
    let strict = master.refused("create -f -", &unknown);
    assert!(strict.contains(r#"strict decoding error: unknown field "spec.foo""#), "{strict}");
    let output = master.try_kubectl("admin", "create --validate=warn -f -", &unknown);
    assert!(
        output.status.success() && text(&output).contains(r#"Warning: unknown field "spec.foo""#),
        "{}",
        text(&output)
    );
    assert!(!master.kubectl("get pod web -o yaml").contains("foo"));
    let invalid = master.refused("create -f -", &POD.replace("name: web", "name: Web_"));
    assert!(invalid.contains("The Pod \"Web_\" is invalid: metadata.name: Invalid value"), "{invalid}");
    let missing = master.refused("create -n nowhere -f -", POD);
    assert!(missing.contains("namespaces \"nowhere\" not found"), "{missing}");
    let kind = master.refused("create -f -", "apiVersion: v1\nkind: Nonsense\nmetadata: {name: x}\n");
    assert!(kind.contains("no matches for kind"), "{kind}");
    let account = master.refused("create -n kube-public -f -", POD);
    assert!(account.contains("error looking up service account kube-public/default"), "{account}");
    let wrong = master
        .refused("create --validate=ignore -f -", &POD.replace("containerPort: 80", "containerPort: many"));
    assert!(wrong.contains("BadRequest"), "{wrong}");
}

#[test]
fn services_get_addresses_and_ports_that_nobody_else_has() {
    let master = Master::start();
    let service =
        master.kubectl("get service kubernetes -o 'jsonpath={.spec.clusterIP} {.spec.ports[0].port}'");
    assert_eq!(service, "10.96.0.1 443");
    assert!(master.kubectl("get endpoints kubernetes").contains("192.0.2.1"));
    assert!(master.kubectl("get endpointslices").contains("192.0.2.1"));
    assert_eq!(
        master.kubectl("get service -n kube-system kube-dns -o 'jsonpath={.spec.clusterIP}'"),
        "10.96.0.10"
    );
    for index in 0..8 {
        master.kubectl(&format!("create service nodeport s{index} --tcp=80:80"));
    }
    let mut seen: Vec<String> = master
        .kubectl("get services -o 'jsonpath={range .items[*]}{.spec.clusterIP} {.spec.ports[0].nodePort}{\"\\n\"}{end}'")
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    let count = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(
        (count, seen.len()),
        (17, 17),
        "8 addresses and ports, and the address of kubernetes: {seen:?}"
    );
    let taken = master.refused("create service clusterip other --clusterip=10.96.0.10 --tcp=80:80", "");
    assert!(taken.contains("provided IP is already allocated"), "{taken}");
    let outside = master.refused("create service clusterip other --clusterip=10.1.1.1 --tcp=80:80", "");
    assert!(outside.contains("is not in the valid range"), "{outside}");
    let ip = "get service s0 -o 'jsonpath={.spec.clusterIP}'";
    let before = master.kubectl(ip);
    master.kubectl("label service s0 a=b");
    master.kubectl("patch service s0 -p '{\"spec\":{\"type\":\"ClusterIP\"}}'");
    assert_eq!(master.kubectl(ip), before);
    assert_eq!(master.kubectl("get service s0 -o 'jsonpath={.spec.ports[0].nodePort}'"), "");
}

#[test]
fn lists_come_in_pages_and_controllers_scale() {
    let master = Master::start();
    let many: String = (0..25)
        .map(|number| format!("---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c{number:02}}}\n"))
        .collect();
    master.kubectl_with("create -f -", &many);
    assert_eq!(master.kubectl("get cm --chunk-size=10 -o name").lines().count(), 25);
    let page = master.kubectl("get --raw /api/v1/namespaces/default/configmaps?limit=10");
    assert!(page.contains(r#""remainingItemCount":15"#) && page.contains(r#""continue":""#), "{page}");
    let controller = "apiVersion: v1\nkind: ReplicationController\nmetadata: {name: rc}\nspec:\n  replicas: 2\n  selector: {app: x}\n  \
                      template:\n    metadata: {labels: {app: x}}\n    spec: {containers: [{name: c, image: i}]}\n";
    master.kubectl_with("create -f -", controller);
    assert!(master.kubectl("scale rc rc --replicas=5").contains("scaled"));
    assert_eq!(master.kubectl("get rc rc -o 'jsonpath={.spec.replicas}'"), "5");
    assert!(
        master
            .refused("scale rc rc --current-replicas=2 --replicas=3", "")
            .contains("Expected replicas to be 2, was 5")
    );
    assert!(master.kubectl("delete rc rc").contains("deleted"));
    assert!(master.kubectl("delete cm --all").contains("c24"));
}

#[test]
fn everything_is_there_after_a_restart() {
    let master = Master::start();
    master.kubectl("create configmap c --from-literal=a=b");
    let before = master.kubectl("get cm c -o yaml");
    let directory = master.stop();
    let master = Master::start_in(directory);
    assert_eq!(master.kubectl("get cm c -o yaml"), before);
}

#[test]
fn who_may_do_what() {
    let master = Master::start();
    let run = |user: &str, arguments: &str| text(&master.try_kubectl(user, arguments, ""));
    let refused = run("node", "get secrets -A");
    assert!(
        refused.contains(
            r#"User "system:node:n1" cannot list resource "secrets" in API group "" at the cluster scope"#
        ),
        "{refused}"
    );
    assert!(run("node", "get services -A").contains("kube-dns"));
    assert!(run("network", "get endpointslices -A").contains("kubernetes"));
    assert!(run("network", "get secrets").contains("Forbidden"));
    master.kubectl("create serviceaccount a");
    let token = master.kubectl("create token a");
    let whoami = master.kubectl(
        &format!("--token {} auth can-i list pods --as-nobody", token.trim()).replace(" --as-nobody", ""),
    );
    assert!(whoami.contains("yes"), "a certificate comes first: {whoami}");
    let plain = format!("http://127.0.0.1:{}", master.config.insecure_port);
    let output = std::process::Command::new("kubectl")
        .args(["-s", &plain, "get", "ns", "-o", "name"])
        .env("HOME", master.directory.path())
        .env("KUBECONFIG", "/nonexistent")
        .output()
        .unwrap();
    assert!(text(&output).contains("namespace/default"), "{}", text(&output));
}

#[test]
fn a_watch_shows_what_happens() {
    use std::io::{BufRead as _, BufReader};
    let master = Master::start();
    let mut child = master
        .command("admin")
        .args(["get", "cm", "-w", "-o", "name", "--request-timeout=60s"])
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    master.kubectl("create configmap first");
    assert_eq!(lines.next().unwrap().unwrap(), "configmap/first");
    master.kubectl("create configmap second");
    assert_eq!(lines.next().unwrap().unwrap(), "configmap/second");
    child.kill().unwrap();
    child.wait().unwrap();
    let table = master.command("admin").args(["get", "pods", "-w", "--request-timeout=1s"]).output().unwrap();
    assert!(
        text(&table).is_empty() || text(&table).contains("Timeout") || text(&table).contains("timeout"),
        "{}",
        text(&table)
    );
}
