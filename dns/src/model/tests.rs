use std::sync::Arc;

use orlop_kube::Key;
use orlop_kube::network::{Endpoint, EndpointPort, EndpointSlice, Protocol, Service, ServicePort};

use super::*;

fn port(name: &str, number: u16) -> ServicePort {
    ServicePort { name: name.into(), protocol: Protocol::Tcp, port: number, node_port: 0, target_port: None }
}

fn endpoint(address: &str, hostname: Option<&str>, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.parse().unwrap()],
        ready,
        serving: ready,
        terminating: false,
        hostname: hostname.map(str::to_owned),
        node: None,
    }
}

fn record(name: &str, service: Service, endpoints: Vec<Endpoint>) -> ServiceRecord {
    let ports = vec![EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }];
    let slice = EndpointSlice { service: name.into(), endpoints, ports };
    ServiceRecord {
        key: Key { namespace: "default".into(), name: name.into() },
        service: Arc::new(service),
        slices: vec![Arc::new(slice)],
    }
}

fn zone() -> Zone {
    let web = Service { cluster_ips: vec!["10.96.0.7".parse().unwrap()], ports: vec![port("http", 80)], ..Service::default() };
    let headless = || Service { headless: true, ..Service::default() };
    let external = |target: &str| Service {
        kind: "ExternalName".into(),
        external_name: Some(target.into()),
        ..Service::default()
    };
    let endpoints = vec![endpoint("10.244.0.5", Some("db-0"), true), endpoint("10.244.0.6", None, true), endpoint("10.244.0.7", None, false)];
    build(
        "cluster.local",
        &["10.96.0.10".parse().unwrap()],
        &[
            record("web", web, Vec::new()),
            record("db", headless(), endpoints),
            record("empty", headless(), vec![endpoint("10.244.0.9", None, false)]),
            record("out", external("example.org."), Vec::new()),
            record("near", external("web.default.svc.cluster.local"), Vec::new()),
        ],
    )
}

/// One line for an answer: `answers | additionals`.
fn ask(name: &str, kind: &str) -> String {
    let wanted = |data: &Data| match (kind, data) {
        ("A", Data::Address(address)) => address.is_ipv4(),
        ("AAAA", Data::Address(address)) => address.is_ipv6(),
        ("SRV", Data::Service { .. }) | ("PTR", Data::Pointer(_)) | ("TXT", Data::Text(_)) | ("CNAME", Data::Alias(_)) => true,
        ("NS", Data::NameServer(_)) | ("SOA", Data::Authority) => true,
        _ => false,
    };
    let show = |records: Vec<(String, Data)>| {
        let lines: Vec<String> = records
            .into_iter()
            .map(|(_, data)| match data {
                Data::Address(address) => address.to_string(),
                Data::Service { weight, port, target } => format!("{weight} {port} {target}"),
                Data::Pointer(name) | Data::Alias(name) | Data::Text(name) | Data::NameServer(name) => name,
                Data::Authority => "soa".into(),
            })
            .collect();
        lines.join(", ")
    };
    match zone().answer(name, wanted) {
        Answer::Records { answers, additionals } if additionals.is_empty() => show(answers),
        Answer::Records { answers, additionals } => format!("{} | {}", show(answers), show(additionals)),
        Answer::Outside { target, .. } => format!("-> {target}"),
        Answer::NoData => "NODATA".into(),
        Answer::NoSuchName => "NXDOMAIN".into(),
        Answer::NotOurs => "not ours".into(),
    }
}

#[test]
fn questions_and_answers() {
    let table = [
        ("web.default.svc.cluster.local", "A", "10.96.0.7"),
        ("web.default.svc.cluster.local", "AAAA", "NODATA"),
        ("_http._tcp.web.default.svc.cluster.local", "SRV", "100 80 web.default.svc.cluster.local | 10.96.0.7"),
        ("_tcp.web.default.svc.cluster.local", "A", "NODATA"),
        ("_dns._tcp.web.default.svc.cluster.local", "SRV", "NXDOMAIN"),
        ("web.default.svc.cluster.local", "SRV", "100 80 web.default.svc.cluster.local | 10.96.0.7"),
        ("7.0.96.10.in-addr.arpa", "PTR", "web.default.svc.cluster.local"),
        ("8.0.96.10.in-addr.arpa", "PTR", "not ours"),
        ("absent.default.svc.cluster.local", "A", "NXDOMAIN"),
        ("default.svc.cluster.local", "A", "NODATA"),
        ("other.svc.cluster.local", "A", "NXDOMAIN"),
        ("svc.cluster.local", "A", "NODATA"),
        ("cluster.local", "NS", "ns.dns.cluster.local | 10.96.0.10"),
        ("cluster.local", "SOA", "soa"),
        ("dns-version.cluster.local", "TXT", "1.1.0"),
        ("db.default.svc.cluster.local", "A", "10.244.0.5, 10.244.0.6"),
        ("db-0.db.default.svc.cluster.local", "A", "10.244.0.5"),
        ("10-244-0-6.db.default.svc.cluster.local", "A", "10.244.0.6"),
        ("10-244-0-7.db.default.svc.cluster.local", "A", "NXDOMAIN"),
        (
            "_http._tcp.db.default.svc.cluster.local",
            "SRV",
            "50 8080 10-244-0-6.db.default.svc.cluster.local, 50 8080 db-0.db.default.svc.cluster.local | 10.244.0.6, 10.244.0.5",
        ),
        ("5.0.244.10.in-addr.arpa", "PTR", "db-0.db.default.svc.cluster.local"),
        ("empty.default.svc.cluster.local", "A", "NXDOMAIN"),
        ("out.default.svc.cluster.local", "A", "-> example.org"),
        ("out.default.svc.cluster.local", "CNAME", "example.org"),
        ("near.default.svc.cluster.local", "A", "web.default.svc.cluster.local, 10.96.0.7"),
        ("10-1-2-3.default.pod.cluster.local", "A", "10.1.2.3"),
        ("10-1-2-3.default.pod.cluster.local", "AAAA", "NODATA"),
        ("default.pod.cluster.local", "A", "NODATA"),
        ("no-address.default.pod.cluster.local", "A", "NXDOMAIN"),
        ("notcluster.local", "A", "not ours"),
        ("example.org", "A", "not ours"),
    ];
    for (name, kind, wanted) in table {
        assert_eq!(ask(name, kind), wanted, "{name} {kind}");
    }
}

#[test]
fn reverse_names_of_both_families() {
    assert_eq!(build::reverse_name("10.1.2.3".parse().unwrap()), "3.2.1.10.in-addr.arpa");
    let name = build::reverse_name("fd00::1".parse().unwrap());
    assert!(name.starts_with("1.0.0.0.") && name.ends_with("0.0.d.f.ip6.arpa"), "{name}");
}
