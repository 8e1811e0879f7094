//! What was used, in memory: the disk hears of one content at most once in a while, however often it is pulled.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use orlop_types::Digest;

/// Contents that are remembered; more are written down earlier.
const LIMIT: usize = 16_384;
/// What is known of a use may be older than the use itself by this much.
const RESOLUTION_MS: u64 = 3_600_000;

#[derive(Clone, Copy)]
struct Use {
    used_ms: u64,
    written_ms: u64,
}

impl Use {
    fn is_news(self, resolution_ms: u64) -> bool {
        self.written_ms == 0 || self.used_ms > self.written_ms.saturating_add(resolution_ms)
    }
}

/// Cheap to look at: one short lock.
pub(crate) struct Uses {
    resolution_ms: u64,
    noted: Mutex<HashMap<Digest, Use>>,
}

/// What a use leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Noted {
    /// Noted lately.
    Again,
    /// The first use in a while: it is written with the others.
    New,
    /// As `New`, and there are so many that they should be written soon.
    Many,
}

impl Uses {
    /// A lease must be renewed well before it ends.
    pub(crate) fn new(lease_ms: u64) -> Self {
        Self { resolution_ms: RESOLUTION_MS.min(lease_ms / 4), noted: Mutex::default() }
    }

    fn noted(&self) -> MutexGuard<'_, HashMap<Digest, Use>> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn note(&self, digest: &Digest, now_ms: u64) -> Noted {
        let mut noted = self.noted();
        if let Some(known) = noted.get_mut(digest) {
            known.used_ms = known.used_ms.max(now_ms);
            return if known.is_news(self.resolution_ms) { Noted::New } else { Noted::Again };
        }
        if noted.len() < LIMIT {
            noted.insert(digest.clone(), Use { used_ms: now_ms, written_ms: 0 });
        }
        if noted.len() < LIMIT / 2 { Noted::New } else { Noted::Many }
    }

    /// Whether the disk knows of a use that is recent enough.
    pub(crate) fn is_written(&self, digest: &Digest, now_ms: u64) -> bool {
        let noted = self.noted();
        noted.get(digest).is_some_and(|known| now_ms <= known.written_ms.saturating_add(self.resolution_ms))
    }

    /// The last use that is remembered here.
    pub(crate) fn used_ms(&self, digest: &Digest) -> Option<u64> {
        self.noted().get(digest).map(|known| known.used_ms)
    }

    /// What is to be written, at most `limit`.
    pub(crate) fn unwritten(&self, limit: usize) -> Vec<(Digest, u64)> {
        let noted = self.noted();
        let news = noted.iter().filter(|(_, known)| known.is_news(self.resolution_ms));
        news.take(limit).map(|(digest, known)| (digest.clone(), known.used_ms)).collect()
    }

    /// Notes what was written, and forgets what says nothing any more.
    pub(crate) fn written(&self, uses: &[(Digest, u64)], now_ms: u64) {
        let mut noted = self.noted();
        for (digest, written_ms) in uses {
            if noted.len() < LIMIT || noted.contains_key(digest) {
                let known =
                    noted.entry(digest.clone()).or_insert(Use { used_ms: *written_ms, written_ms: 0 });
                known.written_ms = known.written_ms.max(*written_ms);
            }
        }
        let full = noted.len() >= LIMIT / 2;
        noted.retain(|_, known| {
            known.is_news(self.resolution_ms)
                || (!full && known.written_ms.saturating_add(self.resolution_ms) >= now_ms)
        });
    }

    /// Bytes that went take their uses along.
    pub(crate) fn forget(&self, digest: &Digest) {
        self.noted().remove(digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_write_in_a_while_however_many_uses() {
        let uses = Uses::new(u64::MAX);
        let digest = Digest::sha256(b"a");
        let hour = RESOLUTION_MS;
        assert_eq!(uses.note(&digest, 10 * hour), Noted::New);
        assert_eq!(uses.unwritten(9), [(digest.clone(), 10 * hour)]);
        uses.written(&uses.unwritten(9), 10 * hour);
        for minute in 1..60 {
            assert_eq!(uses.note(&digest, 10 * hour + minute * 60_000), Noted::Again);
        }
        assert!(uses.is_written(&digest, 11 * hour) && uses.unwritten(9).is_empty());
        assert_eq!(uses.note(&digest, 11 * hour + 1), Noted::New);
        assert!(!uses.is_written(&digest, 11 * hour + 1));
        uses.written(&uses.unwritten(9), 11 * hour + 1);
        assert!(uses.unwritten(9).is_empty());
        uses.written(&[], 13 * hour);
        assert!(uses.noted().is_empty(), "nothing is kept of what was not used for long");
    }

    #[test]
    fn memory_is_bounded() {
        let uses = Uses::new(u64::MAX);
        for number in 0..2 * LIMIT {
            uses.note(&Digest::sha256(&number.to_le_bytes()), RESOLUTION_MS * 2);
        }
        assert_eq!(uses.noted().len(), LIMIT);
        while !uses.unwritten(1000).is_empty() {
            uses.written(&uses.unwritten(1000), RESOLUTION_MS * 2);
        }
        assert!(uses.noted().len() < LIMIT / 2 + 1);
    }
}
