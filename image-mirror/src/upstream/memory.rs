//! What upstreams said lately, so that they are not asked again for a while. In memory: after a restart each is asked once. Pure.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use orlop_distribution::client::RegistryError as ClientError;
use orlop_types::Digest;

/// Answers that are remembered. Beyond, refusals are forgotten first: who asks for names that nobody has must not cost the tags in use.
const NOTE_LIMIT: usize = 16_384;

/// Answers by what was asked for.
pub(crate) struct Memory {
    freshness: Duration,
    refusal: Duration,
    notes: Mutex<HashMap<String, Note>>,
}

struct Note {
    until: Instant,
    said: Said,
}

#[derive(Clone, Debug)]
pub(crate) enum Said {
    /// The tag names this.
    Is(Digest),
    /// It was not given.
    Refused(ClientError),
}

impl Memory {
    /// `freshness` is how long a tag is served without asking, `refusal` how long a refusal holds.
    pub(crate) fn new(freshness: Duration, refusal: Duration) -> Self {
        Self { freshness, refusal, notes: Mutex::default() }
    }

    /// What was said of it, while that holds.
    pub(crate) fn recall(&self, what: &str, now: Instant) -> Option<Said> {
        let notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.get(what).filter(|note| note.until > now).map(|note| note.said.clone())
    }

    pub(crate) fn note(&self, what: &str, said: Said, now: Instant) {
        let lifetime = match &said {
            Said::Is(_) => self.freshness,
            Said::Refused(_) => self.refusal,
        };
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if lifetime.is_zero() {
            notes.remove(what);
            return;
        }
        if notes.len() >= NOTE_LIMIT && !notes.contains_key(what) {
            make_room(&mut notes, now);
        }
        notes.insert(what.to_owned(), Note { until: now + lifetime, said });
    }
}

/// At least a quarter becomes free, so that a full table is not gone through for each note.
fn make_room(notes: &mut HashMap<String, Note>, now: Instant) {
    let enough = NOTE_LIMIT / 4 * 3;
    notes.retain(|_, note| note.until > now);
    if notes.len() > enough {
        notes.retain(|_, note| matches!(note.said, Said::Is(_)));
    }
    if notes.len() > enough {
        notes.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing() -> Said {
        Said::Refused(ClientError::NotFound { what: "x".to_owned(), host: "r".to_owned() })
    }

    #[test]
    fn answers_hold_for_their_time() {
        let (second, start) = (Duration::from_secs(1), Instant::now());
        let memory = Memory::new(60 * second, 10 * second);
        memory.note("tag", Said::Is(Digest::sha256(b"x")), start);
        memory.note("none", missing(), start);
        for (what, after, held) in [
            ("tag", 0, true),
            ("tag", 59, true),
            ("tag", 60, false),
            ("none", 9, true),
            ("none", 10, false),
            ("other", 0, false),
        ] {
            assert_eq!(memory.recall(what, start + after * second).is_some(), held, "{what} {after}");
        }
        memory.note("none", Said::Is(Digest::sha256(b"x")), start);
        assert!(matches!(memory.recall("none", start), Some(Said::Is(_))), "the last answer counts");
    }

    #[test]
    fn nothing_is_remembered_for_no_time() {
        let (memory, now) = (Memory::new(Duration::ZERO, Duration::ZERO), Instant::now());
        memory.note("tag", Said::Is(Digest::sha256(b"x")), now);
        memory.note("none", missing(), now);
        assert!(memory.recall("tag", now).is_none() && memory.recall("none", now).is_none());
    }

    #[test]
    fn a_storm_of_misses_costs_no_tag() {
        let (memory, now) = (Memory::new(Duration::from_secs(60), Duration::from_secs(10)), Instant::now());
        memory.note("tag", Said::Is(Digest::sha256(b"x")), now);
        for number in 0..2 * NOTE_LIMIT {
            memory.note(&number.to_string(), missing(), now);
        }
        assert!(memory.recall("tag", now).is_some());
        assert!(memory.notes.lock().unwrap().len() <= NOTE_LIMIT);
    }
}
