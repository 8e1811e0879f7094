//! Tokens that were given out and not used yet: bounded, short-lived, good once.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::Wish;

/// How long a URL is good for.
pub(super) const TOKEN_LIFE: Duration = Duration::from_secs(60);
/// URLs given out and not used yet.
const WAITING_LIMIT: usize = 1000;

/// The wishes behind them.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    wishes: HashMap<String, (Instant, Wish)>,
}

impl Waiting {
    /// False when too many wait already.
    pub(super) fn add(&mut self, token: String, wish: Wish, now: Instant) -> bool {
        self.expire(now);
        if self.wishes.len() >= WAITING_LIMIT {
            return false;
        }
        self.wishes.insert(token, (now + TOKEN_LIFE, wish));
        true
    }

    /// Takes the wish behind a URL's path.
    pub(super) fn take(&mut self, path: &str, now: Instant) -> Option<Wish> {
        let (kind, token) = path.strip_prefix('/')?.split_once('/')?;
        if self.wishes.get(token)?.1.kind() != kind {
            return None;
        }
        let (until, wish) = self.wishes.remove(token)?;
        (now < until).then_some(wish)
    }

    /// Forgets what is too old.
    pub(super) fn expire(&mut self, now: Instant) {
        self.wishes.retain(|_, (until, _)| now < *until);
    }

    /// When the next one becomes too old.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.wishes.values().map(|(until, _)| *until).min()
    }

    pub(super) fn clear(&mut self) {
        self.wishes.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.wishes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish() -> Wish {
        Wish::PortForward { sandbox_id: "s".into(), ports: vec![80] }
    }

    #[test]
    fn a_token_works_once_for_its_own_kind_and_not_for_ever() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        assert!(waiting.add("t".into(), wish(), now));
        for path in ["/exec/t", "/portforward/guess", "/portforward", "portforward/t", "", "/"] {
            assert!(waiting.take(path, now).is_none(), "{path}");
        }
        assert!(waiting.take("/portforward/t", now).is_some());
        assert!(waiting.take("/portforward/t", now).is_none());
        assert!(waiting.add("t".into(), wish(), now));
        assert!(waiting.take("/portforward/t", now + TOKEN_LIFE).is_none());
    }

    #[test]
    fn the_number_is_bounded_until_they_expire() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        for number in 0..WAITING_LIMIT {
            assert!(waiting.add(number.to_string(), wish(), now));
        }
        assert!(!waiting.add("one more".into(), wish(), now));
        assert_eq!(waiting.next_expiry(), Some(now + TOKEN_LIFE));
        assert!(waiting.add("one more".into(), wish(), now + TOKEN_LIFE));
        assert_eq!(waiting.wishes.len(), 1);
    }
}
