//! Medians and percentiles of a few hundred numbers, and the histogram of many samples. Called by the harness; never reads a
//! clock.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// The longest sample told apart, in nanoseconds; longer ones count as this.
const LONGEST_NS: u64 = 60_000_000_000;
/// Digits that the histogram keeps.
const DIGITS: u8 = 3;

/// The 10th, 50th and 90th percentile of figures measured in batches.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) p10: f64,
    pub(crate) median: f64,
    pub(crate) p90: f64,
}

impl Spread {
    /// Of all finite values; `None` if there are none.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut sorted: Vec<f64> = values
            .into_iter()
            .filter(|value| value.is_finite())
            .collect();
        if sorted.is_empty() {
            return None;
        }
        sorted.sort_by(f64::total_cmp);
        Some(Spread {
            p10: quantile(&sorted, 0.1),
            median: quantile(&sorted, 0.5),
            p90: quantile(&sorted, 0.9),
        })
    }

    /// Every figure as `map` makes it, for rounding.
    pub(crate) fn map(self, map: impl Fn(f64) -> f64) -> Spread {
        Spread {
            p10: map(self.p10),
            median: map(self.median),
            p90: map(self.p90),
        }
    }
}

/// The median of all finite values.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    Spread::of(values).map(|spread| spread.median)
}

/// Between the two neighbours of rank `q`, in proportion. `sorted` is not empty.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let rank = q * (sorted.len() - 1) as f64;
    let (below, above) = (rank.floor() as usize, rank.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * (rank - below as f64)
}

/// What a histogram says, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Percentiles {
    pub(crate) p50: u64,
    pub(crate) p90: u64,
    pub(crate) p99: u64,
    pub(crate) p999: u64,
    pub(crate) max: u64,
}

/// Samples of one row, in nanoseconds, kept to three digits.
pub(crate) struct Samples(Histogram<u64>);

impl Samples {
    pub(crate) fn new() -> Samples {
        let histogram = Histogram::new_with_bounds(1, LONGEST_NS, DIGITS);
        Samples(histogram.expect("constant bounds with 1 < longest and at most 5 digits"))
    }

    pub(crate) fn record(&mut self, ns: f64) {
        // `as` saturates, which is what is wanted.
        self.0.saturating_record((ns + 0.5) as u64);
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    pub(crate) fn clear(&mut self) {
        self.0.reset();
    }

    pub(crate) fn add(&mut self, other: &Samples) {
        // Both have the same bounds, so nothing can be out of range.
        let _ = self.0.add(&other.0);
    }

    pub(crate) fn mean(&self) -> f64 {
        self.0.mean()
    }

    pub(crate) fn min(&self) -> u64 {
        self.0.min()
    }

    pub(crate) fn percentiles(&self) -> Percentiles {
        Percentiles {
            p50: self.0.value_at_quantile(0.5),
            p90: self.0.value_at_quantile(0.9),
            p99: self.0.value_at_quantile(0.99),
            p999: self.0.value_at_quantile(0.999),
            max: self.0.max(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_interpolates_between_ranks() {
        let spread = Spread::of((0..=10).rev().map(f64::from)).unwrap();
        assert_eq!((spread.p10, spread.median, spread.p90), (1.0, 5.0, 9.0));
        assert_eq!(median([1.0, 2.0]), Some(1.5));
        assert_eq!(median([3.0]), Some(3.0));
    }

    #[test]
    fn nothing_and_nonsense_have_no_spread() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([f64::NAN, f64::INFINITY]), None);
        assert_eq!(median([f64::NAN, 2.0]), Some(2.0));
    }

    #[test]
    fn percentiles_are_those_of_the_samples() {
        let mut samples = Samples::new();
        for ns in 1..=1000 {
            samples.record(f64::from(ns));
        }
        samples.record(1e30);
        let percentiles = samples.percentiles();
        assert_eq!(percentiles.p50, 501);
        assert!((990..=992).contains(&percentiles.p99));
        assert!(percentiles.max >= LONGEST_NS / 1001 * 1000);
        assert_eq!(samples.count(), 1001);
    }
}
