//! The proxy on a real kernel: a node, its pods and an outside client, each in a namespace of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command as Process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use orlop_kube::Key;
use orlop_kube::network::{
    Endpoint, EndpointPort, EndpointSlice, NetworkWatches, Protocol, Service, ServicePort,
};
use orlop_netlink::namespace::{Namespace, inside};

use super::*;

const NODE: &str = "192.168.50.1";

fn shell(namespace: &Namespace, script: &str) -> String {
    let done = inside(namespace, || Process::new("sh").args(["-ec", script]).output().unwrap()).unwrap();
    assert!(done.status.success(), "{script}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

struct Lab {
    node: Namespace,
    client: Namespace,
    pods: BTreeMap<u8, Namespace>,
    watches: NetworkWatches,
}

impl Lab {
    /// Pods 2, 3, … answer on TCP 8080 and UDP 5300 with their number and whom they saw.
    fn new(pods: u8) -> Self {
        let (node, client) = (Namespace::create().unwrap(), Namespace::create().unwrap());
        let setup = format!(
            "ip link set lo up; echo 1 > /proc/sys/net/ipv4/ip_forward
             ip link add out type veth peer name eth0 netns {client}; ip link set out up; ip address add {NODE}/24 dev out
             ip link add cni0 type bridge; ip address add 10.244.0.1/24 dev cni0; ip link set cni0 up
             ip route add 10.96.0.0/16 dev cni0 src 10.244.0.1",
            client = client.path().display(),
        );
        shell(&node, &setup);
        shell(
            &client,
            &format!(
                "ip link set lo up; ip link set eth0 up; ip address add 192.168.50.2/24 dev eth0; ip address add 192.168.50.3/24 dev eth0
                 ip route add default via {NODE}"
            ),
        );
        let mut lab = Self { node, client, pods: BTreeMap::new(), watches: NetworkWatches::detached(true) };
        for number in 2..2 + pods {
            lab.add_pod(number);
        }
        lab
    }

    fn add_pod(&mut self, number: u8) {
        let pod = Namespace::create().unwrap();
        shell(
            &self.node,
            &format!(
                "ip link add pod{number} type veth peer name eth0 netns {}; ip link set pod{number} master cni0 up; ip link set pod{number} type bridge_slave hairpin on",
                pod.path().display()
            ),
        );
        shell(
            &pod,
            &format!(
                "ip link set lo up; ip link set eth0 up; ip address add 10.244.0.{number}/32 dev eth0
                 ip route add 10.244.0.1 dev eth0; ip route add default via 10.244.0.1"
            ),
        );
        serve(&pod, number);
        self.pods.insert(number, pod);
    }

    fn service(&self, service: Service) {
        self.watches.services.set(key("web"), Some(service));
    }

    fn endpoints(&self, numbers: &[u8], here: impl Fn(u8) -> bool) {
        let endpoint = |number: &u8| Endpoint {
            addresses: vec![Ipv4Addr::new(10, 244, 0, *number).into()],
            ready: true,
            serving: true,
            terminating: false,
            hostname: None,
            node: Some(if here(*number) { "node" } else { "elsewhere" }.into()),
        };
        let port = |name: &str, protocol, port| EndpointPort { name: name.into(), protocol, port };
        let slice = EndpointSlice {
            service: "web".into(),
            endpoints: numbers.iter().map(endpoint).collect(),
            ports: vec![port("http", Protocol::Tcp, 8080), port("dns", Protocol::Udp, 5300)],
        };
        self.watches.slices.set(key("web-1"), Some(slice));
    }

    /// Starts the daemon on the node; it ends when the guard is dropped.
    fn daemon(&self) -> Daemon {
        let (sender, receiver) = std::sync::mpsc::channel();
        let (namespace, watches) = (Namespace::open(&self.node.path()).unwrap(), self.watches.clone());
        let config = Config {
            node_name: "node".into(),
            cluster_cidr: vec!["10.244.0.0/16".parse().unwrap()],
            service_cidr: vec!["10.96.0.0/16".parse().unwrap()],
            local_addresses: vec!["10.96.0.10".parse().unwrap()],
            ..Config::default()
        };
        let thread = std::thread::spawn(move || {
            inside(&namespace, || {
                orlop_daemon::run(orlop_daemon::Settings::new("proxy-test"), |frame| async move {
                    start(&frame, &watches, config).await?;
                    sender.send(frame).unwrap();
                    Ok(())
                })
            })
            .unwrap()
            .unwrap();
        });
        Daemon { frame: receiver.recv().unwrap(), thread: Some(thread) }
    }
}

struct Daemon {
    frame: Frame,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.frame.shutdown();
        let _ = self.thread.take().unwrap().join();
    }
}

fn key(name: &str) -> Key {
    Key { namespace: "default".into(), name: name.into() }
}

fn web() -> Service {
    let port = |name: &str, protocol, port, node_port| ServicePort {
        name: name.into(),
        protocol,
        port,
        node_port,
        target_port: None,
    };
    Service {
        kind: "NodePort".into(),
        cluster_ips: vec!["10.96.0.7".parse().unwrap()],
        external_ips: vec!["203.0.113.9".parse().unwrap()],
        ports: vec![port("http", Protocol::Tcp, 80, 30080), port("dns", Protocol::Udp, 53, 30053)],
        ..Service::default()
    }
}

/// Serves until the test process ends.
fn serve(pod: &Namespace, number: u8) {
    let (tcp, udp) = inside(pod, || {
        (TcpListener::bind("0.0.0.0:8080").unwrap(), UdpSocket::bind("0.0.0.0:5300").unwrap())
    })
    .unwrap();
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            let seen = stream.peer_addr().unwrap().ip();
            let _ = stream.write_all(format!("{number} {seen}").as_bytes());
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 16];
        while let Ok((_, from)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(number.to_string().as_bytes(), from);
        }
    });
}

fn call(from: &Namespace, address: &str) -> Result<String, ErrorKind> {
    let target: SocketAddr = address.parse().unwrap();
    let stream = inside(from, || TcpStream::connect_timeout(&target, Duration::from_secs(2))).unwrap();
    let mut text = String::new();
    let mut stream = stream.map_err(|error| error.kind())?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    stream.read_to_string(&mut text).map_err(|error| error.kind())?;
    Ok(text)
}

/// Which pods answered in so many calls.
fn answering(from: &Namespace, address: &str, calls: usize) -> BTreeSet<String> {
    (0..calls).map(|_| call(from, address).unwrap().split(' ').next().unwrap().to_owned()).collect()
}

fn set(numbers: &[u8]) -> BTreeSet<String> {
    numbers.iter().map(ToString::to_string).collect()
}

/// Waits until a condition on the kernel holds.
fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn every_way_into_a_service() {
    let lab = Lab::new(3);
    lab.service(web());
    lab.endpoints(&[2, 3, 4], |_| true);
    let _daemon = lab.daemon();
    until("first rules", || call(&lab.node, "10.96.0.7:80").is_ok());
    for bridged in ["1", "0"] {
        shell(&lab.node, &format!("echo {bridged} > /proc/sys/net/bridge/bridge-nf-call-iptables || true"));
        // From the host, from a pod (which is also an endpoint: hairpin), from outside.
        for (from, address) in [
            (&lab.node, "10.96.0.7:80"),
            (&lab.pods[&2], "10.96.0.7:80"),
            (&lab.client, "10.96.0.7:80"),
            (&lab.node, "192.168.50.1:30080"),
            (&lab.pods[&2], "192.168.50.1:30080"),
            (&lab.client, "192.168.50.1:30080"),
            (&lab.client, "203.0.113.9:80"),
        ] {
            assert_eq!(answering(from, address, 60), set(&[2, 3, 4]), "{address}, bridge-nf {bridged}");
        }
    }
    who_is_seen_and_who_is_refused(&lab);
}

/// Connections of a host to a server of its own that is a Service's endpoint: the API server's, to everything on its machine.
#[test]
fn the_first_rules_break_no_connection_that_is_there() {
    let lab = Lab::new(0);
    let open = || {
        let listener = TcpListener::bind((NODE, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener.local_addr().unwrap().port(), client, listener.accept().unwrap().0)
    };
    let (port, mut client, mut server) = inside(&lab.node, open).unwrap();
    lab.service(web());
    let endpoint = Endpoint {
        addresses: vec![NODE.parse().unwrap()],
        ready: true,
        serving: true,
        terminating: false,
        hostname: None,
        node: Some("node".into()),
    };
    let slice = EndpointSlice {
        service: "web".into(),
        endpoints: vec![endpoint],
        ports: vec![EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port }],
    };
    lab.watches.slices.set(key("web-1"), Some(slice));
    let _daemon = lab.daemon();
    until("first rules", || shell(&lab.node, "nft list tables").contains("orlop-proxy"));
    until("the endpoint", || shell(&lab.node, "nft list map ip orlop-proxy services").contains("10.96.0.7"));
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    }
    // The server speaks first: the kernel takes its packet for the begin of a connection.
    let mut buffer = [0; 4];
    server.write_all(b"ping").unwrap();
    client.read_exact(&mut buffer).unwrap();
    client.write_all(b"pong").unwrap();
    server.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"pong");
}

fn who_is_seen_and_who_is_refused(lab: &Lab) {
    let seen = call(&lab.client, "192.168.50.1:30080").unwrap();
    assert!(seen.ends_with(" 10.244.0.1"), "a client from outside is masqueraded: {seen}");
    let seen: BTreeSet<String> = (0..40).map(|_| call(&lab.pods[&2], "10.96.0.7:80").unwrap()).collect();
    let wanted = ["2 10.244.0.1", "3 10.244.0.2", "4 10.244.0.2"].map(str::to_owned);
    assert_eq!(seen, BTreeSet::from(wanted), "only a pod's call to itself is masqueraded");
    // Unknown ports are refused, unknown addresses lead nowhere, addresses served here are left alone.
    for (who, from) in [("host", &lab.node), ("pod", &lab.pods[&2]), ("outside", &lab.client)] {
        assert_eq!(call(from, "10.96.0.7:81"), Err(ErrorKind::ConnectionRefused), "{who}");
    }
    shell(&lab.node, "ip address add 10.96.0.10/32 dev lo");
    assert_eq!(call(&lab.pods[&2], "10.96.0.10:81"), Err(ErrorKind::ConnectionRefused));
    // Without endpoints everybody is refused at once.
    lab.endpoints(&[], |_| true);
    until("refusal", || call(&lab.node, "10.96.0.7:80") == Err(ErrorKind::ConnectionRefused));
    for (from, address) in [
        (&lab.pods[&2], "10.96.0.7:80"),
        (&lab.client, "10.96.0.7:80"),
        (&lab.client, "192.168.50.1:30080"),
        (&lab.node, "192.168.50.1:30080"),
    ] {
        assert_eq!(call(from, address), Err(ErrorKind::ConnectionRefused), "{address}");
    }
}

#[test]
fn affinity_holds_while_other_endpoints_come_and_go() {
    let lab = Lab::new(4);
    lab.service(Service { affinity_seconds: Some(600), ..web() });
    lab.endpoints(&[2, 3, 4], |_| true);
    let mut daemon = lab.daemon();
    until("first rules", || call(&lab.client, "10.96.0.7:80").is_ok());
    let mine = answering(&lab.client, "10.96.0.7:80", 20);
    assert_eq!(mine.len(), 1);
    let mine: u8 = mine.first().unwrap().parse().unwrap();
    let others: Vec<u8> = [2, 3, 4].into_iter().filter(|number| *number != mine).collect();
    lab.endpoints(&[mine, others[1]], |_| true);
    until("one less", || {
        !shell(&lab.node, "nft list table ip orlop-proxy").contains(&format!("10.244.0.{} . 8080", others[0]))
    });
    assert_eq!(answering(&lab.client, "10.96.0.7:80", 20), set(&[mine]));
    lab.endpoints(&[mine, others[1], 5], |_| true);
    until("one more", || shell(&lab.node, "nft list table ip orlop-proxy").contains("10.244.0.5 . 8080"));
    assert_eq!(answering(&lab.client, "10.96.0.7:80", 20), set(&[mine]));
    lab.endpoints(&[others[1], 5], |_| true);
    until("mine gone", || {
        !shell(&lab.node, "nft list table ip orlop-proxy").contains(&format!("10.244.0.{mine} . 8080"))
    });
    let next = answering(&lab.client, "10.96.0.7:80", 20);
    // A new daemon makes the table anew, and remembers for its predecessor.
    for _ in 0..3 {
        drop(daemon);
        daemon = lab.daemon();
        let frame = daemon.frame.clone();
        until("ready", || frame.ready().missing().is_empty());
        assert_eq!(answering(&lab.client, "10.96.0.7:80", 10), next);
    }
    assert!(next.len() == 1 && !next.contains(&mine.to_string()), "{next:?}");
    round_trip(&lab.node);
}

#[test]
fn local_policies() {
    let lab = Lab::new(3);
    lab.service(Service { external_local: true, internal_local: true, ..web() });
    lab.endpoints(&[2, 3, 4], |number| number == 3);
    let _daemon = lab.daemon();
    until("first rules", || call(&lab.node, "10.96.0.7:80").is_ok());
    assert_eq!(answering(&lab.pods[&2], "10.96.0.7:80", 20), set(&[3]));
    assert_eq!(answering(&lab.client, "192.168.50.1:30080", 20), set(&[3]));
    assert_eq!(
        call(&lab.client, "192.168.50.1:30080").unwrap(),
        "3 192.168.50.2",
        "the client's address is kept"
    );
    assert_eq!(answering(&lab.pods[&3], "203.0.113.9:80", 60), set(&[2, 3, 4]), "clients inside reach all");
    assert_eq!(answering(&lab.node, "192.168.50.1:30080", 60), set(&[2, 3, 4]));
    lab.endpoints(&[2, 3, 4], |_| false);
    until("no local one", || call(&lab.client, "192.168.50.1:30080").is_err());
    assert_eq!(
        call(&lab.client, "192.168.50.1:30080"),
        Err(ErrorKind::TimedOut),
        "dropped: another node is right"
    );
    assert_eq!(answering(&lab.node, "192.168.50.1:30080", 60), set(&[2, 3, 4]));
    round_trip(&lab.node);
}

#[test]
fn udp_flows_leave_an_endpoint_that_is_gone() {
    let lab = Lab::new(2);
    lab.service(web());
    lab.endpoints(&[2], |_| true);
    let _daemon = lab.daemon();
    for (from, address) in [(&lab.node, "10.96.0.7:53"), (&lab.client, "192.168.50.1:30053")] {
        lab.endpoints(&[2], |_| true);
        let socket = inside(from, || UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let ask = || {
            let mut buffer = [0; 16];
            socket.send_to(b"?", address).ok()?;
            let length = socket.recv(&mut buffer).ok()?;
            Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
        };
        until("pod 2 answers", || ask().as_deref() == Some("2"));
        lab.endpoints(&[3], |_| true);
        until("the same flow goes on to pod 3", || ask().as_deref() == Some("3"));
    }
}

/// What `nft` lists, it can load, and then it lists the same.
fn round_trip(node: &Namespace) {
    let first = shell(node, "nft -s list ruleset");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &first).unwrap();
    let copy = Namespace::create().unwrap();
    shell(&copy, &format!("nft -f {}", file.path().display()));
    let clean = |text: &str| {
        text.lines().filter(|line| !line.contains("expires")).map(ToOwned::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(clean(&first), clean(&shell(&copy, "nft -s list ruleset")));
}

#[test]
fn restarts_and_repairs_lose_no_request() {
    let lab = Lab::new(3);
    lab.service(web());
    lab.endpoints(&[2, 3, 4], |_| true);
    let daemon = lab.daemon();
    until("first rules", || call(&lab.pods[&2], "10.96.0.7:80").is_ok());
    round_trip(&lab.node);
    let stop = Arc::new(AtomicBool::new(false));
    let calls = Arc::new(AtomicU32::new(0));
    let client = std::thread::spawn({
        let (stop, calls) = (stop.clone(), calls.clone());
        let from = Namespace::open(&lab.client.path()).unwrap();
        move || {
            while !stop.load(Ordering::Relaxed) {
                call(&from, "192.168.50.1:30080").unwrap();
                calls.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let more = |count: u32| {
        let start = calls.load(Ordering::Relaxed);
        until("calls", || calls.load(Ordering::Relaxed) >= start + count || client.is_finished());
    };
    more(20);
    drop(daemon);
    more(20);
    // Each start replaces the table of its predecessor.
    for _ in 0..20 {
        let daemon = lab.daemon();
        let frame = daemon.frame.clone();
        until("ready", || frame.ready().missing().is_empty());
        lab.endpoints(&[2, 3], |_| true);
        more(10);
        lab.endpoints(&[2, 3, 4], |_| true);
        more(10);
    }
    stop.store(true, Ordering::Relaxed);
    client.join().unwrap();
    // Somebody flushes everything: the daemon notices.
    let daemon = lab.daemon();
    until("rules", || call(&lab.client, "192.168.50.1:30080").is_ok());
    shell(&lab.node, "nft flush ruleset");
    until("repair", || call(&lab.client, "192.168.50.1:30080").is_ok());
    drop(daemon);
    inside(&lab.node, || {
        remove_all().unwrap();
        remove_all().unwrap();
    })
    .unwrap();
    assert_eq!(shell(&lab.node, "nft list tables"), "");
}

#[test]
fn nothing_is_touched_before_the_watches_are_synced() {
    let lab = Lab { watches: NetworkWatches::detached(false), ..Lab::new(0) };
    shell(&lab.node, "nft add table ip orlop-proxy; nft add set ip orlop-proxy left '{ type ipv4_addr; }'");
    let daemon = lab.daemon();
    assert!(daemon.frame.ready().missing().contains(&"service-rules".to_owned()));
    assert!(shell(&lab.node, "nft list ruleset").contains("set left"));
    lab.watches.services.set_synced();
    lab.watches.slices.set_synced();
    until("replacement", || !shell(&lab.node, "nft list ruleset").contains("set left"));
}

#[test]
fn ten_thousand_services_in_one_batch() {
    let node = Namespace::create().unwrap();
    let settings = rules::Settings {
        version: IpVersion::V4,
        cluster: Some("10.244.0.0/16".parse().unwrap()),
        services: Some("10.96.0.0/12".parse().unwrap()),
        masquerade_all: false,
        node_port_networks: Vec::new(),
        node_served: Vec::new(),
    };
    let mut plan = plan::Plan::new(settings);
    let frontend = |number: u16, endpoints: u8| {
        let [high, low] = number.to_be_bytes();
        let key = model::FrontendKey {
            place: model::Place::Address(Ipv4Addr::new(10, 100, high, low).into()),
            protocol: Protocol::Tcp,
            port: 80,
        };
        let address = |index: u8| SocketAddr::from(([10, 244, high.wrapping_add(index), low], 8080));
        let frontend = model::Frontend {
            endpoints: (0..endpoints).map(address).collect(),
            inside: None,
            affinity_seconds: None,
            masquerade: false,
            cluster_address: true,
            when_empty: model::WhenEmpty::Reject,
        };
        (key, frontend)
    };
    for number in 0..10_000 {
        plan.set_service(&key(&number.to_string()), &[frontend(number, 5)], &BTreeSet::new());
    }
    inside(&node, || {
        let mut kernel = kernel::Kernel::default();
        for round in ["first", "again over the old table"] {
            let start = Instant::now();
            let transaction = plan.replace(plan::Adopted::default());
            let planned = start.elapsed();
            kernel.carry_out(&transaction).unwrap();
            println!(
                "10000 services x 5, {round}: planned in {planned:?}, in the kernel after {:?}",
                start.elapsed()
            );
        }
        let mut times = Vec::new();
        for step in 0..20 {
            plan.set_service(&key("77"), &[frontend(77, 4 + step % 2)], &BTreeSet::new());
            let start = Instant::now();
            kernel.carry_out(&plan.update()).unwrap();
            times.push(start.elapsed());
        }
        times.sort();
        println!("one endpoint changed: median {:?}, longest {:?}", times[10], times[19]);
    })
    .unwrap();
}
