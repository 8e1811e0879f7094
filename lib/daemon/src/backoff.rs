//! Exponential backoff with full jitter and a cap.

use std::time::Duration;

/// Doubles from `initial` to `cap`; each pause is drawn from the upper half of the current step.
#[derive(Clone, Debug)]
pub struct Backoff {
    initial: Duration,
    cap: Duration,
    step: Duration,
}

impl Backoff {
    /// A backoff whose first pause is at most `initial` and no pause is above `cap`.
    pub const fn new(initial: Duration, cap: Duration) -> Self {
        Self { initial, cap, step: initial }
    }

    /// The next pause: between half the current step and the whole of it.
    pub fn pause(&mut self) -> Duration {
        let step = self.step.min(self.cap);
        self.step = step.saturating_mul(2).min(self.cap);
        step.mul_f64(0.5 + rand::random::<f64>() / 2.0)
    }

    /// Back to the first step, after a success.
    pub const fn reset(&mut self) {
        self.step = self.initial;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_the_cap_and_resets() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(350));
        for step in [100u64, 200, 350, 350] {
            let pause = backoff.pause();
            assert!(
                pause >= Duration::from_millis(step / 2) && pause <= Duration::from_millis(step),
                "{pause:?}"
            );
        }
        backoff.reset();
        assert!(backoff.pause() <= Duration::from_millis(100));
    }
}
