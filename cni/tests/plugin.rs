//! The plugin as a runtime sees it: verbs and versions, real pairs in namespaces of the test.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use orlop_cni::plugin::{CniError, Environment, run};
use orlop_netlink::RouteSocket;
use orlop_netlink::namespace::{Namespace, inside};
use serde_json::{Value, json};

struct Host {
    namespace: Namespace,
    data: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        Self { namespace: Namespace::create().unwrap(), data: tempfile::tempdir().unwrap() }
    }

    fn configuration(&self, version: &str) -> Value {
        json!({
            "cniVersion": version, "name": "orlop", "type": "orlop-cni", "bridge": "cni0", "mtu": 1450,
            "subnets": ["10.244.3.0/24"], "ipam": {"dataDir": self.data.path()},
        })
    }

    fn call(
        &self,
        command: &str,
        id: &str,
        netns: &str,
        configuration: &Value,
    ) -> Result<Option<Value>, CniError> {
        let environment = Environment {
            command: command.into(),
            container_id: id.into(),
            netns: netns.into(),
            interface: "eth0".into(),
        };
        inside(&self.namespace, || run(&environment, &configuration.to_string())).unwrap()
    }

    fn links(&self) -> BTreeSet<String> {
        inside(&self.namespace, || RouteSocket::open().unwrap().links().unwrap())
            .unwrap()
            .into_iter()
            .map(|link| link.name)
            .collect()
    }

    fn leases(&self) -> usize {
        let Ok(entries) = std::fs::read_dir(self.data.path().join("orlop")) else {
            return 0;
        };
        entries
            .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("10."))
            .count()
    }
}

fn output(namespace: &Namespace, program: &str, arguments: &[&str]) -> (bool, String) {
    let done = inside(namespace, || Command::new(program).args(arguments).output().unwrap()).unwrap();
    (done.status.success(), String::from_utf8_lossy(&done.stdout).into_owned())
}

fn path(namespace: &Namespace) -> String {
    namespace.path().display().to_string()
}

#[test]
fn versions_and_verbs() {
    let host = Host::new();
    let version = host.call("VERSION", "", "", &json!({"cniVersion": "1.0.0"})).unwrap().unwrap();
    assert_eq!(version["cniVersion"], "1.0.0");
    assert!(version["supportedVersions"].as_array().unwrap().contains(&json!("0.3.1")));
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let pod = Namespace::create().unwrap();
        let mut configuration = host.configuration(version);
        let result = host.call("ADD", "pod", &path(&pod), &configuration).unwrap().unwrap();
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["ips"][0].get("version").is_some(), version < "1.0.0");
        assert_eq!(result["interfaces"][2].get("mtu").is_some(), version == "1.1.0");
        assert_eq!(result["interfaces"][2]["sandbox"], path(&pod));
        assert_eq!(result["ips"][0]["gateway"], "10.244.3.1");
        configuration["prevResult"] = result;
        let checked = host.call("CHECK", "pod", &path(&pod), &configuration);
        assert_eq!(checked.is_ok(), version >= "0.4.0", "{checked:?}");
        let status = host.call("STATUS", "", "", &configuration);
        assert_eq!(status.is_ok(), version == "1.1.0", "{status:?}");
        for _ in 0..2 {
            host.call("DEL", "pod", &path(&pod), &configuration).unwrap();
        }
        assert_eq!(host.leases(), 0);
    }
}

#[test]
fn refusals_have_the_codes_of_the_specification() {
    let host = Host::new();
    let pod = Namespace::create().unwrap();
    let good = host.configuration("1.0.0");
    let with = |key: &str, value: Value| {
        let mut changed = good.clone();
        changed[key] = value;
        changed
    };
    let table: [(&str, &str, String, Value, u32); 12] = [
        ("ADD", "pod", path(&pod), with("cniVersion", json!("2.0.0")), 1),
        ("CHECK", "pod", path(&pod), with("cniVersion", json!("0.3.1")), 1),
        ("GC", "", String::new(), good.clone(), 1),
        ("ADD", "", path(&pod), good.clone(), 4),
        ("ADD", "../pod", path(&pod), good.clone(), 4),
        ("ADD", "pod", String::new(), good.clone(), 4),
        ("ADD", "pod", path(&host.namespace), good.clone(), 4),
        ("NONE", "pod", path(&pod), good.clone(), 4),
        ("ADD", "pod", "/nowhere/netns".into(), good.clone(), 3),
        ("ADD", "pod", path(&pod), with("subnets", json!([])), 7),
        ("ADD", "pod", path(&pod), with("subnets", json!(["nonsense"])), 7),
        ("CHECK", "pod", path(&pod), good.clone(), 7),
    ];
    for (command, id, netns, configuration, code) in table {
        let error = host.call(command, id, &netns, &configuration).unwrap_err();
        assert_eq!(error.code, code, "{command} {id}: {error:?}");
    }
    let environment = Environment { command: "ADD".into(), ..Environment::default() };
    assert_eq!(run(&environment, "{").unwrap_err().code, 6);
    assert_eq!(host.leases(), 0);
    assert_eq!(host.links(), BTreeSet::from(["lo".to_owned()]));
    let status = host.call("STATUS", "", "", &host.configuration("1.1.0")).unwrap_err();
    assert_eq!(status.code, 50);
}

#[test]
fn pods_reach_each_other_and_the_host_also_without_bridge_netfilter() {
    let host = Host::new();
    let (left, right) = (Namespace::create().unwrap(), Namespace::create().unwrap());
    let configuration = host.configuration("1.0.0");
    host.call("ADD", "left", &path(&left), &configuration).unwrap();
    host.call("ADD", "right", &path(&right), &configuration).unwrap();
    for bridged in ["1", "0"] {
        inside(&host.namespace, || {
            let _ = orlop_netlink::sysctl::write("net/bridge/bridge-nf-call-iptables", bridged);
        })
        .unwrap();
        for (from, to) in
            [(&left, "10.244.3.3"), (&right, "10.244.3.2"), (&left, "10.244.3.1"), (&left, "10.244.3.2")]
        {
            assert!(ping(from, to), "{to}, bridge-nf {bridged}");
        }
    }
    assert!(ping(&host.namespace, "10.244.3.2"));
    // A retry of ADD gives the same address.
    let again = host.call("ADD", "left", &path(&left), &configuration).unwrap().unwrap();
    assert_eq!(again["ips"][0]["address"], "10.244.3.2/32");
    assert!(ping(&left, "10.244.3.3"));
}

/// A TCP connection that is refused has reached the other side.
fn ping(from: &Namespace, to: &str) -> bool {
    let address = format!("{to}:9").parse().unwrap();
    let result =
        inside(from, || std::net::TcpStream::connect_timeout(&address, Duration::from_secs(3))).unwrap();
    result.unwrap_err().kind() == std::io::ErrorKind::ConnectionRefused
}

#[test]
fn a_hundred_attachments_leave_nothing() {
    let host = Host::new();
    let configuration = host.configuration("1.1.0");
    let (mut adds, mut deletes) = (Vec::new(), Vec::new());
    for number in 0..100 {
        let pod = Namespace::create().unwrap();
        let id = format!("pod{number}");
        let start = Instant::now();
        host.call("ADD", &id, &path(&pod), &configuration).unwrap();
        adds.push(start.elapsed());
        if number % 3 == 0 {
            // The pod's namespace may be gone before DEL.
            drop(pod);
        }
        let start = Instant::now();
        host.call("DEL", &id, "", &configuration).unwrap();
        deletes.push(start.elapsed());
    }
    adds.sort();
    deletes.sort();
    println!("ADD p50 {:?} p90 {:?}, DEL p50 {:?} p90 {:?}", adds[50], adds[90], deletes[50], deletes[90]);
    assert_eq!(host.leases(), 0);
    assert_eq!(host.links(), BTreeSet::from(["cni0".to_owned(), "lo".to_owned()]));
}

#[test]
fn garbage_collection_keeps_what_is_named() {
    let host = Host::new();
    let mut configuration = host.configuration("1.1.0");
    let pods: Vec<Namespace> = (0..3).map(|_| Namespace::create().unwrap()).collect();
    for (number, pod) in pods.iter().enumerate() {
        host.call("ADD", &format!("pod{number}"), &path(pod), &configuration).unwrap();
    }
    assert_eq!(host.call("GC", "", "", &configuration).unwrap_err().code, 7);
    configuration["cni.dev/valid-attachments"] = json!([{"containerID": "pod1", "ifname": "eth0"}]);
    host.call("GC", "", "", &configuration).unwrap();
    assert_eq!(host.leases(), 1);
    assert_eq!(host.links().len(), 3);
    assert!(output(&pods[1], "ip", &["-4", "address", "show", "eth0"]).1.contains("10.244.3.3/32"));
}

#[test]
fn host_ports_lead_to_the_pod_until_it_is_gone() {
    let host = Host::new();
    let pods: Vec<Namespace> = (0..3).map(|_| Namespace::create().unwrap()).collect();
    let with = |host_port: u16, host_ip: &str| {
        let mut configuration = host.configuration("1.0.0");
        configuration["runtimeConfig"] = json!({"portMappings": [{"hostPort": host_port, "containerPort": 80, "protocol": "tcp", "hostIP": host_ip}]});
        configuration
    };
    host.call("ADD", "first", &path(&pods[0]), &with(8080, "")).unwrap();
    host.call("ADD", "first", &path(&pods[0]), &with(8080, "")).unwrap();
    let taken = host.call("ADD", "second", &path(&pods[1]), &with(8080, "0.0.0.0")).unwrap_err();
    assert!(taken.message.contains("8080/tcp"), "{taken:?}");
    assert_eq!((host.leases(), host.links().len()), (1, 3), "nothing is left of a refused ADD");
    host.call("ADD", "second", &path(&pods[1]), &with(8080, "10.244.3.1")).unwrap();
    host.call("ADD", "third", &path(&pods[2]), &host.configuration("1.0.0")).unwrap();
    for (pod, answer) in [(0, "first"), (1, "second")] {
        let listener = inside(&pods[pod], || std::net::TcpListener::bind("0.0.0.0:80").unwrap()).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = std::io::Write::write_all(&mut stream.unwrap(), answer.as_bytes());
            }
        });
    }
    let (set, _) = output(&host.namespace, "ip", &["address", "add", "192.168.9.1/24", "dev", "cni0"]);
    assert!(set);
    let ask = |from: &Namespace, address: &str| {
        let target = address.parse().unwrap();
        let stream =
            inside(from, || std::net::TcpStream::connect_timeout(&target, Duration::from_secs(3))).unwrap();
        stream.and_then(std::io::read_to_string).map_err(|error| error.kind())
    };
    for from in [&host.namespace, &pods[0], &pods[2]] {
        assert_eq!(ask(from, "192.168.9.1:8080").unwrap(), "first");
        assert_eq!(ask(from, "10.244.3.1:8080").unwrap(), "second");
    }
    let listed = output(&host.namespace, "nft", &["list", "ruleset"]);
    assert!(listed.0 && listed.1.contains("hostports-at"), "{listed:?}");
    host.call("DEL", "first", "", &host.configuration("1.0.0")).unwrap();
    assert_eq!(ask(&pods[2], "192.168.9.1:8080"), Err(std::io::ErrorKind::ConnectionRefused));
    host.call("DEL", "second", "", &with(8080, "")).unwrap();
    host.call("DEL", "third", "", &host.configuration("1.0.0")).unwrap();
    assert!(!output(&host.namespace, "nft", &["list", "ruleset"]).1.contains("tcp . 8080"));
    assert_eq!(host.leases(), 0);
}
