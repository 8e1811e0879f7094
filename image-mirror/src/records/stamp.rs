//! When a row was last changed, so that two halves of a pair agree on the winner: hybrid logical clocks (Kulkarni et al., 2014).

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Bits of a time that count changes within a millisecond.
const COUNTER_BITS: u32 = 16;
/// A stamp that is further ahead is refused: one half with a clock years ahead would win for years.
const AHEAD_LIMIT_MS: u64 = 24 * 3600 * 1000;

/// Milliseconds since 1970 and a counter, then the node: the later one wins, and no two changes are equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Stamp {
    pub time: u64,
    pub node: u64,
}

impl Stamp {
    /// Milliseconds since 1970.
    pub(crate) fn millis(self) -> u64 {
        self.time >> COUNTER_BITS
    }
}

/// A stamp from a clock that cannot be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a change is {ahead_hours} hours ahead of this clock: set the clock of the half that made it")]
pub(crate) struct ClockAhead {
    ahead_hours: u64,
}

/// The clock of one half: never behind what it gave out or has seen.
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

    /// A stamp later than each one so far.
    pub(crate) fn tick(&mut self, now_ms: u64) -> Stamp {
        self.last = (now_ms << COUNTER_BITS).max(self.last + 1);
        Stamp { time: self.last, node: self.node }
    }

    /// Takes notice of the other half's stamp.
    pub(crate) fn see(&mut self, stamp: Stamp, now_ms: u64) -> Result<(), ClockAhead> {
        let ahead = stamp.millis().saturating_sub(now_ms);
        if ahead > AHEAD_LIMIT_MS {
            return Err(ClockAhead { ahead_hours: ahead / 3_600_000 });
        }
        self.last = self.last.max(stamp.time);
        Ok(())
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
        let (mut fast, mut slow) = (Clock::new(0, 1), Clock::new(0, 2));
        let hour = 3_600_000;
        let first = fast.tick(10 * hour);
        assert!(fast.tick(10 * hour) > first, "two changes in one millisecond");
        assert!(fast.tick(9 * hour) > first, "a clock that is set back");
        slow.see(first, 9 * hour).unwrap();
        let answer = slow.tick(9 * hour);
        assert!(answer > first, "who has seen a change comes after it, an hour behind or not");
        assert_eq!(
            slow.see(Stamp { time: (40 * hour) << 16, node: 1 }, 9 * hour),
            Err(ClockAhead { ahead_hours: 31 })
        );
        assert!(slow.tick(9 * hour).millis() < 11 * hour, "and does not move the clock");
    }
}
