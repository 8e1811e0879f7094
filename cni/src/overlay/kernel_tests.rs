//! The overlay on a real kernel, each node in a namespace of its own.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use orlop_netlink::namespace::{Namespace, inside};
use orlop_netlink::{RouteSocket, sysctl};

use super::apply::{self, Wanted};
use super::plan::{self, Peer};
use super::*;
use crate::plugin::{Environment, run};

struct TestNode {
    namespace: Namespace,
    config: OverlayConfig,
    wanted: Wanted,
    _folder: tempfile::TempDir,
}

fn shell(namespace: &Namespace, script: &str) -> String {
    let done = inside(namespace, || Command::new("sh").args(["-ec", script]).output().unwrap()).unwrap();
    assert!(done.status.success(), "{script}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

impl TestNode {
    fn new(number: u8) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = OverlayConfig {
            node_name: format!("node{number}"),
            node_ip: Ipv4Addr::new(192, 168, 77, number),
            cni_conf_dir: folder.path().join("net.d"),
            ipam_dir: folder.path().join("ipam"),
            ..OverlayConfig::default()
        };
        let wanted = Wanted {
            subnets: vec![format!("10.244.{number}.0/24").parse().unwrap()],
            mac: plan::derived_mac(&config.node_name),
            peers: BTreeSet::new(),
        };
        Self { namespace: Namespace::create().unwrap(), config, wanted, _folder: folder }
    }

    fn peer(&self) -> Peer {
        let IpNet::V4(pods) = self.wanted.subnets[0] else { unreachable!() };
        Peer { pods, mac: self.wanted.mac, address: self.config.node_ip }
    }

    fn apply(&self) -> Applied {
        inside(&self.namespace, || apply::apply(&self.config, &self.wanted)).unwrap().unwrap()
    }

    fn pod(&self, id: &str) -> (Namespace, String) {
        let pod = Namespace::create().unwrap();
        let conflist = std::fs::read_to_string(self.config.cni_conf_dir.join(CONFLIST)).unwrap();
        let conflist: serde_json::Value = serde_json::from_str(&conflist).unwrap();
        let mut plugin = conflist["plugins"][0].clone();
        plugin["name"] = conflist["name"].clone();
        plugin["cniVersion"] = conflist["cniVersion"].clone();
        let environment = Environment {
            command: "ADD".into(),
            container_id: id.into(),
            netns: pod.path().display().to_string(),
            interface: "eth0".into(),
        };
        let result =
            inside(&self.namespace, || run(&environment, &plugin.to_string())).unwrap().unwrap().unwrap();
        let address = result["ips"][0]["address"].as_str().unwrap().trim_end_matches("/32").to_owned();
        (pod, address)
    }
}

fn connect(left: &TestNode, right: &TestNode) {
    let script = format!(
        "ip link set lo up; ip link add eth0 type veth peer name eth0 netns {right}; ip address add {left_ip}/24 dev eth0; ip link set eth0 up",
        right = right.namespace.path().display(),
        left_ip = left.config.node_ip
    );
    shell(&left.namespace, &script);
    shell(
        &right.namespace,
        &format!(
            "ip link set lo up; ip address add {}/24 dev eth0; ip link set eth0 up",
            right.config.node_ip
        ),
    );
}

/// Answers one connection on port 8080 with the address it came from.
fn answer_once(namespace: &Namespace) -> std::thread::JoinHandle<()> {
    let listener = inside(namespace, || TcpListener::bind("0.0.0.0:8080").unwrap()).unwrap();
    std::thread::spawn(move || {
        let (mut stream, from) = listener.accept().unwrap();
        stream.write_all(from.ip().to_string().as_bytes()).unwrap();
    })
}

fn ask(namespace: &Namespace, address: &str) -> String {
    let target = format!("{address}:8080").parse().unwrap();
    let mut stream =
        inside(namespace, || TcpStream::connect_timeout(&target, Duration::from_secs(5))).unwrap().unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn round_trip(node: &TestNode) {
    let first = shell(&node.namespace, "nft list ruleset");
    assert!(first.contains("masquerade fully-random"), "{first}");
    let file = node.config.ipam_dir.with_file_name("rules.nft");
    std::fs::write(&file, &first).unwrap();
    shell(&node.namespace, &format!("nft flush ruleset; nft -f {}", file.display()));
    assert_eq!(first, shell(&node.namespace, "nft list ruleset"));
}

#[test]
fn pods_of_two_nodes_reach_each_other() {
    let (mut left, mut right) = (TestNode::new(1), TestNode::new(2));
    connect(&left, &right);
    let (left_peer, right_peer) = (left.peer(), right.peer());
    left.wanted.peers.insert(right_peer);
    right.wanted.peers.insert(left_peer);
    let applied = left.apply();
    assert_eq!((applied.mtu, applied.mac), (1450, Some(left.wanted.mac)));
    right.apply();
    let ((left_pod, left_ip), (right_pod, right_ip)) = (left.pod("a"), right.pod("b"));
    let server = answer_once(&right_pod);
    assert_eq!(ask(&left_pod, &right_ip), left_ip, "no masquerade between pods");
    server.join().unwrap();
    let server = answer_once(&right_pod);
    assert_eq!(ask(&left.namespace, &right_ip), "10.244.1.0", "a host is seen by its tunnel address");
    server.join().unwrap();
    let server = answer_once(&right.namespace);
    assert_eq!(ask(&left_pod, "192.168.77.2"), "192.168.77.1", "outside, a pod is seen as its node");
    server.join().unwrap();
    round_trip(&left);
    // Repeating changes nothing; a peer that left is removed, a broken entry is repaired.
    shell(&left.namespace, "ip neigh flush dev flannel.1 nud permanent; ip route del 10.244.2.0/24");
    left.apply();
    let server = answer_once(&right_pod);
    ask(&left_pod, &right_ip);
    server.join().unwrap();
    left.wanted.peers.clear();
    left.apply();
    let routes = shell(
        &left.namespace,
        "ip route; bridge fdb show dev flannel.1; ip neigh show dev flannel.1 nud permanent",
    );
    assert!(!routes.contains("10.244.2.0") && !routes.contains("192.168.77.2"), "{routes}");
    drop((left_pod, right_pod));
}

#[test]
fn cleanup_leaves_nothing_and_may_be_repeated() {
    let node = TestNode::new(1);
    shell(&node.namespace, "ip link set lo up; ip address add 192.168.77.1/24 dev lo");
    let before = shell(&node.namespace, "ip -o link; ip -o address; ip route; nft list ruleset");
    node.apply();
    let (_pod, _) = node.pod("a");
    let dns: IpAddr = "10.96.0.10".parse().unwrap();
    inside(&node.namespace, || {
        ensure_local_address(dns).unwrap();
        ensure_local_address(dns).unwrap();
        // The overlay's own routes are no reason to refuse its ranges at the next start.
        apply::check_ranges(&node.config).unwrap();
    })
    .unwrap();
    assert!(shell(&node.namespace, "ip address show lo").contains("inet 10.96.0.10/32 scope host lo"));
    for _ in 0..2 {
        inside(&node.namespace, || {
            remove_local_address(dns).unwrap();
            cleanup(&node.config).unwrap();
        })
        .unwrap();
    }
    assert_eq!(before, shell(&node.namespace, "ip -o link; ip -o address; ip route; nft list ruleset"));
    assert!(!node.config.cni_conf_dir.join(CONFLIST).exists());
}

#[test]
fn ranges_in_use_are_refused_and_an_old_bridge_is_corrected() {
    let node = TestNode::new(1);
    shell(
        &node.namespace,
        "ip link set lo up; ip link add eth0 type veth peer name eth1; ip link set eth0 up; ip link set eth1 up; \
         ip address add 10.244.9.1/24 dev eth0; ip address add 192.168.77.1/24 dev eth0",
    );
    let error =
        inside(&node.namespace, || apply::check_ranges(&node.config)).unwrap().unwrap_err().to_string();
    assert!(error.contains("overlaps the machine's route 10.244.9.0/24 on eth0"), "{error}");
    shell(
        &node.namespace,
        "ip link add cni0 type bridge; ip address add 10.200.0.1/24 dev cni0; ip link set cni0 up",
    );
    node.apply();
    let addresses = shell(&node.namespace, "ip -4 -o address show cni0");
    assert!(addresses.contains("10.244.1.1/24") && !addresses.contains("10.200"), "{addresses}");
}

#[test]
fn leases_of_vanished_pods_are_freed() {
    let node = TestNode::new(1);
    shell(&node.namespace, "ip link set lo up; ip address add 192.168.77.1/24 dev lo");
    node.apply();
    let (kept, _) = node.pod("kept");
    let (gone, _) = node.pod("gone");
    drop(gone);
    for entry in std::fs::read_dir(node.config.ipam_dir.join(NETWORK)).unwrap() {
        let old = std::time::SystemTime::now() - Duration::from_secs(3600);
        std::fs::File::options().write(true).open(entry.unwrap().path()).unwrap().set_modified(old).unwrap();
    }
    // The kernel takes a namespace apart in its own time.
    let deadline = Instant::now() + Duration::from_secs(10);
    while inside(&node.namespace, || RouteSocket::open().unwrap().links().unwrap().len()).unwrap() > 4 {
        assert!(Instant::now() < deadline, "the dropped pod's pair is still there");
        std::thread::yield_now();
    }
    assert_eq!(inside(&node.namespace, || apply::collect_leases(&node.config)).unwrap().unwrap(), 1);
    assert!(sysctl::read("net/ipv4/ip_forward").is_ok());
    drop(kept);
}

#[test]
fn the_overlay_follows_the_nodes() {
    let node = TestNode::new(1);
    shell(
        &node.namespace,
        "ip link set lo up; ip link add eth0 type veth peer name eth1; ip link set eth1 up; ip link set eth0 up; ip address add 192.168.77.1/24 dev eth0",
    );
    let watches = NetworkWatches::detached(true);
    let announce = |name: &str, pods: Option<&str>, mac: MacAddress, address: Ipv4Addr| {
        let object = orlop_kube::network::Node {
            pod_cidrs: pods.map(str::to_owned).into_iter().collect(),
            internal_ips: Vec::new(),
            flannel: plan::annotations(1, mac, address),
        };
        watches.nodes.set(Key { namespace: String::new(), name: name.into() }, Some(object));
    };
    let mac: MacAddress = "0e:11:22:33:44:55".parse().unwrap();
    announce("node1", None, mac, node.config.node_ip);
    let (sender, receiver) = std::sync::mpsc::channel();
    let (namespace, config, given) =
        (Namespace::open(&node.namespace.path()).unwrap(), node.config.clone(), watches.clone());
    let daemon = std::thread::spawn(move || {
        inside(&namespace, || {
            orlop_daemon::run(orlop_daemon::Settings::new("overlay-test"), |frame| async move {
                // The Node is annotated already: the API is not asked.
                let api = kube::Config::new("http://127.0.0.1:9".parse()?);
                let client = orlop_kube::client_from_config(api)?;
                start_overlay(&frame, client, &given, config).await?;
                sender.send(frame).unwrap();
                Ok(())
            })
        })
        .unwrap()
        .unwrap();
    });
    let frame = receiver.recv().unwrap();
    let conflist = node.config.cni_conf_dir.join(CONFLIST);
    let until = |what: &str, condition: &dyn Fn() -> bool| {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !condition() {
            assert!(Instant::now() < deadline, "not in time: {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    assert!(!conflist.exists() && frame.ready().missing() == ["overlay"], "not ready without a pod range");
    announce("node1", Some("10.244.1.0/24"), mac, node.config.node_ip);
    until("ready", &|| frame.ready().missing().is_empty());
    assert!(conflist.exists());
    let routes =
        || shell(&node.namespace, "ip route; ip -d link show flannel.1; bridge fdb show dev flannel.1");
    assert!(routes().contains("0e:11:22:33:44:55"), "the announced address is kept: {}", routes());
    announce("node2", Some("10.244.2.0/24"), plan::derived_mac("node2"), [192, 168, 77, 2].into());
    until("a peer", &|| {
        routes().contains("10.244.2.0/24 via 10.244.2.0") && routes().contains("dst 192.168.77.2")
    });
    watches.nodes.set(Key { namespace: String::new(), name: "node2".into() }, None);
    until("no peer", &|| !routes().contains("10.244.2.0") && !routes().contains("192.168.77.2"));
    frame.shutdown();
    daemon.join().unwrap();
    assert!(routes().contains("flannel.1"), "the network stays without the daemon");
}
