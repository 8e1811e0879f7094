use std::collections::BTreeSet;
use std::net::IpAddr;

use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::zone::{Endpoint, Service, Target, Zone, undashed};

/// What the zone is called and how long its records live.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The zone's name, lower case, with the final dot.
    pub name: Name,
    /// Time to live of every record, also of negative answers.
    pub ttl_seconds: u32,
    /// Addresses of the server itself (`ns.dns.ZONE`).
    pub servers: Vec<IpAddr>,
}

/// The kind of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// There are records.
    Records,
    /// The name exists, without records of this type.
    NoData,
    /// The name does not exist.
    NoName,
}

/// The zone's answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// What was found.
    pub found: Found,
    /// Answer section.
    pub records: Vec<Record>,
    /// Additional section.
    pub additionals: Vec<Record>,
    /// The end of a CNAME chain that still has to be resolved.
    pub alias: Option<Name>,
}

impl Answer {
    fn of(records: Vec<Record>) -> Self {
        let found = if records.is_empty() { Found::NoData } else { Found::Records };
        Self { found, records, additionals: Vec::new(), alias: None }
    }

    fn no_name() -> Self {
        Self { found: Found::NoName, ..Self::of(Vec::new()) }
    }
}

impl Origin {
    /// The SOA record: answer at the apex, authority of negative answers (RFC 2308).
    pub fn soa(&self, serial: u32) -> Record {
        let seconds = i32::try_from(self.ttl_seconds).unwrap_or(i32::MAX);
        let (server, contact) = (self.child(&["ns", "dns"]), self.child(&["hostmaster"]));
        let soa = SOA::new(server, contact, serial, 7200, 1800, 86400.max(seconds), self.ttl_seconds);
        Record::from_rdata(self.name.clone(), self.ttl_seconds, RData::SOA(soa))
    }

    fn child(&self, labels: &[&str]) -> Name {
        // Labels come from object names and addresses, which are shorter and plainer than DNS allows; one that is not makes the apex.
        let relative = Name::from_labels(labels.iter().map(|label| label.as_bytes()));
        relative.and_then(|name| name.append_domain(&self.name)).unwrap_or_else(|_| self.name.clone())
    }

    fn record(&self, name: &Name, data: RData) -> Record {
        Record::from_rdata(name.clone(), self.ttl_seconds, data)
    }

    fn addresses<'a>(
        &self,
        name: &Name,
        ips: impl IntoIterator<Item = &'a IpAddr>,
        kind: RecordType,
    ) -> Vec<Record> {
        let matching = ips.into_iter().filter_map(|ip| match (ip, kind) {
            (IpAddr::V4(ip), RecordType::A | RecordType::ANY) => Some(RData::A(A(*ip))),
            (IpAddr::V6(ip), RecordType::AAAA | RecordType::ANY) => Some(RData::AAAA(AAAA(*ip))),
            _ => None,
        });
        matching.map(|data| self.record(name, data)).collect()
    }
}

impl Zone {
    /// Answers a name inside the zone.
    pub fn answer(&self, origin: &Origin, name: &Name, kind: RecordType) -> Answer {
        let depth = usize::from(name.num_labels()).saturating_sub(usize::from(origin.name.num_labels()));
        let labels: Option<Vec<String>> = name
            .iter()
            .take(depth)
            .map(|label| std::str::from_utf8(label).ok().map(str::to_lowercase))
            .collect();
        let Some(labels) = labels else {
            return Answer::no_name();
        };
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        match labels.as_slice() {
            [] => self.apex(origin, name, kind),
            ["dns-version"] => Answer::of(match kind {
                RecordType::TXT | RecordType::ANY => {
                    vec![origin.record(name, RData::TXT(TXT::new(vec!["1.1.0".to_owned()])))]
                }
                _ => Vec::new(),
            }),
            ["dns" | "svc" | "pod"] => Answer::of(Vec::new()),
            ["ns", "dns"] => Answer::of(origin.addresses(name, &origin.servers, kind)),
            [namespace, "svc"] if self.namespaces.contains_key(*namespace) => Answer::of(Vec::new()),
            [_, "pod"] => Answer::of(Vec::new()),
            [address, _, "pod"] => match undashed(address) {
                Some(ip) => Answer::of(origin.addresses(name, [&ip], kind)),
                None => Answer::no_name(),
            },
            [rest @ .., service, namespace, "svc"] => match self.service(namespace, service) {
                Some(service) => service_answer(origin, service, rest, name, kind),
                None => Answer::no_name(),
            },
            _ => Answer::no_name(),
        }
    }

    /// The names of an address; none when it is nobody's.
    pub fn reverse(&self, origin: &Origin, ip: IpAddr, name: &Name, kind: RecordType) -> Option<Answer> {
        let holders = self.reverse.get(&ip)?;
        if !matches!(kind, RecordType::PTR | RecordType::ANY) {
            return Some(Answer::of(Vec::new()));
        }
        // A cluster address has one name; a pod has one in each of its Services.
        let is_cluster_address = holders.first().is_some_and(|holder| holder.endpoint.is_none());
        let named = holders.iter().filter(|holder| !is_cluster_address || holder.endpoint.is_none());
        let targets: BTreeSet<Name> = named
            .map(|holder| match &holder.endpoint {
                Some(label) => endpoint_name(origin, &holder.service, label),
                None => service_name(origin, &holder.service),
            })
            .collect();
        Some(Answer::of(
            targets.into_iter().map(|target| origin.record(name, RData::PTR(PTR(target)))).collect(),
        ))
    }

    fn service(&self, namespace: &str, name: &str) -> Option<&Service> {
        self.namespaces.get(namespace)?.get(name).map(AsRef::as_ref)
    }

    fn apex(&self, origin: &Origin, name: &Name, kind: RecordType) -> Answer {
        let server = origin.child(&["ns", "dns"]);
        match kind {
            RecordType::SOA | RecordType::ANY => Answer::of(vec![origin.soa(self.serial)]),
            RecordType::NS => {
                let mut answer = Answer::of(vec![origin.record(name, RData::NS(NS(server.clone())))]);
                answer.additionals = origin.addresses(&server, &origin.servers, RecordType::ANY);
                answer
            }
            _ => Answer::of(Vec::new()),
        }
    }
}

fn service_name(origin: &Origin, service: &Service) -> Name {
    origin.child(&[&service.name, &service.namespace, "svc"])
}

fn endpoint_name(origin: &Origin, service: &Service, label: &str) -> Name {
    origin.child(&[label, &service.name, &service.namespace, "svc"])
}

fn service_answer(
    origin: &Origin,
    service: &Service,
    rest: &[&str],
    name: &Name,
    kind: RecordType,
) -> Answer {
    if let Target::External(target) = &service.target {
        return if rest.is_empty() { external(origin, target, name, kind) } else { Answer::no_name() };
    }
    let is_empty_headless = service.target == Target::Headless && service.endpoints.is_empty();
    match rest {
        // Specification 1.1, 2.4.1: a headless Service without ready endpoints is NXDOMAIN.
        _ if is_empty_headless => Answer::no_name(),
        [] if kind == RecordType::SRV => srv(origin, service, name, |_, _| true),
        [] => match &service.target {
            Target::Cluster(ips) => Answer::of(origin.addresses(name, ips, kind)),
            _ => {
                let ips: BTreeSet<_> =
                    service.endpoints.values().flat_map(|endpoint| &endpoint.ips).collect();
                Answer::of(origin.addresses(name, ips, kind))
            }
        },
        [port, protocol] if is_service_label(port) && is_service_label(protocol) => {
            let (port, protocol) = (&port[1..], &protocol[1..]);
            let answer =
                srv(origin, service, name, |found, transport| found == port && transport == protocol);
            match (answer.found, kind) {
                (Found::NoData, _) => Answer::no_name(),
                (_, RecordType::SRV | RecordType::ANY) => answer,
                _ => Answer::of(Vec::new()),
            }
        }
        [protocol] if is_service_label(protocol) => {
            let exists = named_ports(service).any(|(_, transport)| **transport == protocol[1..]);
            if exists { Answer::of(Vec::new()) } else { Answer::no_name() }
        }
        [label] => match service.endpoints.get(*label) {
            Some(endpoint) if kind == RecordType::SRV => endpoint_srv(origin, service, endpoint, name),
            Some(endpoint) => Answer::of(origin.addresses(name, &endpoint.ips, kind)),
            None => Answer::no_name(),
        },
        _ => Answer::no_name(),
    }
}

fn is_service_label(label: &str) -> bool {
    label.len() > 1 && label.starts_with('_')
}

fn named_ports(service: &Service) -> impl Iterator<Item = (&String, &&'static str)> {
    let ports: Box<dyn Iterator<Item = &(String, &'static str, u16)>> = match service.target {
        Target::Headless => Box::new(service.endpoints.values().flat_map(|endpoint| &endpoint.ports)),
        _ => Box::new(service.ports.iter()),
    };
    ports.filter(|(name, _, _)| !name.is_empty()).map(|(name, transport, _)| (name, transport))
}

/// SRV records of the ports that `wanted` picks: one per port, for a headless Service one per port and endpoint.
fn srv(origin: &Origin, service: &Service, name: &Name, wanted: impl Fn(&str, &str) -> bool) -> Answer {
    let mut targets: Vec<(u16, Name, Vec<IpAddr>)> = Vec::new();
    match &service.target {
        Target::Cluster(ips) => {
            let target = service_name(origin, service);
            let ports = service.ports.iter().filter(|(port, transport, _)| wanted(port, transport));
            targets.extend(ports.map(|(_, _, number)| (*number, target.clone(), ips.clone())));
        }
        Target::Headless => {
            for endpoint in service.endpoints.values() {
                let target = endpoint_name(origin, service, &endpoint.label);
                let ports = endpoint.ports.iter().filter(|(port, transport, _)| wanted(port, transport));
                targets.extend(ports.map(|(_, _, number)| (*number, target.clone(), endpoint.ips.clone())));
            }
        }
        Target::External(_) => {}
    }
    srv_records(origin, name, targets)
}

fn endpoint_srv(origin: &Origin, service: &Service, endpoint: &Endpoint, name: &Name) -> Answer {
    let target = endpoint_name(origin, service, &endpoint.label);
    let targets = endpoint.ports.iter().map(|(_, _, number)| (*number, target.clone(), endpoint.ips.clone()));
    srv_records(origin, name, targets.collect())
}

fn srv_records(origin: &Origin, name: &Name, targets: Vec<(u16, Name, Vec<IpAddr>)>) -> Answer {
    // Equal shares of 100, as CoreDNS gives them.
    let weight = u16::try_from((100 / targets.len().max(1)).max(1)).unwrap_or(1);
    let mut seen = BTreeSet::new();
    let (mut records, mut additionals) = (Vec::new(), Vec::new());
    for (port, target, ips) in targets {
        if seen.insert(target.clone()) {
            additionals.extend(origin.addresses(&target, &ips, RecordType::ANY));
        }
        records.push(origin.record(name, RData::SRV(SRV::new(0, weight, port, target))));
    }
    Answer { additionals, ..Answer::of(records) }
}

fn external(origin: &Origin, target: &str, name: &Name, kind: RecordType) -> Answer {
    let Ok(mut target) = Name::from_utf8(target) else {
        return Answer::of(Vec::new());
    };
    target.set_fqdn(true);
    let mut answer = Answer::of(vec![origin.record(name, RData::CNAME(CNAME(target.clone())))]);
    if kind != RecordType::CNAME {
        answer.alias = Some(target);
    }
    answer
}

#[cfg(test)]
mod tests {
    use orlop_kube::Key;
    use orlop_kube::network::{self as kube, Protocol};

    use super::*;

    fn key(name: &str) -> Key {
        Key { namespace: "ns".into(), name: name.into() }
    }

    fn service(change: impl FnOnce(&mut kube::Service)) -> kube::Service {
        let mut service = kube::Service {
            kind: "ClusterIP".into(),
            cluster_ips: vec!["10.96.0.7".parse().unwrap(), "fd00::7".parse().unwrap()],
            ports: vec![
                kube::ServicePort {
                    name: "http".into(),
                    protocol: Protocol::Tcp,
                    port: 80,
                    node_port: 0,
                    target_port: None,
                },
                kube::ServicePort {
                    name: String::new(),
                    protocol: Protocol::Udp,
                    port: 53,
                    node_port: 0,
                    target_port: None,
                },
            ],
            ..kube::Service::default()
        };
        change(&mut service);
        service
    }

    fn endpoint(ip: &str, hostname: Option<&str>, ready: bool) -> kube::Endpoint {
        kube::Endpoint {
            addresses: vec![ip.parse().unwrap()],
            ready,
            serving: ready,
            terminating: false,
            hostname: hostname.map(str::to_owned),
            node: None,
        }
    }

    fn slice(service: &str, endpoints: Vec<kube::Endpoint>) -> kube::EndpointSlice {
        kube::EndpointSlice {
            service: service.into(),
            endpoints,
            ports: vec![kube::EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
        }
    }

    fn headless(service: &mut kube::Service) {
        service.headless = true;
        service.cluster_ips.clear();
    }

    fn zone() -> Zone {
        let services = [
            (key("web"), service(|_| {})),
            (key("db"), service(headless)),
            (key("empty"), service(headless)),
            (
                key("eager"),
                service(|service| {
                    headless(service);
                    service.publish_not_ready = true;
                }),
            ),
            (
                key("out"),
                service(|service| {
                    service.kind = "ExternalName".into();
                    service.external_name = Some("example.com".into());
                }),
            ),
        ];
        let slices = [
            (key("web-1"), slice("web", vec![endpoint("10.244.0.9", None, true)])),
            (
                key("db-1"),
                slice(
                    "db",
                    vec![
                        endpoint("10.244.0.3", Some("db-0"), true),
                        endpoint("10.244.0.4", None, true),
                        endpoint("10.244.0.5", Some("db-2"), false),
                    ],
                ),
            ),
            (key("eager-1"), slice("eager", vec![endpoint("10.244.0.6", None, false)])),
        ];
        let services = services.iter().map(|(key, service)| (key, service));
        Zone::build(services, slices.iter().map(|(key, slice)| (key, slice)), 7)
    }

    fn origin() -> Origin {
        Origin {
            name: Name::from_ascii("cluster.local.").unwrap(),
            ttl_seconds: 5,
            servers: vec!["10.96.0.10".parse().unwrap()],
        }
    }

    fn show(answer: &Answer) -> String {
        let mut records: Vec<_> = answer.records.iter().map(|record| record.data.to_string()).collect();
        records.sort();
        match answer.found {
            Found::Records => records.join(" | "),
            found => format!("{found:?}"),
        }
    }

    #[test]
    fn golden_queries() {
        use RecordType as T;
        let (zone, origin) = (zone(), origin());
        for (name, kind, expected) in [
            ("", T::A, "NoData"),
            ("", T::NS, "ns.dns.cluster.local."),
            ("ns.dns", T::A, "10.96.0.10"),
            ("dns-version", T::TXT, "1.1.0"),
            ("dns-version", T::A, "NoData"),
            ("svc", T::A, "NoData"),
            ("ns.svc", T::A, "NoData"),
            ("other.svc", T::A, "NoName"),
            ("web.ns.svc", T::A, "10.96.0.7"),
            ("WEB.Ns.SVC", T::A, "10.96.0.7"),
            ("web.ns.svc", T::AAAA, "fd00::7"),
            ("web.ns.svc", T::MX, "NoData"),
            ("web.ns.svc", T::SRV, "0 50 53 web.ns.svc.cluster.local. | 0 50 80 web.ns.svc.cluster.local."),
            ("_http._tcp.web.ns.svc", T::SRV, "0 100 80 web.ns.svc.cluster.local."),
            ("_HTTP._TCP.web.ns.svc", T::SRV, "0 100 80 web.ns.svc.cluster.local."),
            ("_http._tcp.web.ns.svc", T::A, "NoData"),
            ("_http._udp.web.ns.svc", T::SRV, "NoName"),
            ("_tcp.web.ns.svc", T::A, "NoData"),
            ("_sctp.web.ns.svc", T::A, "NoName"),
            ("10-244-0-9.web.ns.svc", T::A, "10.244.0.9"),
            ("a.b.c.web.ns.svc", T::A, "NoName"),
            ("none.ns.svc", T::A, "NoName"),
            ("db.ns.svc", T::A, "10.244.0.3 | 10.244.0.4"),
            ("db.ns.svc", T::AAAA, "NoData"),
            ("db-0.db.ns.svc", T::A, "10.244.0.3"),
            ("10-244-0-4.db.ns.svc", T::A, "10.244.0.4"),
            ("db-2.db.ns.svc", T::A, "NoName"),
            (
                "_http._tcp.db.ns.svc",
                T::SRV,
                "0 50 8080 10-244-0-4.db.ns.svc.cluster.local. | 0 50 8080 db-0.db.ns.svc.cluster.local.",
            ),
            ("empty.ns.svc", T::A, "NoName"),
            ("eager.ns.svc", T::A, "10.244.0.6"),
            ("out.ns.svc", T::CNAME, "example.com."),
            ("out.ns.svc", T::A, "example.com."),
            ("x.out.ns.svc", T::A, "NoName"),
            ("pod", T::A, "NoData"),
            ("ns.pod", T::A, "NoData"),
            ("10-244-0-9.ns.pod", T::A, "10.244.0.9"),
            ("10-244-0-9.ns.pod", T::AAAA, "NoData"),
            ("fd00--9.ns.pod", T::AAAA, "fd00::9"),
            ("10-244-0.ns.pod", T::A, "NoName"),
            ("nothing", T::A, "NoName"),
        ] {
            let name = Name::from_ascii(if name.is_empty() {
                "cluster.local.".to_owned()
            } else {
                format!("{name}.cluster.local.")
            })
            .unwrap();
            assert_eq!(show(&zone.answer(&origin, &name, kind)), expected, "{name} {kind}");
        }
    }

    #[test]
    fn golden_reverse() {
        let (zone, origin) = (zone(), origin());
        let name = Name::root();
        for (ip, expected) in [
            ("10.96.0.7", Some("web.ns.svc.cluster.local.")),
            ("fd00::7", Some("web.ns.svc.cluster.local.")),
            ("10.244.0.3", Some("db-0.db.ns.svc.cluster.local.")),
            ("10.244.0.9", Some("10-244-0-9.web.ns.svc.cluster.local.")),
            ("10.244.0.5", None),
            ("1.2.3.4", None),
        ] {
            let answer = zone.reverse(&origin, ip.parse().unwrap(), &name, RecordType::PTR);
            assert_eq!(answer.as_ref().map(show).as_deref(), expected, "{ip}");
        }
    }

    #[test]
    fn srv_brings_addresses_and_soa_ends_negative_answers() {
        let (zone, origin) = (zone(), origin());
        let name = Name::from_ascii("_http._tcp.db.ns.svc.cluster.local.").unwrap();
        let answer = zone.answer(&origin, &name, RecordType::SRV);
        assert_eq!(answer.additionals.len(), 2);
        let soa = origin.soa(zone.serial);
        assert_eq!(
            soa.data.to_string(),
            "ns.dns.cluster.local. hostmaster.cluster.local. 7 7200 1800 86400 5"
        );
        let name = Name::from_ascii("out.ns.svc.cluster.local.").unwrap();
        assert_eq!(zone.answer(&origin, &name, RecordType::A).alias.unwrap().to_ascii(), "example.com.");
    }

    #[test]
    fn dashed_labels_begin_and_end_well() {
        for (ip, label) in [("10.0.0.1", "10-0-0-1"), ("::1", "0--1"), ("fd00::", "fd00--0"), ("::", "0--0")]
        {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(super::super::zone::dashed(ip), label);
            assert_eq!(undashed(label), Some(ip));
        }
    }
}
