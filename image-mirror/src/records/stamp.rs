//! When a row was last changed: hybrid logical clocks (Kulkarni et al., 2014), so that changes made at two registries have an order.
//! Stamps and the journal are written from the first row on; pairs, which read them, are not built yet.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Bits of a time that count changes within a millisecond.
const COUNTER_BITS: u32 = 16;

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

    /// A stamp later than each one so far.
    pub(crate) fn tick(&mut self, now_ms: u64) -> Stamp {
        self.last = (now_ms << COUNTER_BITS).max(self.last + 1);
        Stamp { time: self.last, node: self.node }
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
        let first = fast.tick(10 * hour);
        assert!(fast.tick(10 * hour) > first, "two changes in one millisecond");
        assert!(fast.tick(9 * hour) > first, "a clock that is set back");
    }
}
