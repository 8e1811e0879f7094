//! Remembers answers from upstream for their time to live, negative ones too (RFC 2308). Bounded; the oldest goes first.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};

/// What makes two questions the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Question {
    /// Lower case.
    pub(crate) name: Name,
    pub(crate) kind: RecordType,
    pub(crate) class: DNSClass,
    pub(crate) wants_dnssec: bool,
    pub(crate) checking_disabled: bool,
}

#[derive(Debug)]
struct Entry {
    message: Arc<Message>,
    stored: Instant,
    lifetime: Duration,
    ticket: u64,
    is_denial: bool,
}

#[derive(Debug)]
pub(crate) struct Cache {
    entries: HashMap<Question, Entry>,
    order: VecDeque<(u64, Question)>,
    ticket: u64,
    denials: usize,
    limit: usize,
    longest: Duration,
}

impl Cache {
    pub(crate) fn new(limit: usize, longest: Duration) -> Self {
        Self { entries: HashMap::new(), order: VecDeque::new(), ticket: 0, denials: 0, limit, longest }
    }

    /// The remembered answer with times to live that have run down, and whether it is a denial.
    pub(crate) fn get(&mut self, question: &Question, now: Instant) -> Option<(Message, bool)> {
        let entry = self.entries.get(question)?;
        let age = now.saturating_duration_since(entry.stored);
        if age >= entry.lifetime {
            self.remove(question);
            return None;
        }
        let seconds = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        let mut message = Message::clone(&entry.message);
        let sections = [&mut message.answers, &mut message.authorities, &mut message.additionals];
        for record in sections.into_iter().flatten() {
            record.decrement_ttl(seconds);
        }
        Some((message, entry.is_denial))
    }

    /// Remembers an answer if it may be remembered at all.
    pub(crate) fn put(&mut self, question: Question, message: &Message, now: Instant) {
        let Some((lifetime, is_denial)) = lifetime(message) else {
            return;
        };
        let lifetime = lifetime.min(self.longest);
        if lifetime.is_zero() || self.limit == 0 {
            return;
        }
        self.remove(&question);
        while self.entries.len() >= self.limit {
            let Some((ticket, oldest)) = self.order.pop_front() else {
                break;
            };
            if self.entries.get(&oldest).is_some_and(|entry| entry.ticket == ticket) {
                self.remove(&oldest);
            }
        }
        self.ticket += 1;
        let entry = Entry {
            message: Arc::new(message.clone()),
            stored: now,
            lifetime,
            ticket: self.ticket,
            is_denial,
        };
        self.denials += usize::from(is_denial);
        self.order.push_back((self.ticket, question.clone()));
        self.entries.insert(question, entry);
        // Entries that were replaced leave tickets behind.
        if self.order.len() > 2 * self.limit {
            let entries = &self.entries;
            self.order.retain(|(ticket, question)| {
                entries.get(question).is_some_and(|entry| entry.ticket == *ticket)
            });
        }
    }

    /// Successes and denials.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.entries.len() - self.denials, self.denials)
    }

    fn remove(&mut self, question: &Question) {
        if let Some(entry) = self.entries.remove(question) {
            self.denials -= usize::from(entry.is_denial);
        }
    }
}

/// How long an answer may be remembered, and whether it is a denial. `None` for failures and answers cut short.
fn lifetime(message: &Message) -> Option<(Duration, bool)> {
    if message.metadata.truncation {
        return None;
    }
    let is_denial = match message.metadata.response_code {
        ResponseCode::NoError => message.answers.is_empty(),
        ResponseCode::NXDomain => true,
        _ => return None,
    };
    let seconds = if is_denial {
        // RFC 2308, 5: the smaller of the SOA's own time to live and its minimum field.
        message.authorities.iter().find_map(|record| match &record.data {
            RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
            _ => None,
        })?
    } else {
        message.answers.iter().map(|record| record.ttl).min()?
    };
    Some((Duration::from_secs(u64::from(seconds)), is_denial))
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::OpCode;
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::{A, SOA};

    use super::*;

    fn question(number: usize) -> Question {
        Question {
            name: Name::from_ascii(format!("n{number}.example.")).unwrap(),
            kind: RecordType::A,
            class: DNSClass::IN,
            wants_dnssec: false,
            checking_disabled: false,
        }
    }

    fn answer(ttl: u32) -> Message {
        let mut message = Message::response(1, OpCode::Query);
        message.add_answer(Record::from_rdata(Name::root(), ttl, RData::A(A::new(1, 2, 3, 4))));
        message
    }

    #[test]
    fn times_to_live_run_down() {
        let (mut cache, now) = (Cache::new(10, Duration::from_secs(30)), Instant::now());
        cache.put(question(1), &answer(20), now);
        cache.put(question(2), &answer(300), now);
        cache.put(question(3), &answer(0), now);
        let later = now + Duration::from_secs(19);
        assert_eq!(cache.get(&question(1), later).unwrap().0.answers[0].ttl, 1);
        assert!(cache.get(&question(1), now + Duration::from_secs(20)).is_none());
        assert!(cache.get(&question(2), now + Duration::from_secs(30)).is_none());
        assert!(cache.get(&question(3), now).is_none());
    }

    #[test]
    fn denials_live_by_the_soa_and_failures_not_at_all() {
        let (mut cache, now) = (Cache::new(10, Duration::from_secs(30)), Instant::now());
        let mut denial = Message::response(1, OpCode::Query);
        denial.metadata.response_code = ResponseCode::NXDomain;
        cache.put(question(1), &denial, now);
        assert!(cache.get(&question(1), now).is_none());
        let soa = SOA::new(Name::root(), Name::root(), 1, 1, 1, 1, 7);
        denial.add_authority(Record::from_rdata(Name::root(), 60, RData::SOA(soa)));
        cache.put(question(1), &denial, now);
        assert!(cache.get(&question(1), now + Duration::from_secs(6)).unwrap().1);
        assert_eq!(cache.counts(), (0, 1));
        assert!(cache.get(&question(1), now + Duration::from_secs(7)).is_none());
        let mut failure = answer(60);
        failure.metadata.response_code = ResponseCode::ServFail;
        cache.put(question(2), &failure, now);
        assert!(cache.get(&question(2), now).is_none());
        assert_eq!(cache.counts(), (0, 0));
    }

    #[test]
    fn the_bound_holds() {
        let (mut cache, now) = (Cache::new(3, Duration::from_secs(30)), Instant::now());
        for round in 0..50 {
            cache.put(question(round % 7), &answer(60), now);
            assert!(cache.entries.len() <= 3 && cache.order.len() <= 7);
        }
        assert!(cache.get(&question(0), now).is_some());
    }
}
