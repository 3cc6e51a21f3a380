//! From batches to figures: quantiles of a few hundred values, percentiles of
//! many single times.
//!
//! `harness` fills these, `report` prints them. Never averages: one pause of
//! the virtual machine would be in every figure.

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::fault::Fault;

/// The middle of a set of values and its width.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) p10: f64,
    pub(crate) median: f64,
    pub(crate) p90: f64,
}

impl Spread {
    /// `None` of no values.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let last = sorted.len().checked_sub(1)?;
            sorted.get((share * last as f64).round() as usize).copied()
        };
        Some(Self {
            p10: at(0.1)?,
            median: at(0.5)?,
            p90: at(0.9)?,
        })
    }
}

/// Nanoseconds of single round trips.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Percentiles {
    p50: u64,
    p90: u64,
    p99: u64,
    p999: u64,
    max: u64,
}

impl Percentiles {
    pub(crate) fn columns(self) -> [u64; 5] {
        [self.p50, self.p90, self.p99, self.p999, self.max]
    }
}

/// A longer round trip counts as this one.
const LONGEST_NS: u64 = 60_000_000_000;

/// Digits that are kept: no time under 1,000 ns is rounded.
const DIGITS: u8 = 3;

/// Every single round trip of a row.
#[derive(Debug)]
pub(crate) struct Samples(Histogram<u64>);

impl Samples {
    pub(crate) fn new() -> Result<Self, Fault> {
        // With bounds: a histogram that may grow does not do so for `saturating_record`.
        Histogram::new_with_bounds(1, LONGEST_NS, DIGITS)
            .map(Self)
            .map_err(Fault::doing("making a histogram"))
    }

    /// Adds times in nanoseconds.
    pub(crate) fn add(&mut self, times: impl IntoIterator<Item = f64>) {
        for ns in times {
            self.0.saturating_record(ns.round() as u64);
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.len()
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
    fn the_spread_of_a_hundred_and_one_values_is_three_of_them() {
        let values: Vec<f64> = (0..=100).rev().map(f64::from).collect();
        let spread = Spread::of(&values).expect("not empty");
        assert_eq!((spread.p10, spread.median, spread.p90), (10.0, 50.0, 90.0));
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn percentiles_are_the_times_that_were_added() {
        let mut samples = Samples::new().expect("three digits are valid");
        samples.add((1..=1000).map(f64::from));
        assert_eq!(samples.count(), 1000);
        assert_eq!(samples.percentiles().columns(), [500, 900, 990, 999, 1000]);
        samples.add([7e6, 1e30]);
        let [.., p999, max] = samples.percentiles().columns();
        assert!(
            (6_990_000..=7_010_000).contains(&p999) || p999 == 1000,
            "{p999}"
        );
        assert!(max >= LONGEST_NS, "{max}");
    }
}
