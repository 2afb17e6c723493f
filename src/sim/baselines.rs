//! Other people's limiters, for the same plants: what is rayguard better than?
//!
//! Each is written from its published description with its default settings, reduced to one
//! number of requests under way at once. They have no queue, no classes and no clients; they
//! are compared where that is no handicap (one class on one plant).

use super::rng::Rng;
use rayguard_core::time::Time;
use std::time::Duration;

/// A concurrency limiter.
pub(crate) trait Limiter: std::fmt::Debug {
    /// Whether one more may go on top of `in_flight`.
    fn admit(&mut self, _now: Time, in_flight: u32) -> bool {
        f64::from(in_flight) + 1.0 <= self.limit()
    }
    /// An exchange ended after `latency`; `in_flight` counts it still; `dropped`: its client
    /// had given up or it failed.
    fn finish(&mut self, now: Time, latency: Duration, in_flight: u32, dropped: bool);
    /// The limit as it stands.
    fn limit(&self) -> f64;
}

/// A number that does not move: the oracle, when it is the right one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fixed(pub f64);

impl Limiter for Fixed {
    fn finish(&mut self, _: Time, _: Duration, _: u32, _: bool) {}
    fn limit(&self) -> f64 {
        self.0
    }
}

/// Netflix `concurrency-limits`, `AIMDLimit`: 20..200, back off by 0.9 above 5 s or on a drop, which a
/// call is whose client gave up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Aimd {
    limit: f64,
    least: f64,
    most: f64,
}

impl Default for Aimd {
    fn default() -> Aimd {
        Aimd { limit: 20.0, least: 20.0, most: 200.0 }
    }
}

impl Limiter for Aimd {
    fn finish(&mut self, _: Time, latency: Duration, in_flight: u32, dropped: bool) {
        if dropped || latency > Duration::from_secs(5) {
            self.limit = (self.limit * 0.9).floor();
        } else if f64::from(in_flight) * 2.0 >= self.limit {
            self.limit += 1.0;
        }
        self.limit = self.limit.max(self.least).min(self.most);
    }
    fn limit(&self) -> f64 {
        self.limit
    }
}

/// Netflix `concurrency-limits`, `VegasLimit` (after TCP Vegas): queue = L (1 - rtt0 / rtt).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vegas {
    limit: f64,
    most: f64,
    rtt_no_load: f64,
    samples: f64,
}

impl Default for Vegas {
    fn default() -> Vegas {
        Vegas { limit: 20.0, most: 1000.0, rtt_no_load: f64::INFINITY, samples: 0.0 }
    }
}

impl Limiter for Vegas {
    fn finish(&mut self, _: Time, latency: Duration, in_flight: u32, dropped: bool) {
        let rtt = latency.as_secs_f64().max(1e-6);
        self.samples += 1.0;
        if self.samples > 30.0 * self.limit {
            self.samples = 0.0;
            self.rtt_no_load = rtt;
            return;
        }
        if rtt < self.rtt_no_load {
            self.rtt_no_load = rtt;
            return;
        }
        let unit = whole_log10(self.limit);
        let queue = (self.limit * (1.0 - self.rtt_no_load / rtt)).ceil();
        if dropped {
            self.limit -= unit;
        } else if f64::from(in_flight) * 2.0 < self.limit {
            return;
        } else if queue <= unit {
            self.limit += 6.0 * unit;
        } else if queue < 3.0 * unit {
            self.limit += unit;
        } else if queue > 6.0 * unit {
            self.limit -= unit;
        }
        self.limit = self.limit.clamp(1.0, self.most);
    }
    fn limit(&self) -> f64 {
        self.limit
    }
}

/// Their logarithm is a whole number, 1 at the least.
fn whole_log10(limit: f64) -> f64 {
    limit.max(1.0).log10().floor().max(1.0)
}

/// Samples of one window.
#[derive(Clone, Debug, Default)]
struct Samples {
    began: Time,
    seconds: Vec<f64>,
    peak: u32,
}

impl Samples {
    /// Takes a sample; hands the window out when it is `length` old.
    fn take(&mut self, now: Time, latency: Duration, in_flight: u32, length: Duration) -> Option<Samples> {
        self.seconds.push(latency.as_secs_f64().max(1e-6));
        self.peak = self.peak.max(in_flight);
        (now.since(self.began) >= length)
            .then(|| std::mem::replace(self, Samples { began: now, ..Samples::default() }))
    }

    fn mean(&self) -> f64 {
        self.seconds.iter().sum::<f64>() / self.seconds.len().max(1) as f64
    }

    fn quantile(&mut self, quantile: f64) -> f64 {
        self.seconds.sort_by(f64::total_cmp);
        let last = self.seconds.len().saturating_sub(1);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an index within the list"
        )]
        let at = (quantile * last as f64).round() as usize;
        self.seconds.get(at).copied().unwrap_or(f64::NAN)
    }
}

/// A mean that forgets: that of the first samples, then an exponential one.
#[derive(Clone, Copy, Debug)]
struct SlowMean {
    value: f64,
    count: f64,
    first: f64,
    window: f64,
}

impl SlowMean {
    fn new(window: f64, first: f64) -> SlowMean {
        SlowMean { value: 0.0, count: 0.0, first, window }
    }

    fn add(&mut self, sample: f64) -> f64 {
        let weight = if self.count < self.first {
            self.count += 1.0;
            1.0 / self.count
        } else {
            2.0 / (self.window + 1.0)
        };
        self.value += weight * (sample - self.value);
        self.value
    }
}

/// Netflix `concurrency-limits`, `Gradient2Limit` behind a `WindowedLimit` of 1 s: short against
/// long latency.
#[derive(Clone, Debug)]
pub(crate) struct Gradient2 {
    limit: f64,
    long_s: SlowMean,
    samples: Samples,
}

/// A window of fewer samples is thrown away.
const NETFLIX_WINDOW_MIN: usize = 10;

impl Default for Gradient2 {
    fn default() -> Gradient2 {
        Gradient2 { limit: 20.0, long_s: SlowMean::new(600.0, 10.0), samples: Samples::default() }
    }
}

impl Limiter for Gradient2 {
    fn finish(&mut self, now: Time, latency: Duration, in_flight: u32, _: bool) {
        let Some(window) = self.samples.take(now, latency, in_flight, Duration::from_secs(1)) else { return };
        if window.seconds.len() < NETFLIX_WINDOW_MIN {
            return;
        }
        let short = window.mean();
        let long = self.long_s.add(short);
        if long / short > 2.0 {
            self.long_s.value *= 0.95;
        }
        if f64::from(window.peak) < self.limit / 2.0 {
            return;
        }
        let gradient = (1.5 * long / short).clamp(0.5, 1.0);
        let wanted = self.limit * gradient + 4.0;
        self.limit = (self.limit * 0.8 + wanted * 0.2).clamp(20.0, 200.0);
    }
    fn limit(&self) -> f64 {
        self.limit
    }
}

/// Envoy's adaptive concurrency filter at its documented defaults: gradient of the median against a
/// minimum that is measured with 3 at once, anew every minute (and up to 15 % more, by chance) and
/// whenever the limit has been at its least for five windows.
#[derive(Clone, Debug)]
pub(crate) struct EnvoyGradient {
    limit: f64,
    held: f64,
    min_rtt_s: Option<f64>,
    min_rtt_at: Time,
    /// Exchanges that began before this are of another epoch.
    epoch: Time,
    measuring: Vec<f64>,
    samples: Samples,
    /// Windows on end with the limit at its least.
    at_least: u32,
    /// Until the minimum is measured again.
    measure_after: Duration,
    rng: Rng,
}

/// Of the filter's example; there is no default.
const ENVOY_UPDATE: Duration = Duration::from_millis(100);
const ENVOY_PERCENTILE: f64 = 0.5;
const ENVOY_MIN_RTT_EVERY: Duration = Duration::from_secs(60);
const ENVOY_WINDOWS_AT_LEAST: u32 = 5;
const ENVOY_CONCURRENCY_MIN: f64 = 3.0;
const ENVOY_MIN_RTT_REQUESTS: usize = 50;

impl Default for EnvoyGradient {
    fn default() -> EnvoyGradient {
        EnvoyGradient {
            limit: ENVOY_CONCURRENCY_MIN,
            held: ENVOY_CONCURRENCY_MIN,
            min_rtt_s: None,
            min_rtt_at: Time::ZERO,
            epoch: Time::ZERO,
            measuring: Vec::new(),
            samples: Samples::default(),
            at_least: 0,
            measure_after: ENVOY_MIN_RTT_EVERY,
            rng: Rng::new(1, 0xe70),
        }
    }
}

impl EnvoyGradient {
    /// Measures the minimum anew: three at once until there are enough.
    fn measure(&mut self, now: Time) {
        self.min_rtt_s = None;
        self.epoch = now;
        self.held = self.limit;
        self.limit = ENVOY_CONCURRENCY_MIN;
        self.at_least = 0;
        self.measure_after = ENVOY_MIN_RTT_EVERY.mul_f64(self.rng.between(1.0, 1.15));
    }
}

impl Limiter for EnvoyGradient {
    fn finish(&mut self, now: Time, latency: Duration, in_flight: u32, _: bool) {
        if now - latency < self.epoch {
            return;
        }
        let Some(min_rtt) = self.min_rtt_s else {
            self.measuring.push(latency.as_secs_f64().max(1e-6));
            if self.measuring.len() >= ENVOY_MIN_RTT_REQUESTS {
                let mut samples =
                    Samples { seconds: std::mem::take(&mut self.measuring), ..Samples::default() };
                self.min_rtt_s = Some(samples.quantile(ENVOY_PERCENTILE));
                self.min_rtt_at = now;
                self.limit = self.held;
                self.epoch = now;
                self.samples = Samples { began: now, ..Samples::default() };
            }
            return;
        };
        if let Some(mut window) = self.samples.take(now, latency, in_flight, ENVOY_UPDATE) {
            let gradient = (min_rtt * 1.25 / window.quantile(ENVOY_PERCENTILE)).clamp(0.5, 2.0);
            let wanted = self.limit * gradient;
            self.limit = (wanted + wanted.sqrt()).clamp(ENVOY_CONCURRENCY_MIN, 1000.0);
            let at_least = self.limit <= ENVOY_CONCURRENCY_MIN;
            self.at_least = if at_least { self.at_least + 1 } else { 0 };
        }
        let often = self.at_least >= ENVOY_WINDOWS_AT_LEAST;
        if often || now.since(self.min_rtt_at) >= self.measure_after {
            self.measure(now);
        }
    }
    fn limit(&self) -> f64 {
        self.limit
    }
}

/// Breakwater (Cho et al., OSDI 2020), the server's side: credits are the limit. Each round trip they
/// grow by a thousandth of the clients, or one, while requests wait less than the target, and shrink
/// by 2 % of the excess beyond it, by half at most; what waits twice the target is refused. A request
/// waits for what it takes beyond the least that one took. The target is the paper's 40 % of an
/// objective, of half a second here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Breakwater {
    credits: f64,
    least: Duration,
    waits: Duration,
    updated: Time,
}

const BREAKWATER_TARGET: Duration = Duration::from_millis(200);
const BREAKWATER_GROWTH: f64 = 1.0;
const BREAKWATER_CUT: f64 = 0.02;

impl Default for Breakwater {
    fn default() -> Breakwater {
        Breakwater { credits: 20.0, least: Duration::MAX, waits: Duration::ZERO, updated: Time::ZERO }
    }
}

impl Limiter for Breakwater {
    fn admit(&mut self, _: Time, in_flight: u32) -> bool {
        f64::from(in_flight) + 1.0 <= self.credits && (in_flight == 0 || self.waits < 2 * BREAKWATER_TARGET)
    }
    fn finish(&mut self, now: Time, latency: Duration, _: u32, _: bool) {
        self.least = self.least.min(latency);
        self.waits = latency.saturating_sub(self.least);
        if now.since(self.updated) < self.least {
            return;
        }
        self.updated = now;
        let excess = self.waits.as_secs_f64() / BREAKWATER_TARGET.as_secs_f64() - 1.0;
        if excess < 0.0 {
            self.credits += BREAKWATER_GROWTH;
        } else {
            self.credits *= (1.0 - BREAKWATER_CUT * excess).max(0.5);
        }
        self.credits = self.credits.clamp(1.0, 1000.0);
    }
    fn limit(&self) -> f64 {
        self.credits
    }
}

/// CoDel (Nichols and Jacobson, RFC 8289) on the time a request spends at the head: once the
/// *least* of an interval is above the target, arrivals are refused, the n-th one
/// `interval / sqrt(n)` after the one before, until the least is below again. Written for
/// packets that wait 5 ms; target and interval are scaled to requests that take a tenth of a
/// second.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CoDel {
    /// When the interval in which everything was late began.
    late_since: Option<Time>,
    dropping: bool,
    drops: f64,
    drop_next: Time,
    in_flight: f64,
}

const CODEL_TARGET: Duration = Duration::from_millis(250);
const CODEL_INTERVAL: Duration = Duration::from_secs(1);

impl CoDel {
    fn next_after(&self, now: Time) -> Time {
        now + CODEL_INTERVAL.div_f64(self.drops.max(1.0).sqrt())
    }
}

impl Limiter for CoDel {
    fn admit(&mut self, now: Time, in_flight: u32) -> bool {
        self.in_flight = f64::from(in_flight);
        if !self.dropping || now < self.drop_next {
            return true;
        }
        self.drops += 1.0;
        self.drop_next = self.next_after(self.drop_next.max(now - CODEL_INTERVAL));
        false
    }
    fn finish(&mut self, now: Time, latency: Duration, _: u32, _: bool) {
        if latency < CODEL_TARGET {
            self.late_since = None;
            self.dropping = false;
            return;
        }
        let since = *self.late_since.get_or_insert(now);
        if !self.dropping && now.since(since) >= CODEL_INTERVAL {
            self.dropping = true;
            // A limiter that was dropping a moment ago goes on near where it was.
            self.drops =
                if now.since(self.drop_next) < CODEL_INTERVAL { (self.drops - 2.0).max(1.0) } else { 1.0 };
            self.drop_next = now;
        }
    }
    fn limit(&self) -> f64 {
        self.in_flight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `seconds` of `per_second` answers of this latency at full use of the limit.
    fn feed(limiter: &mut dyn Limiter, latency_ms: u64, from: f64, seconds: f64) {
        for n in 0..200 {
            let now = Time::from_secs_f64(from + seconds * f64::from(n) / 200.0);
            let in_flight = rayguard_core::admission::table::permits(limiter.limit());
            limiter.finish(now, Duration::from_millis(latency_ms), in_flight, false);
        }
    }

    #[test]
    fn every_limiter_grows_while_latency_is_flat_and_shrinks_when_it_rises() {
        let limiters: Vec<Box<dyn Limiter>> =
            vec![Box::<Vegas>::default(), Box::<Gradient2>::default(), Box::<Breakwater>::default()];
        for mut limiter in limiters {
            let began = limiter.limit();
            feed(&mut *limiter, 100, 0.0, 20.0);
            let grown = limiter.limit();
            assert!(grown > began, "{limiter:?}");
            feed(&mut *limiter, 5000, 20.0, 20.0);
            assert!(limiter.limit() < grown, "{limiter:?}");
        }
    }

    fn sample(limiter: &mut dyn Limiter, latency_ms: u64, in_flight: u32, dropped: bool) -> f64 {
        limiter.finish(Time::ZERO, Duration::from_millis(latency_ms), in_flight, dropped);
        limiter.limit()
    }

    /// Netflix/concurrency-limits at 78a74b9, `VegasLimitTest`: initial 10, alpha 3, beta 6
    /// (increaseLimit, decreaseLimit, noChangeIfWithinThresholds) and a large limit
    /// (largeLimitIncrease). Its other four put a function of the user's (half the limit) in place
    /// of the decrease, and smooth it: settings that the baseline at its defaults does not have.
    #[test]
    fn vegas_moves_as_its_authors_test_says() {
        for (begin, first, (latency_ms, in_flight), expected) in [
            (10.0, (10, 10), (10, 11), 16.0),
            (10.0, (10, 10), (50, 11), 9.0),
            (10.0, (10, 10), (14, 14), 10.0),
            (10_000.0, (10_000, 5000), (10_000, 6000), 10_024.0),
        ] {
            let mut vegas = Vegas { limit: begin, most: 2.0 * begin, ..Vegas::default() };
            assert_eq!(sample(&mut vegas, first.0, first.1, false).to_bits(), f64::to_bits(begin));
            let moved = sample(&mut vegas, latency_ms, in_flight, false);
            assert_eq!(moved.to_bits(), f64::to_bits(expected), "{begin}, {latency_ms} ms");
        }
    }

    /// `Log10RootIntFunctionTest`: test0Index, testInRange, testOutofLookupRange.
    #[test]
    fn a_logarithm_is_whole_and_one_at_the_least() {
        for (limit, expected) in [(0.0, 1.0), (100.0, 2.0), (10_000.0, 4.0)] {
            assert_eq!(whole_log10(limit).to_bits(), f64::to_bits(expected));
        }
    }

    /// `AIMDLimitTest`: testDefault, increaseOnSuccess, decreaseOnDrops, successOverflow.
    #[test]
    fn aimd_moves_as_its_authors_test_says() {
        let begin = |limit: f64| Aimd { limit, ..Aimd::default() };
        assert_eq!(begin(10.0).limit().to_bits(), 10.0_f64.to_bits());
        assert_eq!(sample(&mut begin(20.0), 1, 10, false).to_bits(), 21.0_f64.to_bits());
        assert_eq!(sample(&mut begin(30.0), 0, 0, true).to_bits(), 27.0_f64.to_bits());
        let mut full = Aimd { limit: 21.0, least: 0.0, most: 21.0 };
        assert_eq!(sample(&mut full, 1, 10, false).to_bits(), 21.0_f64.to_bits());
    }

    /// `ExpAvgMeasurementTest`: testWarmup, within its own margins.
    #[test]
    fn gradient2s_long_latency_is_a_plain_mean_of_the_first_ten() {
        let mut mean = SlowMean::new(100.0, 10.0);
        for (at, expected) in [10.0, 10.5, 11.0, 11.5, 12.0, 12.5, 13.0, 13.5, 14.0, 14.5].iter().enumerate()
        {
            assert!((mean.add(10.0 + at as f64) - expected).abs() < 0.01);
        }
        assert!((mean.add(100.0) - 16.2).abs() < 0.1);
    }

    /// `ImmutableAverageSampleWindowTest` and `ImmutablePercentileSampleWindowTest` (a dropped sample
    /// counts like any other, their order does not matter). Theirs count in whole nanoseconds. There
    /// is no test of `Gradient2Limit` or `WindowedLimit` to port at that commit.
    #[test]
    fn a_window_tells_the_mean_and_the_quantiles_that_their_tests_say() {
        let window = |ns: &[u64]| {
            let mut samples = Samples::default();
            for ns in ns {
                samples.seconds.push(Duration::from_nanos(*ns).as_secs_f64());
            }
            samples
        };
        let ns = |seconds: f64| (seconds * 1e9).floor();
        assert_eq!(ns(window(&[5000, 500, 10]).mean()).to_bits(), 1836.0_f64.to_bits());
        assert_eq!(ns(window(&[5000, 500, 10, 5000]).mean()).to_bits(), 2627.0_f64.to_bits());
        for (seen, quantile, expected) in [
            ([5000, 500, 10].as_slice(), 0.5, 500.0),
            (&[10, 5000, 5000], 0.5, 5000.0),
            (&[5000, 500, 10], 0.999, 5000.0),
            (&[500, 10, 5000, 10], 0.999, 5000.0),
        ] {
            let told = 1e9 * window(seen).quantile(quantile);
            assert!((told - expected).abs() < 1e-6, "{seen:?} at {quantile}: {told}");
        }
    }

    #[test]
    fn codel_refuses_more_and_more_while_everything_is_late_and_nothing_after() {
        let mut codel = CoDel::default();
        let mut refused = [0, 0, 0];
        for n in 0..30_000_u32 {
            let now = Time::from_secs_f64(f64::from(n) / 1000.0);
            let late = n < 20_000;
            codel.finish(now, Duration::from_millis(if late { 900 } else { 20 }), 100, false);
            refused[(n / 10_000) as usize] += u32::from(!codel.admit(now, 100));
        }
        assert!(refused[0] > 10 && refused[1] > refused[0] && refused[2] == 0, "{refused:?}");
    }

    #[test]
    fn envoys_minimum_is_measured_anew_after_five_windows_at_the_least() {
        let mut envoy = EnvoyGradient::default();
        feed(&mut envoy, 100, 0.0, 20.0);
        assert!(envoy.min_rtt_s.is_some_and(|seconds| (seconds - 0.1).abs() < 1e-9));
        let slow = |envoy: &mut EnvoyGradient, at: f64| {
            envoy.finish(Time::from_secs_f64(at), Duration::from_secs(1), 3, false);
        };
        // Each answer closes a window and halves the limit; then five at the least.
        let windows = (0..40).find(|n| {
            slow(&mut envoy, 21.0 + 1.5 * f64::from(*n));
            envoy.min_rtt_s.is_none()
        });
        assert!(windows.is_some_and(|count| count < 25), "{windows:?} windows, long before a minute");
        assert!(envoy.limit() <= ENVOY_CONCURRENCY_MIN, "{envoy:?}");
    }

    #[test]
    fn breakwater_gives_more_credits_until_requests_wait_and_takes_them_back() {
        let mut breakwater = Breakwater::default();
        feed(&mut breakwater, 100, 0.0, 20.0);
        let grown = breakwater.limit();
        assert!(grown > 100.0, "{grown}");
        feed(&mut breakwater, 1100, 20.0, 20.0);
        assert!(breakwater.limit() < 0.5 * grown, "{breakwater:?}");
        assert!(!breakwater.admit(Time::from_secs_f64(40.0), 1), "what would wait too long is refused");
    }

    #[test]
    fn aimd_backs_off_when_a_client_gives_up() {
        let mut aimd = Aimd { limit: 100.0, ..Aimd::default() };
        assert!(sample(&mut aimd, 1000, 100, true) < 91.0);
    }

    #[test]
    fn aimd_sees_nothing_wrong_with_four_seconds() {
        let mut aimd = Aimd::default();
        feed(&mut aimd, 4000, 0.0, 20.0);
        assert!(aimd.limit() > 100.0);
    }
}
