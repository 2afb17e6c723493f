//! When requests come: arrivals of an open loop whose rate moves.
//!
//! Arrivals are laid out on the integral of the rate: even spacing puts one at every whole
//! unit of it (from a random phase), Poisson spacing at exponential steps. Both follow a
//! step, a ramp or a square wave exactly, and neither looks at the answers.

use super::plan::{Spacing, Stream};
use rand_core::{RngCore, SeedableRng};
use rand_pcg::Pcg64Mcg;

/// The arrival times of one stream in seconds from the start of the run, in rising order.
pub(crate) struct Arrivals {
    segments: Vec<Segment>,
    index: usize,
    at: f64,
    spacing: Spacing,
    random: Pcg64Mcg,
    first: bool,
}

/// A stretch in which the rate runs straight from one value to another.
#[derive(Clone, Copy, Debug)]
struct Segment {
    from: f64,
    until: f64,
    first: f64,
    last: f64,
}

impl Arrivals {
    /// The arrivals of an open-loop stream in a run of `duration_s`; none for a closed loop.
    pub(crate) fn new(stream: &Stream, duration_s: f64, seed: u64) -> Arrivals {
        let points = stream.rate.as_ref().map(super::plan::Rate::points).unwrap_or_default();
        let segments = segments(&points, stream.ramp, stream.from_s, stream.until(duration_s));
        let at = segments.first().map_or(0.0, |segment| segment.from);
        let random = Pcg64Mcg::seed_from_u64(seed);
        Arrivals { segments, index: 0, at, spacing: stream.spacing, random, first: true }
    }

    /// How much of the rate's integral lies before the next arrival.
    fn draw(&mut self) -> f64 {
        let uniform = unit(&mut self.random);
        match self.spacing {
            Spacing::Poisson => -(1.0 - uniform).ln(),
            Spacing::Even if self.first => uniform,
            Spacing::Even => 1.0,
        }
    }
}

impl Iterator for Arrivals {
    type Item = f64;

    fn next(&mut self) -> Option<f64> {
        let mut need = self.draw();
        self.first = false;
        while let Some(segment) = self.segments.get(self.index) {
            let room = segment.area(self.at, segment.until);
            if room > need {
                self.at += segment.advance(self.at, need);
                return Some(self.at);
            }
            need -= room;
            self.index += 1;
            self.at = self.segments.get(self.index).map_or(segment.until, |next| next.from);
        }
        None
    }
}

impl Segment {
    fn slope(&self) -> f64 {
        if self.until > self.from { (self.last - self.first) / (self.until - self.from) } else { 0.0 }
    }

    fn rate(&self, at: f64) -> f64 {
        (self.first + self.slope() * (at - self.from)).max(0.0)
    }

    fn area(&self, from: f64, until: f64) -> f64 {
        f64::midpoint(self.rate(from), self.rate(until)) * (until - from)
    }

    /// The time after `at` in which the rate's integral grows by `need`.
    fn advance(&self, at: f64, need: f64) -> f64 {
        let rate = self.rate(at);
        2.0 * need / (rate + (rate * rate + 2.0 * self.slope() * need).max(0.0).sqrt())
    }
}

/// A number from 0 up to, not including, 1.
#[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
pub(crate) fn unit(random: &mut Pcg64Mcg) -> f64 {
    (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

fn segments(points: &[[f64; 2]], ramp: bool, from: f64, until: f64) -> Vec<Segment> {
    let ends = points.iter().skip(1).map(|point| point[0]).chain([f64::INFINITY]);
    let lasts = points.iter().skip(1).map(|point| point[1]).chain(points.last().map(|point| point[1]));
    points
        .iter()
        .zip(ends)
        .zip(lasts)
        .filter_map(|((&[start, first], end), last)| {
            let whole = Segment { from: start, until: end.min(until.max(start)), first, last: first };
            let whole = if ramp { Segment { last, until: end.min(DISTANT_S), ..whole } } else { whole };
            let (begin, stop) = (start.max(from), end.min(until));
            (begin < stop).then(|| Segment {
                from: begin,
                until: stop,
                first: whole.rate(begin),
                last: whole.rate(stop),
            })
        })
        .collect()
}

/// Stands for "for ever" where an infinite end would make a slope of NaN.
const DISTANT_S: f64 = 1e9;

#[cfg(test)]
mod tests {
    use super::super::plan::Plan;
    use super::*;

    fn arrivals(lines: &str, duration_s: f64) -> Vec<f64> {
        let text = format!(
            "duration_s = {duration_s}\n[[stream]]\nname = \"a\"\n{lines}\nrequest = [{{ path = \"/\" }}]"
        );
        let plan: Plan = toml::from_str(&text).unwrap();
        Arrivals::new(&plan.streams[0], duration_s, 7).collect()
    }

    fn count(times: &[f64], from: f64, until: f64) -> usize {
        times.iter().filter(|&&at| at >= from && at < until).count()
    }

    #[test]
    fn even_arrivals_keep_their_distance() {
        let times = arrivals("rate = 4\nspacing = \"even\"", 10.0);
        assert_eq!(times.len(), 40);
        assert!(times.windows(2).all(|pair| (pair[1] - pair[0] - 0.25).abs() < 1e-9));
    }

    #[test]
    fn a_step_comes_at_its_second() {
        let times = arrivals("rate = [[0, 10], [10, 100], [20, 0], [25, 10]]\nspacing = \"even\"", 30.0);
        assert_eq!(count(&times, 0.0, 10.0), 100);
        assert_eq!(count(&times, 10.0, 20.0), 1000);
        assert_eq!(count(&times, 20.0, 25.0), 0);
        assert_eq!(count(&times, 25.0, 30.0), 50);
    }

    #[test]
    fn a_ramp_brings_its_integral() {
        let times = arrivals("rate = [[0, 0], [10, 100]]\nramp = true\nspacing = \"even\"", 20.0);
        assert!(count(&times, 0.0, 10.0).abs_diff(500) <= 1);
        assert!(count(&times, 0.0, 5.0).abs_diff(125) <= 1);
        assert!(count(&times, 10.0, 20.0).abs_diff(1000) <= 1);
    }

    #[test]
    fn poisson_arrivals_have_the_mean_and_spread_of_their_law() {
        let times = arrivals("rate = 100", 200.0);
        let mean = 20_000.0_f64;
        assert!((times.len() as f64 - mean).abs() < 4.0 * mean.sqrt());
        let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let average = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - average).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((variance.sqrt() / average - 1.0).abs() < 0.05, "an exponential's deviation is its mean");
    }

    #[test]
    fn a_stream_stays_between_its_bounds() {
        let times = arrivals("rate = 50\nfrom_s = 2\nuntil_s = 4", 10.0);
        assert!(!times.is_empty() && times.iter().all(|&at| (2.0..4.0).contains(&at)));
    }
}
