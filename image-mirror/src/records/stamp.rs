//! When a row was last changed: hybrid logical clocks (Kulkarni et al., 2014), so that changes made at two registries have an order.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Bits of a time that count changes within a millisecond.
const COUNTER_BITS: u32 = 16;
/// How far a peer's clock may push ours ahead of the time of day; one that is wrong by more touches its own rows only.
const AHEAD_LIMIT_MS: u64 = 24 * 3_600_000;

/// Milliseconds since 1970 and a counter, then the node: the later one wins, and no two changes are equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Stamp {
    pub time: u64,
    pub node: u64,
}

impl Stamp {
    /// Milliseconds since 1970.
    pub(crate) fn ms(self) -> u64 {
        self.time >> COUNTER_BITS
    }
}

/// The clock of one registry: never behind what it gave out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    last: u64,
    node: u64,
}

impl Clock {
    pub(crate) fn new(last: u64, node: u64) -> Self {
        Self { last, node }
    }

    /// What must be remembered.
    pub(crate) fn last(self) -> u64 {
        self.last
    }

    /// A stamp later than each one so far, and than `row`, the row's last one: that may be from a clock we do not follow.
    pub(crate) fn tick(&mut self, now_ms: u64, row: Stamp) -> Stamp {
        self.last = (now_ms << COUNTER_BITS).max(self.last + 1);
        Stamp { time: self.last.max(row.time.saturating_add(1)), node: self.node }
    }

    /// Takes note of a peer's stamp: what is changed here from now on is later. False when the peer's clock is too far ahead.
    pub(crate) fn see(&mut self, stamp: Stamp, now_ms: u64) -> bool {
        let limit = now_ms.saturating_add(AHEAD_LIMIT_MS) << COUNTER_BITS;
        self.last = self.last.max(stamp.time.min(limit));
        stamp.time <= limit
    }
}

/// Milliseconds since 1970 by this machine's clock.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_whatever_the_clocks_say() {
        let mut fast = Clock::new(0, 1);
        let hour = 3_600_000;
        let never = Stamp::default();
        let first = fast.tick(10 * hour, never);
        assert!(fast.tick(10 * hour, never) > first, "two changes in one millisecond");
        let second = fast.tick(9 * hour, never);
        assert!(second > first, "a clock that is set back");
        let mut slow = Clock::new(0, 2);
        assert!(slow.see(second, 8 * hour));
        assert!(slow.tick(8 * hour, never) > second, "what was seen is earlier");
    }

    #[test]
    fn a_clock_that_is_years_ahead_is_not_followed() {
        let (day, year) = (24 * 3_600_000, 365 * 24 * 3_600_000);
        let wrong = Clock::new(0, 1).tick(year, Stamp::default());
        let mut ours = Clock::new(0, 2);
        assert!(!ours.see(wrong, day));
        let other = ours.tick(day, Stamp::default());
        assert!(other.ms() <= 2 * day, "{other:?}");
        assert!(ours.tick(day, wrong) > wrong, "its row can be changed all the same");
        assert!(ours.tick(day, Stamp::default()).ms() <= 2 * day);
    }
}
