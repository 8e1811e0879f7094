//! Between wire messages and the zone. Every byte of a query is hostile until it is decoded.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::model::{Answer, Data, Zone};

/// Largest UDP answer to a client that says it takes more: what fits the node's own links without fragments of note.
const UDP_LIMIT_BYTES: u16 = 4096;
/// Without EDNS0 (RFC 1035 4.2.1).
const UDP_PLAIN_BYTES: u16 = 512;

/// What to do with a query.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Send this.
    Answer(Message),
    /// Ask an upstream for `name`, then put what it says behind the records of `reply`.
    Forward { reply: Message, name: Name },
}

/// The decoded query, or the error message to send; `None` for bytes that deserve no answer.
pub(crate) fn decode(bytes: &[u8]) -> Result<Message, Option<Message>> {
    match Message::from_vec(bytes) {
        Ok(message) if message.metadata.message_type == MessageType::Query => Ok(message),
        // Answering an answer could go on for ever.
        Ok(_) => Err(None),
        Err(_) => {
            let [high, low, flags, ..] = bytes else { return Err(None) };
            if bytes.len() < 12 || flags & 0x80 != 0 {
                return Err(None);
            }
            Err(Some(Message::error_msg(u16::from_be_bytes([*high, *low]), OpCode::Query, ResponseCode::FormErr)))
        }
    }
}

/// Decides a query. `zone` is `None` while the watches are not synced.
pub(crate) fn decide(query: &Message, zone: Option<&Zone>, ttl_seconds: u32) -> Verdict {
    let mut reply = reply_to(query);
    if query.metadata.op_code != OpCode::Query {
        return with_code(reply, ResponseCode::NotImp);
    }
    if query.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return with_code(reply, ResponseCode::BADVERS);
    }
    let [question] = query.queries.as_slice() else { return with_code(reply, ResponseCode::FormErr) };
    if question.query_class() != DNSClass::IN {
        return with_code(reply, ResponseCode::NotImp);
    }
    if matches!(question.query_type(), RecordType::AXFR | RecordType::IXFR) {
        return with_code(reply, ResponseCode::Refused);
    }
    let Some(zone) = zone else { return with_code(reply, ResponseCode::ServFail) };
    let name = plain(question.name());
    match zone.answer(&name, |data| fits(data, question.query_type())) {
        Answer::NotOurs => {
            let name = question.name().clone();
            Verdict::Forward { reply, name }
        }
        Answer::NoSuchName => negative(reply, zone, ttl_seconds, ResponseCode::NXDomain),
        Answer::NoData => negative(reply, zone, ttl_seconds, ResponseCode::NoError),
        Answer::Outside { alias, target } => {
            reply.metadata.authoritative = true;
            reply.answers.extend(record(question, &alias, zone, ttl_seconds));
            match Name::from_ascii(format!("{target}.")) {
                Ok(name) => Verdict::Forward { reply, name },
                Err(_) => with_code(reply, ResponseCode::ServFail),
            }
        }
        Answer::Records { mut answers, mut additionals } => {
            rotate(&mut answers);
            rotate(&mut additionals);
            reply.metadata.authoritative = true;
            reply.answers.extend(answers.iter().filter_map(|data| record(question, data, zone, ttl_seconds)));
            reply.additionals.extend(additionals.iter().filter_map(|data| record(question, data, zone, ttl_seconds)));
            Verdict::Answer(reply)
        }
    }
}

/// An empty answer to `query`: same id, question and EDNS0.
pub(crate) fn reply_to(query: &Message) -> Message {
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.queries.clone_from(&query.queries);
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_LIMIT_BYTES);
        reply.edns = Some(edns);
    }
    reply
}

/// The bytes of an answer; over UDP cut to what the client takes, with TC set (RFC 2181 9).
pub(crate) fn encode(reply: &Message, query: &Message, over_udp: bool) -> Option<Vec<u8>> {
    let bytes = reply.to_vec().ok()?;
    let limit = query.edns.as_ref().map_or(UDP_PLAIN_BYTES, |edns| edns.max_payload().clamp(UDP_PLAIN_BYTES, UDP_LIMIT_BYTES));
    if !over_udp || bytes.len() <= usize::from(limit) {
        return Some(bytes);
    }
    let mut cut = reply.clone();
    cut.answers.clear();
    cut.authorities.clear();
    cut.additionals.clear();
    cut.metadata.truncation = true;
    cut.to_vec().ok()
}

pub(crate) fn with_code(mut reply: Message, code: ResponseCode) -> Verdict {
    if code == ResponseCode::BADVERS {
        if let Some(edns) = reply.edns.as_mut() {
            edns.set_rcode_high(1);
        }
    }
    reply.metadata.response_code = code;
    Verdict::Answer(reply)
}

/// Lower case, without the dot at the end.
pub(crate) fn plain(name: &Name) -> String {
    let mut text = name.to_ascii().to_ascii_lowercase();
    if text.ends_with('.') {
        text.pop();
    }
    text
}

fn fits(data: &Data, kind: RecordType) -> bool {
    let own = match data {
        Data::Address(address) if address.is_ipv4() => RecordType::A,
        Data::Address(_) => RecordType::AAAA,
        Data::Service { .. } => RecordType::SRV,
        Data::Pointer(_) => RecordType::PTR,
        Data::Alias(_) => RecordType::CNAME,
        Data::Text(_) => RecordType::TXT,
        Data::NameServer(_) => RecordType::NS,
        Data::Authority => RecordType::SOA,
    };
    own == kind || kind == RecordType::ANY
}

fn record(question: &Query, (name, data): &(String, Data), zone: &Zone, ttl_seconds: u32) -> Option<Record> {
    let owned = |text: &str| Name::from_ascii(format!("{text}.")).ok();
    let data = match data {
        Data::Address(std::net::IpAddr::V4(address)) => RData::A(A(*address)),
        Data::Address(std::net::IpAddr::V6(address)) => RData::AAAA(AAAA(*address)),
        Data::Service { weight, port, target } => RData::SRV(SRV::new(0, *weight, *port, owned(target)?)),
        Data::Pointer(target) => RData::PTR(PTR(owned(target)?)),
        Data::Alias(target) => RData::CNAME(CNAME(owned(target)?)),
        Data::Text(text) => RData::TXT(TXT::new(vec![text.clone()])),
        Data::NameServer(target) => RData::NS(NS(owned(target)?)),
        Data::Authority => RData::SOA(authority(zone, ttl_seconds)?),
    };
    // The owner in the spelling of the question: resolvers that mix case compare it (draft-vixie-dnsext-dns0x20).
    let owner = if plain(question.name()) == *name { question.name().clone() } else { owned(name)? };
    Some(Record::from_rdata(owner, ttl_seconds, data))
}

fn negative(mut reply: Message, zone: &Zone, ttl_seconds: u32, code: ResponseCode) -> Verdict {
    reply.metadata.authoritative = true;
    reply.metadata.response_code = code;
    // RFC 2308 3: the SOA says how long the "no" may be kept.
    if let (Ok(name), Some(soa)) = (Name::from_ascii(format!("{}.", zone.domain())), authority(zone, ttl_seconds)) {
        reply.authorities.push(Record::from_rdata(name, ttl_seconds, RData::SOA(soa)));
    }
    Verdict::Answer(reply)
}

fn authority(zone: &Zone, ttl_seconds: u32) -> Option<SOA> {
    let server = Name::from_ascii(format!("ns.dns.{}.", zone.domain())).ok()?;
    let mailbox = Name::from_ascii(format!("hostmaster.{}.", zone.domain())).ok()?;
    Some(SOA::new(server, mailbox, 1, 7200, 1800, 86_400, ttl_seconds))
}

/// Clients take the first address: everyone gets another one.
fn rotate<T>(records: &mut [T]) {
    if records.len() > 1 {
        let by = rand::random_range(0..records.len());
        records.rotate_left(by);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn query(name: &str, kind: RecordType) -> Message {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message
    }

    fn answer(query: &Message, zone: Option<&Zone>) -> Message {
        match decide(query, zone, 5) {
            Verdict::Answer(message) => message,
            Verdict::Forward { .. } => panic!("forwarded"),
        }
    }

    fn zone() -> Zone {
        crate::model::build("cluster.local", &["10.96.0.10".parse().unwrap()], &[])
    }

    #[test]
    fn not_synced_is_servfail_and_unknown_is_nxdomain_with_soa() {
        let question = query("a.default.svc.cluster.local.", RecordType::A);
        assert_eq!(answer(&question, None).metadata.response_code, ResponseCode::ServFail);
        let reply = answer(&question, Some(&zone()));
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(reply.authorities[0].record_type(), RecordType::SOA);
    }

    #[test]
    fn case_of_the_question_is_kept() {
        let reply = answer(&query("NS.dns.Cluster.LOCAL.", RecordType::A), Some(&zone()));
        assert_eq!(reply.answers[0].name.to_ascii(), "NS.dns.Cluster.LOCAL.");
    }

    #[test]
    fn other_names_are_forwarded_and_transfers_refused() {
        let zone = zone();
        assert!(matches!(decide(&query("example.org.", RecordType::A), Some(&zone), 5), Verdict::Forward { .. }));
        let transfer = answer(&query("cluster.local.", RecordType::AXFR), Some(&zone));
        assert_eq!(transfer.metadata.response_code, ResponseCode::Refused);
    }

    #[test]
    fn long_answers_over_udp_are_cut() {
        let question = query("cluster.local.", RecordType::TXT);
        let mut reply = reply_to(&question);
        for _ in 0..40 {
            let text = RData::TXT(TXT::new(vec!["x".repeat(100)]));
            reply.answers.push(Record::from_rdata(Name::from_ascii("cluster.local.").unwrap(), 5, text));
        }
        let bytes = encode(&reply, &question, true).unwrap();
        let cut = Message::from_vec(&bytes).unwrap();
        assert!(bytes.len() <= 512 && cut.metadata.truncation && cut.answers.is_empty());
        assert!(encode(&reply, &question, false).unwrap().len() > 4000);
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(query) = decode(&bytes) {
                let zone = zone();
                if let Verdict::Answer(reply) = decide(&query, Some(&zone), 5) {
                    let _ = encode(&reply, &query, true);
                }
            }
        }
    }
}
