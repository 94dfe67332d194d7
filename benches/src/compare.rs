//! Alternating measurement: A B C, C B A, A B C, ..., so that a disturbance of the machine affects
//! every runtime. The published figure is the ratio of two samples of the same round; the median
//! and the spread of that ratio show whether the ratio is significant.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Serialize;

use crate::load::Sample;
use crate::peer::Who;

/// A ratio is noise if its highest and lowest round differ by more than this share of the median.
const NOISE: f64 = 0.35;

/// All samples of one measurement: for each runtime, one sample a round.
#[derive(Debug, Default)]
pub(crate) struct Rounds(BTreeMap<Who, Vec<Sample>>);

/// A percentile of sorted values; 0 without values.
pub(crate) fn percentile(sorted: &[f64], part: usize) -> f64 {
    let at = (sorted.len() * part / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default()
}

/// A figure over all rounds: median, lowest and highest.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Spread {
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (low, high) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Self { median, low, high })
    }

    /// The spread of a single value.
    pub(crate) const fn of_one(value: f64) -> Self {
        Self {
            median: value,
            low: value,
            high: value,
        }
    }

    /// Whether the rounds differ too much for the figure to mean anything.
    pub(crate) fn is_noisy(&self) -> bool {
        self.high - self.low > NOISE * self.median
    }
}

impl Rounds {
    /// Measures the runtimes in turn, `rounds` times, in the opposite order every second round.
    /// Each runtime is warmed up before the first round.
    pub(crate) fn measure(
        who: &[Who],
        rounds: u32,
        mut one: impl FnMut(Who) -> Result<Sample>,
    ) -> Result<Self> {
        for who in who {
            one(*who)?;
        }
        let mut all = Self::default();
        let mut order = who.to_vec();
        for _ in 0..rounds {
            for who in &order {
                all.0.entry(*who).or_default().push(one(*who)?);
            }
            order.reverse();
        }
        Ok(all)
    }

    /// A figure of one runtime over all rounds.
    pub(crate) fn of(&self, who: Who, figure: impl Fn(&Sample) -> f64) -> Option<Spread> {
        Spread::of(self.0.get(&who)?.iter().map(figure))
    }

    /// Casemate's figure divided by the other runtime's, round by round.
    pub(crate) fn ratio(&self, other: Who, figure: impl Fn(&Sample) -> f64) -> Option<Spread> {
        let (ours, others) = (self.0.get(&Who::Casemate)?, self.0.get(&other)?);
        let pairs = ours.iter().zip(others);
        Spread::of(pairs.map(|(ours, other)| figure(ours) / figure(other)))
    }

    /// Number of failed requests in all rounds.
    pub(crate) fn errors(&self, who: Who) -> u64 {
        let samples = self.0.get(&who).into_iter().flatten();
        samples.map(|sample| sample.errors).sum()
    }

    pub(crate) fn who(&self) -> impl Iterator<Item = Who> {
        self.0.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_and_rounds_that_disagree_are_noise() {
        let spread = Spread::of([3.0, 1.0, 2.0]).unwrap();
        assert_eq!((spread.median, spread.low, spread.high), (2.0, 1.0, 3.0));
        assert!(spread.is_noisy());
        let even = Spread::of([1.0, 1.1, 1.0, 1.1]).unwrap();
        assert!((even.median - 1.05).abs() < 1e-9 && !even.is_noisy());
        assert!(Spread::of([]).is_none());
    }

    #[test]
    fn ratios_are_of_one_round() {
        let mut calls = 0;
        let rounds = Rounds::measure(&[Who::Casemate, Who::Deno], 3, |who| {
            calls += 1;
            // The simulated machine gets slower; a runtime that is twice as fast stays twice as
            // fast.
            let pace = 1000.0 / f64::from(calls);
            let per_second = if who == Who::Casemate {
                2.0 * pace
            } else {
                pace
            };
            Ok(Sample {
                per_second,
                bytes_per_second: 0.0,
                p50_us: 0.0,
                p90_us: 0.0,
                p99_us: 0.0,
                p999_us: 0.0,
                errors: 0,
            })
        });
        let ratio = rounds.unwrap().ratio(Who::Deno, |sample| sample.per_second);
        let ratio = ratio.unwrap();
        assert!((1.5..3.0).contains(&ratio.median), "{ratio:?}");
    }
}
