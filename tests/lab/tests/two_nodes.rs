//! Two nodes on one machine: pods reach each other, a Service spans both, a cut link is noticed and healed.

use std::collections::BTreeSet;

use orlop_tests::{Cluster, eventually, run};
use serde_json::Value;

fn web(node: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: web-{node}, labels: {{app: web}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
  containers:
  - {{name: nginx, image: nginx, imagePullPolicy: IfNotPresent, ports: [{{containerPort: 80}}]}}
"
    )
}

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80}]
";

fn endpoints(cluster: &Cluster) -> BTreeSet<String> {
    let list = cluster.get(&["endpointslices", "-l", "kubernetes.io/service-name=web"]);
    let slices = list["items"].as_array().cloned().unwrap_or_default();
    let endpoints =
        slices.iter().flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default());
    endpoints
        .filter(|endpoint| endpoint["conditions"]["ready"] == true)
        .filter_map(|endpoint| endpoint["nodeName"].as_str().map(str::to_owned))
        .collect()
}

fn node_ready(cluster: &Cluster, name: &str) -> String {
    let node = cluster.get(&["node", name]);
    let conditions: Vec<Value> = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let ready = conditions.iter().find(|condition| condition["type"] == "Ready");
    ready.and_then(|condition| condition["status"].as_str()).unwrap_or_default().to_owned()
}

/// The bridge port of the second node.
fn link_of_node_2(cluster: &Cluster) -> String {
    let links = cluster.machine.run(&["ip", "-o", "link", "show", "type", "veth"]);
    let names =
        links.lines().filter_map(|line| line.split(": ").nth(1)).filter_map(|name| name.split('@').next());
    names.filter(|name| name.ends_with("n2")).map(str::to_owned).next().expect("the link of node-2")
}

#[test]
fn pods_and_services_span_nodes_and_a_cut_link_heals() {
    let cluster = Cluster::start(&["--nodes=2"]);
    for node in ["node-1", "node-2"] {
        cluster.create(&web(node));
    }
    cluster.create(SERVICE);
    cluster.ready_pods("app=web", 2, 60);
    let other = cluster.kubectl(&["get", "pod", "web-node-2", "-o", "jsonpath={.status.podIP}"]);
    eventually("a pod reaches the pod of the other node", 30, || {
        let output = cluster.try_kubectl(
            // Not wget -T: Debian's static busybox dies of it.
            &[
                "exec",
                "web-node-1",
                "--",
                "timeout",
                "2",
                "wget",
                "-q",
                "-O",
                "-",
                &format!("http://{other}/"),
            ],
            "",
        );
        if output.stdout.trim() == "web-node-2" { Ok(()) } else { Err(output.stderr) }
    });
    eventually("the Service spans both nodes", 30, || {
        let script = "for i in $(seq 20); do timeout 2 wget -q -O - http://web/; done";
        let output = cluster.try_kubectl(&["exec", "web-node-1", "--", "sh", "-c", script], "");
        let seen: BTreeSet<&str> = output.stdout.lines().collect();
        if seen.len() == 2 { Ok(()) } else { Err(format!("{seen:?} {}", output.stderr)) }
    });
    let link = link_of_node_2(&cluster);
    cluster.machine.run(&["ip", "link", "set", &link, "down"]);
    eventually("the node is not Ready and its endpoint has left", 120, || {
        let (ready, endpoints) = (node_ready(&cluster, "node-2"), endpoints(&cluster));
        if ready != "True" && endpoints == BTreeSet::from(["node-1".to_owned()]) {
            Ok(())
        } else {
            Err(format!("ready {ready}, endpoints {endpoints:?}"))
        }
    });
    run(cluster.machine.command("ip").args(["link", "set", &link, "up"]));
    eventually("both are back", 120, || {
        let (ready, endpoints) = (node_ready(&cluster, "node-2"), endpoints(&cluster));
        if ready == "True" && endpoints.len() == 2 {
            Ok(())
        } else {
            Err(format!("ready {ready}, endpoints {endpoints:?}"))
        }
    });
    cluster.down_clean();
}
