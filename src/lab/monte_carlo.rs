//! Monte Carlo: does an answer hold on a head that is not quite the one the scenario describes?
//!
//! A scenario is one head, one seed. What an operator has is another: faster or slower, seen
//! later, through metrics that are noisy and sometimes lost, with service times of another
//! shape. Each *draw* makes such a head from the seed and the draw's number alone, so any one
//! of them can be had again; all draws are judged, and the share that holds comes with its
//! exact 95 % interval (Clopper and Pearson, "The use of confidence or fiducial limits",
//! 1934): bounds are quantiles of the beta distribution, so 20 of 20 is said to be 83 to 100 %.
//!
//! Drawn are: the head's speed (half to double, log-uniform), the age of everything Ray exports
//! and the time between scrapes (half to double), the noise of gauges (up to 20 %), scrapes
//! that are lost (up to 30 %), the shape of service times (log-normal with deviation 0.1 to 1,
//! or exponential), and every single cost (28 %).
//! A draw is held to the scenario's `robust` ranges, or to `expect` where it has none: with `robust` it claims to hold in
//! 98 % of the draws. One that does
//! not hold is put to an oracle: the same head, with the watched class's limit held at each of many
//! values. Where none of them holds either, three times in a row (of so many one holds by chance, where each of
//! them comes near to it), no limit can serve that head, and it is counted apart.

use super::hindsight::pinned;
use rayguard_sim::rng::Rng;
use rayguard_sim::scenario::{Scenario, ScenarioError};
use rayguard_sim::verdict::{Check, Verdicts, verdicts, within};
use rayguard_sim::world::{Conditions, Onlooker, Run, Traces, run_under};
use serde::Serialize;
use statrs::distribution::{Beta, ContinuousCDF};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

/// One head that might be meant.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Draw {
    /// Its number, from 0.
    pub number: u64,
    /// Speed of the head, 0.5..2.
    pub capacity: f64,
    /// Age of what Ray exports, and time between scrapes, 0.5..2.
    pub dead_time: f64,
    /// Deviation of the logarithm of gauges, 0..0.2.
    pub noise: f64,
    /// Share of scrapes lost, 0..0.3.
    pub scrapes_lost: f64,
    /// Deviation of the logarithm of service times, 0.1..1; `None`: exponential.
    pub shape: Option<f64>,
    /// The seed of clients and service times.
    pub seed: u64,
}

impl Draw {
    /// The draw of this number.
    #[must_use]
    pub fn new(seed: u64, number: u64) -> (Draw, Rng) {
        let mut rng = Rng::new(seed, 0x77_0000 + number);
        let mut twofold = |_: &str| (2.0_f64).powf(rng.between(-1.0, 1.0));
        let (capacity, dead_time) = (twofold("capacity"), twofold("dead time"));
        let draw = Draw {
            number,
            capacity,
            dead_time,
            noise: rng.between(0.0, 0.2),
            scrapes_lost: rng.between(0.0, 0.3),
            shape: if rng.happens(0.25) { None } else { Some(rng.between(0.1, 1.0)) },
            seed: rng.bits(),
        };
        (draw, rng)
    }

    /// The conditions it makes of a scenario's.
    fn conditions(&self, scenario: &Scenario, rng: &mut Rng) -> Conditions {
        let mut conditions = Conditions::of(scenario);
        let mut spec = conditions.spec.perturbed(rng);
        spec.cadence.process = spec.cadence.process.mul_f64(self.dead_time);
        spec.cadence.cluster = spec.cadence.cluster.mul_f64(self.dead_time);
        spec.exponential = self.shape.is_none();
        spec.sigma = self.shape.unwrap_or(spec.sigma);
        conditions.spec = spec;
        conditions.capacity = self.capacity;
        conditions.scrape_s *= self.dead_time;
        conditions.noise = self.noise;
        conditions.scrapes_lost = self.scrapes_lost;
        conditions
    }

    /// What it is made of, as a line.
    #[must_use]
    pub fn describe(&self) -> String {
        let shape = self.shape.map_or("exponential".to_owned(), |sigma| format!("log-normal {sigma:.2}"));
        format!(
            "speed x{:.2}, dead time x{:.2}, noise {:.0} %, {:.0} % of scrapes lost, {shape} service",
            self.capacity,
            self.dead_time,
            100.0 * self.noise,
            100.0 * self.scrapes_lost
        )
    }
}

/// A draw with its run and what it was held to.
#[derive(Clone, PartialEq, Debug)]
pub struct Trial {
    /// The head.
    pub draw: Draw,
    /// The run.
    pub run: Run,
    /// What came of it.
    pub verdicts: Verdicts,
    /// What it was held to.
    pub checks: Vec<Check>,
    /// The head and how it is seen.
    pub conditions: Conditions,
}

impl Trial {
    fn met(&self) -> bool {
        self.checks.iter().all(|check| check.met)
    }
}

/// Runs one draw, and tells an onlooker of it.
///
/// # Errors
/// The scenario cannot be run.
pub fn trial<'a>(
    scenario: &'a Scenario,
    seed: u64,
    number: u64,
    traces: &Traces,
    onlooker: Onlooker<'a>,
) -> Result<Trial, ScenarioError> {
    let (draw, mut rng) = Draw::new(seed, number);
    let conditions = draw.conditions(scenario, &mut rng);
    let run = run_under(scenario, conditions.clone(), scenario.guard, draw.seed, traces, onlooker)?;
    let verdicts = verdicts(scenario, &run);
    let checks = within(ranges(scenario), &verdicts);
    Ok(Trial { draw, run, verdicts, checks, conditions })
}

/// What a draw is held to.
fn ranges(scenario: &Scenario) -> &BTreeMap<String, [f64; 2]> {
    if scenario.robust.is_empty() { &scenario.expect } else { &scenario.robust }
}

/// So often must one and the same limit hold, with other clients and service times each time.
const ORACLE_TIMES: u64 = 3;

/// Whether some fixed limit holds where this trial does not: with the same clients and service times and again with
/// others, since the best of many limits holds by chance where each of them may.
fn can_be_served(scenario: &Scenario, trial: &Trial, traces: &Traces) -> Result<bool, ScenarioError> {
    let held = |seed: u64| {
        pinned(scenario, &trial.conditions, seed, traces, |found| {
            within(ranges(scenario), found).iter().all(|check| check.met)
        })
    };
    let mut always = held(trial.draw.seed)?;
    for again in 1..ORACLE_TIMES {
        if !always.contains(&true) {
            return Ok(false);
        }
        let holds = held(trial.draw.seed.wrapping_add(again))?;
        always = always.into_iter().zip(holds).map(|(always, holds)| always && holds).collect();
    }
    Ok(always.contains(&true))
}

/// How far beyond its range a check lies, as a share of the range's nearer bound; 0 within.
fn shortfall(check: &Check) -> f64 {
    match check.value {
        _ if check.met => 0.0,
        None => f64::INFINITY,
        Some(value) if value < check.low => (check.low - value) / check.low.abs().max(1e-3),
        Some(value) => (value - check.high) / check.high.abs().max(1e-3),
    }
}

/// How often a scenario held.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct PassRate {
    /// Draws.
    pub runs: u64,
    /// Draws that no limit can serve.
    pub beyond: u64,
    /// Draws in which everything held.
    pub passed: u64,
    /// Lower bound of the exact 95 % interval.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
    /// In how many draws each check did not hold.
    pub broken: BTreeMap<String, u64>,
    /// The draw furthest from holding.
    pub worst: Option<Worst>,
    /// The scenario claims to be robust.
    pub claimed: bool,
}

/// The draw furthest from holding.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Worst {
    /// The head.
    pub draw: Draw,
    /// What did not hold.
    pub check: Check,
}

/// The exact 95 % interval of a share (Clopper-Pearson).
#[must_use]
pub fn interval(passed: u64, runs: u64) -> (f64, f64) {
    let (k, n) = (passed as f64, runs as f64);
    let quantile = |p: f64, a: f64, b: f64| Beta::new(a, b).map_or(f64::NAN, |beta| beta.inverse_cdf(p));
    let low = if passed == 0 { 0.0 } else { quantile(0.025, k, n - k + 1.0) };
    let high = if passed == runs { 1.0 } else { quantile(0.975, k + 1.0, n - k) };
    (low, high)
}

/// What a trial leaves behind: what did not hold, unless no limit could have served it.
#[derive(Debug)]
enum Left {
    Judged(Draw, Vec<Check>),
    Beyond(Draw),
}

impl Left {
    fn number(&self) -> u64 {
        let (Left::Judged(draw, _) | Left::Beyond(draw)) = self;
        draw.number
    }
}

/// Runs `runs` draws, spread over the cores; `progress` is told after each how many are done.
///
/// # Errors
/// The scenario cannot be run.
pub fn monte_carlo(
    scenario: &Scenario,
    seed: u64,
    runs: u64,
    traces: &Traces,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<PassRate, ScenarioError> {
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let (next, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let work = || -> Result<Vec<Left>, ScenarioError> {
        let mut left = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= runs {
                return Ok(left);
            }
            let trial = trial(scenario, seed, number, traces, Onlooker::default())?;
            left.push(if trial.met() {
                Left::Judged(trial.draw, Vec::new())
            } else if can_be_served(scenario, &trial, traces)? {
                Left::Judged(trial.draw, trial.checks)
            } else {
                Left::Beyond(trial.draw)
            });
            progress(done.fetch_add(1, Ordering::Relaxed) + 1);
        }
    };
    let parts: Vec<Result<Vec<Left>, ScenarioError>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .map(|thread| {
                thread.join().unwrap_or_else(|_| Err(ScenarioError::Impossible("a draw panicked".to_owned())))
            })
            .collect()
    });
    let mut all = Vec::new();
    for part in parts {
        all.extend(part?);
    }
    // Threads finish in any order; what is printed must not depend on it.
    all.sort_by_key(Left::number);
    Ok(summary(runs, &all, !scenario.robust.is_empty()))
}

fn summary(runs: u64, all: &[Left], claimed: bool) -> PassRate {
    let judged: Vec<(&Draw, &Vec<Check>)> = all
        .iter()
        .filter_map(|left| match left {
            Left::Judged(draw, broken) => Some((draw, broken)),
            Left::Beyond(_) => None,
        })
        .collect();
    let beyond = runs - judged.len() as u64;
    let failed = judged.iter().filter(|(_, checks)| !checks.is_empty()).count() as u64;
    let passed = judged.len() as u64 - failed;
    let (low, high) = interval(passed, runs - beyond);
    let mut broken = BTreeMap::new();
    let mut worst: Option<(f64, Worst)> = None;
    for (draw, checks) in judged {
        for check in checks.iter().filter(|check| !check.met) {
            *broken.entry(check.name.clone()).or_insert(0) += 1;
            let by = shortfall(check);
            if worst.as_ref().is_none_or(|(most, _)| by > *most) {
                worst = Some((by, Worst { draw: *draw, check: check.clone() }));
            }
        }
    }
    PassRate { runs, beyond, passed, low, high, broken, worst: worst.map(|(_, worst)| worst), claimed }
}

/// A scenario that claims to be robust holds in this share of the draws that a fixed limit can serve ...
const CLAIM: f64 = 0.98;
/// ... and the lower bound of the interval is no less than this, which takes 73 of them.
const CLAIM_LOW: f64 = 0.95;

impl PassRate {
    /// Whether the scenario claims to be robust, and these draws do not show it.
    #[must_use]
    pub fn misses_its_claim(&self) -> bool {
        let judged = (self.runs - self.beyond) as f64;
        let is_shown = self.passed as f64 >= CLAIM * judged && self.low >= CLAIM_LOW;
        self.claimed && !is_shown
    }

    /// The rate as text, with what it takes to see the worst draw again.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = format!(
            "     {} of {} draws hold: {:.1} % to {:.1} % (95 %)\n",
            self.passed,
            self.runs - self.beyond,
            100.0 * self.low,
            100.0 * self.high
        );
        if self.beyond > 0 {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "     {} more draws are heads that no fixed limit can serve", self.beyond);
        }
        if self.misses_its_claim() {
            let _ = writeln!(
                text,
                "     it claims to be robust ([robust]), and that is not shown: 98 % must hold, with a lower bound of 95 %, \
                 which takes 73 draws"
            );
        }
        for (name, times) in &self.broken {
            let _ = writeln!(text, "     - {name:<28} broken in {times}");
        }
        if let Some(Worst { draw, check }) = &self.worst {
            let value = check.value.map_or("none".to_owned(), |value| format!("{value:.3}"));
            let (number, head) = (draw.number, draw.describe());
            let _ =
                writeln!(text, "     worst: {} = {value}; see it with --draw {number} ({head})", check.name);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_exact() {
        // Clopper and Pearson's own kind of table: 0 of 20, 20 of 20, 8 of 10.
        for (passed, runs, low, high) in
            [(0, 20, 0.0, 0.1684), (20, 20, 0.8316, 1.0), (8, 10, 0.4439, 0.9748)]
        {
            let (from, to) = interval(passed, runs);
            assert!((from - low).abs() < 1e-4 && (to - high).abs() < 1e-4, "{from} {to}");
        }
    }

    #[test]
    fn draws_cover_what_they_say_and_no_more() {
        let draws: Vec<Draw> = (0..400).map(|number| Draw::new(1, number).0).collect();
        let span = |of: fn(&Draw) -> f64| {
            draws.iter().map(of).fold((f64::INFINITY, 0.0_f64), |(l, h), v| (l.min(v), h.max(v)))
        };
        for (what, (low, high), least, most) in [
            ("capacity", span(|draw| draw.capacity), 0.5, 2.0),
            ("dead time", span(|draw| draw.dead_time), 0.5, 2.0),
            ("noise", span(|draw| draw.noise), 0.0, 0.2),
            ("lost", span(|draw| draw.scrapes_lost), 0.0, 0.3),
        ] {
            assert!(low >= least && high <= most, "{what}: {low}..{high}");
            assert!(high - low > 0.9 * (most - least), "{what}: {low}..{high}");
        }
        assert!(draws.iter().filter(|draw| draw.shape.is_none()).count() > 60);
    }

    const HALF_FAILS: &str = r#"
        question = "is a limit of two enough?"
        seconds = 20
        plant = { kind = "servers", count = 8, mean_ms = 100 }
        guard = { fixed = 2 }
        expect = { served_per_s = [0, 1000] }
        robust = { served_per_s = [20, 1000] }
        [[client]]
        name = "all"
        kind = "open"
        route = "work"
        per_second = 300
    "#;

    #[test]
    fn the_worst_draw_is_the_slowest_head_and_can_be_had_again() {
        let scenario = Scenario::read(HALF_FAILS).expect("good");
        let rate = monte_carlo(&scenario, 3, 24, &Traces::new(), &|_| ()).expect("runs");
        assert!(rate.passed > 2 && rate.passed < 22, "{rate:?}");
        let worst = rate.worst.clone().expect("some fail");
        assert!(worst.draw.capacity < 0.8, "{worst:?}");
        let again =
            trial(&scenario, 3, worst.draw.number, &Traces::new(), Onlooker::default()).expect("runs");
        assert_eq!(again.checks[0], worst.check);
        assert_eq!(rate.broken["served_per_s"], 24 - rate.passed);
        assert!(rate.describe().contains(&format!("--draw {}", worst.draw.number)));
        assert_eq!(rate.beyond, 0, "eight at once would do on every one of them");
        assert!(rate.misses_its_claim() && rate.describe().contains("is not shown"), "{}", rate.describe());
    }

    #[test]
    fn a_claim_takes_enough_draws_and_who_claims_nothing_misses_none() {
        let of = |passed: u64, claimed: bool| {
            let (low, high) = interval(passed, 200);
            let broken = BTreeMap::new();
            PassRate { runs: 201, beyond: 1, passed, low, high, broken, worst: None, claimed }
        };
        assert!(!of(200, true).misses_its_claim() && !of(197, true).misses_its_claim());
        assert!(of(196, true).misses_its_claim() && !of(196, false).misses_its_claim());
        let few = PassRate { runs: 61, low: interval(60, 60).0, passed: 60, ..of(60, true) };
        assert!(few.misses_its_claim(), "60 of 60 may be 94 of 100");
    }

    #[test]
    fn heads_that_no_limit_can_serve_are_counted_apart() {
        let more = HALF_FAILS.replace("[20, 1000]", "[80, 1000]").replace("fixed = 2", "fixed = 64");
        let scenario = Scenario::read(&more).expect("good");
        let rate = monte_carlo(&scenario, 3, 16, &Traces::new(), &|_| ()).expect("runs");
        assert!(rate.beyond > 2 && rate.beyond + rate.passed == 16, "{rate:?}");
        assert!(rate.broken.is_empty() && rate.worst.is_none(), "{rate:?}");
    }
}
