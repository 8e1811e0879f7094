//! Repeated measurements of one number.

use std::time::Duration;

/// What several runs gave, in one unit.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// No run yet.
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds a run, in milliseconds.
    pub(crate) fn push(&mut self, duration: Duration) {
        self.0.push(duration.as_secs_f64() * 1000.0);
        self.0.sort_by(f64::total_cmp);
    }

    /// How many runs there were.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The middle one; of two middle ones their mean.
    pub(crate) fn median(&self) -> f64 {
        let middle = self.0.len() / 2;
        match self.0.len() {
            0 => f64::NAN,
            length if length % 2 == 1 => self.0[middle],
            _ => f64::midpoint(self.0[middle - 1], self.0[middle]),
        }
    }

    /// The smallest and the largest.
    pub(crate) fn range(&self) -> Option<(f64, f64)> {
        Some((*self.0.first()?, *self.0.last()?))
    }
}

impl FromIterator<Duration> for Samples {
    fn from_iter<T: IntoIterator<Item = Duration>>(durations: T) -> Self {
        let mut samples: Vec<f64> =
            durations.into_iter().map(|duration| duration.as_secs_f64() * 1000.0).collect();
        samples.sort_by(f64::total_cmp);
        Self(samples)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_needs_no_order() {
        let mut samples = Samples::default();
        for milliseconds in [30, 10, 20] {
            samples.push(Duration::from_millis(milliseconds));
        }
        assert!((samples.median() - 20.0).abs() < 1e-9);
        samples.push(Duration::from_millis(40));
        assert!((samples.median() - 25.0).abs() < 1e-9);
        assert_eq!(samples.range(), Some((10.0, 40.0)));
    }
}
