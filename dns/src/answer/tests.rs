use arc_swap::ArcSwap;
use hickory_proto::rr::RData;
use hickory_proto::rr::rdata::A;
use orlop_kube::Key;
use orlop_kube::network as kube;
use proptest::prelude::*;

use super::*;
use crate::model::Origin;

fn responder(is_synced: bool) -> Responder {
    let config = Config { reverse_cidrs: vec!["10.244.0.0/16".parse().unwrap()], ..Config::default() };
    let origin = Origin { name: config.origin().unwrap(), ttl_seconds: 5, servers: Vec::new() };
    let endpoints = (0..200u8).map(|number| kube::Endpoint {
        addresses: vec![format!("10.244.0.{number}").parse().unwrap()],
        ready: true,
        serving: true,
        terminating: false,
        hostname: None,
        node: None,
    });
    let key = |name: &str| Key { namespace: "d".into(), name: name.into() };
    let service = |name: Option<&str>| kube::Service {
        kind: if name.is_some() { "ExternalName" } else { "ClusterIP" }.into(),
        headless: name.is_none(),
        external_name: name.map(str::to_owned),
        ..kube::Service::default()
    };
    let services = [
        (key("big"), service(None)),
        (key("inner"), service(Some("big.d.svc.cluster.local"))),
        (key("loop"), service(Some("loop.d.svc.cluster.local"))),
        (key("outer"), service(Some("example.com"))),
    ];
    let slice = (
        key("big-1"),
        kube::EndpointSlice { service: "big".into(), endpoints: endpoints.collect(), ports: Vec::new() },
    );
    let zone = Zone::build(services.iter().map(|(key, service)| (key, service)), [(&slice.0, &slice.1)], 1);
    let metrics = Metrics::new();
    let forwarder = Forwarder::new(Arc::new(ArcSwap::from_pointee(Vec::new())), &config, metrics.clone());
    let snapshots = Snapshots::fixed(origin.clone(), is_synced.then_some(zone));
    Responder::new(origin.name, snapshots, forwarder, metrics, &config)
}

fn query(name: &str, kind: RecordType, payload: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

fn client() -> IpAddr {
    IpAddr::from([127, 0, 0, 1])
}

fn answer(responder: &Responder, bytes: &[u8], transport: Transport) -> (Message, usize) {
    match responder.step(bytes, transport, client()) {
        Step::Answer(bytes) => (Message::from_vec(&bytes).unwrap(), bytes.len()),
        Step::Forward(_) => panic!("forwarded"),
        Step::Drop => panic!("dropped"),
    }
}

#[test]
fn before_the_watches_are_synced_it_is_servfail() {
    let responder = responder(false);
    for name in ["big.d.svc.cluster.local.", "nothing.cluster.local.", "1.0.244.10.in-addr.arpa."] {
        let (message, _) = answer(&responder, &query(name, RecordType::A, None), Transport::Udp);
        assert_eq!(message.metadata.response_code, ResponseCode::ServFail, "{name}");
    }
}

#[test]
fn answers_fit_the_client() {
    let responder = responder(true);
    let name = "BIG.d.svc.cluster.local.";
    for (payload, transport, limit, is_cut) in [
        (None, Transport::Udp, 512, true),
        (Some(100), Transport::Udp, 512, true),
        (Some(4096), Transport::Udp, 1232, true),
        (None, Transport::Tcp, 65_535, false),
    ] {
        let (message, length) = answer(&responder, &query(name, RecordType::A, payload), transport);
        assert!(length <= limit, "{length} > {limit}");
        assert_eq!(message.metadata.truncation, is_cut);
        assert!(!message.answers.is_empty() && (is_cut || message.answers.len() == 200));
        assert_eq!(message.edns.is_some(), payload.is_some());
        assert_eq!(message.queries[0].name().to_ascii(), name);
        assert!(message.metadata.authoritative && message.metadata.id == 77);
    }
}

#[test]
fn aliases_are_followed_inside_and_out_and_never_for_ever() {
    let responder = responder(true);
    let ask = |name: &str, kind| answer(&responder, &query(name, kind, None), Transport::Tcp).0;
    let inner = ask("inner.d.svc.cluster.local.", RecordType::A);
    assert_eq!(inner.answers.len(), 201);
    assert_eq!(inner.answers[0].record_type(), RecordType::CNAME);
    assert_eq!(
        ask("loop.d.svc.cluster.local.", RecordType::A).metadata.response_code,
        ResponseCode::ServFail
    );
    assert_eq!(ask("outer.d.svc.cluster.local.", RecordType::CNAME).answers.len(), 1);
    let bytes = query("outer.d.svc.cluster.local.", RecordType::A, None);
    assert!(matches!(responder.step(&bytes, Transport::Udp, client()), Step::Forward(_)));
}

#[test]
fn negative_answers_have_a_soa_and_reverse_names_stay_inside() {
    let responder = responder(true);
    for (name, kind, code) in [
        ("none.cluster.local.", RecordType::A, ResponseCode::NXDomain),
        ("big.d.svc.cluster.local.", RecordType::MX, ResponseCode::NoError),
        ("9.9.244.10.in-addr.arpa.", RecordType::PTR, ResponseCode::NXDomain),
    ] {
        let (message, _) = answer(&responder, &query(name, kind, None), Transport::Udp);
        assert_eq!(message.metadata.response_code, code, "{name}");
        assert_eq!(message.authorities[0].record_type(), RecordType::SOA, "{name}");
    }
    let (message, _) =
        answer(&responder, &query("7.0.244.10.in-addr.arpa.", RecordType::PTR, None), Transport::Udp);
    assert_eq!(message.answers[0].data.to_string(), "10-244-0-7.big.d.svc.cluster.local.");
    let bytes = query("1.1.1.1.in-addr.arpa.", RecordType::PTR, None);
    assert!(matches!(responder.step(&bytes, Transport::Udp, client()), Step::Forward(_)));
}

#[tokio::test]
async fn without_upstreams_other_names_are_servfail() {
    let responder = responder(true);
    let Step::Forward(pending) =
        responder.step(&query("example.com.", RecordType::A, None), Transport::Udp, client())
    else {
        panic!("not forwarded")
    };
    let message = Message::from_vec(&responder.finish(*pending).await).unwrap();
    assert_eq!(message.metadata.response_code, ResponseCode::ServFail);
}

#[test]
fn what_is_no_query_is_refused_or_dropped() {
    let responder = responder(true);
    let code = |bytes: &[u8]| answer(&responder, bytes, Transport::Udp).0.metadata.response_code;
    let plain = query("big.d.svc.cluster.local.", RecordType::A, None);
    let mut response = plain.clone();
    response[2] |= 0x80;
    assert!(matches!(responder.step(&response, Transport::Udp, client()), Step::Drop));
    assert!(matches!(responder.step(&plain[..11], Transport::Udp, client()), Step::Drop));
    assert_eq!(code(&plain[..14]), ResponseCode::FormErr);
    let mut update = plain.clone();
    update[2] |= 5 << 3;
    assert!(matches!(code(&update), ResponseCode::NotImp | ResponseCode::FormErr));
    assert_eq!(code(&query("cluster.local.", RecordType::AXFR, None)), ResponseCode::Refused);
    let mut future = Message::from_vec(&query("cluster.local.", RecordType::SOA, Some(1232))).unwrap();
    future.edns.as_mut().unwrap().set_version(1);
    let (message, _) = answer(&responder, &future.to_vec().unwrap(), Transport::Udp);
    assert_eq!(message.edns.unwrap().rcode_high(), 1);
}

#[test]
fn reverse_names_parse() {
    let ip = |name: &str| reverse_ip(&Name::from_ascii(name).unwrap());
    assert_eq!(ip("4.3.2.1.IN-ADDR.arpa."), Some("1.2.3.4".parse().unwrap()));
    assert_eq!(ip("3.2.1.in-addr.arpa."), None);
    assert_eq!(ip("x.3.2.1.in-addr.arpa."), None);
    let nibbles = "1.".to_owned() + &"0.".repeat(27) + "0.0.d.f.ip6.arpa.";
    assert_eq!(ip(&nibbles), Some("fd00::1".parse().unwrap()));
}

#[test]
fn an_answer_that_fits_exactly_is_whole() {
    let mut message = Message::response(1, OpCode::Query);
    message.add_answers(
        (0..40).map(|number| Record::from_rdata(Name::root(), 1, RData::A(A::new(1, 1, 1, number)))),
    );
    let whole = message.to_vec().unwrap().len();
    assert_eq!(fit(message.clone(), whole).unwrap().len(), whole);
    let cut = Message::from_vec(&fit(message, whole - 1).unwrap()).unwrap();
    assert!(cut.metadata.truncation && cut.answers.len() == 39);
}

proptest! {
    /// Hostile bytes: no panic, and an answer, if any, within bounds and to the same id.
    #[test]
    fn hostile_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        check_hostile(&bytes)?;
    }

    /// The same with a valid query that was damaged.
    #[test]
    fn damaged_queries(position in 0usize..50, value in any::<u8>(), cut in 0usize..60) {
        let mut bytes = query("_http._tcp.big.d.svc.cluster.local.", RecordType::SRV, Some(1232));
        let length = bytes.len();
        bytes[position % length] = value;
        bytes.truncate(length.saturating_sub(cut % length));
        check_hostile(&bytes)?;
    }
}

thread_local! {
    static RESPONDER: Responder = responder(true);
}

fn check_hostile(bytes: &[u8]) -> Result<(), TestCaseError> {
    RESPONDER.with(|responder| {
        if let Step::Answer(answer) = responder.step(bytes, Transport::Udp, client()) {
            prop_assert!(answer.len() <= 1232 && answer[..2] == bytes[..2]);
        }
        Ok(())
    })
}
