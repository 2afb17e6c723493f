//! How do samples become one number, and how much does that number know?
//!
//! Each [`How`] works in two steps, so that several targets can be put together honestly:
//! the samples of one page become [`Evidence`]; the evidence of all pages is merged, and only
//! the whole is turned into a value. A share over three nodes is the slow calls of all by the
//! calls of all, not a mean of shares.
//!
//! - **Gauges.** `Sum` is floored at zero as a whole only: Ray's `ray_tasks` has negative
//!   series that others balance. A NaN or an infinity among the samples is a [`SampleError`], never
//!   skipped: the sum without it would be a smaller number that looks as good.
//! - **Counters.** The increase of each series since the page before; a series that went down
//!   was reset and counts from zero. A series seen for the first time is a baseline, not an
//!   increase.
//! - **Histograms.** The increase of each bucket, a reset being judged over the whole series
//!   at once. `ShareAbove` answers only at a bucket's own bound: between two bounds nothing is
//!   known, and the refusal names the bounds there are. `Quantile` gives the upper bound of
//!   the bucket it falls into; `resolution` is that bound by the one below, so a decade
//!   histogram says 10, not a p99 to three digits. Sums are never used: Ray's are synthetic
//!   (each observation is entered again at its bucket's midpoint). No new observation is no
//!   reading, not a zero.

use crate::policy::How;
use crate::signal::exposition::Sample;
use std::time::Duration;

/// A share or a quantile waits until it rests on so many observations (or until it has waited
/// long enough, see [`crate::signal::series`]): one slow call of two is not 50 %.
pub(crate) const OBSERVATIONS_MIN: f64 = 10.0;

/// Why samples are no evidence.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum SampleError {
    /// Nothing matches the selector.
    #[error("no series matches the labels")]
    NoSeries,
    /// NaN or infinite samples.
    #[error("{bad} of {of} samples are NaN or infinite")]
    NotFinite {
        /// How many.
        bad: usize,
        /// Of how many.
        of: usize,
    },
    /// A value that cannot be below zero is.
    #[error("the value is {0}, below zero; only sums may have negative series")]
    Negative(f64),
    /// The first page: nothing to compare with.
    #[error("counters read only once; a second scrape is needed")]
    First,
    /// No observation since the page before.
    #[error("no new observation")]
    NoObservation,
    /// Too few observations to say anything.
    #[error("only {seen} new observations; at least {wanted} are needed")]
    FewObservations {
        /// Since the page before.
        seen: f64,
        /// `OBSERVATIONS_MIN`.
        wanted: f64,
    },
    /// The share was asked for between two bounds.
    #[error("no bucket ends at {bound}; ask for the share above one of {bounds}")]
    NoSuchBound {
        /// As asked.
        bound: f64,
        /// As there are.
        bounds: String,
    },
    /// Series with unlike buckets cannot be added.
    #[error("the series have different buckets; select one kind of them")]
    BoundsDiffer,
    /// Bucket counts must rise with the bound and end at `+Inf`.
    #[error("bucket counts fall with rising bound, or there is no `+Inf` bucket: not a histogram")]
    NotCumulative,
    /// A ratio to nothing.
    #[error("the divisor is zero")]
    ZeroDivisor,
    /// A kept line of the family could not be read, so a sum would be short.
    #[error("{0} lines of the metric could not be read")]
    Lost(usize),
    /// More matching lines than memory is set aside for; a sum over some of them would be wrong.
    #[error("more than {0} lines of the metric match; narrow the signal's selector")]
    TooManyLines(usize),
    /// A time stamp before one already seen.
    #[error("its time stamp went back by {0:?}")]
    StampBack(Duration),
    /// A time stamp in the future.
    #[error("its time stamp is {0:?} in the future; compare the clocks of the two hosts")]
    StampAhead(Duration),
}

/// What one page says, before it is put together with others.
#[derive(Clone, PartialEq, Debug)]
pub enum Evidence {
    /// A sum of gauges.
    Sum(f64),
    /// The largest gauge.
    Max(f64),
    /// Increase per second.
    PerSecond(f64),
    /// New observations by bucket.
    Buckets(Buckets),
    /// Two sums, one to be divided by the other.
    Ratio {
        /// Above the line.
        part: f64,
        /// Below the line.
        whole: f64,
    },
}

/// A value and its resolution.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Value {
    /// Finite and not negative.
    pub value: f64,
    /// The least step it can resolve, as a ratio; 1 for what is exact.
    pub resolution: f64,
}

impl Evidence {
    /// A single value: a probe's latency, or a server's answer.
    pub(crate) fn of_value(value: f64) -> Evidence {
        Evidence::Max(value)
    }

    /// What gauges say: `Sum`, `Max`.
    ///
    /// # Errors
    /// [`SampleError`] when a sample is not finite, or `Max` finds none.
    pub(crate) fn of_gauges(samples: &[&Sample], how: &How) -> Result<Evidence, SampleError> {
        check_finite(samples)?;
        let values = samples.iter().map(|sample| sample.value);
        match how {
            How::Max => values.reduce(f64::max).map(Evidence::Max).ok_or(SampleError::NoSeries),
            _ => Ok(Evidence::Sum(values.sum())),
        }
    }

    /// What two groups of gauges say: `RatioTo`. One page may know the part and another the whole.
    ///
    /// # Errors
    /// [`SampleError`] when both groups are empty or one holds a sample that is not finite.
    pub(crate) fn of_ratio(part: &[&Sample], whole: &[&Sample]) -> Result<Evidence, SampleError> {
        if part.is_empty() && whole.is_empty() {
            return Err(SampleError::NoSeries);
        }
        check_finite(part)?;
        check_finite(whole)?;
        let sum = |samples: &[&Sample]| samples.iter().map(|sample| sample.value).sum();
        Ok(Evidence::Ratio { part: sum(part), whole: sum(whole) })
    }

    /// Takes in what another page says; evidence of another kind is ignored.
    pub(crate) fn merge(&mut self, other: &Evidence) -> Result<(), SampleError> {
        match (self, other) {
            (Evidence::Sum(sum), Evidence::Sum(more))
            | (Evidence::PerSecond(sum), Evidence::PerSecond(more)) => {
                *sum += more;
            }
            (Evidence::Max(max), Evidence::Max(more)) => *max = max.max(*more),
            (Evidence::Ratio { part, whole }, Evidence::Ratio { part: more_part, whole: more_whole }) => {
                *part += more_part;
                *whole += more_whole;
            }
            (Evidence::Buckets(buckets), Evidence::Buckets(more)) => buckets.merge(more)?,
            _ => {}
        }
        Ok(())
    }

    /// The value, in the metric's unit.
    ///
    /// # Errors
    /// [`SampleError`] when the evidence does not carry one.
    pub fn value(&self, how: &How) -> Result<Value, SampleError> {
        let exact = |value| Value { value, resolution: 1.0 };
        let value = match (self, how) {
            (Evidence::Sum(sum), _) => exact(sum.max(0.0)),
            (Evidence::Max(value) | Evidence::PerSecond(value), _) => exact(*value),
            (Evidence::Ratio { whole, .. }, _) if *whole == 0.0 => return Err(SampleError::ZeroDivisor),
            (Evidence::Ratio { part, whole }, _) => exact(part / whole),
            (Evidence::Buckets(buckets), How::ShareAbove(bound)) => buckets.share_above(*bound)?,
            (Evidence::Buckets(buckets), How::Quantile(share)) => buckets.quantile(*share)?,
            (Evidence::Buckets(_), _) => return Err(SampleError::NoSeries),
        };
        if !value.value.is_finite() {
            return Err(SampleError::NotFinite { bad: 1, of: 1 });
        }
        if value.value < 0.0 {
            return Err(SampleError::Negative(value.value));
        }
        // The sum of nothing is -0, which would look odd in the adjustment log.
        Ok(Value { value: value.value + 0.0, ..value })
    }
}

fn check_finite(samples: &[&Sample]) -> Result<(), SampleError> {
    match samples.iter().filter(|sample| !sample.value.is_finite()).count() {
        0 => Ok(()),
        bad => Err(SampleError::NotFinite { bad, of: samples.len() }),
    }
}

fn check_count(samples: &[&Sample]) -> Result<(), SampleError> {
    check_finite(samples)?;
    match samples.iter().find(|sample| sample.value < 0.0) {
        Some(sample) => Err(SampleError::Negative(sample.value)),
        None => Ok(()),
    }
}

/// Counters as they stood on one page, by series.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Counters(Vec<(u64, f64)>);

impl Counters {
    /// Reads them off a page.
    ///
    /// # Errors
    /// [`SampleError`] when one is negative or not finite.
    pub fn of(samples: &[&Sample]) -> Result<Counters, SampleError> {
        check_count(samples)?;
        let mut counters: Vec<(u64, f64)> =
            samples.iter().map(|sample| (sample.series, sample.value)).collect();
        counters.sort_by_key(|(series, _)| *series);
        Ok(Counters(counters))
    }

    /// The increase of all series since `before`, resets counted from zero.
    pub fn since(&self, before: &Counters) -> f64 {
        let increase = |(series, now): &(u64, f64)| {
            let place = before.0.binary_search_by_key(series, |(series, _)| *series).ok()?;
            let then = before.0[place].1;
            Some(if *now < then { *now } else { now - then })
        };
        self.0.iter().filter_map(increase).sum()
    }
}

/// Histograms as they stood on one page: cumulative counts by series.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Histograms(Vec<(u64, Vec<Bucket>)>);

/// A bucket: its upper bound, and a count.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Bucket {
    /// Upper bound, in the metric's unit; the last one is infinite.
    pub bound: f64,
    /// Observations: up to the bound in [`Histograms`], in this bucket alone in [`Buckets`].
    pub count: f64,
}

impl Histograms {
    /// Reads them off a page.
    ///
    /// # Errors
    /// [`SampleError`] when a count is negative or not finite, or a series is no histogram.
    pub fn of(samples: &[&Sample]) -> Result<Histograms, SampleError> {
        check_count(samples)?;
        let mut rows: Vec<(u64, Bucket)> = samples
            .iter()
            .filter_map(|sample| Some((sample.series, Bucket { bound: sample.le?, count: sample.value })))
            .collect();
        rows.sort_by(|(a, x), (b, y)| a.cmp(b).then(x.bound.total_cmp(&y.bound)));
        let mut histograms: Vec<(u64, Vec<Bucket>)> = Vec::new();
        for (series, bucket) in rows {
            match histograms.last_mut() {
                Some((last, buckets)) if *last == series => buckets.push(bucket),
                _ => histograms.push((series, vec![bucket])),
            }
        }
        let rises = |buckets: &[Bucket]| {
            buckets.is_sorted_by(|a, b| a.count <= b.count)
                && buckets.last().is_some_and(|last| last.bound == f64::INFINITY)
        };
        if histograms.iter().all(|(_, buckets)| rises(buckets)) {
            Ok(Histograms(histograms))
        } else {
            Err(SampleError::NotCumulative)
        }
    }

    /// The new observations of all series since `before`. A series that was reset counts from
    /// zero; one that is new, or whose bounds changed, counts from now on.
    pub fn since(&self, before: &Histograms) -> Result<Buckets, SampleError> {
        let mut total: Option<Buckets> = None;
        for (series, now) in &self.0 {
            let mut new = Buckets(now.iter().map(|bucket| Bucket { count: 0.0, ..*bucket }).collect());
            if let Ok(place) = before.0.binary_search_by_key(series, |(series, _)| *series) {
                new = Buckets::between(&before.0[place].1, now).unwrap_or(new);
            }
            match &mut total {
                None => total = Some(new),
                Some(total) => total.merge(&new)?,
            }
        }
        total.ok_or(SampleError::NoSeries)
    }
}

/// New observations by bucket, not cumulative, in the order of their bounds.
#[derive(Clone, PartialEq, Debug)]
pub struct Buckets(Vec<Bucket>);

impl Buckets {
    /// None when the bounds changed.
    fn between(then: &[Bucket], now: &[Bucket]) -> Option<Buckets> {
        if !same_bounds(then, now) {
            return None;
        }
        let was_reset = then.iter().zip(now).any(|(then, now)| now.count < then.count);
        let base = |place: usize| if was_reset { 0.0 } else { then[place].count };
        let mut below = 0.0;
        let buckets = now.iter().enumerate().map(|(place, bucket)| {
            let up_to = bucket.count - base(place);
            // Between two pages a bucket may be ahead of the next one by a few; never below zero.
            let count = (up_to - below).max(0.0);
            below = up_to.max(below);
            Bucket { bound: bucket.bound, count }
        });
        Some(Buckets(buckets.collect()))
    }

    fn merge(&mut self, more: &Buckets) -> Result<(), SampleError> {
        if !same_bounds(&self.0, &more.0) {
            return Err(SampleError::BoundsDiffer);
        }
        for (bucket, more) in self.0.iter_mut().zip(&more.0) {
            bucket.count += more.count;
        }
        Ok(())
    }

    /// How many observations.
    pub fn count(&self) -> f64 {
        self.0.iter().map(|bucket| bucket.count).sum()
    }

    /// The share of observations above a bound, which must be a bucket's own.
    fn share_above(&self, bound: f64) -> Result<Value, SampleError> {
        let total = self.observed()?;
        let Some(place) = self.0.iter().position(|bucket| same_bound(bucket.bound, bound)) else {
            let bounds: Vec<String> = self.finite().map(|bucket| bucket.bound.to_string()).collect();
            return Err(SampleError::NoSuchBound { bound, bounds: bounds.join(", ") });
        };
        let above: f64 = self.0[place + 1..].iter().map(|bucket| bucket.count).sum();
        // One observation more or less is the least step.
        Ok(Value { value: above / total, resolution: 1.0 + 1.0 / above.max(1.0) })
    }

    /// The least bound that covers the share. Beyond the last finite bound it is that bound:
    /// at least so much, and no one knows how much more.
    fn quantile(&self, share: f64) -> Result<Value, SampleError> {
        let total = self.observed()?;
        let mut covered = 0.0;
        let place = self.0.iter().position(|bucket| {
            covered += bucket.count;
            covered >= share * total
        });
        let last = self.finite().count().checked_sub(1).ok_or(SampleError::NotCumulative)?;
        let place = place.map_or(last, |place| place.min(last));
        let bound = self.0[place].bound;
        // The width of the bucket; the first one is taken to be as wide as its neighbour.
        let (wide, narrow) = match place.checked_sub(1) {
            Some(below) => (bound, self.0[below].bound),
            None if last > 0 => (self.0[1].bound, bound),
            None => (bound, bound),
        };
        let ratio = if narrow > 0.0 { wide / narrow } else { f64::MAX };
        Ok(Value { value: bound, resolution: ratio })
    }

    fn observed(&self) -> Result<f64, SampleError> {
        let total = self.count();
        if total > 0.0 { Ok(total) } else { Err(SampleError::NoObservation) }
    }

    fn finite(&self) -> impl Iterator<Item = &Bucket> {
        self.0.iter().filter(|bucket| bucket.bound.is_finite())
    }
}

fn same_bounds(a: &[Bucket], b: &[Bucket]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_bound(a.bound, b.bound))
}

/// Bounds are written in decimal by different languages: equal to the ninth digit is equal.
fn same_bound(a: f64, b: f64) -> bool {
    a.total_cmp(&b).is_eq() || (a - b).abs() <= 1e-9 * a.abs().min(b.abs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signal::exposition::Reporter;
    use proptest::prelude::*;

    fn sample(series: u64, le: Option<f64>, value: f64) -> Sample {
        Sample { family: 0, series, labels: [].into(), le, value, stamp_ms: None, reporter: Reporter::Other }
    }

    fn gauges(values: &[f64], how: &How) -> Result<f64, SampleError> {
        let samples: Vec<Sample> = values.iter().map(|value| sample(1, None, *value)).collect();
        let samples: Vec<&Sample> = samples.iter().collect();
        Evidence::of_gauges(&samples, how)?.value(how).map(|value| value.value)
    }

    fn counters(values: &[(u64, f64)]) -> Counters {
        let samples: Vec<Sample> =
            values.iter().map(|(series, value)| sample(*series, None, *value)).collect();
        Counters::of(&samples.iter().collect::<Vec<_>>()).unwrap()
    }

    const DECADES: [f64; 4] = [1.0, 10.0, 100.0, f64::INFINITY];

    fn histogram(series: u64, counts: [f64; 4]) -> Histograms {
        try_histogram(series, counts).unwrap()
    }

    fn try_histogram(series: u64, counts: [f64; 4]) -> Result<Histograms, SampleError> {
        let samples: Vec<Sample> =
            DECADES.iter().zip(counts).map(|(le, count)| sample(series, Some(*le), count)).collect();
        Histograms::of(&samples.iter().collect::<Vec<_>>())
    }

    fn value(new: Buckets, how: &How) -> Result<Value, SampleError> {
        Evidence::Buckets(new).value(how)
    }

    #[test]
    fn a_sum_may_have_negative_series_and_never_falls_below_zero() {
        assert_eq!(gauges(&[5.0, -2.0], &How::Sum), Ok(3.0));
        assert_eq!(gauges(&[-3.0], &How::Sum), Ok(0.0));
        assert_eq!(gauges(&[], &How::Sum), Ok(0.0));
    }

    #[test]
    fn a_negative_maximum_and_a_nan_anywhere_are_no_value() {
        assert_eq!(gauges(&[-3.0, -4.0], &How::Max), Err(SampleError::Negative(-3.0)));
        assert_eq!(gauges(&[7.0, f64::NAN], &How::Max), Err(SampleError::NotFinite { bad: 1, of: 2 }));
        assert_eq!(gauges(&[7.0, f64::INFINITY], &How::Sum), Err(SampleError::NotFinite { bad: 1, of: 2 }));
        assert_eq!(gauges(&[], &How::Max), Err(SampleError::NoSeries));
        assert_eq!(gauges(&[f64::MAX, f64::MAX], &How::Sum), Err(SampleError::NotFinite { bad: 1, of: 1 }));
    }

    #[test]
    fn counters_count_across_a_reset_and_a_new_series_is_a_baseline() {
        let before = counters(&[(1, 100.0), (2, 50.0), (3, 7.0)]);
        let after = counters(&[(2, 20.0), (1, 130.0), (4, 1000.0)]);
        assert!((after.since(&before) - 50.0).abs() < 1e-9, "30 of series 1, 20 of series 2 since its reset");
    }

    #[test]
    fn a_counter_below_zero_is_refused() {
        let bad = sample(1, None, -1.0);
        assert_eq!(Counters::of(&[&bad]), Err(SampleError::Negative(-1.0)));
    }

    #[test]
    fn a_share_is_given_at_a_bound_and_refused_between_two() {
        let new = histogram(1, [10.0, 90.0, 98.0, 100.0]).since(&histogram(1, [0.0; 4])).unwrap();
        let above = |bound| value(new.clone(), &How::ShareAbove(bound));
        assert!((above(10.0).unwrap().value - 0.10).abs() < 1e-12);
        assert!((above(10.0).unwrap().resolution - 1.1).abs() < 1e-12);
        assert!((above(100.0).unwrap().value - 0.02).abs() < 1e-12);
        assert_eq!(above(50.0), Err(SampleError::NoSuchBound { bound: 50.0, bounds: "1, 10, 100".into() }));
    }

    #[test]
    fn a_quantile_of_decade_buckets_says_that_it_only_knows_the_decade() {
        let new = histogram(1, [10.0, 95.0, 100.0, 100.0]).since(&histogram(1, [0.0; 4])).unwrap();
        let p99 = value(new.clone(), &How::Quantile(0.99)).unwrap();
        assert_eq!(p99, Value { value: 100.0, resolution: 10.0 });
        let p05 = value(new, &How::Quantile(0.05)).unwrap();
        assert_eq!(p05, Value { value: 1.0, resolution: 10.0 });
    }

    #[test]
    fn a_quantile_beyond_the_last_bound_is_at_least_that_bound() {
        let new = histogram(1, [0.0, 0.0, 1.0, 50.0]).since(&histogram(1, [0.0; 4])).unwrap();
        assert_eq!(value(new, &How::Quantile(0.99)).unwrap(), Value { value: 100.0, resolution: 10.0 });
    }

    #[test]
    fn no_new_observation_is_no_reading_and_not_zero() {
        let same = histogram(1, [1.0, 2.0, 3.0, 4.0]);
        let new = same.since(&same).unwrap();
        assert_eq!(value(new.clone(), &How::ShareAbove(10.0)), Err(SampleError::NoObservation));
        assert_eq!(value(new, &How::Quantile(0.5)), Err(SampleError::NoObservation));
    }

    #[test]
    fn a_reset_is_judged_over_the_whole_histogram() {
        // The first bucket alone would look like an increase of 2.
        let new = histogram(1, [7.0, 8.0, 8.0, 8.0]).since(&histogram(1, [5.0, 90.0, 95.0, 99.0])).unwrap();
        assert!((new.count() - 8.0).abs() < 1e-12);
        assert!((value(new, &How::ShareAbove(1.0)).unwrap().value - 0.125).abs() < 1e-12);
    }

    #[test]
    fn falling_bucket_counts_are_not_a_histogram() {
        assert_eq!(try_histogram(1, [5.0, 4.0, 6.0, 7.0]), Err(SampleError::NotCumulative));
        let open = sample(1, Some(1.0), 3.0);
        assert_eq!(Histograms::of(&[&open]), Err(SampleError::NotCumulative));
    }

    #[test]
    fn series_with_other_bounds_are_not_added_up() {
        let mut samples: Vec<Sample> = DECADES.iter().map(|le| sample(1, Some(*le), 1.0)).collect();
        samples.extend([5.0, f64::INFINITY].map(|le| sample(2, Some(le), 1.0)));
        let both = Histograms::of(&samples.iter().collect::<Vec<_>>()).unwrap();
        assert_eq!(both.since(&Histograms::default()), Err(SampleError::BoundsDiffer));
    }

    #[test]
    fn shares_of_several_pages_are_shares_of_the_whole() {
        let zero = histogram(1, [0.0; 4]);
        let busy = histogram(1, [0.0, 900.0, 900.0, 900.0]).since(&zero).unwrap();
        let slow = histogram(1, [0.0, 0.0, 100.0, 100.0]).since(&zero).unwrap();
        let mut both = Evidence::Buckets(busy);
        both.merge(&Evidence::Buckets(slow)).unwrap();
        assert!((both.value(&How::ShareAbove(10.0)).unwrap().value - 0.1).abs() < 1e-12);
    }

    proptest! {
        #[test]
        fn any_counts_give_a_share_within_0_and_1_or_a_flaw(
            then in proptest::array::uniform4(0.0..1e6f64), now in proptest::array::uniform4(0.0..1e6f64), bound in 0usize..3
        ) {
            let rising = |mut counts: [f64; 4]| { counts.sort_by(f64::total_cmp); histogram(1, counts) };
            let new = rising(now).since(&rising(then)).unwrap();
            prop_assert!(new.0.iter().all(|bucket| bucket.count >= 0.0));
            if let Ok(share) = value(new, &How::ShareAbove(DECADES[bound])) {
                prop_assert!((0.0..=1.0).contains(&share.value), "{share:?}");
            }
        }

        #[test]
        fn the_increase_is_never_negative_and_never_above_what_is_there(
            then in proptest::collection::vec((0u64..6, 0.0..1e9f64), 0..8), now in proptest::collection::vec((0u64..6, 0.0..1e9f64), 0..8)
        ) {
            let unique = |mut counters: Vec<(u64, f64)>| { counters.sort_by_key(|(s, _)| *s); counters.dedup_by_key(|(s, _)| *s); counters };
            let (then, now) = (unique(then), unique(now));
            let increase = counters(&now).since(&counters(&then));
            prop_assert!(increase >= 0.0);
            prop_assert!(increase <= now.iter().map(|(_, value)| value).sum::<f64>() + 1e-6);
        }
    }
}
