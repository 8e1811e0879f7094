//! One query: decode, choose who answers, encode within the client's limits.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use ipnet::IpNet;
use rand::seq::SliceRandom as _;

use crate::Config;
use crate::cache::Question;
use crate::forward::{ForwardError, Forwarder};
use crate::metrics::{CLUSTER_ZONE, Metrics, OTHER_ZONE};
use crate::model::{Answer, Found, Zone};
use crate::snapshot::Snapshots;

const HEADER_BYTES: usize = 12;
/// What an answer over UDP may take without EDNS, and at most with it.
const UDP_BYTES: usize = 512;
const UDP_BYTES_EDNS: u16 = 1232;
/// CNAMEs followed inside the zone for one query.
const ALIASES: usize = 8;

/// How a query came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// What is to be done with a query.
pub(crate) enum Step {
    /// Not a query: no answer.
    Drop,
    /// The answer.
    Answer(Vec<u8>),
    /// It has to be asked for upstream.
    Forward(Box<Pending>),
}

/// A query that waits for upstream.
pub(crate) struct Pending {
    frame: Frame,
    question: Question,
}

/// What the answer needs of the query.
struct Frame {
    query: Message,
    transport: Transport,
    /// CNAMEs of the zone in front of the answer from upstream.
    aliases: Vec<Record>,
    zone: &'static str,
    started: Instant,
}

/// Shared by all sockets.
pub(crate) struct Responder {
    origin: Name,
    snapshots: Snapshots,
    forwarder: Forwarder,
    metrics: Metrics,
    reverse_cidrs: Vec<IpNet>,
}

impl Responder {
    pub(crate) fn new(
        origin: Name,
        snapshots: Snapshots,
        forwarder: Forwarder,
        metrics: Metrics,
        config: &Config,
    ) -> Self {
        Self { origin, snapshots, forwarder, metrics, reverse_cidrs: config.reverse_cidrs.clone() }
    }

    /// Decodes a query and answers it if that needs nobody else.
    pub(crate) fn step(&self, bytes: &[u8], transport: Transport, client: IpAddr) -> Step {
        let started = Instant::now();
        // Never answer an answer: two servers would talk for ever.
        if bytes.len() < HEADER_BYTES || bytes[2] & 0x80 != 0 {
            return Step::Drop;
        }
        let query = match Message::from_vec(bytes) {
            Ok(query) => query,
            Err(error) => {
                tracing::debug!(%client, %error, "malformed query");
                return self.malformed(bytes, transport, started);
            }
        };
        let frame = Frame { query, transport, aliases: Vec::new(), zone: OTHER_ZONE, started };
        if frame.query.metadata.op_code != OpCode::Query {
            return self.fail(frame, ResponseCode::NotImp);
        }
        let [asked] = frame.query.queries.as_slice() else {
            return self.fail(frame, ResponseCode::FormErr);
        };
        if frame.query.edns.as_ref().is_some_and(|edns| edns.version() != 0) {
            return self.fail(frame, ResponseCode::BADVERS);
        }
        let asked = asked.clone();
        let proto = if transport == Transport::Udp { "udp" } else { "tcp" };
        let zone = if self.origin.zone_of(asked.name()) { CLUSTER_ZONE } else { OTHER_ZONE };
        self.metrics.request(zone, proto, client.is_ipv6(), type_label(asked.query_type()));
        self.route(Frame { zone, ..frame }, &asked)
    }

    /// Asks upstream and answers.
    pub(crate) async fn finish(&self, pending: Pending) -> Vec<u8> {
        let Pending { frame, question } = pending;
        match self.forwarder.resolve(&question).await {
            Ok(message) => self.relay(frame, message),
            Err(error) => {
                if matches!(error, ForwardError::Busy) {
                    tracing::debug!(name = %question.name, %error, "not forwarded");
                }
                self.failure(frame, ResponseCode::ServFail)
            }
        }
    }

    fn route(&self, frame: Frame, asked: &Query) -> Step {
        let kind = asked.query_type();
        if asked.query_class() != DNSClass::IN && asked.query_class() != DNSClass::ANY {
            return if frame.zone == CLUSTER_ZONE {
                self.fail(frame, ResponseCode::Refused)
            } else {
                self.forward(frame, asked.name(), kind, asked.query_class())
            };
        }
        if matches!(kind, RecordType::AXFR | RecordType::IXFR) {
            return self.fail(frame, ResponseCode::Refused);
        }
        let reverse = reverse_ip(asked.name());
        if frame.zone == CLUSTER_ZONE || reverse.is_some() {
            let Some(zone) = self.snapshots.current() else {
                return self.fail(frame, ResponseCode::ServFail);
            };
            if let Some(ip) = reverse {
                return self.route_reverse(frame, asked, &zone, ip);
            }
            let answer = zone.answer(&self.snapshots.origin, asked.name(), kind);
            return self.conclude(frame, answer, &zone, kind);
        }
        self.forward(frame, asked.name(), kind, asked.query_class())
    }

    fn route_reverse(&self, mut frame: Frame, asked: &Query, zone: &Arc<Zone>, ip: IpAddr) -> Step {
        let kind = asked.query_type();
        if let Some(answer) = zone.reverse(&self.snapshots.origin, ip, asked.name(), kind) {
            frame.zone = CLUSTER_ZONE;
            return self.conclude(frame, answer, zone, kind);
        }
        if self.reverse_cidrs.iter().any(|cidr| cidr.contains(&ip)) {
            frame.zone = CLUSTER_ZONE;
            return self.fail(frame, ResponseCode::NXDomain);
        }
        self.forward(frame, asked.name(), kind, asked.query_class())
    }

    /// Follows CNAMEs of the zone; one that leads out is resolved upstream.
    fn conclude(&self, mut frame: Frame, answer: Answer, zone: &Zone, kind: RecordType) -> Step {
        let mut answer = answer;
        for _ in 0..ALIASES {
            let Some(target) = answer.alias.take() else { break };
            frame.aliases.append(&mut answer.records);
            if !self.origin.zone_of(&target) {
                return self.forward(frame, &target, kind, DNSClass::IN);
            }
            answer = zone.answer(&self.snapshots.origin, &target, kind);
        }
        if answer.alias.is_some() {
            return self.fail(frame, ResponseCode::ServFail);
        }
        let mut message = self.reply(&frame);
        message.metadata.authoritative = true;
        // The status is that of the last name of a chain (RFC 6604).
        message.metadata.response_code =
            if answer.found == Found::NoName { ResponseCode::NXDomain } else { ResponseCode::NoError };
        if answer.found != Found::Records {
            message.add_authority(self.snapshots.origin.soa(zone.serial));
        }
        answer.records.shuffle(&mut rand::rng());
        message.answers = std::mem::take(&mut frame.aliases);
        message.answers.append(&mut answer.records);
        message.additionals = answer.additionals;
        Step::Answer(self.encode(&frame, message))
    }

    fn forward(&self, frame: Frame, name: &Name, kind: RecordType, class: DNSClass) -> Step {
        let question = Question {
            name: name.to_lowercase(),
            kind,
            class,
            wants_dnssec: frame.query.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok),
            checking_disabled: frame.query.metadata.checking_disabled,
        };
        Step::Forward(Box::new(Pending { frame, question }))
    }

    fn relay(&self, mut frame: Frame, upstream: Message) -> Vec<u8> {
        let mut message = self.reply(&frame);
        message.metadata.response_code = upstream.metadata.response_code;
        message.metadata.authentic_data = upstream.metadata.authentic_data;
        message.metadata.truncation = upstream.metadata.truncation;
        // The client's spelling of the name comes back (0x20 clients compare it).
        let asked = frame.query.queries.first().map(|asked| asked.name().clone());
        message.answers = std::mem::take(&mut frame.aliases);
        let aliased = !message.answers.is_empty();
        message.answers.extend(upstream.answers.into_iter().map(|mut record| {
            if let Some(asked) = asked.as_ref().filter(|asked| !aliased && **asked == record.name) {
                record.name = asked.clone();
            }
            record
        }));
        message.authorities = upstream.authorities;
        message.additionals = upstream.additionals;
        self.encode(&frame, message)
    }

    fn reply(&self, frame: &Frame) -> Message {
        let asked = &frame.query.metadata;
        let mut message = Message::response(asked.id, asked.op_code);
        message.metadata.recursion_desired = asked.recursion_desired;
        message.metadata.recursion_available = true;
        message.metadata.checking_disabled = asked.checking_disabled;
        message.add_queries(frame.query.queries.iter().cloned());
        if let Some(edns) = &frame.query.edns {
            let mut own = Edns::new();
            own.set_max_payload(UDP_BYTES_EDNS).set_version(0).set_dnssec_ok(edns.flags().dnssec_ok);
            message.set_edns(own);
        }
        message
    }

    fn fail(&self, frame: Frame, code: ResponseCode) -> Step {
        Step::Answer(self.failure(frame, code))
    }

    fn failure(&self, mut frame: Frame, code: ResponseCode) -> Vec<u8> {
        let mut message = self.reply(&frame);
        message.metadata.response_code = code;
        if code == ResponseCode::NXDomain {
            message.metadata.authoritative = true;
            let serial = self.snapshots.current().map_or(0, |zone| zone.serial);
            message.add_authority(self.snapshots.origin.soa(serial));
        }
        if let (Some(edns), true) = (message.edns.as_mut(), code == ResponseCode::BADVERS) {
            edns.set_rcode_high(code.high());
        }
        message.answers = std::mem::take(&mut frame.aliases);
        self.encode(&frame, message)
    }

    /// Only the id and the opcode of what could not be decoded are known.
    fn malformed(&self, bytes: &[u8], transport: Transport, started: Instant) -> Step {
        let id = u16::from_be_bytes([bytes[0], bytes[1]]);
        let query = Message::new(id, MessageType::Query, OpCode::Query);
        let frame = Frame { query, transport, aliases: Vec::new(), zone: OTHER_ZONE, started };
        self.fail(frame, ResponseCode::FormErr)
    }

    fn encode(&self, frame: &Frame, message: Message) -> Vec<u8> {
        let limit = match (frame.transport, &frame.query.edns) {
            (Transport::Tcp, _) => usize::from(u16::MAX),
            (Transport::Udp, Some(edns)) => {
                usize::from(edns.max_payload().min(UDP_BYTES_EDNS)).max(UDP_BYTES)
            }
            (Transport::Udp, None) => UDP_BYTES,
        };
        let code = message.metadata.response_code;
        self.metrics.response(frame.zone, rcode_label(code), frame.started.elapsed());
        match fit(message, limit) {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::warn!(%error, "failed to encode an answer");
                let id = frame.query.metadata.id;
                let failure = Message::error_msg(id, OpCode::Query, ResponseCode::ServFail);
                failure.to_vec().unwrap_or_default()
            }
        }
    }
}

/// Leaves out what does not fit: first the additional section, which nobody must have, then answers from the end, with TC set
/// (RFC 2181, 9). Some answers are better than none for clients that never ask again over TCP.
fn fit(mut message: Message, limit: usize) -> Result<Vec<u8>, hickory_proto::ProtoError> {
    let bytes = message.to_vec()?;
    if bytes.len() <= limit {
        return Ok(bytes);
    }
    message.additionals.clear();
    let bytes = message.to_vec()?;
    if bytes.len() <= limit {
        return Ok(bytes);
    }
    message.metadata.truncation = true;
    let answers = std::mem::take(&mut message.answers);
    message.authorities.clear();
    let mut best = message.to_vec()?;
    let (mut fits, mut too_many) = (0, answers.len() + 1);
    while too_many - fits > 1 {
        let middle = usize::midpoint(fits, too_many);
        message.answers = answers[..middle].to_vec();
        let bytes = message.to_vec()?;
        if bytes.len() <= limit {
            (fits, best) = (middle, bytes);
        } else {
            too_many = middle;
        }
    }
    Ok(best)
}

/// The address of a whole reverse name (`d.c.b.a.in-addr.arpa`, 32 nibbles of `ip6.arpa`).
fn reverse_ip(name: &Name) -> Option<IpAddr> {
    let labels: Vec<&[u8]> = name.iter().collect();
    let is = |label: &[u8], text: &str| label.eq_ignore_ascii_case(text.as_bytes());
    let text = |label: &[u8]| std::str::from_utf8(label).ok().map(str::to_owned);
    match labels.as_slice() {
        [d, c, b, a, domain, top] if is(domain, "in-addr") && is(top, "arpa") => {
            [*a, *b, *c, *d].into_iter().map(text).collect::<Option<Vec<_>>>()?.join(".").parse().ok()
        }
        [nibbles @ .., domain, top] if nibbles.len() == 32 && is(domain, "ip6") && is(top, "arpa") => {
            let mut bits = 0u128;
            for nibble in nibbles.iter().rev() {
                let [digit] = nibble else { return None };
                bits = bits << 4 | u128::from(char::from(*digit).to_digit(16)?);
            }
            Some(IpAddr::V6(bits.into()))
        }
        _ => None,
    }
}

fn type_label(kind: RecordType) -> &'static str {
    match kind {
        RecordType::A => "A",
        RecordType::AAAA => "AAAA",
        RecordType::CNAME => "CNAME",
        RecordType::MX => "MX",
        RecordType::NS => "NS",
        RecordType::PTR => "PTR",
        RecordType::SOA => "SOA",
        RecordType::SRV => "SRV",
        RecordType::TXT => "TXT",
        RecordType::HTTPS => "HTTPS",
        RecordType::ANY => "ANY",
        _ => "other",
    }
}

fn rcode_label(code: ResponseCode) -> String {
    match code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::FormErr => "FORMERR",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::NotImp => "NOTIMP",
        ResponseCode::Refused => "REFUSED",
        _ => "other",
    }
    .to_owned()
}

#[cfg(test)]
mod tests;
