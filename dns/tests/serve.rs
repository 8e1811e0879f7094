//! The server on loopback, asked by dig; the upstream is a second server of ours.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use orlop_daemon::{Frame, Settings};
use orlop_dns::Config;
use orlop_kube::Key;
use orlop_kube::network::{Endpoint, EndpointSlice, NetworkWatches, Service};

fn free_address() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Runs a server in a thread of its own; the frame comes back once it is ready.
fn serve(watches: NetworkWatches, config: Config) -> (Frame, std::thread::JoinHandle<()>) {
    let (sender, receiver) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        orlop_daemon::run(Settings::new("dns"), |frame| async move {
            orlop_dns::start(&frame, &watches, config).await?;
            sender.send(frame)?;
            Ok(())
        })
        .unwrap();
    });
    let frame: Frame = receiver.recv_timeout(Duration::from_secs(10)).unwrap();
    while !frame.ready().missing().is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
    (frame, thread)
}

fn dig(server: SocketAddr, words: &[&str]) -> String {
    let output = Command::new("dig")
        .args([
            format!("@{}", server.ip()),
            "-p".into(),
            server.port().to_string(),
            "+tries=1".into(),
            "+time=5".into(),
        ])
        .args(words)
        .output()
        .expect("dig of dnsutils");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn service(address: &str) -> Service {
    Service { cluster_ips: vec![address.parse().unwrap()], ..Service::default() }
}

fn key(name: &str) -> Key {
    Key { namespace: "default".into(), name: name.into() }
}

#[test]
fn answers_follow_the_watches_and_other_names_are_forwarded() {
    let (near, far) = (free_address(), free_address());
    let upstream_watches = NetworkWatches::detached(true);
    upstream_watches.services.set(key("far"), Some(service("192.0.2.1")));
    let upstream_config = Config {
        listen: vec![far],
        domain: "example.org".into(),
        upstreams: vec![free_address()],
        ..Config::default()
    };
    let (upstream, upstream_thread) = serve(upstream_watches, upstream_config);

    let watches = NetworkWatches::detached(false);
    let config = Config { listen: vec![near], upstreams: vec![far], ..Config::default() };
    let (frame, thread) = serve(watches.clone(), config);
    let name = "web.default.svc.cluster.local";
    assert!(dig(near, &[name]).contains("status: SERVFAIL"), "not synced");
    watches.services.set(key("web"), Some(service("10.96.0.7")));
    watches.services.set_synced();
    watches.slices.set_synced();
    let until = |words: &[&str], wanted: &str| {
        for _ in 0..200 {
            if dig(near, words).contains(wanted) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{words:?} never gave {wanted:?}: {}", dig(near, words));
    };
    until(&[name], "10.96.0.7");
    assert!(dig(near, &["+tcp", name]).contains("10.96.0.7"), "over TCP");
    assert!(dig(near, &["absent.default.svc.cluster.local"]).contains("status: NXDOMAIN"));
    watches.services.set(key("web"), Some(service("10.96.0.8")));
    until(&[name], "10.96.0.8");
    watches.services.set(key("web"), None);
    until(&[name], "status: NXDOMAIN");
    for _ in 0..2 {
        assert!(
            dig(near, &["far.default.svc.example.org"]).contains("192.0.2.1"),
            "forwarded, then from the cache"
        );
    }
    assert!(
        frame.metrics_text().contains(r#"coredns_cache_hits_total{server="dns://:53",type="success"} 1"#),
        "{}",
        frame.metrics_text()
    );
    assert!(dig(near, &["elsewhere.example.net"]).contains("status: SERVFAIL"), "no upstream knows");
    frame.shutdown();
    upstream.shutdown();
    thread.join().unwrap();
    upstream_thread.join().unwrap();
}

/// Two hundred addresses do not fit a datagram: the forwarder asks again over TCP, after passing over an upstream that is down.
#[test]
fn large_answers_come_over_tcp_from_the_upstream_that_is_up() {
    let (near, far, down) = (free_address(), free_address(), free_address());
    let watches = NetworkWatches::detached(true);
    watches.services.set(key("big"), Some(Service { headless: true, ..Service::default() }));
    let endpoints = (0..200u8).map(|number| Endpoint {
        addresses: vec![format!("192.0.2.{number}").parse().unwrap()],
        ready: true,
        serving: true,
        terminating: false,
        hostname: None,
        node: None,
    });
    let slice = EndpointSlice { service: "big".into(), endpoints: endpoints.collect(), ports: Vec::new() };
    watches.slices.set(key("big-1"), Some(slice));
    let config = Config {
        listen: vec![far],
        domain: "example.org".into(),
        upstreams: vec![down],
        ..Config::default()
    };
    let (upstream, upstream_thread) = serve(watches, config);
    let config = Config { listen: vec![near], upstreams: vec![down, far], ..Config::default() };
    let (frame, thread) = serve(NetworkWatches::detached(true), config);
    let name = "big.default.svc.example.org";
    let whole = (0..200).find_map(|_| {
        let answer = dig(near, &["+tcp", name]);
        answer.contains("ANSWER: 200").then_some(answer).or_else(|| {
            std::thread::sleep(Duration::from_millis(10));
            None
        })
    });
    assert!(whole.is_some(), "{}", dig(near, &["+tcp", name]));
    let cut = dig(near, &["+notcp", "+ignore", "+noedns", name]);
    assert!(cut.contains(" tc ") && cut.contains("192.0.2."), "some answers and TC: {cut}");
    frame.shutdown();
    upstream.shutdown();
    thread.join().unwrap();
    upstream_thread.join().unwrap();
}
