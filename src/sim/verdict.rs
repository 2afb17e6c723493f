//! Verdicts: the numbers a run is judged by, and whether they lie where they should.
//!
//! Names are `<group>.<what>` for a group of clients and plain words for the whole. A verdict
//! that cannot be had (the latency of nothing) is NaN, and NaN lies in no range: a scenario
//! that expects something of what never happened fails.

use super::scenario::Scenario;
use super::tally::{Second, histogram, jain, quantile_ms};
use super::world::Run;
use std::collections::BTreeMap;

/// Every verdict of a run, by name.
pub type Verdicts = BTreeMap<String, f64>;

/// One expectation and what came of it.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct Check {
    /// The verdict's name.
    pub name: String,
    /// Least it may be.
    pub low: f64,
    /// Most it may be.
    pub high: f64,
    /// What it is; `None` when it cannot be had.
    pub value: Option<f64>,
    /// Whether it lies within.
    pub met: bool,
}

/// Judges a run.
#[must_use]
pub fn verdicts(scenario: &Scenario, run: &Run) -> Verdicts {
    let mut all = Verdicts::new();
    groups(run, &mut all);
    whole(scenario, run, &mut all);
    limit(run, &mut all);
    objective(scenario, run, &mut all);
    all.insert("recovery_s".to_owned(), run.recovery.after_s().unwrap_or(f64::NAN));
    let seconds = run.measured[1] - run.measured[0];
    for (route, count) in &run.upstream {
        all.insert(format!("upstream_per_s.{route}"), *count as f64 / seconds);
    }
    for route in scenario.spec().routes {
        all.entry(format!("upstream_per_s.{}", route.name)).or_insert(0.0);
    }
    all
}

fn groups(run: &Run, all: &mut Verdicts) {
    for tally in &run.groups {
        let share = |part: u64, of: u64| if of == 0 { f64::NAN } else { part as f64 / of as f64 };
        let mut put = |what: &str, value: f64| {
            all.insert(format!("{}.{what}", tally.name), value);
        };
        put("demands", tally.demands as f64);
        put("under_way", tally.busy_s / (run.measured[1] - run.measured[0]));
        put("served", share(tally.served, tally.demands));
        put("shed", share(tally.shed, tally.attempts));
        put("timed_out", share(tally.timed_out, tally.attempts));
        put("failed", share(tally.failed, tally.attempts));
        put("amplification", share(tally.attempts, tally.demands));
        put("p50_ms", tally.latency_ms(0.5));
        put("p99_ms", tally.latency_ms(0.99));
        put("p99_of_calm", tally.latency_ms(0.99) / tally.calm_ms(0.99));
        for other in &run.groups {
            let shares = share(tally.served, tally.demands) / share(other.served, other.demands);
            put(&format!("served_of.{}", other.name), shares);
        }
        put("head_p50_ms", tally.upstream_ms(0.5));
        put("head_p99_ms", tally.upstream_ms(0.99));
        put("jain", tally.jain());
        put("waited", share(tally.waited, tally.attempts));
        put("begun", share(tally.jobs_begun, tally.demands));
        put("start_p50_s", tally.start_s(0.5));
        put("start_p99_s", tally.start_s(0.99));
        put("done", share(tally.jobs_done, tally.demands));
        put("done_p50_s", tally.done_s(0.5));
        put("done_p99_s", tally.done_s(0.99));
        put("inversions", share(tally.inverted, tally.attempts));
    }
}

fn whole(scenario: &Scenario, run: &Run, all: &mut Verdicts) {
    let seconds = run.measured[1] - run.measured[0];
    let work = run.useful_ms + run.wasted_ms;
    let capacity = scenario.capacity_ms_per_s().map_or(f64::NAN, |per_s| per_s * run.capacity * seconds);
    let attempts: u64 = run.groups.iter().map(|tally| tally.attempts).sum();
    let shed: u64 = run.groups.iter().map(|tally| tally.shed).sum();
    let polite: Vec<_> = run.groups.iter().filter(|tally| tally.polite).collect();
    let sum = |count: fn(&super::tally::GroupTally) -> u64| {
        polite.iter().map(|tally| count(tally)).sum::<u64>() as f64
    };
    let shares = polite.iter().filter(|t| t.demands > 0).map(|t| t.served as f64 / t.demands as f64);
    let demands: u64 = run.groups.iter().map(|tally| tally.demands).sum();
    let mut victims = histogram();
    for tally in &polite {
        tally.add_latencies(&mut victims);
    }
    for (name, value) in [
        ("goodput", run.useful_ms / capacity),
        ("yield", run.useful_ms / run.possible_ms),
        ("wasted", if work > 0.0 { run.wasted_ms / work } else { 0.0 }),
        ("shed", shed as f64 / attempts as f64),
        ("polite", sum(|tally| tally.served) / sum(|tally| tally.demands)),
        ("false_sheds", sum(|tally| tally.shed) / sum(|tally| tally.attempts)),
        ("inversions", sum(|tally| tally.inverted) / sum(|tally| tally.attempts)),
        ("victim_p50_ms", quantile_ms(&victims, 0.5)),
        ("victim_p99_ms", quantile_ms(&victims, 0.99)),
        ("amplification", attempts as f64 / demands as f64),
        ("jain", jain(shares)),
        ("gcs_p50_ms", run.felt.gcs_ms(0.5)),
        ("gcs_p99_ms", run.felt.gcs_ms(0.99)),
        ("raylet_p99_ms", run.felt.raylet_ms(0.99)),
        ("cuts", run.cuts as f64),
        ("memory_max", run.memory_max),
        ("out_of_memory", f64::from(run.out_of_memory)),
        ("requests", run.requests as f64),
    ] {
        all.insert(name.to_owned(), value);
    }
    let within = |at_s: f64| run.measured[0] < at_s && at_s <= run.measured[1];
    let measured = || run.timeline.points().iter().filter(|point| within(point.peak.at_s));
    let most = |of: fn(&Second) -> f64| measured().map(|point| of(&point.peak)).fold(0.0, f64::max);
    all.insert("backlog_max".to_owned(), most(|second| second.backlog as f64));
    all.insert("waiting_max".to_owned(), most(|second| f64::from(second.waiting)));
    all.insert("cpu_max".to_owned(), most(|second| second.node_cpu_pct));
    let served = measured().map(|point| point.served).sum::<u64>();
    all.insert("served_per_s".to_owned(), served as f64 / seconds);
}

/// How the watched limit moved: where it ended, how it swung and when it settled.
fn limit(run: &Run, all: &mut Verdicts) {
    let [from, to] = run.measured;
    let part = |from: f64| {
        run.timeline.points().iter().filter(move |point| point.peak.at_s > from && point.peak.at_s <= to)
    };
    let late = || part(f64::midpoint(from, to));
    let seconds = late().map(|point| point.seconds).sum::<u32>().max(1);
    let mean = late().map(|point| point.limit_sum).sum::<f64>() / f64::from(seconds);
    let low = late().map(|point| point.limit_least).fold(f64::INFINITY, f64::min);
    let high = late().map(|point| point.peak.limit).fold(0.0, f64::max);
    // A swing is what is left once single steps of a permit are forgiven: 2 <-> 3 is no hunting.
    let swing = if mean > 0.0 { ((high - low) / 2.0 - 0.5).max(0.0) / mean } else { f64::NAN };
    let outside = |value: f64| (value - mean).abs() > (0.2 * mean).max(1.0);
    let unsettled = part(from).filter(|point| outside(point.limit_least) || outside(point.peak.limit));
    let settled = unsettled.map(|point| point.peak.at_s).fold(from, f64::max);
    let peak = part(from).map(|point| point.peak.limit).fold(0.0, f64::max);
    for (name, value) in [
        ("limit", mean),
        ("limit_swing", swing),
        ("settling_s", settled - from),
        ("overshoot", if mean > 0.0 { peak / mean - 1.0 } else { f64::NAN }),
        ("reversals_per_min", run.motion.turns() * 60.0 / (to - from)),
        ("travel_per_min", run.motion.travel() * 60.0 / (to - from)),
        ("oscillation", run.motion.oscillation()),
    ] {
        all.insert(name.to_owned(), value);
    }
}

/// Steady-state error: the share of the watched class's exchanges within its objective in the
/// late half, short of the share there should be. Below zero: better than asked for.
fn objective(scenario: &Scenario, run: &Run, all: &mut Verdicts) {
    let (ended, within) = run.within;
    let wanted = scenario.policy().ok().and_then(|(policy, _)| {
        let at = policy.classes.iter().position(|class| *class.name == *scenario.watch);
        policy.classes.get(at.unwrap_or(0)).map(|class| class.slo.quantile)
    });
    let error = match wanted {
        Some(wanted) if ended > 0 => wanted - within as f64 / ended as f64,
        _ => f64::NAN,
    };
    all.insert("steady_error".to_owned(), error);
}

/// Holds verdicts against the scenario's expectations.
#[must_use]
pub fn check(scenario: &Scenario, verdicts: &Verdicts) -> Vec<Check> {
    within(&scenario.expect, verdicts)
}

/// Holds verdicts against ranges.
#[must_use]
pub fn within(ranges: &BTreeMap<String, [f64; 2]>, verdicts: &Verdicts) -> Vec<Check> {
    ranges
        .iter()
        .map(|(name, [low, high])| {
            let value = verdicts.get(name).copied().unwrap_or(f64::NAN);
            Check {
                name: name.clone(),
                low: *low,
                high: *high,
                value: value.is_finite().then_some(value),
                met: *low <= value && value <= *high,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Guard;
    use crate::world::{self, Traces};

    const TWICE: &str = r#"
        question = "does a limiter hold eight servers at twice their capacity?"
        seconds = 300
        measure = [120, 300]
        plant = { kind = "servers", count = 8, mean_ms = 100 }
        expect = { goodput = [0.9, 1.1] }
        [[client]]
        name = "all"
        kind = "open"
        route = "work"
        per_second = 160
        timeout_s = 1
        addresses = 16
    "#;

    fn judged(guard: Guard) -> Verdicts {
        let scenario = Scenario::read(TWICE).expect("good");
        let run = world::run(&scenario, guard, 1, &Traces::new()).expect("runs");
        verdicts(&scenario, &run)
    }

    #[test]
    fn without_a_limiter_nearly_all_work_is_wasted() {
        let all = judged(Guard::Off);
        assert!(all["goodput"] < 0.05, "{}", all["goodput"]);
        assert!(all["wasted"] > 0.9);
        assert!(all["all.head_p50_ms"] > 30_000.0);
    }

    #[test]
    fn the_oracle_uses_the_whole_plant() {
        let all = judged(Guard::Fixed(16));
        assert!((all["goodput"] - 1.0).abs() < 0.05, "{}", all["goodput"]);
        assert!((500.0..650.0).contains(&all["all.head_p99_ms"]), "{}", all["all.head_p99_ms"]);
    }
}
