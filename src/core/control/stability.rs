//! How much gain does a loop bear?
//!
//! *The plant.* At saturation ln(latency) follows ln(limit) with gain 1 (Little's law), late:
//! a step every `period` h acts on a reading that is the mean over a `window` W which ended
//! `data_age` D ago. The limit of i steps before, held over `[-i h, -(i-1) h]`, enters that
//! mean by the overlap `w_i` of the window `[-D-W, -D]` with its hold, divided by W. An
//! integral law of gain g closes the loop to
//!
//! `z^n - z^(n-1) + g * sum(w_i z^(n-i)) = 0`                                          (Eq. 1)
//!
//! and is stable while all roots lie inside the unit circle.
//!
//! *The margins.* The *critical gain* is the least g that puts a root on the circle. On
//! `z = e^(j omega)` that is where `L(z) = C(z) * sum(w_i z^-i) / (1 - z^-1)` crosses the
//! negative real axis, C being the law; the *gain margin* is 1 / |L| at the worst crossing, the
//! *phase margin* the angle left at |L| = 1. The *settling time* is that of the linear loop
//! after a step of the plant, to within 5 %. Guardrails make the true loop slower, never less stable.
//!
//! *Dead time* is `theta = D + W/2 + h/2` (Eq. 2): the age, half the window, half the hold.
//!
//! Polling faster than new information arrives takes several steps on one reading and divides
//! the critical gain by as many; rayguard steps once per fresh sample, so a shorter period buys
//! nothing there, and [`assess`] says so. A loop whose gain margin is below 2 is refused.

use super::law::simc_gain;
use crate::policy::{Bounds, Control, Law};
use std::f64::consts::PI;
use std::time::Duration;

/// A loop with less gain margin is refused.
pub(crate) const GAIN_MARGIN_MIN: f64 = 2.0;
/// Frequencies looked at; log-spaced, so that the slow end, where loops break, is dense.
const FREQUENCIES: usize = 4_096;
/// Settled means within this share of the disturbance.
const SETTLED: f64 = 0.05;
/// A loop that has not settled after so many dead times is said not to.
const DEAD_TIMES_MAX: f64 = 60.0;
/// Holds older than this are lumped into the last: no loop polls so fast.
const HOLDS_MAX: usize = 4_096;

/// When a loop acts, and on what.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Timing {
    /// Time between steps.
    pub period: Duration,
    /// Length of the mean behind a reading.
    pub window: Duration,
    /// Age of the reading's youngest part.
    pub data_age: Duration,
    /// How often the source has something new; zero when always.
    pub refresh: Duration,
}

/// What is known of a loop before it is closed.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Assessment {
    /// Dead time, Eq. 2.
    pub dead_time: Duration,
    /// The time between steps that act: the period, or the source's refresh if that is longer.
    pub step: Duration,
    /// The law's gain per step that acts (integral part).
    pub gain: f64,
    /// The gain at which the loop would swing for ever.
    pub gain_critical: f64,
    /// How many times more gain the loop would bear.
    pub gain_margin: f64,
    /// How much more lag the loop would bear, in degrees; 180 when |L| never reaches 1.
    pub phase_margin_deg: f64,
    /// Time to within 5 % after a step of the plant; `None`: it does not settle.
    pub settling: Option<Duration>,
    /// The period is shorter than the source's refresh.
    pub polls_too_fast: bool,
}

/// Why a loop is refused.
#[derive(Clone, Copy, PartialEq, Debug, thiserror::Error)]
pub enum Unstable {
    /// Too little gain margin.
    #[error(
        "a gain of {gain:.3} per step has a margin of {margin:.2} at a dead time of {dead_time_s:.1} s, and 2 is the \
         least; use a gain of at most {gain_max:.3}, or leave it out to get {gain_simc:.3}"
    )]
    Gain {
        /// The configured gain.
        gain: f64,
        /// Its margin.
        margin: f64,
        /// The dead time in seconds.
        dead_time_s: f64,
        /// The gain with margin 2.
        gain_max: f64,
        /// SIMC's.
        gain_simc: f64,
    },
}

impl Timing {
    /// A loop that steps on the answers of the last `window`, which began their way a `latency`
    /// ago: the inner one.
    #[must_use]
    pub fn of_proxy(window: Duration, latency: Duration) -> Timing {
        Timing { period: window, window, data_age: latency, refresh: Duration::ZERO }
    }

    /// A loop that steps on Ray's readings, as they are configured to come: the outer one.
    /// [`super::dead_time::Cadence::timing`] says how they do come.
    #[must_use]
    pub fn of_signals(control: &Control, refresh: Duration) -> Timing {
        Timing { period: control.outer_period, window: control.window, data_age: control.data_age, refresh }
    }

    /// The time between steps that act on new information.
    #[must_use]
    pub fn step(&self) -> Duration {
        self.period.max(self.refresh)
    }

    /// Dead time, Eq. 2.
    #[must_use]
    pub fn dead_time(&self) -> Duration {
        self.data_age.saturating_add(self.window / 2).saturating_add(self.step() / 2)
    }

    /// The share of each past hold in a reading: `w_1, w_2, ...`, which sum to 1.
    #[must_use]
    pub fn weights(&self, step: Duration) -> Vec<f64> {
        let h = step.as_secs_f64().max(1e-9);
        let (near, width) = (self.data_age.as_secs_f64(), self.window.as_secs_f64());
        if width <= 0.0 {
            // A momentary reading falls into one hold; at its edge it is the later one's.
            let hold = (near / h).floor();
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "held to HOLDS_MAX")]
            let index = hold.min(HOLDS_MAX as f64 - 1.0) as usize;
            let mut weights = vec![0.0; index + 1];
            weights[index] = 1.0;
            return weights;
        }
        let far = near + width;
        let mut weights = Vec::new();
        let mut edge = 0.0;
        while edge < far && weights.len() < HOLDS_MAX {
            let overlap = (far.min(edge + h) - near.max(edge)).max(0.0);
            weights.push(overlap / width);
            edge += h;
        }
        let rest = 1.0 - weights.iter().sum::<f64>();
        if let Some(last) = weights.last_mut() {
            *last += rest;
        }
        weights
    }
}

/// The critical gain of an integral law that steps every `timing.period`, whether or not
/// there is news.
#[must_use]
pub fn critical_gain(timing: &Timing) -> f64 {
    if timing.period < timing.refresh {
        // Several steps act on one reading, as one step of as many times the gain.
        let ratio = timing.period.as_secs_f64() / timing.refresh.as_secs_f64();
        return critical_gain(&Timing { period: timing.refresh, ..*timing }) * ratio;
    }
    Loop { weights: timing.weights(timing.period), law: Linear { kp: 0.0, ki: 1.0, kd: 0.0, kii: 0.0 } }
        .margins()
        .0
}

/// The measures of a class's loop; `None` for a law or limit that does not move.
#[must_use]
pub fn assess(timing: &Timing, law: &Law, bounds: &Bounds) -> Option<Assessment> {
    if !bounds.moves() {
        return None;
    }
    let dead_time = timing.dead_time();
    // AIMD acts once per dead time, the others once per fresh reading.
    let step = if matches!(law, Law::Aimd { .. }) { timing.step().max(dead_time) } else { timing.step() };
    let linear = linearised(law, step, dead_time)?;
    let closed = Loop { weights: timing.weights(step), law: linear };
    let (gain_margin, phase_margin_deg) = closed.margins();
    Some(Assessment {
        dead_time,
        step,
        gain: linear.ki,
        gain_critical: gain_margin * linear.ki,
        gain_margin,
        phase_margin_deg,
        settling: closed.settling(step, dead_time),
        polls_too_fast: timing.period < timing.refresh,
    })
}

impl Assessment {
    /// Refuses a loop with a gain margin below 2, with the remedy.
    pub fn verdict(&self) -> Result<(), Unstable> {
        // A margin of exactly 2 may come out a rounding below it.
        if self.gain_margin >= GAIN_MARGIN_MIN * (1.0 - 1e-6) {
            return Ok(());
        }
        Err(Unstable::Gain {
            gain: self.gain,
            margin: self.gain_margin,
            dead_time_s: self.dead_time.as_secs_f64(),
            gain_max: self.gain * self.gain_margin / GAIN_MARGIN_MIN,
            gain_simc: simc_gain(self.step, self.dead_time),
        })
    }
}

/// The measures of a rate that follows a backlog ([`super::backlog`], Eq. 3); `None` where it does not
/// move. The plant is an integrator: its gain per step is the step, whatever the head.
#[must_use]
pub fn assess_backlog(timing: &Timing, bounds: &Bounds) -> Option<Assessment> {
    if !bounds.moves() {
        return None;
    }
    let (dead_time, step) = (timing.dead_time(), timing.step());
    let gain = simc_gain(step, dead_time);
    // 1 / (16 theta^2) = (1 / (2 theta))^2 / 4.
    let law = Linear { kp: 0.0, ki: gain, kd: 0.0, kii: gain * gain / 4.0 };
    let closed = Loop { weights: timing.weights(step), law };
    let (gain_margin, phase_margin_deg) = closed.margins();
    Some(Assessment {
        dead_time,
        step,
        gain,
        gain_critical: gain_margin * gain,
        gain_margin,
        phase_margin_deg,
        settling: closed.settling(step, dead_time),
        polls_too_fast: timing.period < timing.refresh,
    })
}

/// A law near the target, where it is linear in ln(pressure).
#[derive(Clone, Copy, PartialEq, Debug)]
struct Linear {
    kp: f64,
    ki: f64,
    kd: f64,
    /// Of the integral's integral: an integral term on a plant that is an integrator itself.
    kii: f64,
}

fn linearised(law: &Law, step: Duration, dead_time: Duration) -> Option<Linear> {
    let integral = |ki| Linear { kp: 0.0, ki, kd: 0.0, kii: 0.0 };
    match *law {
        Law::Static => None,
        // A cut has gain 1 per dead time, growth no more than SIMC's.
        Law::Aimd { .. } => Some(integral(1.0)),
        Law::Pid { kp, ki, kd } => {
            Some(Linear { kp, ki: ki.unwrap_or_else(|| simc_gain(step, dead_time)), kd, kii: 0.0 })
        }
        Law::Gradient { smoothing, .. } => Some(integral(smoothing.min(simc_gain(step, dead_time)))),
    }
}

/// A loop closed around the plant: the weights of past holds and the law.
struct Loop {
    weights: Vec<f64>,
    law: Linear,
}

/// A complex number; two operations do not merit a library.
#[derive(Clone, Copy)]
struct Complex {
    re: f64,
    im: f64,
}

impl Complex {
    fn turn(angle: f64) -> Complex {
        Complex { re: angle.cos(), im: angle.sin() }
    }
    fn times(self, other: Complex) -> Complex {
        Complex { re: self.re * other.re - self.im * other.im, im: self.re * other.im + self.im * other.re }
    }
    fn over(self, other: Complex) -> Complex {
        let size = other.re * other.re + other.im * other.im;
        let turned = self.times(Complex { re: other.re, im: -other.im });
        Complex { re: turned.re / size, im: turned.im / size }
    }
    fn scaled_plus(self, scale: f64, plus: f64) -> Complex {
        Complex { re: self.re * scale + plus, im: self.im * scale }
    }
    fn size(self) -> f64 {
        self.re.hypot(self.im)
    }
}

impl Loop {
    /// The open loop at an angular frequency in (0, pi] per step.
    fn open(&self, omega: f64) -> Complex {
        let back = Complex::turn(-omega); // z^-1
        // Horner's rule, oldest hold first.
        let reading = self
            .weights
            .iter()
            .rev()
            .fold(Complex { re: 0.0, im: 0.0 }, |sum, &weight| sum.scaled_plus(1.0, weight).times(back));
        let difference = back.scaled_plus(-1.0, 1.0); // 1 - z^-1
        let filter = Complex { re: 0.5, im: 0.0 }.over(back.scaled_plus(-0.5, 1.0));
        let Linear { kp, ki, kd, kii } = self.law;
        let d = difference.times(difference).times(filter);
        let p = difference;
        let twice = Complex { re: kii, im: 0.0 }.over(difference);
        let law = Complex { re: kp * p.re + ki + kd * d.re + twice.re, im: kp * p.im + kd * d.im + twice.im };
        law.times(reading).over(difference)
    }

    /// Gain margin (as a factor) and phase margin (in degrees).
    fn margins(&self) -> (f64, f64) {
        let lowest = PI / (64.0 * self.weights.len() as f64 + 64.0);
        let ratio = (PI / lowest).powf(1.0 / (FREQUENCIES as f64 - 1.0));
        let (mut gain, mut phase) = (f64::INFINITY, 180.0_f64);
        let mut before = (lowest, self.open(lowest));
        let mut omega = lowest;
        for _ in 1..FREQUENCIES {
            omega = (omega * ratio).min(PI);
            let here = (omega, self.open(omega));
            if before.1.im.signum() * here.1.im.signum() < 0.0 {
                let crossing = self.open(self.bisect(before.0, here.0, |point| point.im));
                if crossing.re < 0.0 {
                    gain = gain.min(1.0 / crossing.size());
                }
            }
            if (before.1.size() - 1.0) * (here.1.size() - 1.0) < 0.0 {
                let unity = self.open(self.bisect(before.0, here.0, |point| point.size() - 1.0));
                phase =
                    phase.min((180.0 + unity.im.atan2(unity.re).to_degrees()).rem_euclid(360.0).min(180.0));
            }
            before = here;
        }
        // At z = -1 the loop is real.
        let last = self.open(PI);
        if last.re < 0.0 {
            gain = gain.min(1.0 / last.re.abs());
        }
        (gain, if gain <= 1.0 { 0.0 } else { phase })
    }

    fn bisect(&self, mut low: f64, mut high: f64, of: impl Fn(Complex) -> f64) -> f64 {
        let sign = of(self.open(low)).signum();
        for _ in 0..60 {
            let middle = f64::midpoint(low, high);
            if of(self.open(middle)).signum() * sign > 0.0 {
                low = middle;
            } else {
                high = middle;
            }
        }
        f64::midpoint(low, high)
    }

    /// Time to within 5 % after the plant's latency jumped by one on the log scale.
    fn settling(&self, step: Duration, dead_time: Duration) -> Option<Duration> {
        let Linear { kp, ki, kd, .. } = self.law;
        let n = self.weights.len();
        let steps_max = DEAD_TIMES_MAX * dead_time.as_secs_f64() / step.as_secs_f64().max(1e-9) + n as f64;
        let mut limits = vec![0.0; n]; // newest last
        let (mut error_before, mut filtered) = (0.0, [0.0; 2]);
        let mut outside_at: u32 = 0;
        let mut k: u32 = 0;
        while f64::from(k) < steps_max {
            let reading: f64 = self.weights.iter().zip(limits.iter().rev()).map(|(w, u)| w * u).sum();
            // The jump enters a reading as old limits do: by the share of the window after it.
            let seen: f64 = self.weights.iter().take(k as usize + 1).sum();
            let error = -(reading + seen);
            let smooth = filtered[0] + 0.5 * (error - filtered[0]);
            let change =
                kp * (error - error_before) + ki * error + kd * (smooth - 2.0 * filtered[0] + filtered[1]);
            (error_before, filtered) = (error, [smooth, filtered[0]]);
            let next = limits[n - 1] + change;
            limits.rotate_left(1);
            limits[n - 1] = next;
            k += 1;
            // What matters is the latency itself, not its late reading.
            if (next + 1.0).abs() > SETTLED {
                outside_at = k;
            }
        }
        let settled = f64::from(outside_at) < 0.9 * steps_max;
        settled.then(|| step.saturating_mul(outside_at + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timing(period_s: u64, window_s: u64, data_age_s: u64) -> Timing {
        Timing {
            period: Duration::from_secs(period_s),
            window: Duration::from_secs(window_s),
            data_age: Duration::from_secs(data_age_s),
            refresh: Duration::ZERO,
        }
    }

    const BOUNDS: Bounds = Bounds { initial: 8.0, min: 1.0, max: 100.0 };

    const GOLDEN: [(u64, u64, u64, f64); 6] = [
        (5, 5, 0, 2.00),
        (15, 30, 15, 0.828),
        (5, 30, 15, 0.289),
        (10, 30, 0, 1.50),
        (10, 30, 10, 0.708),
        (10, 30, 20, 0.477),
    ];

    #[test]
    fn critical_gains_are_the_known_ones() {
        for (h, w, d, known) in GOLDEN {
            let gain = critical_gain(&timing(h, w, d));
            assert!((gain / known - 1.0).abs() < 0.01, "{h}/{w}/{d}: {gain} is not {known}");
        }
    }

    /// The recurrence behind Eq. 1, run: the size of ln(limit) late over its size early.
    fn growth(timing: &Timing, gain: f64) -> f64 {
        let weights = timing.weights(timing.period);
        let mut limits = vec![0.0; weights.len()];
        limits.push(1.0);
        for _ in 0..2_000 {
            let reading: f64 = weights.iter().zip(limits.iter().rev()).map(|(w, u)| w * u).sum();
            limits.push(limits[limits.len() - 1] - gain * reading);
        }
        let size = |part: &[f64]| part.iter().fold(0.0_f64, |most, u| most.max(u.abs()));
        size(&limits[1_900..]) / size(&limits[900..1_000])
    }

    #[test]
    fn just_below_the_critical_gain_a_disturbance_dies_and_just_above_it_grows() {
        for (h, w, d, _) in GOLDEN {
            let timing = timing(h, w, d);
            let critical = critical_gain(&timing);
            assert!(growth(&timing, critical * 0.98) < 0.9, "{h}/{w}/{d}");
            assert!(growth(&timing, critical * 1.02) > 1.1, "{h}/{w}/{d}");
        }
    }

    #[test]
    fn the_weights_are_the_overlaps_of_the_window_with_the_holds() {
        assert_eq!(
            timing(10, 30, 10).weights(Duration::from_secs(10)),
            [0.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0]
        );
        let skew = timing(10, 20, 5).weights(Duration::from_secs(10));
        for (weight, expected) in skew.iter().zip([0.25, 0.5, 0.25]) {
            assert!((weight - expected).abs() < 1e-12, "{skew:?}");
        }
        assert_eq!(timing(10, 0, 15).weights(Duration::from_secs(10)), [0.0, 1.0]);
    }

    #[test]
    fn simc_keeps_a_margin_of_three_or_so_and_a_phase_of_sixty_degrees_or_more() {
        let law = Law::Pid { kp: 0.0, ki: None, kd: 0.0 };
        for (h, w, d, _) in GOLDEN {
            let assessed = assess(&timing(h, w, d), &law, &BOUNDS).unwrap();
            assert!((2.5..6.1).contains(&assessed.gain_margin), "{h}/{w}/{d} {assessed:?}");
            assert!((50.0..80.0).contains(&assessed.phase_margin_deg), "{h}/{w}/{d} {assessed:?}");
            let dead_times = assessed.settling.unwrap().as_secs_f64() / assessed.dead_time.as_secs_f64();
            assert!((1.0..8.0).contains(&dead_times), "{h}/{w}/{d} {assessed:?}");
            assert_eq!(assessed.verdict(), Ok(()));
        }
    }

    #[test]
    fn too_much_gain_is_refused_with_the_gain_that_would_do() {
        let law = Law::Pid { kp: 0.0, ki: Some(0.6), kd: 0.0 };
        let timing = timing(10, 30, 10);
        let refused = assess(&timing, &law, &BOUNDS).unwrap().verdict().unwrap_err();
        assert_eq!(
            refused.to_string(),
            "a gain of 0.600 per step has a margin of 1.18 at a dead time of 30.0 s, and 2 is the least; \
             use a gain of at most 0.354, or leave it out to get 0.167"
        );
        let Unstable::Gain { gain_max, .. } = refused;
        let mended = Law::Pid { kp: 0.0, ki: Some(gain_max), kd: 0.0 };
        assert_eq!(assess(&timing, &mended, &BOUNDS).unwrap().verdict(), Ok(()));
    }

    #[test]
    fn an_unstable_loop_does_not_settle_and_has_no_phase_left() {
        let law = Law::Pid { kp: 0.0, ki: Some(0.8), kd: 0.0 };
        let assessed = assess(&timing(10, 30, 10), &law, &BOUNDS).unwrap();
        assert_eq!((assessed.settling, assessed.phase_margin_deg > 0.0), (None, false), "{assessed:?}");
    }

    #[test]
    fn polling_faster_than_news_arrive_divides_the_critical_gain_and_is_said() {
        let slow = critical_gain(&timing(10, 30, 10));
        let fast = Timing { refresh: Duration::from_secs(10), ..timing(2, 30, 10) };
        assert!((critical_gain(&fast) - slow / 5.0).abs() < 1e-9);
        let law = Law::Pid { kp: 0.0, ki: None, kd: 0.0 };
        let assessed = assess(&fast, &law, &BOUNDS).unwrap();
        assert!(assessed.polls_too_fast);
        assert_eq!(assessed.step, Duration::from_secs(10));
    }

    #[test]
    fn a_rate_after_a_backlog_bears_twice_its_gain_at_every_scrape_interval() {
        for scrape_s in [1, 5, 10, 15, 30, 60] {
            let timing = Timing { refresh: Duration::from_secs(scrape_s), ..timing(5, 10, 5) };
            let assessed = assess_backlog(&timing, &Bounds { initial: 4.0, min: 0.2, max: 64.0 }).unwrap();
            assert!(
                assessed.gain_margin > 2.0 && assessed.phase_margin_deg > 40.0,
                "{scrape_s}: {assessed:?}"
            );
        }
    }

    #[test]
    fn what_does_not_move_has_no_loop() {
        assert_eq!(assess(&timing(5, 5, 0), &Law::Static, &BOUNDS), None);
        let law = Law::Pid { kp: 0.0, ki: None, kd: 0.0 };
        assert_eq!(assess(&timing(5, 5, 0), &law, &Bounds::fixed(3.0)), None);
    }
}
