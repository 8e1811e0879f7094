//! One node, a ReplicationController, a Service and DNS, as a new user would see them with kubectl.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::process::Stdio;
use std::time::{Duration, Instant};

use orlop_tests::{Cluster, eventually, try_run};
use serde_json::Value;

const CLIENT: &str = "
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: client
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'echo hello; while true; do echo tick; sleep 1; done']
";

#[test]
fn a_replication_controller_a_service_and_dns() {
    let cluster = Cluster::start(&[]);
    cluster.kubectl(&["create", "-f", cluster.example("nginx-rc.yaml").to_str().unwrap()]);
    cluster.kubectl(&["create", "-f", cluster.example("nginx-svc.yaml").to_str().unwrap()]);
    let pods = cluster.ready_pods("app=nginx", 2, 60);
    cluster.create(CLIENT);
    cluster.ready_pods("app=client", 1, 60);

    service_is_spread(&cluster, &pods);
    names_resolve(&cluster);
    environment_names_the_service(&cluster);
    a_killed_container_is_restarted(&cluster, &pods[0]);
    a_deleted_pod_is_replaced(&cluster, &pods[1]);
    kubectl_works(&cluster);
    streams_work(&cluster);
    scaling_and_namespaces(&cluster);
    cluster.down_clean();
}

fn cluster_ip(cluster: &Cluster) -> String {
    let service = cluster.get(&["service", "nginx"]);
    service["spec"]["clusterIP"].as_str().expect("a cluster IP").to_owned()
}

fn service_is_spread(cluster: &Cluster, pods: &[String]) {
    let address = cluster_ip(cluster);
    let wanted: BTreeSet<&str> = pods.iter().map(String::as_str).collect();
    eventually("the Service answers from both pods to the host", 20, || {
        let mut seen = BTreeSet::new();
        for _ in 0..20 {
            let output = try_run(
                cluster.machine.command("curl").args(["-s", "-m", "2", &format!("http://{address}/")]),
                "",
            );
            if output.code != 0 {
                return Err(format!("curl ended with {}", output.code));
            }
            seen.insert(output.stdout.trim().to_owned());
        }
        let seen: BTreeSet<&str> = seen.iter().map(String::as_str).collect();
        if seen == wanted { Ok(()) } else { Err(format!("answers came from {seen:?}")) }
    });
    let mut seen = BTreeSet::new();
    for _ in 0..20 {
        seen.insert(in_client(cluster, &format!("wget -q -O - http://{address}/")).trim().to_owned());
    }
    assert_eq!(seen.iter().map(String::as_str).collect::<BTreeSet<_>>(), wanted, "from a pod");
}

fn in_client(cluster: &Cluster, script: &str) -> String {
    cluster.kubectl(&["exec", "client", "--", "sh", "-c", script])
}

fn names_resolve(cluster: &Cluster) {
    let address = cluster_ip(cluster);
    for name in ["nginx", "nginx.default", "nginx.default.svc.cluster.local"] {
        let body = in_client(cluster, &format!("wget -q -O - http://{name}/"));
        assert!(body.starts_with("nginx-"), "{name} answered {body:?}");
    }
    let answer = in_client(cluster, "nslookup nginx.default.svc.cluster.local");
    assert!(answer.contains(&address), "{answer}");
    let server = "10.96.0.10";
    let dig =
        |words: &[&str]| cluster.machine.run(&[&["dig", "+short", &format!("@{server}")], words].concat());
    let record = dig(&["_http._tcp.nginx.default.svc.cluster.local", "SRV"]);
    let fields: Vec<&str> = record.split_whitespace().collect();
    assert_eq!(&fields[2..], ["80", "nginx.default.svc.cluster.local."], "{record}");
    let reverse = dig(&["-x", &address]);
    assert_eq!(reverse.trim(), "nginx.default.svc.cluster.local.");
    let missing = cluster.machine.run(&["dig", &format!("@{server}"), "absent.default.svc.cluster.local"]);
    assert!(missing.contains("status: NXDOMAIN"), "{missing}");
}

fn environment_names_the_service(cluster: &Cluster) {
    let address = cluster_ip(cluster);
    let environment = in_client(cluster, "env");
    for wanted in [
        format!("NGINX_SERVICE_HOST={address}"),
        "NGINX_SERVICE_PORT=80".to_owned(),
        "NGINX_SERVICE_PORT_HTTP=80".to_owned(),
        format!("NGINX_PORT=tcp://{address}:80"),
        format!("NGINX_PORT_80_TCP=tcp://{address}:80"),
        "NGINX_PORT_80_TCP_PROTO=tcp".to_owned(),
        "NGINX_PORT_80_TCP_PORT=80".to_owned(),
        format!("NGINX_PORT_80_TCP_ADDR={address}"),
        "KUBERNETES_SERVICE_HOST=10.96.0.1".to_owned(),
    ] {
        assert!(environment.lines().any(|line| line == wanted), "{wanted} is not in\n{environment}");
    }
}

fn a_killed_container_is_restarted(cluster: &Cluster, pod: &str) {
    let output = cluster.kubectl(&["get", "pod", pod, "-o", "jsonpath={.metadata.uid}"]);
    kill_container_of(&output);
    eventually("restartCount 1", 30, || {
        let object = cluster.get(&["pod", pod]);
        let status = &object["status"]["containerStatuses"][0];
        if status["restartCount"] == 1 && status["ready"] == true { Ok(()) } else { Err(status.to_string()) }
    });
    let object = cluster.get(&["pod", pod]);
    let last = &object["status"]["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!(last["exitCode"], 137, "{last}");
}

/// Kills the first process in a cgroup of the pod that is nginx's master.
fn kill_container_of(uid: &str) {
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let path = entry.path();
        let read = |name: &str| std::fs::read_to_string(path.join(name)).unwrap_or_default();
        if read("cgroup").contains(uid) && read("cmdline").starts_with("nginx: master") {
            let pid = entry.file_name().to_string_lossy().parse().expect("a pid");
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
                .expect("a kill");
            return;
        }
    }
    panic!("no nginx of pod {uid}");
}

fn a_deleted_pod_is_replaced(cluster: &Cluster, pod: &str) {
    let started = Instant::now();
    cluster.kubectl(&["delete", "pod", pod, "--wait=false"]);
    eventually("a replacement", 10, || {
        let list = cluster.get(&["pods", "-l", "app=nginx"]);
        let names: Vec<&str> = list["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|item| item["metadata"]["name"].as_str())
            .collect();
        if names.iter().filter(|name| **name != pod).count() == 2 {
            Ok(())
        } else {
            Err(format!("{names:?}"))
        }
    });
    eprintln!("replaced after {:?}", started.elapsed());
    cluster.ready_pods("app=nginx", 2, 60);
}

fn kubectl_works(cluster: &Cluster) {
    let wide = cluster.kubectl(&["get", "pods", "-o", "wide"]);
    for column in ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE"] {
        assert!(wide.lines().next().unwrap_or_default().contains(column), "{wide}");
    }
    assert!(cluster.kubectl(&["get", "rc,svc"]).contains("replicationcontroller/nginx"));
    assert!(cluster.kubectl(&["get", "pod", "client", "-o", "yaml"]).contains("nodeName:"));
    let address = cluster.kubectl(&["get", "pod", "client", "-o", "jsonpath={.status.podIP}"]);
    assert!(address.parse::<Ipv4Addr>().is_ok(), "{address}");
    let description = cluster.kubectl(&["describe", "pod", "client"]);
    for reason in ["Scheduled", "Pulled", "Created", "Started"] {
        assert!(description.contains(reason), "{reason} is not in\n{description}");
    }
    assert!(cluster.kubectl(&["describe", "node"]).contains("Ready"));
    assert!(cluster.kubectl(&["describe", "service", "nginx"]).contains("Endpoints:"));
    cluster.kubectl(&["label", "pod", "client", "tier=test"]);
    cluster.kubectl(&["annotate", "pod", "client", "note=first"]);
    assert!(
        cluster.kubectl(&["get", "pods", "-l", "tier in (test, other)", "-o", "name"]).contains("pod/client")
    );
    cluster.kubectl(&["patch", "service", "nginx", "-p", r#"{"spec":{"ports":[{"port":80,"name":"web"}]}}"#]);
    let service = cluster.get(&["service", "nginx"]);
    assert_eq!(service["spec"]["ports"].as_array().map(Vec::len), Some(1), "merged by port: {service}");
    assert_eq!(service["spec"]["ports"][0]["name"], "web");
    cluster.kubectl(&[
        "patch",
        "service",
        "nginx",
        "--type=json",
        "-p",
        r#"[{"op":"replace","path":"/spec/ports/0/name","value":"http"}]"#,
    ]);
    let mut edit = cluster.kubectl_command();
    edit.args(["edit", "pod", "client"]).env("KUBE_EDITOR", "sed -i s/note:.first/note:\\ second/");
    let edited = try_run(&mut edit, "");
    assert!(edited.code == 0, "{}{}", edited.stdout, edited.stderr);
    assert_eq!(cluster.get(&["pod", "client"])["metadata"]["annotations"]["note"], "second");
    assert!(cluster.kubectl(&["explain", "pod.spec.containers"]).contains("image"));
    assert!(cluster.kubectl(&["api-resources"]).contains("replicationcontrollers"));
}

fn streams_work(cluster: &Cluster) {
    let mut follow = cluster.kubectl_command();
    let mut child = follow
        .args(["logs", "-f", "client", "--tail=1"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl logs");
    let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
    for _ in 0..3 {
        assert_eq!(lines.next().expect("a line").expect("text"), "tick");
    }
    child.kill().expect("kubectl logs is running");
    child.wait().expect("kubectl logs ended");
    assert!(cluster.kubectl(&["logs", "client"]).starts_with("hello\n"));

    let echoed = cluster.try_kubectl(&["exec", "-i", "client", "--", "cat"], "through stdin");
    assert_eq!(echoed.stdout, "through stdin", "{}", echoed.stderr);
    let failed = cluster.try_kubectl(&["exec", "client", "--", "sh", "-c", "exit 7"], "");
    assert_eq!(failed.code, 7, "{}", failed.stderr);
    terminal_works(cluster);

    let pod = cluster.ready_pods("app=nginx", 2, 30).remove(0);
    let mut forward = cluster.kubectl_command();
    let mut child = forward
        .args(["port-forward", &pod, "18080:80"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl port-forward");
    let mut first = String::new();
    // Kept to the end: kubectl goes on writing, and a closed pipe would kill it.
    let mut said = BufReader::new(child.stdout.take().expect("stdout"));
    said.read_line(&mut first).expect("a line");
    assert!(first.contains("Forwarding from"), "{first}");
    let answer = eventually("the forwarded port answers", 10, || {
        let output =
            try_run(cluster.machine.command("curl").args(["-s", "-m", "2", "http://127.0.0.1:18080/"]), "");
        if output.code == 0 { Ok(output.stdout) } else { Err(output.code.to_string()) }
    });
    assert_eq!(answer.trim(), pod);
    child.kill().expect("kubectl port-forward is running");
    child.wait().expect("kubectl port-forward ended");
    drop(said);
}

/// `kubectl exec -it` under a terminal of its own (script(1)).
fn terminal_works(cluster: &Cluster) {
    let mut command = cluster.machine.command("script");
    command
        .env("KUBECONFIG", cluster.data().join("admin.kubeconfig"))
        .args(["-qec", "kubectl exec -it client -- sh", "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().expect("script(1) of bsdutils");
    let mut stdin = child.stdin.take().expect("stdin");
    std::thread::sleep(Duration::from_millis(500));
    stdin.write_all(b"tty && echo size $(stty size) && exit\n").expect("keys");
    let mut text = String::new();
    child.stdout.take().expect("stdout").read_to_string(&mut text).expect("text");
    child.wait().expect("script ended");
    drop(stdin);
    assert!(text.contains("/dev/pts/"), "{text}");
}

fn scaling_and_namespaces(cluster: &Cluster) {
    cluster.kubectl(&["scale", "rc", "nginx", "--replicas=3"]);
    cluster.ready_pods("app=nginx", 3, 60);
    cluster.kubectl(&["scale", "rc", "nginx", "--replicas=1"]);
    eventually("one pod is left", 60, || {
        let list = cluster.get(&["pods", "-l", "app=nginx"]);
        let count = list["items"].as_array().map_or(0, Vec::len);
        if count == 1 { Ok(()) } else { Err(count.to_string()) }
    });
    cluster.kubectl(&["create", "namespace", "other"]);
    eventually("the default service account", 10, || {
        let output = cluster.try_kubectl(&["get", "serviceaccount", "default", "-n", "other"], "");
        if output.code == 0 { Ok(()) } else { Err(output.stderr) }
    });
    let output = cluster.try_kubectl(&["create", "-n", "other", "-f", "-"], CLIENT);
    assert_eq!(output.code, 0, "{}", output.stderr);
    cluster.kubectl(&["delete", "namespace", "other", "--timeout=60s"]);
    let gone = cluster.try_kubectl(&["get", "namespace", "other"], "");
    assert!(
        gone.stderr.contains(r#"Error from server (NotFound): namespaces "other" not found"#),
        "{}",
        gone.stderr
    );
    let nodes: Value = cluster.get(&["nodes"]);
    let address: IpAddr = nodes["items"][0]["status"]["addresses"][0]["address"]
        .as_str()
        .expect("an address")
        .parse()
        .expect("an IP address");
    assert_eq!(address, IpAddr::from([192, 0, 2, 10]));
}
